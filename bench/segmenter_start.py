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

from defectory.config.resolve import resolve
from defectory.events import StageEnded
from defectory.files import write_json
from defectory.runs.sources import Sources
from defectory.runs.stage import Run
from defectory.stages.all import run_all


def scores_from(
    project_file: Path, work: Path, *, init: str, seeds: list[int], overrides: list[str]
) -> list[dict[str, float]]:
    """Train the real arm from one start with every seed and give its test scores."""
    arm = 'segmentation.arms=["real"]'
    own = [arm, f"segmentation.seeds={json.dumps(seeds)}", f"segmentation.init={init}"]
    config = resolve(project_file=project_file, overrides=[*overrides, *own]).config
    project = Run(config=config, folder=work / config.name / init, sources=Sources(folder=project_file.parent))
    for event in run_all(project, only=["import", "split", "tiles", *(f"segment-real-seed{seed}" for seed in seeds)]):
        if isinstance(event, StageEnded):
            print(f"{init}: {event.stage}: {event.summary}", flush=True)
    return [json.loads((project.folder / "segment" / f"real-seed{seed}" / "scores.json").read_text()) for seed in seeds]


def compare(
    project_file: Path, work: Path, *, inits: list[str], seeds: list[int], overrides: list[str]
) -> dict[str, object]:
    """Compare starts on one project: mean of seeds, each seed, and how much more the first start gives than the others,
    by seed.
    """
    scores = {init: scores_from(project_file, work, init=init, seeds=seeds, overrides=overrides) for init in inits}
    result: dict[str, object] = {"project": resolve(project_file=project_file).config.name, "seeds": seeds}
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
