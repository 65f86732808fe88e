"""The order of the stages, one line each, and the running of all or one of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from pathlib import Path

from defectory.drivers.kinds import kind_of
from defectory.errors import ConfigError, WeightsError
from defectory.files import digest_folder
from defectory.folders import claim_folder
from defectory.lock import run_lock
from defectory.pipeline import curate_stage as curate
from defectory.pipeline import data_stages as data
from defectory.pipeline import folds_stage as folded
from defectory.pipeline import generate_stages as generate
from defectory.pipeline import judge_stages as judge
from defectory.pipeline import report_stage as report
from defectory.pipeline.drawings import drawings_listing
from defectory.pipeline.mask_check import expert_listing
from defectory.pipeline.mask_model import FOLDER, mask_model_settings, run_learn_masks
from defectory.pipeline.outcome import require_stage_folder, run_stage, tidy
from defectory.pipeline.preflight import check_before_training
from defectory.pipeline.regions import regions_listing
from defectory.pipeline.side_by_side import run_segmenters
from defectory.pipeline.stage import Event, MissingSource, Notice, Project, Stage, states_of
from defectory.pipeline.verify import Verified


def stages_of(project: Project) -> tuple[Stage, ...]:
    """Give a project's stages in the order in which they run."""
    seg = project.config.segmentation
    arms: list[tuple[str, str, int]] = [
        (judge.stage_name(arm, seed), arm, seed) for seed in seg.seeds for arm in seg.arms
    ]
    made = ("tiles", "split")
    focuses, agrees = project.config.synthesis.focus == "segmenter", "agreement" in project.config.curation.checks
    learns_masks = project.config.masks.sources.diffusion > 0
    folds = Stage(
        name="folds", folder="folds", needs=("import", *made), settings=_folds, run=folded.run_folds, resumable=True
    )
    mask_model = Stage(
        name="learn-masks",
        folder=FOLDER,
        needs=("import", *made),
        settings=mask_model_settings,
        run=run_learn_masks,
        resumable=True,
    )
    return (
        Stage(name="import", folder="data", needs=(), settings=data.import_settings, run=data.run_import),
        Stage(
            name="split",
            folder="split",
            needs=("import",),
            settings=lambda p: p.config.split.model_dump(mode="json"),
            run=data.run_split,
        ),
        Stage(name="tiles", folder="tiles", needs=("import", "split"), settings=_tiling, run=data.run_tiles),
        Stage(
            name="learn-concept",
            folder="concept",
            needs=made,
            settings=_concept,
            run=generate.run_concept,
            resumable=True,
        ),
        Stage(
            name="learn-condition",
            folder="control",
            needs=(*made, "learn-concept"),
            settings=_condition,
            run=generate.run_condition,
            resumable=True,
        ),
        *((folds,) if focuses or agrees else ()),
        *((mask_model,) if learns_masks else ()),
        Stage(
            name="plan",
            folder="plan",
            settings=_plan,
            run=generate.run_plan,
            needs=(
                *made,
                "learn-concept",
                "learn-condition",
                *(("folds",) if focuses else ()),
                *(("learn-masks",) if learns_masks else ()),
            ),
        ),
        Stage(
            name="calibrate",
            folder="calibration",
            needs=(*made, "learn-concept", "learn-condition", "plan"),
            settings=_calibration,
            run=generate.run_calibration,
        ),
        Stage(
            name="synthesize",
            folder="drafts",
            needs=("plan", "tiles", "learn-concept", "learn-condition", "calibrate"),
            settings=_synthesis,
            run=generate.run_synthesis,
            resumable=True,
            mendable=True,
        ),
        Stage(
            name="curate",
            folder="curation",
            needs=("import", *made, "learn-concept", "plan", "synthesize", *(("folds",) if agrees else ())),
            settings=_curation,
            run=curate.run_curation,
        ),
        Stage(
            name="export",
            folder="synthetic",
            needs=("import", "plan", "synthesize", "curate"),
            settings=lambda _: None,
            run=curate.run_export,
        ),
        Stage(
            name="finalize",
            folder="pipeline",
            needs=("learn-concept", "learn-condition"),
            settings=lambda _: None,
            run=generate.run_finalize,
        ),
        *(
            Stage(
                name=name,
                folder=judge.arm_folder(arm, seed),
                needs=("import", *made, *(() if arm == "real" else ("synthesize", "curate"))),
                settings=_segmentation,
                run=judge.segment_runner(arm, seed),
                resumable=True,
            )
            for name, arm, seed in arms
        ),
        Stage(
            name="test-tiles", folder="test_tiles", needs=("import", *made), settings=_tiling, run=data.run_test_tiles
        ),
        Stage(
            name="evaluate",
            folder="evaluation",
            needs=("test-tiles", "tiles", "synthesize", "curate", *(name for name, _, _ in arms)),
            settings=lambda p: p.config.evaluation.model_dump(mode="json"),
            run=judge.run_evaluation,
            copies={judge.RUN_SCORES: "scores.json"},
        ),
        Stage(
            name="report",
            folder="report",
            needs=(
                "import",
                *made,
                "learn-concept",
                "learn-condition",
                "plan",
                "calibrate",
                "synthesize",
                "curate",
                "test-tiles",
                "evaluate",
                *(name for name, _, _ in arms),
            ),
            settings=report.report_settings,
            run=report.run_report,
            copies={"report.html": "report.html"},
        ),
    )


