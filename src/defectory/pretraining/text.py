"""Builds the captions, the small vocabulary and the CLIP-style text encoder of a base."""

# diffusers and transformers wrap their methods in decorators that lose the signatures
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from defectory.pretraining.config import PretrainConfig

RESERVED_WORDS = (
    "sks",
    "industrial",
    "defect",
    "image",
    "surface",
    "hairline",
    "branched",
    "gouge",
    "burn",
    "edge",
    "break",
    "blowhole",
)
"""Words of users' prompts; each gets one token, even if no procedural caption contains it."""


def build_tokenizer(captions: Iterable[str], config: PretrainConfig) -> CLIPTokenizer:
    """Fit a byte-level BPE vocabulary in CLIP's format to the captions' words, deterministically."""
    words = sorted(
        {word for caption in captions for word in caption.lower().replace(",", " ").split()} | set(RESERVED_WORDS)
    )
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces = sorted({piece for word in words for piece, _ in spell.pre_tokenize_str(word)})
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    start, end = "<|startoftext|>", "<|endoftext|>"
    merges = learn_merges(pieces, max(0, config.vocabulary_size - 2 * len(alphabet) - 2))
    vocabulary: dict[str, int] = {}
    for token in [
        *alphabet,
        *(letter + "</w>" for letter in alphabet),
        *("".join(pair) for pair in merges),
        start,
        end,
    ]:
        vocabulary.setdefault(token, len(vocabulary))
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=config.text_length)


def learn_merges(words: Sequence[str], limit: int) -> list[tuple[str, str]]:
    """Return the merges of byte pair encoding, most frequent pair first (Sennrich et al. 2016).

    Ties are broken alphabetically. The trainer of `tokenizers` breaks them at random, and a resumed run would get a
    different vocabulary from the one its text encoder has learned.

    Args:
        words: distinct words, spelled in byte-level letters.
        limit: at most this many merges.
    """
    parts = [(*word[:-1], word[-1] + "</w>") for word in words]
    merges: list[tuple[str, str]] = []
    while len(merges) < limit:
        counts = Counter(pair for part in parts for pair in pairwise(part))
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        parts = [_merged(part, best) for part in parts]
    return merges


def _merged(part: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    result: list[str] = []
    index = 0
    while index < len(part):
        if part[index : index + 2] == pair:
            result.append("".join(pair))
            index += 2
        else:
            result.append(part[index])
            index += 1
    return tuple(result)


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


def short_caption(tone: str, material: str, defect_words: tuple[str, ...]) -> str:
    """Make a caption in the form of both phases: `an image of a [tone] [material] with a [defect] and a [defect]`."""
    if not defect_words:
        return f"an image of a {tone} {material}"
    return f"an image of a {tone} {material} with " + " and ".join(f"a {word}" for word in dict.fromkeys(defect_words))


def with_defects(caption: str, defect_words: tuple[str, ...]) -> str:
    """Replace the defects that the last part of a procedural caption names."""
    head = caption.rpartition(", ")[0]
    words = dict.fromkeys(defect_words)
    return f"{head}, with a " + " and a ".join(words) if words else f"{head}, without defect"
