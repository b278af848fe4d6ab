"""Texts that commands print: examples of use, and messages for exceptions. This module imports nothing heavy."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

from condistill.errors import CondistillError, system_code, system_message
from condistill.utils.text import shorten

EXAMPLES: dict[str, tuple[str, ...]] = {
    "demo": ("condistill demo", "condistill demo --out runs/short -s distill.steps=300"),
    "init": (
        "condistill init ./my-pipeline --prompts prompts.txt",
        "condistill init model.safetensors -p prompts.txt --budget 48h --device rtx-4090",
        "condistill init org/model -p a.parquet -p b.csv -o recipe.yaml",
    ),
    "validate": ("condistill validate recipe.yaml", "condistill validate recipe.yaml -s student.preset=c-small"),
    "plan": (
        "condistill plan recipe.yaml",
        "condistill plan recipe.yaml --device a100-80gb --count 8",
        "condistill plan recipe.yaml -s student.preset=b-tiny --json",
    ),
    "inspect": ("condistill inspect miniature", "condistill inspect org/model --levels 3"),
    "run": (
        "condistill run recipe.yaml --quick",
        "condistill run recipe.yaml",
        "condistill run recipe.yaml -o runs/long -s distill.steps=100000",
        "condistill run recipe.yaml -s evaluate.prompts_per_split=500 --update",
        "condistill run recipe.yaml --dry-run",
    ),
    "prompts": ("condistill prompts recipe.yaml",),
    "cache": ("condistill cache recipe.yaml", "condistill cache recipe.yaml --verify"),
    "distill": ("condistill distill recipe.yaml",),
    "evaluate": (
        "condistill evaluate recipe.yaml",
        "condistill evaluate recipe.yaml --protocol quick-look",
        "condistill evaluate recipe.yaml --protocol coco-30k -p captions.txt -s evaluate.reference=coco.npz",
        "condistill evaluate ./my-pipeline ./pruned org/model --prompts prompts.txt",
        "condistill evaluate recipe.yaml --images images",
        "condistill evaluate recipe.yaml --scores scores.json",
    ),
    "report": (
        "condistill report recipe.yaml --out runs/recipe",
        "condistill report runs/half runs/third --out runs/comparison",
    ),
    "sweep": (
        "condistill sweep recipe.yaml --seeds 0,1,2",
        'condistill sweep recipe.yaml --grid "student.width=[0.5, 0.25]" --grid "distill.steps=[1000, 5000]"',
        'condistill sweep recipe.yaml --case "plain: distill.conditioning.probability.schedule=none" --case "same:"',
    ),
    "status": ("condistill status runs/recipe", "condistill status runs/recipe --json"),
    "sample": (
        'condistill sample runs/recipe/pipelines/random_conditioning "a red fox"',
        'condistill sample miniature "a small red star" -o star.png',
    ),
    "studio": (
        "condistill studio runs/demo",
        "condistill studio runs/small runs/large org/model",
        "condistill studio runs/recipe --host 0.0.0.0 --port 8000",
    ),
    "export": (
        "condistill export runs/recipe",
        "condistill export runs/recipe --to comfyui --dtype float16",
        "condistill export ./my-pipeline --to onnx --to openvino",
    ),
    "push": (
        "condistill push runs/recipe --to my-name/my-student",
        "condistill push runs/recipe --to my-name/my-student --student small --export comfyui --public",
        "condistill push ./my-pipeline --to my-name/my-student --dry-run",
    ),
    "doctor": ("condistill doctor",),
}
"""Examples by command; the help of each command ends with its own."""


_UNREADABLE = {"ArrowInvalid", "JSONDecodeError", "SafetensorError", "UnicodeDecodeError", "UnidentifiedImageError"}
"""Exceptions of libraries that cannot read a file. Where the file is known, a `CondistillError` names it."""

_BY_TEXT = {
    "PytorchStreamWriter failed": "a checkpoint could not be written; check the free space and the largest file that "
    "the disk allows",  # torch does not say which error of the system it was
    "Could not determine home directory": "the home directory of a path that begins with ~ is unknown; write the whole "
    "path",
}
"""Messages for exceptions that have no class of their own, by words of their text."""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception, its cause, the cause of that, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_disk_full(error: BaseException) -> bool:
    """Return whether a disk or a quota is full. Some libraries report it only in the text of the exception."""
    return system_code(error) in (errno.ENOSPC, errno.EDQUOT) or any(
        words in str(error) for words in ("No space left", "quota exceeded")
    )


def _is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory is used up, of a GPU or of the machine; torch has several exceptions for it."""
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"  # the class is in torch, which this module does not import
        or (isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text))
    )


def error_message(error: Exception) -> str:
    """Return the message of one line that a user sees for an exception."""
    for cause in _chain(error):
        if _is_disk_full(cause):
            place = f" ({cause.filename})" if isinstance(cause, OSError) and cause.filename else ""
            return f"the disk is full{place}; free some space, then run the same command again to resume"
    if isinstance(error, CondistillError):
        return str(error)
    first_line = shorten((str(error).splitlines() or [""])[0], 500)
    return _environment_message(error, first_line) or (
        f"unexpected {type(error).__name__}: {first_line} (a bug in condistill: run with --debug for the traceback)"
    )


def _environment_message(error: Exception, first_line: str) -> str | None:
    """Return the message of an exception that comes from the machine, or from a file on it; None for any other."""
    if _is_out_of_memory(error):
        return "the device is out of memory; lower cache.batch_size, distill.micro_batch_size or evaluate.batch_size"
    if isinstance(error, OSError) or system_code(error):
        return system_message(error)
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("condistill"):
        package = error.name.partition(".")[0]
        return f"the package {package} is missing or damaged; check `condistill doctor`, then pip install {package}"
    if type(error).__name__ in _UNREADABLE:
        return f"a file cannot be read and may be damaged: {first_line}; run with --debug for its name"
    return next((message for words, message in _BY_TEXT.items() if words in str(error)), None)


def usage_message(error: Any) -> str:
    """Return the message of one line that a user sees for a command line that typer rejects."""
    command_path = error.ctx.command_path if getattr(error, "ctx", None) else "condistill"
    return f"{error.format_message().rstrip('.')}; see `{command_path} --help`"
