"""Where the masks of a plan come from: the training bank, an expert, or a model of the training masks, by share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.plan import MaskBank, MaskBankEntry, MaskSource, MaskSourceKind
from defectory.errors import ConfigError
from defectory.masks.config import MaskConfig
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


class MaskSources:
    """Draws masks of a class from the configured sources.

    Args:
        bank: of the training masks; expert corrections have replaced their entries.
        expert: masks that an expert supplied.
        config: shares of the sources, perturbation, severity, limits.
        names: class name by category id, for messages.
        diffusion: the trained model, where it has a share.
        weights: how often entries of the bank are taken, by id, where sizes are not set by severity; 1 where nothing is
            said.
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
    ) -> None:
        self._config, self._names, self._weights = config, names, dict(weights or {})
        shares: dict[MaskSourceKind, float] = {
            "bank": config.sources.bank,
            "expert": config.sources.expert,
            "statistical": config.sources.statistical,
            "diffusion": config.sources.diffusion,
        }
        self._shares: dict[MaskSourceKind, float] = {kind: share for kind, share in shares.items() if share > 0}
        self._bank: dict[int, list[MaskBankEntry]] = {}
        for entry in bank.entries:
            self._bank.setdefault(entry.category_id, []).append(entry)
        self._expert: dict[int, list[ExpertMask]] = {}
        for mask in expert:
            self._expert.setdefault(mask.category_id, []).append(mask)
        if config.severity != ALL_SIZES:
            for entries in self._bank.values():
                entries.sort(key=lambda entry: size_of(decode(entry.mask.rle), config.severity_by))
            for masks in self._expert.values():
                masks.sort(key=lambda mask: size_of(mask.mask, config.severity_by))
        self._models: dict[MaskSourceKind, MaskModel] = {}
        if "statistical" in self._shares:
            masks = [(entry.category_id, decode(entry.mask.rle)) for entry in bank.entries]
            self._models["statistical"] = fit(masks, num_branches=config.num_branches, by=config.severity_by)
        if "diffusion" in self._shares:
            assert diffusion is not None, "a share of diffusion needs the trained model"
            self._models["diffusion"] = diffusion
        self._uses: Counter[str] = Counter()

    def draw(self, category_id: int, rng: np.random.Generator) -> tuple[Mask, MaskSource] | None:
        """Give a new mask of a class and where it comes from; None where no source has one.

        Where masks keep their place it is bool [H,W] in its tile's frame, else bool [h,w], cropped to its box.

        Raises:
            ConfigError: every mask of the class has been used as often as `max_uses` allows.
        """
        kinds: list[MaskSourceKind] = [kind for kind in self._shares if self._has(kind, category_id)]
        if not kinds:
            return None
        kind = kinds[0]
        if len(kinds) > 1:
            shares = np.array([self._shares[k] for k in kinds])
            kind = kinds[int(rng.choice(len(kinds), p=shares / shares.sum()))]
        if kind in self._models:
            seed = int(rng.integers(2**31))
            source = MaskSource(kind=kind, bank_id="", perturbation_seed=seed)
            return self._models[kind].draw(category_id, seed=seed, severity=self._config.severity), source
        if kind == "expert":
            masks = self._expert[category_id]
            mask = masks[self._pick([m.id for m in masks], category_id, rng)]
            seed = int(rng.integers(2**31))
            return self._changed(mask.mask, seed), MaskSource(kind=kind, bank_id=mask.id, perturbation_seed=seed)
        entries = self._bank[category_id]
        entry = entries[self._pick([e.id for e in entries], category_id, rng)]
        seed = int(rng.integers(2**31))
        whole = decode(entry.mask.rle)
        return (
            whole if self._config.keep_place else self._changed(whole, seed),
            MaskSource(kind=kind, bank_id=entry.id, perturbation_seed=seed),
        )

    def _changed(self, mask: Mask, seed: int) -> Mask:
        return perturb(mask, seed=seed, config=self._config)

    def _has(self, kind: MaskSourceKind, category_id: int) -> bool:
        if kind == "expert":
            return category_id in self._expert
        return category_id in self._bank

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
            place = places[int(rng.choice(len(places), p=weights / weights.sum()))]
        elif self._config.severity == ALL_SIZES:
            place = places[int(rng.integers(len(places)))]
        else:
            place = places[at_quantile(len(places), self._config.severity, rng)]
        self._uses[ids[place]] += 1
        return place
