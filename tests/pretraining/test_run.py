from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from safetensors.torch import load_file

from defectory.engine.backbones.load import load_base
from defectory.engine.features.encoder import EMBEDDED_NAME, load_encoder
from defectory.engine.training.events import Step, Validated
from defectory.errors import StageError
from defectory.events import Notice, Progress
from defectory.files import digest_file, digest_folder
from defectory.pretraining.config import PretrainConfig
from defectory.pretraining.run import pretrain

Made = tuple[Path, list[Progress | Notice]]
Start = Callable[[PretrainConfig, Path], Any]


def test_every_stage_takes_its_steps_in_order(made: Made) -> None:
    _, events = made
    steps = [(s, i) for s in ("vae", "diffusion", "control", "encoder") for i in range(1, 7)]
    work = [e for e in events if isinstance(e, Step) or e.stage == "latents"]
    assert [(e.stage, e.done) for e in work if isinstance(e, Progress)] == [*steps[:6], ("latents", 24), *steps[6:]]
    assert all(np.isfinite(e.loss) and e.total == 6 for e in work if isinstance(e, Step))


def test_held_out_losses_are_kept_and_samples_drawn_beside_them(made: Made) -> None:
    out, events = made
    checks = [e for e in events if isinstance(e, Validated)]
    assert [(e.stage, e.step) for e in checks] == [("diffusion", 4), ("diffusion", 6), ("control", 4), ("control", 6)]
    kept = json.loads((out / "work" / "held_out.json").read_text())
    assert {(stage, int(step)): value for stage, of in kept.items() for step, value in of.items()} == {
        (e.stage, e.step): e.held_out_loss for e in checks
    }
    assert sorted(p.name for p in (out / "work" / "samples").iterdir()) == ["step-000004.png", "step-000006.png"]


def test_the_base_is_whole_and_is_fp16(made: Made) -> None:
    base = made[0] / "base"
    models = load_base(base)
    assert models.controlnet is not None
    assert (models.tile_px, models.latent_factor, models.latent_channels) == (32, 4, 4)
    assert models.scheduler.config["prediction_type"] == "v_prediction"
    assert models.scheduler.config["rescale_betas_zero_snr"] is True
    for weights in base.rglob("*.safetensors"):
        assert {value.dtype for value in load_file(weights).values() if value.is_floating_point()} == {torch.float16}, (
            weights
        )
    digests = json.loads((base / "digests.json").read_text())
    files = {
        p.relative_to(base).as_posix(): digest_file(p)
        for p in base.rglob("*")
        if p.is_file() and p.name not in ("digests.json", ".defectory.json")
    }
    assert digests == files
    assert not [p for p in base.rglob("*.json") if str(made[0]) in p.read_text()], "no path of this machine"
    assert len(models.tokenizer("an image of a sks")["input_ids"]) == 7, "one token per word that users' prompts hold"


