"""Runs Stable Diffusion 1.x and 2.x: the only place that calls their text encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from defectory.engine.backbones.backbone import Context
from defectory.engine.backbones.parts import load_part, load_scheduler, load_tokenizer
from defectory.engine.backbones.save import STABLE_DIFFUSION, Layout
from defectory.engine.backbones.sd1.family import FAMILY
from defectory.engine.backbones.unet import UNetBackbone, controlnet_beside


@dataclass(frozen=True, kw_only=True)
class StableDiffusion(UNetBackbone):
    """A base of this family in memory. `controlnet` and `folder` may be None."""

    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """Return the networks that a concept method may train, by part name."""
        return {"unet": self.unet, "text_encoder": self.text_encoder}

    @property
    def layout(self) -> Layout:
        """Return how this base lies on disk."""
        return STABLE_DIFFUSION

    @property
    def tokenizers(self) -> Mapping[str, CLIPTokenizer]:
        """Return the tokenizer, by the part name of its text encoder."""
        return {"text_encoder": self.tokenizer}

    def encode_prompts(self, prompts: Sequence[str]) -> Context:
        """Encode prompts in one batch; the UNet reads the text encoder's last hidden state."""
        token_ids = self.token_ids("text_encoder", prompts)
        return Context(tokens=self.text_encoder(input_ids=token_ids).last_hidden_state.to(self.device))

    def conditioning(self, latents: Tensor, context: Context) -> Mapping[str, Any]:  # noqa: ARG002
        """Return the arguments of the UNet besides latents and timesteps."""
        return {"encoder_hidden_states": context.tokens}


def load_stable_diffusion(
    folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> StableDiffusion:
    """Check a base in Stable Diffusion layout, and load it together with its control network, if any.

    Args:
        folder: of the base.
        device: where the models go.
        dtype: of all weights, whatever the files hold.

    Raises:
        WeightsError: the folder is incomplete, holds pickles, or its weights do not fit its configuration.
    """
    FAMILY.verify(folder, weights=True)
    return StableDiffusion(
        unet=load_part(UNet2DConditionModel, folder / "unet", device, dtype),
        vae=load_part(AutoencoderKL, folder / "vae", device, dtype),
        text_encoder=load_part(CLIPTextModel, folder / "text_encoder", device, dtype),
        tokenizer=load_tokenizer(folder / "tokenizer"),
        scheduler=load_scheduler(folder / "scheduler"),
        controlnet=controlnet_beside(folder, device, dtype),
        folder=folder,
    )
