"""Lists, pulls, verifies and describes bases, and makes, teaches and scores those of the procedural world."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from defectory.config.resolve import texts_of
from defectory.engine.backbones.known import EMBEDDED, KNOWN_BASES, KnownBase, hub_id_of, known_base, resolve_base
from defectory.errors import OutputError, WeightsError
from defectory.events import Event
from defectory.folders.claims import require_claimable, require_replaceable
from defectory.folders.swap import atomic_folder

if TYPE_CHECKING:
    from defectory.engine.backbones.describe import PartInfo
    from defectory.engine.backbones.facts import BaseFacts

T = TypeVar("T")
Overrides = Mapping[str, Any] | Sequence[str]


def list_bases() -> tuple[KnownBase, ...]:
    """Return the bases known by name. Any other base is named by the path of its folder."""
    return KNOWN_BASES


@dataclass(frozen=True, kw_only=True)
class BaseHere:
    """A base on this machine.

    Attributes:
        name: that `base` may be set to.
        folder: of the base.
        problem: why it cannot be used, in one line; None if its settings are right and its weights are there.
    """

    name: str
    folder: Path
    problem: str | None = None


@dataclass(frozen=True, kw_only=True)
class BaseInfo:
    """What is known of a base without loading it.

    Attributes:
        folder: of the base.
        facts: family, native tile side, what its denoiser predicts.
        parts: with their parameters and sizes.
        licence: with its restrictions, as far as it is known.
        origin: `owner/model` and commit on the hub; None if unknown.
    """

    folder: Path
    facts: BaseFacts
    parts: tuple[PartInfo, ...]
    licence: str
    origin: str | None = None


def find_bases() -> tuple[BaseHere, ...]:
    """Return the bases on this machine that have a name: shipped, pulled, or in the cache of `huggingface_hub`."""
    from defectory.engine.backbones.places import bases_folder, cached_names, pulled_names

    known_ids = {base.hub_id: base.name for base in KNOWN_BASES if base.hub_id is not None}
    names = [EMBEDDED, *pulled_names(bases_folder()), *(known_ids.get(name, name) for name in cached_names())]
    return tuple(_here(name) for name in dict.fromkeys(names))


def _here(name: str) -> BaseHere:
    from defectory.engine.backbones.places import require_all_parts
    from defectory.engine.backbones.verify import verify_layout

    folder = Path(name)
    try:
        folder = resolve_base(name)
        verify_layout(folder)
        require_all_parts(folder)
    except WeightsError as error:
        return BaseHere(name=name, folder=folder, problem=error.found)
    return BaseHere(name=name, folder=folder)


def pull_base(
    name: str, *, source: Path | str | None = None, revision: str | None = None, half: bool = False
) -> Generator[Event, None, Path]:
    """Bring a base to this machine, from the model hub or from a folder that was carried here.

    This is the only function that uses a network. The name is checked now; the work is done while its events are
    read, and the same call resumes it. It returns the folder, which `base` finds by the name.

    Args:
        name: a known name, or `owner/model` on the hub.
        source: folder in diffusers' layout to copy from, for example on a stick; None downloads.
        revision: branch, tag or commit on the hub; None takes the known one or `main`.
        half: take weights of half precision (fp16) where there are some: half the bytes.

    Raises:
        WeightsError: not a name, no network, a file with another digest, or a base that is not supported.
        OutputError: the folder of bases cannot be written or is full.
    """
    from defectory.tools.pull import Pull, pull

    known = known_base(name)
    hub_id = known.hub_id if known is not None else hub_id_of(name)
    if name == EMBEDDED:
        raise WeightsError(name, "is shipped in the package", "use it as it is")
    if known is None and hub_id != name:
        names = ", ".join(base.name for base in KNOWN_BASES if base.hub_id is not None)
        raise WeightsError(name, f"neither a known name ({names}) nor owner/model of a hub", "check the name")
    return pull(
        Pull(
            name=name,
            hub_id=hub_id,
            revision=revision or ("main" if known is None else known.revision),
            known=known,
            half=half,
            source=None if source is None else Path(source).expanduser(),
        )
    )


def describe_base(base: Path | str = EMBEDDED) -> BaseInfo:
    """Describe a base from its settings and the headers of its weights, in well under a second.

    Args:
        base: name, or folder of a base.

    Raises:
        WeightsError: it is not there, not complete, or of an unsupported family.
    """
    from defectory.engine.backbones.describe import parts_of
    from defectory.engine.backbones.licences import licence_of, origin_of
    from defectory.engine.backbones.verify import verify_layout

    folder = resolve_base(str(base))
    facts, origin = verify_layout(folder), None
    _, source = origin_of(str(base), folder)
    if isinstance(source.get("hub_id"), str):
        origin = f"{source['hub_id']}, {source.get('commit') or source.get('revision')}"
    licence = licence_of(str(base), folder).words
    return BaseInfo(folder=folder, facts=facts, parts=parts_of(folder), licence=licence, origin=origin)


def verify_base(base: Path | str = EMBEDDED) -> tuple[Path, BaseFacts]:
    """Check that a base is complete and its family supported: parts, safetensors, tokenizer, digests.

    Args:
        base: known name, or folder of a base.

    Returns:
        Its folder and its facts.

    Raises:
        WeightsError: it is not there, not complete, damaged or of an unsupported family.
    """
    from defectory.engine.backbones.verify import verify

    folder = resolve_base(str(base))
    return folder, verify(folder)


def score_base(
    base: Path | str = EMBEDDED, *, out: Path | str, overrides: Overrides = ()
) -> Generator[Event, None, None]:
    """Score a base on procedural images: how well samples match captions, and how close they are to images.

    Arguments are checked now. The work is done while its events are read; if it is stopped, the same call
    resumes it.

    Args:
        base: `embedded`, or folder of a base that was made by `pretrain_base`.
        out: folder that gets `scores.json` and `samples.png`: new, empty, or an earlier score.
        overrides: settings, for example `{"num_samples": 200}`.

    Raises:
        ConfigError: an unknown or wrong setting.
        WeightsError: the base is not there.
        OutputError: `out` is another folder of a user, or lies in the base.
    """
    from defectory.tools.pretrain import run_score, score_config

    config, folder, out = score_config(texts_of(overrides)), resolve_base(str(base)), Path(out)
    require_claimable(out, kind="base-score")
    _require_outside(folder, out)
    return run_score(config, base=folder, out=out)


def pretrain_base(
    *, out: Path | str, work: Path | str | None = None, overrides: Overrides = (), device: str = "cpu", seed: int = 0
) -> Generator[Event, None, None]:
    """Train an embedded base and its companions from procedural images alone, into `out/base` and beside it.

    Arguments are checked now. The work is done while its events are read; if it is stopped, the same call
    resumes it.

    Args:
        out: folder that gets `base/`, `encoder/` and `segmenter/`: new, empty, or an earlier pretraining.
        work: folder for corpus and checkpoints; None takes `out/work`.
        overrides: settings, for example `{"diffusion.num_steps": 8000}`.
        device: `cpu`, `cuda`, ...; other than a CPU has larger batches and fewer steps.
        seed: of corpus and training.

    Raises:
        ConfigError: an unknown or wrong setting, or a device that cannot be used.
        OutputError: `out` or `work` is another folder of a user.
    """
    from defectory.tools.pretrain import pretrain_config, run_pretrain

    config, out = pretrain_config(texts_of(overrides), device=device, seed=seed), Path(out)
    require_claimable(out, kind="pretrain")
    if work is not None:
        require_claimable(Path(work), kind="pretrain-work")
    return run_pretrain(config, out=out, work=out / "work" if work is None else Path(work))


def teach_base(
    word: str,
    *,
    out: Path | str,
    base: Path | str = EMBEDDED,
    work: Path | str | None = None,
    overrides: Overrides = (),
    device: str = "cpu",
) -> Generator[Event, None, Path]:
    """Teach a base one word of the procedural world. Other texts change by a few percent (decision 044).

    Arguments are checked now. The work is done while its events are read; if it is stopped, the same call
    resumes it. It returns the folder with the samples `before.png` and `after.png`.

    Args:
        word: a defect of the procedural world that the base draws badly, for example `dent`.
        out: folder for the base that knows it: new, empty, or an earlier outcome, which is replaced.
        base: `embedded`, or folder of a base that was made by `pretrain_base`.
        work: folder for images and checkpoint; None takes `<out>.work`.
        overrides: settings, for example `{"training.num_steps": 500}`.
        device: `cpu`, `cuda`, ...

    Raises:
        ConfigError: not a word of the procedural world, an unknown or wrong setting, or a device that cannot be used.
        WeightsError: the base is not there.
        OutputError: `out` or `work` is another folder of a user, or `out` lies in the base.
    """
    from defectory.tools.pretrain import run_teach, word_config

    config, start = word_config(word, texts_of(overrides), device=device), resolve_base(str(base))
    out = Path(out)
    require_replaceable(out, kind="base", sources=[start])
    _require_outside(start, out)
    samples = out.with_name(f"{out.name}.work") if work is None else Path(work)
    require_claimable(samples, kind="pretrain-work")
    return _returning(samples, run_teach(config, base=start, out=out, work=samples))


def draw_world(out: Path | str) -> list[Path]:
    """Draw sheets of the procedural world that bases are trained on, and of the borescope demo, unseen in training.

    Args:
        out: folder for the sheets (JPEG): new, empty, or an earlier one, which is replaced as a whole.

    Returns:
        The sheets.

    Raises:
        OutputError: `out` holds other files.
    """
    from defectory.images.save import save_jpeg
    from defectory.procedural.gallery import SHEETS, borescope_sheet, world_sheet

    with atomic_folder(Path(out), kind="world") as folder:
        for name in SHEETS:
            save_jpeg(folder / f"{name}.jpg", world_sheet(name))
        save_jpeg(folder / "borescope.jpg", borescope_sheet())
    return [Path(out) / f"{name}.jpg" for name in (*SHEETS, "borescope")]


def _require_outside(base: Path, out: Path) -> None:
    """Refuse to write into a base folder that must only be read.

    Raises:
        OutputError: `out` is the folder or lies in it.
    """
    if out.resolve().is_relative_to(base.resolve()):
        raise OutputError(out, f"lies in the base {base}, which is only read", "give another folder")


def _returning(value: T, events: Generator[Event, None, None]) -> Generator[Event, None, T]:
    yield from events
    return value