def test_plain_diffusers_draws_with_it(made: Made) -> None:
    base = made[0] / "base"
    control = ControlNetModel.from_pretrained(base / "controlnet", torch_dtype=torch.float32)
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(
        base, controlnet=control, torch_dtype=torch.float32, safety_checker=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline(
        "an image of a ceramic with a crack",
        image=torch.zeros(1, 3, 32, 48),
        height=32,
        width=48,
        num_inference_steps=2,
        output_type="np",
    ).images[0]
    assert image.shape == (32, 48, 3)
    assert np.isfinite(image).all()


def test_the_encoder_is_loaded_by_its_name_and_embeds(made: Made) -> None:
    encoder, name = load_encoder(made[0] / "encoder")
    assert name == EMBEDDED_NAME
    features = encoder.embed(torch.rand(2, 3, 32, 48) * 2 - 1)
    assert features.shape[0] == 2
    assert torch.isfinite(features).all()
    assert not torch.equal(features[0], features[1])


def test_a_run_that_was_left_resumes_and_ends_the_same(
    made: Made, start: Start, tiny_recipe: PretrainConfig, tmp_path: Path
) -> None:
    for stage, step in (("vae", 3), ("diffusion", 6), ("control", 2)):
        events = start(tiny_recipe, tmp_path)
        for event in events:
            if isinstance(event, Step) and (event.stage, event.done) == (stage, step):
                events.close()
    rest = [(e.stage, e.done) for e in start(tiny_recipe, tmp_path) if isinstance(e, Step)]
    assert rest == [*(("control", i) for i in range(3, 7)), *(("encoder", i) for i in range(1, 7))]
    for name in ("base", "encoder"):
        assert digest_folder(tmp_path / name) == digest_folder(made[0] / name)


def test_a_finished_work_folder_gives_the_base_again_without_a_step(
    made: Made, geometry_of: Callable[[Any, Any], Any], tiny_recipe: PretrainConfig, tmp_path: Path
) -> None:
    again = list(
        pretrain(
            tiny_recipe, work=made[0] / "work", base_out=tmp_path / "base", encoder_out=None, geometry_of=geometry_of
        )
    )
    assert not [event for event in again if isinstance(event, Step | Validated)]
    assert digest_folder(tmp_path / "base") == digest_folder(made[0] / "base")
    assert not [p for p in (tmp_path / "base").rglob("*.json") if str(made[0]) in p.read_text()], (
        "no path of this machine"
    )


def test_a_work_folder_of_another_recipe_is_refused(made: Made, start: Start, tiny_recipe: PretrainConfig) -> None:
    other = tiny_recipe.model_copy(update={"seed": 9})
    with pytest.raises(StageError, match="holds checkpoints of another recipe; choose another work folder"):
        next(start(other, made[0]))


@pytest.mark.long
def test_another_start_is_taken_up(made: Made, start: Start, tiny_recipe: PretrainConfig, tmp_path: Path) -> None:
    recipe = tiny_recipe.model_copy(
        update={
            "start": str(made[0] / "base"),
            "diffusion": tiny_recipe.diffusion.model_copy(update={"learning_rate": 1e-12}),
        }
    )
    events = list(start(recipe, tmp_path))
    assert len([e for e in events if isinstance(e, Step)]) == 18, "the start's autoencoder is kept"
    before, after = (load_base(folder / "base") for folder in (made[0], tmp_path))
    assert before.scaling_factor == after.scaling_factor
    for name, value in before.unet.state_dict().items():
        assert torch.allclose(value, after.unet.state_dict()[name], atol=1e-3), name


def test_the_base_stays_as_it_is_while_the_control_network_learns(made: Made) -> None:
    before = load_file(made[0] / "work" / "checkpoints" / "diffusion" / "state.safetensors")
    trained = {key.removeprefix("average."): value for key, value in before.items() if key.startswith("average.")}
    models = load_base(made[0] / "base")
    for prefix, module in (("unet", models.unet), ("text_encoder", models.text_encoder)):
        for name, value in module.named_parameters():
            assert torch.allclose(trained[f"{prefix}.{name}"], value, atol=1e-3), f"{prefix}.{name}"


@pytest.mark.long
def test_killed_three_times_it_ends_with_the_same_files(
    tiny_recipe: PretrainConfig, kill_three_times: Callable[..., tuple[Path, Path]]
) -> None:
    whole, killed = kill_three_times(
        f"""
        from defectory.drivers.config import DriverConfig
        from defectory.drivers.extract import geometry_map
        from defectory.pretraining.config import PretrainConfig
        from defectory.pretraining.run import pretrain
        def geometry_of(image, mask):
            return geometry_map(image, config=DriverConfig(grid_px=8), blind=[mask])
        def stage(out):
            config = PretrainConfig.model_validate_json({tiny_recipe.model_dump_json()!r})
            where = {{"work": out / "work", "base_out": out / "base", "encoder_out": out / "encoder"}}
            for _ in pretrain(config, **where, geometry_of=geometry_of):
                pass
        """
    )
    for name in ("base", "encoder"):
        assert digest_folder(killed / name) == digest_folder(whole / name)
