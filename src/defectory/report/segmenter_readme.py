"""Writes the README of an exported segmenter from its card."""

from __future__ import annotations

from defectory.artifacts.segmenter_card import SegmenterCard, TrainedOn
from defectory.terminal import printable

SCORES = {
    "segm_map": "segm mAP",
    "bbox_map": "bbox mAP",
    "ap50": "AP50",
    "pixel_ap": "pixel AP",
    "iou_matched": "IoU of found defects",
}
FEW_DIGITS = 16
SOURCES = {
    "real": "real images with defects",
    "defect_free": "real images without defects",
    "synthetic": "synthetic images",
    "copy_paste": "real images with a real defect pasted in",
    "procedural": "real images with a procedural defect rendered in",
}


def segmenter_readme(card: SegmenterCard) -> str:
    """Write the README of a segmenter's folder, in Markdown."""
    return "\n\n".join(
        [
            f"# Segmenter of the project {printable(card.project)}",
            *([_warning(card)] if card.finds_nothing else []),
            f"It finds defects of these classes in images: {', '.join(map(printable, card.classes))}.",
            *_figures(card),
            "## Why this one",
            f"Arm {card.arm}, seed {card.seed}. {card.why}",
            f"Verdict: {card.verdict}",
            *_how_to_use(card),
            *_training(card),
            "## Licence",
            f"{card.initial_weights} Your own images are under your own terms."
            + ("" if card.synthetic_licence is None else f" {card.synthetic_licence}"),
            f"Written by Defectory {card.version}. `card.json` holds all of this for programs.\n",
        ]
    )


def no_segmenter_readme(project: str, reasons: list[str]) -> str:
    """Write the README of a folder without a segmenter: none was trained."""
    told = "; ".join(reasons) or "the project trains none"
    title = f"# No segmenter of the project {printable(project)}"
    return f"{title}\n\nNo segmenter was trained: {told}. The report says what to do.\n"


def _warning(card: SegmenterCard) -> str:
    return (
        f"**It finds nothing: segm mAP {card.scores['segm_map']:.3f} on test images. Do not use it.** "
        "The report says what to do."
    )


def _figures(card: SegmenterCard) -> list[str]:
    chosen = "chosen on validation images" if card.is_threshold_chosen else "fixed in the project file"
    rows = [f"| {name} | {card.scores[key]:.3f} |" for key, name in SCORES.items() if key in card.scores]
    plant = card.plant_words
    return [
        "## What it does on test images",
        f"{plant[:1].upper()}{plant[1:]}, at the score threshold {card.score_threshold:.2f} ({chosen}).",
        "\n".join(["| score on test | |", "|---|---|", *rows]),
        "Test images were neither trained on nor used to choose the seed, the checkpoint or the threshold.",
    ]


def _how_to_use(card: SegmenterCard) -> list[str]:
    return [
        "## How to use it",
        "On files, from the folder above this one:",
        "```console\ndefectory predict IMAGES --segmenter best_segmenter --out predictions\n```",
        "In Python:",
        "```python\nfrom defectory import Segmenter\n\n"
        'for found in Segmenter.load("best_segmenter").predict("image.png"):\n'
        "    print(found.class_name, found.score, found.box_xyxy)\n```",
        "In the project's folder, `defectory export --onnx "
        f"{card.arm}-seed{card.seed} --out onnx` writes it for use without Defectory and torch, if its family can.",
        f"It sees images of any size, at the scale {card.scale:g}. {_value_range(card)} "
        "`--min-score` and `min_score` replace the score threshold: a lower one finds more and alarms more.",
    ]


def _value_range(card: SegmenterCard) -> str:
    if card.value_range is None:
        return "Images have 8 bits per channel."
    low, high = card.value_range
    return f"In files, {low:g} is black and {high:g} is white, as in the training images."


def _training(card: SegmenterCard) -> list[str]:
    told = f"Train holds {card.num_train} labelled images."
    if card.train_share < 1:
        told = (
            f"Train holds {card.num_train} labelled images, {card.train_share:.0%} of those that it may use. More "
            "labels are there: for a better segmenter set `split.fraction` to 1, take `split.num_labelled` and "
            "`split.num_per_class` out of the project file, and run again."
        )
    return [
        "## What it was trained on",
        f"{told} Validation and test images are never trained on: without them nobody would know what it finds.",
        "\n".join(["| source | images or crops | times shown |", "|---|---|---|", *map(_row, card.trained_on)]),
        f"Family `{card.family}`, at most {card.input_px} px on a side at once.",
        "\n".join(
            [
                "| SHA-256 of | begins with |",
                "|---|---|",
                *(f"| {name} | `{digest[:FEW_DIGITS]}` |" for name, digest in card.digests.items()),
            ]
        ),
    ]


def _row(of: TrainedOn) -> str:
    return f"| {SOURCES.get(of.source, of.source)} | {of.num_images} | {of.num_shown} |"
