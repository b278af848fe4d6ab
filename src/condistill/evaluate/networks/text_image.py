"""Networks with a text and an image tower, CLIP and SigLIP: embeddings of norm 1, and their cosine."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from condistill.errors import CondistillError
from condistill.evaluate.networks.files import Published, find_place
from condistill.evaluate.networks.network import LocatedNetwork, Network, precision
from condistill.evaluate.networks.preprocess import HALF, Preprocessing, read_json, read_preprocessing
from condistill.evaluate.networks.pretrained import (
    CONFIG_NAME,
    TOKENIZER_FILES,
    fetch_configs,
    fetch_weights,
    load_model,
    model_type,
)
from condistill.teachers.clip_tokenizer import TOKENS, VOCABULARY_NAME, write_vocabulary
from condistill.teachers.single_file import SHIPPED
from condistill.utils.quiet import quiet_libraries
from condistill.utils.text import first_line

CLASSES = {"clip": "CLIPModel", "siglip": "SiglipModel"}
"""The class of transformers by kind."""
_SENTENCEPIECE = {"sentencepiece": "sentencepiece", "google.protobuf": "protobuf"}
"""The modules that SigLIP's tokenizer imports, and their packages."""


class Towers:
    """A model with two towers on a device, its tokenizer and its preprocessing."""

    def __init__(self, model: Any, tokenizer: Any, preprocessing: Preprocessing, device: torch.device) -> None:
        self._model, self._tokenizer, self._preprocessing = model.to(device), tokenizer, preprocessing
        self._device = device
        self._is_siglip = model.config.model_type == "siglip"

    @property
    def logit_scale(self) -> float:
        """The factor by which cosines become logits."""
        return float(self._model.logit_scale.float().exp())

    @torch.inference_mode()
    def embed_images(self, images: NDArray[np.uint8]) -> Tensor:
        """Return the embeddings of images uint8 `[N, H, W, 3]`, of norm 1, float32 `[N, D]` on the CPU."""
        pixels = self._preprocessing(images).to(self._device, self._model.dtype)
        return _normalised(self._model.get_image_features(pixel_values=pixels))

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings of texts, of norm 1, float32 `[N, D]` on the CPU; a longer text is cut off."""
        longest = self._model.config.text_config.max_position_embeddings
        # SigLIP was trained on texts of one length, without a mask; in CLIP no token sees what follows it
        padding = "max_length" if self._is_siglip else "longest"
        tokens = self._tokenizer(list(texts), padding=padding, truncation=True, max_length=longest, return_tensors="pt")
        names = ("input_ids",) if self._is_siglip else ("input_ids", "attention_mask")
        given = {name: tokens[name].to(self._device) for name in names}
        return _normalised(self._model.get_text_features(**given))

    def cosines(self, images: Tensor, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the cosine of each image's embedding and that of its text, float32 `[N]`."""
        cosines: NDArray[np.float32] = (images * self.embed_texts(texts)).sum(1).numpy()
        return cosines


def _normalised(output: Any) -> Tensor:
    """Return embeddings of norm 1; versions of transformers return them alone or with other outputs."""
    found: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return normalize(found.float().cpu(), dim=1)


