"""Tests of the package as a whole: metadata, imports, sizes of functions and files, and the wheel."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from parsed import nodes_of

import condistill
from condistill.cli import doctor

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "condistill"
MODULES = sorted(SOURCE.rglob("*.py"))
MAX_FUNCTION_LINES, MAX_FILE_LINES = 60, 400
HEAVY = ("torch", "diffusers", "transformers", "accelerate", "pyarrow", "matplotlib")
IMPORT_NAMES = {
    "PIL": "pillow",
    "huggingface_hub": "huggingface-hub",
    "onnx_ir": "onnx-ir",
    "torch_fidelity": "torch-fidelity",
    "yaml": "pyyaml",
}
FROM_TRANSFORMERS, FROM_GRADIO = "tokenizers", ("fastapi", "uvicorn")
PICKLES = (".bin", ".ckpt", ".pkl", ".pickle", ".pt", ".pth", ".npy", ".npz", ".joblib")
PICKLE_START = re.compile(rb"\x80[\x02-\x05]")
ZIP_START = b"PK\x03\x04"
OTHER_FOLDERS = (".venv", ".git", "runs", "build", "dist")
"""Folders that do not belong to the repository begin with one of these; used only without git."""


def project() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 cannot read pyproject.toml by itself")
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return found


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in requirements}


def pins(file: str = "constraints.txt") -> dict[str, Requirement]:
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(pin.name): pin for pin in found}


def imports(module: Path) -> set[str]:
    """Return the top-level names of the packages that a file imports, without the standard library."""
    found = set()
    for node in nodes_of(module):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found - set(sys.stdlib_module_names)


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_version_is_the_same_everywhere() -> None:
    assert project()["version"] == condistill.__version__
    assert f"## [{condistill.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


CONSTRAINTS = pytest.mark.parametrize("file", ["constraints.txt", "constraints-lowest.txt"])


@CONSTRAINTS
def test_constraints_pin_everything_that_make_installs(file: str) -> None:
    installed = rf'-c {file} -e "\.\[([\w,]+)\]"'
    extras = re.findall(installed, (ROOT / "Makefile").read_text(encoding="utf-8"))[0].split(",")
    declared = project()
    wanted = [declared["dependencies"], *(declared["optional-dependencies"][extra] for extra in extras)]
    assert names([line for lines in wanted for line in lines]) <= set(pins(file))


@CONSTRAINTS
def test_constraints_are_exact_public_versions(file: str) -> None:
    assert str(pins()["torch"].specifier) == "==2.13.0"
    for pin in pins(file).values():
        assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), pin  # no local version, no range
        assert pin.url is None, pin


@CONSTRAINTS
def test_constraints_are_within_the_declared_ranges(file: str) -> None:
    declared = project()
    lines = [
        *declared["dependencies"],
        *(line for extra in declared["optional-dependencies"].values() for line in extra),
    ]
    for requirement in map(Requirement, lines):
        if pin := pins(file).get(canonicalize_name(requirement.name)):
            (version,) = pin.specifier
            assert requirement.specifier.contains(version.version), requirement


def test_the_lowest_constraints_are_the_declared_lower_bounds() -> None:
    for requirement in map(Requirement, project()["dependencies"]):
        (bound,), (pin,) = requirement.specifier, pins("constraints-lowest.txt")[requirement.name].specifier
        assert bound.operator == ">="
        assert Version(pin.version) == Version(bound.version), requirement


def test_imported_packages_are_declared_and_checked_by_doctor() -> None:
    declared = names(project()["dependencies"])
    optional = {name for extra in project()["optional-dependencies"].values() for name in names(extra)}
    used = {IMPORT_NAMES.get(name, name) for module in MODULES for name in imports(module)}
    assert used - {"condistill", FROM_TRANSFORMERS, *FROM_GRADIO} <= declared | optional
    assert set(doctor.REQUIRED) == declared


@pytest.mark.parametrize("module", ["condistill", "condistill.cli"])
def test_importing_a_module_loads_no_heavy_package(module: str) -> None:
    assert run_python(f"import sys, {module}; print(*sorted(set({HEAVY!r}) & set(sys.modules)))") == ""


@pytest.mark.slow  # it imports everything
def test_every_public_name_is_the_object_of_its_module() -> None:
    code = f"""
import importlib, condistill
assert sorted(condistill.__all__) == {sorted(condistill.__all__)!r} == sorted(condistill._HOMES)
for name, home in condistill._HOMES.items():
    module = importlib.import_module(home)
    assert getattr(condistill, name) is getattr(module, name), name
