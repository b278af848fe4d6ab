"""The embedded default: a small world of captioned scenes, its teacher and its classifier."""

from pathlib import Path


def weights_path() -> Path:
    """Where the trained miniature lies: `teacher/`, a diffusers pipeline, and the classifier."""
    return Path(__file__).parent / "weights"
