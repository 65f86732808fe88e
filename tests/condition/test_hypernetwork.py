"""The hypernetwork changes weights as its equation says, for each sample, and draws in plain diffusers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from defectory.artifacts.weights import Control
from defectory.condition.finalize import finalize_pipeline
from defectory.condition.load import load_network
from defectory.condition.networks.hypernetwork import Hypernetwork
from defectory.engine.backbones.embeddings import encode_prompts
from defectory.engine.backbones.load import load_base
from defectory.engine.sampling.models import for_sampling
from defectory.engine.sampling.sample import Conditions, Sampler, sample_images
from defectory.errors import WeightsError
from defectory.files import digest_folder

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "condition-networks.md"
DRIVERS = torch.rand((2, 3, 32, 48), generator=torch.Generator().manual_seed(1))
NOISY = torch.randn((2, 4, 8, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def models(tiny_base_folder: Path) -> Any:
    return load_base(tiny_base_folder)


def strong(models: Any, *, with_maps: bool = True) -> Hypernetwork:
    """Make a hypernetwork as training may leave it, with effects of a size that can be seen."""
    network = Hypernetwork.start(models, init="auto", seed=3, hypernetwork_rank=2)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for layer in network.module.columns.values():
            layer.weight.normal_(std=0.02, generator=generator)
        for layer in network.module.maps if with_maps else ():
            layer.weight.normal_(std=0.5, generator=generator)
    return network


def predict(network: Hypernetwork, models: Any, rows: slice = slice(None), **options: Any) -> Tensor:
    context = encode_prompts(models, ["a crack", "a blowhole"][rows])
    return network.predict(models, NOISY[rows], torch.tensor([5, 900])[rows], context, DRIVERS[rows], **options)


def hooks_of(models: Any) -> int:
    return sum(len(layer._forward_hooks) for layer in models.denoiser.modules())


@torch.no_grad()
def test_a_change_is_a_low_rank_update_of_each_projections_weight(models: Any) -> None:
    network = strong(models, with_maps=False)
    changes, _, _ = network.module(DRIVERS[:1])
    assert len(changes) == 8 * sum(name.endswith("attn2.to_q") for name in changes) > 0
    updated = {
        f"{name}.weight": models.denoiser.get_parameter(f"{name}.weight") + 0.7 * (columns @ rows)[0]
        for name, (rows, columns) in changes.items()
    }
    context = encode_prompts(models, ["a crack"])
    wanted = models.predict(NOISY[:1], torch.tensor([5]), context, weights=updated)
    assert torch.allclose(predict(network, models, slice(0, 1), scale=0.7), wanted, atol=1e-5)
    assert (wanted - models.predict(NOISY[:1], torch.tensor([5]), context)).abs().max() > 1e-3


@torch.no_grad()
def test_each_sample_has_weights_of_its_own_and_guidance_repeats_them(models: Any) -> None:
    network = strong(models)
    both = predict(network, models)
    for i in range(2):
        assert torch.allclose(both[i : i + 1], predict(network, models, slice(i, i + 1)), atol=1e-5)
    context = encode_prompts(models, ["a crack", "a blowhole"] * 2)
    with network.module.steering(models.denoiser, DRIVERS):
        twice = models.predict(NOISY.repeat(2, 1, 1, 1), torch.tensor([5, 900, 5, 900]), context)
    assert torch.allclose(twice, both.repeat(2, 1, 1, 1), atol=1e-5)
    assert hooks_of(models) == 0


@torch.no_grad()
def test_it_knows_where_a_driver_shows_something(models: Any) -> None:
    network = strong(models)
    corner, moved = torch.zeros(2, 1, 3, 32, 48)
    corner[..., 4:12, 4:12], moved[..., 20:28, 36:44] = 1, 1
    for level, map_ in enumerate(network.module(corner)[1]):
        there = (map_ - network.module(torch.zeros_like(corner))[1][level]).abs().sum(dim=1)[0]
        elsewhere = (network.module(moved)[1][level] - map_).abs().sum(dim=1)[0]
        assert there.argmax() != elsewhere.argmin()
        assert elsewhere.max() > 1e-3
    assert (predict(network, models) - predict(network, models, scale=0)).abs().max() > 1e-2


def test_gradients_are_the_same_with_checkpointing_and_nothing_stays_behind(models: Any) -> None:
    gradients: list[dict[str, Tensor]] = []
    for checkpoints in (False, True):
        network = strong(models)
        network.module.requires_grad_(True)
        if checkpoints:
            models.denoiser.enable_gradient_checkpointing()
            models.denoiser.train()
        predict(network, models).square().mean().backward()
        gradients.append({name: p.grad for name, p in network.module.named_parameters() if p.grad is not None})
        assert hooks_of(models) == 0
    assert len(gradients[0]) == len(list(network.module.parameters()))
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.allclose(a, gradients[1][name], atol=1e-6) for name, a in gradients[0].items())


def test_an_error_in_the_middle_leaves_the_base_as_it_was(models: Any) -> None:
    network = strong(models)
    with pytest.raises(RuntimeError):
        network.predict(models, NOISY[:, :3], torch.tensor([5, 900]), encode_prompts(models, ["a", "a"]), DRIVERS)
    assert hooks_of(models) == 0


@torch.no_grad()
def test_weights_held_in_bf16_give_the_same_changes_and_maps(models: Any, tiny_base_folder: Path) -> None:
    network, held = strong(models), strong(models)
    for_sampling(models, network)
    for_sampling(load_base(tiny_base_folder), held).in_bf16()
    assert held.module.read.weight.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        (changes, maps, _), (changes_held, maps_held, _) = network.module(DRIVERS), held.module(DRIVERS)
    assert all(torch.equal(map_, maps_held[i]) for i, map_ in enumerate(maps))
    for name, (rows, columns) in changes.items():
        assert torch.equal(rows, changes_held[name][0])
        assert torch.equal(columns, changes_held[name][1])


def test_a_folder_that_does_not_fit_is_one_clear_line(models: Any, tmp_path: Path) -> None:
    network = strong(models)
    network.save(tmp_path)
    assert torch.equal(predict(Hypernetwork.load(tmp_path, models), models), predict(network, models))
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"rank": 2', '"rank": 3'))
    with pytest.raises(WeightsError, match="is no hypernetwork"):
        Hypernetwork.load(tmp_path, models)
    (tmp_path / "config.json").write_text(text.replace("attn2.to_v", "attn3.to_v"))
    with pytest.raises(WeightsError, match="was made for a UNet of other sizes"):
        Hypernetwork.load(tmp_path, models)


def test_the_guides_script_draws_the_same_image_with_plain_diffusers_alone(
    models: Any, tiny_base_folder: Path, tmp_path: Path
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    code = next(block for block in blocks if "HyperNetwork" in block)
    network = strong(models)
    network.save(tmp_path / "hypernetwork")
    Control(network="hypernetwork", concept_digest="c", driver_config_digest="d", weights_digest="w").save(
        tmp_path / "control.json"
    )
    assert isinstance(load_network(tmp_path, models), Hypernetwork)
    finished = finalize_pipeline(load_base(tiny_base_folder), tmp_path, tmp_path / "pipeline")
    assert finished == ("StableDiffusionPipeline", digest_folder(tmp_path / "pipeline"))
    driver = (DRIVERS[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    Image.fromarray(driver).save(tmp_path / "driver.png")
    (tmp_path / "guide.py").write_text("import sys\nsys.modules['defectory'] = None\n" + code)
    prompt = "an image of a sks with a crack"
    done = subprocess.run(
        [sys.executable, "guide.py", ".", "driver.png", prompt],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    ours, plain = (
        sample_images(
            for_sampling(models, steering),
            Conditions(prompts=[prompt], drivers=[driver]),
            seeds=[0],
            sampler=Sampler(scheduler="base", num_inference_steps=20),
        )[0].astype(int)
        for steering in (network, Hypernetwork.start(models, init="auto", seed=0))
    )
    drawn = np.asarray(Image.open(tmp_path / "drawn.png")).astype(int)
    assert np.abs(drawn - ours).max() <= 1
    assert np.abs(drawn - plain).max() > 5
