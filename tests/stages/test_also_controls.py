"""Runs whose drafts are drawn with further condition networks (`synthesis.also_controls`)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defectory.artifacts.weights import Concept, Control
from defectory.engine.devices import device_of
from defectory.engine.speed import Speed
from defectory.errors import ConfigError, WeightsError
from defectory.events import StageEnded
from defectory.files import digest_folder
from defectory.images.load import load_rgb
from defectory.images.save import save_png
from defectory.runs.stage import Run
from defectory.stages.all import run_all, stages_of
from defectory.stages.parts.also_controls import (
    also_networks,
    also_remarks,
    drivers_of,
    for_all_networks,
    require_also_controls,
)
from defectory.stages.parts.estimate.estimate import estimate
from defectory.stages.parts.pool import pool_tiles
from defectory.stages.parts.sampling import sampling_models
from defectory.synthesis.drafts import draft_paths
from defectory.synthesis.full import DraftInput, synthesize
from defectory.tools.insert import insert_into

Opened = Callable[..., Run]
TinyRun = tuple[Path, dict[str, Any], list[StageEnded]]
OTHER = {"path": "other/control", "scale": 0.5, "drivers": "edges"}
PUBLISHED = {"path": "published", "scale": 0.7, "end": 0.5, "drivers": "grey"}
DRAWING = ("calibrate", "synthesize", "finalize")
DELIVERING = ("curate", "export")


def option(*networks: dict[str, Any]) -> str:
    return f"synthesis.also_controls={json.dumps(networks)}"


BOTH = option(OTHER, PUBLISHED)


@pytest.fixture(scope="module")
def folder(tiny_run: TinyRun, tiny_base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny run, with phases of another run and a published control network beside it."""
    out = tmp_path_factory.mktemp("also")
    shutil.copytree(tiny_run[0] / "run", out / "run")
    (out / "source").symlink_to(tiny_run[0] / "source")
    for stage in ("concept", "control"):
        shutil.copytree(tiny_run[0] / "run" / stage, out / "other" / stage)
    shutil.copytree(tiny_base_folder / "controlnet", out / "published")
    return out


@pytest.fixture(scope="module")
def drawn(folder: Path, tiny_run: TinyRun, open_tiny: Opened) -> tuple[Run, list[StageEnded]]:
    """The copy, drawn again with both networks."""
    run = open_tiny(folder, tiny_run[1], BOTH, "synthesis.calibration_drafts=1")
    return run, [event for event in run_all(run, only=(*DRAWING, *DELIVERING)) if isinstance(event, StageEnded)]


def keys_of(run: Run) -> dict[str, dict[str, object]]:
    return {stage.name: dict(stage.cache_key(run.config, run.sources)) for stage in stages_of(run.config)}


def test_without_further_networks_no_stage_depends_on_them(folder: Path, tiny_run: TinyRun, open_tiny: Opened) -> None:
    without, with_both = (keys_of(open_tiny(folder, tiny_run[1], *of)) for of in ((), (BOTH,)))
    # the report shows all settings
    assert [name for name in without if "also_controls" in json.dumps(without[name], default=str)] == ["report"]
    assert {name for name in without if without[name] != with_both[name]} == {*DRAWING, "report"}


def test_drafts_are_drawn_with_all_networks_and_only_once(
    drawn: tuple[Run, list[StageEnded]], tiny_run: TinyRun
) -> None:
    run, ended = drawn
    assert {event.stage for event in ended if not event.skipped} == {*DRAWING, *DELIVERING}
    jobs = run.store().plan.jobs
    for which, differs in ((0, True), (1, True), (2, False)):
        ours, before = (
            np.stack([load_rgb(draft_paths(of / "drafts", job.id)[which]) for job in jobs])
            for of in (run.folder, tiny_run[0] / "run")
        )
        assert (ours != before).any() == differs, "the saved driver is the run's own"
    finalized = next(event.summary for event in ended if event.stage == "finalize")
    assert "2 more control networks beside it" in finalized
    assert {path.name for path in (run.folder / "pipeline").glob("controlnet*")} == {
        *("controlnet", "controlnet_1", "controlnet_2")
    }
    again = [event for event in run_all(run, only=DRAWING) if isinstance(event, StageEnded)]
    assert all(event.skipped for event in again)


