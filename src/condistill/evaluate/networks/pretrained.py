"""Directories of transformers: which files a network needs, and loading one of a known class from them.

Code that comes with a model never runs: classes are those of transformers, and weights are read as plain tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from condistill.errors import CondistillError
from condistill.evaluate.networks.files import Place, Published
from condistill.evaluate.networks.network import LocatedNetwork
from condistill.evaluate.networks.preprocess import PREPROCESSOR_NAME, PROCESSOR_NAME, read_json
from condistill.evaluate.networks.weights import read_weights
from condistill.utils.quiet import quiet_libraries
from condistill.utils.text import first_line

CONFIG_NAME = "config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
)
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""The first that a directory has is used, whole or in shards that an index names."""


def fetch_directory(place: Place, published: Published, *, download: bool) -> tuple[Path, list[Path], list[Path], int]:
    """Return the directory of a model with its small files and its weights, and the bytes still to download.

    Args:
        download: False: weights that the hub has and this disk has not are not downloaded; small files always are.

    Raises:
        CondistillError: a file is missing.
    """
    names = place.names
    if CONFIG_NAME not in names:
        raise published.error(f"{place.title} has no {CONFIG_NAME}, so it is no model of transformers")
    small = [CONFIG_NAME, *(name for name in (PREPROCESSOR_NAME, PROCESSOR_NAME, *TOKENIZER_FILES) if name in names)]
    configs = [_small(place, name) for name in small]
    weights, size = [], 0
    for name in _weight_names(place, published):
        file, missing = place.get(name, download=download)
        size += missing
        if file is not None:
            weights.append(file)
    return configs[0].parent, configs, weights, size


def _small(place: Place, name: str) -> Path:
    file, _ = place.get(name, download=True)
    assert file is not None
    return file


def _weight_names(place: Place, published: Published) -> list[str]:
    """Return the names of the weight files of a directory.

    Raises:
        CondistillError: it has none, or not all that an index names.
    """
    names = place.names
    for single in _WEIGHTS:
        index = f"{single}.index.json"
        if single in names:
            return [single]
        if index in names:
            found = read_json(_small(place, index), published.setting).get("weight_map")
            shards = sorted({str(name) for name in found.values()}) if isinstance(found, Mapping) else []
            if missing := [name for name in shards if name not in names or Path(name).name != name]:
                raise published.error(f"{place.title} has no {missing[0]}, which {index} names")
            if shards:
                return shards
    raise published.error(f"{place.title} has no {_WEIGHTS[0]}")


def model_type(directory: Path, allowed: Mapping[str, str], published: Published) -> str:
    """Return the kind of model in a directory, which its config names.

    Args:
        allowed: the class of transformers by kind.

    Raises:
        CondistillError: it is another kind.
    """
    kind = read_json(directory / CONFIG_NAME, published.setting).get("model_type")
    if kind not in allowed:
        raise published.error(
            f"{directory} is a model of the kind {kind!r}, and this network must be one of {', '.join(allowed)}"
        )
    return str(kind)


def load_model(
    located: LocatedNetwork,
    class_name: str,
    setting: str,
    *,
    dtype: torch.dtype,
    state: dict[str, Tensor] | None = None,
) -> Any:
    """Return a model of a class of transformers, in evaluation mode.

    Args:
        state: the weights; by default those of the located files.

    Raises:
        CondistillError: the files cannot be read, or lack weights of the model.
    """
    import transformers

    directory, model_class = located.configs[0].parent, getattr(transformers, class_name)
    if state is None and any(file.suffix != ".safetensors" for file in located.weights):
        state = {name: value for file in located.weights for name, value in read_weights(file, setting).items()}
    options: dict[str, Any] = {"dtype": dtype, "output_loading_info": True}
    try:
        with quiet_libraries():
            config = model_class.config_class.from_pretrained(directory, local_files_only=True)
            if state is None:
                local = {"local_files_only": True, "use_safetensors": True, "trust_remote_code": False}
                model, info = model_class.from_pretrained(directory, config=config, **local, **options)
            else:
                model, info = model_class.from_pretrained(None, config=config, state_dict=state, **options)
    except Exception as error:  # transformers, safetensors and json raise many kinds for a damaged file
        raise CondistillError(
            f"{setting}: {directory} cannot be loaded as a {class_name} ({first_line(error)}); download it again"
        ) from error
    check_complete(directory, setting, class_name, info["missing_keys"])
    return model.eval().requires_grad_(False)


def check_complete(source: Path, setting: str, class_name: str, missing: set[str]) -> None:
    """Check that no weight of a model is missing, since transformers would replace it by random numbers.

    Raises:
        CondistillError: names one that is.
    """
    if missing:
        more = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise CondistillError(
            f"{setting}: the weights in {source} lack {sorted(missing)[0]}{more}, so they are not those of a whole "
            f"{class_name}; give the model as published"
        )
