"""Score the images that `condistill evaluate ... --images FOLDER` wrote, in any environment.

    python score_images.py FOLDER scores.json

Replace `score` by a real one: HPSv3, VQAScore, GenEval 2. This one prefers colourful images, and needs Pillow only.
"""

import json
import sys
from pathlib import Path

from PIL import Image, ImageStat


def score(image: Image.Image, prompt: str) -> float:  # noqa: ARG001
    """Return the mean spread of the colours; a real scorer also reads the prompt."""
    return sum(ImageStat.Stat(image.convert("RGB")).stddev) / 3


def main(folder: str, out: str) -> None:
    rows = []
    for model in sorted(path for path in Path(folder).iterdir() if path.is_dir()):
        for line in (model / "metadata.jsonl").read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            image = Image.open(model / entry["file_name"])
            value = score(image, entry["prompt"])
            rows.append({"model": model.name, "image": entry["file_name"], "colourfulness": value})
    metric = {"label": "Colourfulness", "direction": "higher", "description": "spread of the colours of an image"}
    content = {"format": 1, "metrics": {"colourfulness": metric}, "scores": rows}
    Path(out).write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
