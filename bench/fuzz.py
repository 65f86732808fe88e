"""Damages small valid inputs of every kind at random and reads them: the long form of `tests/fuzz`.

    python bench/fuzz.py --cases 200000 --seed 1 --jobs 2
    python bench/fuzz.py --only load/coco --cases 5000
    python bench/fuzz.py --replay load/coco:10000123 [--keep FOLDER]

A case is a target and a seed, and the same everywhere. It fails when anything but an error of ours comes out, when the
message is not one line, when it takes more than four seconds of processor time, or when the process ends. Prints
failures as they come (`--out` writes all of them as JSON lines) and a table of targets at the end; exit code 1 for any
failure.
"""

from __future__ import annotations

import argparse
import json
import queue
import random
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from fuzz.harness import LIMIT_S, Outcome, Workbench, cases, run_cases  # the harness lies among the tests

PER_CHILD = 1000


def outcomes_of(some: list[tuple[str, int]], jobs: int) -> Iterator[Outcome]:
    """Yield the outcomes of cases, run in several children at a time."""
    pending: queue.SimpleQueue[list[tuple[str, int]]] = queue.SimpleQueue()
    for start in range(0, len(some), PER_CHILD):
        pending.put(some[start : start + PER_CHILD])
    done: queue.SimpleQueue[Outcome | BaseException | None] = queue.SimpleQueue()

    def work() -> None:
        while True:
            try:
                part = pending.get_nowait()
            except queue.Empty:
                done.put(None)
                return
            try:
                for outcome in run_cases(part):
                    done.put(outcome)
            except BaseException as error:  # told by the main thread, which would wait for ever
                done.put(error)
                return

    for _ in range(jobs):
        threading.Thread(target=work, daemon=True).start()
    running = jobs
    while running:
        outcome = done.get()
        if outcome is None:
            running -= 1
        elif isinstance(outcome, BaseException):
            raise outcome
        else:
            yield outcome


def replay(text: str, keep: Path | None) -> None:
    """Run one case in this process, and leave the damaged input where asked."""
    import tempfile

    name, _, seed = text.rpartition(":")
    with tempfile.TemporaryDirectory() as folder:
        bench = Workbench(Path(folder))
        if keep is not None:
            print(bench.damaged(name, int(seed), keep))
        print(json.dumps(asdict(bench.run(name, int(seed))), indent=1))


def main() -> None:
    """Run the cases and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=(), help="targets, or beginnings of their names")
    parser.add_argument("--out", type=Path, help="JSON lines of the failures")
    parser.add_argument("--replay", help="target:seed")
    parser.add_argument("--keep", type=Path, help="with --replay: new folder for the damaged input")
    args = parser.parse_args()
    if args.replay:
        replay(args.replay, args.keep)
        return
    some = cases(args.cases, args.seed)
    if args.only:
        from fuzz.targets import TARGETS

        names = [target.name for target in TARGETS if target.name.startswith(tuple(args.only))]
        rng = random.Random(args.seed)
        some = [(rng.choice(names), seed) for _, seed in some]
    began = time.monotonic()
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    slowest: dict[str, Outcome] = {}
    causes: Counter[tuple[str, str, str]] = Counter()
    stream = args.out.open("w") if args.out else None
    for number, outcome in enumerate(outcomes_of(some, args.jobs), start=1):
        kind = outcome.kind if not outcome.failed else "failed"
        counts[outcome.target][kind] += 1
        if outcome.target not in slowest or outcome.seconds > slowest[outcome.target].seconds:
            slowest[outcome.target] = outcome
        if outcome.failed:
            cause = (outcome.target.split("/")[0], outcome.kind, outcome.where or outcome.error[:80])
            causes[cause] += 1
            if causes[cause] <= 2:
                print(
                    f"{outcome.target}:{outcome.seed} {outcome.kind} {outcome.seconds} s {outcome.error[:200]!r} "
                    f"({outcome.where})",
                    flush=True,
                )
            if stream is not None:
                print(json.dumps(asdict(outcome)), file=stream, flush=True)
        if number % 10_000 == 0:
            print(
                f"{number} of {len(some)} after {time.monotonic() - began:.0f} s, {sum(causes.values())} failures",
                flush=True,
            )
    print(f"\n{'target':22} {'cases':>7} {'read':>7} {'refused':>8} {'failed':>7} {'slowest, CPU s':>15}")
    for name in sorted(counts):
        found = counts[name]
        print(
            f"{name:22} {sum(found.values()):7} {found['read']:7} {found['refused']:8} {found['failed']:7} "
            f"{slowest[name].seconds:10.2f} "
            f"({slowest[name].seed})"
        )
    total = Counter[str]()
    for found in counts.values():
        total.update(found)
    print(f"{'all':22} {sum(total.values()):7} {total['read']:7} {total['refused']:8} {total['failed']:7}")
    print(f"{time.monotonic() - began:.0f} s, {args.jobs} jobs; limit {LIMIT_S} s per case")
    for (target, kind, where), count in causes.most_common():
        print(f"{count:6} x {target} {kind}: {where}")
    sys.exit(1 if causes else 0)


if __name__ == "__main__":
    main()
