"""Licences of released models: what each demands of a student, with its source. What is not known here is not guessed.

The identifiers are those of the hub: the values of `license` in the metadata of a model card, or of `license_name`
where `license` is `other` (docs/hub/repositories-licenses.md of huggingface/hub-docs).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

UNKNOWN = "unknown"
"""The hub's identifier of a licence that nobody has named."""
OTHER = "other"
_IDENTIFIERS = frozenset(
    f"{UNKNOWN} {OTHER} apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 "
    "bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 "
    "cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 "
    "cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 "
    "cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 agpl-3.0 gfdl gpl "
    "gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl mpl-2.0 odc-by odbl openrail++ osl-3.0 postgresql "
    "ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license llama2 gemma".split()
)
"""What the hub takes as `license`."""
_RAIL = (
    "A distilled model is a derivative of its teacher: whoever passes it on must bind its users to the use "
    "restrictions of Attachment A, give them a copy of the licence, keep the copyright notices, and state that the "
    "model was changed (definitions, and paragraphs 4 and 5)."
)


@dataclass(frozen=True)
class KnownLicence:
    """A licence whose text was read."""

    title: str
    obligations: str
    """What whoever passes on a student must do: sentences with the paragraphs of the licence."""
    link: str
    """The text."""
    heading: str = ""
    """How the file of the licence begins, in small letters; by it a LICENSE file is recognised."""


KNOWN = {
    "apache-2.0": KnownLicence(
        "Apache License 2.0",
        "Whoever passes on a changed model must give a copy of the licence, keep its notices and those of a NOTICE "
        "file, and state that the files were changed (section 4).",
        "https://www.apache.org/licenses/LICENSE-2.0",
        "apache license version 2.0",
    ),
    "mit": KnownLicence(
        "MIT License",
        "Whoever passes on the model must include the copyright notice and the text of the licence.",
        "https://opensource.org/license/mit",
        "mit license",
    ),
    "creativeml-openrail-m": KnownLicence(
        "CreativeML Open RAIL-M",
        _RAIL,
        "https://huggingface.co/spaces/CompVis/stable-diffusion-license",
        "creativeml open rail-m",
    ),
    "openrail++": KnownLicence(
        "CreativeML Open RAIL++-M",
        _RAIL,
        "https://huggingface.co/stabilityai/stable-diffusion-2/blob/main/LICENSE-MODEL",
        "creativeml open rail++-m",
    ),
    "cc-by-4.0": KnownLicence(
        "Creative Commons Attribution 4.0",
        "Whoever passes on a changed model must name its author, keep its copyright notice and disclaimer of "
        "warranties, link the model and the licence, and state that it was changed (section 3).",
        "https://creativecommons.org/licenses/by/4.0/legalcode",
        "attribution 4.0 international",
    ),
    "cc-by-nc-4.0": KnownLicence(
        "Creative Commons Attribution Non Commercial 4.0",
        "The model may not be used for commercial purposes; whoever passes on a changed model must name its author, "
        "keep its copyright notice and disclaimer of warranties, link the model and the licence, and state that it was "
        "changed (sections 2 and 3).",
        "https://creativecommons.org/licenses/by-nc/4.0/legalcode",
        "attribution-noncommercial 4.0 international",
    ),
    "flux-1-dev-non-commercial-license": KnownLicence(
        "FLUX.1 [dev] Non-Commercial License",
        "Changed models too may be used and passed on for non-commercial purposes only; whoever passes one on must "
        "give a copy of the licence, display its attribution notice with a statement that the model was changed, and "
        "not present it as a product of Black Forest Labs (sections 2 and 3).",
        "https://github.com/black-forest-labs/flux/blob/main/model_licenses/LICENSE-FLUX1-dev",
        "flux.1 [dev] non-commercial license",
    ),
    "stabilityai-ai-community": KnownLicence(
        "Stability AI Community License",
        "Whoever passes on a changed model must give a copy of the agreement, add its attribution notice and what was "
        "changed in a Notice file, and display “Powered by Stability AI”; the free licence ends above 1,000,000 USD of "
        "yearly revenue, and commercial use must be registered (sections III and IV).",
        "https://huggingface.co/stabilityai/stable-diffusion-3.5-medium/blob/main/LICENSE.md",
        "stability ai community license agreement",
    ),
}
"""By the hub's identifier, or by the name that its release has on the hub."""
_LICENCE_FILE = re.compile(r"(licen[cs]e|notice)([-_][\w-]*)?(\.(md|txt))?", re.IGNORECASE)


def is_licence_file(name: str) -> bool:
    """Return whether a file in the top folder of a repository is a licence or a notice, by its name."""
    return _LICENCE_FILE.fullmatch(name) is not None


def recognised(text: str) -> str | None:
    """Return the identifier of the licence that a file begins with; None for any other text."""
    words = " ".join(re.sub(r"[#*=]+", " ", text[:600]).lower().split())
    found = [name for name, licence in KNOWN.items() if licence.heading and words.startswith(licence.heading)]
    return max(found, key=lambda name: len(KNOWN[name].heading), default=None)


@dataclass(frozen=True)
class Licence:
    """The licence of a model, as its card, its LICENSE file or its header names it."""

    identifier: str = UNKNOWN
    """As the hub's `license`, or as `license_name` where that is `other`."""
    link: str | None = None
    source: str = ""
    """Where it is named, for people; empty where it is not known."""

    @property
    def known(self) -> KnownLicence | None:
        """What is known about it; None for a licence whose text was not read."""
        return KNOWN.get(self.identifier)

    @property
    def title(self) -> str:
        """Its name for people."""
        return self.known.title if self.known else self.identifier

    @property
    def url(self) -> str | None:
        """Where its text is."""
        return self.link or (self.known.link if self.known else None)

    def metadata(self) -> dict[str, str]:
        """Return its entries in the metadata of a model card."""
        if self.identifier in _IDENTIFIERS - {OTHER}:
            return {"license": self.identifier}
        link = {"license_link": self.url} if self.url else {}
        named = {"license_name": self.identifier} if self.identifier != OTHER else {}
        return {"license": OTHER, **named, **link}

    @classmethod
    def of_metadata(cls, metadata: dict[str, Any], source: str) -> Licence | None:
        """Return the licence that the metadata of a model card names; None where they name none."""
        identifier, name = (_one_line(metadata.get(key)) for key in ("license", "license_name"))
        if identifier is None or identifier == UNKNOWN:
            return None
        if identifier == OTHER and name is not None:
            identifier = name
        return cls(identifier, _one_line(metadata.get("license_link")), source)


def _one_line(value: Any) -> str | None:
    """Return a value of metadata as one short line; None for anything else."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    text = " ".join(value.split())[:200] if isinstance(value, str) else ""
    return text or None
