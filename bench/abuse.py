"""What a run survives: kills, full disks, power cuts, two processes at once, and `--out` folders that hold a user's
things.

    python bench/abuse.py kills --times 200
    python bench/abuse.py disks --times 100      (root: mounts a small tmpfs)
    python bench/abuse.py power --times 30       (root: mounts a loop image of ext4, copied while it is in use, as a
                                                 power cut leaves it)
    python bench/abuse.py pairs --times 20
    python bench/abuse.py outs

Several campaigns named together share one project and its undisturbed run.
All use a project of a random-weight base of 0.1 M parameters that has every stage; a run takes seconds. A blow falls at
a random moment, the run is started again, and so on until it is whole; then its outcomes must have the digests of a run
that nothing disturbed, and a user's files beside and inside the run folder must be what they were. Prints one line per
whole run and a table at the end; exit code 1 for any loss.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

TESTS = Path(__file__).resolve().parents[1] / "tests"
NOT_OUTCOMES = ("stage.json", ".defectory.json", "inputs.txt", "report.html", "content.json", "project.json")
"""They tell times, or stand beside what a stage made."""


def module_of(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def make_project(folder: Path) -> None:
    """A source, a base, a project file and a user's own files beside them."""
    from defectory import Project
    from defectory.procedural.borescope import write_dataset

    tiny = module_of("tiny", TESTS / "conftest.py")
    folder.mkdir(parents=True, exist_ok=True)
    tiny.make_tiny_base(folder / "base")
    write_dataset(folder / "source", seed=0, num_labelled=28, num_defect_free=12, size_hw=(64, 88))
    values = tiny.tiny_settings(Path("base"))
    values["num_processes"] = 1
    Project.create(folder / "project.toml", data=folder / "source" / "annotations.json", preset=None, settings=values)
    (folder / "notes.txt").write_text("two years of work\n")


def child(folder: Path, *arguments: str, log: Path) -> int:
    """Fork a process that runs the command line in a folder; give its pid."""
    pid = os.fork()
    if pid:
        return pid
    code: object = 1
    try:
        os.chdir(folder)
        stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        sys.argv = ["defectory", *arguments]
        from defectory.cli.main import main

        main()
        code = 0
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 99
    finally:
        sys.stdout.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


def run_command(folder: Path, *arguments: str, log: Path) -> tuple[int, str]:
    """Run the command line in a forked process; give exit code and what it printed."""
    status = os.waitpid(child(folder, *arguments, log=log), 0)[1]
    return os.waitstatus_to_exitcode(status), log.read_text(errors="replace")


