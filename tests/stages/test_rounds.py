"""Further rounds of drafts: when they end, whom they train on, what they draw, and how the rest of a run sees them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from defectory.api.project import Project
from defectory.artifacts.difficulty import Difficulty
from defectory.artifacts.plan import Plan
from defectory.artifacts.targets import Targets
from defectory.config.recipes import ABLATION
from defectory.engine.speed import Speed
from defectory.events import StageEnded
from defectory.files import digest_file, digest_json
from defectory.runs.stage import Run
from defectory.stages import rounds
from defectory.stages.all import run_all, stages_of
from defectory.stages.export import image_ids_of_jobs
from defectory.stages.folds import NUM_FOLDS, folds_of
from defectory.stages.parts.certificate_check import check_certificate
from defectory.stages.parts.estimate.estimate import estimate_run
from defectory.stages.parts.mask_supply import Focus, mask_supply
from defectory.stages.parts.synthetic_set import load_synthetic
from defectory.stages.plan import write_plan

Opened = Callable[..., Run]
TinyRun = tuple[Path, dict[str, Any], list[StageEnded]]
NUM_FIRST = 8
"""Drafts of the tiny run, which are those of the first round here."""
TWO = ("synthesis.rounds=2", f"synthesis.num_images={2 * NUM_FIRST}")
THREE = ("synthesis.rounds=3", f"synthesis.num_images={3 * NUM_FIRST}")
FEW_STEPS = "segmentation.fold_steps=2"
Score = Callable[[int, str], float]


def rising(number: int, arm: str) -> float:
    """Scores of segmenters on validation if every round helps."""
    return 0.1 * number if arm == "mixed" else 0.1


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> Callable[[Score], None]:
    """Let segmenters be trained as ever, and then score what the test says."""
    plain = rounds._Round._validated

    def give(score: Score) -> None:
        def validated(self: Any, arm: str) -> Generator[Any, None, float]:
            yield from plain(self, arm)
            return score(self._number, arm)

        monkeypatch.setattr(rounds._Round, "_validated", validated)

    return give


@pytest.fixture(scope="module")
def drawn(tiny_run: TinyRun, open_tiny: Opened, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The tiny run with a further round that validation welcomes, up to its end; do not write into it."""
    folder, settings, _ = tiny_run
    copy = tmp_path_factory.mktemp("rounds") / "copy"
    shutil.copytree(folder, copy)
    run, plain = open_tiny(copy, settings, *TWO, FEW_STEPS), rounds._Round._validated

    def validated(self: Any, arm: str) -> Generator[Any, None, float]:
        yield from plain(self, arm)
        return rising(self._number, arm)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds._Round, "_validated", validated)
        ended = [event for event in run_all(run) if isinstance(event, StageEnded)]
    assert {e.stage for e in ended if not e.skipped} >= {"round-2", "export", "evaluate", "certify", "report"}
    assert all(e.skipped for e in ended if e.stage in ("plan", "calibrate", "synthesize", "curate", "finalize"))
    return run


def log_of(run: Run, name: str) -> dict[str, Any]:
    return json.loads((run.folder / "rounds" / "2" / name / "log.json").read_bytes())


def test_one_round_changes_no_stage_and_no_key(tiny_run: TinyRun, open_tiny: Opened) -> None:
    folder, settings, ended = tiny_run
    run, more = open_tiny(folder, settings), open_tiny(folder, settings, *TWO)
    keys = {stage.name: stage.cache_key(run.config, run.sources) for stage in stages_of(run.config)}
    assert [event.stage for event in ended] == list(keys)
    assert [name for name, key in keys.items() if "rounds" in repr(key)] == ["report"], "which shows every setting"
    assert repr(keys["plan"]).count("num_images") == 1
    of_two = {stage.name: stage for stage in stages_of(more.config)}
    assert list(of_two) == [
        *list(keys)[: list(keys).index("export")],
        "round-2",
        *list(keys)[list(keys).index("export") :],
    ]
    for name in ("plan", "calibrate", "synthesize", "curate"):
        assert of_two[name].cache_key(more.config, more.sources) == keys[name], "drafts of a first round serve both"
    readers = {name for name, stage in of_two.items() if "round-2" in stage.inputs(more.config)}
    assert readers == {"export", "evaluate", "certify", "report"}


