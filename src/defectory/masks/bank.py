"""The mask bank, built from train only."""

from __future__ import annotations

from defectory.artifacts.annotation import Instance
from defectory.artifacts.plan import MaskBank, MaskBankEntry
from defectory.artifacts.split import Split
from defectory.artifacts.tiles import TileSet
from defectory.rle import area_px, box_of


def build_bank(tileset: TileSet, split: Split, *, min_area_px: int = 1) -> MaskBank:
    """Collect the masks of all train instances, each from the tile that shows most of it.

    Args:
        tileset: tiles of the run; only the train subset is used.
        split: its firewall checks every image.
        min_area_px: minimum area of a mask in the bank.

    Raises:
        FirewallError: a train tile comes from an image that is not in train.
    """
    tiles = [tile for tile in tileset.of("train") if tile.instances]
    split.require_training_ids((tile.image_id for tile in tiles), stage="mask bank")
    # a crack cut by a tile's border is not a separate crack
    best: dict[tuple[int, int], tuple[float, MaskBankEntry]] = {}
    for tile in tiles:
        for instance in tile.instances:
            key = (tile.image_id, instance.number)
            if (
                instance.is_crowd
                or area_px(instance.rle) < min_area_px
                or best.get(key, (0.0,))[0] >= instance.visible_share
            ):
                continue
            entry = MaskBankEntry(
                id=f"{tile.id}-m{instance.number:02d}",
                tile_id=tile.id,
                image_id=tile.image_id,
                number=instance.number,
                category_id=instance.category_id,
                mask=Instance(category_id=instance.category_id, rle=instance.rle),
                visible_share=instance.visible_share,
            )
            best[key] = (instance.visible_share, entry)
    return MaskBank(split_digest=split.digest(), entries=tuple(entry for _, entry in best.values()))


def whole_masks(bank: MaskBank, *, most_px: int) -> MaskBank:
    """Return the bank without masks that a tile's border cut, and without those longer than `most_px`.

    A mask that is cut ends in a straight line, which shows where it is placed on open ground.
    """
    kept = [entry for entry in bank.entries if entry.visible_share >= 1.0 and _length_px(entry) <= most_px]
    return bank.model_copy(update={"entries": tuple(kept)})


def _length_px(entry: MaskBankEntry) -> int:
    x0, y0, x1, y1 = box_of(entry.mask.rle)
    return max(x1 - x0, y1 - y0)
