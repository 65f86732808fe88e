"""What are the drafts of a study's variants like? Every cell is run up to curation, and no segmenter is trained.

Fidelity, KID, FID, diversity and mutual information say most about concept methods, condition networks and drivers, and
take a third of the time of a study. Cells lie where `defectory study` puts them, so that a study goes on from there.

Run: `python bench/draft_figures.py STUDY.toml [-o study.seeds=[0,1,2]] [--of networks]`, the project's settings as for
`defectory study`; `--of` takes only variants whose name begins so. An interrupted run goes on. Prints a Markdown table:
means over seeds, each seed's figure, and for each variant but the first the gain over the first with its 95% interval.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from defectory.evaluation.statistics import arm_estimate, gain_estimate, scores_of_seeds
from defectory.events import StageEnded
from defectory.files import write_json
from defectory.stages.evaluate import scores_of_drafts
from defectory.studies.gather import IMAGE_FIGURES
from defectory.studies.study import Study

FIGURES = ("fidelity", "accepted", "kid", "fid", "l2", "mutual_information_nats")
MIN_SEEDS = 3


def figures_of(study: Study, cell: Any) -> dict[str, float]:
    """Run a cell up to curation and the test tiles, and return what is known of its drafts."""
    run = study.run_of(cell)
    kept = study.folder / "draft_figures" / f"{run.folder.name}.json"
    if not kept.is_file():
        for event in study.events_of(cell, until=["curate", "test-tiles"]):
            if isinstance(event, StageEnded) and not event.skipped:
                print(f"{cell.name}, {event.stage}: {event.summary}", flush=True)
        scores = scores_of_drafts(run.store(), run.config)
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_json(kept, {name: (scores[part] or {}).get(key) for name, (part, key) in IMAGE_FIGURES.items()})
    found: dict[str, float | None] = json.loads(kept.read_text())
    return {name: value for name, value in found.items() if value is not None}


def row_of(name: str, of: Sequence[dict[str, float]], first: Sequence[dict[str, float]] | None) -> str:
    """Return the row of one variant, from the figures of its seeds and of the first variant's."""
    cells: list[str] = []
    for figure in FIGURES:
        if not all(figure in seed for seed in (*of, *(first or ()))):
            cells.append("-")
            continue
        scores = {"own": [seed[figure] for seed in of]}
        told = f"{arm_estimate([scores_of_seeds(scores)], 'own').mean:.3f}"
        if len(of) > 1:
            told += f" ({' '.join(f'{seed[figure]:.3f}' for seed in of)})"
        if first is not None and len(of) >= MIN_SEEDS:
            folds = [scores_of_seeds(scores | {"first": [seed[figure] for seed in first]})]
            gain = gain_estimate(folds, "own", "first")
            low, high = gain.interval()
            told += f"; {gain.mean:+.3f} ({low:+.3f} to {high:+.3f})"
        cells.append(told)
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("-o", dest="overrides", action="append", default=[])
    parser.add_argument("--of", default="")
    args = parser.parse_args()
    study = Study.open(args.study, overrides=args.overrides)
    found: dict[str, list[dict[str, float]]] = {}
    for cell in study.cells:
        if cell.variant.name.startswith(args.of):
            found.setdefault(cell.variant.name or "as it is", []).append(figures_of(study, cell))
    first = next(iter(found.values()))
    print(f"| | {' | '.join(FIGURES)} |\n|---|{'---|' * len(FIGURES)}")
    for name, of in found.items():
        print(row_of(name, of, None if of is first else first))


if __name__ == "__main__":
    main()
