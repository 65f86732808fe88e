from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from defectory.concept.config import ConceptConfig
from defectory.concept.learn import learn_concept
from defectory.concept.load import load_concept
from defectory.engine.backbones.load import load_base
from defectory.engine.backbones.lora import DIFFUSERS_NAME, KOHYA_NAME, add_lora, kohya_tensors, lora_tensors
from defectory.engine.training.config import TrainingConfig
from defectory.errors import ConfigError, WeightsError
from defectory.events import finish
from defectory.files import digest_file, digest_folder

Tiles = Callable[..., list[Any]]
TRAINING = TrainingConfig(
    num_steps=4, batch_size=4, variants_per_image=1, warmup_steps=0, checkpoint_every=1, mixed_precision="no"
)
CONFIG = ConceptConfig(
    method="lora",
    lora_rank=3,
    lora_alpha=6.0,
    lora_learning_rate=0.02,
    num_class_images=2,
    prior_inference_steps=2,
    training=TRAINING,
)


def learn(tiles: list[Any], base: Path, out: Path, **settings: Any) -> Any:
    config = CONFIG.model_copy(update=settings)
    return finish(learn_concept(tiles, base=base, config=config, seed=3, out=out, cache=out.parent / "cache"))


@torch.no_grad()
def predicted(unet: Any, text_encoder: Any) -> torch.Tensor:
    """What a UNet predicts for two latents of 8x12 and two prompts."""
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(2, int(unet.config["in_channels"]), 8, 12, generator=generator)
    context = text_encoder(input_ids=torch.arange(32).reshape(2, 16)).last_hidden_state
    return unet(latents, torch.tensor([3, 700]), encoder_hidden_states=context).sample


def of_backbone(backbone: Any) -> torch.Tensor:
    return predicted(backbone.unet, backbone.text_encoder)


def test_adapters_train_and_the_base_stays_as_it_is(
    tiny_base_folder: Path, training_tiles: Tiles, tmp_path: Path
) -> None:
    before = digest_folder(tiny_base_folder)
    concept = learn(training_tiles(), tiny_base_folder, tmp_path / "out")
    assert (digest_folder(tiny_base_folder), concept.base_digest) == (before, before)
    assert concept.weights_digest == digest_folder(tmp_path / "out" / "lora")
    tensors = load_file(tmp_path / "out" / "lora" / DIFFUSERS_NAME)
    assert {key.partition(".")[0] for key in tensors} == {"unet", "text_encoder"}
    assert {min(tensor.shape) for tensor in tensors.values()} == {3}
    assert all(tensor.any() for tensor in tensors.values())
    with pytest.raises(WeightsError, match="lora needs the base it was learned from"):
        load_concept(tmp_path / "out")
    learned = load_concept(tmp_path / "out", find_base=lambda: tiny_base_folder)
    assert not torch.allclose(of_backbone(learned), of_backbone(load_base(tiny_base_folder)), atol=1e-3)


def test_merged_adapters_predict_as_they_did_in_training(tiny_base_folder: Path, tmp_path: Path) -> None:
    trained: Any = load_base(tiny_base_folder)
    before = of_backbone(trained)
    targets = ("to_q", "to_out.0", "ff.net.0.proj", "conv1", "conv_shortcut")
    for part, network in trained.networks.items():
        layers = targets if part == "unet" else ("q_proj", "fc1")
        parameters = add_lora(network, targets=layers, rank=2, alpha=3.0, seed=1, where="here")
        assert all(parameter.requires_grad for parameter in parameters.values())
    torch.testing.assert_close(of_backbone(trained), before, rtol=0, atol=0)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for network in trained.networks.values():
            for name, parameter in network.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    from defectory.concept.methods.lora import LoRA, save_adapters

    save_adapters(trained, tmp_path)
    loaded: Any = LoRA.load(tmp_path, base=tiny_base_folder, device=torch.device("cpu"))
    torch.testing.assert_close(of_backbone(loaded), of_backbone(trained), rtol=1e-4, atol=1e-5)
    assert (of_backbone(loaded) - before).abs().max() > 0.1
    assert not any("lora" in name for name, _ in loaded.unet.named_modules())


