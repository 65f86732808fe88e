"""Makes the outcome of a stage beside the old one, and swaps it in when it is whole."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from defectory.errors import OutputError
from defectory.files import (
    BOOKKEEPING,
    DRAWN_NAME,
    MANIFEST_NAME,
    MARKER_NAME,
    digest_file,
    finish_stage,
    in_progress,
    read_manifest,
    reason_of,
    write_bytes,
)
from defectory.folders import (
    WORK_NAME,
    Marker,
    files_of,
    in_threads,
    is_empty,
    is_ours,
    publish,
    read_marker,
    record_files,
    recover,
    remove_ours,
    require_replaceable,
    require_space,
    require_unchanged,
    retire,
    write_marker,
)
from defectory.lock import process_identity
from defectory.pipeline.stage import Event, Inputs, Notice, Project, Stage, StageEnded, inputs_of, work_folder
from defectory.pipeline.verify import Finding, Verified

KIND = "stage"


def run_stage(
    project: Project, stage: Stage, stages: Sequence[Stage], *, verified: Verified | None = None
) -> Iterator[Event]:
    """Run one stage unless its outcome is up to date and whole; the old outcome stays until the new one is on disk.

    Args:
        project: resolved configuration and folders.
        stage: to run.
        stages: all of the project's.
        verified: what has been held against its digests already.

    Raises:
        StageError: the outcome of a stage that it needs is damaged.
        OutputError: the folder is not ours, or cannot be written or is full; an old outcome is kept.
    """
    began, verified = time.monotonic(), verified or Verified()
    folder, work = project.path(stage.folder), work_folder(project, stage)
    recover(folder)
    inputs = inputs_of(project, stage, stages)
    _finish_swap(work, folder, inputs)
    manifest = read_manifest(folder)
    finding = verified.of(project, stage)
    if (
        finding.state == "damaged"
        and {*finding.missing, *finding.changed} == {MARKER_NAME}
        and inputs.describe(manifest)
    ):
        _mend_marker(folder)
        verified.made(stage)
        finding = verified.of(project, stage)
    if manifest is not None and finding.state == "whole" and inputs.describe(manifest):
        for path in sorted(set(inputs.missing.values())):
            yield Notice(stage=stage.name, text=f"{path} is not there; what was made from it is used as it is")
        yield from _copy_up(project, stage)
        yield StageEnded(stage=stage.name, seconds=0.0, skipped=True, summary=str(manifest["info"]["summary"]))
        return
    if finding.state == "damaged":
        yield Notice(stage=stage.name, text=f"damaged ({finding.damage}); it is made anew")
        _set_aside(folder)
    by_name = {s.name: s for s in stages}
    verified.require(project, [by_name[name] for name in stage.needs])
    require_replaceable(folder, kind=KIND, addressed=False)
    _require_space(folder)
    mended = manifest if stage.mendable and finding.state == "damaged" and inputs.describe(manifest) else None
    _prepare(project, stage, inputs, old=None if mended is None else finding)
    summary = ""
    try:
        with in_progress(work):
            for event in stage.run(replace(project, writing=stage.folder)):
                if isinstance(event, str):
                    summary = event
                else:
                    yield event
            seconds = time.monotonic() - began
            names = [name for name in files_of(work) if Path(name).name not in BOOKKEEPING and name != MANIFEST_NAME]
            files: dict[str, str] = dict(
                zip(names, in_threads(lambda name: digest_file(work / name), names), strict=True)
            )
            finish_stage(
                work, inputs_digest=inputs.digest, inputs=inputs.parts, files=files, summary=summary, seconds=seconds
            )
        _swap_in(work, folder, files)
    except BaseException:
        if not stage.resumable:
            remove_ours(work)
        raise
    verified.made(stage)
    yield from _copy_up(project, stage)
    yield StageEnded(stage=stage.name, seconds=seconds, skipped=False, summary=summary)


def _swap_in(work: Path, folder: Path, files: dict[str, str] | None) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        publish(work, folder, kind=KIND, digests=files, keep_changed=False)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(folder, f"cannot be written ({reason_of(error)})", "free space and run again") from error


def _prepare(project: Project, stage: Stage, inputs: Inputs, *, old: Finding | None) -> None:
    """Make the work folder: partial work of the same inputs is kept, what is whole of a damaged outcome is taken
    over.
    """
    work = work_folder(project, stage)
    make_work_root(project)
    try:
        marker = read_marker(work)
        if not (
            stage.resumable
            and marker is not None
            and marker.maker is not None
            and marker.maker.get("inputs") == inputs.digest
        ):
            remove_ours(work)
            work.mkdir(parents=True)
        write_marker(work, Marker(kind=KIND, maker={**process_identity(), "inputs": inputs.digest}))
        (work / MANIFEST_NAME).unlink(missing_ok=True)
        if old is not None and not (work / DRAWN_NAME).exists():
            _take_over(project.path(stage.folder), work, old)
    except OSError as error:
        raise OutputError(work, f"cannot be written ({reason_of(error)})", "free space and run again") from error


def make_work_root(project: Project) -> None:
    """Make the folder in which stages work; several processes may do so at once."""
    root = project.folder / WORK_NAME
    if is_ours(root, kind="work"):
        return
    try:
        if root.exists() and not is_empty(root):
            _set_aside(root)
        # with its marker from the first moment on, or another process would take it for somebody else's
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
    """Complete a swap in whose midst a process was killed: a whole new outcome goes in, a whole old one is removed."""
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
    """Rename a folder of the run whose marker is damaged, so that nothing in it can be lost."""
    if is_ours(folder):
        return
    number, target = 1, folder.with_name(f"{folder.name}.damaged")
    while os.path.lexists(target):
        number, target = number + 1, folder.with_name(f"{folder.name}.damaged-{number + 1}")
    folder.rename(target)


def _require_space(folder: Path) -> None:
    """Refuse to begin where the disk cannot hold a second outcome of the old one's size.

    Raises:
        OutputError: it is too small.
    """
    marker = read_marker(folder)
    if marker is None:
        return
    require_space(folder, sum(int(about["size"]) for about in marker.files.values()), beside="the old outcome")


def _copy_up(project: Project, stage: Stage) -> Iterator[Notice]:
    """Bring the run folder's copies of a stage's files up to date; one that a user edited is kept under another
    name.
    """
    for made, name in stage.copies.items():
        source, target = project.path(stage.folder, made), project.path(name)
        if not source.is_file():
            continue
        content = source.read_bytes()
        with contextlib.suppress(OSError):
            if target.is_file() and target.read_bytes() == content:
                continue
        try:
            require_unchanged(project.folder, name)
        except OutputError:
            number, kept = 1, project.path(f"kept-{name}")
            while os.path.lexists(kept):
                number, kept = number + 1, project.path(f"kept-{number + 1}-{name}")
            target.rename(kept)
            yield Notice(stage=stage.name, text=f"{target} was changed by someone else; kept as {kept.name}")
        write_bytes(target, content)
        record_files(project.folder, [name])


def tidy(project: Project) -> None:
    """Remove the folder of partial work where nothing is in it."""
    root = project.folder / WORK_NAME
    if not is_ours(root, kind="work"):
        return
    for place, _, _ in os.walk(root, topdown=False):
        with contextlib.suppress(OSError):
            if Path(place) != root:
                Path(place).rmdir()
    if {entry.name for entry in os.scandir(root)} == {MARKER_NAME}:
        (root / MARKER_NAME).unlink()
        root.rmdir()


def require_stage_folder(project: Project, stage: Stage) -> None:
    """Require that a stage's folder may be written, before any work.

    Raises:
        OutputError: it holds something that is not ours.
    """
    folder = project.path(stage.folder)
    recover(folder)
    if not any((folder / name).exists() for name in (MANIFEST_NAME, MARKER_NAME)):
        require_replaceable(folder, kind=KIND, addressed=False)


def is_up_to_date(project: Project, stage: Stage, stages: Sequence[Stage], *, verified: Verified) -> bool:
    """Tell whether a stage's outcome is whole and was made from what the stage depends on."""
    folder = project.path(stage.folder)
    if read_marker(folder) is None or verified.of(project, stage).state != "whole":
        return False
    return inputs_of(project, stage, stages).describe(read_manifest(folder))
