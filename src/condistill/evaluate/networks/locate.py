"""Find all networks of a recipe at once, before anything is loaded, and report everything that is missing."""

from __future__ import annotations

from collections.abc import Iterator

from condistill.config.evaluate import EvaluateSettings, NetworkSettings
from condistill.errors import CondistillError
from condistill.evaluate.metrics.metric import INCEPTION
from condistill.evaluate.networks.network import NETWORKS, LocatedNetwork
from condistill.evaluate.reference_images import ReferenceFolder, ReferenceImages, ReferenceStatistics
from condistill.utils.format import byte_size


def sources_of(networks: NetworkSettings) -> dict[str, str]:
    """Return the path or hub name of every network that a recipe names."""
    return {name: source for name, source in networks.model_dump(exclude_none=True).items() if name in NETWORKS}


def locate_networks(networks: NetworkSettings, *, download: bool = True) -> dict[str, LocatedNetwork]:
    """Return the networks of a recipe by name; nothing is loaded.

    Args:
        download: False: weights that the hub has and this disk has not are not downloaded.

    Raises:
        CondistillError: a line for each network that is missing, with its file, source and size.
    """
    found, problems = _locate(networks, download=download)
    _raise(problems)
    return found


def check_evaluation_files(
    settings: EvaluateSettings, *, image_size: tuple[int, int] | None = None, download: bool = True
) -> tuple[str, ...]:
    """Check every file that an evaluation reads, and return lines about what the run will download.

    Args:
        image_size: height and width of generated images; None: not known.
        download: see `locate_networks`.

    Raises:
        CondistillError: a line for each network and for the reference that cannot be used.
    """
    located, problems = _locate(settings.networks, download=download)
    if settings.reference is not None:
        try:
            check_reference(ReferenceImages.open(settings.reference, settings), settings, image_size)
        except CondistillError as error:
            problems.append(str(error))
    if settings.resize is not None and not sources_of(settings.networks):
        problems.append(
            f"evaluate.resize is {settings.resize}, and no network reads the images; set evaluate.networks.inception "
            "or another network, or leave out evaluate.resize"
        )
    _raise(problems)
    return tuple(download_lines(located))


def _locate(networks: NetworkSettings, *, download: bool) -> tuple[dict[str, LocatedNetwork], list[str]]:
    """Return the networks that are found, and why others are not."""
    found, problems = {}, []
    for name, source in sources_of(networks).items():
        try:
            found[name] = NETWORKS[name].locate(source, download=download)
        except CondistillError as error:
            problems.append(str(error))
    return found, problems


def _raise(problems: list[str]) -> None:
    """Raise an error for all problems at once, if there are any."""
    if len(problems) == 1:
        raise CondistillError(problems[0])
    if problems:
        lines = "".join(f"\n  {line}" for line in problems)
        raise CondistillError(f"{len(problems)} files of the section evaluate cannot be used:{lines}")


def check_reference(found: ReferenceImages, settings: EvaluateSettings, image_size: tuple[int, int] | None) -> None:
    """Check that some network reads the reference images, and that they have the size of generated ones.

    Raises:
        CondistillError: they have not, or none does.
    """
    sources = sources_of(settings.networks)
    if isinstance(found, ReferenceStatistics) and INCEPTION not in sources:
        raise CondistillError(
            f"evaluate.reference: {found.source} has statistics of Inception features, and evaluate.networks.inception "
            "is not set; set it, or give a folder of images"
        )
    if not sources:
        raise CondistillError(
            f"evaluate.reference is {found.source}, and no network reads the images; set evaluate.networks.inception "
            "or another network, or leave out the reference"
        )
    if image_size is None or settings.resize is not None or not isinstance(found, ReferenceFolder):
        return
    if found.size != image_size:
        (height, width), (own_height, own_width) = found.size, image_size
        raise CondistillError(
            f"evaluate.reference: images of {found.source} have {width}x{height} pixels and generated ones "
            f"{own_width}x{own_height}, so their features would differ by the size alone; set evaluate.resize, to "
            f"{min(height, width, own_height, own_width)} for example"
        )


def download_lines(located: dict[str, LocatedNetwork]) -> Iterator[str]:
    """Yield a line for each network that the run will download."""
    for name, network in located.items():
        if network.download_bytes:
            yield (
                f"evaluate.networks.{name}: the run will download {byte_size(network.download_bytes)} of "
                f"{network.source}"
            )