def test_both_files_load_in_plain_diffusers_and_predict_the_same(
    tiny_stable_diffusion_folder: Path, training_tiles: Tiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import StableDiffusionPipeline

    # transformers 5 refuses adapters of text encoders with a peft older than it asks for, though its loader works
    monkeypatch.setattr("transformers.integrations.peft.check_peft_version", lambda **_: None)
    base, out = tiny_stable_diffusion_folder, tmp_path / "out"
    learn(training_tiles(), base, out, lora_targets=("to_q", "to_k", "ff.net.2", "conv1", "time_emb_proj"))
    expected = of_backbone(load_concept(out, find_base=lambda: base))
    assert (expected - of_backbone(load_base(base))).abs().max() > 1e-2
    for options in ({}, {"weight_name": KOHYA_NAME}):
        pipeline: Any = StableDiffusionPipeline.from_pretrained(base, local_files_only=True)
        pipeline.load_lora_weights(out / "lora", **options)
        found = predicted(pipeline.unet, pipeline.text_encoder)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_each_of_several_text_encoders_has_its_prefix(tiny_base_folder: Path) -> None:
    first, second = load_base(tiny_base_folder), load_base(tiny_base_folder)
    networks = {**first.networks, "text_encoder_2": second.networks["text_encoder"]}
    for part, network in networks.items():
        targets = ("to_q",) if part == "unet" else ("q_proj",)
        add_lora(network, targets=targets, rank=2, alpha=2, seed=0, where="here")
    names = {key.partition("_self_attn")[0].partition(".")[0] for key in kohya_tensors(lora_tensors(networks))}
    assert {name for name in names if "te" in name.split("_")[1]} == {
        "lora_te1_text_model_encoder_layers_0",
        "lora_te2_text_model_encoder_layers_0",
    }


def test_text_encoder_may_stay_frozen(tiny_base_folder: Path, training_tiles: Tiles, tmp_path: Path) -> None:
    learn(training_tiles(), tiny_base_folder, tmp_path / "out", train_text_encoder=False)
    assert {key.partition(".")[0] for key in load_file(tmp_path / "out" / "lora" / DIFFUSERS_NAME)} == {"unet"}


@pytest.mark.parametrize("left_after_step", [1, 3])
def test_training_that_was_left_ends_with_the_same_files(
    tiny_base_folder: Path, training_tiles: Tiles, tmp_path: Path, left_after_step: int
) -> None:
    learn(training_tiles(), tiny_base_folder, tmp_path / "whole")
    events = learn_concept(
        training_tiles(), base=tiny_base_folder, config=CONFIG, seed=3, out=tmp_path / "left", cache=tmp_path / "cache"
    )
    for event in events:
        if getattr(event, "note", "").startswith("loss") and getattr(event, "done", 0) == left_after_step:
            break
    events.close()
    assert (tmp_path / "left" / "checkpoint").is_dir()
    learn(training_tiles(), tiny_base_folder, tmp_path / "left")
    for name in (f"lora/{DIFFUSERS_NAME}", f"lora/{KOHYA_NAME}", "log.jsonl", "concept.json"):
        assert digest_file(tmp_path / "left" / name) == digest_file(tmp_path / "whole" / name)


def test_layers_that_do_not_exist_are_one_clear_line(
    tiny_base_folder: Path, training_tiles: Tiles, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"concept.lora_targets: the UNet2DConditionModel has no .* named 'to_x'"):
        learn(training_tiles(), tiny_base_folder, tmp_path / "out", lora_targets=("to_q", "to_x"))


def test_an_adapter_of_another_base_is_one_clear_line(
    tiny_base_folder: Path, training_tiles: Tiles, tmp_path: Path
) -> None:
    from defectory.engine.backbones.lora import merge_lora

    learn(training_tiles(), tiny_base_folder, tmp_path / "out")
    networks, path = load_base(tiny_base_folder).networks, tmp_path / DIFFUSERS_NAME
    tensors = load_file(tmp_path / "out" / "lora" / DIFFUSERS_NAME)
    name = next(key for key in tensors if key.endswith("lora_B.weight"))
    save_file({**tensors, name: torch.zeros(7, 3)}, path)
    with pytest.raises(WeightsError, match="another shape than the base's layer"):
        merge_lora(networks, path)
    save_file({f"unet.nowhere.{key}": value for key, value in tensors.items()}, path)
    with pytest.raises(WeightsError, match=r"no adapter of this base \(unet.nowhere"):
        merge_lora(networks, path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(WeightsError, match="not a whole safetensors file"):
        merge_lora(networks, path)
