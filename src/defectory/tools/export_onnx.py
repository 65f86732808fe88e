"""Writes a segmenter of a run as ONNX, checked against the segmenter on validation images."""

from __future__ import annotations

import json
import time
from collections.abc import Generator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from defectory.errors import ConfigError
from defectory.events import Event, Progress, StageEnded
from defectory.files import digest_file, write_json
from defectory.folders.claims import require_replaceable
from defectory.folders.swap import atomic_folder
from defectory.runs import layout
from defectory.runs.stage import Run, Stage
from defectory.runs.verify import Verified
from defectory.stages.all import stages_of
from defectory.stages.segment import GROUP

KIND = "onnx"
NAME = "export --onnx"
NETWORK_FILE, ABOUT_FILE = "segmenter.onnx", "segmenter.json"
MAX_IMAGES = 8
"""Most val images that are compared."""
READS = ("import", "split")


def segmenter_stage(run: Run, segmenter: str) -> Stage:
    """Return the stage that trains a segmenter.

    Args:
        run: a run.
        segmenter: its name, such as `real-seed0`.

    Raises:
        ConfigError: the project trains no such segmenter.
    """
    stages = {Path(s.folder).name: s for s in stages_of(run.config) if s.group == GROUP}
    if segmenter not in stages:
        raise ConfigError(
            "option --onnx", f"the project trains no segmenter {segmenter!r}", f"give one of {', '.join(stages)}"
        )
    return stages[segmenter]


def require_onnx(run: Run, segmenter: str, out: Path) -> Stage:
    """Check, before any work, that a segmenter can be written to a folder as ONNX; return the stage that trains it.

    Raises:
        ConfigError: there is no such segmenter, its family cannot be written, or a package is missing.
        OutputError: `out` holds files that no such export made.
    """
    from defectory.segmentation.to_onnx import require_exportable

    stage = segmenter_stage(run, segmenter)
    require_exportable(run.config.segmentation.model)
    require_replaceable(out, kind=KIND, sources=[run.folder])
    return stage


def export_onnx(run: Run, segmenter: str, out: Path) -> Generator[Event, None, None]:
    """Write `segmenter.onnx`, and `segmenter.json`, which says how to use it.

    Args:
        run: with the segmenter trained.
        segmenter: its name, such as `real-seed0`.
        out: folder, replaced as a whole if an earlier export made it.

    Raises:
        ConfigError: as for `require_onnx`, or the segmenter has not been trained.
        OutputError: `out` was not made by such an export, or cannot be written.
        StageError: the ONNX file finds something else than the segmenter, or an input stage is damaged.
        WeightsError: the segmenter cannot be read.
    """
    from defectory.segmentation.predict import MAX_SIDE_PX
    from defectory.segmentation.to_onnx import OPSET, compare, write_onnx
    from defectory.segmentation.training import load_segmenter
    from defectory.segmentation.windows import resized

    began = time.monotonic()
    stage, store = require_onnx(run, segmenter, out), run.store()
    stages = stages_of(run.config)
    Verified().require(run, [each for each in stages if each.name in READS or each is stage])
    folder = run.folder / stage.folder
    if (folder / layout.SKIPPED_FILE).is_file():
        raise ConfigError(f"segmenter {segmenter}", "was not trained, since it had no images", "give another")
    model, categories, sizing = load_segmenter(folder)
    records = [store.data.dataset.image(image_id) for image_id in store.split.val]
    # defective images first, since nothing is compared where nothing is found
    chosen = sorted(records, key=lambda record: not record.instances)[:MAX_IMAGES]
    seen = (resized(store.data.image(record), sizing.scale)[:MAX_SIDE_PX, :MAX_SIDE_PX] for record in chosen)
    with atomic_folder(out, kind=KIND, sources=[run.folder]) as temporary:
        yield Progress(stage=NAME, done=0, total=2, note="writing")
        images = list(seen)
        # a part of the first image is of another size and shape
        images.append(images[0][: max(32, images[0].shape[0] * 3 // 4), : max(32, images[0].shape[1] // 2)])
        write_onnx(model, temporary / NETWORK_FILE, example=images[0])
        yield Progress(stage=NAME, done=1, total=2, note="comparing")
        agreement = compare(model, temporary / NETWORK_FILE, images)
        about = {
            **_about(
                json.loads((folder / "segmenter.json").read_text()), [c.model_dump() for c in categories], sizing.scale
            ),
            "largest_side_px": MAX_SIDE_PX,
            "opset": OPSET,
            "sha256": digest_file(temporary / NETWORK_FILE),
            "checked": asdict(agreement),
        }
        write_json(temporary / ABOUT_FILE, about)
        yield Progress(stage=NAME, done=2, total=2)
    if about["outputs"] is OF_PIXELS:
        alike = f"chances within {agreement.score:.1g}"
    else:
        alike = f"boxes within {agreement.box_px:.1g} px, scores within {agreement.score:.1g}"
    summary = (
        f"{segmenter} in {out / NETWORK_FILE}; on {agreement.num_images} images {agreement.num_detections} defects as "
        f"by torch: {alike}, masks with an IoU of {agreement.mask_iou:.4f}"
    )
    yield StageEnded(stage=NAME, seconds=time.monotonic() - began, skipped=False, summary=summary)


OF_DEFECTS = {
    "boxes": "float32 [n, 4], left, top, right, bottom in pixels of the input",
    "labels": "int64 [n], as in `classes`",
    "scores": "float32 [n], strongest first; `score_threshold` was chosen on validation",
    "masks": "float32 [n, 1, height, width]; a pixel belongs to the defect from 0.5 on",
}
OF_PIXELS = {
    "chances": "float32 [classes, height, width], in the order of `classes`; neighbouring pixels where they sum to 0.5 "
    "or more are a defect; its class has the highest mean there, which is its score; `score_threshold` was chosen on "
    "validation"
}
"""What the outputs mean."""


def _about(stored: dict[str, Any], categories: list[dict[str, Any]], scale: float) -> dict[str, Any]:
    from defectory.segmentation.to_onnx import OUTPUTS, outputs_of

    return {
        "family": stored["kind"],
        "classes": [{"label": category["id"], "name": category["name"]} for category in categories],
        "score_threshold": stored.get("score_threshold", 0.5),
        "scale": scale,
        "value_range": stored.get("value_range"),
        "input": {
            "image": "float32 [3, height, width], RGB from 0 to 1, any height and width; an image resized by `scale`"
        },
        "outputs": OF_DEFECTS if outputs_of(stored["kind"]) == OUTPUTS else OF_PIXELS,
    }
