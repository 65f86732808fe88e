"""A condition network of somebody else's: one class, registered from outside, trained and drawn with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from defectory.artifacts.weights import Concept, Control
from defectory.condition.config import ConditionConfig
from defectory.condition.finalize import finalize_pipeline
from defectory.condition.learn import learn_condition, load_adapted_base
from defectory.condition.load import load_network
from defectory.condition.networks import CONDITION_NETWORKS
from defectory.engine.backbones.backbone import Backbone
from defectory.engine.backbones.save import save_base_like
from defectory.engine.sampling.guidance import Guidance
from defectory.engine.sampling.models import for_sampling
from defectory.engine.sampling.sample import Conditions, Sampler, sample_images
from defectory.engine.training.config import TrainingConfig
from defectory.errors import PipelineError
from defectory.events import finish

Tiles = Callable[..., list[Any]]
TRAINING = TrainingConfig(num_steps=4, batch_size=4, variants_per_image=1, warmup_steps=0, learning_rate=0.05)


class WeightPredictor:
    """A HyperNetwork: it predicts the bias of the denoiser's last layer from each driver's mean colour."""

    folder: ClassVar[str] = "outsider"

    def __init__(self, num_channels: int) -> None:
        self.module = nn.Linear(3, num_channels)
        for parameter in self.module.parameters():
            nn.init.zeros_(parameter)

    @classmethod
    def start(cls, backbone: Backbone, *, init: str, seed: int) -> WeightPredictor:
        return cls(backbone.latent_channels)

    @classmethod
    def load(cls, folder: Path, backbone: Backbone) -> WeightPredictor:
        network = cls(backbone.latent_channels)
        network.module.load_state_dict(load_file(folder / "model.safetensors"))
        return network

    def save(self, folder: Path) -> None:
        save_file(self.module.state_dict(), folder / "model.safetensors")

    def predict(
        self, backbone: Any, x: Any, timesteps: Any, context: Any, drivers: Any, *, scale: float = 1.0
    ) -> Tensor:
        own = backbone.denoiser.get_parameter("conv_out.bias")
        biases = own + scale * self.module(drivers.mean(dim=(2, 3)))
        times = timesteps.expand(len(x))

        def one(i: Tensor) -> Tensor:
            return backbone.predict(x[i], times[i], context.select(i), weights={"conv_out.bias": biases[i[0]]})

        return torch.cat([one(i) for i in torch.arange(len(x)).split(1)])


@pytest.fixture
def concept(tiny_base_folder: Path, tmp_path: Path) -> Path:
    save_base_like(tiny_base_folder, tmp_path / "concept" / "base", replaced={})
    value = Concept(
        method="dreambooth",
        instance_token="sks",
        class_noun="part",
        tone_words=True,
        base_digest="b",
        weights_digest="w",
    )
    value.save(tmp_path / "concept" / "concept.json")
    return tmp_path / "concept"


def test_a_network_from_outside_is_trained_saved_and_drawn_with(
    concept: Path, training_tiles: Tiles, tmp_path: Path
) -> None:
    with CONDITION_NETWORKS.registered("outsider", WeightPredictor):
        work = learn_condition(
            training_tiles(),
            concept=concept,
            config=ConditionConfig(network="outsider", training=TRAINING),
            make_driver=lambda image, *_: image // 5,
            driver_digest="d",
            seed=1,
            out=tmp_path / "control",
            held_out=training_tiles(2, seed=5),
        )
        control = finish(work)
        backbone = load_adapted_base(concept)
        network = load_network(tmp_path / "control", backbone)
        with pytest.raises(PipelineError, match="plain diffusers cannot draw with"):
            finalize_pipeline(backbone, tmp_path / "control", tmp_path / "pipeline")
    assert Control.load(tmp_path / "control" / "control.json") == control
    assert control.network == "outsider"
    assert any(parameter.abs().max() > 0 for parameter in network.module.parameters())
    driver = np.full((32, 48, 3), 200, np.uint8)

    def drawn(control_scale: float, *, steered: bool = True) -> np.ndarray:
        return sample_images(
            for_sampling(backbone, network),
            Conditions(prompts=["a sks"] * 2, drivers=[driver, driver // 4] if steered else None),
            seeds=[1, 1],
            sampler=Sampler(scheduler="ddim", num_inference_steps=2),
            guidance=Guidance(control=control_scale),
        )

    strong = drawn(50.0)
    assert (strong[0] != strong[1]).any(), "each sample has weights of its own"
    still = drawn(0.0)
    assert (still[0] == still[1]).all()
