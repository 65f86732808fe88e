"""Runs damaged inputs in a child process, so that a crash of it is seen; every case is a target's name and a seed.

A case fails when anything but a DefectoryError comes out, when its message is not one line, when it takes more than
`LIMIT_S` of processor time, or when the process ends.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LIMIT_S = 4.0
"""Processor time of one case: a busy or slow machine must not fail it. It was 2 s, of a processor twice as fast."""
MEMORY_BYTES = 8 << 30
"""Address space of a child, so that an input that asks for more ends in an error in place of a full machine."""
SILENT_S = 120.0
"""A child that says nothing for so long hangs in a call that nothing interrupts."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one case: `read`, `refused`, or how it failed."""

    target: str
    seed: int
    kind: str
    seconds: float
    error: str = ""
    where: str = ""
    """Innermost line of ours."""

    @property
    def failed(self) -> bool:
        """Tell whether it is anything but read or refused."""
        return self.kind not in ("read", "refused")


def _import_paths() -> list[str]:
    """Return where a child finds these tests, and what this process was told to import from."""
    return [str(Path(__file__).resolve().parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]


class Plain(random.Random):
    """Draws the first of everything, and no chance comes true: options are those that a user has who gives none."""

    def random(self) -> float:
        return 0.999

    def choice(self, seq: Sequence[Any]) -> Any:
        return seq[0]

    def sample(self, population: Sequence[Any], k: int, **_: Any) -> list[Any]:
        return list(population[:k])


class TooSlow(BaseException):
    """A case took more processor time than it may."""


def cases(count: int, seed: int) -> list[tuple[str, int]]:
    """Return the cases of a run: target names by weight, and their seeds."""
    from .targets import TARGETS

    rng = random.Random(seed)
    names = rng.choices([target.name for target in TARGETS], [target.weight for target in TARGETS], k=count)
    return [(name, seed * 10_000_000 + number) for number, name in enumerate(names)]


class Workbench:
    """The valid inputs in a folder, each made once, damaged for a case and mended afterwards."""

    def __init__(self, folder: Path) -> None:
        from .targets import TARGETS

        self._folder = folder
        self._targets = {target.name: target for target in TARGETS}
        self._made: dict[str, tuple[Path, dict[str, bytes]]] = {}

    def run(self, name: str, seed: int) -> Outcome:
        """Run one case."""
        root, _ = self._set(name)
        rng = random.Random(f"{name} {seed}")
        try:
            self._damage(name, root, rng)
            return self._read(name, seed, rng)
        finally:
            self._mend(name)

    def damaged(self, name: str, seed: int, out: Path) -> Path:
        """Write the damaged input of a case into a new folder and return that folder."""
        root, _ = self._set(name)
        try:
            self._damage(name, root, random.Random(f"{name} {seed}"))
            return Path(shutil.copytree(root, out, symlinks=True))
        finally:
            self._mend(name)

    def run_whole(self, name: str) -> Outcome:
        """Run a target on its valid input."""
        self._set(name)
        return self._read(name, 0, Plain())

    def _set(self, name: str) -> tuple[Path, dict[str, bytes]]:
        if name not in self._made:
            root = self._folder / name.replace("/", "-") / "set"
            root.mkdir(parents=True)
            path = self._targets[name].make(root)
            content = {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
            self._made[name] = path, content
        root = self._folder / name.replace("/", "-") / "set"
        return root, self._made[name][1]

    def _damage(self, name: str, root: Path, rng: random.Random) -> None:
        from .mutators import TEXT_SUFFIXES, mutated

        content = self._made[name][1]
        texts = [file for file in content if Path(file).suffix in TEXT_SUFFIXES]
        for _ in range(rng.choice((1, 1, 1, 2))):
            file = rng.choice(texts) if texts and rng.random() < 0.8 else rng.choice(list(content))
            path = root / file
            if rng.random() < 0.04:
                damage_folder(path, root, rng)
            elif path.is_file() and not path.is_symlink():
                path.write_bytes(mutated(file, path.read_bytes(), rng, list(content.values())))

    def _mend(self, name: str) -> None:
        root, content = self._set(name)
        for path in sorted(root.rglob("*"), key=lambda path: -len(path.parts)):
            file = path.relative_to(root).as_posix()
            if path.is_symlink() or path.is_file():
                if file not in content or path.is_symlink():
                    path.unlink()
            elif not any(known.startswith(f"{file}/") for known in content):
                shutil.rmtree(path)
        for file, data in content.items():
            path = root / file
            if not path.is_file() or path.read_bytes() != data:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)

    def _read(self, name: str, seed: int, rng: random.Random) -> Outcome:
        from defectory.errors import DefectoryError

        from .targets import require_line

        began = time.process_time()
        kind, error, where = "read", "", ""
        try:
            with limited_time():
                self._targets[name].read(self._made[name][0], rng)
        except DefectoryError as refused:
            kind, error = "refused", str(refused)
            try:
                require_line(refused)
            except AssertionError as failure:
                kind, error, where = "message", str(failure), innermost(refused)
        except TooSlow as slow:
            kind, where = "slow", innermost(slow)
        except BaseException as failure:
            kind, error, where = type(failure).__name__, str(failure)[:500], innermost(failure)
        seconds = time.process_time() - began
        if seconds > LIMIT_S and kind in ("read", "refused"):
            kind = "slow"
        return Outcome(target=name, seed=seed, kind=kind, seconds=round(seconds, 3), error=error, where=where)


def damage_folder(path: Path, root: Path, rng: random.Random) -> None:
    """Remove a file, or put something else in its place."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    kind = rng.randrange(6)
    with contextlib.suppress(OSError):
        if kind == 1:
            path.mkdir()
        elif kind == 2:
            path.symlink_to(rng.choice((path.name, "/etc/hostname", "..", "/dev/null", "nothing")))
        elif kind == 3:
            path.write_bytes(b"")
        elif kind == 4:
            (
                path.parent
                / rng.choice(
                    (
                        "a" * 200 + path.suffix,
                        os.fsdecode(b"\xff\xfe" + path.suffix.encode()),
                        f" {path.name}",
                        path.name.upper(),
                    )
                )
            ).write_bytes(b"x")
        elif kind == 5:
            shutil.rmtree(path.parent if path.parent != root else root, ignore_errors=True)
            root.mkdir(exist_ok=True)


@contextlib.contextmanager
def limited_time() -> Iterator[None]:
    """Raise TooSlow in a block that takes more processor time than a case may."""

    def stop(signal_number: int, frame: object) -> None:
        raise TooSlow

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def innermost(error: BaseException) -> str:
    """Return the innermost line of ours in a traceback, and the line in which it ended."""
    frames = traceback.extract_tb(error.__traceback__)
    told = [
        f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames if "defectory" in frame.filename
    ]
    last = f"{Path(frames[-1].filename).name}:{frames[-1].lineno} {frames[-1].name}" if frames else ""
    return " < ".join([*dict.fromkeys([last, *reversed(told[-3:])])])


def child(folder: str) -> None:
    """Run the cases of standard input in this process; say before each which it is, and after each what came of it."""
    some: list[tuple[str, int]] = json.load(sys.stdin)
    said = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    bench = Workbench(Path(folder))
    for name, seed in some:
        print(json.dumps({"target": name, "seed": seed}), file=said, flush=True)
        print(json.dumps(asdict(bench.run(name, seed))), file=said, flush=True)


def run_cases(some: Sequence[tuple[str, int]]) -> Iterator[Outcome]:
    """Run cases in a child process and yield what came of each; where the child dies or hangs, another one goes on
    after that case.
    """
    pending = list(some)
    # in memory where there is such a place: nothing waits for a disk there
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    while pending:
        with tempfile.TemporaryFile("w+") as errors, tempfile.TemporaryDirectory(dir=memory) as folder:
            process = subprocess.Popen(
                [sys.executable, "-c", "import sys; from fuzz.harness import child; child(sys.argv[1])", folder],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(_import_paths()), "OMP_NUM_THREADS": "1"},
            )
            assert process.stdin is not None
            json.dump(pending, process.stdin)
            process.stdin.close()
            begun: tuple[str, int] | None = None
            for line in lines_of(process):
                content = json.loads(line)
                if "kind" in content:
                    pending.pop(0)
                    begun = None
                    yield Outcome(**content)
                else:
                    begun = content["target"], content["seed"]
            process.wait()
            if begun is None and pending:
                errors.seek(0)
                raise RuntimeError(f"the fuzzer's child ended with {process.returncode}: {errors.read()[-2000:]}")
            if begun is not None:
                pending.pop(0)
                errors.seek(0)
                code = process.returncode
                kind = (
                    "hang"
                    if code == -signal.SIGKILL
                    else f"ended with {signal.Signals(-code).name if code < 0 else code}"
                )
                yield Outcome(target=begun[0], seed=begun[1], kind=kind, seconds=0.0, error=errors.read()[-1500:])


def lines_of(process: subprocess.Popen[str]) -> Iterator[str]:
    """Yield what a child says; kill it where it says nothing for `SILENT_S`."""
    import threading

    assert process.stdout is not None
    watch: threading.Timer | None = None

    def start() -> threading.Timer:
        timer = threading.Timer(SILENT_S, process.kill)
        timer.daemon = True
        timer.start()
        return timer

    watch = start()
    try:
        for line in process.stdout:
            watch.cancel()
            watch = start()
            yield line
    finally:
        watch.cancel()
