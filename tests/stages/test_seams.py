"""A stage and an executor from outside the package take part in a run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from defectory.condition.networks import CONDITION_NETWORKS
from defectory.config.project import ProjectConfig
from defectory.errors import ConfigError
from defectory.events import Event, Progress, StageEnded, Work
from defectory.runs.executors import EXECUTORS, Batch, run_in_process
from defectory.runs.sources import Sources
from defectory.runs.stage import Run, Stage
from defectory.runs.store import RunStore
from defectory.runs.verify import verify_stage
from defectory.stages.all import STAGES, run_all, stages_of
from defectory.stages.finalize import Finalize

Open = Callable[..., Run]
TinyRun = tuple[Path, dict[str, Any], list[StageEnded]]


class Brightness(Stage):
    """How bright accepted drafts are, beside train tiles."""

    VERSION = 1
    name, folder = "brightness", "brightness"

    def inputs(self, config: ProjectConfig) -> tuple[str, ...]:
        return ("tiles", "plan", "synthesize")

    def cache_key(self, config: ProjectConfig, sources: Sources) -> Mapping[str, object]:
        return {"evaluation.max_kid_tiles": config.evaluation.max_kid_tiles}

    def run(self, inputs: RunStore, config: ProjectConfig, out: Path) -> Work[str]:
        levels: list[float] = []
        for done, job in enumerate(inputs.plan.jobs, start=1):
            levels.append(float(inputs.drafts.image(job).mean()))
            yield Progress(done=done, total=len(inputs.plan.jobs))
        real = [float(inputs.tiles.image(tile).mean()) for tile in inputs.tiles.tileset.of("train")]
        (out / "levels.json").write_text(json.dumps({"drafts": levels, "real": real}))
        return f"{len(levels)} drafts, {len(real)} tiles"


class Faint:
    """A condition network that adds a multiple of the driver's mean to the prediction."""

    folder = "faint"

    def __init__(self) -> None:
        self.module = torch.nn.Linear(1, 1)

    @classmethod
    def start(cls, backbone: Any, *, init: str, seed: int) -> Faint:
        return cls()

    @classmethod
    def load(cls, folder: Path, backbone: Any) -> Faint:
        return cls()

    def save(self, folder: Path) -> None:
        (folder / "weights.json").write_text("{}")

    def predict(self, backbone: Any, x: Any, timesteps: Any, context: Any, drivers: Any, *, scale: float = 1.0) -> Any:
        shift = self.module(drivers.mean(dim=(1, 2, 3))[:, None])[..., None, None]
        return backbone.predict(x, timesteps, context) + scale * shift


@pytest.fixture
def project(tiny_run: TinyRun, tmp_path: Path, open_tiny: Open) -> Run:
    folder, settings, _ = tiny_run
    shutil.copytree(folder, tmp_path / "copy")
    return open_tiny(tmp_path / "copy", settings)


def made(run: Run) -> set[str]:
    return {e.stage for e in run_all(run) if isinstance(e, StageEnded) and not e.skipped}


def test_a_stage_of_another_package_runs_after_what_it_reads_and_is_kept_up_to_date(project: Run) -> None:
    with STAGES.registered("brightness", Brightness):
        names = [stage.name for stage in stages_of(project.config)]
        assert names.index("brightness") == names.index("synthesize") + 1
        assert made(project) == {"brightness"}
        assert made(project) == set()
        levels = json.loads((project.folder / "brightness" / "levels.json").read_text())
        assert len(levels["drafts"]) == 8
        (project.folder / "brightness" / "levels.json").write_text("{}")
        assert verify_stage(project, Brightness()).state == "damaged"
        assert made(project) == {"brightness"}
    assert "brightness" not in {stage.name for stage in stages_of(project.config)}


def test_a_network_that_plain_diffusers_cannot_draw_with_does_not_stop_a_run(
    project: Run, open_tiny: Open, tiny_run: TinyRun
) -> None:
    with CONDITION_NETWORKS.registered("faint", Faint):
        run = open_tiny(project.folder.parent, tiny_run[1], "condition.network=faint")
        ended = list(run_all(run, only=["learn-condition", "finalize"]))
        assert verify_stage(run, Finalize()).state == "whole"
    summary = next(e.summary for e in ended if isinstance(e, StageEnded) and e.stage == "finalize")
    assert "no pipeline: the condition network is a Linear, which plain diffusers cannot draw with" in summary


def test_a_stage_reads_only_what_it_declares(project: Run) -> None:
    class Curious(Brightness):
        def inputs(self, config: ProjectConfig) -> tuple[str, ...]:
            return ("tiles",)

    with STAGES.registered("brightness", Curious), pytest.raises(AssertionError, match="reads plan without declaring"):
        made(project)


def test_a_stage_that_reads_none_that_there_is_says_so(project: Run) -> None:
    class Lost(Brightness):
        def inputs(self, config: ProjectConfig) -> tuple[str, ...]:
            return ("paint",)

    with STAGES.registered("lost", Lost), pytest.raises(ConfigError, match="reads 'paint', which is no stage"):
        stages_of(project.config)


def test_an_executor_of_another_package_runs_the_segmenters(project: Run) -> None:
    batches: list[list[str]] = []

    def backwards(run: Run, batch: Batch) -> Iterator[Event]:
        batches.append([stage.name for stage in batch.stages])
        yield from run_in_process(run, Batch(**{**vars(batch), "stages": list(reversed(batch.stages))}))

    before = (project.folder / "scores.json").read_bytes()
    shutil.rmtree(project.folder / "segment")
    config = project.config.model_copy(update={"executor": "backwards"})
    run = Run(config=config, folder=project.folder, sources=project.sources)
    with EXECUTORS.registered("backwards", backwards):
        assert {name for name in made(run) if name.startswith("segment")} == set(batches[0])
    assert len(batches[0]) == 3
    assert (project.folder / "scores.json").read_bytes() == before
