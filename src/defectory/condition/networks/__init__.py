"""Networks that make a backbone follow drivers, one file each. Importing this package does not import torch."""

from __future__ import annotations

from typing import Any

from defectory.errors import WeightsError
from defectory.registry import Registry

CONDITION_NETWORKS: Registry[Any] = Registry(
    "condition_networks",
    setting="condition.network",
    builtin={
        "controlnet": "defectory.condition.networks.controlnet:ControlNet",
        "adapter": "defectory.condition.networks.adapter:Adapter",
        "hypernetwork": "defectory.condition.networks.hypernetwork:Hypernetwork",
    },
)
"""Of classes that follow `networks.network.ConditionNetwork`."""


def require_unet(backbone: Any, network: str) -> None:
    """Require a base with a UNet, for a network that changes one.

    Raises:
        WeightsError: its denoiser is of another kind.
    """
    if "down_block_types" not in backbone.denoiser.config:
        found = f"{network}, but this base has no UNet"
        raise WeightsError("condition.network", found, "set it to controlnet")


__all__ = ["CONDITION_NETWORKS", "require_unet"]
