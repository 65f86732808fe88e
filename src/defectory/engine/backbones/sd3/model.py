"""Runs Stable Diffusion 3 and 3.5 (Esser et al. 2024): the only place that calls its text encoders.

The transformer reads three things besides latents and times:

    tokens   [L + L3, D]: the penultimate hidden states of both CLIP encoders side by side, filled with zeros to width
             D; below them T5's last hidden states, or zeros where there is no T5
    pooled   the projected texts of both CLIP encoders, side by side
    times    1000 sigma, as the scheduler counts them
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, SD3ControlNetModel, SD3Transformer2DModel
from torch import Tensor, nn
from torch.func import functional_call
from transformers import (
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5EncoderModel,
    T5TokenizerFast,  # pyright: ignore[reportAttributeAccessIssue]  # named lazily
)

from defectory.engine.backbones.backbone import Added, Context
from defectory.engine.backbones.latent import LatentBackbone
from defectory.engine.backbones.parts import load_part, load_scheduler, load_tokenizer, quiet
from defectory.engine.backbones.save import STABLE_DIFFUSION_3, Layout
from defectory.engine.backbones.sd3.control import SD3Control, load_sd3_controlnet
from defectory.engine.backbones.sd3.facts import T5_PARTS, has_t5
from defectory.engine.backbones.sd3.family import FAMILY
from defectory.errors import WeightsError

NUM_T5_TOKENS = 256
"""Tokens of a prompt for T5, as in diffusers' pipelines."""


