from __future__ import annotations

from pathlib import Path

import pytest
from recipes import BASE

from condistill.config.recipe import Recipe
from condistill.errors import CondistillError


def test_a_tilde_in_files_and_teacher_is_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, folder = tmp_path / "home", tmp_path / "recipes"
    (home / "pipeline").mkdir(parents=True)
    folder.mkdir()
    monkeypatch.setenv("HOME", str(home))
    path = folder / "recipe.yaml"
    path.write_text(BASE.replace("miniature}", "~/pipeline}").replace("[miniature]", "['~/a.txt']"))
    recipe = Recipe.load(path, ["prompts.unseen_files=[~/b.txt]"])
    assert recipe.teacher.pipeline == str(home / "pipeline")
    assert recipe.prompts.every_file == (str(home / "a.txt"), str(home / "b.txt"))
    for override in ("prompts.files=[~nosuchuser/a.txt]", "teacher.pipeline=~nosuchuser/pipeline"):
        with pytest.raises(CondistillError, match=r"'~nosuchuser/.*there is no home directory for '~nosuchuser'"):
            Recipe.load(path, [override])
