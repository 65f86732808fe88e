from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from defectory.artifacts.annotation import Category, Instance
from defectory.artifacts.plan import MaskBank, MaskBankEntry
from defectory.config.resolve import resolve
from defectory.errors import AnnotationError, ConfigError
from defectory.images.save import save_png
from defectory.masks.config import MASK_SOURCES, MaskConfig
from defectory.masks.expert import from_instances, read_folder, write_review
from defectory.masks.sources import DrawnMask, ExpertMask, MaskMaterial, MaskSource, MaskSources
from defectory.rle import decode, encode

SIZE_HW = (40, 56)
CATEGORIES = (Category(id=1, name="crack"), Category(id=2, name="pit"), Category(id=3, name="stain"))
NAMES = {category.id: category.name for category in CATEGORIES}
Mask = NDArray[np.bool_]


def square(side: int, size_hw: tuple[int, int] = SIZE_HW) -> Mask:
    mask = np.zeros(size_hw, bool)
    mask[4 : 4 + side, 6 : 6 + side] = True
    return mask


def entry(number: int, category_id: int, side: int) -> MaskBankEntry:
    return MaskBankEntry(
        id=f"train-{number}",
        tile_id=f"t{number}",
        image_id=number,
        category_id=category_id,
        mask=Instance(category_id=category_id, rle=encode(square(side))),
    )


BANK = MaskBank(split_digest="s", entries=tuple(entry(n, 1 if n < 6 else 2, 6 + 2 * n) for n in range(8)))


def sources(**config: Any) -> MaskSources:
    return MaskSources(BANK, (), config=MaskConfig.model_validate(config), names=NAMES)


def drawn(of: MaskSources, count: int, category_id: int = 1) -> list[Any]:
    rng = np.random.default_rng(0)
    return [of.draw(category_id, rng) for _ in range(count)]


def test_the_bank_alone_gives_all_its_masks_of_a_class_and_none_of_a_class_it_lacks() -> None:
    found = Counter(source.bank_id for _, source in drawn(sources(), 200))
    assert set(found) == {f"train-{n}" for n in range(6)}
    assert min(found.values()) > 15
    assert sources().draw(3, np.random.default_rng(0)) is None


def test_sources_come_in_their_shares_and_a_class_without_expert_masks_takes_the_others() -> None:
    expert = (ExpertMask(id="mine", category_id=1, mask=np.ones((5, 9), bool)),)
    config = MaskConfig.model_validate({"sources": {"bank": 1, "expert": 1, "statistical": 2}, "expert": "folder"})
    of = MaskSources(BANK, expert, config=config, names=NAMES)
    kinds = Counter(source.kind for _, source in drawn(of, 400))
    assert kinds["statistical"] / 400 == pytest.approx(0.5, abs=0.07)
    assert kinds["expert"] / 400 == pytest.approx(0.25, abs=0.07)
    assert set(Counter(source.kind for _, source in drawn(of, 60, category_id=2))) == {"bank", "statistical"}


def test_severity_keeps_to_quantiles_of_the_training_sizes() -> None:
    large = Counter(source.bank_id for _, source in drawn(sources(severity=(0.5, 1.0)), 60))
    assert set(large) == {"train-3", "train-4", "train-5"}
    new = drawn(sources(severity=(0.0, 0.2), sources={"bank": 0, "statistical": 1}), 20)
    assert max(mask.sum() for mask, _ in new) < 100


@pytest.mark.parametrize(("by", "largest"), [("area", 2), ("width", 1), ("length", 0)])
@pytest.mark.parametrize("source", ["bank", "statistical"])
def test_severity_goes_by_area_width_or_length(by: str, largest: int, source: str) -> None:
    boxes = [(3, 50), (14, 14), (9, 30)]
    masks = [np.zeros(SIZE_HW, bool) for _ in boxes]
    for mask, (height, width) in zip(masks, boxes, strict=True):
        mask[4 : 4 + height, 2 : 2 + width] = True
    entries = [
        MaskBankEntry(
            id=f"e{n}", tile_id="t", image_id=1, number=n, category_id=1, mask=Instance(category_id=1, rle=encode(mask))
        )
        for n, mask in enumerate(masks)
    ]
    shares = {"bank": 0, "statistical": 0} | {source: 1}
    config = MaskConfig.model_validate({"severity": (0.7, 1.0), "severity_by": by, "sources": shares})
    of = MaskSources(MaskBank(split_digest="s", entries=tuple(entries)), (), config=config, names=NAMES)
    found = drawn(of, 12)
    if source == "bank":
        assert {s.bank_id for _, s in found} == {f"e{largest}"}
        return
    # a drawn shape is of its model's proportions
    wanted = boxes[largest][0] / boxes[largest][1]
    assert np.median([mask.sum() / max(mask.shape) ** 2 for mask, _ in found]) == pytest.approx(wanted, rel=0.45)