def outcomes(run: Path) -> dict[str, str]:
    """Digests of all that stages made."""
    found: dict[str, str] = {}
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        hidden = any(part.startswith(".") for part in path.relative_to(run).parts)
        if (
            path.is_file()
            and not hidden
            and not name.startswith("cache/")
            and path.name not in NOT_OUTCOMES
            and path.parent.name != "report"
        ):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def users_files(folder: Path) -> dict[str, str]:
    """Digests of what is the user's: everything but the run folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "run" not in path.relative_to(folder).parts[:1]
    }


def stage_of(log: str) -> str:
    """The last stage that a log names as done."""
    lines = [line for line in log.splitlines() if line.startswith("{")]
    for line in reversed(lines):
        try:
            return str(json.loads(line).get("stage", ""))
        except json.JSONDecodeError:
            continue
    return "start"


class Bench:
    """A project, the outcomes of a run that nothing disturbed, and what went wrong."""

    def __init__(self, work: Path, seed: int) -> None:
        self.work, self.rng = work, random.Random(seed)
        self.losses: list[str] = []
        self.hits: Counter[str] = Counter()
        make_project(work / "project")
        shutil.copytree(work / "project", work / "reference")
        began = time.monotonic()
        code, log = run_command(work / "reference", "run", "project.toml", "--json", log=work / "log.txt")
        self.seconds = time.monotonic() - began
        if code != 0:
            sys.exit(f"the undisturbed run ended with {code}: {log[-2000:]}")
        self.right, self.users = outcomes(work / "reference" / "run"), users_files(work / "project")
        print(f"undisturbed run: {self.seconds:.1f} s, {len(self.right)} files", flush=True)

    def compare(self, folder: Path, what: str) -> None:
        """Hold a whole run against the undisturbed one."""
        found = outcomes(folder / "run")
        differing = sorted(name for name in self.right.keys() | found.keys() if self.right.get(name) != found.get(name))
        if differing:
            self.losses.append(f"{what}: {len(differing)} outcomes differ, first {differing[0]}")
        users = users_files(folder)
        if users != self.users:
            self.losses.append(
                f"{what}: a user's files changed: {sorted(set(users.items()) ^ set(self.users.items()))[:2]}"
            )
        left = [p for p in folder.rglob(".*") if ".tmp" in p.name and "run" in p.parts]
        if left:
            self.losses.append(f"{what}: left behind {left[0].name}")
        print(f"{what}: whole, {'as undisturbed' if not differing else 'NOT AS UNDISTURBED'}", flush=True)

    def failed(self, code: int, log: str, what: str) -> bool:
        """Note an end that is neither success nor one clear line."""
        if code == 0:
            return False
        if "Traceback" in log or code not in (1, 2, 130):
            self.losses.append(f"{what}: exit code {code}: {log.strip().splitlines()[-1] if log.strip() else ''}")
        return True

    def end(self, what: str, times: int) -> int:
        """Print the table."""
        print(f"\n| {what} after stage | times |\n|---|---|")
        for stage, count in sorted(self.hits.items()):
            print(f"| {stage} | {count} |")
        print(f"\n{times} {what}, {len(self.losses)} losses")
        for loss in self.losses:
            print(f"LOSS {loss}")
        self.hits.clear()
        return int(bool(self.losses))


def kills(bench: Bench, times: int) -> int:
    """SIGKILL at random moments."""
    done = rounds = 0
    while done < times:
        folder = bench.work / "killed"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(bench.work / "project", folder)
        while True:
            pid = child(folder, "run", "project.toml", "--json", log=bench.work / "log.txt")
            until = time.monotonic() + bench.rng.uniform(0.02, bench.seconds * 0.4)
            status: int | None = None
            while time.monotonic() < until and status is None:
                found, code = os.waitpid(pid, os.WNOHANG)
                status = code if found else None
                time.sleep(0.002)
            if status is None:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                done += 1
                bench.hits[stage_of((bench.work / "log.txt").read_text(errors="replace"))] += 1
                continue
            if bench.failed(
                os.waitstatus_to_exitcode(status),
                (bench.work / "log.txt").read_text(errors="replace"),
                f"after {done} kills",
            ):
                return bench.end("kills", done)
            break
        rounds += 1
        bench.compare(folder, f"run {rounds}, {done} kills so far")
    return bench.end("kills", done)


@contextmanager
def mounted(*arguments: str, at: Path) -> Iterator[Path]:
    at.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", *arguments, str(at)], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)


def disks(bench: Bench, times: int) -> int:
    """A disk that is full in each stage in turn: the run is whole up to it, and next to nothing is free."""
    reference = bench.work / "reference" / "run"
    folders = sorted(
        {path.parent for path in reference.rglob("stage.json")}, key=lambda p: (p / "stage.json").stat().st_mtime_ns
    )
    done = rounds = 0
    while done < times:
        first = rounds % len(folders)
        with mounted("-t", "tmpfs", "-o", "size=512m", "tmpfs", at=bench.work / "small") as disk:
            folder = disk / "project"
            shutil.copytree(bench.work / "reference", folder)
            for gone in folders[first:]:
                shutil.rmtree(folder / "run" / gone.relative_to(reference))
            for free_bytes in (bench.rng.randrange(4_000, 40_000), bench.rng.randrange(40_000, 400_000)):
                space = shutil.disk_usage(disk).free
                with open(disk / "filler", "wb") as filler:
                    os.posix_fallocate(filler.fileno(), 0, max(4096, space - free_bytes))
                code, log = run_command(folder, "run", "project.toml", "--json", log=bench.work / "log.txt")
                what = f"full disk {done}, {free_bytes} bytes free, from {folders[first].name}"
                (disk / "filler").unlink(missing_ok=True)
                if bench.failed(code, log, what):
                    done += 1
                    bench.hits[stage_of(log)] += 1
            code, log = run_command(folder, "run", "project.toml", "--json", log=bench.work / "log.txt")
            if bench.failed(code, log, f"after {done} full disks"):
                bench.losses.append(f"after {done} full disks: {log[-300:]}")
                return bench.end("full disks", done)
            rounds += 1
            bench.compare(folder, f"run {rounds}, {done} full disks so far")
    return bench.end("full disks", done)


def power(bench: Bench, times: int) -> int:
    """The file system as a power cut leaves it: what has reached the block device, and nothing else."""
    done = rounds = 0
    image, cut = bench.work / "disk.img", bench.work / "cut.img"
    options = ("-o", "loop,noauto_da_alloc,commit=300")
    while done < times:
        with open(image, "wb") as stream:
            stream.truncate(192 * 2**20)
        subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
        with mounted(*options, str(image), at=bench.work / "disk") as disk:
            shutil.copytree(bench.work / "project", disk / "project")
            os.sync()
        while True:
            with mounted(*options, str(image), at=bench.work / "disk") as disk:
                pid = child(disk / "project", "run", "project.toml", "--json", log=bench.work / "log.txt")
                until = time.monotonic() + bench.rng.uniform(0.3, bench.seconds / 2.5)
                status: int | None = None
                while time.monotonic() < until and status is None:
                    found, code = os.waitpid(pid, os.WNOHANG)
                    status = code if found else None
                    time.sleep(0.002)
                # the device's content now, as the plug is pulled; what the process does after it is lost
                if status is None:
                    os.kill(pid, signal.SIGSTOP)
                shutil.copyfile(image, cut)
                if status is None:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                log = (bench.work / "log.txt").read_text(errors="replace")
                if status is not None and bench.failed(
                    os.waitstatus_to_exitcode(status), log, f"after {done} power cuts"
                ):
                    return bench.end("power cuts", done)
            done += 1
            bench.hits[stage_of(log)] += 1
            os.replace(cut, image)
            if status is not None:
                break
        with mounted(*options, str(image), at=bench.work / "disk") as disk:
            code, log = run_command(disk / "project", "run", "project.toml", "--json", log=bench.work / "log.txt")
            if bench.failed(code, log, f"after {done} power cuts"):
                return bench.end("power cuts", done)
            rounds += 1
            bench.compare(disk / "project", f"run {rounds}, {done} power cuts so far")
    return bench.end("power cuts", done)


def pairs(bench: Bench, times: int) -> int:
    """Two processes on one run folder, alike or with other settings, started at once or a little apart."""
    second = (
        ["run"],
        ["synthesize", "-o", "synthesis.num_inference_steps=3"],
        ["run", "-o", "seed=1"],
        ["export"],
        ["segment"],
    )
    for number in range(times):
        folder = bench.work / "pair"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(bench.work / ("reference" if number % 4 == 3 else "project"), folder)
        logs = bench.work / "log-a.txt", bench.work / "log-b.txt"
        first = child(
            folder,
            "run",
            "project.toml",
            "--json",
            *(("-o", "synthesis.num_inference_steps=4") if number % 4 == 3 else ()),
            log=logs[0],
        )
        time.sleep(bench.rng.uniform(0.0, 1.5))
        verb, *more = second[number % len(second)]
        other = child(folder, verb, "project.toml", *more, "--json", log=logs[1])
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in (first, other)]
        for code, log in zip(codes, logs, strict=True):
            text = log.read_text(errors="replace")
            if bench.failed(code, text, f"pair {number}") and str(first if log == logs[1] else other) not in text:
                bench.losses.append(
                    f"pair {number}: the one that stopped does not name the other's pid: "
                    f"{text.strip().splitlines()[-1]}"
                )
        bench.hits[f"exit codes {codes[0]} and {codes[1]}"] += 1
        code, log = run_command(folder, "run", "project.toml", "--json", log=bench.work / "log.txt")
        if not bench.failed(code, log, f"run after pair {number}"):
            bench.compare(folder, f"pair {number}, {verb} {' '.join(more)}, exit codes {codes}")
        if code != 0:
            bench.losses.append(f"pair {number}: the run after it ended with {code}")
    return bench.end("pairs", times)


def wrong_outs(folder: Path) -> dict[str, str]:
    """Places that `--out` must not touch, by what they are; all relative to the project's folder."""
    mine = folder / "mine"
    (mine / "data" / "deep").mkdir(parents=True)
    (mine / "data" / "deep" / "a.txt").write_text("mine\n")
    (mine / "images").mkdir()
    (mine / "images" / "b.png").write_bytes(b"mine")
    (folder / "file.txt").write_text("mine\n")
    (folder / "link").symlink_to(mine)
    (folder / "dangling").symlink_to(folder / "nowhere")
    return {
        "a user's folder": "mine",
        "a file": "file.txt",
        "a link to a user's folder": "link",
        "a link to nowhere": "dangling",
        "the current folder": ".",
        "its parent": "..",
        "the source": "source",
        "a folder that holds the source": str(folder),
        "/": "/",
        "below a file": "file.txt/out",
    }


