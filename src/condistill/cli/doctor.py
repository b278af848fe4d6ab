"""What is installed, what devices there are, what is missing and how to get it."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
from pathlib import Path

from rich.console import Console
from rich.markup import escape
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
OPTIONAL = {"tensorboard": "pip install 'condistill[track]'", "wandb": "pip install 'condistill[wandb]'"}


def installed(package: str) -> str | None:
    """A package's version, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def examine(console: Console) -> bool:
    """Print what there is; True if all that is needed is there and works."""
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
    found = devices()
    for name, told in found:
        table.add_row(name, told, "")
    table.add_row("free disk here", f"{shutil.disk_usage(Path.cwd()).free / 2**30:.0f} GiB", "")
    whole, works = miniature_is_there(), "torch" not in dict(found)
    table.add_row("miniature", "there" if whole else "[red]missing[/]", "" if whole else "make miniature, or reinstall")
    console.print(table)
    well = not missing and whole and works
    console.print("all is well" if well else "something is missing", highlight=False)
    return well


def devices() -> list[tuple[str, str]]:
    """Each device torch can use, with its memory or threads; or why torch cannot be used."""
    if installed("torch") is None:
        return []
    try:
        import torch
    except Exception as error:  # whatever is wrong with it, this is the command that says so
        return [("torch", f"[red]cannot be imported[/]: {escape(str(error))}")]

    found = [("CPU", f"{torch.get_num_threads()} threads")]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append((f"cuda:{index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"))
    return found


def miniature_is_there() -> bool:
    """Whether the embedded teacher came along with the package."""
    from condistill.miniature import weights_path

    return (weights_path() / "teacher" / "model_index.json").is_file()
