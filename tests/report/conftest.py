from __future__ import annotations

import pytest


@pytest.fixture
def no_score_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the plots of scores against costs, which take most of the time."""
    monkeypatch.setattr("condistill.report.figures._score_plots", lambda *_: [])