def test_later_rounds_read_all_before_and_what_judges_and_draws_masks(tiny_run: TinyRun, open_tiny: Opened) -> None:
    folder, settings, _ = tiny_run
    more = ('curation.checks=["agreement"]', "masks.sources.diffusion=0.5")
    config = open_tiny(folder, settings, *THREE, *more).config
    inputs = {stage.name: stage.inputs(config) for stage in stages_of(config)}
    assert {"folds", "learn-masks", "curate", "round-2"} <= set(inputs["round-3"])
    assert "round-3" not in inputs["round-2"]


def test_folds_leave_out_their_images_and_every_draft_made_from_these(drawn: Run) -> None:
    store = drawn.store()
    fold_of = folds_of(store.data.dataset, store.split.train, seed=drawn.config.seed)
    first = store.plan.jobs[:NUM_FIRST]
    image_ids = image_ids_of_jobs(store, first)
    for fold in range(NUM_FOLDS):
        left_out = {image_id for image_id, of in fold_of.items() if of == fold}
        touching = [job.id for job in first if set(image_ids[job.id]) & left_out]
        assert touching, "otherwise this tests nothing"
        log = log_of(drawn, f"fold-{fold}")
        assert not set(log["image_ids"]) & left_out
        assert log["num_images"].get("synthetic", 0) == len(first) - len(touching)
        assert log["arm"] == ("mixed" if len(touching) < len(first) else "real")


def test_validation_compares_all_drafts_so_far_with_none(drawn: Run) -> None:
    store = drawn.store()
    log = log_of(drawn, "validation-mixed")
    assert log["num_images"]["synthetic"] == NUM_FIRST
    assert log["image_ids"] == sorted({*store.split.train, *store.split.pool})
    assert "synthetic" not in log_of(drawn, "validation-real")["num_images"]
    used = json.loads((drawn.folder / "rounds" / "2" / "images_used.json").read_bytes())["image_ids"]
    assert used["validation"]
    assert set(used["validation"]) <= set(store.split.val)
    assert not list((drawn.folder / "rounds").rglob("*.safetensors")), "weights are removed once they are scored"


def test_targets_tell_the_cells_and_masks_come_from_what_is_missed(drawn: Run) -> None:
    (found,) = drawn.store().rounds
    assert (found.round, found.num_drafts, found.is_over, found.why) == (2, NUM_FIRST, False, "")
    assert [(of.arm, of.score) for of in found.validation] == [("real", 0.1), ("mixed", 0.2)]
    assert found.best == 0.2
    difficulty = Difficulty.load(drawn.folder / "rounds" / "2" / "difficulty.json")
    assert sum(cell.num_instances for cell in found.cells) == len(difficulty.instances) - found.num_left_out
    assert sum(cell.quota for cell in found.cells) == pytest.approx(NUM_FIRST)
    assert all((cell.quota > 0) == (cell.num_missed > 0) for cell in found.cells)


def test_a_plan_of_targets_draws_nothing_else(drawn: Run, tmp_path: Path) -> None:
    store, config = drawn.store(), drawn.config
    bank, earlier = store.bank, store.plan.jobs
    target = bank.entries[0]
    same_class = [e for e in bank.entries if e.category_id == target.category_id]
    assert 1 < len(same_class) < len(bank.entries)
    focus = Focus(weights={(target.image_id, target.number): 1.0}, others=0.0)
    supply = mask_supply(store, config, focus=focus, earlier=earlier)
    write_plan(store, config, supply, focus, tmp_path, number=2, earlier=earlier)
    jobs = Plan.load(tmp_path / "plan.json").jobs
    assert {source.bank_id for job in jobs for source in job.mask_sources} == {target.id}
    assert {i.category_id for job in jobs for i in job.instances} == {target.category_id}
    assert [job.id for job in jobs] == [f"{n:06d}" for n in range(len(earlier), len(earlier) + NUM_FIRST)]


