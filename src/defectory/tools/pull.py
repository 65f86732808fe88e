"""Brings a base into the folder of bases: from the model hub, or from a folder that was carried here.

The only code that uses a network. A pull fills a folder of its own, which takes the base's place when every file is
there and has its digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from defectory.engine.backbones.chosen import chosen_texts, chosen_weights
from defectory.engine.backbones.facts import BaseFacts
from defectory.engine.backbones.files import DIGESTS_NAME, read_json, write_digests
from defectory.engine.backbones.known import KnownBase, resolve_base
from defectory.engine.backbones.licences import licence_of
from defectory.engine.backbones.places import PARTIAL, SOURCE_NAME, bases_folder, cached_folder, require_all_parts
from defectory.engine.backbones.verify import verify, verify_layout
from defectory.errors import OutputError, WeightsError
from defectory.events import Event, Notice, Progress
from defectory.files import digest_file, write_json
from defectory.folders.claims import our_errors, require_replaceable, require_space
from defectory.folders.swap import publish, recover
from defectory.lock import run_lock

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

KIND = "base"
BLOCK_BYTES = 1 << 22
HUB_CACHE = re.compile(r"[0-9a-f]{64}")
"""Name of a large file in the hub's cache: its SHA-256."""


@dataclass(frozen=True, kw_only=True)
class Pull:
    """What is pulled.

    Attributes:
        name: of the base on this machine: `sd15`, or `owner/model`.
        hub_id: `owner/model` on the hub; None if the base can only be copied.
        revision: branch, tag or commit there.
        known: the base of that name; None if it has none.
        half: take weights of half precision (fp16) where there are some.
        source: folder to copy from; None downloads, unless the hub's cache holds the base.
    """

    name: str
    hub_id: str | None
    revision: str = "main"
    known: KnownBase | None = None
    half: bool = False
    source: Path | None = None