def test_other_weights_in_a_folder_make_the_drafts_stale(
    folder: Path, tiny_run: TinyRun, open_tiny: Opened, tmp_path: Path
) -> None:
    shutil.copytree(folder / "published", tmp_path / "published")
    run = open_tiny(folder, tiny_run[1], option({**PUBLISHED, "path": str(tmp_path / "published")}))
    before = keys_of(run)["synthesize"]
    config = tmp_path / "published" / "config.json"
    config.write_text(config.read_text() + " ")
    assert keys_of(run)["synthesize"] != before


def test_a_synthesis_that_was_left_resumes_to_the_same_files(
    drawn: tuple[Run, list[StageEnded]], tmp_path: Path
) -> None:
    run, _ = drawn
    store, config = run.store(), run.config
    also = also_networks(run.sources, config)
    pool = pool_tiles(store, config, further=drivers_of(also))
    plan = store.plan.model_copy(update={"jobs": store.plan.jobs[:2]})
    models = sampling_models(
        store.concept, store.control, device_of("cpu"), base=config.base, mixed_precision="no", also=also
    )
    assert [(of.scale, of.start, of.end) for of in models.further] == [(0.5, 0.0, 1.0), (0.7, 0.0, 0.5)]

    def input_of(job: Any) -> DraftInput:
        driver, empty, tile = pool.drivers(job)
        assert driver.shape == empty.shape == (*tile.shape[:2], 9)
        return DraftInput(
            driver=driver,
            empty_driver=empty,
            tile=tile,
            valid_hw=pool.tile(job).valid_hw,
            mask_guidance=np.full(tile.shape[:2], 2, np.float32),
        )

    def drawing(out: Path) -> Any:
        settings = config.synthesis.model_copy(update={"mode": "full", "batch_size": 1, "mixed_precision": "no"})
        return synthesize(plan, models=models, class_noun="part", input_of=input_of, config=settings, out=out)

    list(drawing(tmp_path / "whole"))
    left = drawing(tmp_path / "left")
    next(left)
    left.close()
    assert [event.resumed_at for event in drawing(tmp_path / "left")] == [1]
    assert digest_folder(tmp_path / "left") == digest_folder(tmp_path / "whole")