READS_BASE = frozenset({"tiles", "learn-concept"})


def run_project(project: Project, *, only: Sequence[str] | None = None) -> Iterator[Event]:
    """Run all stages in order, or those named; stages that are up to date are not run again.

    Args:
        project: resolved configuration and folders.
        only: stage names, or `segment` for all arms; what they need must have been run.

    Raises:
        ConfigError: an unknown stage, one whose needs have not been run, or an unknown kind of driver.
        WeightsError: the base is not whole; said before anything is written.
        OutputError: the run folder, or a stage's, holds something that is not ours.
        StageError: another process writes into the run, or a stage that is needed and not named is damaged.
    """
    stages = stages_of(project)
    selected = stages if only is None else select(stages, only)
    kind_of(project.config.drivers.kind)
    claim_run(project.folder)
    with run_lock(project.folder):
        for stage in selected:
            require_stage_folder(project, stage)
        _require_base(project, stages, selected)
        yield from _run(project, stages, selected)
        tidy(project)


def claim_run(folder: Path) -> None:
    """Make a run folder ours, or find it to be so; the demo's project folder is its own run folder.

    Raises:
        OutputError: it holds something and is not ours.
    """
    claim_folder(folder, kind="run", also=("demo",), todo='set `out` to a new folder, for example out = "runs/first"')


def _require_base(project: Project, stages: Sequence[Stage], selected: Sequence[Stage]) -> None:
    """Require a whole base where a stage that reads it is going to run."""
    readers = [stage for stage in selected if stage.name in READS_BASE]
    if not readers:
        return
    try:
        upto = stages[: 1 + max(stages.index(stage) for stage in readers)]
        states = states_of(project, upto)
    except ConfigError:
        states = dict[str, str]()
    if any(states.get(stage.name) != "up to date" for stage in readers):
        from defectory.engine.backbones.known import resolve_base
        from defectory.engine.backbones.verify import verify

        verify(resolve_base(project.config.base))


def _run(project: Project, stages: Sequence[Stage], selected: Sequence[Stage]) -> Iterator[Event]:
    segmenters = {
        judge.stage_name(arm, seed)
        for arm in project.config.segmentation.arms
        for seed in project.config.segmentation.seeds
    }
    verified = Verified()
    is_checked = False
    for of_segmenters, together in groupby(selected, key=lambda stage: stage.name in segmenters):
        if of_segmenters:
            if not is_checked:
                yield from _check_before_training(project, stages, selected, verified)
            is_checked = True
            yield from run_segmenters(
                project, list(together), stages, num_segmenters=len(segmenters), verified=verified
            )
        else:
            for stage in together:
                if not is_checked and stage.name not in BEFORE_TRAINING:
                    yield from _check_before_training(project, stages, selected, verified)
                    is_checked = True
                yield from run_stage(project, stage, stages, verified=verified)


READ_BEFORE_TRAINING = frozenset({"import", "split", "tiles"})
BEFORE_TRAINING = READ_BEFORE_TRAINING | {"test-tiles"}


def _check_before_training(
    project: Project, stages: Sequence[Stage], selected: Sequence[Stage], verified: Verified
) -> Iterator[Event]:
    """Tell dead ends before the first stage that trains, unless all that is asked for is up to date."""
    try:
        states = states_of(project, stages)
    except ConfigError:
        states = dict[str, str]()
    if all(
        states.get(stage.name) == "up to date" for stage in selected if stage.name not in {*BEFORE_TRAINING, "report"}
    ):
        return
    verified.require(project, [stage for stage in stages if stage.name in READ_BEFORE_TRAINING])
    for remark in check_before_training(project):
        yield Notice(stage="check", text=remark)