def pull(what: Pull, *, bases: Path | None = None) -> Generator[Event, None, Path]:
    """Bring a base into the folder of bases, and return its folder.

    A base that is already there and whole is kept, unless it is copied from a folder. An interrupted download goes on
    where it was left; a copy starts anew.

    Args:
        what: the base.
        bases: folder of bases; None takes the user's (`DEFECTORY_BASES`).

    Raises:
        WeightsError: no such model, no network, a file with another digest, or a base that is not supported.
        OutputError: the folder of bases cannot be written or is full, or holds another folder of that name.
        StageError: another process pulls the same base.
    """
    folder = (bases_folder() if bases is None else bases) / what.name
    work = folder.parents[what.name.count("/")] / PARTIAL / what.name.replace("/", "--")
    require_replaceable(folder, kind=KIND, sources=[] if what.source is None else [what.source], addressed=False)
    with our_errors(folder, None):
        work.mkdir(parents=True, exist_ok=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
    with run_lock(work):
        recover(folder)
        if what.source is None and _is_there(what, folder):
            yield Notice(text=f"{what.name} is already in {folder}, and whole")
        else:
            yield from _fill(what, folder, work / "base")
    with contextlib.suppress(OSError):
        shutil.rmtree(work)
        work.parent.rmdir()
    yield Notice(text=f"licence of {what.name}: {licence_of(what.name, folder).words}")
    return folder


def _is_there(what: Pull, folder: Path) -> bool:
    """Check whether a base was pulled before, in the same revision, and is still whole."""
    try:
        source = read_json(folder / SOURCE_NAME)
        verify(folder)
    except WeightsError:
        return False
    return what.revision in (source.get("revision"), source.get("commit"))


def _fill(what: Pull, folder: Path, work: Path) -> Generator[Event, None, None]:
    """Fill the work folder, check every file of it, and put it in place of the base."""
    source, commit, licence = what.source, None, None
    cached = cached_folder(what.hub_id, revision=what.revision) if source is None and what.hub_id else None
    if cached is not None and _is_whole(cached):
        yield Notice(text=f"{what.name} is in the hub's cache and is copied from there: {cached}")
        source, commit = cached, cached.name
    if source is not None:
        if source.is_file():
            source = resolve_base(str(source), bases_folder=work.parents[2])
        facts = verify(source)
        _require_as_known(what, source, facts)
        yield from _copy(what, source, work)
        if (source / SOURCE_NAME).is_file():
            told = read_json(source / SOURCE_NAME)
            commit, licence = told.get("commit"), told.get("licence")
    else:
        commit, licence = yield from _download(what, work)
    with our_errors(folder, work):
        write_json(
            work / SOURCE_NAME, {"hub_id": what.hub_id, "revision": what.revision, "commit": commit, "licence": licence}
        )
        write_digests(work)
    verify(work)
    digests = {str(name): str(digest) for name, digest in read_json(work / DIGESTS_NAME).items()}
    with our_errors(folder, work):
        publish(work, folder, kind=KIND, digests=digests, keep_changed=False)
    yield Notice(text=f"{folder}: {len(digests)} files, every digest checked")


def _is_whole(folder: Path) -> bool:
    try:
        verify_layout(folder)
        require_all_parts(folder)
    except WeightsError:
        return False
    return True


def _require_as_known(what: Pull, folder: Path, facts: BaseFacts) -> None:
    """Refuse another base under a known name."""
    known = what.known
    if known is None or (known.tile_px, known.prediction_type) == (facts.tile_px, facts.prediction_type):
        return
    raise WeightsError(
        folder,
        f"is not {known.name}: tiles of {facts.tile_px} px and {facts.prediction_type}, {known.tile_px} px and "
        f"{known.prediction_type} were expected",
        "give its own name as owner/model, or set `base` to its folder",
    )


def _copy(what: Pull, source: Path, work: Path) -> Generator[Event, None, None]:
    """Copy the files of a base that was verified, and compare the copies with what was read."""
    names = sorted(path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file())
    chosen = [*chosen_texts(names), *chosen_weights(source, names, half=what.half)]
    listed = read_json(source / DIGESTS_NAME) if (source / DIGESTS_NAME).is_file() else {}
    with our_errors(work, work):
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        require_space(work, sum((source / name).stat().st_size for name in chosen), beside=str(work))
        for number, name in enumerate(chosen, 1):
            digest = _copy_file(source / name, work / name)
            blob = (source / name).resolve().name
            expected = listed.get(name) or (blob if HUB_CACHE.fullmatch(blob) else digest)
            if not digest == expected == digest_file(work / name):
                raise WeightsError(
                    source / name, "its copy has another digest", "check the disk or stick, and carry the file again"
                )
            yield Progress(done=number, total=len(chosen), note=name)


def _copy_file(path: Path, to: Path) -> str:
    """Copy one file and return the SHA-256 of what was read."""
    hasher = hashlib.sha256()
    to.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "rb") as stream, open(to, "wb") as out:
        while block := stream.read(BLOCK_BYTES):
            hasher.update(block)
            out.write(block)
    return hasher.hexdigest()


def _download(what: Pull, work: Path) -> Generator[Event, None, tuple[str | None, str | None]]:
    """Download the chosen files of a model, settings first, and check sizes and digests that the hub states."""
    if what.hub_id is None:
        raise WeightsError(what.name, "is on no model hub", "carry its folder here, and pull it with --from FOLDER")
    info = _ask_hub(what)
    commit, card = info.sha or what.revision, info.card_data
    files = {file.rfilename: file for file in info.siblings or ()}
    if "model_index.json" not in files:
        raise WeightsError(
            what.hub_id, "has no model_index.json, so it is no base in diffusers' layout", "give another base"
        )
    texts = chosen_texts(files)
    weights = chosen_weights(what.hub_id, files, half=what.half)
    _snapshot(what, commit, texts, work)
    _check_stated(what, work, {name: files[name] for name in texts})
    # refuses another family before gigabytes are downloaded
    _require_as_known(what, work, verify_layout(work))
    size = sum(files[name].size or 0 for name in weights)
    require_space(work, size, beside=str(work))
    yield Notice(text=f"downloading {what.hub_id}, commit {commit[:12]}: {size / 1e6:,.0f} MB of weights")
    for number, name in enumerate(weights, 1):
        yield Progress(done=number - 1, total=len(weights), note=f"{name}, {(files[name].size or 0) / 1e6:,.0f} MB")
        _snapshot(what, commit, [name], work)
    yield Progress(done=len(weights), total=len(weights))
    _check_stated(what, work, {name: files[name] for name in weights})
    wanted = {*texts, *weights}
    shutil.rmtree(work / ".cache", ignore_errors=True)
    for path in [path for path in work.rglob("*") if path.is_file()]:  # of another revision
        if path.relative_to(work).as_posix() not in wanted:
            path.unlink()
    licence = getattr(card, "license_name", None) or getattr(card, "license", None)
    return commit, licence if isinstance(licence, str) else None


