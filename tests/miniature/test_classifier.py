from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from condistill.miniature import weights_path
from condistill.miniature.classifier import WEIGHTS_NAME, Classifier, MiniatureClassifier, classify_images, to_tensor
from condistill.miniature.world import ATTRIBUTES, all_scenes, render

SCENES = all_scenes()[::233]


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Classifier(width=24).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return render(SCENES, seed=9)


def test_images_are_scaled_to_minus_1_to_1() -> None:
    image = np.zeros((1, 2, 2, 3), np.uint8)
    image[0, 0, 1] = 255, 0, 51
    tensor = to_tensor(image)
    assert tensor.shape == (1, 3, 2, 2)
    assert tensor[0, :, 0, 1].tolist() == pytest.approx([1, -1, -0.6])


def test_there_is_one_logit_per_word_of_every_attribute(classifier: Classifier, images: np.ndarray) -> None:
    tensor = to_tensor(images[:2])
    assert classifier.features(tensor).shape == (2, 128)
    assert {name: tuple(logits.shape) for name, logits in classifier(tensor).items()} == {
        name: (2, len(words)) for name, words in ATTRIBUTES.items()
    }


def test_an_attribute_is_correct_where_the_largest_logit_is_that_of_the_scenes_word(
    classifier: Classifier, images: np.ndarray
) -> None:
    correct, features = classify_images(classifier, images, SCENES)
    logits = classifier(to_tensor(images))
    for attribute in ATTRIBUTES:
        best = [ATTRIBUTES[attribute][i] for i in logits[attribute].argmax(1).tolist()]
        expected = [word == getattr(scene, attribute) for word, scene in zip(best, SCENES, strict=True)]
        assert correct[attribute].tolist() == expected
    every = np.array([correct[attribute] for attribute in ATTRIBUTES]).all(0)
    np.testing.assert_array_equal(correct["all_correct"], every)
    assert features.dtype == np.float64
    assert features.shape == (len(SCENES), 128)


def test_classification_does_not_depend_on_the_batch_size(classifier: Classifier, images: np.ndarray) -> None:
    (correct, features), (correct_at_once, features_at_once) = (
        classify_images(classifier, images, SCENES, batch_size=n) for n in (3, 100)
    )
    np.testing.assert_allclose(features, features_at_once, rtol=1e-4, atol=1e-5)
    for attribute, flags in correct.items():
        np.testing.assert_array_equal(flags, correct_at_once[attribute])


def test_every_image_needs_a_scene(classifier: Classifier, images: np.ndarray) -> None:
    with pytest.raises(ValueError, match="2 images for 1 scenes"):
        classify_images(classifier, images[:2], SCENES[:1])


def test_a_classifier_is_saved_in_float16_and_loads_again(classifier: Classifier, tmp_path: Path) -> None:
    classifier.save(tmp_path)
    with safe_open(tmp_path / WEIGHTS_NAME, framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
        assert {k: tuple(v) for k, v in json.loads(file.metadata()["attributes"]).items()} == ATTRIBUTES
    loaded = Classifier.load(tmp_path)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    for name, tensor in classifier.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.half().float())


def test_images_are_compared_with_their_captions(classifier: Classifier, images: np.ndarray, tmp_path: Path) -> None:
    classifier.save(tmp_path)
    captions = [scene.caption(i % 6) for i, scene in enumerate(SCENES)]
    miniature = MiniatureClassifier(tmp_path)
    correct, features = miniature.classify(images, captions)
    expected, expected_features = classify_images(Classifier.load(tmp_path), images, SCENES)
    assert set(correct) == set(miniature.attributes)
    np.testing.assert_array_equal(correct["all_correct"], expected["all_correct"])
    np.testing.assert_array_equal(features, expected_features)
    np.testing.assert_array_equal(miniature.reference(captions, seed=9), expected_features)
    with pytest.raises(ValueError, match="has no word for shape"):
        miniature.classify(images[:1], ["a dog"])


def test_the_shipped_classifier_recognises_renders() -> None:
    if not (weights_path() / WEIGHTS_NAME).exists():
        pytest.skip("the classifier has no weights; `python tools/train_miniature.py` makes them")
    scenes = all_scenes()[::72]
    correct, _ = MiniatureClassifier().classify(render(scenes, seed=123), [scene.caption() for scene in scenes])
    assert correct["all_correct"].mean() >= 0.97
