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
from defectory.engine.backbones.lora import DIFFUSERS_NAME
from defectory.engine.backbones.new_tokens import add_learned_tokens, new_token, spelled_out, start_tokens
from defectory.engine.config import PromptConfig
from defectory.engine.training.config import TrainingConfig
from defectory.errors import ConfigError, WeightsError
from defectory.events import finish
from defectory.files import digest_folder

Tiles = Callable[..., list[Any]]
TRAINING = TrainingConfig(
    num_steps=4, batch_size=4, variants_per_image=1, warmup_steps=0, checkpoint_every=1, mixed_precision="no"
)
CONFIG = ConceptConfig(
    method="textual_inversion",
    num_vectors=3,
    embedding_learning_rate=0.05,
    lora_learning_rate=0.01,
    num_class_images=2,
    prior_inference_steps=2,
    training=TRAINING,
)
PROMPTS = PromptConfig(tone_words=False)
"""Tone words would fill the tiny base's 16 tokens, since its tokenizer spells them letter by letter."""
PROMPT = "an image of a <sks> with a crack"


def learn(tiles: list[Any], base: Path, out: Path, **settings: Any) -> Any:
    config = CONFIG.model_copy(update=settings)
    cache = out.parent / "cache"
    return finish(learn_concept(tiles, base=base, config=config, prompts=PROMPTS, seed=3, out=out, cache=cache))


def embeddings(backbone: Any) -> torch.Tensor:
    return backbone.text_encoder.get_input_embeddings().weight


def test_only_the_new_token_differs_from_the_base(
    tiny_base_folder: Path, training_tiles: Tiles, tmp_path: Path
) -> None:
    concept = learn(training_tiles(), tiny_base_folder, tmp_path / "out")
    assert concept.instance_token == "<sks>"
    learned: Any = load_concept(tmp_path / "out", find_base=lambda: tiny_base_folder)
    base: Any = load_base(tiny_base_folder)
    known = len(embeddings(base))
    assert embeddings(learned).shape == (known + 3, 64)
    assert torch.equal(embeddings(learned)[:known], embeddings(base))
    others = {name: tensor for name, tensor in learned.text_encoder.state_dict().items() if "token_emb" not in name}
    assert all(torch.equal(tensor, base.text_encoder.state_dict()[name]) for name, tensor in others.items())
    assert all(torch.equal(tensor, base.unet.state_dict()[name]) for name, tensor in learned.unet.state_dict().items())
    word = base.tokenizer.encode("surface", add_special_tokens=False)
    assert len(word) == 1
    moved = embeddings(learned)[known:] - embeddings(base)[word[0]]
    assert moved.abs().max(dim=1).values.min() > 0.01
    assert not torch.equal(moved[0], moved[1])


def test_initializer_may_be_another_word_or_one_of_several_tokens(tiny_base_folder: Path) -> None:
    backbone: Any = load_base(tiny_base_folder)
    pieces = backbone.tokenizer.encode("cracks", add_special_tokens=False)
    assert len(pieces) > 1
    expected = embeddings(backbone)[pieces].mean(dim=0)
    vectors = start_tokens(backbone, "<v>", num_vectors=2, initializer="cracks")["text_encoder.learned"]
    torch.testing.assert_close(vectors.detach(), expected.expand(2, -1))
    assert ConceptConfig().with_initializer("turbine blade").initializer_word == "blade"
    assert ConceptConfig(initializer_word="disk").with_initializer("turbine blade").initializer_word == "disk"


@pytest.mark.parametrize("num_vectors", [1, 3])
def test_vectors_load_in_plain_diffusers(
    tiny_stable_diffusion_folder: Path, training_tiles: Tiles, tmp_path: Path, num_vectors: int
) -> None:
    from diffusers import StableDiffusionPipeline

    base, out = tiny_stable_diffusion_folder, tmp_path / "out"
    learn(training_tiles(), base, out, num_vectors=num_vectors)
    pipeline: Any = StableDiffusionPipeline.from_pretrained(base, local_files_only=True)
    with torch.no_grad():
        word = pipeline.encode_prompt(PROMPT.replace("<sks>", " ".join(["surface"] * num_vectors)), "cpu", 1, False)[0]
        pipeline.load_textual_inversion(out / "embedding")
        found = pipeline.encode_prompt(PROMPT, "cpu", 1, False)[0]
        expected = load_concept(out, find_base=lambda: base).encode_prompts([PROMPT]).tokens
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert (found - word).abs().max() > 0.01


