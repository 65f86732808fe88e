from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from defectory.artifacts.weights import Concept
from defectory.concept.config import ConceptConfig
from defectory.concept.learn import learn_concept
from defectory.concept.prior import class_latents
from defectory.engine.backbones.load import load_base
from defectory.engine.config import PromptConfig
from defectory.engine.training.config import TrainingConfig
from defectory.errors import InputError
from defectory.events import Notice, Progress, finish
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
)
CONFIG = ConceptConfig(num_class_images=5, prior_inference_steps=3, training=TRAINING)


def outcome(out: Path) -> dict[str, str]:
    return {
        path.relative_to(out).as_posix(): digest_file(path)
        for path in sorted(out.rglob("*"))
        if path.name != ".defectory.json" and path.is_file() and "cache" not in path.parts
    }


def learn(tiles: list[Any], base: Path, out: Path, config: ConceptConfig = CONFIG, **options: Any) -> list[Any]:
    return list(learn_concept(tiles, base=base, config=config, seed=3, out=out, **options))


def steps(events: list[Any]) -> list[int]:
    return list(dict.fromkeys(event.done for event in events if event.note.startswith("loss")))


def losses(out: Path, key: str = "loss") -> list[float]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


def test_concept_is_a_base_whose_unet_and_text_encoder_moved(
    tiny_base_folder: Path, training_tiles: Tiles, tmp_path: Path
) -> None:
    before = digest_folder(tiny_base_folder)
    events = learn(training_tiles(), tiny_base_folder, tmp_path, held_out=training_tiles(3, seed=8))
    assert digest_folder(tiny_base_folder) == before
    assert steps(events) == [1, 2, 3, 4, 5, 6]
    assert [event.done for event in events if event.note.startswith("preparing class images")] == [5]
    assert [event.done for event in events if event.note == "preparing latents"] == list(range(1, 10))
    assert events[-1].note.startswith(f"loss {losses(tmp_path)[-1]:.4f}, held-out loss ")
    assert len(losses(tmp_path, "held_out_loss")) == 2
    concept = Concept.load(tmp_path / "concept.json")
    assert (concept.weights_digest, concept.base_digest) == (digest_folder(tmp_path / "base"), before)
    assert not (tmp_path / "checkpoint").exists()
    old, new = load_base(tiny_base_folder), load_base(tmp_path / "base")
    assert not torch.equal(old.unet.conv_in.weight, new.unet.conv_in.weight)
    assert any(
        not torch.equal(a, b) for a, b in zip(old.text_encoder.parameters(), new.text_encoder.parameters(), strict=True)
    )
    assert all(torch.equal(a, b) for a, b in zip(old.vae.parameters(), new.vae.parameters(), strict=True))
    assert new.controlnet is not None
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 8


def test_text_encoder_and_prior_can_be_left_out(tiny_base_folder: Path, training_tiles: Tiles, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"train_text_encoder": False, "prior_loss_weight": 0.0})
    events = learn(training_tiles(), tiny_base_folder, tmp_path, config)
    assert not any("class images" in event.note for event in events)
    for part in ("text_encoder", "vae", "tokenizer"):
        assert digest_folder(tmp_path / "base" / part) == digest_folder(tiny_base_folder / part)


def test_prompts_name_the_defects_of_a_tile(tiny_base_folder: Path, training_tiles: Tiles, tmp_path: Path) -> None:
    def weights(out: str, tiles: list[Any], *, defect_words: bool, defect_noun: str = "") -> str:
        config = CONFIG.model_copy(update={"defect_words": defect_words})
        cache = tmp_path / "cache"
        work = learn_concept(
            tiles,
            base=tiny_base_folder,
            config=config,
            seed=3,
            out=tmp_path / out,
            prompts=PromptConfig(defect_noun=defect_noun, tone_words=False),
            cache=cache,
        )
        return finish(work).weights_digest

    tiles = training_tiles()
    defective, free = [tile for tile in tiles if tile.instances], [tile for tile in tiles if not tile.instances]
    named, unnamed = (weights(f"defective-{named}", defective, defect_words=named) for named in (True, False))
    assert named != unnamed
    assert weights("with-noun", defective, defect_words=True, defect_noun="axial") not in (named, unnamed)
    assert weights("free-True", free, defect_words=True) == weights("free-False", free, defect_words=False)


