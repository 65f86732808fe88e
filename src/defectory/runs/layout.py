"""Names of folders and files in a run folder. Nothing else knows them."""

from __future__ import annotations

from defectory.filenames import file_name_of

DATA = "data"
SPLIT = "split"
TILES = "tiles"
TEST_TILES = "test_tiles"
CONCEPT = "concept"
CONCEPT_CHECK = "concept_check"
CONTROL = "control"
DISTILLED = "distilled"
FOLDS = "folds"
MASK_MODEL = "mask_model"
PLAN = "plan"
CALIBRATION = "calibration"
DRAFTS = "drafts"
CURATION = "curation"
ROUNDS = "rounds"
SYNTHETIC = "synthetic"
PIPELINE = "pipeline"
TUNING = "segmenter_tuning"
SEGMENTERS = "segment"
EVALUATION = "evaluation"
CERTIFICATE = "certificate"
BEST_SEGMENTER = "best_segmenter"
REPORT = "report"

CACHE = "cache"
TUNED_DRIVERS = "tune/drivers.json"
SETTINGS = "project.json"
"""The resolved configuration, with the origin of each value."""
RUN_SCORES = "scores.json"
RUN_REPORT = "report.html"
"""Copies of the results of `evaluate` and `report`, at the top of the run folder."""

SPLIT_FILE = "split.json"
TILESET_FILE = "tileset.json"
CONCEPT_FILE = "concept.json"
CONCEPT_CHECK_FILE = "concept_check.json"
CONCEPT_BASE = "base"
CONTROL_FILE = "control.json"
CONTROL_NETWORK = "controlnet"
DISTILLED_FILE = "distilled.json"
DISTILLED_LORA = "lora"
LOSSES = "log.jsonl"
DIFFICULTY_FILE = "difficulty.json"
PLAN_FILE = "plan.json"
BANK_FILE = "bank.json"
PLACEMENT_FILE = "placement.json"
CALIBRATION_FILE = "calibration.json"
DECISIONS_FILE = "decisions.json"
FIDELITY_FILE = "fidelity.json"
DOUBT_FILE = "doubt.json"
TARGETS_FILE = "targets.json"
ROUND_DRAFTS = "drafts"
ROUND_SET = "set"
"""Folders of a further round, in the folder of the round: its drafts, and those so far while segmenters are trained."""
CONTACT_SHEET = "contact_sheet.png"
CHECK_FILE = "check.json"
REJECTED_FILE = "rejected.json"
ANNOTATIONS = "annotations.json"
PROVENANCE = "provenance.jsonl"
IGNORE_FILE = "ignore.json"
IMAGES = "images"
TUNING_FILE = "tuning.json"
SEGMENTER_LOG = "log.json"
SKIPPED_FILE = "skipped.json"
SCORES_FILE = "scores.json"
GATHERED_SCORES = "run_scores.json"
PREDICTIONS = "predictions"
CERTIFICATE_FILE = "certificate.json"
IMAGES_USED = "images_used.json"
"""Which images a stage used, by purpose."""
REPORT_FILE = "report.html"
SUMMARY_FILE = "summary.json"
LADDER_FILE = "ladder.svg"
SCORES_TABLE = "scores.csv"
CARD_FILE = "card.json"
README = "README.md"


def round_folder(number: int) -> str:
    """Return the folder of a further round of drafts, from 2, relative to the run."""
    return f"{ROUNDS}/{number}"


def segmenter_folder(arm: str, seed: int) -> str:
    """Return the folder of one trained segmenter, relative to the run."""
    return f"{SEGMENTERS}/{segmenter_name(arm, seed)}"


def segmenter_name(arm: str, seed: int) -> str:
    """Return a file name for one trained segmenter; an arm may be named `package.module:attribute`."""
    return f"{file_name_of(arm)}-seed{seed}"


def score_table(arm: str, seed: int) -> str:
    """Return the file of one segmenter's score table, relative to the folder of the evaluation."""
    return f"tables/{segmenter_name(arm, seed)}.npz"


def validation_folder(arm: str) -> str:
    """Return the folder of a segmenter that is compared on validation, relative to the folder of a further round."""
    return f"validation-{arm}"


def fold_folder(fold: int) -> str:
    """Return the folder of one fold's segmenter, relative to the folder of the folds."""
    return f"fold-{fold}"
