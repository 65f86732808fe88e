"""Stage certify: checks from the files of the run that val and test stayed out of training, and seals the outcome."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from defectory.artifacts.certificate import Certificate
from defectory.config.project import ProjectConfig
from defectory.dataset.certify import certify
from defectory.dataset.duplicates import find_duplicates
from defectory.events import Notice, Progress, Work
from defectory.files import digest_file
from defectory.runs import layout
from defectory.runs.sources import Sources
from defectory.runs.stage import Stage
from defectory.runs.store import RunStore
from defectory.stages.check_concept import checks_concept
from defectory.stages.folds import needs_folds
from defectory.stages.parts.further_rounds import further_rounds
from defectory.stages.parts.image_uses import image_uses
from defectory.stages.parts.student import student_stage
from defectory.stages.segment import stage_name

MAX_TOLD = 3


class Certify(Stage):
    """Makes the split certificate."""

    name, folder = "certify", layout.CERTIFICATE

    def inputs(self, config: ProjectConfig) -> tuple[str, ...]:
        """Read the files of every stage that used images."""
        segmenters = [stage_name(arm, seed) for seed in config.segmentation.seeds for arm in config.segmentation.arms]
        return (
            *("import", "split", "tiles", "learn-concept", "learn-condition"),
            *(("check-concept",) if checks_concept(config) else ()),
            *student_stage(config),
            *(("folds",) if needs_folds(config) else ()),
            *(("learn-masks",) if config.masks.sources.diffusion > 0 else ()),
            *("plan", "calibrate", "curate", *further_rounds(config), "export"),
            *(*segmenters, "test-tiles", "evaluate"),
        )

    def cache_key(self, config: ProjectConfig, sources: Sources) -> Mapping[str, object]:
        """Depend on nothing but the results that are read."""
        return {}

    def run(self, inputs: RunStore, config: ProjectConfig, out: Path) -> Work[str]:
        """Check, and write the certificate; a broken one is written too."""
        certificate = yield from certificate_of(inputs, config)
        certificate.save(out / layout.CERTIFICATE_FILE)
        for problem in certificate.broken[:MAX_TOLD]:
            yield Notice(text=problem)
        if certificate.broken:
            return f"the split is broken: {len(certificate.broken)} findings, the first: {certificate.broken[0]}"
        return (
            f"the split holds for {len(certificate.uses)} uses and {certificate.num_images} image files; "
            f"seal {certificate.seal[:12]}"
        )


def certificate_of(inputs: RunStore, config: ProjectConfig) -> Work[Certificate]:
    """Check the files of a finished run, and return the certificate.

    Raises:
        InputError: the data set, the split or the descriptors cannot be read.
        StageError: one of them was changed after its stage wrote it.
    """
    data, split, descriptors = inputs.data, inputs.split, inputs.descriptors
    ids = sorted({*split.train, *split.pool, *split.val, *split.test})
    digests: dict[int, str | None] = {}
    for image_id in ids:
        try:
            digests[image_id] = digest_file(data.path(data.dataset.image(image_id)))
        except OSError:
            digests[image_id] = None
        yield Progress(done=len(digests), total=len(ids), note="checking image files")
    yield Progress(done=0, total=1, note="looking for near-duplicates")
    # among all images, as the split did: the search looks at the most similar ones alone
    pairs = find_duplicates(descriptors, threshold=split.duplicate_threshold).pairs
    yield Progress(done=1, total=1, note="looking for near-duplicates")
    return certify(
        image_uses(inputs, config),
        dataset=data.dataset,
        split=split,
        pairs=pairs,
        digests=digests,
        compared=sorted(descriptors),
    )