@dataclass(frozen=True, kw_only=True)
class StableDiffusion3(LatentBackbone):
    """A base of this family in memory. `controlnet`, `folder`, and T5 with its tokenizer may be None."""

    transformer: SD3Transformer2DModel
    text_encoder: CLIPTextModelWithProjection
    text_encoder_2: CLIPTextModelWithProjection
    tokenizer: CLIPTokenizer
    tokenizer_2: CLIPTokenizer
    text_encoder_3: T5EncoderModel | None = None
    tokenizer_3: Any = None
    controlnet: SD3ControlNetModel | None = None
    takes_new_tokens: ClassVar[bool] = False

    @property
    def denoiser(self) -> SD3Transformer2DModel:
        """Return the transformer."""
        return self.transformer

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """Return the networks that a concept method may train, by part name. T5 is always frozen."""
        return {
            "transformer": self.transformer,
            "text_encoder": self.text_encoder,
            "text_encoder_2": self.text_encoder_2,
        }

    @property
    def tokenizers(self) -> Mapping[str, CLIPTokenizer]:
        """Return the tokenizers of the CLIP encoders, by their part names."""
        return {"text_encoder": self.tokenizer, "text_encoder_2": self.tokenizer_2}

    @property
    def further_parts(self) -> Mapping[str, Any]:
        """Return T5 and its tokenizer, if there are any."""
        parts = {"text_encoder_3": self.text_encoder_3, "tokenizer_3": self.tokenizer_3}
        return {part: model for part, model in parts.items() if model is not None}

    @property
    def layout(self) -> Layout:
        """Return how this base lies on disk."""
        if self.text_encoder_3 is not None:
            return STABLE_DIFFUSION_3
        parts = tuple(part for part in STABLE_DIFFUSION_3.parts if part not in T5_PARTS)
        return replace(STABLE_DIFFUSION_3, parts=parts, absent=(*STABLE_DIFFUSION_3.absent, *T5_PARTS))

    @cached_property
    def own_control(self) -> SD3Control:
        """Return how control networks of this family are made, read and called."""
        return SD3Control(self)

    @property
    def size_multiple_px(self) -> int:
        """Return the number that tile sides must be divisible by, pixels."""
        return self.latent_factor * int(self.transformer.config["patch_size"])

    @property
    def shift(self) -> float:
        """Return what latents are shifted by before they are scaled."""
        return float(self.vae.config["shift_factor"])

    def encode_prompts(self, prompts: Sequence[str]) -> Context:
        """Encode prompts in one batch, with all text encoders."""
        hidden: list[Tensor] = []
        pooled: list[Tensor] = []
        for part in self.tokenizers:
            encoder: Any = self.networks[part]
            found = encoder(input_ids=self.token_ids(part, prompts), output_hidden_states=True)
            hidden.append(found.hidden_states[-2].to(self.device))
            pooled.append(found.text_embeds.to(self.device))
        clip, width = torch.cat(hidden, dim=-1), int(self.transformer.config["joint_attention_dim"])
        clip = nn.functional.pad(clip, (0, width - clip.shape[-1]))
        return Context(tokens=torch.cat([clip, self._of_t5(prompts, clip)], dim=1), pooled=torch.cat(pooled, dim=-1))

    def _of_t5(self, prompts: Sequence[str], clip: Tensor) -> Tensor:
        """Return T5's part of the tokens, float [B,L3,D]: zeros without T5, which are attended to as well."""
        if self.text_encoder_3 is None or self.tokenizer_3 is None:
            return clip.new_zeros(len(prompts), NUM_T5_TOKENS, clip.shape[-1])
        t5: Any = self.text_encoder_3
        tokens = self.tokenizer_3(
            list(prompts), padding="max_length", truncation=True, max_length=NUM_T5_TOKENS, return_tensors="pt"
        )
        with torch.no_grad():
            return t5(tokens.input_ids.to(next(t5.parameters()).device))[0].to(clip)

    def conditioning(self, latents: Tensor, context: Context) -> Mapping[str, Any]:  # noqa: ARG002
        """Return the arguments of the transformer besides latents and times."""
        return {"encoder_hidden_states": context.tokens, "pooled_projections": context.pooled}

    def times(self, latents: Tensor, timesteps: Tensor) -> Tensor:
        """Return one time per sample, float [B], on the latents' device."""
        return timesteps.to(latents.device).float().expand(len(latents))

    def predict(
        self,
        latents: Tensor,
        timesteps: Tensor,
        context: Context,
        *,
        residuals: Added | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Predict the flow, float [B,C,h,w]."""
        given = {"timestep": self.times(latents, timesteps), **self.conditioning(latents, context)}
        if residuals is not None:
            given |= residuals.denoiser_arguments()
        transformer: Any = self.transformer
        if weights is not None:
            return functional_call(transformer, dict(weights), args=(latents,), kwargs=given).sample
        return transformer(latents, **given).sample

    def move_frozen_encoders(self, device: torch.device | str) -> None:
        """Move text encoders that are frozen. The autoencoder stays, since control networks read drivers through it."""
        networks: list[Any] = [network for network in (self.text_encoder_3,) if network is not None]
        for part in self.tokenizers:
            network: Any = self.networks[part]
            if not any(weight.requires_grad for weight in network.parameters()):
                networks.append(network)
                self._token_ids.pop(part, None)
        for network in networks:
            network.to(device)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Encode images float [B,3,H,W] in [-1,1] as shifted and scaled posterior means, float32 [B,C,h,w]."""
        encode: Any = self.vae.encode
        return (encode(pixels).latent_dist.mean.float() - self.shift) * self.scaling_factor

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Decode such latents [B,C,h,w] to images float [B,3,H,W], about [-1,1]."""
        decode: Any = self.vae.decode
        return decode(latents / self.scaling_factor + self.shift).sample


def load_stable_diffusion_3(
    folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> StableDiffusion3:
    """Check a base of Stable Diffusion 3, and load it together with T5 and its control network, if any.

    Args:
        folder: of the base.
        device: where the models go.
        dtype: of all weights, whatever the files hold.

    Raises:
        WeightsError: the folder is incomplete, holds pickles, or its weights do not fit its configuration.
    """
    FAMILY.verify(folder, weights=True)
    with_t5, beside = has_t5(folder), folder / "controlnet"
    return StableDiffusion3(
        transformer=load_part(SD3Transformer2DModel, folder / "transformer", device, dtype),
        vae=load_part(AutoencoderKL, folder / "vae", device, dtype),
        text_encoder=load_part(CLIPTextModelWithProjection, folder / "text_encoder", device, dtype),
        text_encoder_2=load_part(CLIPTextModelWithProjection, folder / "text_encoder_2", device, dtype),
        text_encoder_3=load_part(T5EncoderModel, folder / "text_encoder_3", device, dtype) if with_t5 else None,
        tokenizer=load_tokenizer(folder / "tokenizer"),
        tokenizer_2=load_tokenizer(folder / "tokenizer_2"),
        tokenizer_3=_load_t5_tokenizer(folder / "tokenizer_3") if with_t5 else None,
        scheduler=load_scheduler(folder / "scheduler"),
        controlnet=load_sd3_controlnet(beside, device, dtype) if beside.is_dir() else None,
        folder=folder,
    )


def _load_t5_tokenizer(folder: Path) -> Any:
    """Load a T5 tokenizer.

    Raises:
        WeightsError: it cannot be loaded.
    """
    try:
        with quiet():
            return T5TokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # only the tokenizer's own code understands its files
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsError(folder, f"cannot be loaded as a T5 tokenizer ({reason})", "copy the base again") from error
