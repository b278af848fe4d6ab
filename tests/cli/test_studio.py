from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from condistill import cli
from condistill.studio import run as command

PASSWORD = "CONDISTILL_STUDIO_PASSWORD"


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return what the command prints before it fails."""
    with pytest.raises(SystemExit) as exited:
        cli.main(["studio", *arguments])
    assert exited.value.code == 1
    return " ".join(capsys.readouterr().err.split())


@pytest.fixture(autouse=True)
def gradio_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PASSWORD, raising=False)
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: name)


def test_without_gradio_the_message_names_the_extra(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Any = importlib.util.find_spec
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None if name == "gradio" else real(name))
    assert 'the studio needs gradio: pip install "condistill[studio]"' in error_of(capsys, "miniature")


def test_an_address_that_others_reach_is_refused_without_a_password(capsys: pytest.CaptureFixture[str]) -> None:
    message = error_of(capsys, "miniature", "--host", "0.0.0.0")
    assert "--host 0.0.0.0 lets other machines use the studio, so it needs a password" in message
    assert PASSWORD in message


def test_a_short_password_is_refused_wherever_it_comes_from(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "the password has 3 characters" in error_of(capsys, "miniature", "--password", "abc")
    monkeypatch.setenv(PASSWORD, "abcd")
    assert "the password has 4 characters" in error_of(capsys, "miniature", "--host", "0.0.0.0")
