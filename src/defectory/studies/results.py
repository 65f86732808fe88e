"""What a study keeps of a finished cell: its scores and score tables, by a digest of everything that decides them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from defectory.artifacts.value import Value
from defectory.errors import StageError
from defectory.evaluation.tables import ScoreTable
from defectory.files import MARKER_NAME, digest_json, write_json
from defectory.folders.marker import is_ours
from defectory.folders.swap import atomic_folder
from defectory.runs import layout
from defectory.runs.sources import MissingSource
from defectory.runs.stage import CODE_VERSION, Run, Stage, leaves_of
from defectory.stages.parts.drawing_mode import synthesis_of
from defectory.studies.elsewhere import OTHERS, TRANSFER

KIND = "cell"
CELL_FILE, TABLES = "cell.json", "tables"


class CellFacts(Value):
    """What is known of a finished cell besides its scores."""

    name: str
    arms: tuple[str, ...]
    """Arms with a segmenter; arms without images to train on are left out."""
    skipped: dict[str, str]
    """Why other arms have none, by arm."""
    num_labelled: int
    """Images of train with a defect."""
    groups: tuple[str, ...]
    """Group of each test image, in the order of the tables."""
    seconds: float
    """Time that its stages took, those of other cells included that it shares."""
    drawn_as: str = ""
    """What a draft shows, and how it is drawn, as tiling and synthesis decided; empty if nothing was drawn."""


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """A finished cell: its facts, its scores as `evaluate` wrote them, and the tables of its segmenters by arm."""

    facts: CellFacts
    scores: Mapping[str, Any]
    tables: Mapping[str, ScoreTable]
    transfer: Mapping[str, ScoreTable]
    """Tables of the same segmenters on another data set; empty if none is set."""


def key_of(run: Run, stages: Sequence[Stage], beside: Mapping[str, object]) -> str:
    """Return the digest of everything that decides a cell: settings, state of sources, versions of stages.

    Args:
        run: of the cell.
        stages: of the cell.
        beside: state of further sources, by name.
    """
    known = {
        stage.name: {name: _plain(value) for name, value in leaves_of(stage.cache_key(run.config, run.sources)).items()}
        for stage in stages
    }
    versions = {stage.name: [stage.VERSION, known[stage.name]] for stage in stages}
    others = {name: _plain(value) for name, value in beside.items()}
    return digest_json([CODE_VERSION, versions, others])[:24]


def _plain(value: object) -> object:
    return {"missing": value.path.name} if isinstance(value, MissingSource) else value


def has_result(folder: Path) -> bool:
    """Return whether a cell's result is there, whole."""
    return is_ours(folder, kind=KIND) and (folder / CELL_FILE).is_file()


def keep_result(run: Run, folder: Path, *, name: str, seconds: float) -> None:
    """Copy what is kept of a finished run into the folder of its result.

    Raises:
        StageError: a file of the run is missing or damaged.
    """
    store = run.store()
    scores, split, data = store.scores, store.split, store.data.dataset
    arms = [arm for arm in run.config.segmentation.arms if arm in scores["arms"]]
    seed = run.config.segmentation.seeds[0]
    facts = CellFacts(
        name=name,
        arms=tuple(arms),
        skipped={
            arm: store.segmenter(arm, seed).skipped or "" for arm in run.config.segmentation.arms if arm not in arms
        },
        num_labelled=sum(not data.image(i).is_defect_free for i in split.train),
        groups=tuple(data.image(i).group for i in split.test),
        seconds=seconds,
        drawn_as=_drawn_as(run),
    )
    with atomic_folder(folder, kind=KIND) as temporary:
        (temporary / TABLES).mkdir()
        for arm in arms:
            shutil.copy2(store.score_table(arm, seed), temporary / TABLES / _table_name(arm))
        if (transferred := run.folder / TRANSFER).is_dir():
            shutil.copytree(transferred, temporary / TRANSFER, ignore=shutil.ignore_patterns(MARKER_NAME))
        others = run.folder / OTHERS / layout.SCORES_FILE
        scores = {**scores, "others": json.loads(others.read_bytes()) if others.is_file() else {}}
        write_json(temporary / layout.SCORES_FILE, scores)
        write_json(temporary / CELL_FILE, facts.model_dump(mode="json"))


def _drawn_as(run: Run) -> str:
    store = run.store()
    if not (run.folder / layout.SYNTHETIC / layout.PROVENANCE).is_file():
        return ""
    what = {"tile": "a part of an image", "frame": "a whole image, scaled down"}[store.tiles.tileset.tiling.mode]
    return f"{what}, mode {synthesis_of(store, run.config).mode}"


def load_result(folder: Path) -> CellResult:
    """Read a cell's result.

    Raises:
        StageError: it is damaged.
    """
    try:
        facts = CellFacts.model_validate(json.loads((folder / CELL_FILE).read_bytes()))
        scores = json.loads((folder / layout.SCORES_FILE).read_bytes())
    except (OSError, ValueError) as error:
        raise StageError(f"{folder}: is damaged ({error}); remove it and run the study again") from None
    tables = {arm: ScoreTable.load(folder / TABLES / _table_name(arm)) for arm in facts.arms}
    transfer = {
        arm: ScoreTable.load(path) for arm in facts.arms if (path := folder / TRANSFER / _table_name(arm)).is_file()
    }
    return CellResult(facts=facts, scores=scores, tables=tables, transfer=transfer)


def _table_name(arm: str) -> str:
    return f"{layout.segmenter_name(arm, 0)}.npz"
