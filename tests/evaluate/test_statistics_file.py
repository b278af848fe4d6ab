"""Statistics files of other programs are read as numbers only, and what is no statistics of Inception is refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from condistill.errors import CondistillError
from condistill.evaluate import statistics_file
from condistill.evaluate.statistics_file import read_statistics

DIM = 6
MEAN = np.linspace(-1, 1, DIM)
COVARIANCE = np.cov(np.random.default_rng(0).standard_normal((20, DIM)), rowvar=False)


@pytest.fixture(autouse=True)
def few_dimensions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features have 6 dimensions instead of 2,048."""
    monkeypatch.setattr(statistics_file, "_DIM", DIM)


def _write(file: Path, content: dict[str, Any]) -> Path:
    if file.suffix == ".npz":
        np.savez(file, **content)
    else:
        torch.save(content, file)
    return file


@pytest.mark.parametrize("name", ["pytorch_fid.npz", "torch_fidelity.pt"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_mean_and_covariance_are_read_from_every_format(name: str, dtype: type, tmp_path: Path) -> None:
    content = {"mu": MEAN.astype(dtype), "sigma": COVARIANCE.astype(dtype)}
    moments, images = read_statistics(_write(tmp_path / name, content), "x")
    np.testing.assert_allclose(moments.mean, MEAN, rtol=1e-6)
    np.testing.assert_allclose(moments.covariance, COVARIANCE, rtol=1e-5)
    assert moments.mean.dtype == moments.covariance.dtype == np.float64
    assert images == 0


def test_features_in_the_cache_of_torch_fidelity_give_their_moments_and_count(tmp_path: Path) -> None:
    features = np.random.default_rng(1).standard_normal((2500, DIM)).astype(np.float32)
    torch.save(torch.from_numpy(features), tmp_path / "features.pt")
    moments, images = read_statistics(tmp_path / "features.pt", "x")
    np.testing.assert_allclose(moments.covariance, np.cov(features.astype(np.float64), rowvar=False), rtol=1e-6)
    assert images == 2500


def test_files_written_with_an_older_numpy_are_read(tmp_path: Path) -> None:
    file = _write(tmp_path / "x.pt", {"mu": MEAN, "sigma": COVARIANCE})
    data = file.read_bytes()
    name = b"numpy._core.multiarray"
    assert (name in data) or (b"numpy.core.multiarray" in data)
    rebuild = np.zeros(0).__reduce__()[0]

    class Old(pickle._Pickler):
        def save_global(self, obj: Any, name: str | None = None) -> None:
            if obj is rebuild:
                self.write(b"cnumpy.core.multiarray\n_reconstruct\n")
            else:
                super().save_global(obj, name)

    old = type("old", (), {"Pickler": Old, "__name__": "pickle"})
    torch.save({"mu": MEAN, "sigma": COVARIANCE}, tmp_path / "old.pt", pickle_module=old, pickle_protocol=2)
    np.testing.assert_allclose(read_statistics(tmp_path / "old.pt", "x").moments.mean, MEAN)


@pytest.mark.parametrize("name", ["x.npz", "x.pt"])
def test_a_file_with_objects_is_refused_and_no_code_runs(name: str, tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    content = {"mu": np.array([Code()], object), "sigma": COVARIANCE}
    with pytest.raises(CondistillError, match=r"^x: .* cannot be read as statistics .*since they can run code"):
        read_statistics(_write(tmp_path / name, content), "x")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["x.npz", "x.pt"])
@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 no zip"])
def test_a_damaged_file_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CondistillError, match=r"cannot be read as statistics"):
        read_statistics(tmp_path / name, "x")


@pytest.mark.parametrize("name", ["x.npz", "x.pt"])
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mu": None}, r"has no arrays mu and sigma"),
        ({"sigma": None}, r"has no arrays mu and sigma"),
        ({"mu": np.arange(DIM)}, r"has no arrays mu and sigma|is no pickle of arrays"),
        ({"mu": MEAN[:4]}, r"has mu \[4\] and sigma \[6, 6\], and the features of Inception-v3 have mu \[6\]"),
        ({"sigma": COVARIANCE[0]}, r"sigma \[6\]"),
        ({"mu": np.full(DIM, np.nan)}, r"has values that are not finite"),
        ({"sigma": np.full((DIM, DIM), np.inf)}, r"not finite"),
        ({"sigma": np.triu(COVARIANCE)}, r"is no covariance matrix"),
        ({"sigma": -COVARIANCE}, r"is no covariance matrix"),
    ],
)
def test_what_is_no_statistics_of_inception_is_refused(
    name: str, changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    content = {"mu": MEAN, "sigma": COVARIANCE, **changes}
    file = _write(tmp_path / name, {key: value for key, value in content.items() if value is not None})
    with np.errstate(invalid="ignore"), pytest.raises(CondistillError, match=reason):
        read_statistics(file, "x")


@pytest.mark.parametrize("shape", [(1, DIM), (5, DIM + 1)])
def test_features_of_another_network_are_refused(shape: tuple[int, int], tmp_path: Path) -> None:
    torch.save(torch.zeros(shape), tmp_path / "x.pt")
    with pytest.raises(CondistillError, match=r"it has features \[\d, \d\], and those of Inception-v3 are \[N, 6\]"):
        read_statistics(tmp_path / "x.pt", "x")


def test_an_array_that_would_fill_the_memory_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics_file, "_MOST_BYTES", 1000)
    np.savez_compressed(tmp_path / "x.npz", mu=MEAN, sigma=np.zeros((1000, 1000)))
    with pytest.raises(CondistillError, match=r"sigma\.npy in it is too large"):
        read_statistics(tmp_path / "x.npz", "x")
