"""The command `import`: convert any supported format to one data set folder, with unchanged image files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from defectory.artifacts.annotation import Category, Instance
from defectory.artifacts.dataset import MANIFEST, Dataset, ImageRecord
from defectory.dataset.config import DataConfig
from defectory.dataset.intake import Taken, take, without_copies
from defectory.errors import AnnotationError, ConfigError, OutputError
from defectory.folders.swap import atomic_folder
from defectory.formats.coco import save_coco
from defectory.formats.lookup import images_in, shown
from defectory.formats.raw import LoadOptions, RawDataset, RawImage, RawInstance, Rejected, Sieve, checked_size_hw
from defectory.formats.registry import load
from defectory.images.facts import measure_value_range, remarks_of
from defectory.rle import area_px
from defectory.terminal import printable

MAX_SHOWN_LETTERS = 60


@dataclass(frozen=True, kw_only=True)
class ImportResult:
    """The data set and the rejected entries."""

    dataset: Dataset
    rejected: tuple[Rejected, ...]

    @property
    def layout(self) -> str:
        """Return a readable name of the layout recognised in the source."""
        return self.dataset.layout

    @property
    def remarks(self) -> tuple[str, ...]:
        """Return the remarks, one line each."""
        return self.dataset.remarks


def import_dataset(config: DataConfig, out: Path, *, base_folder: Path = Path()) -> ImportResult:
    """Load an annotated data set and write it as one data set folder.

    The whole source is read before anything is written.

    Args:
        config: source and options; relative paths are relative to `base_folder`.
        out: data set folder; it is replaced as a whole or stays as it was.
        base_folder: folder of the project file.

    Raises:
        InputError: the source has an error and `skip_bad` is off, or `out` is or contains a source.
        StageError: `out` cannot be written.
    """
    sources = _sources(config, base_folder)
    _refuse_out(out, sources)
    raw = _with_clean_names(_load(config, base_folder))
    sieve = Sieve(config.skip_bad, list(raw.rejected))
    images, names = _keep_classes(raw, config)
    asked = _defect_free(config, base_folder, {image.file_name for image in images}, sieve)
    images = [*images, *asked]
    if not images:
        raise AnnotationError(config.path, "no usable image", "check the path and the classes")
    for image in images:
        for what in remarks_of(image.path):
            sieve.remark(what, image.file_name)
    value_range, range_remarks = measure_value_range([image.path for image in images])
    digests: dict[str, str] = {}
    with atomic_folder(out, kind="dataset", digests=digests, sources=sources) as folder:
        taken = take(images, folder, digests)
        kept = without_copies(taken, [image.path for image in asked], sieve, config.defect_free or config.path)
        _remove(folder, {entry.file_name for entry in taken} - {entry.file_name for entry in kept}, digests)
        categories = tuple(Category(id=number, name=name) for number, name in enumerate(names, start=1))
        dataset = Dataset(
            categories=categories,
            images=tuple(_records(kept, {category.name: category.id for category in categories})),
            value_range=value_range,
            layout=_plain(raw.layout),
            remarks=tuple(map(_plain, (*raw.remarks, *sieve.remarks, *range_remarks, *_remarks_on(kept, raw.remarks)))),
        )
        _write(folder, dataset)
    return ImportResult(
        dataset=dataset, rejected=tuple(Rejected(id=_plain(r.id), reason=_plain(r.reason)) for r in sieve.rejected)
    )


def _sources(config: DataConfig, base_folder: Path) -> list[Path]:
    named = (config.path, config.image_root, config.defect_free, config.index, config.class_colours)
    return [base_folder / name for name in named if name is not None]


def _refuse_out(out: Path, sources: Iterable[Path]) -> None:
    """Check that the output folder neither is nor contains anything to be read; it may lie inside the source."""
    try:
        where = out.resolve()
        read = [(source, source.resolve(), source.is_dir()) for source in sources]
    except (OSError, RuntimeError, ValueError) as error:
        raise OutputError(printable(out), f"cannot be looked up ({error})", "give another folder") from None
    for source, place, is_folder in read:
        if place.is_relative_to(where):
            what = "is the folder to import from" if place == where else f"contains {source}, which is to be imported"
            raise OutputError(out, what, "give a new folder for the data set")
        if not is_folder and place.parent == where:
            raise OutputError(
                out, f"is the folder of {source}, which is to be imported", "give a new folder for the data set"
            )


def _load(config: DataConfig, base_folder: Path) -> RawDataset:
    def place(name: str | None) -> Path | None:
        return None if name is None else base_folder / name

    options = LoadOptions(
        image_root=place(config.image_root),
        index=place(config.index),
        min_area_px=config.min_area_px,
        skip_bad=config.skip_bad,
        follow_links=config.follow_links,
        unlabelled=config.unlabelled,
        mask_threshold=config.mask_threshold,
        class_colours=place(config.class_colours),
    )
    name = "index-csv" if config.format == "auto" and config.index is not None else config.format
    return load(base_folder / config.path, options, name=name)


def _with_clean_names(raw: RawDataset) -> RawDataset:
    """Return the data set with class names stripped of outer spaces; names that become equal are one class."""
    sieve = Sieve(skip_bad=False)
    clean: dict[str, str] = {}
    for name in dict.fromkeys([*raw.class_names, *(i.class_name for image in raw.images for i in image.instances)]):
        clean[name] = _plain(name).strip()
        if clean[name] != name:
            sieve.remark(f"class {_quoted(name)} is read as {_quoted(clean[name])}")
    for name, count in Counter(clean.values()).items():
        if count > 1:
            sieve.remark(f"{count} classes are called {_quoted(name)} and are merged")

    def renamed(instance: RawInstance) -> RawInstance:
        return replace(instance, class_name=clean[instance.class_name])

    return replace(
        raw,
        class_names=tuple(dict.fromkeys(clean.values())),
        images=tuple(replace(image, instances=tuple(map(renamed, image.instances))) for image in raw.images),
        remarks=(*raw.remarks, *sieve.remarks),
    )


def _keep_classes(raw: RawDataset, config: DataConfig) -> tuple[list[RawImage], tuple[str, ...]]:
    """Keep the requested classes and sizes; an image that loses all its defects is left out, not defect-free."""
    wanted = (
        raw.class_names if config.classes is None else tuple(dict.fromkeys(name.strip() for name in config.classes))
    )
    unknown = sorted(set(wanted) - set(raw.class_names))
    if unknown:
        listed = ", ".join(map(printable, raw.class_names))
        raise ConfigError(
            "data.classes", f"{_quoted(unknown[0])} is not a class of the data set ({listed})", "correct the list"
        )
    kept: list[RawImage] = []
    for image in raw.images:
        instances = tuple(i for i in image.instances if i.class_name in wanted and area_px(i.rle) >= config.min_area_px)
        if instances or image.is_defect_free:
            kept.append(replace(image, instances=instances, group=_plain(image.group)))
    return kept, wanted


def _defect_free(config: DataConfig, base_folder: Path, taken: set[str], sieve: Sieve) -> list[RawImage]:
    """Return the images of the folder that the import declares defect-free."""
    if config.defect_free is None:
        return []
    folder = base_folder / config.defect_free
    if not folder.is_dir():
        raise ConfigError(folder, "no such folder of defect-free images", "check data.defect_free")
    images: list[RawImage] = []
    for path in images_in(folder, LoadOptions(follow_links=config.follow_links, skip_bad=config.skip_bad), sieve):
        size_hw = sieve.attempt(shown(path, folder), lambda path=path: checked_size_hw(path, None, path))
        if size_hw is not None:
            name = path.relative_to(folder).as_posix()
            unique = name if name not in taken else f"defect_free/{name}"
            group = _plain(Path(unique).with_suffix("").as_posix())
            images.append(
                RawImage(path=path, file_name=unique, size_hw=size_hw, group=group, instances=(), is_defect_free=True)
            )
    if not images and not sieve.rejected:
        raise ConfigError(folder, "no image in it", "check data.defect_free")
    return images


def _remove(folder: Path, names: Iterable[str], digests: dict[str, str]) -> None:
    """Remove images from the unfinished folder, and folders that become empty."""
    for name in sorted(names):
        path = folder / "images" / name
        path.unlink()
        del digests[f"images/{name}"]
        for parent in path.parents:
            if parent == folder or next(parent.iterdir(), None) is not None:
                break
            parent.rmdir()


def _records(kept: Sequence[Taken], id_of: Mapping[str, int]) -> Iterable[ImageRecord]:
    for number, entry in enumerate(kept, start=1):
        yield ImageRecord(
            id=number,
            file_name=entry.file_name,
            size_hw=entry.image.size_hw,
            sha256=entry.sha256,
            group=entry.image.group,
            instances=tuple(
                Instance(category_id=id_of[i.class_name], rle=i.rle, is_crowd=i.is_crowd) for i in entry.image.instances
            ),
            subset=entry.image.subset,
        )


def _remarks_on(kept: Sequence[Taken], said: Sequence[str]) -> list[str]:
    """Return remarks on the data set as a whole: its own split, changed file names, only crowd regions."""
    remarks: list[str] = []
    subsets = Counter(entry.image.subset for entry in kept if entry.image.subset is not None)
    if subsets and not any("own split" in remark for remark in said):
        counts = ", ".join(f"{subset} {subsets[subset]}" for subset in ("train", "val", "test") if subsets[subset])
        remarks.append(f"the data set comes with its own split ({counts}); split.from_data = true keeps it")
    renamed = [entry for entry in kept if entry.file_name != entry.image.file_name]
    if renamed:
        some = "1 image gets a file name" if len(renamed) == 1 else f"{len(renamed)} images get file names"
        first = f"{printable(renamed[0].image.file_name)} -> {renamed[0].file_name}"
        remarks.append(f"{some} that every system can hold ({'first: ' if len(renamed) > 1 else ''}{first})")
    instances = [instance for entry in kept for instance in entry.image.instances]
    if instances and all(instance.is_crowd for instance in instances):
        remarks.append(
            "every instance is a crowd region (iscrowd 1), from which nothing can be trained; correct iscrowd"
        )
    return remarks


def _write(folder: Path, dataset: Dataset) -> None:
    def extra(record: ImageRecord) -> dict[str, object]:
        return {"group": record.group} if record.subset is None else {"group": record.group, "subset": record.subset}

    save_coco(
        folder / "annotations.json",
        dataset.categories,
        [(record.id, record.file_name, record.size_hw, extra(record)) for record in dataset.images],
        [(record.id, instance) for record in dataset.images for instance in record.instances],
    )
    dataset.save(folder / MANIFEST)


def _plain(text: str) -> str:
    """Return a text without lone surrogates, which cannot be written to a file."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _quoted(name: str) -> str:
    shown_name = printable(name[: MAX_SHOWN_LETTERS + 1])
    return f"'{shown_name}'" if len(shown_name) <= MAX_SHOWN_LETTERS else f"'{shown_name[:MAX_SHOWN_LETTERS]}...'"
