"""Tests of exported images: names, prompts, resuming, and folders that are not touched."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from condistill.errors import CondistillError
from condistill.evaluate.export_images import Image, check_folder, export_images, image_number

IMAGES = [
    Image(index, seed, number, "seen" if number < 2 else "unseen", f'prompt "{index}"\n')
    for index, (seed, number) in enumerate([(3, 0), (3, 1), (3, 2), (8, 0), (8, 1)])
]


class Decoder:
    """Images whose first pixel is their index."""

    def __init__(self, *, fail_at: int | None = None) -> None:
        self.batches: list[list[int]] = []
        self.fail_at = fail_at

    def __call__(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        self.batches.append(list(indices))
        if len(self.batches) == self.fail_at:
            raise KeyboardInterrupt
        return np.stack([np.full((4, 4, 3), index, np.uint8) for index in indices])


def test_images_have_names_of_coco_and_a_line_each_with_their_prompts(tmp_path: Path) -> None:
    folder = export_images(tmp_path / "out", "student", IMAGES, Decoder(), key="k", batch_size=2)
    assert folder == tmp_path / "out" / "student"
    names = [f"{index:012d}.png" for index in range(5)]
    assert sorted(path.name for path in folder.glob("*.png")) == names
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["file_name"] for line in lines] == names
    assert lines[3] == {
        "file_name": "000000000003.png",
        "prompt": 'prompt "3"\n',
        "seed": 8,
        "split": "seen",
        "number": 0,
    }
    assert [int(np.asarray(PIL.Image.open(folder / name))[0, 0, 0]) for name in names] == [0, 1, 2, 3, 4]


def test_an_interrupted_export_continues_after_its_last_image_and_holds_one_batch(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        export_images(tmp_path, "student", IMAGES, Decoder(fail_at=2), key="k", batch_size=2)
    assert not (tmp_path / "student" / "metadata.jsonl").exists()  # a folder without it is not complete
    (tmp_path / "student" / ".000000000003.png.partial").write_bytes(b"half")
    decoder, found = Decoder(), []
    export_images(tmp_path, "student", IMAGES, decoder, key="k", batch_size=2, on_found=found.append)
    assert (decoder.batches, found) == ([[2, 3], [4]], [2])
    assert len([*(tmp_path / "student").iterdir()]) == 5 + 2


def test_prompts_of_an_export_follow_the_splits_of_now(tmp_path: Path) -> None:
    export_images(tmp_path, "student", IMAGES, Decoder(), key="k", batch_size=2)
    moved, decoder = [replace(image, split="seen") for image in IMAGES], Decoder()
    folder = export_images(tmp_path, "student", moved, decoder, key="k", batch_size=2)
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["split"] for line in lines] == ["seen"] * 5
    assert decoder.batches == []


def test_a_folder_that_cannot_be_written_to_is_refused_before_images_are_generated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    denied = str(tmp_path)
    monkeypatch.setattr("os.access", lambda path, _mode: str(path) != denied)
    with pytest.raises(CondistillError, match=f"--images: {denied} cannot be written to; change its permissions"):
        check_folder(tmp_path / "new" / "images", "student", None)
    (tmp_path / "there").mkdir()
    check_folder(tmp_path / "there", "student", None)


def test_files_of_others_and_images_of_another_evaluation_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "000000000000.png").write_bytes(b"a photo")
    with pytest.raises(CondistillError, match="mine has files that condistill did not write; choose another folder"):
        export_images(tmp_path, "mine", IMAGES, Decoder(), key="k", batch_size=2)
    assert (tmp_path / "mine" / "000000000000.png").read_bytes() == b"a photo"
    export_images(tmp_path, "student", IMAGES, Decoder(), key="k", batch_size=2)
    with pytest.raises(CondistillError, match="student has images of another evaluation; delete it, or choose"):
        check_folder(tmp_path, "student", "other")
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(CondistillError, match="file is a file; choose a folder"):
        check_folder(tmp_path / "file", "student", "k")
    with pytest.raises(CondistillError, match="file is a file; choose another folder"):
        check_folder(tmp_path, "file", "k")


@pytest.mark.parametrize(
    ("name", "number"),
    [("000000000012.png", 12), ("student/000000000012.png", 12), ("12.png", None), (12, None), ("x.png", None)],
)
def test_the_index_of_an_image_is_read_from_its_name(name: object, number: int | None) -> None:
    assert image_number(name) == number
