"""What the work of a stage depends on, and how it is told."""

from __future__ import annotations

import math
from dataclasses import dataclass

from defectory.config.project import ProjectConfig
from defectory.engine.backbones.workload import BaseWorkload
from defectory.stages.parts.estimate import costs
from defectory.stages.parts.estimate.facts import DataFacts


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What work depends on.

    Attributes:
        config: of the project.
        data: counts of the data.
        base: cost of the base for one tile; None if it cannot be read.
        copied_bytes: of the base's files that phase 1 copies.
        tile_px: side of a tile.
        on_cpu: whether networks run on the CPU.
        also: kinds of the networks that act beside the run's own at synthesis; empty where one cannot be read.
        why_no_base: why `base` is None, in a few words.
    """

    config: ProjectConfig
    data: DataFacts
    base: BaseWorkload | None
    copied_bytes: int
    tile_px: int
    on_cpu: bool
    also: tuple[str, ...] = ()
    why_no_base: str = "the base cannot be read"

    @property
    def areas(self) -> float:
        """Return the area of a tile in tiles of `costs.REFERENCE_PX`."""
        return (self.tile_px / costs.REFERENCE_PX) ** 2

    @property
    def areas_per_image(self) -> float:
        """Return the area of a typical image at its own resolution."""
        return max(self.data.megapixels_per_image * 1e6 / costs.REFERENCE_PX**2, 0.25)

    @property
    def seen_areas(self) -> float:
        """Return the area of a typical image as segmenters see it; thin defects may need more."""
        segmentation, side = self.config.segmentation, math.sqrt(max(1.0, self.data.megapixels_per_image * 1e6))
        scale = min(1.0, segmentation.input_px / side) if segmentation.scale is None else segmentation.scale
        return max((side * scale / costs.REFERENCE_PX) ** 2, 0.25)


@dataclass(frozen=True, kw_only=True)
class StageWork:
    """What one stage has to do.

    Attributes:
        multiply_adds: in units of the probe's, on all threads.
        seconds: on one thread of the reference machine.
        spread_seconds: the same, of work that further threads shorten.
        on_device: whether its networks run on the run's device, so that only a CPU's time is known.
        memory_bytes: of the process beside what every process takes; of those that train together, all in all.
        device_bytes: of a GPU's memory, the same on each.
        file_bytes: of the result.
        passing_bytes: of files that are removed before the stage ends.
        cache_bytes: of files that stay in the cache.
        num_together: processes that train together.
        tiles_at_a_time: that each of them trains on; 0 of a stage that does not train on tiles.
    """

    multiply_adds: float = 0.0
    seconds: float = 0.0
    spread_seconds: float = 0.0
    on_device: bool = False
    memory_bytes: float = 0.0
    device_bytes: float = 0.0
    file_bytes: float = 0.0
    passing_bytes: float = 0.0
    cache_bytes: float = 0.0
    num_together: int = 1
    tiles_at_a_time: int = 0
