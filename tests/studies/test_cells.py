from __future__ import annotations

from typing import Any

import pytest

from defectory.config.project import ProjectConfig
from defectory.config.recipes import RECIPES, Recipe, Variant
from defectory.errors import ConfigError
from defectory.studies.cells import cells_of, overrides_of


def config_of(**study: Any) -> ProjectConfig:
    return ProjectConfig.model_validate({"data": {"path": "here"}, "seed": 7, "study": study})


def test_the_cells_of_the_scarcity_recipe_vary_labels_and_seeds_on_the_same_test_images() -> None:
    cells = cells_of(config_of(recipe="scarcity", seeds=[3, 4]))
    assert [cell.amount.label for cell in cells[::2]] == [
        "5 images",
        "10 images",
        "25 images",
        "50 images",
        "100 images",
        "all",
    ]
    assert {cell.settings["split.test_seed"] for cell in cells} == {7}
    assert [cell.settings["seed"] for cell in cells[:4]] == [3, 4, 3, 4]
    assert cells[0].settings["split.num_labelled"] == 5
    # all of them, whatever the project itself uses
    assert (cells[-1].settings["split.num_labelled"], cells[-1].settings["split.fraction"]) == (None, 1.0)
    assert "split.num_labelled" not in cells_of(config_of(recipe="ladder"))[0].settings


def test_a_ladder_trains_each_kind_of_arm_once_unless_the_project_names_its_arms() -> None:
    def arms(augmentation: str, **study: Any) -> tuple[str, ...]:
        config = config_of(recipe="ladder", **study)
        varied = config.segmentation.model_copy(update={"augmentation": augmentation})
        return cells_of(config.model_copy(update={"segmentation": varied}))[0].arms

    whole = RECIPES.get("ladder").arms
    # `flips` is what `real_resampled` has, so `real` would be the same training once more
    assert arms("flips") == tuple(arm for arm in whole if arm != "real_resampled")
    assert arms("exposure") == arms("auto") == whole
    assert arms("flips", variants=["strong: segmentation.augmentation=scale"]) == whole
    assert arms("flips", arms=["real_resampled", "real"]) == ("real_resampled", "real")


def test_shares_take_the_place_of_numbers_and_the_whole_is_a_point_of_its_own() -> None:
    cells = cells_of(config_of(recipe="scarcity", fractions=[0.5, 0.1, 1.0], seeds=[0]))
    assert [cell.amount.label for cell in cells] == ["10%", "50%", "all"]
    without = cells_of(config_of(recipe="scarcity", fractions=[0.5], seeds=[0], with_all=False))
    assert [cell.amount.label for cell in without] == ["50%"]


def test_each_fold_is_a_cell_and_names_differ() -> None:
    cells = cells_of(config_of(folds=3, seeds=[0, 1], variants=["weak: synthesis.controlnet_conditioning_scale=0.5"]))
    assert len(cells) == 3 * 2 * 2
    assert len({cell.name for cell in cells}) == len({cell.folder_name for cell in cells}) == len(cells)
    assert {(cell.settings["split.folds"], cell.settings["split.fold"]) for cell in cells} == {(3, 0), (3, 1), (3, 2)}


def test_a_variant_of_the_project_may_hold_lists_and_is_read_like_the_command_line() -> None:
    text = 'other: masks.class_balance=even, masks.scale_range=[0.5, 2.0], concept.method="none"'
    cell = cells_of(config_of(variants=[text], seeds=[0]))[-1]
    assert cell.variant.name == "other"
    assert overrides_of(cell.variant.settings) == [
        "masks.class_balance=even",
        "masks.scale_range=[0.5, 2.0]",
        'concept.method="none"',
    ]


@pytest.mark.parametrize("text", ["weak", "weak:", ": a=1", "weak: a"])
def test_a_variant_that_cannot_be_read_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match='write "name: key=value, key=value"'):
        cells_of(config_of(variants=[text]))


def test_two_variants_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="two are called 'a'"):
        cells_of(config_of(variants=["a: seed=1", "a: seed=2"]))


def test_numbers_and_shares_together_are_refused() -> None:
    with pytest.raises(ValueError, match="num_labelled and fractions are both set"):
        config_of(num_labelled=[5], fractions=[0.5])


def test_every_variant_of_every_recipe_has_settings_that_exist() -> None:
    from defectory.config.resolve import resolve

    for name in RECIPES.names():
        for variant in RECIPES.get(name).variants:
            resolve(project={"data": {"path": "here"}}, overrides=overrides_of(variant.settings))


def test_a_recipe_of_another_package_is_data() -> None:
    mine = Recipe(summary="mine", arms=("real", "mixed_90"), variants=(Variant(name="x", settings={"seed": 1}),))
    with RECIPES.registered("mine", mine):
        cells = cells_of(config_of(recipe="mine", seeds=[0]))
    assert [(cell.arms, cell.variant.name) for cell in cells] == [(("real", "mixed_90"), "x")]
