"""What is installed, what devices there are, what is missing and how to get it."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
from pathlib import Path

from rich.console import Console
from rich.table import Table

REQUIRED = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "safetensors",
    "numpy",
    "pillow",
    "pyarrow",
    "pydantic",
    "pyyaml",
    "typer",
    "rich",
    "jinja2",
    "matplotlib",
)
OPTIONAL = {"tensorboard": "pip install 'condistill[track]'", "wandb": "pip install wandb"}


def installed(package: str) -> str | None:
    """A package's version, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def examine(console: Console) -> bool:
    """Print what there is; True if nothing that is needed is missing."""
    table = Table(title="condistill doctor", title_justify="left", box=None, pad_edge=False)
    table.add_column("what")
    table.add_column("found")
    table.add_column("to get it", overflow="fold")
    table.add_row("Python", platform.python_version(), "")
    missing = [package for package in REQUIRED if installed(package) is None]
    for package in REQUIRED:
        version = installed(package)
        table.add_row(package, version or "[red]missing[/]", "" if version else f"pip install {package}")
    for package, how in OPTIONAL.items():
        table.add_row(f"{package} (optional)", installed(package) or "-", "" if installed(package) else how)
    for name, found in devices():
        table.add_row(name, found, "")
    table.add_row("free disk here", f"{shutil.disk_usage(Path.cwd()).free / 2**30:.0f} GiB", "")
    whole = miniature_is_there()
    table.add_row("miniature", "there" if whole else "[red]missing[/]", "" if whole else "make miniature, or reinstall")
    console.print(table)
    console.print("all is well" if not missing and whole else "something is missing", highlight=False)
    return not missing and whole


def devices() -> list[tuple[str, str]]:
    """Each device torch can use, with its memory or threads."""
    if installed("torch") is None:
        return []
    import torch

    found = [("CPU", f"{torch.get_num_threads()} threads")]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append((f"cuda:{index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"))
    return found


def miniature_is_there() -> bool:
    """Whether the embedded teacher came along with the package."""
    from condistill.miniature import weights_path

    return (weights_path() / "teacher" / "model_index.json").is_file()
