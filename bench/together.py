"""Steps per second of phase 2 in one process, and in several that train together, with one thread each and equal steps.

On copies of a run that is prepared without a concept, everything in turn, `--rounds` times. Run:
`python bench/together.py PROJECT.toml --work FOLDER [--processes 1 2] [--steps 20] [-o KEY=VALUE]`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

from defectory.events import Progress
from defectory.memory import PeakMemory
from projects import open_in

STARTED = 2
"""Steps that are not timed: the first ones fill caches."""


def train(file: Path, prepared: Path, work: Path, num_processes: int, overrides: list[str]) -> dict[str, object]:
    """Train phase 2 on a copy of the prepared run; return steps per second, GB of memory and the last loss."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(prepared, work)
    own = [f"training_processes={num_processes}", f"threads={num_processes}"]
    project, at, note = open_in(work, file, [*overrides, *own]), list[tuple[int, float]](), ""
    with PeakMemory() as peak:
        for event in project.events(only="learn-condition"):
            if isinstance(event, Progress) and event.note.startswith("loss") and "held-out" not in event.note:
                at.append((event.done, time.monotonic()))
                note = event.note
    (first, began), (last, ended) = at[STARTED - 1], at[-1]
    return {
        "num_processes": num_processes,
        "steps_per_second": round((last - first) / (ended - began), 4),
        "gb": round(peak.gb, 2),
        "last": note,
    }


def main() -> None:
    """Time each number of processes in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("project", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("-o", "--override", action="append", default=[])
    args = parser.parse_args()
    given = [*args.override, "concept.method=none", "device=cpu", f"condition.training.num_steps={args.steps}"]
    prepared = args.work / "prepared"
    open_in(prepared, args.project, given).run(until="learn-concept")
    for _ in range(args.rounds):
        for count in args.processes:
            print(json.dumps(train(args.project, prepared, args.work / "copy", count, given)), flush=True)


if __name__ == "__main__":
    main()
