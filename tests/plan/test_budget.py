from __future__ import annotations

import pytest

from condistill.errors import CondistillError
from condistill.plan.budget import parse_budget


@pytest.mark.parametrize(
    ("text", "hours"), [("30m", 0.5), ("2h", 2), ("48h", 48), ("7d", 168), ("1w", 168), (" 1.5 H ", 1.5)]
)
def test_a_budget_is_a_number_with_a_unit(text: str, hours: float) -> None:
    assert parse_budget(text) == 3600 * hours


@pytest.mark.parametrize("text", ["", "2", "h", "two hours", "-2h", "1e9h", "2h30m", "nan h", "2s", "٢h"])
def test_other_texts_are_refused_with_examples(text: str) -> None:
    with pytest.raises(CondistillError, match=r"give a number and a unit, m .*: 30m, 2h, 48h, 7d, 1w"):
        parse_budget(text)


@pytest.mark.parametrize("text", ["0h", "0.0d", "521w"])
def test_a_budget_is_above_zero_and_at_most_ten_years(text: str) -> None:
    with pytest.raises(CondistillError, match="must be above 0 and at most 520w, ten years"):
        parse_budget(text)
