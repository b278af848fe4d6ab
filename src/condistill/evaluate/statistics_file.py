"""Statistics files of FID: mean and covariance of Inception features, as other programs write them.

`.npz` of pytorch-fid and clean-fid, and `.pt` of torch-fidelity's cache, have `mu` `[2048]` and `sigma` `[2048, 2048]`.
Nothing in a file runs: arrays of Python objects are refused.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from condistill.errors import CondistillError
from condistill.evaluate.metrics.moments import Moments
from condistill.utils.text import first_line

ENDINGS = (".npz", ".pt")
_DIM = 2048
_FEATURES = "features"
_ROWS = 1024
_MOST_BYTES = 2 * 16 * _DIM * (_DIM + 1)
"""Of one array in a `.npz`; a covariance in float64 has a quarter of it."""


class Statistics(NamedTuple):
    """What a statistics file holds."""

    moments: Moments
    images: int
    """0 where the file does not have it; the count of the moments is 2 then, which changes no covariance."""


def read_statistics(file: Path, setting: str) -> Statistics:
    """Return the statistics in a file.

    Args:
        setting: of the recipe, for messages.

    Raises:
        CondistillError: the file cannot be read, or holds something else.
    """
    try:
        arrays = _of_npz(file) if file.suffix.lower() == ".npz" else _of_torch(file)
    except Exception as error:  # numpy and torch raise many kinds for a damaged file
        reason = "it is no pickle of arrays" if isinstance(error, pickle.UnpicklingError) else first_line(error)
        raise CondistillError(
            f"{setting}: {file} cannot be read as statistics ({reason}); files with anything but numbers are refused, "
            "since they can run code; write it again with pytorch-fid, clean-fid or torch-fidelity, or give the folder "
            "of the images"
        ) from error
    source = f"{setting}: {file}"
    features = arrays.get(_FEATURES)
    if features is None:
        return Statistics(_moments(arrays, source), 0)
    moments = Moments()
    for start in range(0, len(features), _ROWS):
        moments.update(features[start : start + _ROWS])
    return Statistics(_checked(moments, source), moments.count)


def _of_npz(file: Path) -> Mapping[str, Any]:
    with zipfile.ZipFile(file) as archive:
        if large := next((each.filename for each in archive.infolist() if each.file_size > _MOST_BYTES), None):
            raise ValueError(f"{large} in it is too large")
    with np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in ("mu", "sigma") if name in arrays}


def _of_torch(file: Path) -> Mapping[str, Any]:
    """Read a file of torch-fidelity's cache, which holds arrays of numpy, or the features themselves."""
    rebuild = np.zeros(0).__reduce__()[0]  # numpy's own function for arrays; its module has another name since 2.0
    names = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
    allowed: list[Any] = [np.ndarray, np.dtype, np.dtypes.Float32DType, np.dtypes.Float64DType]
    allowed += [(rebuild, name) for name in names]
    with torch.serialization.safe_globals(allowed):
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    if isinstance(loaded, torch.Tensor) and loaded.dim() == 2 and loaded.is_floating_point():
        if len(loaded) < 2 or loaded.shape[1] != _DIM:
            raise ValueError(f"it has features {list(loaded.shape)}, and those of Inception-v3 are [N, {_DIM}], N > 1")
        return {_FEATURES: loaded.float().numpy()}
    return {name: loaded[name] for name in ("mu", "sigma") if name in loaded} if isinstance(loaded, Mapping) else {}


def _moments(arrays: Mapping[str, Any], source: str) -> Moments:
    """Return moments of a mean and a covariance.

    Raises:
        CondistillError: they are no statistics of Inception features.
    """
    mean, covariance = (_numbers(arrays.get(name)) for name in ("mu", "sigma"))
    if mean is None or covariance is None:
        raise CondistillError(f"{source} has no arrays mu and sigma; write it with pytorch-fid or clean-fid")
    if mean.shape != (_DIM,) or covariance.shape != (_DIM, _DIM):
        shapes = f"mu {list(mean.shape)} and sigma {list(covariance.shape)}"
        raise CondistillError(
            f"{source} has {shapes}, and the features of Inception-v3 have mu [{_DIM}] and sigma [{_DIM}, {_DIM}]; "
            "write it with 2048 dimensions"
        )
    scale = max(float(np.abs(covariance).max()), 1e-30)
    if np.abs(covariance - covariance.T).max() > 1e-4 * scale or covariance.diagonal().min() < -1e-4 * scale:
        raise CondistillError(f"{source} has a sigma that is no covariance matrix; write it again")
    moments = Moments()
    moments.count, moments.mean, moments.scatter = 2, mean, covariance
    return _checked(moments, source)


def _checked(moments: Moments, source: str) -> Moments:
    """Return moments, if they are finite.

    Raises:
        CondistillError: they are not.
    """
    if not (np.isfinite(moments.mean).all() and np.isfinite(moments.scatter).all()):
        raise CondistillError(f"{source} has values that are not finite; write it again")
    return moments


def _numbers(array: Any) -> NDArray[np.float64] | None:
    """Return an array of real numbers in float64; None for anything else."""
    if isinstance(array, torch.Tensor):
        array = array.numpy()
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        return None
    return array.astype(np.float64)
