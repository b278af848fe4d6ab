from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from condistill.cli.texts import error_message
from condistill.errors import CondistillError, nearest, system_message
from condistill.utils.atomic import write_text


@pytest.mark.parametrize("name", ["EFBIG", "ENOSPC", "EDQUOT", "EROFS", "ENAMETOOLONG", "EACCES", "EPERM", "ELOOP"])
@pytest.mark.parametrize("file", ["runs/a/cache/shard.arrow", None])
def test_an_error_of_the_system_is_not_a_bug_and_has_a_remedy(name: str, file: str | None) -> None:
    code = getattr(errno, name)
    message = error_message(OSError(code, os.strerror(code), file))
    assert "a bug" not in message
    assert "unexpected" not in message
    assert ";" in message
    assert (file or "") in message


@pytest.mark.parametrize("code", sorted(errno.errorcode))
def test_no_error_of_the_system_is_called_a_bug(code: int) -> None:
    for message in (error_message(OSError(code, os.strerror(code))), system_message(OSError(code, "text", "a.txt"))):
        assert "a bug" not in message
        assert "; " in message


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("Error while serializing: I/O error: File too large (os error 27)"), "`ulimit -f`"),
        (OSError("[Errno 30] cannot write bytes"), "read-only"),
        (OSError("We could not reach the server\nsecond line"), "We could not reach the server"),
        (MemoryError(), "out of memory"),
        (RuntimeError("CUDA error: out of memory\nmore"), "out of memory"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
            "out of memory",
        ),
        (
            RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file data/3: file write failed"),
            "free space",
        ),
        (RuntimeError("Could not determine home directory."), "write the whole path"),
        (ModuleNotFoundError("No module named 'pyarrow.lib'", name="pyarrow.lib"), "pip install pyarrow"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "may be damaged"),
    ],
)
def test_errors_of_the_machine_and_of_its_files_are_not_called_a_bug(error: Exception, words: str) -> None:
    message = error_message(error)
    assert words in message
    assert "a bug" not in message
    assert "\n" not in message


def test_a_directory_in_the_place_of_a_file_is_named_and_to_be_moved(tmp_path: Path) -> None:
    (tmp_path / "student.json").mkdir()
    with pytest.raises(OSError, match=r"student\.json") as caught:
        write_text(tmp_path / "student.json", "{}")
    assert error_message(caught.value).startswith(
        f"{tmp_path / 'student.json'}: is a directory where a file belongs; move"
    )


def test_other_exceptions_are_bugs() -> None:
    assert error_message(KeyError("x")).endswith("(a bug in condistill: run with --debug for the traceback)")
    assert "bug" in error_message(ModuleNotFoundError("No module named 'condistill.gone'", name="condistill.gone"))
    assert len(error_message(ValueError("x" * 10**6))) < 1000


def test_the_message_of_an_error_for_users_is_kept() -> None:
    assert error_message(CondistillError("as it is")) == "as it is"


def test_a_name_of_any_length_is_compared_in_no_time() -> None:
    assert nearest("x" * 10**6, ["seed", "cache"]) == "; valid names: seed, cache"
