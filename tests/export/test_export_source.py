from __future__ import annotations

import json
from pathlib import Path

import pytest

from condistill.errors import CondistillError
from condistill.export import find_source


def write_pipeline(folder: Path, pipeline_class: str, **components: tuple[str, str]) -> Path:
    """Write the configs of a pipeline alone."""
    for name, (_, class_name) in components.items():
        (folder / name).mkdir(parents=True)
        config = json.dumps({"_class_name": class_name})
        (folder / name / "config.json").write_text(config, encoding="utf-8")
    index = {"_class_name": pipeline_class, **{name: list(value) for name, value in components.items()}}
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


@pytest.mark.parametrize("component", ["transformer", "unet"])
def test_a_pipeline_of_no_teacher_family_is_found_by_the_usual_name_of_its_denoiser(
    tmp_path: Path, component: str
) -> None:
    parts = {"vae": ("diffusers", "SomeAutoencoder"), component: ("diffusers", "SomeDenoiser")}
    source = find_source(str(write_pipeline(tmp_path / "mine", "SomePipeline", **parts)))
    assert source.denoiser_name == component
    assert source.shape.denoiser_class == "SomeDenoiser"
    assert source.name == "mine"


def test_a_pipeline_without_a_denoiser_is_refused_with_the_names_that_it_may_have(tmp_path: Path) -> None:
    folder = write_pipeline(tmp_path / "mine", "SomePipeline", prior=("diffusers", "SomePrior"))
    with pytest.raises(CondistillError, match="SomePipeline is not known: it has neither transformer nor unet"):
        find_source(str(folder))
