"""Runs Stable Diffusion XL (Podell et al. 2023): the only place that calls its two text encoders.

The UNet reads three things besides latents and timesteps:

    tokens   the penultimate hidden states of both text encoders, side by side
    pooled   the second encoder's projected text
    sizes    (H, W, 0, 0, H, W): size of the image, corner of its crop, size to draw; pixels (section 2.2)

A tile is its own image: nothing was cropped, and H and W are its sides, as plain diffusers has it by default.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from defectory.engine.backbones.backbone import Context
from defectory.engine.backbones.parts import load_part, load_scheduler, load_tokenizer
from defectory.engine.backbones.save import STABLE_DIFFUSION_XL, Layout
from defectory.engine.backbones.sdxl.family import FAMILY
from defectory.engine.backbones.unet import UNetBackbone, controlnet_beside


@dataclass(frozen=True, kw_only=True)
class StableDiffusionXL(UNetBackbone):
    """A base of this family in memory. `controlnet` and `folder` may be None."""

    text_encoder: CLIPTextModel
    text_encoder_2: CLIPTextModelWithProjection
    tokenizer: CLIPTokenizer
    tokenizer_2: CLIPTokenizer
    zeros_for_empty: bool = True
    """Encode an empty prompt as zeros, as the base was trained (`force_zeros_for_empty_prompt`)."""

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """Return the networks that a concept method may train, by part name."""
        return {"unet": self.unet, "text_encoder": self.text_encoder, "text_encoder_2": self.text_encoder_2}

    @property
    def layout(self) -> Layout:
        """Return how this base lies on disk."""
        return replace(STABLE_DIFFUSION_XL, settings={"force_zeros_for_empty_prompt": self.zeros_for_empty})

    @property
    def tokenizers(self) -> Mapping[str, CLIPTokenizer]:
        """Return the tokenizers, by the part names of their text encoders."""
        return {"text_encoder": self.tokenizer, "text_encoder_2": self.tokenizer_2}

    def encode_prompts(self, prompts: Sequence[str]) -> Context:
        """Encode prompts in one batch, with both text encoders."""
        ids, ids_2 = self.token_ids("text_encoder", prompts), self.token_ids("text_encoder_2", prompts)
        first: Any = self.text_encoder(input_ids=ids, output_hidden_states=True)
        second: Any = self.text_encoder_2(input_ids=ids_2, output_hidden_states=True)
        tokens = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        pooled = second.text_embeds
        if self.zeros_for_empty and "" in prompts:
            said = torch.tensor([prompt != "" for prompt in prompts], dtype=tokens.dtype, device=tokens.device)
            tokens, pooled = tokens * said[:, None, None], pooled * said[:, None]
        return Context(tokens=tokens.to(self.device), pooled=pooled.to(self.device))

    def conditioning(self, latents: Tensor, context: Context) -> Mapping[str, Any]:
        """Return the arguments of the UNet besides latents and timesteps."""
        height, width = (side * self.latent_factor for side in latents.shape[-2:])
        assert context.pooled is not None, "contexts of this family have a pooled text"
        sizes = torch.tensor([[height, width, 0, 0, height, width]], dtype=context.tokens.dtype, device=latents.device)
        return {
            "encoder_hidden_states": context.tokens,
            "added_cond_kwargs": {"text_embeds": context.pooled, "time_ids": sizes.expand(len(context), -1)},
        }


def load_stable_diffusion_xl(
    folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> StableDiffusionXL:
    """Check a base of Stable Diffusion XL, and load it together with its control network, if any.

    Args:
        folder: of the base.
        device: where the models go.
        dtype: of all weights, whatever the files hold.

    Raises:
        WeightsError: the folder is incomplete, holds pickles, or its weights do not fit its configuration.
    """
    FAMILY.verify(folder, weights=True)
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    return StableDiffusionXL(
        unet=load_part(UNet2DConditionModel, folder / "unet", device, dtype),
        vae=load_part(AutoencoderKL, folder / "vae", device, dtype),
        text_encoder=load_part(CLIPTextModel, folder / "text_encoder", device, dtype),
        text_encoder_2=load_part(CLIPTextModelWithProjection, folder / "text_encoder_2", device, dtype),
        tokenizer=load_tokenizer(folder / "tokenizer"),
        tokenizer_2=load_tokenizer(folder / "tokenizer_2"),
        scheduler=load_scheduler(folder / "scheduler"),
        controlnet=controlnet_beside(folder, device, dtype),
        folder=folder,
        zeros_for_empty=index.get("force_zeros_for_empty_prompt") is not False,
    )
