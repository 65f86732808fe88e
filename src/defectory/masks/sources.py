"""Where the masks of a plan come from: the training bank, an expert, a model of the training masks, or a source that
another package adds, by share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.plan import MaskBank, MaskOrigin
from defectory.errors import ConfigError
from defectory.masks.config import MASK_SOURCES, MaskConfig
from defectory.masks.generate import at_quantile, fit
from defectory.masks.perturb import perturb, size_of
from defectory.rle import decode

Mask = NDArray[np.bool_]
ALL_SIZES = (0.0, 1.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class ExpertMask:
    """A mask that an expert supplied: `id` names its file, `mask` is bool [h,w] in tile pixels, cropped to its box."""

    id: str
    category_id: int
    mask: Mask


class MaskModel(Protocol):
    """Draws new masks of a class."""

    def draw(self, category_id: int, *, seed: int, severity: tuple[float, float]) -> Mask:
        """Draw a mask bool [h,w], cropped, a function of the seed, of a size between two quantiles of the training
        masks'.
        """
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class DrawnMask:
    """A mask bool [h,w], the seed that made it, and the entry or file that it is a variant of, if there is one."""

    mask: Mask
    seed: int
    entry: str = ""


class MaskSource(Protocol):
    """Draws masks of a class. It is made once for a plan, by the function that its name is registered with."""

    def has(self, category_id: int) -> bool:
        """Check whether there are masks of a class."""
        ...

    def draw(self, category_id: int, rng: np.random.Generator) -> DrawnMask:
        """Draw a mask of a class, cropped to its box; all chance in it comes from the generator."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskMaterial:
    """What a source may draw from.

    Attributes:
        bank: the training masks; expert corrections have replaced their entries.
        expert: masks that an expert supplied.
        config: perturbation, severity, limits.
        names: class name by category id, for messages.
        diffusion: the trained model, where `diffusion` has a share.
        weights: how often entries of the bank are taken, by id, where sizes are not set by severity; 1 where nothing is
            said.
        used: how often entries and files were taken in earlier rounds, by id.
    """

    bank: MaskBank
    expert: Sequence[ExpertMask]
    config: MaskConfig
    names: Mapping[int, str]
    diffusion: MaskModel | None
    weights: Mapping[str, float]
    used: Mapping[str, int] = field(default_factory=lambda: dict[str, int]())


MakeMaskSource = Callable[[MaskMaterial], MaskSource]
"""What a name of the entry-point group `defectory.mask_sources` stands for."""


class MaskSources:
    """Draws masks of a class from the configured sources, by their shares.

    Args:
        bank: of the training masks; expert corrections have replaced their entries.
        expert: masks that an expert supplied.
        config: shares of the sources, perturbation, severity, limits.
        names: class name by category id, for messages.
        diffusion: the trained model, where it has a share.
        weights: as in `MaskMaterial`.
        used: as in `MaskMaterial`.

    Raises:
        ConfigError: a source is not known, or its package cannot be imported.
    """

    def __init__(
        self,
        bank: MaskBank,
        expert: Sequence[ExpertMask],
        *,
        config: MaskConfig,
        names: Mapping[int, str],
        diffusion: MaskModel | None = None,
        weights: Mapping[str, float] | None = None,
        used: Mapping[str, int] | None = None,
    ) -> None:
        material = MaskMaterial(
            bank=bank,
            expert=expert,
            config=config,
            names=names,
            diffusion=diffusion,
            weights=dict(weights or {}),
            used=dict(used or {}),
        )
        self._shares = {name: share for name, share in config.sources.shares().items() if share > 0}
        self._sources = {name: MASK_SOURCES.get(name)(material) for name in self._shares}

    def draw(self, category_id: int, rng: np.random.Generator) -> tuple[Mask, MaskOrigin] | None:
        """Draw a new mask of a class and say where it comes from; None where no source has one.

        Where masks keep their place it is bool [H,W] in its tile's frame, else bool [h,w], cropped to its box.

        Raises:
            ConfigError: every mask of the class has been used as often as `max_uses` allows, or a source of another
                package returns no mask.
        """
        names = [name for name, source in self._sources.items() if source.has(category_id)]
        if not names:
            return None
        name = names[0]
        if len(names) > 1:
            shares = np.array([self._shares[one] for one in names])
            name = names[int(rng.choice(len(names), p=shares / shares.sum()))]
        drawn = self._sources[name].draw(category_id, rng)
        _require_mask(name, drawn.mask)
        return drawn.mask, MaskOrigin(kind=name, bank_id=drawn.entry, perturbation_seed=drawn.seed)


