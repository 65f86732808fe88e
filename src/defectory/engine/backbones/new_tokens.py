"""Adds tokens to text encoders (Gal et al. 2022, Textual Inversion), and writes and reads their embeddings.

A token of several vectors is several tokens, `<v>`, `<v>_1`, `<v>_2`, as in diffusers: a prompt names the first, and
`spelled_out` puts the others after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from defectory.engine.backbones.backbone import Backbone
from defectory.engine.backbones.files import COPY_AGAIN, verify_safetensors
from defectory.errors import ConfigError, WeightsError

EMBEDS_NAME = "learned_embeds"
"""Stem of the files; `load_textual_inversion` of diffusers looks for `learned_embeds.safetensors` in a folder."""
_OLD_END = 2
"""`eos_token_id` in old configurations of CLIP text encoders, whatever the tokenizer's."""


def new_token(instance_token: str) -> str:
    """Return the token that is added for [V]: in angle brackets, since the tokenizer may know the plain word."""
    joined = "-".join(instance_token.split())
    return joined if joined.startswith("<") and joined.endswith(">") else f"<{joined}>"


def spelled_out(prompt: str, tokenizer: Any) -> str:
    """Put the further tokens of a token of several vectors after it, as the pipelines of diffusers do."""
    known: Mapping[str, int] = tokenizer.added_tokens_encoder
    for token in known:
        if f"{token}_1" in known and token in prompt:
            count = 1
            while f"{token}_{count}" in known:
                count += 1
            prompt = prompt.replace(token, " ".join(_names(token, count)))
    return prompt


def all_names(token: str, num_vectors: int) -> str:
    """Return a token of several vectors as `spelled_out` writes it."""
    return " ".join(_names(token, num_vectors))


def start_tokens(backbone: Backbone, token: str, *, num_vectors: int, initializer: str) -> dict[str, nn.Parameter]:
    """Add a token to a frozen backbone, in place, and return its trainable vectors by name, float [N,D] per encoder.

    All other embeddings stay frozen. The vectors start as the mean embedding of the initializer's tokens.

    Args:
        backbone: with at least one text encoder.
        token: new to every tokenizer.
        num_vectors: tokens that it consists of.
        initializer: words that describe the part.

    Raises:
        ConfigError: a tokenizer knows the token already, or no part of the initializer; or the base takes no tokens.
    """
    if not getattr(backbone, "takes_new_tokens", True):
        raise ConfigError(
            "concept.method",
            "trains a new word, which pipelines of this base do not read",
            "set it to lora or dreambooth",
        )
    parameters: dict[str, nn.Parameter] = {}
    for part, tokenizer in backbone.tokenizers.items():
        embeddings = _embeddings(backbone.networks[part])
        known = tokenizer.encode(initializer, add_special_tokens=False)
        if not known:
            raise ConfigError("concept.initializer_word", f"{initializer!r} has no token", "give an ordinary word")
        start = embeddings.weight.detach()[torch.tensor(known, device=embeddings.weight.device)].mean(dim=0)
        embeddings = _add(backbone.networks[part], tokenizer, token, start.expand(num_vectors, -1))
        first = int(tokenizer.convert_tokens_to_ids(token))
        vectors = nn.Parameter(start.repeat(num_vectors, 1))
        embeddings.register_parameter("learned", vectors)
        embeddings.register_forward_hook(_Replaced(vectors, first))
        parameters[f"{part}.learned"] = vectors
    return parameters


def token_tensors(parameters: Mapping[str, Tensor], token: str) -> dict[str, dict[str, Tensor]]:
    """Return the content of each file by its name: the vectors [N,D] under the token, float32.

    The first text encoder's file is `learned_embeds.safetensors`, the second's `learned_embeds_2.safetensors`.

    Args:
        parameters: of `start_tokens`.
        token: that was added.
    """
    parts = [name.removesuffix(".learned") for name in parameters if name.endswith(".learned")]
    vectors = [parameters[f"{part}.learned"].detach().cpu().float() for part in parts]
    return {_file_name(number): {token: tensor} for number, tensor in enumerate(vectors)}


@torch.no_grad()
def add_learned_tokens(backbone: Backbone, folder: Path) -> None:
    """Add the tokens of a folder to a backbone's tokenizers and text encoders, in place.

    Args:
        backbone: that the tokens were learned on.
        folder: holds the files of `token_tensors`.

    Raises:
        WeightsError: a file cannot be read, or does not fit the text encoder.
    """
    for number, (part, tokenizer) in enumerate(backbone.tokenizers.items()):
        path = folder / _file_name(number)
        verify_safetensors(path)
        found = load_file(path)
        token, vectors = next(iter(found.items()), ("", torch.zeros(0)))
        width = _embeddings(backbone.networks[part]).weight.shape[1]
        if len(found) != 1 or vectors.ndim != 2 or vectors.shape[1] != width:
            raise WeightsError(path, f"holds no vectors of {width} numbers for one token", COPY_AGAIN)
        try:
            _add(backbone.networks[part], tokenizer, token, vectors)
        except ConfigError as error:
            raise WeightsError(path, error.found, "give the base that it was learned from") from None


class _Replaced:
    """A hook that puts trained vectors in place of a token's embeddings."""

    def __init__(self, vectors: nn.Parameter, first: int) -> None:
        self._vectors, self._first = vectors, first

    def __call__(self, _module: nn.Module, given: tuple[Tensor, ...], embedded: Tensor) -> Tensor:
        index = given[0] - self._first
        is_new = (index >= 0) & (index < len(self._vectors))
        rows = nn.functional.embedding(index.clamp(0, len(self._vectors) - 1), self._vectors)
        return torch.where(is_new[..., None], rows.to(embedded.dtype), embedded)


def _names(token: str, num_vectors: int) -> list[str]:
    return [token, *(f"{token}_{number}" for number in range(1, num_vectors))]


def _file_name(number: int) -> str:
    return f"{EMBEDS_NAME}.safetensors" if number == 0 else f"{EMBEDS_NAME}_{number + 1}.safetensors"


def _embeddings(encoder: Any) -> nn.Embedding:
    return encoder.get_input_embeddings()


@torch.no_grad()
def _add(encoder: Any, tokenizer: Any, token: str, vectors: Tensor) -> nn.Embedding:
    """Add a token's names to a tokenizer and its vectors [N,D] to a text encoder, and return the embeddings."""
    names = _names(token, len(vectors))
    vocabulary: Mapping[str, int] = tokenizer.get_vocab()
    known = next((name for name in names if name in vocabulary), None)
    if known is not None:
        raise ConfigError(
            "prompts.instance_token", f"the tokenizer already knows {known!r}", "choose a word of your own"
        )
    tokenizer.add_tokens(names)
    rows = max(len(_embeddings(encoder).weight), len(tokenizer))
    encoder.resize_token_embeddings(rows, mean_resizing=False)
    _find_end_by_its_token(encoder, tokenizer)
    embeddings = _embeddings(encoder)
    embeddings.weight.requires_grad_(False)
    embeddings.weight[torch.tensor(tokenizer.convert_tokens_to_ids(names))] = vectors.to(embeddings.weight)
    return embeddings


def _find_end_by_its_token(encoder: Any, tokenizer: Any) -> None:
    """Let a text encoder pool a text at its end.

    Old files, such as those of Stable Diffusion XL, name another end than the tokenizer's. transformers then takes the
    largest token for the end, which a new token would be.
    """
    if encoder.config.eos_token_id == _OLD_END:
        inner = getattr(encoder, "text_model", encoder)
        encoder.config.eos_token_id = inner.eos_token_id = tokenizer.eos_token_id
