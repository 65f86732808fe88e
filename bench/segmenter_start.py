"""What the shipped start of the light segmenter is worth: real arm alone, from it and from random weights
(`--inits segmenter encoder random` adds the shipped encoder alone).

Equal steps, tiles and seeds; test is read once per segmenter, whole images. Run:
`python bench/segmenter_start.py PROJECT.toml [PROJECT.toml ...] --work FOLDER`. Each project names a data set and its
fraction; import, split and tiles are made where they are missing. Finished segmenters are not trained again.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from defectory import Project, Segmenter, StageEnded
from defectory.evaluation.mask_metrics import score_segmenter
from defectory.files import write_json
from defectory.rle import encode
from projects import name_of, open_in


def test_scores(project: Project, folder: Path) -> dict[str, float]:
    """Score a trained segmenter on whole test images."""
    segmenter, data = Segmenter.load(folder), project.store.data
    number_of = {category.name: category.id for category in data.dataset.categories}
    test = [data.dataset.image(image_id) for image_id in project.split.test]
    results: list[dict[str, object]] = []
    for record in test:
        for found in segmenter.predict(data.path(record), min_score=0.0):
            rle, (x0, y0, x1, y1) = encode(found.mask), found.box_xyxy
            results.append(
                {
                    "image_id": record.id,
                    "category_id": number_of[found.class_name],
                    "score": found.score,
                    "segmentation": {"size": list(rle.size_hw), "counts": rle.counts},
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                }
            )
    scores = score_segmenter(test, data.dataset.categories, results, score_threshold=segmenter.score_threshold)
    return scores.model_dump(mode="json")


def scores_from(
    project_file: Path, work: Path, *, init: str, seeds: list[int], overrides: list[str]
) -> list[dict[str, float]]:
    """Train the real arm from one start with every seed and give its test scores."""
    arm = 'segmentation.arms=["real"]'
    own = [arm, f"segmentation.seeds={json.dumps(seeds)}", f"segmentation.init={init}"]
    project = open_in(work / name_of(project_file, overrides) / init, project_file, [*overrides, *own])
    for event in project.events(until="segment"):
        if isinstance(event, StageEnded):
            print(f"{init}: {event.stage}: {event.summary}", flush=True)
    return [test_scores(project, project.folder_of(f"segment-real-seed{seed}")) for seed in seeds]


def compare(
    project_file: Path, work: Path, *, inits: list[str], seeds: list[int], overrides: list[str]
) -> dict[str, object]:
    """Compare starts on one project: mean of seeds, each seed, and how much more the first start gives than the others,
    by seed.
    """
    scores = {init: scores_from(project_file, work, init=init, seeds=seeds, overrides=overrides) for init in inits}
    result: dict[str, object] = {"project": name_of(project_file, overrides), "seeds": seeds}
    for metric in ("segm_map", "ap50", "iou"):
        each = {init: [own[metric] for own in of] for init, of in scores.items()}
        first, *others = each
        result[metric] = {
            "mean": {init: statistics.mean(values) for init, values in each.items()},
            "each": each,
            "gain": {
                f"{first} over {init}": [a - b for a, b in zip(each[first], each[init], strict=True)] for init in others
            },
        }
    return result


def main() -> None:
    """Compare on every project named and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("projects", type=Path, nargs="+")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument(
        "--inits", nargs="+", default=["segmenter", "random"], help="The first is compared with the others."
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("-o", "--override", action="append", default=[])
    args = parser.parse_args()
    results = [
        compare(file, args.work, inits=args.inits, seeds=args.seeds, overrides=args.override) for file in args.projects
    ]
    write_json(args.work / "segmenter_start.json", results)
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
