"""Encodes prompts as contexts, each distinct prompt once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from defectory.engine.backbones.backbone import Backbone, Context, join_contexts


@torch.no_grad()
def encode_prompts(backbone: Backbone, prompts: Sequence[str]) -> Context:
    """Encode prompts one at a time, so that results do not depend on the rest of the batch."""
    rows = {prompt: backbone.encode_prompts([prompt]) for prompt in dict.fromkeys(prompts)}
    return join_contexts([rows[prompt] for prompt in prompts])


class PromptEmbeddings:
    """Encodes prompts for training, once per prompt while the text encoders are frozen.

    Args:
        backbone: its text encoders count as frozen if no parameter requires a gradient.
    """

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        text_encoders = [network for network in backbone.networks.values() if network is not backbone.denoiser]
        self._frozen = not any(weight.requires_grad for encoder in text_encoders for weight in encoder.parameters())
        self._known: dict[str, Context] = {}

    def __call__(self, prompts: Sequence[str]) -> Context:
        """Return the context of prompts; equal prompts are encoded once."""
        if self._frozen:
            for prompt in prompts:
                if prompt not in self._known:
                    with torch.autocast(self._backbone.device.type, enabled=False):
                        self._known[prompt] = encode_prompts(self._backbone, [prompt])
            return join_contexts([self._known[prompt] for prompt in prompts])
        distinct = list(dict.fromkeys(prompts))
        rows = torch.tensor([distinct.index(prompt) for prompt in prompts], device=self._backbone.device)
        return self._backbone.encode_prompts(distinct).select(rows)
