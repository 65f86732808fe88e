"""Do drivers give away that their source had a defect? AUC of a classifier on the geometry beside masks, .5 is no leak,
95% interval.

With and without filling labelled defects first (`drivers.defect_blind`). Run: `python bench/leakage.py PROJECT.toml
[...] --work FOLDER`; import, split and tiles are made where they are missing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from defectory import StageEnded, measure_leakage
from defectory.files import write_json
from projects import name_of, open_in


def main() -> None:
    """Measure every project and kind, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("projects", type=Path, nargs="+")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--kinds", nargs="+", default=["topology"])
    parser.add_argument("-o", "--override", action="append", default=[])
    args = parser.parse_args()
    rows: list[dict[str, object]] = []
    for file in args.projects:
        name = name_of(file, args.override)
        for kind in args.kinds:
            for blind in (True, False):
                own = [*args.override, f"drivers.kind={kind}", f"drivers.defect_blind={json.dumps(blind)}"]
                project = open_in(args.work / name, file, own)
                for event in project.events(until="tiles"):
                    if isinstance(event, StageEnded) and not event.skipped:
                        print(f"{name}: {event.stage}: {event.summary}", flush=True)
                found = measure_leakage(project)
                row: dict[str, object] = {"project": name, "kind": kind, "defect_blind": blind}
                if found is not None:
                    row |= {
                        "auc": round(found.auc, 3),
                        "interval": [round(v, 3) for v in found.interval],
                        "defective": found.num_defective,
                        "defect_free": found.num_defect_free,
                    }
                rows.append(row)
                print(row, flush=True)
    write_json(args.work / "leakage.json", rows)


if __name__ == "__main__":
    main()
