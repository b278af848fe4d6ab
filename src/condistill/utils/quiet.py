"""Keep third-party libraries quiet: their bars and advice are for developers; what a user needs we say ourselves."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_NOISY = r"(accelerate|diffusers|huggingface_hub|torch|transformers)\b"


def quiet_environment() -> None:
    """Ask for quiet before the libraries are imported; imports nothing. A user's own settings stay."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """No progress bars, advice or warnings of the libraries; afterwards all is as it was before."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    loggings = (diffusers_logging, transformers_logging)
    before = [(each, each.get_verbosity(), each.is_progress_bar_enabled()) for each in loggings]
    for each in loggings:
        each.set_verbosity_error()
        each.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=_NOISY)
            yield
    finally:
        for each, verbosity, bars in before:
            each.set_verbosity(verbosity)
            if bars:
                each.enable_progress_bar()
