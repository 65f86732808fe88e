"""Lists the stages of a run in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from defectory.config.project import ProjectConfig
from defectory.events import Event
from defectory.registry import Registry
from defectory.runs.graph import by_name, in_order
from defectory.runs.runner import Checks, run_stages
from defectory.runs.served import serve_stage
from defectory.runs.stage import Run, Stage
from defectory.runs.together import serve_member
from defectory.stages.best_segmenter import BestSegmenter
from defectory.stages.calibrate import Calibrate
from defectory.stages.certify import Certify
from defectory.stages.check_concept import CheckConcept, checks_concept
from defectory.stages.curate import Curate
from defectory.stages.distill import Distill
from defectory.stages.evaluate import Evaluate
from defectory.stages.export import Export
from defectory.stages.finalize import Finalize
from defectory.stages.folds import Folds, needs_folds
from defectory.stages.import_data import Import
from defectory.stages.learn_concept import LearnConcept
from defectory.stages.learn_condition import LearnCondition
from defectory.stages.learn_masks import LearnMasks
from defectory.stages.parts.before_all import check_before_all
from defectory.stages.parts.preflight import check_before_training
from defectory.stages.parts.student import distills
from defectory.stages.plan import Plan
from defectory.stages.report import Report
from defectory.stages.rounds import Round
from defectory.stages.segment import Segment
from defectory.stages.split import Split
from defectory.stages.synthesize import Synthesize
from defectory.stages.tiles import TestTiles, Tiles
from defectory.stages.tune import Tune, needs_tuning

STAGES: Registry[type[Stage]] = Registry("stages", setting="stages", builtin={})
"""Stages of installed packages. Each takes part in every run, right after the last stage that it reads."""


def stages_of(config: ProjectConfig) -> tuple[Stage, ...]:
    """Return the stages of a run, in order.

    Raises:
        ConfigError: an installed package's stage reads an unknown stage.
    """
    segmentation = config.segmentation
    ours = (
        Import(),
        Split(),
        Tiles(),
        LearnConcept(),
        *((CheckConcept(),) if checks_concept(config) else ()),
        LearnCondition(),
        *((Distill(),) if distills(config) else ()),
        *((Folds(),) if needs_folds(config) else ()),
        *((LearnMasks(),) if config.masks.sources.diffusion > 0 else ()),
        Plan(),
        Calibrate(),
        Synthesize(),
        Curate(),
        *(Round(number) for number in range(2, config.synthesis.rounds + 1)),
        Export(),
        Finalize(),
        *((Tune(),) if needs_tuning(segmentation) else ()),
        *(Segment(arm, seed) for seed in segmentation.seeds for arm in segmentation.arms),
        TestTiles(),
        Evaluate(),
        Certify(),
        BestSegmenter(),
        Report(),
    )
    return in_order(ours, [STAGES.get(name)() for name in STAGES.names()], config)


def run_all(
    run: Run, *, only: Sequence[str] | None = None, claimed: Callable[[], None] | None = None
) -> Iterator[Event]:
    """Run all stages of a run in order, or the named ones; see `defectory.runs.runner.run_stages`."""
    yield from run_stages(run, stages_of(run.config), checks=CHECKS, only=only, claimed=claimed)


def serve() -> None:
    """Run one stage in a child process, as requested by a line on standard input."""

    def named(run: Run) -> Mapping[str, Stage]:
        return by_name(stages_of(run.config))

    serve_stage(named)


def serve_together() -> None:
    """Take part in the training of one stage, as requested by a line on standard input."""
    serve_member(lambda run: by_name(stages_of(run.config)))


CHECKS = Checks(
    before_all=check_before_all,
    before_training=check_before_training,
    serve="from defectory.stages.all import serve; serve()",
    serve_member="from defectory.stages.all import serve_together; serve_together()",
)
"""Checks that run before long work."""
