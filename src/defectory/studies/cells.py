"""The cells of a study: which runs it consists of, and the settings of each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from defectory.config.project import ProjectConfig
from defectory.config.recipes import RECIPES, Recipe, Variant
from defectory.config.study import StudyConfig
from defectory.errors import ConfigError
from defectory.filenames import file_name_of
from defectory.segmentation.arms import without_repeats

ALL = "all"
EVERYTHING: Mapping[str, object] = {"split.fraction": 1.0, "split.num_labelled": None, "split.num_per_class": None}
"""Settings of all labelled images, whatever the project says."""


@dataclass(frozen=True, kw_only=True)
class Amount:
    """An amount of labelled images: a number, a share, or all of them.

    Attributes:
        label: for people and folders.
        settings: that choose it.
        count: number of labelled training images; None for a share or all.
    """

    label: str
    settings: Mapping[str, object]
    count: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Cell:
    """One run of a study. Cells are equal only to themselves.

    Attributes:
        amount: of labelled images.
        variant: changed settings.
        seed: of subset, concept, control network, drafts and segmenters.
        fold: of the folds; None without.
        arms: that it trains.
        settings: everything that differs from the project, by dotted key.
    """

    amount: Amount
    variant: Variant
    seed: int
    fold: int | None
    arms: tuple[str, ...]
    settings: Mapping[str, object]

    @property
    def name(self) -> str:
        """Return its name for people, which no other cell of the study has."""
        parts = [self.amount.label, self.variant.name, f"seed {self.seed}"]
        parts += [f"fold {self.fold}"] if self.fold is not None else []
        return ", ".join(filter(None, parts))

    @property
    def folder_name(self) -> str:
        """Return a name for its folder, without what other settings decide."""
        return file_name_of(re.sub(r"[^a-z0-9.%]+", "-", self.name.lower()).strip("-"))


def cells_of(config: ProjectConfig) -> list[Cell]:
    """List the cells of a project's study, amount by amount, so that the first verdict comes early.

    Raises:
        ConfigError: a variant cannot be read, or two have one name.
    """
    study, recipe = config.study, RECIPES.get(config.study.recipe)
    variants = variants_of(study, recipe)
    arms = study.arms or _arms_of(recipe, variants, config)
    folds = range(study.folds) if study.folds is not None else (None,)
    return [
        _cell(config, amount, variant, seed, fold, arms)
        for amount in amounts_of(study, recipe)
        for seed in study.seeds
        for fold in folds
        for variant in variants
    ]


def _arms_of(recipe: Recipe, variants: Sequence[Variant], config: ProjectConfig) -> tuple[str, ...]:
    """Return the arms of a recipe, each kind of training once."""
    if any("segmentation.augmentation" in variant.settings for variant in variants):
        return recipe.arms
    return without_repeats(recipe.arms, augmentation=config.segmentation.augmentation)


def amounts_of(study: StudyConfig, recipe: Recipe) -> list[Amount]:
    """List the amounts of labelled images, ascending; without any, the project's own is the only one."""
    if study.fractions:
        shares = sorted(set(study.fractions) - {1.0})
        amounts = [
            Amount(label=f"{100 * share:.3g}%", settings={**EVERYTHING, "split.fraction": share}) for share in shares
        ]
        with_all = study.with_all or 1.0 in study.fractions
    else:
        counts = sorted(set(study.num_labelled or recipe.num_labelled))
        amounts = [
            Amount(label=f"{count} images", settings={**EVERYTHING, "split.num_labelled": count}, count=count)
            for count in counts
        ]
        with_all = study.with_all
    if not amounts:
        return [Amount(label=ALL, settings={})]
    return amounts + ([Amount(label=ALL, settings=EVERYTHING)] if with_all else [])


def variants_of(study: StudyConfig, recipe: Recipe) -> list[Variant]:
    """List the variants of the recipe and those of the project.

    Raises:
        ConfigError: a variant cannot be read, or two have one name.
    """
    variants = [*recipe.variants, *(_read_variant(text) for text in study.variants)]
    names = [variant.name for variant in variants]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError("study.variants", f"two are called {twice!r}", "choose another name")
    return variants


def _read_variant(text: str) -> Variant:
    """Read `name: key=value, key=value`."""
    name, colon, settings = text.partition(":")
    # a comma within brackets belongs to a list
    pairs = [part.strip() for part in re.split(r",(?![^\[]*\])", settings) if part.strip()]
    if not colon or not name.strip() or not pairs or any("=" not in pair for pair in pairs):
        raise ConfigError(
            "study.variants",
            f"cannot be read: {text[:80]!r}",
            'write "name: key=value, key=value", for example "weak: synthesis.controlnet_conditioning_scale=0.5"',
        )
    split: list[Sequence[str]] = [pair.partition("=")[::2] for pair in pairs]
    return Variant(name=name.strip(), settings={key.strip(): _Text(value.strip()) for key, value in split})


class _Text(str):
    """A value as the user wrote it, which the project's own rules read."""


def _cell(
    config: ProjectConfig, amount: Amount, variant: Variant, seed: int, fold: int | None, arms: tuple[str, ...]
) -> Cell:
    test_seed = config.seed if config.split.test_seed is None else config.split.test_seed
    settings: dict[str, object] = {
        "seed": seed,
        "split.test_seed": test_seed,
        "segmentation.arms": list(arms),
        "segmentation.seeds": [0],
        **amount.settings,
        **({"split.folds": config.study.folds, "split.fold": fold} if fold is not None else {}),
        **variant.settings,
    }
    return Cell(amount=amount, variant=variant, seed=seed, fold=fold, arms=arms, settings=settings)


def overrides_of(settings: Mapping[str, Any]) -> list[str]:
    """Write settings as overrides of the command line."""
    import json

    return [f"{key}={value if isinstance(value, _Text) else json.dumps(value)}" for key, value in settings.items()]