def test_loss_is_instance_term_plus_lambda_times_prior_term(
    tiny_base_folder: Path, training_tiles: Tiles, tmp_path: Path
) -> None:
    training = TRAINING.model_copy(update={"num_steps": 1, "mixed_precision": "no", "proportion_empty_prompts": 0.0})

    def first_loss(weight: float) -> float:
        config = CONFIG.model_copy(update={"training": training, "prior_loss_weight": weight})
        learn(training_tiles(), tiny_base_folder, tmp_path / str(weight), config, cache=tmp_path / "cache")
        return losses(tmp_path / str(weight))[0]

    small, middle, large = first_loss(0.5), first_loss(1.0), first_loss(2.0)
    assert middle - small > 0
    assert large - middle == pytest.approx(2 * (middle - small), rel=1e-3)


def test_stable_diffusion_layout_is_learned_from_too(
    tiny_stable_diffusion_folder: Path, training_tiles: Tiles, tmp_path: Path
) -> None:
    learn(
        training_tiles(),
        tiny_stable_diffusion_folder,
        tmp_path,
        CONFIG.model_copy(
            update={"training": TRAINING.model_copy(update={"num_steps": 2, "gradient_checkpointing": True})}
        ),
    )
    index = json.loads((tmp_path / "base" / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "PNDMScheduler"]
    assert load_base(tmp_path / "base").controlnet is None


def test_class_images_do_not_depend_on_how_many_are_drawn(tiny_base_folder: Path, tmp_path: Path) -> None:
    models = load_base(tiny_base_folder)

    def draw(count: int) -> torch.Tensor:
        work = class_latents(
            models,
            class_noun="surface",
            size_hw=(32, 48),
            num_images=count,
            num_inference_steps=3,
            seed=1,
            base_digest="b",
            mixed_precision="no",
            cache=tmp_path,
        )
        return finish(work)

    few, many = draw(2), draw(5)
    assert many.shape == (5, 4, 8, 12)
    assert torch.allclose(few.float(), many[:2].float(), atol=5e-3)
    assert not torch.allclose(many[0].float(), many[1].float(), atol=0.1)


@pytest.mark.parametrize("left_after_step", [1, 3, 5])
def test_run_left_at_any_step_ends_with_the_same_files(
    tiny_base_folder: Path, training_tiles: Tiles, tmp_path: Path, left_after_step: int
) -> None:
    learn(training_tiles(), tiny_base_folder, tmp_path / "whole", cache=tmp_path / "cache")
    events = learn_concept(
        training_tiles(), base=tiny_base_folder, config=CONFIG, seed=3, out=tmp_path / "left", cache=tmp_path / "cache"
    )
    for event in events:
        if isinstance(event, Progress) and event.note.startswith("loss") and event.done == left_after_step:
            break
    events.close()
    resumed = learn(training_tiles(), tiny_base_folder, tmp_path / "left", cache=tmp_path / "cache")
    assert [event.done for event in resumed if event.note == "resumed from a checkpoint"] == [left_after_step]
    assert outcome(tmp_path / "left") == outcome(tmp_path / "whole")


def test_no_tiles_is_one_clear_line(tiny_base_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="training tiles: there are none"):
        learn([], tiny_base_folder, tmp_path)


def test_patience_without_held_out_tiles_is_said_to_have_no_effect(
    tiny_base_folder: Path, training_tiles: Tiles, tmp_path: Path
) -> None:
    training = TRAINING.model_copy(update={"num_steps": 1, "patience": 1})
    config = CONFIG.model_copy(update={"training": training, "prior_loss_weight": 0.0})
    events = learn(training_tiles(3), tiny_base_folder, tmp_path, config)
    assert [event.text for event in events if isinstance(event, Notice)] == [
        "training.patience has no effect, since there are no held-out tiles"
    ]
