"""The embedded default: a small world of captioned scenes, its teacher and its judge."""

from pathlib import Path


def weights_path() -> Path:
    """Where the trained miniature lies: `teacher/`, a diffusers pipeline, and the judge."""
    return Path(__file__).parent / "weights"