def _ask_hub(what: Pull) -> ModelInfo:
    from huggingface_hub import HfApi

    try:
        return HfApi().model_info(str(what.hub_id), revision=what.revision, files_metadata=True)
    except Exception as error:  # its HTTP library differs between versions
        raise hub_error(what, error) from error


def _snapshot(what: Pull, commit: str, names: list[str], work: Path) -> None:
    """Download files by name; what is there already, or in part, is not downloaded again."""
    from huggingface_hub import snapshot_download

    try:
        work.mkdir(parents=True, exist_ok=True)
        snapshot_download(str(what.hub_id), revision=commit, allow_patterns=names, local_dir=work)
    except Exception as error:
        raise hub_error(what, error) from error


def _check_stated(what: Pull, work: Path, files: Mapping[str, object]) -> None:
    """Compare downloaded files with the sizes and digests that the hub states.

    Raises:
        WeightsError: a file is missing or differs; it is removed, so that the next pull downloads it again.
    """
    for name, file in files.items():
        path = work / name
        large = getattr(file, "lfs", None)
        size, sha256, blob = getattr(file, "size", None), getattr(large, "sha256", None), getattr(file, "blob_id", None)
        if not path.is_file():
            raise WeightsError(name, f"was not downloaded from {what.hub_id}", "run the same command again")
        same = size is None or path.stat().st_size == size
        if same and sha256 is not None:
            same = digest_file(path) == sha256
        elif same and blob is not None:
            same = _git_digest(path) == blob
        if not same:
            path.unlink()
            raise WeightsError(
                f"{what.hub_id} {name}", "its digest differs from what the hub states", "run the same command again"
            )


def _git_digest(path: Path) -> str:
    """Return the SHA-1 by which git names a file's content."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def hub_error(what: Pull, error: Exception) -> Exception:
    """Return our error for one of the hub's library: what was found, and what to carry where without a network."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name, page = what.name, f"{constants.ENDPOINT}/{what.hub_id}"
    if isinstance(error, GatedRepoError):
        todo = "accept its licence on that page, set HF_TOKEN, and run the same command again"
        return WeightsError(page, "its owner asks for an account and a licence that is accepted", todo)
    if isinstance(error, RevisionNotFoundError):
        return WeightsError(page, f"has no revision {what.revision}", "give another --revision")
    if isinstance(error, (RepositoryNotFoundError, HFValidationError)):
        return WeightsError(page, "no such model, or it is private or was removed", "check the name, or set HF_TOKEN")
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return OutputError(
            error.filename, f"cannot be written ({error.strerror})", "free space, or set DEFECTORY_BASES"
        )
    if isinstance(error, OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE:
        found = "HF_HUB_OFFLINE is set, so nothing is downloaded"
    else:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        found = f"cannot be reached ({reason[:120]})"
    revision = "" if what.revision == "main" else f" --revision {what.revision}"
    return WeightsError(
        page,
        found,
        f"on a machine with a network run `DEFECTORY_BASES=STICK defectory base pull {name}{revision}`, carry the "
        f"folder STICK/{name} here, and run `defectory base pull {name} --from STICK/{name}`; a mirror is set by "
        "HF_ENDPOINT",
    )
