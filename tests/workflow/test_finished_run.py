"""What a user sees of a finished run; the run is shared by all tests of this folder."""

from __future__ import annotations

import pytest
from runs import Run

from condistill.evaluate.metrics import METRICS
from condistill.evaluate.record import Evaluation
from condistill.evaluate.references import OTHER_SEED, untrained


@pytest.mark.slow
def test_a_run_keeps_the_references_of_every_student(finished: Run) -> None:
    evaluation = Evaluation.load(finished.out)
    assert evaluation.references is not None
    assert evaluation.references.images_per_split == {"seen": 2, "unseen": 2, "all": 4}
    metric = METRICS["latent_rmse"]
    for name in evaluation.students:
        before = evaluation.before_training(name, "unseen", metric)
        assert before is not None
        assert before.value > 0
        assert (finished.out / "evaluation" / "latents" / untrained(name) / "stage.json").is_file()
    other = evaluation.of_other_seed("unseen", metric)
    assert other is not None
    assert other.value > 0
    assert (finished.out / "evaluation" / "latents" / OTHER_SEED).is_dir()
