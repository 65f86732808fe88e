from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

import defectory
from defectory import check_machine
from defectory.api.machine import plan_demo, presets_here
from defectory.config.presets import GPU_PRESETS
from defectory.procedural.borescope import write_dataset
from defectory.stages.parts.estimate.preset_needs import preset_needs, stable_diffusion_15


def test_the_machine_is_described_in_words() -> None:
    found = check_machine()
    assert found["defectory"] == defectory.__version__
    assert found["embedded base"] == "whole"
    assert {"python", "torch", "diffusers", "cpu", "precision", "disk here"} <= set(found)
    assert all(isinstance(text, str) and text for text in found.values())


@pytest.mark.parametrize(("has", "expected"), [(True, "bf16"), (False, "fp32; the processor has no instructions")])
def test_the_precision_here_is_told(monkeypatch: pytest.MonkeyPatch, has: bool, expected: str) -> None:
    monkeypatch.setattr("defectory.engine.precision.has_bf16", lambda device_type: has)
    assert check_machine()["precision"].startswith(expected)


def test_networks_of_stable_diffusion_have_the_sizes_that_are_known_of_them() -> None:
    base = stable_diffusion_15()
    parts = (base.denoiser, base.control, base.text_encoder, base.encoder + base.decoder)
    assert [round(part.num_parameters / 1e6) for part in parts] == [860, 361, 123, 84]
    # 0.4 trillion multiply-adds for one image of 512 px
    assert base.denoiser.multiply_adds == pytest.approx(0.40e12, rel=0.03)


def test_each_gpu_preset_fits_the_card_that_it_is_for_and_a_larger_one_uses_more() -> None:
    needs = preset_needs()
    assert [need.preset for need in needs] == list(GPU_PRESETS)
    for need in needs:
        assert need.needed_bytes < 0.92 * need.card_gib * 2**30, need
    assert [need.needed_bytes for need in needs] == sorted(need.needed_bytes for need in needs)


def test_presets_say_whether_they_fit_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    class Card:
        total_memory = int(15.6 * 2**30)

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: Card())
    fits = {fit.preset: fit.fits for fit in presets_here()}
    assert fits == {
        "cpu": True,
        "gpu-8gb": True,
        "gpu-12gb": True,
        "gpu-16gb": True,
        "gpu-24gb": False,
        "gpu-80gb": False,
    }
    assert "16 GiB" in next(fit.why for fit in presets_here() if fit.preset == "gpu-80gb")


def test_the_demo_is_planned_before_it_has_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = partial(write_dataset, num_labelled=4, num_defect_free=4)
    monkeypatch.setattr("defectory.api.demo.write_dataset", few)
    monkeypatch.chdir(tmp_path)
    planned, _ = plan_demo()
    assert {"learn-concept", "learn-condition", "synthesize", "report"} <= {stage.stage for stage in planned.stages}
    assert planned.seconds > 60
    assert planned.folder == Path("runs/demo")
    assert not list(tmp_path.iterdir()), "nothing is left behind"
