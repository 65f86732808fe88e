"""What it takes to train a project's segmenters one after the other, each on all threads, and several at once.

On copies of a finished run, everything in turn, `--rounds` times. Run:
`python bench/side_by_side.py PROJECT.toml --work FOLDER [--processes 1 2 3] [-o threads=2]`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

from defectory import Project
from defectory.memory import PeakMemory
from projects import open_in


def train(project_file: Path, work: Path, num_processes: int, overrides: list[str]) -> dict[str, object]:
    """Train all segmenters on a copy of the run; give the seconds, GB of memory and each one's test segm mAP."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(
        Project.open(project_file, environment={}).run_folder,
        work,
        ignore=shutil.ignore_patterns("segment", "cache", "pipeline", "borescope"),
    )
    project = open_in(work, project_file, [*overrides, f"num_processes={num_processes}"])
    began = time.monotonic()
    with PeakMemory() as peak:
        project.run(only="segment")
    seconds = time.monotonic() - began
    arms = project.run(only="evaluate").scores["arms"]
    return {
        "num_processes": num_processes,
        "seconds": round(seconds, 1),
        "gb": round(peak.gb, 2),
        "segm_map": {arm: [of["segm_map"] for of in scores["per_seed"]] for arm, scores in arms.items()},
    }


def main() -> None:
    """Time each number of processes in turn and print its share of the first one's time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("project", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("-o", "--override", action="append", default=[])
    args = parser.parse_args()
    taken: dict[int, list[float]] = {count: [] for count in args.processes}
    for _ in range(args.rounds):
        for count in args.processes:
            result = train(args.project, args.work / "copy", count, args.override)
            taken[count].append(float(str(result["seconds"])))
            print(json.dumps(result), flush=True)
    first = sum(taken[args.processes[0]])
    print(json.dumps({f"{count} at once": round(sum(seconds) / first, 3) for count, seconds in taken.items()}))


if __name__ == "__main__":
    main()
