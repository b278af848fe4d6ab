"""The command that evaluates: the students of a recipe, or finished pipelines of any origin."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from condistill.cli.app import DryRun, Overrides, Update, command, console, out_option, say, user_path
from condistill.cli.stages import show_cost_of, show_dry_run
from condistill.errors import CondistillError

if TYPE_CHECKING:
    from condistill.evaluate.protocols import Protocol
    from condistill.workflow.after_evaluation import Extras

_RECIPES = (".yaml", ".yml")
_WEIGHTS = (".safetensors", ".gguf", ".ckpt", ".bin", ".pt", ".pth", ".pkl")
_PROTOCOL_HELP = (
    "Evaluate by a protocol: coco-30k, unseen-animals, quick-look, prompt-set, or a YAML file. Results go to "
    "`evaluations/NAME` in the run directory."
)


def target(text: str) -> str:
    """Return the name of a recipe or a pipeline, with `~` replaced.

    Raises:
        CondistillError: it is empty, or the home directory is unknown.
    """
    if not text.strip():
        raise CondistillError("a name is empty; give a recipe, or pipelines: directories, hub names or miniature")
    return str(user_path(text)) if text.startswith("~") else text


def is_recipe(text: str) -> bool:
    """Return whether an argument names a recipe; otherwise it names a pipeline."""
    path = Path(text)
    return path.suffix.lower() in _RECIPES or (path.is_file() and path.suffix.lower() not in _WEIGHTS)


@dataclass(frozen=True)
class _Request:
    """What the options of the command say."""

    overrides: Sequence[str]
    out: Path | None
    protocol: str | None
    prompts: Sequence[Path]
    teacher: str | None
    scores: Sequence[Path]
    images: Path | None
    update: bool
    dry_run: bool


Targets = Annotated[
    list[str],
    typer.Argument(
        parser=target,
        metavar="RECIPE | PIPELINE...",
        help="Recipe file; or finished pipelines (directories, hub names), of which the first is the teacher.",
        show_default=False,
    ),
]
ResultsOut = Annotated[
    Optional[Path],  # noqa: UP045 - typer reads the annotation
    out_option("Run directory of a recipe. For pipelines: folder of the results, default `runs/evaluation-NAME`."),
]
ProtocolName = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(metavar="NAME|FILE", help=_PROTOCOL_HELP),
]
PromptFiles = Annotated[
    Optional[list[Path]],  # noqa: UP045
    typer.Option("--prompts", "-p", parser=user_path, metavar="FILE", help="Prompt file. Can be repeated."),
]
TeacherName = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--teacher", metavar="PIPELINE", help="Which of the pipelines the others are compared with."),
]
ScoreFile = Annotated[
    Optional[list[Path]],  # noqa: UP045
    typer.Option(
        "--scores",
        parser=user_path,
        metavar="FILE",
        help="Merge scores of the images that another program computed (JSON). Can be repeated.",
    ),
]
ImageFolder = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--images",
        parser=user_path,
        metavar="FOLDER",
        help="Write all images and their prompts there, for other programs.",
    ),
]


@command
def evaluate(
    targets: Targets,
    overrides: Overrides = None,
    out: ResultsOut = None,
    update: Update = False,
    dry_run: DryRun = False,
    *,
    protocol: ProtocolName = None,
    prompts: PromptFiles = None,
    teacher: TeacherName = None,
    scores: ScoreFile = None,
    images: ImageFolder = None,
) -> None:
    """Generate images with the teacher and every student, from the same prompts and noise, and compute the metrics.

    For a recipe, runs the stages before it if they are missing, and writes `evaluation/` and `metrics.json`. With a
    protocol, the results of the run stay, and those of the protocol have a folder of their own with a report.

    Finished pipelines of any origin need `--prompts`. All generate the same prompts from the same noise, and each is
    compared with the first one, or with `--teacher`.

    Protocols:

    - coco-30k: the paper's, 30,000 captions of MS-COCO at 25 steps, resized to 256 pixels

    - unseen-animals: coco-30k, with captions that name an animal as the unseen split

    - quick-look: 200 prompts of each split, enough for paired differences and too few for FID

    - prompt-set: every prompt of a table with a column of categories, such as PartiPrompts

    Reads the recipe, the pipelines and the prompt files.
    """
    request = _Request(
        overrides or (), out, protocol, prompts or (), teacher, scores or (), images, update=update, dry_run=dry_run
    )
    recipes = [each for each in targets if is_recipe(each)]
    if recipes and len(targets) > len(recipes):
        pipelines = [each for each in targets if each not in recipes]
        raise CondistillError(
            f"evaluate takes one recipe or several pipelines, and got the recipe {recipes[0]} and the pipeline "
            f"{pipelines[0]}; use two commands, or give the pipelines of the run"
        )
    if len(recipes) > 1:
        raise CondistillError(f"evaluate takes one recipe, and got {', '.join(recipes)}; use a command for each")
    if recipes:
        _evaluate_recipe(Path(recipes[0]), request)
    else:
        _evaluate_pipelines(targets, request)


def _extras(request: _Request) -> Extras:
    from condistill.workflow.after_evaluation import Extras

    return Extras(scores=tuple(request.scores), images=request.images)


def _protocol(request: _Request) -> Protocol | None:
    """Return the protocol of the command; prompt files without one are a protocol with the name of the first."""
    from condistill.evaluate.protocols import load_protocol, protocol_of_prompts
    from condistill.utils.home import resolve_path

    files = [str(path) if str(path) == "miniature" else str(resolve_path(path)) for path in request.prompts]
    if request.protocol is None:
        return protocol_of_prompts(files) if files else None
    return load_protocol(request.protocol).with_prompts(files)


def _evaluate_recipe(path: Path, request: _Request) -> None:
    """Evaluate the students of a recipe."""
    if request.teacher is not None:
        raise CondistillError("--teacher chooses among pipelines, and a recipe has its teacher; leave it out")
    from condistill.config.recipe import Recipe

    protocol = _protocol(request)
    if protocol is None:
        recipe, kept = Recipe.load(path, request.overrides), None
    else:
        of_run = [each for each in request.overrides if not each.strip().startswith("evaluate.")]
        kept = protocol.name, Recipe.load(path, of_run)
        protocol.check(kept[1].evaluate, request.overrides)
        recipe = Recipe.load(path, [*protocol.overrides(), *request.overrides])
    out = request.out or Path("runs") / path.stem
    if request.dry_run:
        show_dry_run(recipe, "evaluate", out)
        return
    from condistill.workflow.evaluate_recipe import evaluate_recipe

    evaluate_recipe(
        recipe,
        out,
        protocol=kept,
        extras=_extras(request),
        update=request.update,
        console=console,
        before_training=partial(show_cost_of, ask=False),
    )


def _evaluate_pipelines(sources: Sequence[str], request: _Request) -> None:
    """Evaluate finished pipelines."""
    if request.dry_run:
        raise CondistillError("--dry-run plans the run of a recipe, and finished pipelines have none; leave it out")
    if missing := [each for each in sources if _is_missing(each)]:
        raise CondistillError(
            f"there is no recipe and no pipeline {missing[0]}; give a recipe file (.yaml), or pipelines: directories, "
            "hub names such as org/model, or miniature"
        )
    from condistill.evaluate.protocols import evaluate_settings
    from condistill.workflow.evaluate_pipelines import evaluate_pipelines

    protocol = _protocol(request)
    settings = evaluate_settings(protocol, request.overrides)
    if not settings.prompt_files:
        raise CondistillError("pipelines have no prompts of their own; add --prompts FILE")
    name = protocol.name if protocol else Path(settings.prompt_files[0]).stem
    path = evaluate_pipelines(
        sources,
        settings,
        request.out or Path("runs") / f"evaluation-{name}",
        teacher=request.teacher,
        extras=_extras(request),
        update=request.update,
        console=console,
    )
    if os.environ.get("RANK", "0") == "0":
        say(f"results: {path}")


def _is_missing(source: str) -> bool:
    """Return whether a source is neither on the disk, nor the name of a hub repository or of the miniature."""
    return source != "miniature" and not Path(source).exists() and (source.count("/") != 1 or source.startswith("."))
