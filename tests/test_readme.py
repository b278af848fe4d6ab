"""Tests of the documents: commands and Python blocks run, links point to files, and tables match the code.

The blocks run in a folder with the files that the documents mention: `my-pipeline`, a random toy pipeline that is
sampled in four steps, and `prompts.txt`. A recipe that `condistill init` writes in this folder is made tiny before the
next block runs.
"""

from __future__ import annotations

import ast
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
import yaml
from parsed import nodes_of
from pydantic_core import PydanticUndefined
from tiny_networks import write_clip

from condistill import cli
from condistill.cli.texts import EXAMPLES
from condistill.config.conditioning import SCHEDULES, ScheduleSettings
from condistill.config.recipe import Recipe
from condistill.config.sections import Settings
from condistill.config.yaml_tree import merge

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCUMENTS = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [str(document.relative_to(ROOT)) for document in DOCUMENTS]
RUNS_A_RECIPE = {
    "README.md",
    "docs/evaluation.md",
    "docs/getting-started.md",
    "docs/plan.md",
    "docs/report.md",
    "docs/runs.md",
    "docs/sweep.md",
}
STARTS_COMMANDS = {
    "CONTRIBUTING.md",
    "docs/export.md",
    "docs/fine-tune-lora.md",
    "docs/method.md",
    "docs/miniature.md",
    "docs/recipe.md",
    "docs/students.md",
}
SHELL = ("bash", "console", "sh")
NOT_RUN = ("demo", "push", "studio")  # one takes ten minutes, one needs the hub, one does not end; all have own tests
KNOBS = {
    "cache": {"size": 4, "num_inference_steps": 2, "batch_size": 4},
    "distill": {"steps": 2, "batch_size": 4, "micro_batch_size": 2, "preview_every": 0},
    "evaluate": {"prompts_per_split": 2, "batch_size": 4, "grid": 1},
}
COMMANDS = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
TARGETS = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def blocks(name: str, *languages: str) -> list[tuple[str, str]]:
    """Return the language and the text of the code blocks of a document, in order."""
    text = (ROOT / name).read_text(encoding="utf-8")
    assert text.count("\n```") % 2 == 0, f"a code block of {name} is not closed"
    found = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(language, block) for language, block in found if language in languages]


HUB_CLIP = "openai/clip-vit-large-patch14"
"""Where documents name it, a tiny one in the working directory is used."""


def shell_lines(block: str) -> list[list[str]]:
    """Return the words of each command of a shell block."""
    lines = (line.removeprefix("$ ") for line in block.replace("\\\n", " ").splitlines())
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def condistill_arguments(words: list[str]) -> list[str] | None:
    """Return the arguments that a shell line passes to condistill, or None for another command."""
    if words[0] == "condistill":
        return words[1:]
    if words[:2] == ["accelerate", "launch"]:
        return words[words.index("condistill") + 1 :]
    return None


