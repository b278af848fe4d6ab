from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from condistill.utils import hashing
from condistill.utils.hashing import HashMemory, hash_file, key_of


def test_the_key_does_not_depend_on_the_order_of_settings() -> None:
    assert key_of({"a": 1, "b": (2, 3)}, Path("x")) == key_of({"b": [2, 3], "a": 1}, Path("x"))
    assert key_of({"a": 1}) != key_of({"a": 2})
    assert key_of("a", "b") != key_of("ab")


def test_hash_file_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 3_000_000)
    assert hash_file(tmp_path / "a") == hashlib.sha256(b"x" * 3_000_000).hexdigest()


@pytest.fixture
def old_file(tmp_path: Path) -> Path:
    """A file that was written long ago."""
    file = tmp_path / "weights"
    file.write_bytes(b"x" * 1000)
    os.utime(file, (1, 1))
    return file


def test_an_unchanged_file_is_read_once_over_several_commands(
    tmp_path: Path, old_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = HashMemory(tmp_path / "hashes.json")
    digest = memory.of(old_file)
    memory.save()
    monkeypatch.setattr(hashing, "hash_file", None)
    assert memory.of(old_file) == HashMemory(tmp_path / "hashes.json").of(old_file) == digest


def test_a_checksum_that_was_computed_while_writing_is_taken(tmp_path: Path, old_file: Path) -> None:
    memory = HashMemory(tmp_path / "hashes.json")
    memory.note(old_file, "known")
    assert memory.of(old_file) == "known"
    old_file.write_bytes(b"y" * 1000)
    assert memory.of(old_file) == hash_file(old_file)
    memory.note(old_file, "too new, it may change again")
    assert memory.of(old_file) == hash_file(old_file)


def test_a_file_is_not_read_again_because_of_links_to_it(
    tmp_path: Path, old_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, folder = HashMemory(tmp_path / "hashes.json"), tmp_path / "links"
    digest = memory.of(old_file)
    time.sleep(0.02)  # longer than a tick of the clock of files
    with memory.linking([old_file], folder):
        (folder / "unet").mkdir(parents=True)
        os.link(old_file, folder / "unet" / "weights")
        (folder / "other").write_bytes(b"y")
    monkeypatch.setattr(hashing, "hash_file", lambda *_: "read")
    assert memory.of(old_file) == memory.of(folder / "unet" / "weights") == digest
    assert memory.of(folder / "other") == "read"


def test_a_file_that_changes_while_links_to_it_are_made_is_read_again(tmp_path: Path, old_file: Path) -> None:
    memory = HashMemory(tmp_path / "hashes.json")
    before = memory.of(old_file)
    with memory.linking([old_file], tmp_path):
        old_file.write_bytes(b"y" * 1000)
        os.utime(old_file, (2, 2))
    assert memory.of(old_file) == hash_file(old_file) != before


def test_a_changed_file_is_read_again(tmp_path: Path, old_file: Path) -> None:
    memory = HashMemory(tmp_path / "hashes.json")
    before = memory.of(old_file)
    old_file.write_bytes(b"y" * 1000)
    assert memory.of(old_file) == hash_file(old_file) != before


@pytest.mark.parametrize("is_new", [False, True])
def test_a_file_that_changed_and_kept_its_size_and_time_is_read_again(
    tmp_path: Path, old_file: Path, *, is_new: bool
) -> None:
    memory = HashMemory(tmp_path / "hashes.json")
    before = memory.of(old_file)
    other = tmp_path / "other" if is_new else old_file
    other.write_bytes(b"y" * 1000)
    os.utime(other, (1, 1))
    other.replace(old_file)
    assert memory.of(old_file) == hash_file(old_file) != before


def test_a_file_that_was_just_written_is_not_remembered(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"x")
    memory = HashMemory(tmp_path / "hashes.json")
    memory.of(file)
    stat = file.stat()
    file.write_bytes(b"y")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert memory.of(file) == hash_file(file)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b'{"a": 1}', b'{"format": 1, "check": "0", "files": {}}']
)
def test_damaged_hashes_are_named_and_computed_again(tmp_path: Path, old_file: Path, content: bytes) -> None:
    (tmp_path / "hashes.json").write_bytes(content)
    lines: list[str] = []
    assert HashMemory(tmp_path / "hashes.json", say=lines.append).of(old_file) == hash_file(old_file)
    assert lines == [f"{tmp_path / 'hashes.json'} is damaged; the checksums in it are computed again"]
