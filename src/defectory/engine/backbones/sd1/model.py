"""Runs Stable Diffusion: the only place that calls its UNet, autoencoder and text encoder."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn
from torch.func import functional_call
from transformers import CLIPTextModel, CLIPTokenizer

from defectory.engine.backbones.backbone import Added, Context
from defectory.engine.backbones.new_tokens import spelled_out
from defectory.engine.backbones.parts import load_controlnet, load_part, load_scheduler, load_tokenizer
from defectory.engine.backbones.save import STABLE_DIFFUSION, fill_base_like, network_part, save_pipeline
from defectory.engine.backbones.sd1.family import FAMILY
from defectory.files import digest_folder


@dataclass(frozen=True, kw_only=True)
class StableDiffusion:
    """A base of this family in memory. `controlnet` and `folder` may be None."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: Any
    """The diffusers scheduler that the base names."""
    controlnet: ControlNetModel | None = None
    folder: Path | None = None
    """Folder it was loaded from."""
    _token_ids: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """Return the networks that a concept method may train, by part name."""
        return {"unet": self.unet, "text_encoder": self.text_encoder}

    @property
    def tokenizers(self) -> Mapping[str, CLIPTokenizer]:
        """Return the tokenizer, by the part name of its text encoder."""
        return {"text_encoder": self.tokenizer}

    @property
    def denoiser(self) -> UNet2DConditionModel:
        """Return the UNet."""
        return self.unet

    @property
    def device(self) -> torch.device:
        """Return the device of the UNet."""
        return next(self.unet.parameters()).device

    @property
    def latent_channels(self) -> int:
        """Return the number of latent channels."""
        return int(self.unet.config["in_channels"])

    @property
    def latent_factor(self) -> int:
        """Return how many image pixels one latent pixel spans per side."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    @property
    def size_multiple_px(self) -> int:
        """Return the number that tile sides must be divisible by, pixels."""
        return self.latent_factor * 2 ** (len(self.unet.config["block_out_channels"]) - 1)

    @property
    def tile_px(self) -> int:
        """Return the side of the base's native tiles, pixels."""
        return int(self.unet.config["sample_size"]) * self.latent_factor

    @property
    def scaling_factor(self) -> float:
        """Return the factor that latents are multiplied by before the UNet sees them."""
        return float(self.vae.config["scaling_factor"])

    @property
    def autoencoder_digest(self) -> str:
        """Return the digest of the autoencoder's files."""
        assert self.folder is not None, "only a base on disk has digests"
        return digest_folder(self.folder / "vae")

    def encode_prompts(self, prompts: Sequence[str]) -> Context:
        """Encode prompts in one batch; the UNet reads the text encoder's last hidden state."""
        token_ids = torch.stack([self._tokens(prompt) for prompt in prompts])
        return Context(tokens=self.text_encoder(input_ids=token_ids).last_hidden_state.to(self.device))

    def conditioning(self, latents: Tensor, context: Context) -> Mapping[str, Any]:  # noqa: ARG002
        """Return the arguments of the UNet besides latents and timesteps."""
        return {"encoder_hidden_states": context.tokens}

    def predict(
        self,
        latents: Tensor,
        timesteps: Tensor,
        context: Context,
        *,
        residuals: Added | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Predict noise or velocity, float [B,C,h,w]."""
        given = dict(self.conditioning(latents, context))
        if residuals is not None:
            given |= residuals.unet_arguments()
        unet: Any = self.unet
        if weights is not None:
            return functional_call(unet, dict(weights), args=(latents, timesteps), kwargs=given).sample
        return unet(latents, timesteps, **given).sample

    def move_frozen_encoders(self, device: torch.device | str) -> None:
        """Move the autoencoder, and the text encoder if it is frozen, to another device."""
        networks: list[Any] = [self.vae]
        if not any(weight.requires_grad for weight in self.text_encoder.parameters()):
            networks.append(self.text_encoder)
            self._token_ids.clear()
        for network in networks:
            network.to(device)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Encode images float [B,3,H,W] in [-1,1] as scaled posterior means, float32 [B,C,h,w]."""
        encode: Any = self.vae.encode
        return encode(pixels).latent_dist.mean.float() * self.scaling_factor

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Decode scaled latents [B,C,h,w] to images float [B,3,H,W], about [-1,1]."""
        decode: Any = self.vae.decode
        return decode(latents / self.scaling_factor).sample

    def save(self, folder: Path, *, like: Path, parts: Collection[str]) -> None:
        """Write a base to an empty folder: these networks, and everything else from the folder `like`."""
        fill_base_like(like, folder, replaced={part: self.networks[part] for part in parts})

    def save_pipeline(self, out: Path, *, controlnet: nn.Module | None) -> str:
        """Write a finished pipeline that opens as `StableDiffusionControlNetPipeline`, or with an adapter as
        `StableDiffusionAdapterPipeline`.
        """
        parts: dict[str, Any] = {
            "vae": self.vae,
            "text_encoder": self.text_encoder,
            "tokenizer": self.tokenizer,
            "unet": self.unet,
            "scheduler": self.scheduler,
        }
        if controlnet is not None:
            parts[network_part(controlnet, STABLE_DIFFUSION)] = controlnet
        return save_pipeline(parts, out)

    def _tokens(self, prompt: str) -> Tensor:
        """Return the token ids of a prompt, int64 [L], on the text encoder's device."""
        if prompt not in self._token_ids:
            length = int(self.text_encoder.config.max_position_embeddings)
            tokens: Any = self.tokenizer(
                spelled_out(prompt, self.tokenizer),
                padding="max_length",
                truncation=True,
                max_length=length,
                return_tensors="pt",
            )
            self._token_ids[prompt] = tokens.input_ids[0].to(next(self.text_encoder.parameters()).device)
        return self._token_ids[prompt]


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
    beside = folder / "controlnet"
    controlnet = load_controlnet(beside, device, dtype) if beside.is_dir() else None
    return StableDiffusion(
        unet=load_part(UNet2DConditionModel, folder / "unet", device, dtype),
        vae=load_part(AutoencoderKL, folder / "vae", device, dtype),
        text_encoder=load_part(CLIPTextModel, folder / "text_encoder", device, dtype),
        tokenizer=load_tokenizer(folder / "tokenizer"),
        scheduler=load_scheduler(folder / "scheduler"),
        controlnet=controlnet,
        folder=folder,
    )