def test_a_limit_of_uses_is_kept_and_one_line_says_when_it_is_spent() -> None:
    of = sources(max_uses=2)
    found = Counter(source.bank_id for _, source in drawn(of, 12))
    assert set(found.values()) == {2}
    with pytest.raises(ConfigError, match=r"more than 12 masks of class crack, of which there are 6") as caught:
        of.draw(1, np.random.default_rng(1))
    assert "\n" not in str(caught.value)


def test_a_share_of_the_expert_wants_its_masks() -> None:
    with pytest.raises(ValueError, match=r"masks.expert names no folder"):
        MaskConfig.model_validate({"sources": {"expert": 1}})
    with pytest.raises(ValueError, match="no source"):
        MaskConfig.model_validate({"sources": {"bank": 0}})
    with pytest.raises(ValueError, match="not two quantiles"):
        MaskConfig.model_validate({"severity": (0.8, 0.2)})


def draw_slits(of: MaskMaterial) -> MaskSource:
    """A source as another package has it: upright slits, for classes of the bank."""

    class Slits:
        def has(self, category_id: int) -> bool:
            return any(entry.category_id == category_id for entry in of.bank.entries)

        def draw(self, category_id: int, rng: np.random.Generator) -> DrawnMask:
            seed = int(rng.integers(2**31))
            return DrawnMask(mask=np.ones((np.random.default_rng(seed).integers(8, 30), 2), bool), seed=seed)

    return Slits()


def test_a_source_from_outside_has_its_share_by_name() -> None:
    with MASK_SOURCES.registered("slits", draw_slits):
        project = {"data": {"path": "a"}, "masks": {"sources": {"bank": 1, "slits": 3}}}
        config = resolve(project=project, overrides=["masks.sources.statistical=0.0"]).config.masks
        assert config.sources.shares() == {"bank": 1, "expert": 0, "statistical": 0, "diffusion": 0, "slits": 3}
        assert resolve(project={"data": {"path": "a"}}).config.masks == MaskConfig()
        found = drawn(MaskSources(BANK, (), config=config, names=NAMES), 400)
        kinds = Counter(origin.kind for _, origin in found)
        assert kinds["slits"] / 400 == pytest.approx(0.75, abs=0.07)
        assert {mask.shape[1] for mask, origin in found if origin.kind == "slits"} == {2}
        again = drawn(MaskSources(BANK, (), config=config, names=NAMES), 400)
        assert [origin for _, origin in found] == [origin for _, origin in again]


@pytest.mark.parametrize(
    ("share", "said"),
    [(-1, "greater than or equal to 0"), ("much", "must be a valid number"), (True, "must be a valid")],
)
def test_a_share_from_outside_is_checked_as_ours_are(share: object, said: str) -> None:
    project = {"data": {"path": "a"}, "masks": {"sources": {"slits": share}}}
    with pytest.raises(ConfigError, match=r"masks\.sources\.slits: no such setting"):
        resolve(project=project)
    with MASK_SOURCES.registered("slits", draw_slits), pytest.raises(ConfigError, match=f"slits: .*{said}"):
        resolve(project=project)
    with pytest.raises(ValueError, match="'slits' is no source of masks: choose among bank, expert"):
        MaskConfig.model_validate({"sources": {"slits": 1}})


def test_a_source_from_outside_that_returns_no_mask_is_named() -> None:
    class Bad:
        def has(self, category_id: int) -> bool:
            return True

        def draw(self, category_id: int, rng: np.random.Generator) -> DrawnMask:
            return DrawnMask(mask=np.ones((3, 4)), seed=0)  # type: ignore[arg-type]

    with MASK_SOURCES.registered("bad", lambda of: Bad()):
        of = sources(sources={"bank": 0, "bad": 1})
        with pytest.raises(ConfigError, match=r"mask source bad: returned float64 of shape \(3, 4\)"):
            of.draw(1, np.random.default_rng(0))


