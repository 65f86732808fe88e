"""Networks that make a backbone follow drivers, one file each. Importing this package does not import torch."""

from __future__ import annotations

from typing import Any

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

__all__ = ["CONDITION_NETWORKS"]
