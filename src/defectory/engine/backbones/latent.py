"""Runs what all bases with an `AutoencoderKL` and CLIP tokenizers share, whatever their denoiser and text encoders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from defectory.engine.backbones.backbone import Context
from defectory.engine.backbones.new_tokens import spelled_out
from defectory.engine.backbones.save import Layout, fill_base_like, network_part, save_pipeline
from defectory.files import digest_folder


@dataclass(frozen=True, kw_only=True)
class LatentBackbone(ABC):
    """A base in memory, without its denoiser and text encoders. `folder` may be None."""

    vae: AutoencoderKL
    scheduler: Any
    """The diffusers scheduler that the base names."""
    folder: Path | None = None
    """Folder it was loaded from."""
    _token_ids: dict[str, dict[str, Tensor]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    @abstractmethod
    def denoiser(self) -> Any:
        """Return the denoiser."""

    @property
    @abstractmethod
    def networks(self) -> Mapping[str, nn.Module]:
        """Return the networks that a concept method may train, by part name; the denoiser first."""

    @property
    @abstractmethod
    def layout(self) -> Layout:
        """Return how this base lies on disk."""

    @property
    @abstractmethod
    def tokenizers(self) -> Mapping[str, Any]:
        """Return the tokenizers by the name of the text encoder that reads their tokens."""

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str]) -> Context:
        """Encode prompts in one batch."""

    @abstractmethod
    def conditioning(self, latents: Tensor, context: Context) -> Mapping[str, Any]:
        """Return the arguments of the denoiser besides latents and timesteps."""

    @property
    def further_parts(self) -> Mapping[str, Any]:
        """Return parts that nothing trains and that a finished pipeline needs, by name."""
        return {}

    @property
    def device(self) -> torch.device:
        """Return the device of the denoiser."""
        return next(self.denoiser.parameters()).device

    @property
    def latent_channels(self) -> int:
        """Return the number of latent channels."""
        return int(self.denoiser.config["in_channels"])

    @property
    def latent_factor(self) -> int:
        """Return how many image pixels one latent pixel spans per side."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    @property
    def tile_px(self) -> int:
        """Return the side of the base's native tiles, pixels."""
        return int(self.denoiser.config["sample_size"]) * self.latent_factor

    @property
    def scaling_factor(self) -> float:
        """Return the factor that latents are multiplied by before the UNet sees them."""
        return float(self.vae.config["scaling_factor"])

    @property
    def autoencoder_digest(self) -> str:
        """Return the digest of the autoencoder's files."""
        assert self.folder is not None, "only a base on disk has digests"
        return digest_folder(self.folder / "vae")

    def with_scheduler(self, scheduler: Any) -> Self:
        """Return the same networks with another scheduler of diffusers."""
        return replace(self, scheduler=scheduler)

    def move_frozen_encoders(self, device: torch.device | str) -> None:
        """Move the autoencoder, and text encoders that are frozen, to another device."""
        networks: list[Any] = [self.vae]
        for part, network in self.networks.items():
            if network is not self.denoiser and not any(weight.requires_grad for weight in network.parameters()):
                networks.append(network)
                self._token_ids.pop(part, None)
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
        fill_base_like(like, folder, replaced={part: self.networks[part] for part in parts}, layout=self.layout)

    def save_pipeline(self, out: Path, *, controlnet: nn.Module | None) -> str:
        """Write a finished pipeline that opens as the layout's class for a base with a control network, an adapter, or
        neither.
        """
        denoiser, *text_encoders = self.networks
        parts: dict[str, Any] = {
            "vae": self.vae,
            **{part: self.networks[part] for part in text_encoders},
            **{part.replace("text_encoder", "tokenizer"): tokenizer for part, tokenizer in self.tokenizers.items()},
            **self.further_parts,
            denoiser: self.denoiser,
            "scheduler": self.scheduler,
        }
        if controlnet is not None:
            parts[network_part(controlnet, self.layout)] = controlnet
        return save_pipeline(parts, out, layout=self.layout)

    def token_ids(self, part: str, prompts: Sequence[str]) -> Tensor:
        """Return the token ids of prompts for one text encoder, int64 [B,L], on its device."""
        known: dict[str, Tensor] = self._token_ids.setdefault(part, {})
        for prompt in prompts:
            if prompt not in known:
                encoder: Any = self.networks[part]
                tokens = self.tokenizers[part](
                    spelled_out(prompt, self.tokenizers[part]),
                    padding="max_length",
                    truncation=True,
                    max_length=int(encoder.config.max_position_embeddings),
                    return_tensors="pt",
                )
                known[prompt] = tokens.input_ids[0].to(next(encoder.parameters()).device)
        return torch.stack([known[prompt] for prompt in prompts])
