"""Reference images are a folder, read in the order of names and resized, or a statistics file; faults are early."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from condistill.config.evaluate import EvaluateSettings
from condistill.errors import CondistillError
from condistill.evaluate import statistics_file
from condistill.evaluate.metrics.metric import DINOV2, INCEPTION
from condistill.evaluate.networks.resize import resize
from condistill.evaluate.reference_images import ReferenceFolder, ReferenceImages, ReferenceStatistics


def _image(number: int, height: int = 12, width: int = 12) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)


def _folder(folder: Path, *images: np.ndarray, ending: str = "png") -> Path:
    folder.mkdir(exist_ok=True)
    for number, image in enumerate(images):
        options: dict[str, Any] = {"webp": {"lossless": True}}.get(ending, {})
        Image.fromarray(image).save(folder / f"{number:03d}.{ending}", **options)
    return folder


def _open(path: Path, **settings: Any) -> ReferenceImages:
    return ReferenceImages.open(str(path), EvaluateSettings(**settings))


def _opened(path: Path, **settings: Any) -> ReferenceFolder:
    found = _open(path, **settings)
    assert isinstance(found, ReferenceFolder)
    return found


def test_images_come_in_batches_in_the_order_of_their_names(tmp_path: Path) -> None:
    images = [_image(number) for number in range(5)]
    _folder(tmp_path, *images)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "folder.png").mkdir()
    found = _opened(tmp_path)
    batches = list(found.batches(2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    np.testing.assert_array_equal(np.concatenate(batches), np.stack(images))
    np.testing.assert_array_equal(found.take(range(3, 5)), np.stack(images[3:]))
    assert len(found) == 5
    assert found.size == (12, 12)


@pytest.mark.parametrize("ending", ["png", "webp", "jpg", "jpeg", "PNG", "JPG"])
def test_every_format_is_read(ending: str, tmp_path: Path) -> None:
    flat = np.full((12, 12, 3), (200, 100, 50), np.uint8)
    _folder(tmp_path, flat, flat, ending=ending)
    assert np.abs(_opened(tmp_path).take(range(2)).astype(int) - flat).max() <= 2


def test_images_are_cropped_and_resized_as_generated_ones(tmp_path: Path) -> None:
    images = [_image(0, 12, 20), _image(1, 31, 16)]
    found = _opened(_folder(tmp_path, *images), resize=8, resize_filter="lanczos").take(range(2))
    expected = np.concatenate([resize(image[None], 8, "lanczos") for image in images])
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("mode", "pixel", "expected"),
    [
        ("L", 100, (100, 100, 100)),
        ("RGBA", (0, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("LA", (0, 0), (255, 255, 255)),
        ("I;16", 65_535, (255, 255, 255)),
        ("I;16", 257 * 60, (60, 60, 60)),
        ("1", 1, (255, 255, 255)),
    ],
)
def test_images_of_every_mode_become_rgb(mode: str, pixel: Any, expected: tuple[int, ...], tmp_path: Path) -> None:
    for number in range(2):
        Image.new(mode, (4, 4), pixel).save(tmp_path / f"{number}.png")
    assert (_opened(tmp_path).take(range(2)) == np.array(expected, np.uint8)).all()


def test_the_inputs_change_with_names_contents_and_resizing_only(tmp_path: Path) -> None:
    _folder(tmp_path, _image(0), _image(1))
    before = _opened(tmp_path).inputs()
    (tmp_path / "notes.txt").write_text("ignored")
    assert _opened(tmp_path).inputs() == before
    assert _opened(tmp_path, resize=6).inputs() != before
    assert _opened(tmp_path, resize=6).inputs() != _opened(tmp_path, resize=6, resize_filter="box").inputs()
    (tmp_path / "000.png").rename(tmp_path / "009.png")
    renamed = _opened(tmp_path).inputs()
    Image.fromarray(_image(7)).save(tmp_path / "009.png")
    assert len({str(each) for each in (before, renamed, _opened(tmp_path).inputs())}) == 3
    record = _opened(tmp_path).record()
    assert (record.source, record.images, len(record.sha256)) == (str(tmp_path), 2, 64)


def test_too_few_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CondistillError, match=rf"^evaluate\.reference: {tmp_path} has 1 images .* 2 are the fewest"):
        _open(_folder(tmp_path, _image(0)))


def test_images_of_different_sizes_need_a_size(tmp_path: Path) -> None:
    _folder(tmp_path, _image(0), _image(1, 12, 14))
    reason = r"different sizes \(000\.png 12x12, 001\.png 14x12\); set evaluate\.resize"
    with pytest.raises(CondistillError, match=reason):
        _open(tmp_path)
    assert _opened(tmp_path, resize=6).take(range(2)).shape == (2, 6, 6, 3)


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_image_is_named_before_anything_is_read(content: bytes, tmp_path: Path) -> None:
    _folder(tmp_path, _image(0), _image(1))
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(CondistillError, match=r"bad\.png (is no PNG, JPEG or WebP image|cannot be read as an image)"):
        _open(tmp_path)


def test_an_image_that_is_cut_off_is_named(tmp_path: Path) -> None:
    _folder(tmp_path, _image(0), _image(1, 40, 40), _image(2))
    file = tmp_path / "001.png"
    file.write_bytes(file.read_bytes()[:-2000])
    found = _opened(tmp_path, resize=8)
    with pytest.raises(CondistillError, match=r"001\.png cannot be read as an image"):
        found.take(range(3))


def test_an_image_that_is_too_large_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _folder(tmp_path, _image(0, 40, 40), _image(1, 40, 40))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(CondistillError, match=r"000\.png is larger than"):
        _open(tmp_path)


def test_an_image_that_changes_while_it_is_used_is_named(tmp_path: Path) -> None:
    found = _opened(_folder(tmp_path, _image(0), _image(1)))
    Image.fromarray(_image(1, 6, 6)).save(tmp_path / "001.png")
    with pytest.raises(CondistillError, match=r"001\.png has changed while it was used"):
        found.take(range(2))


@pytest.mark.parametrize("name", ["none", "none.npz"])
def test_a_missing_reference_is_reported_with_what_can_be_given(name: str, tmp_path: Path) -> None:
    with pytest.raises(CondistillError, match=rf"{name} does not exist; give a folder of images, a statistics file"):
        _open(tmp_path / name)


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"")
    with pytest.raises(CondistillError, match=r"x\.png is neither a folder nor a statistics file \(\.npz, \.pt\)"):
        _open(tmp_path / "x.png")


def test_a_statistics_file_has_moments_of_inception_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics_file, "_DIM", 3)
    np.savez(tmp_path / "x.npz", mu=np.ones(3), sigma=np.eye(3))
    found = _open(tmp_path / "x.npz")
    assert isinstance(found, ReferenceStatistics)
    moments = found.moments(INCEPTION)
    assert moments is not None
    np.testing.assert_array_equal(moments.covariance, np.eye(3))
    assert found.moments(DINOV2) is None
    record = found.record()
    assert (record.images, record.sha256) == (0, found.inputs()["statistics"])


def test_a_folder_has_no_moments(tmp_path: Path) -> None:
    assert _opened(_folder(tmp_path, _image(0), _image(1))).moments(INCEPTION) is None
