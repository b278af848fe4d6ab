from __future__ import annotations

from pathlib import Path

import pytest
from forked import quick_python
from processes import check_two_processes


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one_with_the_same_global_batch(
    tiny_pipeline_dir: Path, tiny_prompts: list[str], tmp_path: Path
) -> None:
    # gradients are summed in another order: float32 keeps 7 digits, and four steps lose one or two
    cpu = {"ACCELERATE_USE_CPU": "true"}
    check_two_processes(tmp_path, tiny_pipeline_dir, tiny_prompts, environment=cpu, rel=1e-5, python=quick_python())
