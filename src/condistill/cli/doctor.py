"""The checks of `condistill doctor`: packages, devices, memory, disk space, and how to install a missing package."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import shutil
from pathlib import Path

from rich.console import Console
from rich.table import Table

from condistill import __version__
from condistill.utils.format import byte_size
from condistill.utils.terminal import cell, print_line
from condistill.utils.text import first_line

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
    "filelock",
    "huggingface-hub",
    "jinja2",
    "matplotlib",
)
NOT_INSTALLED = "-"
OPTIONAL = {
    "tensorboard": "pip install 'condistill[track]'",
    "wandb": "pip install 'condistill[wandb]'",
    "gradio": "pip install 'condistill[studio]'",
}
EVALUATION = ("torch-fidelity", "torchvision")
"""Packages of the extra `eval`, for `evaluate.networks.inception`."""
INSTALL_EVALUATION = "pip install 'condistill[eval]', and a torchvision made for your torch (https://pytorch.org)"


def installed_version(package: str) -> str | None:
    """Return the version of a package, or None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_installation(console: Console) -> bool:
    """Print a table of packages and devices, and return whether condistill can run."""
    table = Table(title="condistill doctor", title_justify="left", box=None, pad_edge=False)
    table.add_column("component")
    table.add_column("found")
    table.add_column("how to install", overflow="fold")

    def add(component: str, found: str | None, how: str = "", *, show_how: bool = False) -> None:
        """Add a row; `how` to install the component is shown if it is not found, or if it must be."""
        shown = "[red]missing[/]" if found is None else cell(found)
        table.add_row(cell(component), shown, cell(how) if show_how or found in (None, NOT_INSTALLED) else "")

    add("condistill", __version__)
    add("Python", platform.python_version())
    versions = {package: installed_version(package) for package in REQUIRED}
    for package, version in versions.items():
        add(package, version, f"pip install {package}")
    for package, how in OPTIONAL.items():
        add(f"{package} (optional)", installed_version(package) or NOT_INSTALLED, how)
    how = "" if (broken := evaluation_fault()) is None else INSTALL_EVALUATION
    for package in EVALUATION:
        version = installed_version(package)
        fault = f", cannot be imported: {broken}" if version and broken and package == EVALUATION[0] else ""
        add(f"{package} (optional)", (version or NOT_INSTALLED) + fault, how, show_how=bool(fault))
    found_devices = devices()
    for name, description in found_devices.items():
        add(name, description)
    add("memory", _memory())
    add("free disk space", _free_space())
    found_miniature = has_miniature()
    add("miniature teacher", "yes" if found_miniature else None, "make miniature, or install condistill again")
    console.print(table)
    _show_families(console)
    can_run = all(versions.values()) and found_miniature and "torch" not in found_devices
    print_line(console, "all checks passed" if can_run else "some checks failed")
    return can_run


def _show_families(console: Console) -> None:
    """Print a table of the families of teachers and what some of their pipelines need; none if torch is broken."""
    try:
        from condistill.teachers.registry import FAMILIES
    except Exception:  # a broken installation can raise any exception; the table above names the package
        return
    table = Table(title="\nteachers", title_justify="left", box=None, pad_edge=False)
    table.add_column("family")
    table.add_column("pipelines of diffusers", overflow="fold")
    table.add_column("further packages that some of them need", overflow="fold")
    for family in FAMILIES.values():
        missing = [package for package in family.packages if installed_version(package) is None]
        needs = ", ".join(family.packages) or NOT_INSTALLED
        how = f" (pip install {' '.join(missing)})" if missing else ""
        table.add_row(cell(family.name), cell(", ".join(family.pipeline_classes)), cell(needs + how))
    console.print(table)


def _memory() -> str:
    """Return the memory of the machine, and how much of it is available."""
    try:
        from condistill.utils.hardware import machine_memory
    except Exception:  # torch cannot be imported
        return "unknown"
    total, free = ("unknown" if size is None else byte_size(size) for size in machine_memory())
    return f"{total}, {free} available"


def _free_space() -> str:
    """Return the free space on the disk of the current directory."""
    try:
        return byte_size(shutil.disk_usage(Path.cwd()).free)
    except OSError as error:  # the directory was deleted, or cannot be read
        return f"unknown: {error.strerror}"


def evaluation_fault() -> str | None:
    """Return why torch-fidelity cannot be imported; None if it can.

    It is imported, since a torchvision made for another torch is found only then.
    """
    try:
        importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    except Exception as error:  # a torchvision for another torch raises RuntimeError and others
        return first_line(error)
    return None


def devices() -> dict[str, str]:
    """Return a description of each device that torch can use.

    If torch cannot be imported, the only entry is `torch` with the reason. Without torch, there is no entry.
    """
    if installed_version("torch") is None:
        return {}
    try:
        import torch
    except Exception as error:  # a broken installation can raise any exception
        return {"torch": f"cannot be imported: {error}"}

    found = {"CPU": f"{torch.get_num_threads()} threads"}
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found[f"cuda:{index}"] = f"{properties.name}, {byte_size(properties.total_memory)}"
    return found


def has_miniature() -> bool:
    """Return whether the embedded teacher is installed with the package."""
    from condistill.miniature import weights_path

    return (weights_path() / "teacher" / "model_index.json").is_file()
