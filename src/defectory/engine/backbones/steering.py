"""Steers a backbone by several networks at once.

    f(x_t, t, c) + r_1 + r_2 + ... + F_1 + F_2 + ...

    r_k    residuals of control networks, summed as diffusers' `MultiControlNetModel` does
    F_k    features of adapters, summed as diffusers' `MultiAdapter` does

A network that changes weights does so while the denoiser computes; the changes of several are added too.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from defectory.engine.backbones.backbone import Added, Backbone, Context, Steering


class Combinable(Steering, Protocol):
    """A network that can steer a backbone together with others."""

    def steer(
        self,
        backbone: Backbone,
        latents: Tensor,
        timesteps: Tensor,
        context: Context,
        drivers: Tensor,
        /,
        *,
        scale: float = 1.0,
    ) -> AbstractContextManager[Added | None]:
        """Steer the backbone within a `with` block, which yields what the caller adds to its prediction.

        Args and shapes are those of `Steering.predict`. A network that adds no maps yields None.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one network contributes to a prediction: the network, its drivers float [B,3,H,W], and its strength."""

    network: Steering
    drivers: Tensor
    scale: float


@dataclass(frozen=True, kw_only=True)
class Together:
    """Maps of different classes that are added in one prediction."""

    parts: tuple[Added, ...]

    def denoiser_arguments(self) -> dict[str, Any]:
        """Return the arguments of all parts."""
        return {name: value for part in self.parts for name, value in part.denoiser_arguments().items()}

    def plus(self, other: Together) -> Together:
        """Return the sum of both."""
        return summed([*self.parts, *other.parts])


def summed(added: Sequence[Added]) -> Together:
    """Sum maps of equal classes, in their order."""
    of_class: dict[type[Added], Added] = {}
    for one in added:
        known = of_class.get(type(one))
        of_class[type(one)] = one if known is None else known.plus(one)
    return Together(parts=tuple(of_class.values()))


def is_combinable(network: object) -> bool:
    """Return whether a network, or a class of networks, can steer together with others."""
    return hasattr(network, "steer")


def predict_steered(
    backbone: Backbone, latents: Tensor, timesteps: Tensor, context: Context, shares: Sequence[Share]
) -> Tensor:
    """Predict as `Backbone.predict` does, steered by one network or several.

    Args:
        backbone: frozen.
        latents: float [B,C,h,w], noisy.
        timesteps: int64 [B], or one for all.
        context: of B prompts.
        shares: of the networks; several must be `Combinable`.
    """
    if len(shares) == 1:
        (one,) = shares
        return one.network.predict(backbone, latents, timesteps, context, one.drivers, scale=one.scale)
    with ExitStack() as stack:
        added: list[Added] = []
        for share in shares:
            network: Any = share.network
            steering: AbstractContextManager[Added | None] = network.steer(
                backbone, latents, timesteps, context, share.drivers, scale=share.scale
            )
            maps = stack.enter_context(steering)
            if maps is not None:
                added.append(maps)
        return backbone.predict(latents, timesteps, context, residuals=summed(added) if added else None)
