"""Makes a stage's result beside the old one, and swaps it in once it is whole."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from defectory.errors import OutputError
from defectory.events import Event, Notice, Progress, StageEnded, Work, relayed
from defectory.files import (
    BOOKKEEPING,
    DRAWN_NAME,
    MANIFEST_NAME,
    MARKER_NAME,
    canonical_json,
    digest_file,
    finish_stage,
    in_progress,
    read_manifest,
    reason_of,
    write_bytes,
)
from defectory.folders.claims import is_empty, require_replaceable, require_space
from defectory.folders.marker import (
    Marker,
    files_of,
    in_threads,
    is_ours,
    read_marker,
    record_files,
    require_unchanged,
    write_marker,
)
from defectory.folders.swap import WORK_NAME, publish, recover, remove_ours, retire
from defectory.lock import TurnLock, process_identity
from defectory.runs.out_of_memory import is_out_of_memory, out_of_memory
from defectory.runs.siblings import take_over, take_turn
from defectory.runs.sources import MissingSource
from defectory.runs.stage import Inputs, Run, Stage, inputs_of, work_folder
from defectory.runs.store import RunStore
from defectory.runs.verify import Finding, Verified

T = TypeVar("T")
KIND = "stage"
MAX_SETTING = 200
"""Longest setting, in characters, that a manifest stores as text."""


Make = Callable[[Run, Stage, RunStore, Path], Work[str]]
"""Makes the result of a stage from a view of its inputs, in its work folder, and returns the summary."""


def make_here(run: Run, stage: Stage, inputs: RunStore, work: Path) -> Work[str]:
    """Make the result of a stage in this process."""
    return stage.run(inputs, run.config, work)


def run_stage(
    run: Run, stage: Stage, stages: Mapping[str, Stage], *, verified: Verified | None = None, make: Make = make_here
) -> Iterator[Event]:
    """Run one stage unless its result is whole and up to date; keep the old result until the new one is on disk.

    Args:
        run: resolved configuration and folders.
        stage: to run.
        stages: all of the run's, by name.
        verified: results already compared with their digests.
        make: makes the result, here or elsewhere.

    Raises:
        StageError: a result that the stage reads is damaged.
        OutputError: the folder is not Defectory's, cannot be written or is full; an old result is kept.
    """
    began, verified = time.monotonic(), verified or Verified()
    folder, work = run.folder / stage.folder, work_folder(run, stage)
    recover(folder)
    inputs = inputs_of(run, stage, stages)
    _finish_swap(work, folder, inputs)
    manifest = read_manifest(folder)
    finding = _with_mended_marker(run, stage, inputs, verified)
    if manifest is not None and finding.state == "whole" and inputs.describe(manifest):
        for path in sorted(set(inputs.missing.values())):
            yield Notice(stage=stage.name, text=f"{path} is not there; what was made from it is used as it is")
        yield from _copy_up(run, stage)
        yield StageEnded(stage=stage.name, seconds=0.0, skipped=True, summary=str(manifest["info"]["summary"]))
        return
    if finding.state == "damaged":
        yield Notice(stage=stage.name, text=f"damaged ({finding.damage}); it is made anew")
        _set_aside(folder)
    read = [stages[name] for name in stage.inputs(run.config)]
    verified.require(run, read)
    require_replaceable(folder, kind=KIND, addressed=False)
    _require_space(folder)
    mended = finding if stage.is_mendable and finding.state == "damaged" and inputs.describe(manifest) else None
    _prepare(run, stage, inputs, old=mended)
    turn: TurnLock | None = None
    try:
        turn = yield from _named(take_turn(run, inputs), stage.name)
        with in_progress(work):
            taken = take_over(run, stage, inputs, work)
            if taken is None:
                view = run.store().view([of.folder for of in read], reader=stage.name)
                summary = yield from _named(make(run, stage, view, work), stage.name)
            else:
                summary = taken.summary
            files = _digests(work)
            seconds = time.monotonic() - began if taken is None else taken.seconds
            finish_stage(
                work,
                inputs_digest=inputs.digest,
                inputs=inputs.parts,
                settings={name: value for name, value in inputs.settings.items() if _is_short(value)},
                files=files,
                summary=summary,
                seconds=seconds,
            )
        _swap_in(work, folder, files)
    except BaseException as error:
        if not stage.is_resumable:
            remove_ours(work)
        if is_out_of_memory(error):
            raise out_of_memory(stage.name, run.config) from error
        raise
    finally:
        if turn is not None:
            turn.release()
    verified.made(stage)
    yield from _copy_up(run, stage)
    yield StageEnded(stage=stage.name, seconds=seconds, skipped=taken is not None, summary=summary)


def _named(work: Work[T], name: str) -> Work[T]:
    """Pass on the events of a stage, with its name."""

    def told(event: Progress | Notice) -> Iterable[Progress | Notice]:
        stage = event.stage or name
        # training events carry more detail; a run and its child processes use only these two
        if isinstance(event, Notice):
            yield Notice(text=event.text, stage=stage)
        else:
            yield Progress(done=event.done, total=event.total, note=event.note, stage=stage)

    return relayed(work, told)


def _digests(work: Path) -> dict[str, str]:
    names = [name for name in files_of(work) if Path(name).name not in BOOKKEEPING and name != MANIFEST_NAME]
    return dict(zip(names, in_threads(lambda name: digest_file(work / name), names), strict=True))


def _is_short(value: object) -> bool:
    """Check whether a setting is short enough to store as text, so that a change can be reported."""
    return not isinstance(value, MissingSource) and len(canonical_json(value)) <= MAX_SETTING


def _with_mended_marker(run: Run, stage: Stage, inputs: Inputs, verified: Verified) -> Finding:
    """Return the finding of a stage; rewrite the marker if nothing else is damaged."""
    finding, folder = verified.of(run, stage), run.folder / stage.folder
    if finding.state != "damaged" or {*finding.missing, *finding.changed} != {MARKER_NAME}:
        return finding
    if not inputs.describe(read_manifest(folder)):
        return finding
    _mend_marker(folder)
    verified.made(stage)
    return verified.of(run, stage)


def _swap_in(work: Path, folder: Path, files: dict[str, str] | None) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        publish(work, folder, kind=KIND, digests=files, keep_changed=False)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(folder, f"cannot be written ({reason_of(error)})", "free space and run again") from error


def _prepare(run: Run, stage: Stage, inputs: Inputs, *, old: Finding | None) -> None:
    """Make the work folder; keep partial work of the same inputs and the whole files of a damaged result."""
    work = work_folder(run, stage)
    make_work_root(run)
    try:
        marker = read_marker(work)
        if not (
            stage.is_resumable
            and marker is not None
            and marker.maker is not None
            and marker.maker.get("inputs") == inputs.digest
        ):
            remove_ours(work)
            work.mkdir(parents=True)
        write_marker(work, Marker(kind=KIND, maker={**process_identity(), "inputs": inputs.digest}))
        (work / MANIFEST_NAME).unlink(missing_ok=True)
        if old is not None and not (work / DRAWN_NAME).exists():
            _take_over((run.folder / stage.folder), work, old)
    except OSError as error:
        raise OutputError(work, f"cannot be written ({reason_of(error)})", "free space and run again") from error


def make_work_root(run: Run) -> None:
    """Make the folder in which stages work. Several processes may call this at once."""
    root = run.folder / WORK_NAME
    if is_ours(root, kind="work"):
        return
    try:
        if root.exists() and not is_empty(root):
            _set_aside(root)
        # created together with its marker, or another process would take it for someone else's
        new = root.with_name(f"{WORK_NAME}.{os.getpid()}")
        new.mkdir(exist_ok=True)
        write_marker(new, Marker(kind="work"))
        try:
            new.rename(root)
        except OSError:
            remove_ours(new)
            if not is_ours(root, kind="work"):
                raise
    except OSError as error:
        raise OutputError(root, f"cannot be written ({reason_of(error)})", "free space and run again") from error


def _take_over(folder: Path, work: Path, finding: Finding) -> None:
    manifest = read_manifest(folder)
    assert manifest is not None
    whole = {name: sha for name, sha in manifest["files"].items() if name not in {*finding.missing, *finding.changed}}
    for name in whole:
        target = work / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(folder / name, target)
        except OSError:
            shutil.copy2(folder / name, target)
    (work / DRAWN_NAME).write_text("".join(f"{sha} {name}\n" for name, sha in whole.items()))


def _finish_swap(work: Path, folder: Path, inputs: Inputs) -> None:
    """Complete a swap that was interrupted: move a whole new result in, and remove a whole old one."""
    marker = read_marker(work)
    if marker is None or marker.maker is not None:
        return
    if inputs.describe(read_manifest(work)) and not inputs.describe(read_manifest(folder)):
        _swap_in(work, folder, None)
    elif is_ours(folder, kind=KIND):
        retire(work, folder, keep_changed=False)
    else:
        remove_ours(work)


def _mend_marker(folder: Path) -> None:
    write_marker(folder, Marker(kind=KIND))
    manifest = read_manifest(folder)
    assert manifest is not None
    record_files(folder, [*manifest["files"], MANIFEST_NAME], digests=dict(manifest["files"]))


def _set_aside(folder: Path) -> None:
    """Rename a folder with a damaged marker, so that its content is not lost."""
    if is_ours(folder):
        return
    number, target = 1, folder.with_name(f"{folder.name}.damaged")
    while os.path.lexists(target):
        number, target = number + 1, folder.with_name(f"{folder.name}.damaged-{number + 1}")
    folder.rename(target)


def _require_space(folder: Path) -> None:
    """Require disk space for a second result of the old one's size.

    Raises:
        OutputError: it is too small.
    """
    marker = read_marker(folder)
    if marker is None:
        return
    require_space(folder, sum(int(about["size"]) for about in marker.files.values()), beside="the old outcome")


def _copy_up(run: Run, stage: Stage) -> Iterator[Notice]:
    """Update the run folder's copies of a stage's files; keep a copy that the user edited under another name."""
    for made, name in stage.copies.items():
        source, target = run.folder / stage.folder / made, run.folder / name
        if not source.is_file():
            continue
        content = source.read_bytes()
        with contextlib.suppress(OSError):
            if target.is_file() and target.read_bytes() == content:
                continue
        try:
            require_unchanged(run.folder, name)
        except OutputError:
            number, kept = 1, run.folder / f"kept-{name}"
            while os.path.lexists(kept):
                number, kept = number + 1, run.folder / f"kept-{number + 1}-{name}"
            target.rename(kept)
            yield Notice(stage=stage.name, text=f"{target} was changed by someone else; kept as {kept.name}")
        write_bytes(target, content)
        record_files(run.folder, [name])


def tidy(run: Run) -> None:
    """Remove the folder of partial work if it is empty."""
    root = run.folder / WORK_NAME
    if not is_ours(root, kind="work"):
        return
    for place, _, _ in os.walk(root, topdown=False):
        with contextlib.suppress(OSError):
            if Path(place) != root:
                Path(place).rmdir()
    if {entry.name for entry in os.scandir(root)} == {MARKER_NAME}:
        (root / MARKER_NAME).unlink()
        root.rmdir()


def require_stage_folder(run: Run, stage: Stage) -> None:
    """Require that a stage's folder may be written, before any work.

    Raises:
        OutputError: it holds something that is not ours.
    """
    folder = run.folder / stage.folder
    recover(folder)
    if not any((folder / name).exists() for name in (MANIFEST_NAME, MARKER_NAME)):
        require_replaceable(folder, kind=KIND, addressed=False)


def is_up_to_date(run: Run, stage: Stage, stages: Mapping[str, Stage], *, verified: Verified) -> bool:
    """Check whether a stage's result is whole and was made from its current inputs."""
    folder = run.folder / stage.folder
    if read_marker(folder) is None or verified.of(run, stage).state != "whole":
        return False
    return inputs_of(run, stage, stages).describe(read_manifest(folder))
