"""The mask bank, from train alone."""

from __future__ import annotations

from defectory.artifacts.plan import MaskBank, MaskBankEntry
from defectory.artifacts.split import Split
from defectory.artifacts.tiles import TileSet
from defectory.rle import area_px


def build_bank(tileset: TileSet, split: Split, *, min_area_px: int = 1) -> MaskBank:
    """Collect the masks of all train tiles.

    Args:
        tileset: tiles of the run; only part `train` is read.
        split: its firewall is asked about every image.
        min_area_px: smaller masks stay out.

    Raises:
        FirewallError: a train tile comes from an image that is not in train.
    """
    tiles = [tile for tile in tileset.of("train") if tile.instances]
    split.require_training_ids((tile.image_id for tile in tiles), stage="mask bank")
    entries = [
        MaskBankEntry(
            id=f"{tile.id}-m{number:02d}", tile_id=tile.id, image_id=tile.image_id, category_id=instance.category_id, mask=instance
        )
        for tile in tiles
        for number, instance in enumerate(tile.instances)
        if not instance.is_crowd and area_px(instance.rle) >= min_area_px
    ]
    return MaskBank(split_digest=split.digest(), entries=tuple(entries))
