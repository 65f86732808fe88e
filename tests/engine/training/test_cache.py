from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from defectory.engine.backbones.load import load_base
from defectory.engine.tensors import images_to_tensor
from defectory.engine.training.cache import VariantRecipe, prepare_variants, tile_variants
from defectory.engine.training.data import augment, augmentation_of
from defectory.events import Progress

Tiles = Callable[..., list[Any]]


def driver_of(image: Any, instances: Sequence[Any], _valid_hw: tuple[int, int]) -> Any:
    driver = image // 5
    for _, mask in instances:
        driver[mask] = (255, 0, 0)
    return driver


@pytest.fixture
def recipe(tiny_base_folder: Path) -> VariantRecipe:
    return VariantRecipe(
        backbone=load_base(tiny_base_folder),
        vae_digest="v",
        num_variants=3,
        seed=0,
        flip=True,
        mixed_precision="no",
        make_driver=driver_of,
        driver_digest="d",
    )


def test_latents_drivers_and_masks_are_those_of_the_augmented_tile(
    recipe: VariantRecipe, training_tiles: Tiles, tmp_path: Path
) -> None:
    tile = training_tiles(1)[0]
    variants = tile_variants(tile, recipe, cache=tmp_path)
    for index in range(3):
        moved = augment(tile, augmentation_of(tile, index, seed=0, flip=True))
        mean = recipe.backbone.vae.encode(images_to_tensor([moved.image])).latent_dist.mean[0] * 0.5  # type: ignore[attr-defined]
        assert torch.allclose(variants.latents[index].float(), mean, atol=2e-3)
        assert np.array_equal(variants.driver(index).numpy(), driver_of(moved.image, moved.instances, moved.valid_hw))
        coarse = moved.defect.reshape(8, 4, 12, 4).any(axis=(1, 3))
        assert np.array_equal(variants.defect[index, 0].numpy(), coarse)
        assert variants.class_names[index] == moved.class_names


def test_second_run_reads_what_the_first_one_made(recipe: VariantRecipe, training_tiles: Tiles, tmp_path: Path) -> None:
    tile = training_tiles(1)[0]
    first = tile_variants(tile, recipe, cache=tmp_path)

    def must_not_run(*_args: Any) -> Any:
        raise AssertionError("made again")

    nothing: Any = None

    again = tile_variants(tile, replace(recipe, backbone=nothing, make_driver=must_not_run), cache=tmp_path)
    assert torch.equal(first.latents, again.latents)
    assert first.drivers == again.drivers


def test_other_content_is_never_read(recipe: VariantRecipe, training_tiles: Tiles, tmp_path: Path) -> None:
    tile = training_tiles(1)[0]
    tile_variants(tile, recipe, cache=tmp_path)
    count = len(list(tmp_path.rglob("*.safetensors")))
    tile_variants(replace(tile, image=tile.image + 1), recipe, cache=tmp_path)
    tile_variants(tile, replace(recipe, driver_digest="e"), cache=tmp_path)
    tile_variants(tile, replace(recipe, vae_digest="w"), cache=tmp_path)
    assert len(list(tmp_path.rglob("*.safetensors"))) == count + 4


def test_damaged_cache_file_is_made_again(recipe: VariantRecipe, training_tiles: Tiles, tmp_path: Path) -> None:
    tile = training_tiles(1)[0]
    first = tile_variants(tile, recipe, cache=tmp_path)
    for path in tmp_path.rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:20])
    assert torch.equal(first.latents, tile_variants(tile, recipe, cache=tmp_path).latents)


def test_held_out_tiles_are_not_augmented(recipe: VariantRecipe, training_tiles: Tiles, tmp_path: Path) -> None:
    events = prepare_variants(training_tiles(2), training_tiles(1, seed=9), recipe, cache=tmp_path)
    told: list[tuple[int, int]] = []
    while True:
        try:
            event = next(events)
            assert isinstance(event, Progress)
            told.append((event.done, event.total))
        except StopIteration as stop:
            variants, held_out = stop.value
            break
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert [len(entry.latents) for entry in (*variants, *held_out)] == [3, 3, 1]
