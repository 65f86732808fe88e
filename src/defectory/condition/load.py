"""Loads what phase 2 learned."""

from __future__ import annotations

from pathlib import Path

from defectory.artifacts.weights import Control
from defectory.condition.networks import CONDITION_NETWORKS
from defectory.condition.networks.network import ConditionNetwork
from defectory.engine.backbones.backbone import Backbone


def load_network(folder: Path, backbone: Backbone) -> ConditionNetwork:
    """Load a condition network to the backbone's device.

    Args:
        folder: phase 2's stage folder.
        backbone: that it was trained on.

    Raises:
        InputError: the folder holds no network.
        ConfigError: its kind is not installed.
        WeightsError: the weights cannot be used.
    """
    network: type[ConditionNetwork] = CONDITION_NETWORKS.get(Control.load(folder / "control.json").network)
    return network.load(folder / network.folder, backbone)
