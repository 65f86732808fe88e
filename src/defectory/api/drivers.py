"""Extracts, tunes and compares the drivers of a project, and measures whether they leak."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from defectory.api.project import Project
from defectory.errors import ConfigError
from defectory.events import Work
from defectory.files import write_json
from defectory.runs.layout import TUNED_DRIVERS

if TYPE_CHECKING:
    from defectory.drivers.leakage import Leakage
    from defectory.drivers.tune import Candidate


@dataclass(frozen=True, kw_only=True)
class TunedDrivers:
    """Choices of driver constants, each with its measurements.

    Attributes:
        choices: all choices, the best first.
        present: the project's own choice.
        file: JSON file with all choices, in the run folder.
    """

    choices: tuple[Candidate, ...]
    present: Candidate
    file: Path

    @property
    def best(self) -> Candidate:
        """Return the best choice."""
        return self.choices[0]

    @property
    def changed(self) -> dict[str, Any]:
        """Return the settings of the section `drivers` in which the best choice differs from the project's own."""
        own, best = (of.config.model_dump(mode="json") for of in (self.present, self.best))
        return {key: value for key, value in best.items() if value != own[key]}


def extract_drivers(
    project: Project | None = None,
    *,
    images: Sequence[Path | str] = (),
    mask: Path | str | None = None,
    subset: Literal["train", "pool"] = "train",
    limit: int = 64,
    whole: bool = False,
    out: Path | str,
) -> list[tuple[str, str]]:
    """Write drivers of images, or of a project's tiles, as PNG files.

    Args:
        project: whose settings, tile size and classes are used. None takes the defaults, and needs `images`.
        images: files or folders; none takes tiles of the project, which must have been cut.
        mask: painted on each image: class numbers, or 0 and 255.
        subset: which tiles of the project.
        limit: at most this many tiles.
        whole: extract one driver of each whole image, not of its middle at the tile size.
        out: folder: new, empty, or an earlier extraction, which is replaced as a whole.

    Returns:
        The name of each file, with the prompt that goes with it; the prompt of a tile is empty.

    Raises:
        ConfigError: neither a project nor images are given.
        ImageError: an image or the mask cannot be used.
        OutputError: `out` holds files that no extraction wrote.
    """
    from defectory.tools.drivers import extract_from_images, extract_from_tiles

    run = None if project is None else project.run_values
    if images:
        files = [Path(image) for image in images]
        return extract_from_images(
            files, mask=None if mask is None else Path(mask), run=run, whole=whole, out=Path(out)
        )
    if run is None:
        raise ConfigError("drivers", "neither a project nor images are given", "give one of them")
    return extract_from_tiles(run, subset=subset, limit=limit, out=Path(out))


def tune_drivers(project: Project) -> Work[TunedDrivers]:
    """Measure every choice of driver constants on train and pool tiles.

    Yields progress, and returns the choices; `finish(tune_drivers(project))` waits for them.

    Args:
        project: run up to its tiles.

    Raises:
        InputError: there are too few tiles to measure leakage.
    """
    from defectory.tools.drivers import tune_drivers as tune

    choices = yield from tune(project.run_values)
    file = project.run_folder / TUNED_DRIVERS
    write_json(file, [{**asdict(choice), "config": choice.config.model_dump(mode="json")} for choice in choices])
    present = next(choice for choice in choices if choice.config == project.config.drivers)
    return TunedDrivers(choices=tuple(choices), present=present, file=file)


def compare_drivers(project: Project, *, num_tiles: int = 6) -> NDArray[np.uint8]:
    """Draw train tiles beside their drivers of every kind, geometry brightened, RGB uint8 [H,W,3].

    Args:
        project: run up to its tiles.
        num_tiles: rows of the picture, at most.
    """
    from defectory.tools.drivers import compare_drivers as compare

    return compare(project.run_values, num_tiles=num_tiles)


def measure_leakage(project: Project) -> Leakage | None:
    """Measure how well the project's drivers give away which tiles are defective; None if there are too few tiles.

    Args:
        project: run up to its tiles.
    """
    from defectory.stages.parts.leakage import leakage_of

    return leakage_of(project.store, project.config)
