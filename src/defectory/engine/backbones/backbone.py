"""Defines the protocol of a backbone: a text-to-image diffusion model in memory, whatever its family.

Phases and the sampler use a backbone only through this protocol. Differences between families, such as their networks,
the arguments of these and the encoding of prompts, stay in the family's own folder.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Context:
    """B encoded prompts, as a denoiser reads them.

    Attributes:
        tokens: float [B,L,D], one row per token.
        pooled: float [B,P], one vector per prompt; None if the family has none.
    """

    tokens: Tensor
    pooled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def select(self, rows: Tensor) -> Context:
        """Return the context of the prompts with these indices, int64 [N], on the same device."""
        # not `tokens[rows]`: on a CPU several threads sum its gradient in no fixed order
        pooled = None if self.pooled is None else self.pooled.index_select(0, rows)
        return Context(tokens=self.tokens.index_select(0, rows), pooled=pooled)


def join_contexts(parts: Sequence[Context]) -> Context:
    """Concatenate contexts in order."""
    pooled = [part.pooled for part in parts if part.pooled is not None]
    return Context(tokens=torch.cat([part.tokens for part in parts]), pooled=torch.cat(pooled) if pooled else None)


@dataclass(frozen=True, kw_only=True)
class Residuals:
    """What a control network adds inside a denoiser.

    Attributes:
        skips: one map per skip connection, outermost first.
        middle: the map of the innermost block.
    """

    skips: Sequence[Tensor]
    middle: Tensor

    def denoiser_arguments(self) -> dict[str, Any]:
        """Return them as diffusers' UNets take them."""
        return {"down_block_additional_residuals": self.skips, "mid_block_additional_residual": self.middle}

    def plus(self, other: Residuals) -> Residuals:
        """Return the sum with another network's, as diffusers' `MultiControlNetModel` adds them."""
        skips = [one + another for one, another in zip(self.skips, other.skips, strict=True)]
        return Residuals(skips=skips, middle=self.middle + other.middle)


@dataclass(frozen=True, kw_only=True)
class Features:
    """What an adapter adds inside a denoiser.

    Attributes:
        maps: one map per block of the encoder, outermost first.
    """

    maps: Sequence[Tensor]

    def denoiser_arguments(self) -> dict[str, Any]:
        """Return them as diffusers' UNets take them."""
        # the UNet empties the list
        return {"down_intrablock_additional_residuals": list(self.maps)}

    def plus(self, other: Features) -> Features:
        """Return the sum with another adapter's, as diffusers' `MultiAdapter` adds them."""
        return Features(maps=[one + another for one, another in zip(self.maps, other.maps, strict=True)])


class Added(Protocol):
    """Maps that are added inside a denoiser."""

    def denoiser_arguments(self) -> dict[str, Any]:
        """Return them as arguments of the denoiser."""
        ...

    def plus(self, other: Self) -> Self:
        """Return the sum with maps of the same class."""
        ...


class OwnControl(Protocol):
    """How a family makes, reads and calls its control networks, where they are no `ControlNetModel` of a UNet."""

    def start(self, *, init: str, seed: int) -> nn.Module:
        """Make the initial control network of phase 2, in float32, on the denoiser's device.

        Args:
            init: `copy` of the base, `embedded` for the network shipped with it, or `auto`.
            seed: of new parameters.

        Raises:
            WeightsError: this base does not support `init`.
        """
        ...

    def load(self, folder: Path) -> nn.Module:
        """Load a control network to the denoiser's device.

        Raises:
            WeightsError: the folder cannot be used.
        """
        ...

    def residuals(
        self, network: nn.Module, latents: Tensor, timesteps: Tensor, context: Context, drivers: Tensor, *, scale: float
    ) -> Added:
        """Compute what a control network adds inside the denoiser; arguments as for `Steering.predict`."""
        ...


def own_control_of(backbone: Backbone) -> OwnControl | None:
    """Return a backbone's own control networks; None if it has a UNet, which `ControlNetModel` copies."""
    return getattr(backbone, "own_control", None)


