"""The embedded default: a small world of captioned scenes, its teacher and its classifier."""

from pathlib import Path


def weights_path() -> Path:
    """Return the folder of the trained miniature: `teacher/`, a diffusers pipeline, and the classifier's weights."""
    return Path(__file__).parent / "weights"
