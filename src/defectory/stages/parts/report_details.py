"""Further tables of the report: scores by size, what it takes to make the run again, and the scores as CSV."""

from __future__ import annotations

import csv
import io
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from defectory import __version__
from defectory.report.content import Table
from defectory.runs import layout
from defectory.runs.store import RunStore
from defectory.stages.parts.report_tables import arm_name, in_order

SIZES = ("small", "medium", "large")
PACKAGES = ("torch", "diffusers", "torchvision", "numpy", "opencv-python-headless")
CSV_COLUMNS = ("arm", "seed", "score", "value")


def size_table(scores: Mapping[str, Any]) -> Table:
    """Build the table of segm mAP and missed defects by size of the defect."""
    arms = in_order(scores)
    counts: Mapping[str, int] = next((own["per_seed"][0]["plant"]["num_defects_by_size"] for own in arms.values()), {})
    sizes = [size for size in SIZES if counts.get(size)]
    return Table(
        title="By size of the defect",
        columns=["arm", *(f"segm mAP, {size}" for size in sizes), *(f"missed, {size}" for size in sizes)],
        rows=[
            [
                arm_name(arm),
                *(_mean([seed["segm_map_by_size"][size] for seed in own["per_seed"]], "{:.3f}") for size in sizes),
                *(
                    _mean([seed["plant"]["missed_defect_rate_by_size"][size] for seed in own["per_seed"]], "{:.1%}")
                    for size in sizes
                ),
            ]
            for arm, own in arms.items()
        ],
        note="Small is below 32 x 32 px, medium below 96 x 96 px. Test holds "
        + ", ".join(f"{counts[size]} {size}" for size in sizes)
        + ".",
    )


def missed_table(scores: Mapping[str, Any]) -> Table:
    """Build the table of missed defects by class, at each segmenter's score threshold."""
    arms = in_order(scores)
    classes = sorted({name for own in arms.values() for seed in own["per_seed"] for name in _missed(seed)})
    return Table(
        title="Missed defects per class",
        columns=["arm", *classes],
        rows=[
            [arm_name(arm), *(_mean([_missed(of).get(name) for of in own["per_seed"]], "{:.1%}") for name in classes)]
            for arm, own in arms.items()
        ],
    )


def _missed(seed: Mapping[str, Any]) -> Mapping[str, float]:
    return seed["plant"]["per_class_missed_defect_rate"]


def _mean(values: Sequence[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    return form.format(float(np.mean(known))) if known else "none"


def cost_table(inputs: RunStore) -> Table:
    """Build the table of what the run cost: seconds by kind of stage."""
    seconds: dict[str, list[float]] = {}
    for folder, manifest in inputs.manifests().items():
        # an earlier report is not part of this one
        if folder != layout.REPORT:
            seconds.setdefault(folder.split("/")[0], []).append(float(manifest["info"]["seconds"]))
    rows = [
        [f"{folder} ({len(of)} trained)" if len(of) > 1 else folder, f"{sum(of):.0f}"] for folder, of in seconds.items()
    ]
    total = sum(sum(of) for of in seconds.values())
    return Table(
        title="Cost",
        columns=["stage", "seconds"],
        rows=[*rows, ["all", f"{total:.0f}"]],
        note="As long as each stage took when it last ran. Segmenters that ran side by side count each.",
    )


def reproduce_table(inputs: RunStore, *, base: str, seed: int) -> Table:
    """Build the table of what it takes to make the run again: command, versions, digests."""
    packages = [(name, found) for name in PACKAGES if (found := _version(name)) is not None]
    rows = [
        ["command", inputs.sources.command.text("run")],
        ["Defectory", __version__],
        ["Python", platform.python_version()],
        *([name, found] for name, found in packages),
        ["data set, SHA-256", inputs.data.dataset.digest()],
        ["split, SHA-256", inputs.split.digest()],
        ["base", f"{base}, SHA-256 {inputs.concept.concept.base_digest}"],
        ["seed", str(seed)],
    ]
    return Table(
        title="To make it again",
        columns=["", "value"],
        rows=rows,
        note="Equal data, settings and versions on a CPU give equal results. The settings are below.",
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def scores_csv(scores: Mapping[str, Any], seeds: Mapping[str, Sequence[int]]) -> str:
    """Write every score of every segmenter as CSV, a row for each.

    Args:
        scores: of the stage `evaluate`.
        seeds: of each arm, in the order of its scores.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for arm, own in in_order(scores).items():
        for seed, of in zip(seeds[arm], own["per_seed"], strict=True):
            writer.writerows([arm, seed, name, f"{value:.6g}"] for name, value in _flat(of))
    return stream.getvalue()


def _flat(of: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in of.items():
        if isinstance(value, Mapping):
            if name != "curve":
                yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}", value
