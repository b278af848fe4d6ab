"""The page of finished runs, which only reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from condistill.errors import CondistillError
from condistill.report.figures import FOLDER_NAME
from condistill.report.html import GENERATOR, write_report
from condistill.report.several import incomparable, joined, load_run, page_verdict
from condistill.report.stage import REPORT_NAME
from condistill.run.directory import MARK_NAME

DEFAULT_FOLDER = Path("runs", "comparison")


def report_of_runs(paths: Sequence[Path], out: Path | None, *, say: Callable[[str], None] = lambda _: None) -> Path:
    """Write one page of finished runs with its plots, and return its path.

    The page of one run directory replaces its `report.html`, unless `out` names another folder.

    Args:
        paths: run directories, or recipes whose runs are in `runs/NAME`.
        out: folder of the page; None: that of the only run, or `runs/comparison`.

    Raises:
        CondistillError: a run has no finished evaluation, a path is given twice, or a file is no report of ours.
    """
    resolved = [path.resolve() for path in paths]
    if twice := next((path for path, known in zip(paths, resolved, strict=True) if resolved.count(known) > 1), None):
        raise CondistillError(f"{twice} is given twice; give every run once")
    runs = [load_run(path) for path in paths]
    folder = out or (paths[0] if len(paths) == 1 else DEFAULT_FOLDER)
    is_own = len(paths) == 1 and folder.resolve() == resolved[0]
    _check_folder(folder, is_own=is_own)
    page = joined(runs)
    path = write_report(folder / REPORT_NAME, page, plots=folder / FOLDER_NAME)
    headline, sentences = page_verdict(page)
    for line in (headline, *incomparable(page), " ".join(sentences)):
        if line:
            say(line)
    return path


def _check_folder(folder: Path, *, is_own: bool) -> None:
    """Check that a page may be written to a folder: no file of the user's, and no page of another run, is replaced.

    Args:
        is_own: whether it is the directory of the only run.
    """
    if folder.exists() and not folder.is_dir():
        raise CondistillError(f"--out {folder} is a file; give a folder for {REPORT_NAME} and {FOLDER_NAME}/")
    if not is_own and (folder / MARK_NAME).exists():
        raise CondistillError(f"--out {folder} is a run directory, which has a report of its own; give another folder")
    page = folder / REPORT_NAME
    if page.exists() and GENERATOR not in page.read_text(encoding="utf-8", errors="replace")[:4000]:
        raise CondistillError(f"{page} is not a report of condistill, so it is not replaced; give another --out")
