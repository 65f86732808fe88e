"""Bases of Stable Diffusion 2.x: what they predict is read from the scheduler; texts are encoded as in diffusers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from defectory.engine.backbones.load import load_base
from defectory.engine.backbones.verify import verify, verify_layout
from defectory.errors import WeightsError

Edit = Callable[[dict[str, Any]], Any]


def edit(path: Path, change: Edit) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.fixture
def copy(tiny_stable_diffusion_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_stable_diffusion_folder, tmp_path / "copy"))


def as_sd2(folder: Path, *, latent_px: int, prediction_type: str | None) -> None:
    """Write the sizes of Stable Diffusion 2.x into the settings; the weights stay tiny and are not read."""
    edit(folder / "unet" / "config.json", lambda c: c.update(cross_attention_dim=1024, sample_size=latent_px))
    edit(folder / "text_encoder" / "config.json", lambda c: c.update(hidden_size=1024))
    edit(
        folder / "scheduler" / "scheduler_config.json",
        lambda c: (
            c.pop("prediction_type", None) if prediction_type is None else c.update(prediction_type=prediction_type)
        ),
    )


@pytest.mark.parametrize(
    ("latent_px", "prediction_type", "tile_px"),
    [(96, "v_prediction", 768), (64, "epsilon", 512), (64, "v_prediction", 512)],
)
def test_prediction_and_size_of_2x_are_read(copy: Path, latent_px: int, prediction_type: str, tile_px: int) -> None:
    as_sd2(copy, latent_px=latent_px, prediction_type=prediction_type)
    facts = verify_layout(copy)
    assert (facts.prediction_type, facts.tile_px, facts.text_width) == (prediction_type, tile_px, 1024)


@pytest.mark.parametrize(
    ("latent_px", "prediction_type", "said"),
    [
        (96, None, "names no prediction_type, but Stable Diffusion 2.x for 768 px predicts v"),
        (96, "epsilon", "says prediction_type epsilon, but Stable Diffusion 2.x for 768 px predicts v"),
        (64, None, "names no prediction_type, and bases of Stable Diffusion 2.x differ in it"),
        (96, "sample", "predicts sample"),
    ],
)
def test_a_missing_or_wrong_prediction_of_2x_is_one_line(
    copy: Path, latent_px: int, prediction_type: str | None, said: str
) -> None:
    as_sd2(copy, latent_px=latent_px, prediction_type=prediction_type)
    with pytest.raises(WeightsError, match=said) as caught:
        verify_layout(copy)
    assert "\n" not in str(caught.value)


def test_the_first_files_of_1x_name_no_prediction_and_predict_noise(copy: Path) -> None:
    edit(copy / "scheduler" / "scheduler_config.json", lambda c: c.pop("prediction_type"))
    assert verify(copy).prediction_type == "epsilon"
    assert load_base(copy).scheduler.config["prediction_type"] == "epsilon"


def test_openclip_encoder_and_v_prediction_are_as_in_plain_diffusers(copy: Path) -> None:
    """2.x reads the penultimate layer of OpenCLIP: its files hold one layer less, GELU, and `!` for padding."""
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextModel

    text = CLIPTextModel.from_pretrained(copy / "text_encoder")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = type(text.config).from_dict({**text.config.to_dict(), "hidden_act": "gelu", "num_hidden_layers": 2})
        CLIPTextModel(config).save_pretrained(copy / "text_encoder")
    edit(copy / "scheduler" / "scheduler_config.json", lambda c: c.update(prediction_type="v_prediction"))
    ours = load_base(copy)
    theirs = StableDiffusionPipeline.from_pretrained(copy, safety_checker=None, local_files_only=True)
    with torch.no_grad():
        expected, _ = theirs.encode_prompt("an image of a crack", "cpu", 1, do_classifier_free_guidance=False)
        found = ours.encode_prompts(["an image of a crack"]).tokens
    assert ours.networks["text_encoder"].config.hidden_act == "gelu"
    torch.testing.assert_close(found, expected)
    assert verify(copy).prediction_type == theirs.scheduler.config["prediction_type"] == "v_prediction"