def table(text: str, heading: str) -> list[list[str]]:
    """Return the cells of the rows of all tables whose first heading is `heading`, without backticks."""
    rows, inside = [], False
    for line in text.splitlines():
        cells = [cell.strip().strip("`") for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            inside = False
        elif inside and set(line) - set("|-: "):
            rows.append(cells)
        inside = inside or (line.startswith("|") and cells[0] == heading)
    return rows


def test_there_are_blocks_to_execute() -> None:
    assert len(blocks("README.md", *SHELL)) >= 3
    assert len(blocks("README.md", "python")) >= 2
    assert sum(len(blocks(name, "python")) for name in NAMES) >= 6
    lines = [words for name in NAMES for _, block in blocks(name, *SHELL) for words in shell_lines(block)]
    assert sum(condistill_arguments(words) is not None for words in lines) >= 10


@pytest.mark.parametrize("name", NAMES)
def test_every_shell_line_is_a_valid_command(name: str) -> None:
    for _, block in blocks(name, *SHELL):
        for words in shell_lines(block):
            arguments = condistill_arguments(words)
            if arguments is not None:
                COMMANDS[arguments[0]].make_context(arguments[0], arguments[1:])
            elif words[0] == "make":
                assert set(words[1:]) <= set(TARGETS), words
            else:
                assert words == ["source", ".venv/bin/activate"] or words[:2] in (["pip", "install"], ["git", "clone"])


@pytest.mark.parametrize("name", NAMES)
def test_every_make_target_in_a_document_exists(name: str) -> None:
    assert set(re.findall(r"`make ([\w-]+)", (ROOT / name).read_text(encoding="utf-8"))) <= set(TARGETS)


def init_tiny(arguments: list[str]) -> None:
    """Run `condistill init`, and make its recipe tiny."""
    run_command(arguments)
    path = Path(arguments[arguments.index("--out") + 1] if "--out" in arguments else "recipe.yaml")
    recipe = merge(yaml.safe_load(path.read_text(encoding="utf-8")), KNOBS)
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")


def run_command(arguments: list[str]) -> None:
    code: Any = None
    try:
        cli.main(arguments)
    except SystemExit as exited:
        code = exited.code
    assert not code, arguments


def execute(name: str) -> int:
    """Run the blocks of a document in the working directory, in their order, and return how many were run."""
    count = 0
    for language, block in blocks(name, "python", *SHELL):
        if language == "python":
            exec(compile(block, f"{name}, Python block", "exec", dont_inherit=True), {"__name__": "__main__"})
            count += 1
            continue
        for words in shell_lines(block):
            arguments = condistill_arguments(words)
            if arguments is None or words[0] == "accelerate" or arguments[0] in NOT_RUN:
                continue
            arguments = [word.replace(HUB_CLIP, "clip") for word in arguments]
            (init_tiny if arguments[0] == "init" else run_command)(arguments)
            count += 1
    return count


def documents_with_code() -> list[Any]:
    found = []
    for name in NAMES:
        lines = [words for _, block in blocks(name, *SHELL) for words in shell_lines(block)]
        commands = [arguments[0] for words in lines if (arguments := condistill_arguments(words))]
        if blocks(name, "python") or set(commands) - set(NOT_RUN):
            marks = [pytest.mark.slow] if name in RUNS_A_RECIPE | STARTS_COMMANDS else []
            found.append(pytest.param(name, marks=marks))
    return found


@pytest.mark.usefixtures("own_registries")
@pytest.mark.parametrize("name", documents_with_code())
def test_the_blocks_of_a_document_run(
    name: str,
    tmp_path: Path,
    tiny_pipeline_dir: Path,
    tiny_prompts: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_pipeline_dir, "my-pipeline")
    Path("my-pipeline/sampling.json").write_text('{"num_inference_steps": 4}', encoding="utf-8")  # not the call's 50
    Path("prompts.txt").write_text("\n".join(tiny_prompts) + "\n", encoding="utf-8")
    if any(HUB_CLIP in block for _, block in blocks(name, *SHELL)):
        write_clip(Path("clip"))
    if not any("condistill init" in block for _, block in blocks(name, *SHELL)):
        init_tiny(["init", "./my-pipeline", "--prompts", "prompts.txt"])
    assert execute(name) > 0


@pytest.mark.parametrize("name", NAMES)
def test_every_relative_link_points_to_a_file(name: str) -> None:
    document = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        if "://" not in target and not target.startswith("#"):
            assert (document.parent / target.partition("#")[0]).is_file(), target


def test_every_document_can_be_reached_from_the_readme() -> None:
    reached, waiting = set(), [README]
    while waiting:
        document = waiting.pop().resolve()
        if document in reached or document.suffix != ".md":
            continue
        reached.add(document)
        targets = re.findall(r"\]\(([^)\s#]+)", document.read_text(encoding="utf-8"))
        waiting += [document.parent / target for target in targets if "://" not in target]
    assert {document.resolve() for document in DOCUMENTS} <= reached


def test_every_test_that_the_page_on_reliability_names_exists() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    file, named = "tests/workflow/test_damaged_runs.py", 0
    for found in re.finditer(r"`(?:(tests/[\w/]+\.py))?(?:(?:::)?(test_\w+))?`", text):
        file = found[1] or file
        if found[1] is None and "::" not in found[0]:
            file = "tests/workflow/test_damaged_runs.py"
        content = (ROOT / file).read_text(encoding="utf-8")
        assert found[2] is None or f"def {found[2]}(" in content, found[0]
        named += 1
    assert named > 100


def texts_of_the_source() -> str:
    """Return all texts of the package, those of f-strings with an empty place for each value."""
    found = []
    for file in sorted((ROOT / "src" / "condistill").rglob("*.py")):
        for node in nodes_of(file):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n\n".join(found)


def test_every_message_that_the_page_on_troubleshooting_quotes_is_in_the_source() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    cells = [row[0] for row in table(text, "message")]
    quoted = [words for cell in cells for words in re.findall(r'"([^"]+)"', cell)]
    assert len(cells) >= 35
    assert all('"' in cell for cell in cells)
    source = texts_of_the_source()
    assert [words for words in quoted if words not in source] == []


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) < 200


def test_the_table_of_commands_lists_every_command() -> None:
    listed = [row[0] for row in table((ROOT / "docs" / "commands.md").read_text(encoding="utf-8"), "command")]
    assert listed == [f"condistill {name}" for name in EXAMPLES]


def settings_of(annotation: Any) -> list[type[Settings]]:
    """Return the settings classes in the annotation of a field; for a mapping, those of its values."""
    if annotation is ScheduleSettings:
        return list(SCHEDULES.values())
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    return [model for part in get_args(annotation) for model in settings_of(part)]


def defaults(model: type[Settings], place: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted key and the default of each setting, as the table shows them.

    For a key of several members of a union, the first one counts.
    """
    for name, field in model.model_fields.items():
        key = f"{place}{field.alias or name}"
        inner = settings_of(field.annotation)
        for part in inner:
            yield from defaults(part, f"{key}.{'NAME.' if key == 'variants' else ''}")
        if inner:
            continue
        value = field.get_default(call_default_factory=True)
        if value is PydanticUndefined:
            yield key, "required"
        else:
            value = list(value) if isinstance(value, tuple) else value
            text = yaml.safe_dump(value, default_flow_style=True).partition("\n")[0]
            yield key, value if isinstance(value, str) else text


def test_the_recipe_tables_list_every_setting_with_its_default() -> None:
    expected: dict[str, str] = {}
    for key, value in defaults(Recipe):
        expected.setdefault(key, value)
    rows = table((ROOT / "docs" / "recipe.md").read_text(encoding="utf-8"), "setting")
    assert [row[0] for row in rows] == list(expected)
    assert {row[0]: row[1] for row in rows} == expected


def test_the_yaml_blocks_are_parts_of_a_valid_recipe() -> None:
    found = [block for name in NAMES for _, block in blocks(name, "yaml")]
    assert found
    whole = {"teacher": {"pipeline": "miniature"}, "prompts": {"files": ["miniature"]}, "student": {"width": 0.5}}
    for block in found:
        part = yaml.safe_load(block)
        rest = whole | {"student": {}} if "target" in part.get("student", {}) else whole  # a target chooses the width
        recipe = Recipe.from_dict(merge(rest, part))
        assert all(recipe.variant(name) for name in recipe.variants)