def tree_of(folder: Path) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): str(p.readlink())
        if p.is_symlink()
        else hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if (p.is_file() or p.is_symlink()) and "run" not in p.relative_to(folder).parts[:1]
    }


def outs(bench: Bench, _: int) -> int:
    """Every verb that writes somewhere, with every wrong place."""
    folder = bench.work / "outs"
    shutil.copytree(bench.work / "reference", folder)
    places = wrong_outs(folder)
    image = next((folder / "source" / "images").glob("*.png"))
    config = ("project.toml",)
    verbs: dict[str, tuple[str, ...]] = {
        "import": ("import", "source/annotations.json", "--out"),
        "insert": ("insert", *config, "--image", str(image), "--out"),
        "masks review": ("masks", "review", *config, "--out"),
        "predict": ("predict", str(image), "-m", "run/segment/real-seed0", "--out"),
        "drivers extract": ("drivers", "extract", *config, "--out"),
        "drivers compare": ("drivers", "compare", *config, "--out"),
        "masks preview": ("masks", "preview", *config, "--out"),
        "demo": ("demo", "--out"),
        "export": ("export", *config, "--format", "coco", "--out"),
        "base world": ("base", "world", "--out"),
        "run with out =": ("run", "project.toml", "-o"),
    }
    before, count = tree_of(folder), 0
    for verb, arguments in verbs.items():
        for what, place in places.items():
            last = f"out={json.dumps(place)}" if verb.startswith("run") else place
            code, log = run_command(folder, *arguments, last, log=bench.work / "log.txt")
            count += 1
            said = log.strip().splitlines()
            if "Traceback" in log or code == 99:
                bench.losses.append(f"{verb} onto {what}: traceback: {said[-1]}")
            elif code != 2:
                bench.losses.append(f"{verb} onto {what}: exit code {code}: {said[-1] if said else ''}")
            if tree_of(folder) != before:
                bench.losses.append(f"{verb} onto {what}: a user's files changed")
                print("\n".join(bench.losses))
                return 1
            print(
                f"{verb} onto {what}: exit code {code}: {(said[-1] if said else '').replace(str(folder), '')}",
                flush=True,
            )
    bench.hits["pairs of a verb and a wrong place"] = count
    return bench.end("wrong places", count)


def main() -> int:
    """Run campaigns on one project."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=("kills", "disks", "power", "pairs", "outs"))
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    import torch
    import torchvision  # noqa: F401  # loaded once, before the forks

    torch.set_num_threads(1)
    import defectory.concept.learn
    import defectory.condition.learn
    import defectory.segmentation.training
    import defectory.stages.all
    import defectory.synthesis.full  # noqa: F401

    campaigns: dict[str, Any] = {"kills": kills, "disks": disks, "power": power, "pairs": pairs, "outs": outs}
    with tempfile.TemporaryDirectory(prefix="abuse-") as work:
        bench = Bench(Path(work), chosen.seed)
        return max(campaigns[what](bench, chosen.times) for what in chosen.what)


if __name__ == "__main__":
    sys.exit(main())
