"""Loads what phase 2 learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from defectory.artifacts.weights import Control
from defectory.condition.further import FurtherNetworkFolder, require_fits
from defectory.condition.networks import CONDITION_NETWORKS
from defectory.condition.networks.network import ConditionNetwork
from defectory.engine.backbones.backbone import Backbone
from defectory.engine.backbones.configs import UNetConfig
from defectory.engine.backbones.steering import Combinable
from defectory.errors import WeightsError


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


def load_further(found: FurtherNetworkFolder, backbone: Backbone, *, reads_masks: bool) -> Combinable:
    """Load a network that is to act beside a run's own to the backbone's device.

    Args:
        found: as from `read_further`.
        backbone: adapted.
        reads_masks: whether its drivers have masks in the classes' colours.

    Raises:
        ConfigError: its kind is not installed, or cannot act together with others.
        WeightsError: the weights cannot be used, or were made for another base.
    """
    config: Any = getattr(backbone.denoiser, "config", {})
    if "block_out_channels" not in config:
        raise WeightsError(found.where, "the base has no UNet, and only these take several networks", "leave it out")
    require_fits(
        found, UNetConfig.model_validate(dict(config)), latent_factor=backbone.latent_factor, reads_masks=reads_masks
    )
    kind: Any = CONDITION_NETWORKS.get(found.kind)
    network: Combinable = kind.load(found.weights, backbone)
    return network
