"""Several condition networks at once: their effects are added, each in its own steps, as in plain diffusers."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import MultiControlNetModel, StableDiffusionControlNetPipeline

from defectory.artifacts.weights import Control
from defectory.condition.finalize import finalize_pipeline
from defectory.condition.networks.adapter import Adapter
from defectory.condition.networks.controlnet import ControlNet
from defectory.condition.networks.hypernetwork import Hypernetwork
from defectory.engine.backbones.embeddings import encode_prompts
from defectory.engine.backbones.load import load_base
from defectory.engine.backbones.steering import Share, predict_steered
from defectory.engine.sampling.guidance import Guidance
from defectory.engine.sampling.models import FurtherNetwork, SamplingModels, for_sampling
from defectory.engine.sampling.sample import Conditions, Sampler, sample_images, sample_noise

PROMPT = "an image of a sks with a crack"
NUM_STEPS = 4


def with_random_weights(network: Any, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return network


@pytest.fixture(scope="module")
def backbone(tiny_base_folder: Path) -> Any:
    return load_base(tiny_base_folder)


@pytest.fixture(scope="module")
def networks(backbone: Any) -> dict[str, Any]:
    """The base's own control network, and one of each kind with random weights."""
    made = {
        "controlnet": with_random_weights(ControlNet.start(backbone, init="copy", seed=1), 1),
        "adapter": with_random_weights(Adapter.start(backbone, init="auto", seed=2), 2),
        "hypernetwork": with_random_weights(Hypernetwork.start(backbone, init="auto", seed=3), 3),
    }
    return {"own": ControlNet(backbone.controlnet), **made}


def driver(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (32, 48, 3)).astype(np.uint8)


def draw(backbone: Any, own: Any, further: list[FurtherNetwork], drivers: list[np.ndarray], **guidance: Any) -> Any:
    return sample_images(
        SamplingModels(backbone=backbone, network=own, further=tuple(further)),
        Conditions(prompts=[PROMPT], drivers=[np.concatenate(drivers, axis=2)]),
        seeds=[7],
        sampler=Sampler(scheduler="base", num_inference_steps=NUM_STEPS),
        guidance=Guidance(**guidance),
    )[0].astype(np.int64)


def test_one_network_twice_at_half_strength_is_that_network_at_full_strength(
    backbone: Any, networks: dict[str, Any]
) -> None:
    own, alone = networks["own"], [driver(1)]
    whole = draw(backbone, own, [], alone)
    halves = draw(backbone, own, [FurtherNetwork(network=own, scale=0.5)], alone * 2, control=0.5)
    assert np.abs(halves - whole).max() <= 1
    assert np.abs(draw(backbone, own, [], alone, control=0.5) - whole).max() > 1


def test_a_network_of_strength_0_or_outside_its_steps_is_as_if_it_were_not_there(
    backbone: Any, networks: dict[str, Any]
) -> None:
    own, other, drivers = networks["own"], networks["controlnet"], [driver(1), driver(2)]
    alone = draw(backbone, own, [], drivers[:1])
    for without in (FurtherNetwork(network=other, scale=0.0), FurtherNetwork(network=other, start=0.3, end=0.45)):
        # drivers that lie otherwise in memory may be rounded otherwise
        assert np.abs(draw(backbone, own, [without], drivers) - alone).max() <= 1
    assert np.abs(draw(backbone, own, [FurtherNetwork(network=other, end=0.5)], drivers) - alone).max() > 1
    # the further one acts where the run's own does not
    late = draw(backbone, own, [FurtherNetwork(network=other, start=0.5)], drivers, control_end=0.5)
    assert np.abs(late - draw(backbone, own, [], drivers[:1], control_end=0.5)).max() > 1


def test_kinds_of_networks_act_together_in_any_order_and_leave_nothing_behind(
    backbone: Any, networks: dict[str, Any]
) -> None:
    noisy = torch.randn((2, 4, 8, 12), generator=torch.Generator().manual_seed(0))
    timesteps, context = torch.tensor([5, 900]), encode_prompts(backbone, ["a crack", "a blowhole"])
    drivers = torch.rand((2, 3, 32, 48), generator=torch.Generator().manual_seed(1))
    shares = {name: Share(network=network, drivers=drivers, scale=0.5) for name, network in networks.items()}
    with torch.no_grad():
        plain = backbone.predict(noisy, timesteps, context)

        def predicted(names: Any) -> torch.Tensor:
            return predict_steered(backbone, noisy, timesteps, context, [shares[name] for name in names])

        together = predicted(shares)
        for order in list(permutations(shares))[1::5]:
            assert torch.allclose(predicted(order), together, atol=1e-4)
        for left_out in shares:
            fewer = predicted([name for name in shares if name != left_out])
            assert (fewer - together).abs().max() > 1e-3, left_out
        assert torch.equal(backbone.predict(noisy, timesteps, context), plain)


