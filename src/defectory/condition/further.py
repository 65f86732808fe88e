"""Recognises networks that are to act beside a run's own, and checks that they fit its base. Loads no weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from defectory.artifacts.weights import Concept, Control
from defectory.condition.networks import CONDITION_NETWORKS
from defectory.engine.backbones.configs import UNetConfig
from defectory.engine.backbones.files import read_json, verify_part
from defectory.errors import ConfigError, InputError, WeightsError

OF_DIFFUSERS = {"ControlNetModel": "controlnet", "T2IAdapter": "adapter"}
"""Names of networks by diffusers' classes."""
LIGHT_ADAPTER, FULL_ADAPTER = "light_adapter", "full_adapter"
"""Kinds of diffusers' adapters whose maps have the same sizes."""
OTHER_BASE = "give a network of this base"


@dataclass(frozen=True, kw_only=True)
class FurtherNetworkFolder:
    """A network on disk that is to act beside a run's own.

    Attributes:
        where: it is named, for messages.
        kind: of network, as in `condition.network`.
        folder: the stage folder of another run, or a folder of diffusers.
        control: what the other run says of it; None for a folder of diffusers.
    """

    where: str
    kind: str
    folder: Path
    control: Control | None

    @property
    def weights(self) -> Path:
        """Return the folder with settings and weights. It may import torch, to look up the kind.

        Raises:
            ConfigError: the kind is not installed.
        """
        return self.folder if self.control is None else self.folder / CONDITION_NETWORKS.get(self.kind).folder

    @property
    def base_digest(self) -> str | None:
        """Return the digest of the base that the other run learned on; None if it cannot be told."""
        if self.control is None:
            return None
        try:
            return Concept.load(self.folder.parent / "concept" / "concept.json").base_digest
        except InputError:
            return None


def read_further(folder: Path, *, where: str) -> FurtherNetworkFolder:
    """Recognise a network by its JSON files.

    Args:
        folder: `control/` of a run, or a folder of diffusers.
        where: it is named, for messages.

    Raises:
        ConfigError: there is no such folder.
        WeightsError: it holds no network that can act beside others.
    """
    where = f"{where} {folder}"
    if not folder.is_dir():
        raise ConfigError(where, "no such folder", "correct the path, or mount its disk")
    if (folder / "control.json").is_file():
        control = Control.load(folder / "control.json")
        return FurtherNetworkFolder(where=where, kind=control.network, folder=folder, control=control)
    for inside in ("control", "controlnet"):
        if (folder / inside).is_dir() and not (folder / "config.json").is_file():
            raise WeightsError(where, f"holds the network in {inside}/", f"add /{inside} to the path")
    if not (folder / "config.json").is_file():
        todo = "give `control/` of another run, or a folder of diffusers with a ControlNetModel or a T2IAdapter"
        raise WeightsError(where, "holds neither control.json nor config.json", todo)
    name = str(read_json(folder / "config.json").get("_class_name"))
    if name not in OF_DIFFUSERS:
        raise WeightsError(where, f"is a {name[:60]}", f"give a {' or a '.join(OF_DIFFUSERS)}")
    return FurtherNetworkFolder(where=where, kind=OF_DIFFUSERS[name], folder=folder, control=None)


def require_combinable(kind: str, *, where: str) -> None:
    """Require that networks of a kind can act together with others.

    Raises:
        ConfigError: they cannot, or the kind is not installed.
    """
    if not hasattr(CONDITION_NETWORKS.get(kind), "steer"):
        raise ConfigError(
            where,
            f"the condition network {kind} has no method `steer`, so it cannot act together with others",
            "leave synthesis.also_controls out, or use another network",
        )


def require_fits(found: FurtherNetworkFolder, unet: UNetConfig, *, latent_factor: int, reads_masks: bool) -> None:
    """Require that a network is whole, and has the sizes of a base's UNet.

    Args:
        found: the network.
        unet: settings of the base's UNet.
        latent_factor: image pixels per latent pixel and side of the base.
        reads_masks: whether its drivers have masks in the classes' colours.

    Raises:
        WeightsError: it is damaged, holds pickles, or was made for another base.
    """
    require_combinable(found.kind, where=found.where)
    if found.kind not in ("controlnet", "adapter", "hypernetwork"):
        # its own `load` checks it
        return
    verify_part(found.weights)
    config = read_json(found.weights / "config.json")
    problem = _OF_KIND[found.kind](config, unet, latent_factor)
    if problem is None and found.kind == "adapter" and config.get("in_channels", 3) == 1 and reads_masks:
        found_, todo = "reads grey images, and masks have colours", 'set its `drivers` to a kind, such as "edges"'
        raise WeightsError(found.where, found_, todo)
    if problem is not None:
        raise WeightsError(found.where, f"was made for another base: {problem}", OTHER_BASE)


def _of_controlnet(config: Mapping[str, Any], unet: UNetConfig, latent_factor: int) -> str | None:
    wanted: dict[str, Any] = {
        "block_out_channels": unet.block_out_channels,
        "cross_attention_dim": unet.cross_attention_dim,
        "layers_per_block": unet.layers_per_block,
        "in_channels": unet.in_channels,
        "addition_embed_type": unet.addition_embed_type,
        "conditioning_channels": 3,
    }
    for name, value in wanted.items():
        if name in config and config[name] != value:
            return _differs(name, config[name], value)
    # its first layers halve an image's sides once per width after the first
    widths = config.get("conditioning_embedding_out_channels") or (16, 32, 96, 256)
    return _differs("pixels per latent pixel", 2 ** (len(widths) - 1), latent_factor)


def _of_adapter(config: Mapping[str, Any], unet: UNetConfig, latent_factor: int) -> str | None:
    from defectory.condition.networks.adapter import adapter_kind

    kind, factor = adapter_kind(unet.down_block_types, latent_factor=latent_factor)
    found = FULL_ADAPTER if config.get("adapter_type") == LIGHT_ADAPTER else config.get("adapter_type")
    return (
        _differs("channels", config.get("channels"), unet.block_out_channels)
        or _differs("adapter_type", found, kind)
        or _differs("downscale_factor", config.get("downscale_factor", 8), factor)
        or (None if config.get("in_channels", 3) in (1, 3) else f"in_channels is {config.get('in_channels')}")
    )


def _of_hypernetwork(config: Mapping[str, Any], unet: UNetConfig, latent_factor: int) -> str | None:
    return _differs("block_channels", config.get("block_channels"), unet.block_out_channels) or _differs(
        "latent_factor", config.get("latent_factor"), latent_factor
    )


_OF_KIND = {"controlnet": _of_controlnet, "adapter": _of_adapter, "hypernetwork": _of_hypernetwork}


def _differs(name: str, found: object, wanted: object) -> str | None:
    """Return what differs, with both values; None if they are equal."""
    return None if found == wanted else f"{name} is {found}, {wanted} was expected"