def test_a_token_of_several_vectors_is_spelled_out_as_in_diffusers(tiny_base_folder: Path) -> None:
    from diffusers import StableDiffusionPipeline

    pipeline: Any = StableDiffusionPipeline.from_pretrained(tiny_base_folder, local_files_only=True)
    pipeline.tokenizer.add_tokens(["<v>", "<v>_1", "<v>_2", "<w>"])
    for prompt in (
        "an image of a dark <v> with a crack",
        "an image of a <w> and a <v>",
        "an image of a <w>",
        "an image",
    ):
        assert spelled_out(prompt, pipeline.tokenizer) == pipeline.maybe_convert_prompt(prompt, pipeline.tokenizer)
    assert (new_token("sks"), new_token("my part"), new_token("<v>")) == ("<sks>", "<my-part>", "<v>")


@pytest.mark.parametrize("method", ["textual_inversion", "lora_textual_inversion"])
def test_training_that_was_left_ends_with_the_same_files(
    tiny_base_folder: Path, training_tiles: Tiles, tmp_path: Path, method: str
) -> None:
    whole = learn(training_tiles(), tiny_base_folder, tmp_path / "whole", method=method)
    config = CONFIG.model_copy(update={"method": method})
    events = learn_concept(
        training_tiles(),
        base=tiny_base_folder,
        config=config,
        prompts=PROMPTS,
        seed=3,
        out=tmp_path / "left",
        cache=tmp_path / "cache",
    )
    for event in events:
        if getattr(event, "note", "").startswith("loss") and getattr(event, "done", 0) == 2:
            break
    events.close()
    assert (tmp_path / "left" / "checkpoint").is_dir()
    assert learn(training_tiles(), tiny_base_folder, tmp_path / "left", method=method) == whole
    assert (tmp_path / "left" / "log.jsonl").read_bytes() == (tmp_path / "whole" / "log.jsonl").read_bytes()


def test_both_together_train_adapters_and_token(tiny_base_folder: Path, training_tiles: Tiles, tmp_path: Path) -> None:
    concept = learn(training_tiles(), tiny_base_folder, tmp_path / "out", method="lora_textual_inversion")
    folder = tmp_path / "out" / "adapters"
    assert concept.weights_digest == digest_folder(folder)
    assert {path.name for path in folder.glob("*.safetensors")} == {
        DIFFUSERS_NAME,
        "kohya.safetensors",
        "learned_embeds.safetensors",
    }
    assert all(tensor.any() for tensor in load_file(folder / DIFFUSERS_NAME).values())
    learned: Any = load_concept(tmp_path / "out", find_base=lambda: tiny_base_folder)
    vectors = load_file(folder / "learned_embeds.safetensors")["<sks>"]
    assert torch.equal(embeddings(learned)[-3:], vectors)
    base: Any = load_base(tiny_base_folder)
    weights = [model.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight for model in (learned, base)]
    assert not torch.equal(*weights)
    word = base.tokenizer.encode("surface", add_special_tokens=False)[0]
    # AdamW moves a number by about its learning rate at each step
    assert 0.02 < float((vectors - embeddings(base)[word]).abs().max()) < 4 * 0.05 * 1.1


def test_a_known_token_and_other_vectors_are_one_clear_line(
    tiny_base_folder: Path, training_tiles: Tiles, tmp_path: Path
) -> None:
    backbone: Any = load_base(tiny_base_folder)
    backbone.tokenizer.add_tokens(["<sks>"])
    with pytest.raises(ConfigError, match=r"prompts.instance_token: the tokenizer already knows '<sks>'"):
        start_tokens(backbone, "<sks>", num_vectors=1, initializer="crack")
    save_file({"<v>": torch.zeros(2, 5)}, tmp_path / "learned_embeds.safetensors")
    with pytest.raises(WeightsError, match="holds no vectors of 64 numbers for one token"):
        add_learned_tokens(load_base(tiny_base_folder), tmp_path)
    (tmp_path / "learned_embeds.safetensors").unlink()
    with pytest.raises(WeightsError, match="no such file"):
        add_learned_tokens(load_base(tiny_base_folder), tmp_path)


def test_prompts_have_the_token_and_a_noun_of_its_own(
    tiny_base_folder: Path, training_tiles: Tiles, tmp_path: Path
) -> None:
    config = CONFIG.model_copy(update={"num_vectors": 1})
    prompts = PromptConfig(instance_token="blade", class_noun="turbine blade")
    work = learn_concept(
        training_tiles(3), base=tiny_base_folder, config=config, prompts=prompts, seed=3, out=tmp_path / "out"
    )
    assert finish(work).instance_token == "<blade>"
    assert list(load_file(tmp_path / "out" / "embedding" / "learned_embeds.safetensors")) == ["<blade>"]