def read(folder: Path, scale: float = 1.0) -> tuple[tuple[ExpertMask, ...], MaskBank]:
    return read_folder(folder, bank=BANK, categories=CATEGORIES, scale=scale, tile_px=SIZE_HW[1])


def test_a_review_comes_back_as_it_was_and_corrections_replace_their_entries(tmp_path: Path) -> None:
    assert write_review(BANK, CATEGORIES, np.zeros((10, 14, 3), np.uint8), tmp_path / "masks") == 8
    supplied, bank = read(tmp_path / "masks")
    assert supplied == ()
    assert bank == BANK

    corrected = square(3)
    save_png(tmp_path / "masks" / "crack" / "train-2.png", corrected.astype(np.uint8) * 255)
    save_png(tmp_path / "masks" / "pit" / "new.png", square(9, (80, 70)).astype(np.uint8))
    supplied, bank = read(tmp_path / "masks", scale=0.5)
    assert np.array_equal(decode(bank.entries[2].mask.rle), corrected)
    assert bank.entries[3] == BANK.entries[3]
    assert [(m.id, m.category_id) for m in supplied] == [("new", 2)]
    assert supplied[0].mask.shape == (4, 4)


@pytest.mark.parametrize(
    ("name", "mask", "found"),
    [
        ("dent/a.png", square(5), "class 'dent' is not in the data set"),
        ("stain/a.png", square(5), "class 'stain' has no training example"),
        ("crack/a.png", np.zeros(SIZE_HW, bool), "is empty"),
        ("crack/a.png", np.ones(SIZE_HW, bool), "covers everything"),
        ("crack/train-1.png", square(5, (41, 56)), "is 41x56, its tile is 40x56"),
        ("crack/a.png", square(60, (70, 70)), "a tile has 56"),
    ],
)
def test_a_mask_that_cannot_be_used_is_one_line(tmp_path: Path, name: str, mask: Mask, found: str) -> None:
    save_png(tmp_path / name, mask.astype(np.uint8) * 255)
    with pytest.raises(AnnotationError) as caught:
        read(tmp_path)
    assert found in str(caught.value)
    assert "\n" not in str(caught.value)


def test_annotations_of_an_expert_become_masks_of_their_class(tmp_path: Path) -> None:
    common: Any = {"where": tmp_path / "coco.json", "bank": BANK, "categories": CATEGORIES, "scale": 1.0, "tile_px": 56}
    found = from_instances([("a-0", "pit", square(7))], **common)
    assert (found[0].id, found[0].category_id, found[0].mask.shape) == ("a-0", 2, (7, 7))
    with pytest.raises(AnnotationError, match="no training example"):
        from_instances([("a-0", "stain", square(7))], **common)


def test_masks_of_weight_zero_are_not_drawn_unless_the_class_has_no_others() -> None:
    bank = MaskBank(split_digest="", entries=(entry(0, 1, 4), entry(1, 1, 6), entry(2, 2, 5), entry(3, 2, 8)))
    weights = {"train-0": 2.0, "train-1": 0.0, "train-2": 0.0, "train-3": 0.0}
    sources, rng = MaskSources(bank, (), config=MaskConfig(), names=NAMES, weights=weights), np.random.default_rng(0)
    drawn = {c: {d[1].bank_id for _ in range(30) if (d := sources.draw(c, rng)) is not None} for c in (1, 2)}
    assert drawn == {1: {"train-0"}, 2: {"train-2", "train-3"}}


def test_what_earlier_rounds_took_counts_for_the_limit_of_uses() -> None:
    bank = MaskBank(split_digest="", entries=(entry(0, 1, 4), entry(1, 1, 6)))
    sources = MaskSources(bank, (), config=MaskConfig(max_uses=3), names=NAMES, used={"train-0": 3, "train-1": 2})
    drawn = sources.draw(1, np.random.default_rng(0))
    assert drawn is not None
    assert drawn[1].bank_id == "train-1"
    with pytest.raises(ConfigError, match=r"masks\.max_uses 3"):
        sources.draw(1, np.random.default_rng(1))
