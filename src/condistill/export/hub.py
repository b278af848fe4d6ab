"""Upload a pipeline to the Hugging Face Hub in one commit. Files that are there already are never deleted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from condistill.errors import CondistillError
from condistill.export.shipment import CARD_NAME, Shipment
from condistill.utils.format import byte_size
from condistill.utils.text import first_line, shorten

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_TIMEOUT_SEC = 20.0


@dataclass(frozen=True)
class Repository:
    """The repository that a pipeline is sent to, as the hub knows it now."""

    name: str
    url: str
    exists: bool = False
    is_private: bool = True
    commit: str | None = None
    files: tuple[str, ...] = ()

    def visibility(self, *, public: bool) -> str:
        """Return who will see the files.

        Raises:
            CondistillError: the repository exists with another visibility than the user wants.
        """
        if self.exists and public and self.is_private:
            raise CondistillError(
                f"{self.name} exists and is private, and --public changes no repository that exists; leave it out, or "
                f"make the repository public first, in its settings at {self.url}/settings"
            )
        if self.exists and not public and not self.is_private:
            raise CondistillError(
                f"{self.name} exists and is public, so everyone could load the files; add --public if they may, or "
                "choose another name"
            )
        return "public: everyone can load it" if public else "private"


def check_name(name: str) -> str:
    """Return a name on the hub.

    Raises:
        CondistillError: it is not NAMESPACE/NAME.
    """
    if not _NAME.fullmatch(name) or "--" in name or ".." in name or name.endswith((".git", "-", ".")):
        raise CondistillError(
            f"--to {name} is no name on the hub; give NAMESPACE/NAME with letters, digits, '-', '_' and '.', such as "
            "my-name/my-student"
        )
    return name


class Hub:
    """The hub, with the token of the user."""

    def __init__(self) -> None:
        """Find the token: HF_TOKEN, or that of `hf auth login`.

        Raises:
            CondistillError: there is none, or the hub is switched off.
        """
        from huggingface_hub import HfApi, constants, get_token

        if constants.HF_HUB_OFFLINE:
            raise CondistillError("HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it for this command")
        self._token = get_token()
        if not self._token:
            raise CondistillError(
                "there is no token for the hub; set HF_TOKEN, or run `hf auth login`, with a token that may write"
            )
        self._api = HfApi(token=self._token, library_name="condistill", library_version=metadata.version("condistill"))

    def find(self, name: str) -> Repository:
        """Return what the hub knows of a repository; nothing is sent.

        Raises:
            CondistillError: the token is not valid, or its owner cannot write there; or the hub cannot be reached.
        """
        from huggingface_hub.errors import RepositoryNotFoundError

        namespace, url = name.partition("/")[0], f"{self._api.endpoint}/{name}"
        with self._errors(name):
            user: dict[str, Any] = self._api.whoami()
            owners = [str(user.get("name")), *(str(each.get("name")) for each in user.get("orgs") or ())]
            if namespace.lower() not in [owner.lower() for owner in owners]:
                raise CondistillError(
                    f"--to {name}: {namespace} is neither your account nor one of your organisations; yours: "
                    f"{', '.join(owners)}"
                )
            try:
                found = self._api.model_info(name, timeout=_TIMEOUT_SEC)
            except RepositoryNotFoundError:
                return Repository(name, url)
        files = tuple(file.rfilename for file in found.siblings or ())
        return Repository(name, url, True, bool(found.private), found.sha, files)

    def send(self, sent: Shipment, repository: Repository, *, public: bool) -> str:
        """Send all files in one commit, and return its address.

        What was uploaded before an interruption is not sent again. Until the commit, which is the last step, nothing in
        the repository changes.

        Raises:
            CondistillError: the hub refuses it, or cannot be reached.
        """
        from huggingface_hub import CommitOperationAdd

        operations = [CommitOperationAdd(path, str(file)) for path, file in sent.files.items()]
        operations.append(CommitOperationAdd(CARD_NAME, sent.card.encode()))
        message = f"Upload {sent.name}, made with condistill {metadata.version('condistill')}"
        with self._errors(repository.name):
            if not repository.exists:
                self._api.create_repo(repository.name, private=not public)
            done = self._api.create_commit(
                repository.name, operations, commit_message=message, parent_commit=repository.commit
            )
        return str(done.commit_url)

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        """Turn the errors of the hub and of the network into messages, which never show the token."""
        try:
            yield
        except CondistillError:
            raise
        except Exception as error:  # the errors of several HTTP libraries
            raise CondistillError(self._message(error, name)) from None

    def _message(self, error: Exception, name: str) -> str:
        status, reason = _status(error), shorten(first_line(error).replace(str(self._token), "***"), 300)
        known = {
            401: "the hub does not accept the token; set HF_TOKEN, or run `hf auth login`, with a valid one",
            403: f"the token may not write to {name}; make one that may at https://huggingface.co/settings/tokens",
            409: f"{name} was made by another command meanwhile; run the same command again to see what is there now",
            412: f"{name} was changed meanwhile; run the same command again to see what is there now",
        }
        if status in known:
            return known[status]
        if status is not None and 400 <= status < 500:
            return f"the hub refuses the upload to {name}: {reason}"
        if isinstance(error, ValueError) and "metadata" in reason:
            return f"the hub refuses the metadata of {CARD_NAME}: {shorten(' '.join(str(error).split()), 300)}"
        return (
            f"the upload to {name} was interrupted ({reason}); run the same command again: what was uploaded is not "
            "sent again"
        )


def _status(error: BaseException | None) -> int | None:
    """Return the HTTP status that an error, or the one that it comes from, has; None where there was no answer."""
    while error is not None:
        response = getattr(error, "response", None)
        if response is not None:
            return int(response.status_code)
        error = error.__cause__ or error.__context__
    return None


def described(sent: Shipment, repository: Repository, *, public: bool) -> list[str]:
    """Return lines that show what will be sent, and what is there already."""
    sizes = sent.sizes
    state = "exists" if repository.exists else "new"
    lines = [
        f"to: {repository.url} ({state}, {repository.visibility(public=public)})",
        f"{len(sizes)} files, {byte_size(sum(sizes.values()))}:",
        *(
            f"  {path}: {byte_size(size)}{', replaces the one that is there' if path in repository.files else ''}"
            for path, size in sizes.items()
        ),
    ]
    if others := [file for file in repository.files if file not in sizes]:
        lines.append(f"stay as they are: {shorten(', '.join(others), 300)}")
    if sent.left_out:
        lines.append(
            f"not sent, since loading the pipeline does not read them: {shorten(', '.join(sent.left_out), 300)}"
        )
    lines.append(f"the head of {CARD_NAME}:")
    lines += [f"  {key}: {_value(value)}" for key, value in sent.metadata.items()]
    return lines


def _value(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