class Backbone(Protocol):
    """A diffusion model in memory. After loading, no parameter requires a gradient.

    A backbone whose denoiser is no UNet may also have `own_control`, an `OwnControl`. One whose pipelines in diffusers
    read no learned tokens has `takes_new_tokens = False`.
    """

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """Networks that a concept method may train, by part name: the denoiser first, then the text encoders."""
        ...

    @property
    def tokenizers(self) -> Mapping[str, Any]:
        """Tokenizers of transformers, by the part name of the text encoder that each one serves."""
        ...

    @property
    def denoiser(self) -> nn.Module:
        """The denoising network."""
        ...

    @property
    def controlnet(self) -> Any:
        """The control network shipped with the base; None if there is none."""
        ...

    @property
    def scheduler(self) -> Any:
        """The diffusers scheduler that the base names."""
        ...

    @property
    def device(self) -> torch.device:
        """Device of the denoiser."""
        ...

    @property
    def latent_channels(self) -> int:
        """Number of latent channels."""
        ...

    @property
    def latent_factor(self) -> int:
        """Image pixels per latent pixel and side."""
        ...

    @property
    def size_multiple_px(self) -> int:
        """Number that tile sides must be divisible by, pixels."""
        ...

    @property
    def tile_px(self) -> int:
        """Side of the base's native tiles, pixels."""
        ...

    @property
    def autoencoder_digest(self) -> str:
        """Digest of the autoencoder's files. Latents of a different autoencoder do not fit."""
        ...

    def encode_prompts(self, prompts: Sequence[str]) -> Context:
        """Encode prompts in one batch, with gradients if the text encoders require them."""
        ...

    def conditioning(self, latents: Tensor, context: Context) -> Mapping[str, Any]:
        """Return the arguments that the denoiser, and a copy of its encoder, take besides latents and timesteps.

        Args:
            latents: float [B,C,h,w], for their size.
            context: of B prompts.
        """
        ...

    def predict(
        self,
        latents: Tensor,
        timesteps: Tensor,
        context: Context,
        *,
        residuals: Added | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Predict noise, velocity or flow, as the base's schedule says.

        Args:
            latents: float [B,C,h,w], noisy.
            timesteps: [B], or one for all; int64, or float under flow matching.
            context: of B prompts.
            residuals: of a control network or an adapter.
            weights: replace the denoiser's parameters of these names in this call only.

        Returns:
            float [B,C,h,w].
        """
        ...

    def with_scheduler(self, scheduler: Any) -> Backbone:
        """Return the same networks with another diffusers scheduler, for a student that needs one of its own."""
        ...

    def move_frozen_encoders(self, device: torch.device | str) -> None:
        """Move the autoencoder, and text encoders that are frozen, to another device than the denoiser's.

        They compute there; encoded prompts come back on the denoiser's device.
        """
        ...

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Encode images float [B,3,H,W] in [-1,1] as scaled posterior means, float32 [B,C,h,w]."""
        ...

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Decode scaled latents [B,C,h,w] to images float [B,3,H,W], about [-1,1]."""
        ...

    def save(self, folder: Path, *, like: Path, parts: Collection[str]) -> None:
        """Write a base to an empty folder: these networks, and everything else from the folder `like`.

        Raises:
            OSError: the folder cannot be written.
        """
        ...

    def save_pipeline(self, out: Path, *, controlnet: nn.Module | None) -> str:
        """Write a finished pipeline for plain diffusers, and return the name of its class there.

        Args:
            out: new folder, replaced as a whole.
            controlnet: a control network or an adapter; None for a pipeline of the base alone.

        Raises:
            PipelineError: diffusers has no pipeline for this network.
            StageError: `out` cannot be written.
        """
        ...


class Steering(Protocol):
    """A network that steers a backbone by drivers, for example with residuals, other weights or extra context."""

    @property
    def module(self) -> nn.Module:
        """The network's parameters."""
        ...

    def predict(
        self,
        backbone: Backbone,
        latents: Tensor,
        timesteps: Tensor,
        context: Context,
        drivers: Tensor,
        *,
        scale: float = 1.0,
    ) -> Tensor:
        """Predict as `Backbone.predict` does, steered.

        Args:
            backbone: frozen.
            latents: float [B,C,h,w], noisy.
            timesteps: int64 [B], or one for all.
            context: of B prompts.
            drivers: float [B,3,H,W] in [0,1].
            scale: strength of the steering; 0 is none.
        """
        ...
