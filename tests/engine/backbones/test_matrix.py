"""Concept methods, condition networks and families of bases together: train, resume bit for bit, draw, export.

`make test` runs a cover in which every two values meet; `make test-all` runs every combination.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor

from defectory.artifacts.weights import Concept
from defectory.concept.config import ConceptConfig
from defectory.concept.learn import learn_concept
from defectory.concept.load import load_concept
from defectory.condition.config import ConditionConfig
from defectory.condition.finalize import finalize_pipeline
from defectory.condition.learn import learn_condition
from defectory.condition.load import load_network
from defectory.engine.backbones.new_tokens import spelled_out
from defectory.engine.backbones.prompts import condition_prompt
from defectory.engine.sampling.models import for_sampling
from defectory.engine.sampling.sample import Conditions, Sampler, sample_images, sample_noise
from defectory.engine.training.config import TrainingConfig
from defectory.events import Progress
from defectory.files import digest_folder

TRAINING = TrainingConfig(
    num_steps=2, batch_size=2, variants_per_image=1, warmup_steps=0, learning_rate=1e-2, mixed_precision="no"
)
METHODS = ("dreambooth", "lora", "textual_inversion", "lora_textual_inversion", "none")
NETWORKS: dict[str, dict[str, Any]] = {
    "controlnet": {"init": "copy"},
    "half a controlnet": {"init": "copy", "capacity": 0.5},
    "adapter": {"network": "adapter"},
    "hypernetwork": {"network": "hypernetwork", "hypernetwork_rank": 2},
}
FAMILIES = ("tiny_base_folder", "tiny_stable_diffusion_folder", "tiny_sdxl_folder")
NUM_STEPS = 3
SIZE_HW = (32, 48)


def combinations() -> Iterator[Any]:
    """Yield every combination; those outside the cover are marked."""
    for (i, method), (j, network), (k, family) in product(enumerate(METHODS), enumerate(NETWORKS), enumerate(FAMILIES)):
        # each row and each column of the square of methods and networks holds every family
        marks = () if (i + j) % len(FAMILIES) == k else (pytest.mark.matrix,)
        yield pytest.param(method, network, family, marks=marks)


def test_every_two_values_meet_in_the_cover() -> None:
    cover = [param.values for param in combinations() if not param.marks]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        axes = (METHODS, tuple(NETWORKS), FAMILIES)
        assert {(values[one], values[other]) for values in cover} == set(product(axes[one], axes[other]))


def make_driver(image: Any, instances: Any, _valid_hw: Any, _blind: Any = None) -> Any:
    driver = (image // 5).astype(np.uint8)
    for category_id, mask in instances:
        driver[mask] = ((255, 0, 0), (0, 255, 0))[category_id - 1]
    return driver


def left_and_resumed(make: Callable[[Path], Any], folder: Path) -> Path:
    """Train without a stop, and again with a stop after the first step; both must end with the same files."""
    for _ in make(folder / "whole"):
        pass
    with closing(make(folder / "left")) as work:
        for event in work:
            if isinstance(event, Progress) and event.note.startswith("loss"):
                break
    for _ in make(folder / "left"):
        pass
    assert digest_folder(folder / "left") == digest_folder(folder / "whole")
    return folder / "left"


def drawn_plainly(folder: Path, kind: str, prompt: str, driver: np.ndarray, noise: torch.Tensor) -> np.ndarray:
    """Draw with the finished pipeline and diffusers alone."""
    import diffusers

    further = {"add_watermarker": False} if "XL" in kind else {}
    pipeline: Any = getattr(diffusers, kind).from_pretrained(folder, local_files_only=True, **further)
    pipeline.set_progress_bar_config(disable=True)
    if not hasattr(pipeline, "maybe_convert_prompt"):  # diffusers' pipeline of 1.x with an adapter spells out nothing
        prompt = spelled_out(prompt, pipeline.tokenizer)
    options: dict[str, Any] = {"num_inference_steps": NUM_STEPS, "guidance_scale": 1.0, "output_type": "np"}
    if not (folder / "hypernetwork").is_dir():
        return pipeline(prompt, image=Image.fromarray(driver), latents=noise, **options).images[0]
    sys.path.insert(0, str(folder / "hypernetwork"))
    try:
        from hypernetwork import HyperNetwork  # pyright: ignore[reportMissingImports]
    finally:
        sys.path.pop(0)
    network = HyperNetwork.from_folder(folder / "hypernetwork")
    with network.steering(pipeline.unet, to_tensor(driver)[None]):
        return pipeline(prompt, latents=noise, height=SIZE_HW[0], width=SIZE_HW[1], **options).images[0]


@pytest.mark.parametrize(("method", "network", "family"), list(combinations()))
def test_a_combination_trains_resumes_draws_and_exports(
    method: str,
    network: str,
    family: str,
    request: pytest.FixtureRequest,
    training_tiles: Callable[..., list[Any]],
    tmp_path: Path,
) -> None:
    base: Path = request.getfixturevalue(family)
    tiles = training_tiles(3)
    concept_config = ConceptConfig(
        method=method,
        prior_loss_weight=0,
        lora_rank=2,
        lora_learning_rate=0.05,
        num_vectors=2,
        train_text_encoder=True,
        training=TRAINING,
    )

    def learning_concept(out: Path) -> Any:
        return learn_concept(tiles, base=base, config=concept_config, seed=1, out=out, cache=tmp_path / "cache")

    concept = left_and_resumed(learning_concept, tmp_path / "concept")

    def backbone(folder: Path = concept, device: Any = "cpu") -> Any:
        return load_concept(folder, device, find_base=lambda: base)

    def learning_condition(out: Path) -> Any:
        return learn_condition(
            tiles,
            concept=concept,
            config=ConditionConfig(training=TRAINING, **NETWORKS[network]),
            make_driver=make_driver,
            seed=1,
            out=out,
            driver_digest="d",
            cache=tmp_path / "cache",
            load_backbone=backbone,
        )

    control = left_and_resumed(learning_condition, tmp_path / "control")
    driver = make_driver(tiles[0].image, tiles[0].instances, SIZE_HW)
    prompt = condition_prompt(Concept.load(concept / "concept.json").instance_token, ["crack"])
    models = backbone()
    image = sample_images(
        for_sampling(models, load_network(control, models)),
        Conditions(prompts=[prompt], drivers=[driver]),
        seeds=[7],
        sampler=Sampler(scheduler="base", num_inference_steps=NUM_STEPS),
    )[0]
    kind, _ = finalize_pipeline(backbone(), control, tmp_path / "pipeline")
    factor = models.latent_factor
    noise = sample_noise([7], (models.latent_channels, SIZE_HW[0] // factor, SIZE_HW[1] // factor))
    plain = drawn_plainly(tmp_path / "pipeline", kind, prompt, driver, noise)
    assert image.shape == plain.shape == (*SIZE_HW, 3)
    assert np.abs(plain * 255 - image).max() < 1.5
