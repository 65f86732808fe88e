"""Every stage, killed at random moments and run again, ends as if it had not been killed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from defectory.events import StageEnded

KILLER = """
import json, os, random, shutil, signal, sys, time
from pathlib import Path
import torch, torchvision, diffusers, transformers
torch.set_num_threads(1)
from defectory.stages import segment
from defectory.stages.all import run_all, stages_of
from defectory.runs.sources import Sources
from defectory.runs.stage import Run
from defectory.config.resolve import resolve
import defectory.concept.learn, defectory.condition.learn, defectory.concept.methods.dreambooth
import defectory.condition.networks.controlnet
import defectory.synthesis.full, defectory.segmentation.training

folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
project = Run(config=resolve(project=settings).config, folder=folder / "run", sources=Sources(folder=folder))

def start(name):
    pid = os.fork()
    if pid == 0:
        try:
            for _ in run_all(project, only=[name]):
                pass
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return pid

kills = {}
for stage in stages_of(project.config):
    place = (project.folder / stage.folder)
    seconds = max(0.05, json.loads((place / "stage.json").read_text())["info"]["seconds"])
    shutil.rmtree(place)
    if stage.name in ("learn-concept", "learn-condition"):
        shutil.rmtree((project.folder / "cache"), ignore_errors=True)
    rng, kills[stage.name] = random.Random(stage.name), 0
    for _ in range(int(sys.argv[3])):
        pid = start(stage.name)
        time.sleep(rng.uniform(0.05, 0.9) * seconds)
        os.kill(pid, signal.SIGKILL)
        kills[stage.name] += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    if os.waitpid(start(stage.name), 0)[1] != 0:
        sys.exit(f"stage {stage.name} failed after it was killed")
print(json.dumps(kills))
"""


def manifests(run: Path) -> dict[str, Any]:
    return {
        p.parent.relative_to(run).as_posix(): json.loads(p.read_text())["info"]["output_digest"]
        for p in run.rglob("stage.json")
    }


def leftovers(run: Path) -> list[str]:
    return [p.relative_to(run).as_posix() for p in run.rglob(".*") if p.suffix == ".tmp" or ".old." in p.name]


@pytest.mark.parametrize("times", [1, pytest.param(3, marks=pytest.mark.long)])
def test_every_stage_that_is_killed_gives_the_digests_of_an_uninterrupted_run(
    tiny_run: tuple[Path, dict[str, Any], list[StageEnded]], tmp_path: Path, times: int
) -> None:
    folder, settings, ended = tiny_run
    shutil.copytree(folder, tmp_path / "copy")
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(tmp_path / "copy"), json.dumps(settings), str(times)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    kills = json.loads(done.stdout.splitlines()[-1])
    assert set(kills) == {event.stage for event in ended}
    assert sum(kills.values()) >= 0.5 * times * len(kills), f"too few kills hit: {kills}"
    before, after = manifests(folder / "run"), manifests(tmp_path / "copy" / "run")
    before.pop("report"), after.pop("report")  # it tells the seconds of each stage
    assert after == before
    assert leftovers(tmp_path / "copy" / "run" / "drafts") == []
