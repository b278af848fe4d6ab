"""Find the directory that a teacher was loaded from: its own, or the snapshot of its repository on the hub."""

from __future__ import annotations

from pathlib import Path

from condistill.config.sections import TeacherSettings
from condistill.errors import CondistillError
from condistill.teachers.files import INDEX_NAME, PipelineFiles
from condistill.teachers.hub import hub_commit
from condistill.teachers.locate import read_index, variant_of
from condistill.utils.text import first_line


def teacher_files(settings: TeacherSettings) -> PipelineFiles:
    """Return the files of a teacher that has been loaded; nothing is downloaded.

    Raises:
        CondistillError: the teacher does not exist, or is a hub teacher that is no longer in the cache.
    """
    location, index = read_index(settings)
    variant = variant_of(settings, location, index)
    if isinstance(location, Path):
        return PipelineFiles(location, index, variant)
    return PipelineFiles(_snapshot(location, hub_commit(location, settings.revision).commit), index, variant)


def _snapshot(name: str, commit: str) -> Path:
    """Return the folder of a hub repository in the local cache."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, INDEX_NAME, revision=commit, local_files_only=True)).parent
    except (OSError, ValueError) as error:
        raise CondistillError(
            f"the files of the teacher {name} are not in the local cache of the hub ({first_line(error)}); "
            "load it again, or give its directory as teacher.pipeline"
        ) from error