def test_later_stages_see_one_plan_one_set_and_one_list_of_decisions(drawn: Run) -> None:
    store = drawn.store()
    jobs = store.plan.jobs
    assert [job.id for job in jobs] == [f"{number:06d}" for number in range(2 * NUM_FIRST)]
    assert len({job.seed for job in jobs}) == len(jobs)
    assert all(store.drafts.image(job).shape == store.drafts.driver(job).shape for job in jobs)
    assert [d.job_id for d in store.decisions.decisions] == [job.id for job in jobs]
    assert store.decisions.plan_digest == store.plan.digest()
    assert store.fidelity.num_drafts == len(jobs)
    assert store.plan is store.plan, "joined once"
    made = load_synthetic(store.synthetic)
    assert sorted(draft["job"] for of in made for draft in of.drafts) == [job.id for job in jobs]
    for of in made:
        (draft,) = of.drafts
        folder = drawn.folder / ("drafts" if int(draft["job"]) < NUM_FIRST else "rounds/2/drafts")
        assert digest_file(of.path) == of.provenance["sha256"]
        assert (folder / "images" / f"{draft['job']}.png").is_file()
    early = store.view(["plan", "drafts", "curation"], reader="test")
    assert len(early.plan.jobs) == len(early.decisions.decisions) == early.fidelity.num_drafts == NUM_FIRST
    page = (drawn.folder / "report.html").read_text(encoding="utf-8")
    assert "Rounds of drafts" in page
    assert "0.100 without drafts, 0.200 with drafts" in page


def test_a_round_of_another_plan_is_not_read(drawn: Run, open_tiny: Opened, tiny_run: TinyRun, tmp_path: Path) -> None:
    shutil.copytree(drawn.sources.folder, tmp_path / "copy")
    run = open_tiny(tmp_path / "copy", tiny_run[1], "synthesis.rounds=2", "synthesis.num_images=12")
    list(run_all(run, only=["plan"]))
    assert (len(run.store().rounds), len(run.store().plan.jobs)) == (0, 6)


def test_the_certificate_names_rounds_and_breaks_if_one_saw_test(
    drawn: Run, open_tiny: Opened, tiny_run: TinyRun, tmp_path: Path
) -> None:
    uses = {use.consumer for use in drawn.store().certificate.uses}
    assert {f"round-2, {what}" for what in ("segmenters", "validation", "plan", "curation")} <= uses
    assert drawn.store().certificate.verdict == "holds"
    shutil.copytree(drawn.sources.folder, tmp_path / "copy")
    run = open_tiny(tmp_path / "copy", tiny_run[1], *TWO, FEW_STEPS)
    place, test_image = run.folder / "rounds" / "2", run.store().split.test[0]

    def plant(name: str, change: Callable[[Any], None]) -> None:
        content, manifest = json.loads((place / name).read_text()), json.loads((place / "stage.json").read_text())
        change(content)
        (place / name).write_text(json.dumps(content))
        manifest["files"][name] = digest_file(place / name)
        manifest["info"]["output_digest"] = digest_json(manifest["files"])
        (place / "stage.json").write_text(json.dumps(manifest))

    def broken() -> tuple[str, ...]:
        checked = check_certificate(run)
        assert checked is not None
        return checked.broken

    assert broken() == ()
    plant("fold-1/log.json", lambda of: of["image_ids"].append(test_image))
    plant("images_used.json", lambda of: of["image_ids"]["validation"].append(test_image))
    found = broken()
    for consumer in ("round-2, segmenters", "round-2, validation"):
        assert any(line.startswith(f"{consumer}: used image {test_image} (") for line in found)
    (place / "validation-mixed" / "log.json").unlink()
    assert "round-2, segmenters: rounds/2/validation-mixed/log.json is missing" in broken()


