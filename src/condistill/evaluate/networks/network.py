"""The contract of a network whose features metrics read, and the registry of networks.

Adding a network is one file with a subclass of `Network`, one line that registers it, and one setting in
`evaluate.networks`. A network is first located, which loads nothing, so that a missing file is reported before any
image is generated.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from condistill.config.evaluate import EvaluateSettings
from condistill.errors import CondistillError
from condistill.evaluate.record import NetworkRecord
from condistill.utils.hashing import hash_file
from condistill.utils.registry import Registry

HashOf = Callable[[Path], str]
"""Returns the SHA-256 of the content of a file; `HashMemory.of` reads a file once only."""
Features = dict[str, NDArray[np.float32]]
"""By name of the feature, each with one row per image."""


@dataclass(frozen=True)
class LocatedNetwork:
    """A network that was found, with its files; nothing is loaded."""

    name: str
    """Of the network in the registry."""
    source: str
    """As the recipe gives it."""
    resize: str
    """How an image becomes its input, such as `bicubic to 224 px`."""
    weights: tuple[Path, ...]
    configs: tuple[Path, ...] = ()
    """Small files that change its features as well: of the model, the preprocessing and the tokenizer."""
    download_bytes: int = 0
    """Size of files that are not on this disk yet; only where the caller wants no download."""

    def sha256(self, hash_of: HashOf = hash_file) -> str:
        """Return the SHA-256 of the weights; of several files, that of their hashes in order."""
        return _joint_hash(self.weights, hash_of)

    def inputs(self, hash_of: HashOf = hash_file) -> dict[str, Any]:
        """Return everything that its features depend on besides images and prompts, by name."""
        return {"weights": self.sha256(hash_of), "configs": _joint_hash(self.configs, hash_of), "resize": self.resize}

    def record(self, hash_of: HashOf = hash_file, settings: EvaluateSettings | None = None) -> NetworkRecord:
        """Return what `metrics.json` says about it.

        Args:
            settings: with the size that images get before any network reads them.
        """
        before = ""
        if settings is not None and settings.resize is not None:
            before = f"{settings.resize_filter} to {settings.resize} px, then "
        return NetworkRecord(source=self.source, sha256=self.sha256(hash_of), resize=before + self.resize)

    def load(self, device: torch.device) -> Network:
        """Load the network; see `Network.load`."""
        return NETWORKS[self.name].load(self, device)


def _joint_hash(files: Sequence[Path], hash_of: HashOf) -> str:
    """Return the hash of one file, or the hash of the names and hashes of several."""
    if len(files) == 1:
        return hash_of(files[0])
    lines = "".join(f"{hash_of(file)}  {file.name}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest() if files else ""


class Network(ABC):
    """A network on a device, which turns images, and prompts if it reads them, into features."""

    name: ClassVar[str]
    """The setting in `evaluate.networks`."""
    features: ClassVar[tuple[str, ...]]
    """Names of the features that it extracts; see `evaluate/metrics/metric.py`."""
    usual: ClassVar[str]
    """The usual value of the setting."""
    serves: ClassVar[str]
    """The metrics that read its features, for people."""
    published: ClassVar[str]
    """The file and the place where its usual weights are published, for messages."""
    weights_bytes: ClassVar[int]
    """About, of the usual weights."""

    def __init__(self, located: LocatedNetwork) -> None:
        self.located = located

    @classmethod
    @abstractmethod
    def locate(cls, source: str, *, download: bool = True) -> LocatedNetwork:
        """Return the files of a network: on this disk, or from the hub's cache, into which they are downloaded.

        Args:
            source: a path or a hub name.
            download: False: files that the hub has and this disk has not are counted in `download_bytes`.

        Raises:
            CondistillError: names the file that is missing, the source and the size.
        """

    @classmethod
    @abstractmethod
    def load(cls, located: LocatedNetwork, device: torch.device) -> Network:
        """Load the network to a device: in half precision on a GPU where its features allow it, else in float32.

        Raises:
            CondistillError: the files cannot be read, or are of another model.
        """

    @abstractmethod
    def extract(self, images: NDArray[np.uint8], prompts: Sequence[str] | None) -> Features:
        """Return the features of images.

        Args:
            images: `[N, H, W, 3]`, N > 0.
            prompts: N texts; None: features that need a prompt are left out, as for reference images.
        """

    def record(self, hash_of: HashOf = hash_file, settings: EvaluateSettings | None = None) -> NetworkRecord:
        """Return what `metrics.json` says about the network; see `LocatedNetwork.record`."""
        return self.located.record(hash_of, settings)

    def finite(self, features: Features) -> Features:
        """Return features, if all are finite.

        Raises:
            CondistillError: some are not, as from damaged weights.
        """
        for name, rows in features.items():
            if not np.isfinite(rows).all():
                raise CondistillError(
                    f"evaluate.networks.{self.name}: {name} of {self.located.source} is not finite for some images, so "
                    "its weights are damaged, or it cannot compute in half precision; download it again, or choose "
                    "another one"
                )
        return features


AnyNetworkType = TypeVar("AnyNetworkType", bound=type[Network])

NETWORKS: Registry[type[Network]] = Registry("network")
"""Every network by name."""


def register_network(network: AnyNetworkType) -> AnyNetworkType:
    """Add a network to the registry and return it, so that this can decorate a class.

    Raises:
        CondistillError: the network lacks an attribute of the contract, or its name is taken.
    """
    required = ("name", "features", "usual", "serves", "published", "weights_bytes")
    if missing := [attribute for attribute in required if not hasattr(network, attribute)]:
        raise CondistillError(f"the network {network.__name__} has no {', '.join(missing)}; see Network")
    NETWORKS.register(network.name, network)
    return network


def features_of(names: Sequence[str]) -> dict[str, str]:
    """Return, for every feature of some networks, the name of the network that extracts it."""
    return {feature: name for name in names for feature in NETWORKS[name].features}


def precision(device: torch.device) -> torch.dtype:
    """Return the dtype in which networks of transformers compute: half precision on a GPU, else float32."""
    return torch.float16 if device.type == "cuda" else torch.float32
