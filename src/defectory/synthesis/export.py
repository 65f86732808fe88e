"""`export`: accepted drafts as a COCO data set with provenance."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from defectory.artifacts.plan import Decisions, Job, Plan
from defectory.formats.coco import save_coco
from defectory.run import atomic_folder, canonical_json, digest_file, write_text
from defectory.synthesis.full import draft_paths


def export_synthetic(
    plan: Plan, decisions: Decisions, *, drafts: Path, out: Path, base_digest: str, pool_image_of: Callable[[Job], dict[str, object]],
    valid_hw_of: Callable[[Job], tuple[int, int]],
) -> int:  # fmt: skip
    """Write the synthetic set: `images/`, `annotations.json` (RLE), `annotations_polygons.json`, `provenance.jsonl`.

    Args:
        plan: what was drawn.
        decisions: what was accepted.
        drafts: folder of the drafts.
        out: folder, replaced as a whole.
        base_digest: of the base the concept came from.
        pool_image_of: gives a job's pool image record for the provenance.
        valid_hw_of: image part of the tile; padding is cut off on export.

    Returns:
        How many images were written.
    """
    import numpy as np

    from defectory.artifacts.annotation import Instance
    from defectory.imageio import load_rgb, save_png
    from defectory.rle import decode, encode

    accepted = {d.job_id: d for d in decisions.decisions if d.status == "accepted"}
    images: list[tuple[int, str, tuple[int, int], dict[str, object]]] = []
    instances: list[tuple[int, Instance]] = []
    records: list[str] = []
    with atomic_folder(out) as folder:
        (folder / "images").mkdir()
        for job in plan.jobs:
            if job.id not in accepted:
                continue
            source = draft_paths(drafts, job.id)[0]
            height, width = valid_hw_of(job)
            number, name = len(images) + 1, f"{job.id}.png"
            save_png(folder / "images" / name, np.ascontiguousarray(load_rgb(source)[:height, :width]))
            images.append((number, name, (height, width), {}))
            for instance in accepted[job.id].tightened or job.instances:
                cut = decode(instance.rle)[:height, :width]
                if cut.any():
                    instances.append((number, Instance(category_id=instance.category_id, rle=encode(cut))))
            records.append(
                canonical_json(
                    {
                        "image": name,
                        "sha256": digest_file(folder / "images" / name),
                        "pool": pool_image_of(job),
                        "tile": job.tile_id,
                        "augmentation_seed": job.augmentation_seed,
                        "masks": [source.model_dump() for source in job.mask_sources],
                        "prompt": job.prompt,
                        "seed": job.seed,
                        "fidelity": accepted[job.id].fidelity.iou,
                        "checks": {check.name: round(check.value, 4) for check in accepted[job.id].checks},
                        "base_digest": base_digest,
                        "concept_digest": plan.concept_digest,
                        "control_digest": plan.control_digest,
                    }
                )
            )
        for file_name, polygons in (("annotations.json", False), ("annotations_polygons.json", True)):
            save_coco(folder / file_name, plan.categories, images, instances, polygons=polygons)
        write_text(folder / "provenance.jsonl", "".join(record + "\n" for record in records))
    return len(images)
