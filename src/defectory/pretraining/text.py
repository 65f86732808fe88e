"""Captions, the base's own small vocabulary and its CLIP-style text encoder."""

# diffusers and transformers wrap their methods in decorators that lose the signatures
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false
from __future__ import annotations

import json
from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from defectory.pretraining.config import PretrainConfig

RESERVED_WORDS = ("sks", "industrial", "defect", "image", "surface", "hairline", "branched", "gouge", "burn", "edge", "break", "blowhole")
"""Words that users' prompts hold; one token each, whether or not a procedural caption holds them."""


def build_tokenizer(captions: Iterable[str], config: PretrainConfig) -> CLIPTokenizer:
    """Fit a byte-level BPE vocabulary to the words of the captions, in CLIP's own format."""
    words = sorted({word for caption in captions for word in caption.lower().replace(",", " ").split()} | set(RESERVED_WORDS))
    start, end = "<|startoftext|>", "<|endoftext|>"
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary_size,
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        end_of_word_suffix="</w>",
        special_tokens=[start, end],
        show_progress=False,
    )
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=end))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.train_from_iterator(words, trainer)
    learned = _parse(tokenizer)
    vocabulary: dict[str, int] = {}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    for token in [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(pair) for pair in learned)]:
        vocabulary.setdefault(token, len(vocabulary))
    vocabulary[start] = len(vocabulary)
    vocabulary[end] = len(vocabulary)
    return CLIPTokenizer(vocab=vocabulary, merges=list(learned), model_max_length=config.text_length)


def _parse(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [tuple(pair) if not isinstance(pair, str) else tuple(pair.split(" ")) for pair in merges]


def build_text_encoder(tokenizer: CLIPTokenizer, config: PretrainConfig) -> CLIPTextModel:
    """Build an untrained text encoder for a tokenizer."""
    torch.manual_seed(config.seed + 1)
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.text_width,
            intermediate_size=config.text_width * 3,
            num_hidden_layers=config.text_layers,
            num_attention_heads=4,
            max_position_embeddings=config.text_length,
            projection_dim=config.text_width,
            hidden_act="quick_gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def short_caption(material: str, defect_words: tuple[str, ...]) -> str:
    """Give the short form both phases use: `an image of a [material] with a [defect] and a [defect]`."""
    if not defect_words:
        return f"an image of a {material}"
    return f"an image of a {material} with " + " and ".join(f"a {word}" for word in dict.fromkeys(defect_words))
