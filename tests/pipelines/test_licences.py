from __future__ import annotations

import re

import pytest
import yaml
from huggingface_hub import ModelCardData

from condistill.pipelines.licences import KNOWN, Licence, is_licence_file, recognised


@pytest.mark.parametrize("name", KNOWN)
def test_every_known_licence_states_what_it_demands_and_where_its_text_is(name: str) -> None:
    known = KNOWN[name]
    assert known.obligations.endswith(").") or name == "mit"
    assert re.fullmatch(r"https://[\w./+-]+", known.link)
    assert recognised(f"# {known.heading.upper()}\n\nVersion and terms") == name


def test_the_header_of_a_licence_is_recognised_with_its_own_spacing_and_longer_names_come_first() -> None:
    assert recognised("    Apache License\n    Version 2.0, January 2004\n") == "apache-2.0"
    assert recognised("CreativeML Open RAIL++-M License\ndated November 24, 2022") == "openrail++"
    assert recognised("Copyright (c) 2022\n\nCreativeML Open RAIL-M") is None
    assert recognised("My own terms. MIT License is not meant.") is None


def test_the_names_of_licence_files() -> None:
    assert all(map(is_licence_file, ("LICENSE", "LICENSE.md", "license.txt", "LICENCE", "LICENSE-MODEL", "NOTICE.txt")))
    assert not any(map(is_licence_file, ("README.md", "LICENSE.safetensors", "my-license.py", "license/x")))


@pytest.mark.parametrize(
    ("metadata", "identifier", "written"),
    [
        ({"license": "creativeml-openrail-m"}, "creativeml-openrail-m", {"license": "creativeml-openrail-m"}),
        ({"license": ["apache-2.0"]}, "apache-2.0", {"license": "apache-2.0"}),
        (
            {"license": "other", "license_name": "flux-1-dev-non-commercial-license", "license_link": "LICENSE.md"},
            "flux-1-dev-non-commercial-license",
            {"license": "other", "license_name": "flux-1-dev-non-commercial-license", "license_link": "LICENSE.md"},
        ),
        ({"license": "my terms\n v2"}, "my terms v2", {"license": "other", "license_name": "my terms v2"}),
        ({"license": "other"}, "other", {"license": "other"}),
    ],
)
def test_metadata_of_a_teacher_become_metadata_of_its_student(
    metadata: dict[str, object], identifier: str, written: dict[str, str]
) -> None:
    licence = Licence.of_metadata(metadata, "the teacher's README.md")
    assert licence is not None
    assert licence.identifier == identifier
    assert licence.metadata() == written
    assert yaml.safe_load(ModelCardData(**licence.metadata()).to_yaml()) == written


@pytest.mark.parametrize("metadata", [{}, {"license": None}, {"license": "unknown"}, {"license": ["a", "b"]}])
def test_a_licence_that_nobody_names_is_unknown_and_not_guessed(metadata: dict[str, object]) -> None:
    assert Licence.of_metadata(metadata, "its card") is None
    assert Licence().metadata() == {"license": "unknown"}
    assert Licence().known is None
