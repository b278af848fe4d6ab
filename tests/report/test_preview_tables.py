from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from grids import write_previews

from condistill.distill.previews import PreviewFolder
from condistill.report.previews import MOST_ROWS, preview_tables


def test_a_table_has_the_teacher_and_a_row_per_time(tmp_path: Path) -> None:
    folder = write_previews(tmp_path / "a", [0, 500])
    (table,) = preview_tables({"small": folder, "other": PreviewFolder(tmp_path / "b")})
    assert table.name == "small"
    assert [row.label for row in table.rows] == ["teacher", "step 0", "step 500"]
    assert all(uri.startswith("data:image/webp;base64,") for row in table.rows for uri in row.uris)
    assert table.prompts == [("seen", "<b>a seen prompt</b>"), ("unseen", "<b>a unseen prompt</b>")]


@pytest.mark.parametrize("count", [7, 8, 9, 40])
def test_many_previews_are_thinned_evenly_with_the_first_and_the_last(tmp_path: Path, count: int) -> None:
    (table,) = preview_tables({"small": write_previews(tmp_path, [100 * n for n in range(count)])})
    steps = [int(row.label.removeprefix("step ").replace(",", "")) for row in table.rows[1:]]
    assert len(steps) == min(count, MOST_ROWS)
    assert (steps[0], steps[-1]) == (0, 100 * (count - 1))
    gaps = [later - earlier for earlier, later in pairwise(steps)]
    assert max(gaps) - min(gaps) <= 100


def test_a_damaged_grid_is_left_out_and_large_images_are_compressed(tmp_path: Path) -> None:
    folder = write_previews(tmp_path, [0, 500], side=128)
    folder.file(0).write_bytes(b"damaged")
    (table,) = preview_tables({"small": folder})
    assert [row.label for row in table.rows] == ["teacher", "step 500"]
    assert table.rows[0].uris[0].startswith("data:image/webp;base64,")
    folder.file(500).write_bytes(b"")
    assert preview_tables({"small": folder}) == []
