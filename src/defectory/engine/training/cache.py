"""Makes latents and drivers of augmented training tiles once, and caches them on disk by content."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.functional import max_pool2d

from defectory.engine.backbones.backbone import Backbone
from defectory.engine.config import MixedPrecision
from defectory.engine.precision import autocast, uses_bf16
from defectory.engine.tensors import images_to_tensor, masks_to_tensor
from defectory.engine.training.checkpoint import digest_tensors, write_tensors
from defectory.engine.training.config import TrainingConfig
from defectory.engine.training.data import TrainingTile, augment, augmentation_of
from defectory.events import Progress, Work
from defectory.files import digest_json
from defectory.geometry import RESAMPLING


class MakeDriver(Protocol):
    """Makes the driver of an annotated tile."""

    def __call__(
        self,
        image: NDArray[np.uint8],
        instances: Sequence[tuple[int, NDArray[np.bool_]]],
        valid_hw: tuple[int, int],
        blind: Sequence[NDArray[np.bool_]] | None = None,
        /,
    ) -> NDArray[np.uint8]:
        """Return the driver, uint8 [H,W,3].

        Args:
            image: the tile, or its drawing, uint8 [H,W,3].
            instances: category id and mask bool [H,W] of each defect that is painted.
            valid_hw: size of the part that shows image.
            blind: masks of defects that are hidden from the geometry; None hides the painted ones.
        """
        ...


PIXELS_PER_ENCODING = 8 * 128 * 128
"""The autoencoder sees about this many pixels at once, whatever the tile size."""


@dataclass(frozen=True, kw_only=True)
class TileVariants:
    """All variants of one tile.

    Attributes:
        latents: float16 [V,C,h,w], scaled posterior means.
        defect: bool [V,1,h,w], latent pixels that hold any defect pixel.
        class_names: per variant, the class names of the instances that are still in it.
        tone: words for the tile's tones; training augmentation keeps them.
        drivers: per variant, a deflated uint8 [H,W,3]; empty in phase 1.
        empty_drivers: the same without masks; empty unless they were asked for.
        size_hw: of the tile, pixels.
    """

    latents: Tensor
    defect: Tensor
    class_names: tuple[tuple[str, ...], ...]
    tone: str
    drivers: tuple[bytes, ...]
    size_hw: tuple[int, int]
    empty_drivers: tuple[bytes, ...] = ()

    def driver(self, variant: int) -> Tensor:
        """Return a variant's driver, uint8 [H,W,3]."""
        return self._inflated(self.drivers[variant])

    def empty_driver(self, variant: int) -> Tensor:
        """Return a variant's driver without masks, uint8 [H,W,3]."""
        return self._inflated(self.empty_drivers[variant])

    def _inflated(self, data: bytes) -> Tensor:
        buffer = bytearray(zlib.decompress(data))
        return torch.frombuffer(buffer, dtype=torch.uint8).view(*self.size_hw, 3)


@dataclass(frozen=True, kw_only=True)
class VariantRecipe:
    """What the variants of a tile depend on, besides the tile.

    Attributes:
        backbone: its autoencoder makes the latents.
        vae_digest: of the autoencoder's weights and configuration.
        num_variants: per tile; the first is the tile as it is.
        seed: of the augmentations.
        flip: allow mirroring.
        mixed_precision: `bf16` or `no`, of the encoding.
        make_driver: None in phase 1.
        driver_digest: of the driver's configuration.
        with_empty_drivers: make drivers without masks as well.
    """

    backbone: Backbone
    vae_digest: str
    num_variants: int
    seed: int
    flip: bool
    mixed_precision: MixedPrecision
    make_driver: MakeDriver | None = None
    driver_digest: str = ""
    with_empty_drivers: bool = False

    @classmethod
    def of(
        cls,
        backbone: Backbone,
        training: TrainingConfig,
        *,
        flip: bool,
        seed: int,
        make_driver: MakeDriver | None = None,
        driver_digest: str = "",
        with_empty_drivers: bool = False,
    ) -> VariantRecipe:
        """Make the recipe of a phase on a backbone that was loaded from disk."""
        return cls(
            backbone=backbone,
            vae_digest=backbone.autoencoder_digest,
            num_variants=training.variants_per_image,
            seed=seed,
            flip=flip,
            mixed_precision="bf16" if uses_bf16(training.mixed_precision, backbone.device) else "no",
            make_driver=make_driver,
            driver_digest=driver_digest,
            with_empty_drivers=with_empty_drivers,
        )


def prepare_variants(
    tiles: Sequence[TrainingTile], held_out: Sequence[TrainingTile], recipe: VariantRecipe, *, cache: Path
) -> Work[tuple[list[TileVariants], list[TileVariants]]]:
    """Make or read the variants of every tile, and return those of the training and of the held-out tiles.

    Args:
        tiles: training tiles; all of one size, sides divisible by the autoencoder's factor.
        held_out: tiles of which only the unaugmented variant is made.
        recipe: what the variants depend on.
        cache: folder; its files are named by the content they were made from, so that runs may share it.
    """
    result: list[TileVariants] = []
    plain = replace(recipe, num_variants=1)
    for done, tile in enumerate([*tiles, *held_out], start=1):
        result.append(tile_variants(tile, recipe if done <= len(tiles) else plain, cache=cache))
        yield Progress(done=done, total=len(tiles) + len(held_out), note="preparing latents")
    return result[: len(tiles)], result[len(tiles) :]


