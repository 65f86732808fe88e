"""Mask fidelity by a judge: are labels of accepted drafts as true as people's labels of real tiles?

A judge segmenter, a U-Net where curation and the downstream segmenter are Mask R-CNNs, learns from real tiles that no
stage of the run
saw: its test images and those its split left out, or `--fresh` rendered shots for the demo. By folds it is scored on
    real tiles it did
not learn from, on accepted drafts, on all drafts, and on the accepted ones of highest fidelity, each weighed to the
accepted drafts' mix of classes and sizes.

Run: `python bench/mask_fidelity.py RUN_FOLDER [--fresh 400] [--steps 1000] [--folds 3] --work FOLDER`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DModel
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy, pixel_shuffle, pixel_unshuffle

from defectory.artifacts.annotation import Instance
from defectory.artifacts.dataset import MANIFEST, Dataset
from defectory.artifacts.plan import Decision, Decisions, Job, Plan
from defectory.artifacts.split import Split
from defectory.artifacts.tiles import TileSet
from defectory.dataset.config import DataConfig, TilingConfig
from defectory.dataset.importer import import_dataset
from defectory.dataset.tiles import cut_tiles
from defectory.engine.training.noise import generator_of
from defectory.engine.training.optimizer import NamedOptimizer
from defectory.events import finish
from defectory.files import write_json
from defectory.images.load import load_rgb
from defectory.procedural.borescope import write_dataset
from defectory.rle import decode
from defectory.synthesis.drafts import draft_paths

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
FRESH_SEED = 900
"""Scenes that no demo has."""
FOLD_PX = 2
WIDTHS = (32, 64, 96)
BATCH_SIZE = 8
LEARNING_RATE = 4e-3
WARMUP_STEPS = 50
SIZE_BINS = 3
RESAMPLES = 1000
BEST_SHARES = (0.3, 0.5, 0.7)


@dataclass(frozen=True, kw_only=True, eq=False)
class Labelled:
    """A tile RGB uint8 [H,W,3], its class indices uint8 [H,W] (0 is background), its image part, and the group it must
    stay with.
    """

    image: Image
    classes: NDArray[np.uint8]
    valid_hw: tuple[int, int]
    group: str

    @property
    def kind(self) -> int:
        """Give the class that covers most."""
        return int(np.bincount(self.classes[self.classes > 0]).argmax())

    @property
    def area_px(self) -> int:
        """Give the label's area."""
        return int((self.classes > 0).sum())


class Judge:
    """A U-Net that gives a class to every pixel, trained from random weights."""

    def __init__(self, num_classes: int, side: int, *, seed: int) -> None:
        torch.manual_seed(seed)
        self._seed, self._num = seed, num_classes + 1
        model: Any = UNet2DModel(
            sample_size=side // FOLD_PX,
            in_channels=3 * FOLD_PX**2,
            out_channels=self._num * FOLD_PX**2,
            block_out_channels=WIDTHS,
            layers_per_block=1,
            down_block_types=("DownBlock2D",) * 3,
            up_block_types=("UpBlock2D",) * 3,
            norm_num_groups=8,
            add_attention=False,
        )
        self._model = model.to(memory_format=torch.channels_last)

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        return pixel_shuffle(self._model(pixel_unshuffle(images, FOLD_PX), 0).sample, FOLD_PX)

    def learned(self, path: Path, tiles: Sequence[Labelled], *, num_steps: int) -> None:
        """Train and keep the weights, or take those that were kept."""
        if path.is_file():
            self._model.load_state_dict(load_file(path))
            self._model.eval()
            return
        self.learn(tiles, num_steps=num_steps)
        save_file({name: value.contiguous() for name, value in self._model.state_dict().items()}, path)

    def learn(self, tiles: Sequence[Labelled], *, num_steps: int) -> None:
        """Train on mirrored, turned and re-exposed tiles; the loss is cross entropy and one minus the soft Dice of
        `defect`.
        """
        optimizer = NamedOptimizer(
            dict(self._model.named_parameters()), kind="muon", learning_rate=LEARNING_RATE, weight_decay=1e-2
        )
        self._model.train()
        for step in range(num_steps):
            left = 1 - step / num_steps
            optimizer.set_learning_rate(LEARNING_RATE * min(1.0, (step + 1) / WARMUP_STEPS) * min(1.0, 2 * left + 0.02))
            generator = generator_of(self._seed, "judge", step)
            rows = torch.randint(len(tiles), (BATCH_SIZE,), generator=generator).tolist()
            pictures, targets = zip(*(_turned(tiles[row], generator) for row in rows), strict=True)
            logits = self._logits(torch.stack(pictures))
            target = torch.stack(targets)
            shown = target >= 0
            defect = 1 - logits.softmax(dim=1)[:, 0]
            wanted = (target > 0).float()
            overlap = 2 * (defect * wanted * shown).sum() + 1
            dice = overlap / ((defect * shown).sum() + wanted.sum() + 1)
            loss = cross_entropy(logits, target, ignore_index=-1) + 1 - dice
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
            optimizer.step()
            if (step + 1) % 200 == 0:
                print(f"judge {self._seed}: step {step + 1} of {num_steps}, loss {loss.item():.3f}", flush=True)
        self._model.eval()

    @torch.no_grad()
    def ious(self, tiles: Sequence[Labelled]) -> list[float]:
        """Give per tile the IoU of what the judge calls defect with the label."""
        found: list[float] = []
        for start in range(0, len(tiles), 16):
            batch = tiles[start : start + 16]
            logits = self._logits(torch.stack([_tensor(tile.image) for tile in batch]))
            for tile, classes in zip(batch, logits.argmax(dim=1).numpy(), strict=True):
                height, width = tile.valid_hw
                seen, label = classes[:height, :width] > 0, tile.classes[:height, :width] > 0
                found.append(float((seen & label).sum() / max(1, (seen | label).sum())))
        return found