"""
    run_python(code)


def test_the_method_imports_only_torch() -> None:
    assert imports(SOURCE / "distill" / "random_conditioning.py") == {"torch"}


def functions(module: Path) -> Iterator[tuple[str, int]]:
    """Yield the name and the number of lines of each function of a file."""
    for node in nodes_of(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield f"{module.relative_to(ROOT)}:{node.name}", node.end_lineno - node.lineno + 1


def test_functions_and_files_are_short() -> None:
    too_long = [
        f"{name}: {lines}" for module in MODULES for name, lines in functions(module) if lines > MAX_FUNCTION_LINES
    ]
    for module in MODULES:
        lines = len(module.read_text(encoding="utf-8").splitlines())
        if lines > MAX_FILE_LINES:
            too_long.append(f"{module.relative_to(ROOT)}: {lines}")
    assert not too_long


def repository_files() -> list[Path]:
    """Return the files that git tracks; without git, the files that are present."""
    git = shutil.which("git")
    if git and (ROOT / ".git").exists():
        listed = subprocess.run([git, "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
        return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]
    return [
        path
        for path in ROOT.rglob("*")
        if path.is_file()
        and not path.relative_to(ROOT).parts[0].startswith(OTHER_FOLDERS)
        and "__pycache__" not in path.parts
    ]


def test_the_repository_contains_no_pickle() -> None:
    files = repository_files()
    assert files
    for path in files:
        with path.open("rb") as file:
            start = file.read(4)
        assert path.suffix not in PICKLES, path
        assert not PICKLE_START.match(start), path
        assert start != ZIP_START, path  # torch.save writes a zip with a pickle in it


def build_wheel(folder: Path) -> Path:
    """Build a wheel from a copy, so that the repository does not change."""
    copy = folder / "source"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(copy)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


def install_in_new_environment(wheel: Path, folder: Path) -> Path:
    """Install a wheel in a new environment, and return the folder of its scripts.

    The environment also sees the packages of the current one, except for its condistill.
    """
    venv.create(folder, with_pip=False)
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    python = next(scripts.glob("python*"))
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    # a folder in a .pth file is added without its own .pth files, so an editable condistill has no effect
    (Path(packages) / "parent.pth").write_text(run_python(code) + "\n", encoding="utf-8")
    return scripts


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.mark.slow
def test_the_wheel_contains_the_miniature_the_templates_and_the_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    data = [path for path in SOURCE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    assert {f"condistill/{path.relative_to(SOURCE).as_posix()}" for path in data} <= names
    assert f"condistill-{condistill.__version__}.dist-info/licenses/LICENSE" in names
    assert "condistill/miniature/weights/teacher/model_index.json" in names


@pytest.mark.slow
def test_the_wheel_contains_the_configs_and_the_vocabulary_for_teachers_in_one_file(wheel: Path) -> None:
    shipped = ROOT / "src" / "condistill" / "teachers" / "shipped"
    expected = {path.relative_to(ROOT / "src").as_posix() for path in shipped.rglob("*") if path.is_file()}
    assert len(expected) > 40
    with zipfile.ZipFile(wheel) as archive:
        sizes = {info.filename: info.compress_size for info in archive.infolist() if info.filename in expected}
    assert sizes.keys() == expected
    assert sum(sizes.values()) < 1_500_000


@pytest.mark.slow
def test_the_wheel_works_outside_of_the_repository(wheel: Path, tmp_path: Path) -> None:
    scripts = install_in_new_environment(wheel, tmp_path / "venv")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}

    def run(*command: str) -> str:
        """Run a command of the environment and return its output."""
        done = subprocess.run(
            [str(scripts / command[0]), *command[1:]],
            cwd=tmp_path,
            env=environment,
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    check = [sys.executable, "-m", "pip", "--python", str(scripts / "python"), "check"]
    done = subprocess.run(check, check=False, capture_output=True, text=True)
    missing = [line for line in done.stdout.splitlines() if not line.startswith(("No broken", "torch-fidelity "))]
    assert not missing, done.stdout  # with dependencies, too, pip would leave the torch that is there
    module = run("python", "-c", "import condistill; print(condistill.__file__)").strip()
    assert Path(module).is_relative_to(tmp_path)
    assert "demo" in run("condistill", "--help")
    assert "all checks passed" in run("condistill", "doctor")
    assert not list(tmp_path.glob("*.*"))
