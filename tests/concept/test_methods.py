"""A concept method of somebody else's: one class, registered from outside, trained and drawn with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from defectory.artifacts.weights import Concept
from defectory.concept.config import ConceptConfig
from defectory.concept.learn import learn_concept
from defectory.concept.load import load_concept
from defectory.concept.methods import CONCEPT_METHODS
from defectory.engine.backbones.backbone import Backbone
from defectory.engine.backbones.load import load_base
from defectory.engine.sampling.models import SamplingModels
from defectory.engine.sampling.sample import Conditions, Sampler, sample_images
from defectory.engine.training.config import TrainingConfig
from defectory.errors import ConfigError, WeightsError
from defectory.events import finish

Tiles = Callable[..., list[Any]]
TRAINING = TrainingConfig(num_steps=3, batch_size=4, variants_per_image=1, warmup_steps=0, learning_rate=0.1)


class OutputBias:
    """Learns the bias of the denoiser's last layer, an adapter of a few numbers."""

    folder: ClassVar[str] = "bias"
    preserves_prior: ClassVar[bool] = False
    needs_base: ClassVar[bool] = True

    def __init__(self, backbone: Backbone, token: str) -> None:
        self.instance_token = f"{token} part"
        self.parameters = {"bias": bias_of(backbone).requires_grad_(True)}

    @classmethod
    def start(cls, backbone: Backbone, config: ConceptConfig, *, instance_token: str, seed: int) -> OutputBias:
        return cls(backbone, instance_token)

    def prompt(self, class_names: Sequence[str], *, tone: str, defect_noun: str) -> str:
        return " ".join(["a", self.instance_token, *class_names])

    def save(self, folder: Path, *, base: Path) -> None:
        save_file({"bias": self.parameters["bias"].detach()}, folder / "bias.safetensors")

    @classmethod
    def load(cls, folder: Path, *, base: Path | None, device: torch.device) -> Backbone:
        assert base is not None
        backbone = load_base(base, device)
        bias_of(backbone).copy_(load_file(folder / "bias.safetensors")["bias"])
        return backbone


def bias_of(backbone: Backbone) -> torch.nn.Parameter:
    denoiser: Any = backbone.denoiser
    return denoiser.conv_out.bias


def drawn(backbone: Backbone) -> np.ndarray:
    sampler = Sampler(scheduler="ddim", num_inference_steps=2)
    return sample_images(SamplingModels(backbone=backbone), Conditions(prompts=["a sks"]), seeds=[1], sampler=sampler)


def test_a_method_from_outside_is_trained_saved_and_drawn_with(
    tiny_base_folder: Path, training_tiles: Tiles, tmp_path: Path
) -> None:
    with CONCEPT_METHODS.registered("output-bias", OutputBias):
        config = ConceptConfig(method="output-bias", training=TRAINING)
        concept = finish(learn_concept(training_tiles(), base=tiny_base_folder, config=config, seed=1, out=tmp_path))
        learned = load_concept(tmp_path, find_base=lambda: tiny_base_folder)
        with pytest.raises(WeightsError, match="output-bias needs the base it was learned from"):
            load_concept(tmp_path)
        with pytest.raises(WeightsError, match="not the base that the concept was learned from"):
            load_concept(tmp_path, find_base=lambda: tiny_base_folder / "unet")
    assert (concept.method, concept.instance_token) == ("output-bias", "sks part")
    assert Concept.load(tmp_path / "concept.json") == concept
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bias", "cache", "concept.json", "log.jsonl"]
    before = load_base(tiny_base_folder)
    assert not torch.equal(bias_of(learned), bias_of(before))
    assert (drawn(learned) != drawn(before)).any()


def test_no_concept_is_the_base_as_it_is(tiny_base_folder: Path, training_tiles: Tiles, tmp_path: Path) -> None:
    config = ConceptConfig(method="none", training=TRAINING)
    concept = finish(learn_concept(training_tiles(), base=tiny_base_folder, config=config, seed=1, out=tmp_path))
    assert (concept.method, concept.instance_token) == ("none", "sks")
    np.testing.assert_array_equal(drawn(load_concept(tmp_path)), drawn(load_base(tiny_base_folder)))
    assert (tmp_path / "log.jsonl").read_text() == ""


def test_a_method_that_is_not_installed_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not known; choose among dreambooth"):
        ConceptConfig(method="no-such-method")
    concept = Concept(
        method="no-such-method",
        instance_token="sks",
        class_noun="part",
        tone_words=True,
        base_digest="b",
        weights_digest="w",
    )
    concept.save(tmp_path / "concept.json")
    with pytest.raises(ConfigError, match=r"concept.method 'no-such-method': is not known"):
        load_concept(tmp_path)
