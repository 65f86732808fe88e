"""Checks which images were used against the split, image files and near-duplicates, and makes the certificate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from defectory.artifacts.certificate import Certificate, CertifiedUse, ImageUse
from defectory.artifacts.dataset import Dataset
from defectory.artifacts.split import Split
from defectory.dataset.duplicates import DuplicatePair
from defectory.files import digest_json

MAX_NAMED = 5
"""Maximum number of images or pairs that a certificate names for one consumer; the rest are counted."""


def certify(
    uses: Sequence[ImageUse],
    *,
    dataset: Dataset,
    split: Split,
    pairs: Sequence[DuplicatePair],
    digests: Mapping[int, str | None],
    compared: Sequence[int],
) -> Certificate:
    """Check every consumer's images, and return the certificate.

    Args:
        uses: what each consumer used.
        dataset: the imported data set.
        split: of it.
        pairs: near-duplicates among all images.
        digests: SHA-256 of each image file; None if it cannot be read.
        compared: ids of the images among which near-duplicates were searched.
    """
    subset_of = _subset_of(split)
    return Certificate(
        dataset_digest=dataset.digest(),
        split_digest=split.digest(),
        num_images=len(digests),
        num_compared=len(compared),
        duplicate_threshold=split.duplicate_threshold,
        uses=tuple(
            CertifiedUse(
                consumer=use.consumer,
                may_use=use.may_use,
                num_images=len(set(use.image_ids)),
                images_digest=digest_json(sorted(set(use.image_ids))),
                files=use.files,
                unread=use.unread,
                crossed=(*_strangers(use, dataset, subset_of), *_copies(use, dataset, subset_of, pairs)),
            )
            for use in uses
        ),
        problems=tuple(_damaged(dataset, split, digests, compared)),
    )


def _subset_of(split: Split) -> dict[int, str]:
    subsets = {"train": split.train, "pool": split.pool, "val": split.val, "test": split.test}
    return {image_id: subset for subset, ids in subsets.items() for image_id in ids}


def _strangers(use: ImageUse, dataset: Dataset, subset_of: Mapping[int, str]) -> Iterator[str]:
    """Name images of a subset that the consumer may not use."""
    found: dict[str, list[int]] = {}
    for image_id in sorted(set(use.image_ids)):
        subset = subset_of.get(image_id, "no subset")
        if subset not in use.may_use:
            found.setdefault(subset, []).append(image_id)
    for subset, ids in sorted(found.items()):
        yield f"used {_named([_image(dataset, i) for i in ids])} of {subset}, and may use {' and '.join(use.may_use)}"


def _copies(
    use: ImageUse, dataset: Dataset, subset_of: Mapping[int, str], pairs: Sequence[DuplicatePair]
) -> Iterator[str]:
    """Name images that are near-duplicates of a held-out image that the consumer may not use."""
    barred = {"val", "test"} - set(use.may_use) if "test" not in use.may_use else set[str]()
    used = set(use.image_ids)
    found = [
        f"{_image(dataset, one)} is a near-duplicate of {_image(dataset, other)} of {subset_of[other]} "
        f"({pair.similarity:.2f})"
        for pair in pairs
        for one, other in ((pair.first, pair.second), (pair.second, pair.first))
        if one in used and subset_of.get(other) in barred and subset_of.get(one) != subset_of[other]
    ]
    if found:
        yield _named(found)


def _damaged(
    dataset: Dataset, split: Split, digests: Mapping[int, str | None], compared: Sequence[int]
) -> Iterator[str]:
    """Name image files that differ from the import, and say what the split or the search lacks."""
    changed = [i for i in sorted(digests) if digests[i] != dataset.image(i).sha256]
    if changed:
        yield f"missing or changed since the import: {_named([_image(dataset, i) for i in changed])}"
    if split.dataset_digest != dataset.digest():
        yield "the split belongs to another data set"
    left_out = set(_subset_of(split)) - set(compared)
    if left_out:
        yield f"{len(left_out)} images took no part in the search for near-duplicates"


def _image(dataset: Dataset, image_id: int) -> str:
    try:
        return f"image {image_id} ({dataset.image(image_id).file_name})"
    except KeyError:
        return f"image {image_id}"


def _named(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - MAX_NAMED} more" if len(texts) > MAX_NAMED else ""
    return ", ".join(texts[:MAX_NAMED]) + more
