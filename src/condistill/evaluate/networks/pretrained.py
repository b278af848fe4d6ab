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
from condistill.evaluate.networks.weights import read_shapes, read_weights
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


def fetch_configs(place: Place, published: Published) -> tuple[Path, tuple[Path, ...]]:
    """Return the directory of a model and its small files; those on the hub are downloaded.

    Raises:
        CondistillError: it is no model of transformers.
    """
    names = place.names
    if CONFIG_NAME not in names:
        raise published.error(f"{place.title} has no {CONFIG_NAME}, so it is no model of transformers")
    small = [CONFIG_NAME, *(name for name in (PREPROCESSOR_NAME, PROCESSOR_NAME, *TOKENIZER_FILES) if name in names)]
    configs = tuple(_small(place, name) for name in small)
    return configs[0].parent, configs


def fetch_weights(place: Place, published: Published, *, download: bool) -> tuple[tuple[Path, ...], int]:
    """Return the weights of a model, and the bytes still to download.

    Args:
        download: False: weights that the hub has and this disk has not are not downloaded.

    Raises:
        CondistillError: a file is missing, damaged or cut off.
    """
    weights, size = [], 0
    for name in _weight_names(place, published):
        file, missing = place.get(name, download=download)
        size += missing
        if file is not None:
            read_shapes(file, published.setting)
            weights.append(file)
    return tuple(weights), size


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


def load_model(located: LocatedNetwork, class_name: str, setting: str, *, dtype: torch.dtype) -> Any:
    """Return a model of a class of transformers with the located weights, in evaluation mode.

    Raises:
        CondistillError: the files cannot be read, or lack weights of the model.
    """
    import transformers

    directory, model_class = located.configs[0].parent, getattr(transformers, class_name)
    source = f"{setting}: {directory}"
    try:
        with quiet_libraries():
            config = model_class.config_class.from_pretrained(directory, local_files_only=True)
            if any(file.suffix != ".safetensors" for file in located.weights):
                parts = (read_weights(file, setting) for file in located.weights)
                return build_model(class_name, config, {k: v for part in parts for k, v in part.items()}, source, dtype)
            model, info = model_class.from_pretrained(
                directory,
                config=config,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except CondistillError:
        raise
    except Exception as error:  # transformers, safetensors and json raise many kinds for a damaged file
        raise _cannot_be_loaded(source, class_name, error) from error
    _check_complete(source, class_name, info["missing_keys"])
    return model.eval().requires_grad_(False)


def build_model(class_name: str, config: Any, state: dict[str, Tensor], source: str, dtype: torch.dtype) -> Any:
    """Return a model of a class of transformers with these weights, in evaluation mode.

    Args:
        source: the setting and the file, for messages.

    Raises:
        CondistillError: the weights do not fit, or are not all.
    """
    import transformers

    model_class = getattr(transformers, class_name)
    try:
        with quiet_libraries():
            model, info = model_class.from_pretrained(
                None, config=config, state_dict=state, dtype=dtype, output_loading_info=True
            )
    except Exception as error:  # a config of one's own, or weights of other shapes
        raise _cannot_be_loaded(source, class_name, error) from error
    _check_complete(source, class_name, info["missing_keys"])
    return model.eval().requires_grad_(False)


def _cannot_be_loaded(source: str, class_name: str, error: Exception) -> CondistillError:
    return CondistillError(f"{source} cannot be loaded as a {class_name} ({first_line(error)}); download it again")


def _check_complete(source: str, class_name: str, missing: set[str]) -> None:
    """Check that no weight of a model is missing, since transformers would replace it by random numbers.

    Raises:
        CondistillError: names one that is.
    """
    if missing:
        more = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise CondistillError(
            f"{source}: the weights lack {sorted(missing)[0]}{more}, so they are not those of a whole {class_name}; "
            "give the model as published"
        )