def select(stages: Sequence[Stage], names: Sequence[str]) -> list[Stage]:
    """Give the stages with the names, `segment` standing for all arms.

    Raises:
        ConfigError: a name that no stage has.
    """
    known = {stage.name for stage in stages}
    for name in names:
        if name not in known and name != "segment":
            raise ConfigError(
                f"stage {name!r}", "no such stage", f"choose among {', '.join(sorted(known | {'segment'}))}"
            )
    return [
        stage for stage in stages if stage.name in names or ("segment" in names and stage.name.startswith("segment-"))
    ]


def needed_for(stages: Sequence[Stage], names: Sequence[str]) -> list[str]:
    """Give the names of the stages and of all they need, in order."""
    wanted = {stage.name for stage in select(stages, names)}
    for stage in reversed(stages):
        if stage.name in wanted:
            wanted.update(stage.needs)
    return [stage.name for stage in stages if stage.name in wanted]


TILE_RULES = 3
"""Raised when the same settings give other tiles."""


def _tiling(project: Project) -> object:
    return {
        "rules": TILE_RULES,
        "tiling": project.config.tiling.model_dump(mode="json"),
        "seed": project.config.seed,
        "base": project.config.base,
    }


VARIANT_RULES = 3
"""Raised when the same settings give other augmented training tiles."""


def _base_digest(project: Project) -> object:
    from defectory.engine.backbones.known import resolve_base

    try:
        folder = resolve_base(project.config.base)
    except WeightsError:
        # on a disk that is not mounted; whoever needs it says so
        return MissingSource(path=Path(project.config.base))
    files = [(path, path.stat()) for path in sorted(folder.rglob("*")) if path.is_file()]
    return _digest_of(folder, tuple((path, about.st_size, about.st_mtime_ns) for path, about in files))


@lru_cache(maxsize=4)
def _digest_of(folder: Path, _state: tuple[tuple[Path, int, int], ...]) -> str:
    """Return the digest of a folder, read once as long as its files keep size and time: it is asked for several times
    in a run.
    """
    return digest_folder(folder)


def _concept(project: Project) -> object:
    return {
        "variant_rules": VARIANT_RULES,
        "concept": project.config.concept.model_dump(mode="json"),
        "defect_noun": project.config.condition.defect_noun,
        "base": _base_digest(project),
        "seed": project.config.seed,
    }


def _condition(project: Project) -> object:
    return {
        "variant_rules": VARIANT_RULES,
        "driver_rules": generate.DRIVER_RULES,
        "drawings": drawings_listing(project),
        "condition": project.config.condition.model_dump(mode="json"),
        "drivers": project.config.drivers.model_dump(mode="json"),
        "seed": project.config.seed,
    }


PLAN_RULES = 9
"""Raised when the same settings give another plan."""


def _plan(project: Project) -> object:
    config = project.config
    return {
        "rules": PLAN_RULES,
        "masks": config.masks.model_dump(mode="json"),
        "expert": expert_listing(project),
        "regions": regions_listing(project),
        "drawings": drawings_listing(project),
        "drivers": config.drivers.model_dump(mode="json"),
        "flip": config.condition.training.flip,
        "synthesis": config.synthesis.model_dump(mode="json", include={"seed", *PLAN_KEYS}),
        "defect_noun": config.condition.defect_noun,
    }


PLAN_KEYS = frozenset(
    {"mode", "focus", "num_images", "augmentations_per_image", "max_seeds_per_driver", "max_images_per_tile"}
)
"""Settings of synthesis that decide what is drawn, not how."""


SAMPLER_RULES = 4
"""Raised when the same settings draw otherwise."""


def _calibration(project: Project) -> object:
    config = project.config
    return {
        "sampler_rules": SAMPLER_RULES,
        "synthesis": config.synthesis.model_dump(mode="json", exclude=set(PLAN_KEYS)),
        "drivers": config.drivers.model_dump(mode="json"),
        "defect_noun": config.condition.defect_noun,
    }


def _synthesis(project: Project) -> object:
    return {
        "sampler_rules": SAMPLER_RULES,
        **project.config.synthesis.model_dump(mode="json"),
        "drivers": project.config.drivers.model_dump(mode="json"),
    }


FIDELITY_RULES = 6
"""Raised when the same settings give other scores of drafts."""


def _curation(project: Project) -> object:
    return {
        "rules": FIDELITY_RULES,
        "curation": project.config.curation.model_dump(mode="json"),
        "seed": project.config.seed,
    }


FOLD_RULES = 2
"""Raised when the same settings give other folds, or more is told of them."""


def _folds(project: Project) -> object:
    return {
        "rules": FOLD_RULES,
        "segmentation": _segmentation(project),
        "fold_steps": project.config.segmentation.fold_steps,
        "seed": project.config.seed,
    }


def _segmentation(project: Project) -> object:
    return project.config.segmentation.model_dump(mode="json", exclude={"arms", "seeds", "fold_steps", "num_processes"})