@pytest.mark.parametrize("scores", [{"real": 0.3, "mixed": 0.3}, {"real": 0.3, "mixed": 0.2}])
def test_rounds_end_if_drafts_do_not_raise_the_score_and_later_ones_draw_nothing(
    scores: dict[str, float], tiny_run: TinyRun, open_tiny: Opened, tmp_path: Path, scored: Callable[[Score], None]
) -> None:
    folder, settings, _ = tiny_run
    shutil.copytree(folder, tmp_path / "copy")
    run = open_tiny(tmp_path / "copy", settings, *THREE, FEW_STEPS)
    scored(lambda _, arm: scores[arm])
    told = [e.summary for e in run_all(run, only=["round-2", "round-3"]) if isinstance(e, StageEnded)]
    second, third = run.store().rounds
    assert "no further draft: the drafts of round 1 did not raise the score on validation" in told[0]
    assert (second.is_over, second.best, len(second.validation)) == (True, 0.3, 2)
    assert (third.is_over, third.validation, third.why) == (True, (), rounds.ENDED)
    assert len(run.store().plan.jobs) == NUM_FIRST
    assert not list((run.folder / "rounds").rglob("*.png"))
    assert sorted(path.name for path in (run.folder / "rounds" / "3").glob("*.json") if path.name[0] != ".") == [
        "images_used.json",
        "stage.json",
        "targets.json",
    ]