def _tensor(image: Image) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1).float() / 127.5 - 1


def _turned(tile: Labelled, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    image, target = _tensor(tile.image), torch.from_numpy(tile.classes.astype(np.int64))
    target[tile.valid_hw[0] :], target[:, tile.valid_hw[1] :] = -1, -1
    quarter, mirror = (int(torch.randint(n, (1,), generator=generator)) for n in (4, 2))
    gain, offset = 1 + 0.15 * torch.randn(2, generator=generator)
    image, target = torch.rot90(image, quarter, (1, 2)), torch.rot90(target, quarter, (0, 1))
    if mirror:
        image, target = image.flip(2), target.flip(1)
    return (image * gain + offset - 1).clamp(-1, 1), target


def real_tiles(folder: Path, tileset: TileSet, dataset: Dataset) -> list[Labelled]:
    """Read the tiles of a tile set that show a defect."""
    group_of = {record.id: record.group or str(record.id) for record in dataset.images}
    return [
        Labelled(
            image=load_rgb(folder / tile.file_name),
            classes=_painted(tile.instances, tileset.tiling.tile_px),
            valid_hw=tile.valid_hw,
            group=group_of[tile.image_id],
        )
        for tile in tileset.tiles
        if tile.instances
    ]


def _painted(instances: Sequence[Instance], side: int) -> NDArray[np.uint8]:
    classes = np.zeros((side, side), np.uint8)
    for instance in sorted(instances, key=lambda i: -int(decode(i.rle).sum())):
        classes[decode(instance.rle)] = instance.category_id
    return classes


def unseen(run: Path, work: Path, *, fresh: int) -> list[Labelled]:
    """Cut tiles of images that no stage of the run but evaluation has seen, or of freshly rendered ones."""
    tileset = TileSet.load(run / "tiles" / "tileset.json")
    folder, dataset = run / "data", Dataset.load(run / "data" / MANIFEST)
    split = Split.load(run / "split" / "split.json")
    taken = {*split.train, *split.val, *split.pool}
    if fresh:
        source = write_dataset(work / "fresh", seed=FRESH_SEED, num_labelled=fresh, num_defect_free=0)
        folder = work / "fresh_data"
        dataset = import_dataset(DataConfig(path=str(source)), folder).dataset
        taken = set()
        assert dataset.categories == tileset.categories, "fresh shots are of the demo's classes"
    rest = split.model_copy(
        update={
            "train": (),
            "val": (),
            "pool": (),
            "pool_source": "images",
            "test": tuple(r.id for r in dataset.images if r.id not in taken),
        }
    )
    cutting = cut_tiles(
        folder, dataset, rest, tileset.tiling, subsets=("test",), out=work / "unseen", config=TilingConfig(), seed=0
    )
    tiles = finish(cutting)
    return real_tiles(work / "unseen", tiles, dataset)


def decisions_of(run: Path) -> Sequence[Decision]:
    """Read curation's decisions, in plan order."""
    return Decisions.load(run / "curation" / "decisions.json").decisions


def drafts(run: Path) -> tuple[list[Labelled], list[bool]]:
    """Read all drafts of a run with their labels, and which were accepted."""
    tileset, plan = TileSet.load(run / "tiles" / "tileset.json"), Plan.load(run / "plan" / "plan.json")
    accepted = {d.job_id for d in decisions_of(run) if d.status == "accepted"}
    valid = {tile.id: tile.valid_hw for tile in tileset.tiles}

    def draft(job: Job) -> Labelled:
        image = load_rgb(draft_paths(run / "drafts", job.id)[0])
        classes = _painted(job.instances, tileset.tiling.tile_px)
        return Labelled(image=image, classes=classes, valid_hw=valid[job.tile_id], group=job.tile_id)

    return [draft(job) for job in plan.jobs], [job.id in accepted for job in plan.jobs]


def strata(tiles: Sequence[Labelled], edges: Sequence[float]) -> list[tuple[int, int]]:
    """Give class and size bin of every tile."""
    return [(tile.kind, int(np.searchsorted(edges, tile.area_px))) for tile in tiles]


def weighed(ious: NDArray[np.float64], of: Sequence[tuple[int, int]], mix: dict[tuple[int, int], float]) -> float:
    """Give the mean IoU of the strata in a mix; strata that are missing drop out of it."""
    means = {key: float(ious[[k == key for k in of]].mean()) for key in set(of)}
    common = {key: share for key, share in mix.items() if key in means}
    return sum(means[key] * share for key, share in common.items()) / max(1e-9, sum(common.values()))


def judged(run: Path, work: Path, *, fresh: int, num_steps: int, folds: int) -> dict[str, object]:
    """Train the judges and compare real tiles, accepted drafts and all drafts."""
    real = unseen(run, work, fresh=fresh)
    made, is_accepted = drafts(run)
    tileset = TileSet.load(run / "tiles" / "tileset.json")
    edges = np.quantile([tile.area_px for tile in real], np.linspace(0, 1, SIZE_BINS + 1)[1:-1]).tolist()
    groups = sorted({tile.group for tile in real})
    fold_of = {
        group: int(n) % folds
        for group, n in zip(groups, np.random.default_rng(0).permutation(len(groups)), strict=True)
    }
    real_ious, made_ious = np.zeros(len(real)), np.zeros(len(made))
    for fold in range(folds):
        judge = Judge(len(tileset.categories), tileset.tiling.tile_px, seed=fold)
        judge.learned(
            work / f"judge-{fold}.safetensors", [t for t in real if fold_of[t.group] != fold], num_steps=num_steps
        )
        held_out = [index for index, tile in enumerate(real) if fold_of[tile.group] == fold]
        real_ious[held_out] = judge.ious([real[index] for index in held_out])
        made_ious += np.array(judge.ious(made)) / folds
        print(f"fold {fold}: real {real_ious[held_out].mean():.3f}", flush=True)
    real_of, made_of = strata(real, edges), strata(made, edges)
    chosen = np.flatnonzero(is_accepted)
    accepted_of = [made_of[i] for i in chosen]
    mix = {key: accepted_of.count(key) / len(accepted_of) for key in set(accepted_of)}

    def ratios(rng: np.random.Generator | None) -> tuple[float, float, float, float, float]:
        def rows(count: int) -> NDArray[np.int64]:
            return np.arange(count) if rng is None else rng.integers(count, size=count)

        own, kept, every = rows(len(real)), chosen[rows(len(chosen))], rows(len(made))
        a = weighed(real_ious[own], [real_of[i] for i in own], mix)
        b = weighed(made_ious[kept], [made_of[i] for i in kept], mix)
        c = weighed(made_ious[every], [made_of[i] for i in every], mix)
        return a, b, c, b / a, c / a

    a, b, c, accepted, unfiltered = ratios(None)
    rng = np.random.default_rng(1)
    spread = np.quantile([ratios(rng)[3:] for _ in range(RESAMPLES)], (0.025, 0.975), axis=0)
    fidelity = np.array([d.fidelity.iou for d in decisions_of(run)])
    best: dict[str, float] = {}
    for share in BEST_SHARES:
        top = chosen[np.argsort(-fidelity[chosen])[: max(1, round(share * len(made)))]]
        best[f"{share:.0%} of all"] = weighed(made_ious[top], [made_of[i] for i in top], mix) / a
    write_json(
        work / "drafts.json",
        [
            {"judge": x, "fidelity": y, "accepted": z}
            for x, y, z in zip(made_ious.tolist(), fidelity.tolist(), is_accepted, strict=True)
        ],
    )
    covered = sum(share for key, share in mix.items() if key in set(real_of))
    return {
        "real_tiles": len(real),
        "drafts": len(made),
        "acceptance": len(chosen) / len(made),
        "mix_covered": covered,
        "ratio_of_highest_fidelity": best,
        "correlation_with_fidelity": float(np.corrcoef(made_ious, fidelity)[0, 1]),
        "iou": {"real": a, "accepted": b, "all": c},
        "ratio": {"accepted": [accepted, *spread[:, 0].tolist()], "all": [unfiltered, *spread[:, 1].tolist()]},
        "accepted_by_class": {
            category.name: {
                "real": _mean([v for v, t in zip(real_ious, real, strict=True) if t.kind == category.id]),
                "accepted": _mean([made_ious[i] for i in chosen if made[i].kind == category.id]),
            }
            for category in tileset.categories
        },
    }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def main() -> None:
    """Judge a run and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument(
        "--fresh", type=int, default=0, help="For the demo: so many rendered shots instead of the run's own images."
    )
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    result = judged(args.run, args.work, fresh=args.fresh, num_steps=args.steps, folds=args.folds)
    write_json(args.work / "mask_fidelity.json", result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