def test_each_kind_steers_alone_as_it_predicts(backbone: Any, networks: dict[str, Any]) -> None:
    noisy = torch.randn((2, 4, 8, 12), generator=torch.Generator().manual_seed(0))
    given = (noisy, torch.tensor([5, 900]), encode_prompts(backbone, ["a crack", "a blowhole"]))
    drivers = torch.rand((2, 3, 32, 48), generator=torch.Generator().manual_seed(1))
    for network in networks.values():
        with torch.no_grad(), network.steer(backbone, *given, drivers, scale=0.7) as added:
            steered = backbone.predict(*given, residuals=added)
        with torch.no_grad():
            assert torch.equal(steered, network.predict(backbone, *given, drivers, scale=0.7))


def test_in_bf16_further_networks_are_held_in_bf16_too(tiny_base_folder: Path) -> None:
    backbone = load_base(tiny_base_folder)
    other = ControlNet.start(backbone, init="copy", seed=1)
    models = for_sampling(backbone, ControlNet(backbone.controlnet), further=[FurtherNetwork(network=other)])
    models.in_bf16()
    assert other.module.conv_in.weight.dtype == torch.bfloat16


@pytest.fixture(scope="module")
def pipeline(
    backbone: Any, tiny_base_folder: Path, networks: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished pipeline of the base's own control network and a second one."""
    folder = tmp_path_factory.mktemp("finished")
    ControlNet(backbone.controlnet).save(folder / "control" / "controlnet")
    Control(concept_digest="c", driver_config_digest="d", weights_digest="w").save(folder / "control/control.json")
    out = folder / "pipeline"
    finalize_pipeline(load_base(tiny_base_folder), folder / "control", out, further=[networks["controlnet"]])
    return out


@pytest.fixture(scope="module")
def plain(pipeline: Path) -> Any:
    """The same pipeline as diffusers opens it."""
    joined = MultiControlNetModel.from_pretrained(str(pipeline / "controlnet"))
    assert len(joined.nets) == 2
    opened = StableDiffusionControlNetPipeline.from_pretrained(pipeline, controlnet=joined)
    opened.set_progress_bar_config(disable=True)
    return opened


@pytest.mark.parametrize(
    ("scales", "starts", "ends"), [((1.0, 0.6), (0.0, 0.0), (1.0, 1.0)), ((0.8, 1.5), (0.2, 0.5), (0.75, 1.0))]
)
def test_plain_diffusers_draws_the_same_with_a_list_of_control_networks(
    backbone: Any,
    networks: dict[str, Any],
    plain: Any,
    scales: tuple[float, float],
    starts: tuple[float, float],
    ends: tuple[float, float],
) -> None:
    drivers = [driver(1), driver(2)]
    expected = plain(
        PROMPT,
        image=[torch.from_numpy(one).permute(2, 0, 1)[None].float() / 255 for one in drivers],
        height=32,
        width=48,
        num_inference_steps=NUM_STEPS,
        guidance_scale=3.0,
        negative_prompt="",
        controlnet_conditioning_scale=list(scales),
        control_guidance_start=list(starts),
        control_guidance_end=list(ends),
        latents=sample_noise([7], (4, 8, 12)),
        output_type="np",
    ).images[0]
    second = FurtherNetwork(network=networks["controlnet"], scale=scales[1], start=starts[1], end=ends[1])
    ours = draw(
        backbone,
        networks["own"],
        [second],
        drivers,
        text=3.0,
        control=scales[0],
        control_start=starts[0],
        control_end=ends[0],
    )
    assert np.abs(ours - expected * 255).max() < 1.5
    assert np.abs(ours - draw(backbone, networks["own"], [], drivers[:1], text=3.0)).max() > 3


def test_networks_that_no_pipeline_takes_together_are_not_written(
    tiny_base_folder: Path, networks: dict[str, Any], pipeline: Path, tmp_path: Path
) -> None:
    out = tmp_path / "pipeline"
    control = pipeline.parent / "control"
    kind, _ = finalize_pipeline(load_base(tiny_base_folder), control, out, further=[networks["adapter"]])
    assert kind == "StableDiffusionControlNetPipeline"
    assert [path.name for path in out.glob("controlnet*")] == ["controlnet"]
