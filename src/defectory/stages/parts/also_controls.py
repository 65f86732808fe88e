"""Resolves the networks that act beside a run's own at synthesis (`synthesis.also_controls`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.weights import Control
from defectory.condition.further import FurtherNetworkFolder, read_further, require_combinable, require_fits
from defectory.config.project import ProjectConfig
from defectory.drivers.further import FurtherDriver
from defectory.drivers.kinds import kind_of
from defectory.errors import ConfigError, InputError, WeightsError
from defectory.files import read_manifest
from defectory.runs.sources import MissingSource, Sources
from defectory.stages.learn_condition import driver_digest
from defectory.stages.parts.base_digest import base_digest, cached_digest
from defectory.synthesis.config import AlsoControl

if TYPE_CHECKING:
    from defectory.engine.backbones.backbone import Backbone
    from defectory.engine.sampling.models import FurtherNetwork

SAME = "same"
SETTING = "synthesis.also_controls"
FILES = f"files of {SETTING}"


@dataclass(frozen=True, kw_only=True)
class AlsoNetwork:
    """One network of the list: its settings, and what lies in its folder."""

    setting: AlsoControl
    found: FurtherNetworkFolder

    @property
    def driver(self) -> FurtherDriver:
        """Return what it reads."""
        kind = None if self.setting.drivers == SAME else self.setting.drivers
        return FurtherDriver(kind=kind, masks=self.found.control is not None)

    @property
    def reads_masks(self) -> bool:
        """Return whether its drivers have masks."""
        return self.driver.kind is None or self.driver.masks


def also_networks(sources: Sources, config: ProjectConfig) -> tuple[AlsoNetwork, ...]:
    """Recognise all networks of the list.

    Raises:
        ConfigError: a folder is not there.
        WeightsError: a folder holds no network that can act beside others.
    """
    return tuple(
        AlsoNetwork(setting=one, found=read_further(sources.path(one.path), where=f"{SETTING} {number}"))
        for number, one in enumerate(config.synthesis.also_controls, start=1)
    )


def drivers_of(networks: Sequence[AlsoNetwork]) -> tuple[FurtherDriver, ...]:
    """Return what networks read."""
    return tuple(of.driver for of in networks)


def also_key(config: ProjectConfig, sources: Sources) -> Mapping[str, object]:
    """Return the part of a cache key that the list decides: its settings, and a digest of each network's weights.

    It is empty without the list, so that runs that were made before there was one stay as they are.
    """
    listed = config.synthesis.also_controls
    if not listed:
        return {}
    digests = {str(number): _digest(sources.path(one.path)) for number, one in enumerate(listed, start=1)}
    return {SETTING: [one.model_dump(mode="json") for one in listed], FILES: digests}


def digests_drawn_with(drafts: Path) -> tuple[str, ...]:
    """Return the digests of the further networks that finished drafts were drawn with, from their manifest."""
    settings: Mapping[str, object] = (read_manifest(drafts) or {"settings": {}})["settings"]
    return tuple(str(settings[key]) for key in sorted(settings) if key.startswith(f"{FILES}."))


def _digest(folder: Path) -> str | MissingSource:
    try:
        if (folder / "control.json").is_file():
            return Control.load(folder / "control.json").weights_digest
        # a wrong path may be a folder of anything
        return cached_digest(folder) if (folder / "config.json").is_file() else MissingSource(path=folder)
    except (InputError, OSError):
        return MissingSource(path=folder)


def require_also_controls(sources: Sources, config: ProjectConfig) -> None:
    """Require that all networks of the list are there, fit the base, and can act together. No weights are loaded.

    Raises:
        ConfigError: a folder is not there, a kind of driver is not known, or a network cannot act with others.
        WeightsError: a network is damaged, holds pickles, or was made for another base.
    """
    from defectory.engine.backbones.configs import UNetConfig, read_config
    from defectory.engine.backbones.known import resolve_base
    from defectory.engine.backbones.verify import verify_layout

    if not config.synthesis.also_controls:
        return
    require_combinable(config.condition.network, where="condition.network")
    base = resolve_base(config.base)
    if not (base / "unet").is_dir():
        raise WeightsError(SETTING, "the base has no UNet, and only these take several networks", "leave it out")
    unet, facts = read_config(UNetConfig, base / "unet" / "config.json"), verify_layout(base)
    for one in also_networks(sources, config):
        if one.driver.kind is not None:
            kind_of(one.driver.kind)
        require_fits(one.found, unet, latent_factor=facts.latent_factor, reads_masks=one.reads_masks)
        learned_on, ours = one.found.base_digest, base_digest(config.base)
        if learned_on is not None and learned_on != ours:
            raise WeightsError(
                one.found.where,
                f"was learned on another base (digest {learned_on[:12]}, this run's is {str(ours)[:12]})",
                "give a network of this base",
            )


def also_remarks(sources: Sources, config: ProjectConfig, num_classes: int) -> Iterable[str]:
    """Yield a remark on each network of another run that would read other drivers than it was trained on."""
    try:
        networks = also_networks(sources, config)
    except InputError:  # what needs the networks reports this
        return
    for number, one in enumerate(networks, start=1):
        control, driver = one.found.control, one.driver
        if control is None:
            continue
        kind = config.drivers.kind if driver.kind is None else driver.kind
        drivers = config.drivers.model_copy(update={"kind": kind})
        if control.driver_config_digest != driver_digest(config.model_copy(update={"drivers": drivers}), num_classes):
            yield (
                f"{SETTING} {number} was trained on drivers of other settings, or of other classes, than it will read "
                "here; look at its drafts, or train it with this run's section `drivers`"
            )


def for_all_networks(driver: NDArray[np.uint8], networks: Sequence[AlsoNetwork]) -> NDArray[np.uint8]:
    """Return a driver uint8 [H,W,3K] for all K networks, from that or from one that all of them read, [H,W,3].

    Raises:
        ConfigError: it has other channels, or three where a network reads another kind.
    """
    wanted, found = 3 * (1 + len(networks)), driver.shape[2]
    if found == wanted:
        return driver
    if found == 3 and all(of.driver.kind is None for of in networks):
        return np.concatenate([driver] * (1 + len(networks)), axis=2)
    raise ConfigError(
        "driver",
        f"has {found} channels, and {1 + len(networks)} networks read 3 each",
        f"give one of {wanted} channels",
    )


def told_beside(pipeline: Path, networks: Sequence[AlsoNetwork]) -> str:
    """Return what a finished pipeline says of the networks that act beside the run's own; empty if there are none."""
    if not networks:
        return ""
    written = len(list(pipeline.glob("controlnet_*")))
    if written:
        return f", {written} more control network{'' if written == 1 else 's'} beside it"
    return f", without the networks of {SETTING}, since no pipeline of diffusers takes adapters and others together"


def load_also(networks: Sequence[AlsoNetwork], backbone: Backbone) -> tuple[FurtherNetwork, ...]:
    """Load networks to the backbone's device.

    Raises:
        ConfigError: a network's kind is not installed, or cannot act together with others.
        WeightsError: weights cannot be used, or were made for another base.
    """
    from defectory.condition.load import load_further
    from defectory.engine.sampling.models import FurtherNetwork

    return tuple(
        FurtherNetwork(
            network=load_further(of.found, backbone, reads_masks=of.reads_masks),
            scale=of.setting.scale,
            start=of.setting.start,
            end=of.setting.end,
        )
        for of in networks
    )
