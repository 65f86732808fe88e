from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from defectory.artifacts.weights import Concept, Control
from defectory.condition.config import ConditionConfig
from defectory.condition.learn import learn_condition
from defectory.condition.networks.controlnet import ControlNet, start_control
from defectory.engine.backbones.embeddings import encode_prompts
from defectory.engine.backbones.load import load_base
from defectory.engine.backbones.parts import load_controlnet
from defectory.engine.backbones.save import save_base_like
from defectory.engine.training.config import TrainingConfig
from defectory.errors import InputError, WeightsError
from defectory.events import Progress
from defectory.files import digest_file, digest_folder

Tiles = Callable[..., list[Any]]
TRAINING = TrainingConfig(
    num_steps=6,
    batch_size=4,
    variants_per_image=2,
    warmup_steps=1,
    checkpoint_every=2,
    validate_every=3,
    learning_rate=1e-3,
    defect_weight=5.0,
)
CONFIG = ConditionConfig(training=TRAINING)


def concept_of(base: Path, out: Path) -> Path:
    save_base_like(base, out / "base", replaced={})
    concept = Concept(
        method="dreambooth",
        instance_token="sks",
        class_noun="surface",
        tone_words=True,
        base_digest="b",
        weights_digest=digest_folder(out / "base"),
    )
    concept.save(out / "concept.json")
    return out


