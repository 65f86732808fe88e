"""Prompt embeddings: computed once per prompt while the text encoder is frozen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class PromptEmbeddings:
    """Turn prompts into the UNet's context.

    Args:
        tokenizer: CLIP tokenizer.
        text_encoder: CLIP text encoder; frozen where none of its parameters requires a gradient.
        device: where embeddings are wanted.
    """

    def __init__(self, tokenizer: Any, text_encoder: Any, device: torch.device) -> None:
        self._tokenizer, self._text_encoder, self._device = tokenizer, text_encoder, device
        self._frozen = not any(parameter.requires_grad for parameter in text_encoder.parameters())
        self._length = int(text_encoder.config.max_position_embeddings)
        self._token_ids: dict[str, Tensor] = {}
        self._embeddings: dict[str, Tensor] = {}

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Return the context float [B,L,D] of prompts; equal prompts are encoded once."""
        if self._frozen:
            for prompt in prompts:
                if prompt not in self._embeddings:
                    with torch.no_grad(), torch.autocast(self._device.type, enabled=False):
                        self._embeddings[prompt] = self._encode([prompt])[0]
            return torch.stack([self._embeddings[prompt] for prompt in prompts])
        distinct = list(dict.fromkeys(prompts))
        rows = torch.tensor([distinct.index(prompt) for prompt in prompts], device=self._device)
        # not `[rows]`: on a CPU its gradient is added up by several threads in no fixed order
        return self._encode(distinct).index_select(0, rows)

    def _encode(self, prompts: Sequence[str]) -> Tensor:
        return self._text_encoder(input_ids=torch.stack([self._tokens(prompt) for prompt in prompts])).last_hidden_state

    def _tokens(self, prompt: str) -> Tensor:
        if prompt not in self._token_ids:
            tokens = self._tokenizer(
                prompt, padding="max_length", truncation=True, max_length=self._length, return_tensors="pt"
            )
            self._token_ids[prompt] = tokens.input_ids[0].to(self._device)
        return self._token_ids[prompt]