def test_insertion_draws_with_all_networks_too(
    drawn: tuple[Run, list[StageEnded]],
    tiny_run: TinyRun,
    open_tiny: Opened,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, loaded = drawn[0].sources.folder, list[Any]()

    def models_of(*given: Any, **options: Any) -> Any:
        loaded.append(sampling_models(*given, **options))
        return loaded[-1]

    monkeypatch.setattr("defectory.tools.insert.sampling_models", models_of)
    pixels = np.random.default_rng(0).integers(60, 200, (64, 88, 3)).astype(np.uint8)
    save_png(tmp_path / "frame.png", pixels)
    project = open_tiny(folder, tiny_run[1], "synthesis.insert_margin_px=4", BOTH)
    # drivers without three channels for each network would not be drawn with
    list(insert_into(project, tmp_path / "frame.png", out=tmp_path / "out", count=1))
    assert [len(models.networks) for models in loaded] == [3]
    assert (load_rgb(next((tmp_path / "out" / "images").glob("*.png"))) != pixels).any()


def test_a_driver_serves_all_networks_that_read_the_same(folder: Path, tiny_run: TinyRun, open_tiny: Opened) -> None:
    driver = np.random.default_rng(0).integers(0, 256, (32, 48, 3)).astype(np.uint8)
    same, other = (
        also_networks(run.sources, run.config)
        for run in (open_tiny(folder, tiny_run[1], option(of)) for of in ({"path": "published"}, PUBLISHED))
    )
    assert np.array_equal(for_all_networks(driver, same), np.concatenate([driver, driver], axis=2))
    assert for_all_networks(np.tile(driver, 2), other).shape == (32, 48, 6)
    with pytest.raises(ConfigError, match="has 3 channels, and 2 networks read 3 each; give one of 6 channels"):
        for_all_networks(driver, other)


def test_networks_are_checked_before_the_run(
    folder: Path, tiny_run: TinyRun, open_tiny: Opened, tmp_path: Path
) -> None:
    def require(*networks: dict[str, Any], overrides: tuple[str, ...] = ()) -> None:
        run = open_tiny(folder, tiny_run[1], option(*networks), *overrides)
        require_also_controls(run.sources, run.config)

    require(OTHER, PUBLISHED)
    with pytest.raises(ConfigError, match=r"synthesis.also_controls 2 .*gone: no such folder"):
        require(OTHER, {"path": "gone"})
    with pytest.raises(ConfigError, match=r"drivers.kind 'depths' is not known|'depths'"):
        require({**PUBLISHED, "drivers": "depths"})
    shutil.copytree(folder / "other", tmp_path / "elsewhere")
    concept = Concept.load(tmp_path / "elsewhere" / "concept" / "concept.json")
    concept.model_copy(update={"base_digest": "0" * 64}).save(tmp_path / "elsewhere" / "concept" / "concept.json")
    with pytest.raises(WeightsError, match=r"was learned on another base \(digest 000000000000"):
        require({"path": str(tmp_path / "elsewhere" / "control")})
    run = open_tiny(folder, tiny_run[1], option({"path": "gone"}), "synthesis.num_images=7")
    with pytest.raises(ConfigError, match="no such folder"):
        list(run_all(run, only=["synthesize"]))


def test_a_network_trained_on_other_drivers_is_told(folder: Path, tiny_run: TinyRun, open_tiny: Opened) -> None:
    def remarks(**network: Any) -> list[str]:
        run = open_tiny(folder, tiny_run[1], option({"path": "other/control", **network}))
        return list(also_remarks(run.sources, run.config, len(run.store().tiles.tileset.categories)))

    assert remarks() == []
    (told,) = remarks(drivers="edges")
    assert told.startswith("synthesis.also_controls 1 was trained on drivers of other settings")


def test_the_plan_counts_further_networks_in_the_steps_in_which_they_act(
    folder: Path, tiny_run: TinyRun, open_tiny: Opened
) -> None:
    speed = Speed(all=1e9, one=1e9, num_threads=1)

    def seconds(*networks: dict[str, Any]) -> float:
        run = open_tiny(folder, tiny_run[1], option(*networks), "synthesis.num_inference_steps=10")
        stages = stages_of(run.config)
        chosen = [stage for stage in stages if stage.name == "synthesize"]
        (found,) = estimate(run, stages, chosen, {}, device="cpu", speed=speed).stages
        assert found.seconds is not None
        return found.seconds

    published = {"path": "published"}
    whole, half, off = (seconds({**published, **of}) for of in ({}, {"end": 0.5}, {"scale": 0}))
    assert off < half < whole
    # loading takes as long in each case
    assert half - off == pytest.approx((whole - off) / 2)


def test_the_provenance_names_the_weights_of_all_networks(
    drawn: tuple[Run, list[StageEnded]], folder: Path, tiny_run: TinyRun
) -> None:
    control = Control.load(folder / "other" / "control" / "control.json")
    assert control.weights_digest == digest_folder(folder / "other" / "control" / "controlnet")
    expected = [control.weights_digest, digest_folder(folder / "published")]

    def records(run: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (run / "synthetic" / "provenance.jsonl").read_text().splitlines()]

    assert [of["also_control_digests"] for of in records(drawn[0].folder)] == [expected] * len(records(folder / "run"))
    assert not any("also_control_digests" in of for of in records(tiny_run[0] / "run"))