def test_rounds_end_if_nothing_is_missed_or_accepted(
    tiny_run: TinyRun,
    open_tiny: Opened,
    tmp_path: Path,
    scored: Callable[[Score], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, settings, _ = tiny_run
    shutil.copytree(folder, tmp_path / "copy")
    scored(rising)
    monkeypatch.setattr("defectory.synthesis.targets.MISSED_IOU", -1.0)
    run = open_tiny(tmp_path / "copy", settings, *TWO, FEW_STEPS)
    list(run_all(run, only=["round-2"]))
    (found,) = run.store().rounds
    assert (found.is_over, found.num_missed_cells, found.num_drafts) == (True, 0, 0)
    assert found.why == "segmenters miss no defect of train that masks can be taken from"
    run = open_tiny(tmp_path / "copy", settings, *TWO, FEW_STEPS, "curation.min_fidelity=1")
    list(run_all(run, only=["curate", "round-2"]))
    (found,) = run.store().rounds
    assert (found.why, found.validation) == ("curation accepted no draft of round 1", ())


def test_a_third_round_is_compared_with_the_best_before() -> None:
    before = Targets(round=2, earlier_digest="", best_before=0.4)
    assert before.best == 0.4
    assert Targets(round=2, earlier_digest="").best is None


def test_estimates_count_the_trainings_of_rounds(
    tiny_run: TinyRun, open_tiny: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # measured, it would change between the two estimates
    speed = Speed(one=5e10, all=5e10, num_threads=1)
    monkeypatch.setattr("defectory.stages.parts.estimate.estimate.measure_speed", lambda **_: speed)
    folder, settings, _ = tiny_run
    (tmp_path / "source").symlink_to(folder / "source")
    names = ("plan", "synthesize", "curate")
    one, three = (
        {of.stage: of for of in estimate_run(run, stages_of(run.config)).stages}
        for run in (open_tiny(tmp_path, settings, *of) for of in (("synthesis.num_images=24",), THREE))
    )
    extra = [three[f"round-{number}"] for number in (2, 3)]
    assert all(of.seconds is not None and of.seconds > 0 and of.file_bytes > 0 for of in extra)
    longer, shorter = (of.seconds or 0.0 for of in extra)
    assert longer > shorter, "the first one trains without drafts as well"
    assert all((three[name].seconds or 0.0) < (one[name].seconds or 0.0) for name in names)


def test_the_ablation_has_a_variant_of_rounds() -> None:
    assert {v.name: v.settings for v in ABLATION.variants}["rounds"] == {"synthesis.rounds": 3}


def test_the_api_gives_plan_and_decisions_of_all_rounds(drawn: Run, tiny_run: TinyRun) -> None:
    file = drawn.sources.folder / "project.toml"
    _write_project(file, {**tiny_run[1], "synthesis": {**tiny_run[1]["synthesis"], "rounds": 2, "num_images": 16}})
    project = Project.open(file, overrides=[FEW_STEPS])
    assert len(project.plan.jobs) == len(project.decisions.decisions) == 2 * NUM_FIRST
    assert project.drafts.image(project.plan.jobs[-1]).ndim == 3


def _write_project(file: Path, settings: dict[str, Any]) -> None:
    lines: list[str] = []

    def write(section: str, content: dict[str, Any]) -> None:
        if section:
            lines.append(f"[{section}]")
        lines.extend(f"{key} = {json.dumps(value)}" for key, value in content.items() if not isinstance(value, dict))
        for key, value in content.items():
            if isinstance(value, dict):
                write(f"{section}.{key}" if section else key, value)

    write("", settings)
    file.write_text("\n".join(lines) + "\n")


KILLER = """
import json, os, random, shutil, signal, sys, time
from pathlib import Path
import torch, torchvision, diffusers, transformers
torch.set_num_threads(1)
from defectory.config.resolve import resolve
from defectory.runs.sources import Sources
from defectory.runs.stage import Run
from defectory.stages import rounds
from defectory.stages.all import run_all
import defectory.synthesis.full, defectory.segmentation.training

folder, settings, overrides = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
config, sources = resolve(project=settings, overrides=overrides).config, Sources(folder=folder)
run = Run(config=config, folder=folder / "run", sources=sources)
plain = rounds._Round._validated

def validated(self, arm):
    yield from plain(self, arm)
    return 0.1 * self._number if arm == "mixed" else 0.1

rounds._Round._validated = validated

def start():
    pid = os.fork()
    if pid == 0:
        try:
            for _ in run_all(run, only=["round-2"]):
                pass
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return pid

place = run.folder / "rounds" / "2"
shutil.rmtree(place)
began = time.monotonic()
assert os.waitpid(start(), 0)[1] == 0
seconds = time.monotonic() - began
shutil.rmtree(place)
rng, kills, partial = random.Random(7), 0, set()
for moment in (0.25, 0.5, 0.3, 0.35):
    pid = start()
    time.sleep(rng.uniform(0.8, 1.2) * moment * seconds)
    os.kill(pid, signal.SIGKILL)
    kills += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    partial |= {path.parent.name for path in (run.folder / ".work" / "rounds" / "2").glob("*/*")}
assert os.waitpid(start(), 0)[1] == 0
print(json.dumps([kills, sorted(partial)]))
"""


@pytest.mark.long
def test_a_round_killed_at_several_moments_ends_as_if_it_had_not_been(
    drawn: Run, tiny_run: TinyRun, tmp_path: Path
) -> None:
    shutil.copytree(drawn.sources.folder, tmp_path / "copy")
    settings, overrides = json.dumps(tiny_run[1]), json.dumps([*TWO, FEW_STEPS])
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(tmp_path / "copy"), settings, overrides],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    kills, partial = json.loads(done.stdout.splitlines()[-1])
    assert kills >= 3, "too few kills hit"
    assert len(partial) >= 3, f"kills hit few steps: {partial}"
    files = [
        json.loads((folder / "rounds" / "2" / "stage.json").read_bytes())["files"]
        for folder in (drawn.folder, tmp_path / "copy" / "run")
    ]
    assert files[0] == files[1]