class TextImageNetwork(Network):
    """A network with two towers that is published as a directory of transformers."""

    kinds: tuple[str, ...] = ("clip",)
    """Kinds of models that it may be."""

    def __init__(self, located: LocatedNetwork, towers: Towers) -> None:
        super().__init__(located)
        self.towers = towers

    @classmethod
    def locate(cls, source: str, *, download: bool = True) -> LocatedNetwork:
        """Find the directory of the model; see `Network.locate`."""
        published = cls.describe()
        place, _ = find_place(source, published, may_be_file=False)
        directory, configs = fetch_configs(place, published)
        kind = model_type(directory, {kind: CLASSES[kind] for kind in cls.kinds}, published)
        _check_tokenizer(directory, kind, published)
        preprocessing = preprocessing_of(directory, kind, published.setting)
        weights, size = fetch_weights(place, published, download=download)
        return LocatedNetwork(cls.name, source, str(preprocessing), weights, configs, size)

    @classmethod
    def load(cls, located: LocatedNetwork, device: torch.device) -> TextImageNetwork:
        """Load the class of transformers, its tokenizer and its preprocessing; see `Network.load`."""
        published, directory = cls.describe(), located.configs[0].parent
        kind = model_type(directory, CLASSES, published)
        tokenizer = load_tokenizer(directory, published.setting)
        preprocessing = preprocessing_of(directory, kind, published.setting)
        model = load_model(located, CLASSES[kind], published.setting, dtype=precision(device))
        return cls(located, Towers(model, tokenizer, preprocessing, device))

    @classmethod
    def describe(cls) -> Published:
        """Return what messages say about it."""
        return Published(f"evaluate.networks.{cls.name}", cls.published, cls.weights_bytes)


def preprocessing_of(directory: Path, kind: str, setting: str) -> Preprocessing:
    """Return the preprocessing of a model: of its file, or the usual one for the size that its config has."""
    vision = read_json(directory / CONFIG_NAME, setting).get("vision_config")
    size = vision.get("image_size", 224) if isinstance(vision, dict) else 224
    if not isinstance(size, int) or not 0 < size <= 4096:
        raise CondistillError(f"{setting}: {directory / CONFIG_NAME} has image_size {size!r}, not a number of pixels")
    siglip = Preprocessing(size, "stretch", size, mean=HALF, std=HALF)
    found = read_preprocessing(directory, siglip if kind == "siglip" else Preprocessing(size, "crop", size), setting)
    if found.pixels != size:
        raise CondistillError(
            f"{setting}: {directory} makes inputs of {found.pixels} px, and its {CONFIG_NAME} has image_size {size}; "
            "download the model again"
        )
    return found


def _check_tokenizer(directory: Path, kind: str, published: Published) -> None:
    """Check that there is a tokenizer, or that the model reads the tokens of CLIP, whose vocabulary is installed."""
    text = read_json(directory / CONFIG_NAME, published.setting).get("text_config")
    tokens = text.get("vocab_size", TOKENS) if isinstance(text, dict) else TOKENS
    if not _has_tokenizer(directory) and (kind != "clip" or tokens != TOKENS):
        raise published.error(f"{directory} has no {TOKENIZER_FILES[0]}, so prompts cannot be read")
    config = directory / "tokenizer_config.json"
    uses = read_json(config, published.setting).get("tokenizer_class") if config.is_file() else None
    if uses == "SiglipTokenizer" and (missing := [name for name in _SENTENCEPIECE if not _is_installed(name)]):
        packages = " ".join(_SENTENCEPIECE[name] for name in missing)
        raise CondistillError(f"{published.setting}: the tokenizer in {directory} needs: pip install {packages}")


def _is_installed(name: str) -> bool:
    """Return whether a module is installed."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # of the package that it is in
        return False


def _has_tokenizer(directory: Path) -> bool:
    """Return whether there is a vocabulary."""
    files = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")
    return any((directory / name).is_file() for name in files)


def load_tokenizer(directory: Path | None, setting: str) -> Any:
    """Return the tokenizer of a directory; that of CLIP where there is none.

    Raises:
        CondistillError: its files cannot be read.
    """
    from transformers import AutoTokenizer, CLIPTokenizer

    try:
        with quiet_libraries():
            if directory is not None and _has_tokenizer(directory):
                return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
            with tempfile.TemporaryDirectory(prefix="condistill-") as folder:
                write_vocabulary(SHIPPED / "clip" / VOCABULARY_NAME, Path(folder))
                return CLIPTokenizer.from_pretrained(folder, local_files_only=True, pad_token="<|endoftext|>")
    except Exception as error:  # tokenizers and transformers raise many kinds for a damaged file
        raise CondistillError(
            f"{setting}: the tokenizer in {directory} cannot be loaded ({first_line(error)}); download it again"
        ) from error
