"""How well `defectory run` estimates itself: estimate and actual seconds, memory and disk of small projects.

Each project is run as a user runs it, `defectory run --json`, on the procedural borescope. The estimate is what it
prints before the first stage. On a machine with other work compare the estimate with processor seconds, for one thread.
Run: `python bench/estimates.py small cpu tiny --threads 1 --work FOLDER`. Prints rows of a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import psutil

from defectory.procedural.borescope import write_dataset

STEPS = {
    "concept.training.num_steps": 40,
    "condition.training.num_steps": 40,
    "segmentation.num_steps": 60,
    "segmentation.validate_every": 30,
}
PROJECTS: dict[str, tuple[str | None, dict[str, Any]]] = {
    # preset, and settings that make it short
    "small": ("demo", {**STEPS, "synthesis.num_images": 24, "concept.num_class_images": 16}),
    "cpu": ("cpu", {**STEPS, "synthesis.num_images": 24, "concept.num_class_images": 16, "segmentation.seeds": [0, 1]}),
    "tiny": (None, {}),
}
"""`tiny` is the project of the tests, with their random base."""
SAMPLE_EVERY_S = 0.3


@dataclass
class Actual:
    """What a run took: seconds, processor seconds, most bytes of memory and of the run folder, seconds per stage."""

    seconds: float = 0.0
    processor_seconds: float = 0.0
    memory_bytes: int = 0
    disk_bytes: int = 0


def make_project(name: str, folder: Path) -> Path:
    """Write data and project file; return the project file."""
    preset, settings = PROJECTS[name]
    if name == "tiny":
        tests = _tests()
        write_dataset(folder / "source", seed=0, num_labelled=28, num_defect_free=12, size_hw=tests.TINY_SIZE_HW)
        settings = _flat(tests.tiny_settings(tests.make_tiny_base(folder / "base")))
    else:
        write_dataset(folder / "source", seed=0, num_labelled=60, num_defect_free=60)
        settings = {**settings, "name": name, "out": "run", "data.path": "source/annotations.json", "device": "cpu"}
    lines = [] if preset is None else [f"preset = {json.dumps(preset)}"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    file = folder / "project.toml"
    file.write_text("\n".join(lines) + "\n")
    return file


def _tests() -> Any:
    spec = spec_from_file_location("tests_conftest", Path(__file__).parents[1] / "tests" / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def run(file: Path, *overrides: str) -> tuple[dict[str, Any], dict[str, float], Actual]:
    """Run a project; return its estimate, the seconds of each stage, and what the whole took."""
    command = [sys.executable, "-m", "defectory", "run", str(file), "--json", "--yes"]
    command += [part for text in overrides for part in ("-o", text)]
    actual, estimate, seconds = Actual(), dict[str, Any](), dict[str, float]()
    began = time.monotonic()
    said, processor = file.with_name("events.jsonl"), dict[int, float]()
    with open(said, "w") as stream, subprocess.Popen(command, stdout=stream) as process:
        while process.poll() is None:
            time.sleep(SAMPLE_EVERY_S)
            _sample(process.pid, file.parent / "run", actual, processor)
        if process.returncode:
            raise SystemExit(f"{command} ended with {process.returncode}")
    actual.seconds, actual.processor_seconds = time.monotonic() - began, sum(processor.values())
    for line in said.read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "Estimate":
            estimate = event
        elif event["event"] == "StageEnded" and not event["skipped"]:
            seconds[event["stage"]] = event["seconds"]
    return estimate, seconds, actual


def _sample(pid: int, folder: Path, actual: Actual, processor: dict[int, float]) -> None:
    held = 0
    try:
        own = psutil.Process(pid)
        for each in [own, *own.children(recursive=True)]:
            times = each.cpu_times()
            processor[each.pid] = times.user + times.system
            held += each.memory_info().rss
    except psutil.NoSuchProcess:
        return
    on_disk = 0
    for path in folder.rglob("*"):
        try:
            on_disk += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue
    actual.memory_bytes, actual.disk_bytes = max(actual.memory_bytes, held), max(actual.disk_bytes, on_disk)


def main() -> None:
    """Run the projects and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("projects", nargs="+", choices=list(PROJECTS))
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--per-stage", action="store_true")
    args = parser.parse_args()
    print("| project | threads | seconds | processor s | memory, GB | disk, MB |")
    print("|---|---|---|---|---|---|")
    for name in args.projects:
        for threads in args.threads:
            folder = args.work / f"{name}-{threads}"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            estimate, seconds, actual = run(make_project(name, folder), f"threads={threads}")
            cells = [
                f"{estimate['seconds']:.0f} / {actual.seconds:.0f}",
                f"{actual.processor_seconds:.0f}",
                f"{estimate['memory_bytes'] / 1e9:.2f} / {actual.memory_bytes / 1e9:.2f}",
                f"{estimate['disk_bytes'] / 1e6:.0f} / {actual.disk_bytes / 1e6:.0f}",
            ]
            print(f"| {name} | {threads} | {' | '.join(cells)} |", flush=True)
            for stage in estimate["stages"] if args.per_stage else []:
                print(f"  {stage['stage']:<34} {stage['seconds']} / {seconds.get(stage['stage'])}", file=sys.stderr)


if __name__ == "__main__":
    main()