def tile_variants(tile: TrainingTile, recipe: VariantRecipe, *, cache: Path) -> TileVariants:
    """Make or read the variants of one tile."""
    augmentations = [
        augmentation_of(tile, variant, seed=recipe.seed, flip=recipe.flip) for variant in range(recipe.num_variants)
    ]
    content = {
        "tile": tile.digest(),
        "augmentations": [asdict(augmentation) for augmentation in augmentations],
        "resampling": RESAMPLING,
    }
    moved: list[TrainingTile] = []

    def variants() -> list[TrainingTile]:
        if not moved:
            moved.extend(augment(tile, augmentation) for augmentation in augmentations)
        return moved

    latents = _cached(
        cache / "latents",
        digest_json({**content, "vae": recipe.vae_digest, "precision": recipe.mixed_precision}),
        lambda: {
            "latents": encode(
                recipe.backbone, [variant.image for variant in variants()], mixed_precision=recipe.mixed_precision
            )
        },
    )["latents"]
    drivers: tuple[bytes, ...] = ()
    empty: tuple[bytes, ...] = ()
    make_driver = recipe.make_driver

    def made(key: str, make: Callable[[TrainingTile], NDArray[np.uint8]]) -> tuple[bytes, ...]:
        digest = digest_json({**content, key: recipe.driver_digest})
        stored = _cached(cache / "drivers", digest, lambda: _deflated([make(variant) for variant in variants()]))
        return tuple(stored[str(index)].numpy().tobytes() for index in range(recipe.num_variants))

    if make_driver is not None:
        drivers = made("driver", lambda tile: make_driver(tile.geometry, tile.instances, tile.valid_hw))
    if make_driver is not None and recipe.with_empty_drivers:
        empty = made(
            "empty driver",
            lambda tile: make_driver(tile.geometry, (), tile.valid_hw, [mask for _, mask in tile.instances]),
        )
    masks = [augmentation.apply_mask(tile.defect) for augmentation in augmentations]
    names = tuple(
        tuple(
            name
            for (_, mask), name in zip(tile.instances, tile.class_names, strict=True)
            if augmentation.apply_mask(mask).any()
        )
        for augmentation in augmentations
    )
    factor = tile.image.shape[0] // latents.shape[-2]
    defect = max_pool2d(masks_to_tensor(masks), factor) > 0
    return TileVariants(
        latents=latents,
        defect=defect,
        class_names=names,
        tone=tile.tone,
        drivers=drivers,
        empty_drivers=empty,
        size_hw=(tile.image.shape[0], tile.image.shape[1]),
    )


@torch.no_grad()
def encode(backbone: Backbone, images: Sequence[NDArray[np.uint8]], *, mixed_precision: MixedPrecision) -> Tensor:
    """Encode images uint8 [H,W,3] of one size as scaled posterior means, float16 [N,C,h,w] on the CPU."""
    height, width = images[0].shape[:2]
    size = max(1, PIXELS_PER_ENCODING // (height * width))
    parts: list[Tensor] = []
    for start in range(0, len(images), size):
        pixels = images_to_tensor(images[start : start + size]).to(backbone.device)
        with autocast(mixed_precision, backbone.device):
            parts.append(backbone.encode_images(pixels).half().cpu())
    return torch.cat(parts)


def _deflated(drivers: Sequence[NDArray[np.uint8]]) -> dict[str, Tensor]:
    packed = (bytearray(zlib.compress(np.ascontiguousarray(driver).tobytes(), 1)) for driver in drivers)
    return {str(index): torch.frombuffer(data, dtype=torch.uint8) for index, data in enumerate(packed)}


def _cached(folder: Path, key: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Read the tensors stored under a key, or make and store them; a damaged file is made again."""
    path = folder / key[:2] / f"{key}.safetensors"
    tensors = read_cached(path, key)
    if tensors is None:
        tensors = make()
        write_cached(path, key, tensors)
    return tensors


def write_cached(path: Path, key: str, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a file of the cache, with the key of what they were made from and their digest.

    The file need not be on disk at once: one that a power cut leaves damaged is noticed by `read_cached`.
    """
    write_tensors(path, tensors, {"key": key, "sha256": digest_tensors(tensors)}, durable=False)


def read_cached(path: Path, key: str) -> dict[str, Tensor] | None:
    """Read the tensors of a cache file; None if it is missing, damaged, or belongs to another key."""
    try:
        with safe_open(path, framework="pt") as stored:
            metadata = stored.metadata() or {}
            if metadata.get("key") != key:
                return None
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  # no mapping
    except (SafetensorError, OSError, ValueError, RuntimeError):
        return None
    return tensors if digest_tensors(tensors) == metadata.get("sha256") else None
