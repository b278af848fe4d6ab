"""Models on the Hugging Face Hub: the commit that a name stands for, and its files."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from condistill.errors import CondistillError
from condistill.utils.text import first_line

_COMMIT = re.compile(r"[0-9a-f]{40}")
_TIMEOUT_SEC = 10.0


class HubCommit(NamedTuple):
    """The commit of a repository."""

    commit: str
    is_reachable: bool
    """False: the hub cannot be reached, and only files that were downloaded before can be used."""

    def options(self) -> dict[str, Any]:
        """Return the arguments of diffusers and transformers that load this commit."""
        return {"revision": self.commit, "local_files_only": not self.is_reachable}


@lru_cache(maxsize=32)
def hub_commit(
    name: str,
    revision: str | None,
    *,
    setting: str = "teacher.pipeline",
    revision_setting: str = "teacher.revision",
    directory: str = "a pipeline directory",
) -> HubCommit:
    """Return the commit of a repository, from the hub, or from the local cache where the hub cannot be reached.

    Args:
        revision: a branch, a tag or a commit; None: the main branch.
        setting: of the recipe, which has the name; for messages.
        revision_setting: of the recipe, which has the revision; for messages.
        directory: what the setting may be instead; for messages.

    Raises:
        CondistillError: there is no such repository or revision, or the hub cannot be reached and the local cache has
            no snapshot.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    if revision and _COMMIT.fullmatch(revision):
        return HubCommit(revision, is_reachable=not constants.HF_HUB_OFFLINE)
    try:
        commit = HfApi().model_info(name, revision=revision, timeout=_TIMEOUT_SEC).sha
        return HubCommit(str(commit), is_reachable=True)
    except HFValidationError as error:
        raise CondistillError(f"{setting} {name!r} is neither a directory nor a valid hub name") from error
    except RevisionNotFoundError as error:
        raise CondistillError(f"{revision_setting} {revision!r} does not exist in {name} on the hub") from error
    except RepositoryNotFoundError as error:
        raise CondistillError(
            f"{setting} {name!r} is neither a directory here nor a public repository on the hub; correct the "
            "name, or run `hf auth login` if it is private"
        ) from error
    except Exception as error:  # the errors of several HTTP libraries mean the same: no answer
        if isinstance(error, HfHubHTTPError) and error.response is not None and error.response.status_code < 500:
            raise CondistillError(f"the hub refuses {name!r}: {first_line(error)}") from error
        commit = _cached_commit(name, revision)
        if commit is None:
            raise CondistillError(
                f"{setting} {name!r} is no directory here, and the hub cannot be reached ({first_line(error)}); check "
                f"the name or the network, or give {directory}"
            ) from error
        return HubCommit(commit, is_reachable=False)


def _cached_commit(name: str, revision: str | None) -> str | None:
    """Return the commit of the snapshot in the local cache, if there is one."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")
    reference = folder / "refs" / (revision or constants.DEFAULT_REVISION)
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else None
    return commit if commit and (folder / "snapshots" / commit).is_dir() else None


def downloaded_snapshot(name: str, revision: str | None = None) -> Path | None:
    """Return the folder of a repository's files that were downloaded before; None if there is none. Uses no network."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    commit = _cached_commit(name, revision)
    if commit is None:
        return None
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model") / "snapshots" / commit


def cached_file(name: str, filename: str, commit: HubCommit) -> Path | None:
    """Return a file of a repository, downloaded if the hub can be reached; None if it has no such file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(hf_hub_download(name, filename, **commit.options()))
    except (OSError, ValueError, HfHubHTTPError):  # it does not exist, or not in the local cache
        return None


@lru_cache(maxsize=32)
def repository_files(name: str, commit: HubCommit) -> tuple[str, ...]:
    """Return the paths of the files of a repository; where the hub does not answer, of those that were downloaded."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.file_download import repo_folder_name

    if commit.is_reachable:
        try:
            info = HfApi().model_info(name, revision=commit.commit, timeout=_TIMEOUT_SEC)
            return tuple(file.rfilename for file in getattr(info, "siblings", None) or ())
        except Exception:  # the errors of several HTTP libraries; what cannot be downloaded is named when it is loaded
            pass
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")
    snapshot = folder / "snapshots" / commit.commit
    files = snapshot.rglob("*") if snapshot.is_dir() else ()
    return tuple(file.relative_to(snapshot).as_posix() for file in files if file.is_file())