@pytest.fixture(scope="module")
def concept(tiny_base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return concept_of(tiny_base_folder, tmp_path_factory.mktemp("concept"))


def make_driver(image: Any, instances: Sequence[Any], _valid_hw: tuple[int, int]) -> Any:
    driver = np.where(image.mean(axis=2, keepdims=True) > 128, 50, 0).astype(np.uint8).repeat(3, axis=2)
    for category_id, mask in instances:
        driver[mask] = ((255, 0, 0), (0, 255, 0))[category_id - 1]
    return driver


def learn(tiles: list[Any], concept: Path, out: Path, config: ConditionConfig = CONFIG, **options: Any) -> list[Any]:
    return list(
        learn_condition(
            tiles,
            concept=concept,
            config=config,
            make_driver=make_driver,
            driver_digest="d",
            seed=3,
            out=out,
            **options,
        )
    )


def steps(events: list[Any]) -> list[int]:
    return list(dict.fromkeys(event.done for event in events if event.note.startswith("loss")))


def losses(out: Path, key: str = "loss") -> list[float]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


def outcome(out: Path) -> dict[str, str]:
    return {
        path.relative_to(out).as_posix(): digest_file(path)
        for path in sorted(out.rglob("*"))
        if path.name != ".defectory.json" and path.is_file() and "cache" not in path.parts
    }


def test_control_network_is_trained_and_the_concept_is_untouched(
    concept: Path, training_tiles: Tiles, tmp_path: Path
) -> None:
    before = digest_folder(concept)
    events = learn(training_tiles(), concept, tmp_path, held_out=training_tiles(3, seed=8))
    assert digest_folder(concept) == before
    assert steps(events) == [1, 2, 3, 4, 5, 6]
    assert len(losses(tmp_path, "held_out_loss")) == 2
    control = Control.load(tmp_path / "control.json")
    assert control.weights_digest == digest_folder(tmp_path / "controlnet")
    assert control.concept_digest == Concept.load(concept / "concept.json").weights_digest
    start, end = load_controlnet(concept / "base" / "controlnet"), load_controlnet(tmp_path / "controlnet")
    assert all(
        not torch.equal(a, b)
        for (name, a), b in zip(start.named_parameters(), end.parameters(), strict=True)
        if "conv_in" in name
    )


def test_same_seed_gives_the_same_files_and_another_cache_does_not_matter(
    concept: Path, training_tiles: Tiles, tmp_path: Path
) -> None:
    learn(training_tiles(), concept, tmp_path / "a", cache=tmp_path / "cache")
    learn(training_tiles(), concept, tmp_path / "b", cache=tmp_path / "cache")
    learn(training_tiles(), concept, tmp_path / "c")
    assert outcome(tmp_path / "a") == outcome(tmp_path / "b") == outcome(tmp_path / "c")


def test_copy_starts_as_the_base_and_changes_nothing_at_first(concept: Path) -> None:
    models = load_base(concept / "base")
    control = start_control(models, init="copy", seed=1)
    assert torch.equal(control.conv_in.weight, models.denoiser.conv_in.weight)  # type: ignore[union-attr]
    assert torch.equal(
        start_control(models, init="copy", seed=1).controlnet_cond_embedding.conv_in.weight,
        control.controlnet_cond_embedding.conv_in.weight,
    )
    x, timesteps = torch.randn(2, 4, 8, 12), torch.tensor([5, 900])
    context = encode_prompts(models, ["a crack", "a blowhole"])
    with torch.no_grad():
        plain = models.predict(x, timesteps, context)
        steered = ControlNet(control).predict(models, x, timesteps, context, torch.rand(2, 3, 32, 48))
    assert torch.equal(plain, steered)


def test_gradient_reaches_every_control_weight_and_no_base_weight(concept: Path) -> None:
    models = load_base(concept / "base")
    control = start_control(models, init="embedded", seed=1).requires_grad_(True)
    x, timesteps = torch.randn(2, 4, 8, 12), torch.tensor([5, 900])
    context = encode_prompts(models, ["a crack", "a blowhole"])
    seen: list[bool] = []
    denoiser: Any = models.denoiser
    handle = denoiser.down_blocks[-1].register_forward_hook(lambda _m, _i, result: seen.append(result[0].requires_grad))
    predicted = ControlNet(control).predict(models, x, timesteps, context, torch.rand(2, 3, 32, 48))
    predicted.square().mean().backward()
    handle.remove()
    assert seen == [False], "the frozen encoder keeps no graph"
    assert all(parameter.grad is not None for parameter in control.parameters())
    assert all(parameter.grad is None for parameter in denoiser.parameters())


def test_start_is_chosen_by_what_lies_beside_the_base(concept: Path, tiny_stable_diffusion_folder: Path) -> None:
    models = load_base(concept / "base")
    assert start_control(models, init="auto", seed=0) is models.controlnet
    plain = load_base(tiny_stable_diffusion_folder)
    started: Any = start_control(plain, init="auto", seed=0)
    assert torch.equal(started.conv_in.weight, plain.denoiser.conv_in.weight)  # type: ignore[union-attr]
    with pytest.raises(WeightsError, match="no control network lies beside"):
        start_control(plain, init="embedded", seed=0)


def test_stable_diffusion_layout_is_learned_from_too(
    tiny_stable_diffusion_folder: Path, training_tiles: Tiles, tmp_path: Path
) -> None:
    concept = concept_of(tiny_stable_diffusion_folder, tmp_path / "concept")
    training = TRAINING.model_copy(
        update={"num_steps": 2, "gradient_checkpointing": True, "gradient_accumulation_steps": 2}
    )
    learn(training_tiles(), concept, tmp_path / "control", CONFIG.model_copy(update={"training": training}))
    control = load_controlnet(tmp_path / "control" / "controlnet")
    assert tuple(control.config["conditioning_embedding_out_channels"]) == (16, 32, 96, 256)


def test_defect_weight_counts_defect_pixels_more(concept: Path, training_tiles: Tiles, tmp_path: Path) -> None:
    def first_loss(weight: float) -> float:
        training = TRAINING.model_copy(update={"num_steps": 1, "mixed_precision": "no", "defect_weight": weight})
        learn(
            training_tiles(),
            concept,
            tmp_path / str(weight),
            CONFIG.model_copy(update={"training": training}),
            cache=tmp_path / "cache",
        )
        return losses(tmp_path / str(weight))[0]

    plain, double, triple = first_loss(1), first_loss(2), first_loss(3)
    assert double > plain
    assert triple - double == pytest.approx(double - plain, rel=1e-3)


@pytest.mark.parametrize("left_after_step", [1, 4])
def test_run_left_at_any_step_ends_with_the_same_files(
    concept: Path, training_tiles: Tiles, tmp_path: Path, left_after_step: int
) -> None:
    learn(training_tiles(), concept, tmp_path / "whole")
    events = learn_condition(
        training_tiles(),
        concept=concept,
        config=CONFIG,
        make_driver=make_driver,
        driver_digest="d",
        seed=3,
        out=tmp_path / "left",
    )
    for event in events:
        if isinstance(event, Progress) and event.note.startswith("loss") and event.done == left_after_step:
            break
    events.close()
    resumed = learn(training_tiles(), concept, tmp_path / "left")
    assert [event.done for event in resumed if event.note == "resumed from a checkpoint"] == [left_after_step]
    assert outcome(tmp_path / "left") == outcome(tmp_path / "whole")


def test_tiles_without_any_defect_are_one_clear_line(concept: Path, training_tiles: Tiles, tmp_path: Path) -> None:
    defect_free = [tile for tile in training_tiles() if not tile.instances]
    with pytest.raises(InputError, match="none has a defect"):
        learn(defect_free, concept, tmp_path)