def bank_source(of: MaskMaterial) -> MaskSource:
    """Draw training masks, perturbed, or as they are where they keep their place."""
    masks = [_StockMask(entry.id, entry.category_id, entry.mask.rle) for entry in of.bank.entries]
    return _Stock(masks, of, keeps_place=of.config.keep_place)


def expert_source(of: MaskMaterial) -> MaskSource:
    """Draw masks of an expert, perturbed."""
    return _Stock([_StockMask(mask.id, mask.category_id, mask.mask) for mask in of.expert], of, keeps_place=False)


def statistical_source(of: MaskMaterial) -> MaskSource:
    """Draw new masks from the figures of the training masks."""
    masks = [(entry.category_id, decode(entry.mask.rle)) for entry in of.bank.entries]
    return _Modelled(fit(masks, num_branches=of.config.num_branches, by=of.config.severity_by), of)


def diffusion_source(of: MaskMaterial) -> MaskSource:
    """Draw new masks by the diffusion model of the training masks."""
    assert of.diffusion is not None, "a share of diffusion needs the trained model"
    return _Modelled(of.diffusion, of)


class _Modelled:
    """Masks that a model of the training masks draws."""

    def __init__(self, model: MaskModel, of: MaskMaterial) -> None:
        self._model, self._severity = model, of.config.severity
        self._known = {entry.category_id for entry in of.bank.entries}

    def has(self, category_id: int) -> bool:
        return category_id in self._known

    def draw(self, category_id: int, rng: np.random.Generator) -> DrawnMask:
        seed = int(rng.integers(2**31))
        return DrawnMask(mask=self._model.draw(category_id, seed=seed, severity=self._severity), seed=seed)


@dataclass(frozen=True, eq=False)
class _StockMask:
    """A mask, or its run lengths."""

    id: str
    category_id: int
    kept: Any

    @property
    def mask(self) -> Mask:
        return self.kept if isinstance(self.kept, np.ndarray) else decode(self.kept)


class _Stock:
    """Masks that are there, each taken at most `max_uses` times."""

    def __init__(self, masks: Iterable[_StockMask], of: MaskMaterial, *, keeps_place: bool) -> None:
        self._config, self._names, self._weights, self._keeps_place = of.config, of.names, of.weights, keeps_place
        self._masks: dict[int, list[_StockMask]] = {}
        for mask in masks:
            self._masks.setdefault(mask.category_id, []).append(mask)
        if of.config.severity != ALL_SIZES:
            for kept in self._masks.values():
                kept.sort(key=lambda mask: size_of(mask.mask, of.config.severity_by))
        self._uses: Counter[str] = Counter(of.used)

    def has(self, category_id: int) -> bool:
        return category_id in self._masks

    def draw(self, category_id: int, rng: np.random.Generator) -> DrawnMask:
        masks = self._masks[category_id]
        one = masks[self._pick([mask.id for mask in masks], category_id, rng)]
        seed = int(rng.integers(2**31))
        mask = one.mask if self._keeps_place else perturb(one.mask, seed=seed, config=self._config)
        return DrawnMask(mask=mask, seed=seed, entry=one.id)

    def _pick(self, ids: Sequence[str], category_id: int, rng: np.random.Generator) -> int:
        limit = self._config.max_uses
        places = [i for i, one in enumerate(ids) if limit is None or self._uses[one] < limit]
        if not places:
            raise ConfigError(
                f"masks.max_uses {limit}",
                f"the plan asks for more than {len(ids) * (limit or 0)} masks of class {self._names[category_id]}, "
                f"of which there are {len(ids)}",
                "raise it, ask for fewer images, add expert masks, or raise the share of a model in masks.sources",
            )
        if self._config.severity == ALL_SIZES and self._weights:
            weights = np.array([self._weights.get(ids[i], 1.0) for i in places])
            shares = weights / weights.sum() if weights.any() else None
            place = places[int(rng.choice(len(places), p=shares))]
        elif self._config.severity == ALL_SIZES:
            place = places[int(rng.integers(len(places)))]
        else:
            place = places[at_quantile(len(places), self._config.severity, rng)]
        self._uses[ids[place]] += 1
        return place


def _require_mask(name: str, mask: Any) -> None:
    """Require a mask that is one, whatever another package's source returned."""
    if not (isinstance(mask, np.ndarray) and mask.dtype == np.bool_ and mask.ndim == 2 and mask.any()):
        found = f"{mask.dtype} of shape {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise ConfigError(
            f"mask source {name}", f"returned {found}", "return a bool array of height x width that is not empty"
        )
