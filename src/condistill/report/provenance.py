"""How the figures of a run were made, as labelled lines."""

from __future__ import annotations

from importlib import metadata

from condistill.config.recipe import SPLITS
from condistill.evaluate.record import Evaluation
from condistill.report.inputs import ReportInputs
from condistill.utils.format import significant


def provenance(inputs: ReportInputs) -> list[tuple[str, str]]:
    """Return labelled lines on how the figures were made."""
    evaluation = inputs.evaluation
    images = {split: evaluation.images_per_split[split] for split in SPLITS if split in evaluation.images_per_split}
    scores = [
        score for model in evaluation.models.values() for scores in model.scores.values() for score in scores.values()
    ]
    spread = "one standard deviation over the seeds; each has its own prompts and noise"
    interval = "95 % interval over the prompts"
    reference = evaluation.reference_images
    lines = [
        ("Teacher", inputs.recipe.teacher.pipeline if inputs.recipe else ""),
        *((f"Pipeline {name}", pipeline) for name, pipeline in inputs.pipelines.items()),
        ("Images per split", ", ".join(f"{split} {count:,}" for split, count in images.items())),
        ("Seeds", ", ".join(map(str, evaluation.seeds))),
        ("± in the tables", spread if any(score.spread is not None for score in scores) else ""),
        ("Two numbers with “to”", interval if any(score.low is not None for score in scores) else ""),
        ("Too close to call", _error(evaluation, min(images.values(), default=0))),
        *((f"Network {name}", _network(evaluation, name)) for name in evaluation.networks),
        ("Reference images", f"{reference.source}, {reference.images:,} images" if reference else ""),
        ("Time per image", _timing(evaluation, take_turns=not inputs.pipelines)),
        ("Precision", f"images, times and peak memory are of weights in {evaluation.dtype}"),
        ("Inference steps", str(evaluation.num_inference_steps)),
        ("Guidance scale", str(evaluation.guidance_scale)),
        ("Starting noise", "the same for every model, prompt by prompt"),
        ("Device", evaluation.device),
        ("torch", evaluation.torch),
        ("condistill", metadata.version("condistill")),
    ]
    return [(label, text) for label, text in lines if text]


def _network(evaluation: Evaluation, name: str) -> str:
    network = evaluation.networks[name]
    return f"{network.source} ({network.resize}; SHA-256 {network.sha256[:12]})"


def _error(evaluation: Evaluation, images: int) -> str:
    """Return which differences between scores count, and the largest standard error of a share of this many images."""
    rule = "scores that differ by two standard errors of their difference or less"
    if evaluation.comparisons:
        rule = f"differences, image by image, whose 95 % interval holds 0; for metrics of sets of images, {rule}"
    shares = [metric for metric in evaluation.metrics if metric.sampling_error(0.5, images) is not None]
    if not shares:
        return rule
    error = max(metric.notation.factor * (metric.sampling_error(0.5, images) or 0.0) for metric in shares)
    return f"{rule}; a share of {images:,} images has a standard error of up to {significant(error, 2)} points"


def _timing(evaluation: Evaluation, *, take_turns: bool) -> str:
    """Return how the time of an image was measured."""
    rounds = sorted({model.speed.rounds for model in evaluation.models.values()})
    return (
        f"the shortest of {' or '.join(map(str, rounds))} rounds"
        f"{' in which the models take turns' if take_turns else ', one model after the other'}, and the median; times "
        "that differ by less than this spread, or by less than 5 %, count as equal, and so do equal networks"
    )
