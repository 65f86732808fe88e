"""Estimates how long a run takes after a change of settings, from the seconds that its stages took before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from defectory.config.project import ProjectConfig
from defectory.errors import ConfigError
from defectory.runs.executors import num_side_by_side
from defectory.runs.sources import Listing, MissingSource, Sources
from defectory.runs.stage import Stage, leaves_of
from defectory.stages.segment import Segment

SCALING = "num_steps"
"""A stage takes time in proportion to its settings of this name."""


class _UnreadSources(Sources):
    """Sources that count as unchanged, so that settings alone decide which stages run again."""

    def listing(self, name: str | None, *, follow_links: bool = False) -> Listing | MissingSource | None:
        return None


@dataclass(frozen=True, kw_only=True)
class Durations:
    """The times of a run's stages.

    Attributes:
        config: of the run.
        recorded: seconds by folder of the stages that did their work; a skipped segmenter is not among them.
        stages_of: returns the stages of a configuration, in order.
    """

    config: ProjectConfig
    recorded: Mapping[str, float]
    stages_of: Callable[[ProjectConfig], Sequence[Stage]]

    def of_everything(self) -> float | None:
        """Return the seconds of a run of all stages, as after a change of the data; None if nothing was recorded."""
        return self._total([(stage, 1.0) for stage in self.stages_of(self.config)])

    def of_change(self, changed: ProjectConfig) -> float | None:
        """Return the seconds of the stages that run again with other settings; None if nothing was recorded."""
        known, again = {stage.name: stage for stage in self.stages_of(self.config)}, dict[str, tuple[Stage, float]]()
        stages, unread = self.stages_of(changed), _UnreadSources(folder=Path())
        segmenters = {stage.name for stage in [*known.values(), *stages] if isinstance(stage, Segment)}
        for stage in stages:
            if stage.name not in known:
                again[stage.name] = (stage, 1.0)
                continue
            old, new = (leaves_of(stage.cache_key(config, unread)) for config in (self.config, changed))
            read, reads = set(known[stage.name].inputs(self.config)), set(stage.inputs(changed))
            if old != new or read != reads or reads & again.keys():
                # scoring takes time in proportion to the number of segmenters
                more = len(reads & segmenters) / len(read & segmenters) if read & segmenters else 1.0
                again[stage.name] = (stage, _growth(old, new) * more)
        return self._total(list(again.values()))

    def _total(self, stages: Sequence[tuple[Stage, float]]) -> float | None:
        trained = [self._seconds_of_segmenter(stage) * factor for stage, factor in stages if isinstance(stage, Segment)]
        others = [self.recorded.get(s.folder, 0.0) * factor for s, factor in stages if not isinstance(s, Segment)]
        return sum(others) + sum(trained) / self._num_side_by_side() or None

    def _seconds_of_segmenter(self, stage: Segment) -> float:
        """Return the time of one segmenter, else the mean of its arm's, else of all; 0 if none was trained."""
        recorded = {of: self.recorded[of.folder] for of in self._segmenters if of.folder in self.recorded}
        own = [seconds for of, seconds in recorded.items() if of.name == stage.name]
        of_arm = [seconds for of, seconds in recorded.items() if of.arm == stage.arm]
        known = own or of_arm or list(recorded.values())
        return fmean(known) if known else 0.0

    def _num_side_by_side(self) -> int:
        try:
            return max(1, num_side_by_side(self.config, len(self._segmenters)))
        except ConfigError:  # the run's device, which this machine may lack
            return 1

    @property
    def _segmenters(self) -> list[Segment]:
        return [stage for stage in self.stages_of(self.config) if isinstance(stage, Segment)]


def _growth(old: Mapping[str, object], new: Mapping[str, object]) -> float:
    """Return the factor on a stage's time that follows from its numbers of steps."""
    factor = 1.0
    for name, value in new.items():
        before = old.get(name)
        if name.rpartition(".")[2] == SCALING and isinstance(value, int) and isinstance(before, int) and before:
            factor *= value / before
    return factor
