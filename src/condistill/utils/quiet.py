"""Silence third-party libraries: their progress bars and warnings are for developers, and condistill prints its own."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_NOISY = r"(accelerate|diffusers|huggingface_hub|torch|transformers)\b"


def quiet_environment() -> None:
    """Set the environment variables that silence libraries once they are imported; keep variables that are set."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for name in ("torchao", "torch.utils._pytree"):  # diffusers imports torchao where it is installed
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Turn off the progress bars, messages and warnings of libraries, and restore the settings afterwards."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    modules = (diffusers_logging, transformers_logging)
    before = [(module, module.get_verbosity(), module.is_progress_bar_enabled()) for module in modules]
    for module in modules:
        module.set_verbosity_error()
        module.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=_NOISY)
            yield
    finally:
        for module, verbosity, has_progress_bar in before:
            module.set_verbosity(verbosity)
            if has_progress_bar:
                module.enable_progress_bar()
