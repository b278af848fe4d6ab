"""Load one model of a pipeline directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from condistill.errors import CondistillError
from condistill.utils.text import first_line


def load_component(
    directory: Path, name: str, entry: Sequence[str], dtype: torch.dtype, *, variant: str | None = None
) -> Any:
    """Load one model of a pipeline directory.

    Args:
        entry: its library and its class, as in `model_index.json`.
        dtype: of its weights.
        variant: of its files.

    Raises:
        CondistillError: it cannot be loaded.
    """
    import diffusers
    import transformers

    library, class_name = entry
    kind = getattr({"diffusers": diffusers, "transformers": transformers}.get(library), class_name, None)
    if kind is None:
        raise CondistillError(
            f"the teacher's {name} is a {library}.{class_name}, which is neither in diffusers nor in transformers as "
            "installed here"
        )
    key = "dtype" if library == "transformers" else "torch_dtype"
    options: dict[str, Any] = {key: dtype, "variant": variant, "use_safetensors": True}
    try:
        return kind.from_pretrained(directory, subfolder=name, **options)
    except Exception as error:  # a damaged file can raise any exception
        raise CondistillError(f"the teacher's {name} cannot be loaded: {first_line(error)}") from error
