"""Compares a run with its digests, and reports missing and changed files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from defectory.errors import StageError
from defectory.files import BOOKKEEPING, MANIFEST_NAME, MARKER_NAME, digest_file, read_manifest
from defectory.folders.claims import SYSTEM_LITTER
from defectory.folders.marker import files_of, in_threads, read_marker
from defectory.runs.stage import Run, Stage, work_folder


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Result of checking one stage.

    Attributes:
        stage: its name.
        state: `whole`, `damaged`, `not run` or `unfinished` (begun but not complete).
        missing: files that the manifest names but that do not exist.
        changed: files that differ from the manifest, and a manifest or marker that cannot be read.
        extra: files that the stage did not write; they are harmless.
    """

    stage: str
    state: str
    missing: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()

    @property
    def damage(self) -> str:
        """Describe the damage; empty if there is none."""
        told: list[str] = []
        for names, verb in ((self.missing, "missing"), (self.changed, "changed or damaged")):
            if names:
                told.append(f"{names[0]} {'is' if len(names) == 1 else f'and {len(names) - 1} more are'} {verb}")
        return ", ".join(told)


def verify_stage(run: Run, stage: Stage) -> Finding:
    """Compare a stage's result with its manifest, and read every file."""
    folder = run.folder / stage.folder
    if not (folder / MANIFEST_NAME).is_file() and not (folder / MARKER_NAME).is_file():
        begun = read_marker(work_folder(run, stage)) is not None
        return Finding(stage=stage.name, state="unfinished" if begun else "not run")
    manifest, marker = read_manifest(folder), read_marker(folder)
    if manifest is None:
        is_missing = not (folder / MANIFEST_NAME).is_file()
        names = (MANIFEST_NAME,)
        return Finding(
            stage=stage.name, state="damaged", missing=names if is_missing else (), changed=() if is_missing else names
        )
    files: dict[str, str] = dict(manifest["files"])
    if marker is None:
        files[MARKER_NAME] = ""
    elif MANIFEST_NAME in marker.files:
        files[MANIFEST_NAME] = str(marker.files[MANIFEST_NAME]["sha256"])
    found = dict(zip(files, in_threads(lambda name: _digest(folder / name), list(files)), strict=True))
    missing = tuple(name for name, digest in found.items() if digest is None)
    changed = tuple(name for name, digest in found.items() if digest not in (None, files[name]))
    known = {*files, MANIFEST_NAME}
    extra = tuple(
        name
        for name in files_of(folder)
        if name not in known and Path(name).name not in BOOKKEEPING and Path(name).name.lower() not in SYSTEM_LITTER
    )
    state = "damaged" if missing or changed else "whole"
    return Finding(stage=stage.name, state=state, missing=missing, changed=changed, extra=extra)


def _digest(path: Path) -> str | None:
    try:
        return digest_file(path)
    except FileNotFoundError:
        return None
    except OSError:
        # a bad sector, or a folder in its place
        return "unreadable"


def verify_run(run: Run, stages: Iterable[Stage]) -> Iterator[Finding]:
    """Yield the finding of each stage, in order."""
    for stage in stages:
        yield verify_stage(run, stage)


@dataclass(kw_only=True)
class Verified:
    """Results that this process has compared with their digests, once each.

    Attributes:
        trusted: the parent process has already checked everything that is read.
    """

    trusted: bool = False
    _found: dict[str, Finding] = field(default_factory=lambda: dict[str, Finding]())

    def of(self, run: Run, stage: Stage) -> Finding:
        """Return the finding of a stage; its files are read once."""
        if stage.name not in self._found:
            self._found[stage.name] = verify_stage(run, stage)
        return self._found[stage.name]

    def made(self, stage: Stage) -> None:
        """Record that a stage has just finished."""
        self._found[stage.name] = Finding(stage=stage.name, state="whole")

    def require(self, run: Run, stages: Iterable[Stage]) -> None:
        """Require that results are whole before they are read.

        Raises:
            StageError: one is damaged.
        """
        for stage in () if self.trusted else stages:
            finding = self.of(run, stage)
            if finding.state == "damaged":
                raise StageError(
                    f"{run.folder / stage.folder}: {finding.damage}; `defectory run` makes stage {stage.name} anew"
                )
