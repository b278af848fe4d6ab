from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from condistill.miniature.world import (
    ATTRIBUTES,
    COLOURS,
    IMAGE_SIZE,
    SHAPES,
    TEMPLATES,
    UNSEEN_SHAPES,
    Scene,
    all_captions,
    all_scenes,
    parse,
    render,
)

scenes = st.builds(Scene, **{name: st.sampled_from(words) for name, words in ATTRIBUTES.items()})


def test_the_world_has_7200_scenes_and_six_captions_of_each() -> None:
    assert len(SHAPES) >= 12
    assert len(COLOURS) >= 10
    assert len(set(all_scenes())) == 7200
    captions = all_captions()
    assert len(captions) == len(set(captions)) == 43_200


def test_a_quarter_of_the_shapes_is_unseen() -> None:
    assert set(UNSEEN_SHAPES) < set(SHAPES)
    assert 4 * len(UNSEEN_SHAPES) == len(SHAPES)


def test_a_word_belongs_to_one_attribute_and_is_in_no_template() -> None:
    words = [word for names in ATTRIBUTES.values() for word in names]
    assert len(words) == len(set(words))
    bare = {word for template in TEMPLATES for word in template.split() if not word.startswith("{")}
    assert not bare & set(words)


def test_every_template_names_every_attribute_once() -> None:
    for template in TEMPLATES:
        assert all(template.count(f"{{{name}}}") == 1 for name in ATTRIBUTES)


@settings(max_examples=100, deadline=None)
@given(scenes, st.integers(0, len(TEMPLATES) - 1), st.booleans())
def test_a_scene_can_be_read_from_each_of_its_captions(scene: Scene, template: int, upper: bool) -> None:
    caption = scene.caption(template)
    assert parse(caption.upper() if upper else caption) == scene


def test_labels_are_indices_into_the_lists_of_words() -> None:
    for scene in all_scenes()[::97]:
        named = [names[label] for names, label in zip(ATTRIBUTES.values(), scene.labels(), strict=True)]
        assert named == [getattr(scene, attribute) for attribute in ATTRIBUTES]


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("a large red dog at the top on snow", "has no word for shape; .* exactly one of circle, square"),
        ("a large red blue star at the top on snow", "has red and blue for colour"),
        ("", "has no word for shape"),
        ("a large red starfish at the top on snow", "has no word for shape"),
    ],
)
def test_a_text_that_is_not_a_caption_is_refused_with_the_missing_attribute(caption: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(caption)


def test_renders_depend_on_the_seed_and_the_image_alone() -> None:
    some = all_scenes()[::900]
    images = render(some, seed=3)
    assert images.shape == (8, IMAGE_SIZE, IMAGE_SIZE, 3)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, render(some, seed=3))
    np.testing.assert_array_equal(images[:3], render(some[:3], seed=3))


def test_the_same_scene_varies_from_image_to_image_and_from_seed_to_seed() -> None:
    scene = Scene("star", "red", "large", "centre", "snow")
    images = [*render([scene] * 3, seed=0), *render([scene] * 3, seed=1)]
    for a, b in itertools.combinations(images, 2):
        assert np.abs(a.astype(int) - b).mean() > 1


def variations(scene: Scene, attribute: str) -> list[Scene]:
    """Return the scene with every word of one attribute."""
    words = {name: getattr(scene, name) for name in ATTRIBUTES}
    return [Scene(**{**words, attribute: word}) for word in ATTRIBUTES[attribute]]


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_every_word_of_an_attribute_looks_different(attribute: str) -> None:
    varied = variations(Scene("circle", "red", "large", "left", "snow"), attribute)
    images = np.concatenate([render([scene], seed=5) for scene in varied]).astype(int)  # equal jitter
    for a, b in itertools.combinations(images, 2):
        assert (np.abs(a - b).max(-1) > 15).mean() > 0.01


@pytest.mark.parametrize("shape", SHAPES)
def test_most_of_every_shape_is_in_the_image_at_every_place(shape: str) -> None:
    scenes_of = [Scene(shape, "black", "large", place, "snow") for place in ATTRIBUTES["place"]]
    dark_pixels = {scene.place: (render([scene] * 4, seed=2).sum(-1) < 300).sum() for scene in scenes_of}
    assert dark_pixels["centre"] > 4 * 200
    assert all(count > 0.75 * dark_pixels["centre"] for count in dark_pixels.values())
