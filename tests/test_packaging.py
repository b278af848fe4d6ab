"""What is promised of the package as a whole: its metadata, its imports, its size, and that its wheel works."""

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

import condistill
from condistill.cli import doctor

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "condistill"
MODULES = sorted(SOURCE.rglob("*.py"))
MAX_FUNCTION_LINES, MAX_FILE_LINES = 60, 400
HEAVY = ("torch", "diffusers", "transformers", "accelerate", "pyarrow", "matplotlib")
IMPORT_NAMES = {"PIL": "pillow", "yaml": "pyyaml"}
OF_TRANSFORMERS = "tokenizers"
PICKLES = (".bin", ".ckpt", ".pkl", ".pickle", ".pt", ".pth", ".npy", ".npz", ".joblib")
PICKLE_START = re.compile(rb"\x80[\x02-\x05]")
ZIP_START = b"PK\x03\x04"
OURS = (".venv", ".git", "runs", "build", "dist")
"""How folders that are no part of the repository begin; only looked at where there is no git."""


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
    """Top-level names of what a file imports."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found - set(sys.stdlib_module_names)


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_version_is_one() -> None:
    assert project()["version"] == condistill.__version__
    assert f"## [{condistill.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


CONSTRAINTS = pytest.mark.parametrize("file", ["constraints.txt", "constraints-lowest.txt"])


@CONSTRAINTS
def test_constraints_pin_everything_that_make_installs(file: str) -> None:
    extras = re.findall(r'"\.\[([\w,]+)\]"', (ROOT / "Makefile").read_text(encoding="utf-8"))[0].split(",")
    declared = project()
    wanted = [declared["dependencies"], *(declared["optional-dependencies"][extra] for extra in extras)]
    assert names([line for lines in wanted for line in lines]) <= set(pins(file))


@CONSTRAINTS
def test_constraints_are_exact_versions_that_any_machine_can_find(file: str) -> None:
    assert str(pins()["torch"].specifier) == "==2.13.0"
    for pin in pins(file).values():
        assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), pin  # no local version, no range
        assert pin.url is None, pin


@CONSTRAINTS
def test_constraints_fit_the_ranges_that_are_declared(file: str) -> None:
    declared = project()
    lines = [
        *declared["dependencies"],
        *(line for extra in declared["optional-dependencies"].values() for line in extra),
    ]
    for requirement in map(Requirement, lines):
        if pin := pins(file).get(canonicalize_name(requirement.name)):
            (version,) = pin.specifier
            assert requirement.specifier.contains(version.version), requirement


def test_the_lowest_constraints_are_the_lower_bounds_that_are_declared() -> None:
    for requirement in map(Requirement, project()["dependencies"]):
        (bound,), (pin,) = requirement.specifier, pins("constraints-lowest.txt")[requirement.name].specifier
        assert bound.operator == ">="
        assert Version(pin.version) == Version(bound.version), requirement


def test_what_is_imported_is_declared_and_known_to_the_doctor() -> None:
    declared = names(project()["dependencies"])
    used = {IMPORT_NAMES.get(name, name) for module in MODULES for name in imports(module)}
    assert used - {"condistill", OF_TRANSFORMERS} <= declared
    assert set(doctor.REQUIRED) == declared


@pytest.mark.parametrize("module", ["condistill", "condistill.cli"])
def test_importing_it_loads_nothing_heavy(module: str) -> None:
    assert run_python(f"import sys, {module}; print(*sorted(set({HEAVY!r}) & set(sys.modules)))") == ""


@pytest.mark.slow  # it imports everything
def test_every_public_name_is_found_however_its_module_was_imported() -> None:
    code = f"""
import importlib, condistill
assert sorted(condistill.__all__) == {sorted(condistill.__all__)!r} == sorted(condistill._HOMES)
for name, home in condistill._HOMES.items():
    module = importlib.import_module(home)
    assert getattr(condistill, name) is getattr(module, name), name
"""
    run_python(code)


def test_the_idea_imports_torch_and_nothing_else() -> None:
    assert imports(SOURCE / "distill" / "random_conditioning.py") == {"torch"}


def functions(module: Path) -> Iterator[tuple[str, int]]:
    """Name and number of lines of every function of a file."""
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield f"{module.relative_to(ROOT)}:{node.name}", node.end_lineno - node.lineno + 1


def test_functions_and_files_are_short() -> None:
    long = [f"{name}: {lines}" for module in MODULES for name, lines in functions(module) if lines > MAX_FUNCTION_LINES]
    for module in MODULES:
        lines = len(module.read_text(encoding="utf-8").splitlines())
        if lines > MAX_FILE_LINES:
            long.append(f"{module.relative_to(ROOT)}: {lines}")
    assert not long


def repository_files() -> list[Path]:
    """What git holds; without git, what lies there."""
    git = shutil.which("git")
    if git and (ROOT / ".git").exists():
        listed = subprocess.run([git, "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
        return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]
    return [
        path
        for path in ROOT.rglob("*")
        if path.is_file() and not path.relative_to(ROOT).parts[0].startswith(OURS) and "__pycache__" not in path.parts
    ]


def test_the_repository_holds_no_pickle() -> None:
    files = repository_files()
    assert files
    for path in files:
        with path.open("rb") as file:
            start = file.read(4)
        assert path.suffix not in PICKLES, path
        assert not PICKLE_START.match(start), path
        assert start != ZIP_START, path  # torch.save writes a zip with a pickle in it


def build_wheel(folder: Path) -> Path:
    """Build from a copy, so that the repository stays as it is."""
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


def install_beside_our_packages(wheel: Path, folder: Path) -> Path:
    """A fresh environment with the wheel, which sees the packages of this one but not this condistill."""
    venv.create(folder, with_pip=False)
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    python = next(scripts.glob("python*"))
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout.strip()
    # paths in a .pth file are added as they are: the editable install there takes no effect
    (Path(packages) / "ours.pth").write_text(run_python(ask) + "\n", encoding="utf-8")
    return scripts


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.mark.slow
def test_the_wheel_holds_the_miniature_the_templates_and_the_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    data = [path for path in SOURCE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    assert {f"condistill/{path.relative_to(SOURCE).as_posix()}" for path in data} <= held
    assert f"condistill-{condistill.__version__}.dist-info/licenses/LICENSE" in held
    assert "condistill/miniature/weights/teacher/model_index.json" in held


@pytest.mark.slow
def test_the_wheel_works_away_from_the_repository(wheel: Path, tmp_path: Path) -> None:
    scripts = install_beside_our_packages(wheel, tmp_path / "venv")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}

    def say(*command: str) -> str:
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

    where = say("python", "-c", "import condistill; print(condistill.__file__)").strip()
    assert Path(where).is_relative_to(tmp_path)
    assert "demo" in say("condistill", "--help")
    assert "all checks passed" in say("condistill", "doctor")
    assert not list(tmp_path.glob("*.*"))
