"""Tests of what follows an evaluation: images are decoded in pieces, and a model is loaded only for missing images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from evaluated import ToyFamily, toy_engine, toy_rounds
from PIL import Image

from condistill.evaluate.results import Job
from condistill.workflow.after_evaluation import write_images


def test_images_of_all_models_are_written_and_no_model_is_loaded_again(tmp_path: Path) -> None:
    family, rounds = ToyFamily(), toy_rounds(5, (7, 8))
    engine = toy_engine(tmp_path / "run", family, rounds=rounds, batch_size=2)
    engine.run()
    job = Job(engine, rounds, engine.tasks)
    write_images(engine.host, job, tmp_path / "images")  # type: ignore[arg-type]
    files = sorted((tmp_path / "images" / "small").glob("*.png"))
    assert [file.name for file in files] == [f"{index:012d}.png" for index in range(10)]
    with engine.subject(engine.tasks[1], tmp_path / "mapped", with_images=True) as subject:
        assert subject.images is not None
        expected = [subject.images(number, range(row, row + 1))[0] for number in (0, 1) for row in range(5)]
    for file, image in zip(files, expected, strict=True):
        assert (np.asarray(Image.open(file)) == image).all()
    decoded = family.decoded
    write_images(engine.host, job, tmp_path / "images")  # type: ignore[arg-type]
    assert family.decoded == decoded
