"""The run folder as a typed store: stage results by name, parsed once and checked against their digests.

A stage gets a view of the store that can read only its declared inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.calibration import Calibration
from defectory.artifacts.certificate import Certificate
from defectory.artifacts.concept_check import ConceptCheck
from defectory.artifacts.dataset import MANIFEST, Dataset
from defectory.artifacts.difficulty import Difficulty
from defectory.artifacts.distilled import Distilled
from defectory.artifacts.doubt import Doubts
from defectory.artifacts.next_step import NextStep
from defectory.artifacts.plan import Decisions, MaskBank, Plan
from defectory.artifacts.segmenter_card import SegmenterCard
from defectory.artifacts.split import Split
from defectory.artifacts.targets import Targets
from defectory.artifacts.tiles import TileSet
from defectory.artifacts.weights import Concept, Control
from defectory.curation.decide import FidelitySummary, join_summaries
from defectory.dataset.descriptor import DESCRIPTORS, ImageDescriptor, load_descriptors
from defectory.errors import StageError
from defectory.files import MANIFEST_NAME, read_manifest
from defectory.runs import layout
from defectory.runs.joined import join_decisions, join_doubts, join_plans
from defectory.runs.reading import digest_or_none, manifests_of, origins_in, read_json, read_lines, read_list, state_of
from defectory.runs.sources import Sources
from defectory.runs.stored import (
    ConceptFolder,
    ControlFolder,
    DataFolder,
    DistilledFolder,
    DraftFolder,
    SegmenterFolder,
    TileFolder,
)
from defectory.segmentation.tuning import Tuning

Image = NDArray[np.uint8]
T = TypeVar("T")
V = TypeVar("V")


class RunStore:
    """Results of the stages of a run.

    Args:
        folder: of the run.
        sources: the user's files.
        readable: folders that may be read; None allows all.
        reader: the stage that reads, for messages.
        cache: folder of the cache; None for that of the run.
        num_rounds: rounds of drafts that the run is to draw. Further rounds are read as far as they are there.
    """

    def __init__(
        self,
        folder: Path,
        *,
        sources: Sources,
        readable: Collection[str] | None = None,
        reader: str = "",
        cache: Path | None = None,
        num_rounds: int = 1,
    ) -> None:
        self.folder, self.sources = folder, sources
        self.cache = cache or folder / layout.CACHE
        """Folder of files that can be made again at any time: latents, class images, drivers."""
        self._readable, self._reader, self._num_rounds = readable, reader, num_rounds
        self._parsed: dict[str, tuple[object, object]] = {}

    def view(self, readable: Collection[str], *, reader: str) -> RunStore:
        """Return a view with only some readable folders; it shares parsed values with this store."""
        view = RunStore(
            self.folder,
            sources=self.sources,
            readable=frozenset(readable),
            reader=reader,
            cache=self.cache,
            num_rounds=self._num_rounds,
        )
        view._parsed = self._parsed
        return view

    def path(self, stage_folder: str, name: str = "") -> Path:
        """Return the path of a file that a stage made, its digest unchecked.

        Raises:
            AssertionError: the reading stage has not declared it, which is a bug in Defectory.
        """
        if self._readable is not None and stage_folder not in self._readable:
            raise AssertionError(f"stage {self._reader} reads {stage_folder} without declaring it as an input")
        return self.folder / stage_folder / name

    def checked(self, stage_folder: str, name: str) -> Path:
        """Return the path of a file, after a check against its digest.

        Raises:
            StageError: it was changed, or the stage did not write it.
        """
        path = self.path(stage_folder, name)
        manifest = read_manifest(self.path(stage_folder))
        if manifest is not None and path.exists() and digest_or_none(path) != manifest["files"].get(name):
            raise StageError(f"{path}: was changed or is damaged; `defectory run` makes it anew")
        return path

    def _once(self, stage_folder: str, name: str, load: Callable[[Path], T], *, also: str | None = None) -> T:
        """Load a file with `load`, and cache the value until its stage, or that of folder `also`, runs again."""
        key = f"{stage_folder}/{name}"
        states = [state_of(self.path(folder, MANIFEST_NAME)) for folder in (stage_folder, also) if folder]
        state = None if None in states else tuple(states)
        if state is not None and (known := self._parsed.get(key)) is not None and known[0] == state:
            value: Any = known[1]
            return value
        found = load(self.checked(stage_folder, name))
        self._parsed[key] = (state, found)
        return found

    def _joined(self, name: str, parts: Sequence[T], join: Callable[[], V]) -> V:
        """Join values with `join`, and cache the result until one of them is loaded anew."""
        key = f"{name} of {len(parts)}"
        known: Any = self._parsed.get(key)
        if known is not None and all(one is other for one, other in zip(known[0], parts, strict=True)):
            return known[1]
        found = join()
        self._parsed[key] = (tuple(parts), found)
        return found

    @property
    def data(self) -> DataFolder:
        """Return the imported data set."""
        return DataFolder(dataset=self._once(layout.DATA, MANIFEST, Dataset.load), folder=self.path(layout.DATA))

    @property
    def split(self) -> Split:
        """Return the split, checked against the data set.

        Raises:
            InputError: the split is missing, was edited, or belongs to another data set.
        """

        def load(path: Path) -> Split:
            split = Split.load(path)
            split.require_dataset(self.data.dataset, where=path)
            return split

        return self._once(layout.SPLIT, layout.SPLIT_FILE, load, also=layout.DATA)

    @property
    def descriptors(self) -> Mapping[int, ImageDescriptor]:
        """Return the descriptor of each image by id."""
        digest = self.data.dataset.digest()
        return self._once(layout.SPLIT, DESCRIPTORS, lambda path: load_descriptors(path, dataset_digest=digest))

    @property
    def tiles(self) -> TileFolder:
        """Return the tiles of train, pool and val."""
        return self._tiles(layout.TILES)

    @property
    def test_tiles(self) -> TileFolder:
        """Return the tiles of test, which only `evaluate` and `report` may read."""
        return self._tiles(layout.TEST_TILES)

    def _tiles(self, folder: str) -> TileFolder:
        return TileFolder(tileset=self._once(folder, layout.TILESET_FILE, TileSet.load), folder=self.path(folder))

    @property
    def concept(self) -> ConceptFolder:
        """Return the outcome of phase 1."""
        value = self._once(layout.CONCEPT, layout.CONCEPT_FILE, Concept.load)
        return ConceptFolder(concept=value, folder=self.path(layout.CONCEPT))

    @property
    def concept_check(self) -> ConceptCheck:
        """Return the comparison of the concept's images with training tiles."""
        return self._once(layout.CONCEPT_CHECK, layout.CONCEPT_CHECK_FILE, ConceptCheck.load)

    @property
    def control(self) -> ControlFolder:
        """Return the outcome of phase 2."""
        value = self._once(layout.CONTROL, layout.CONTROL_FILE, Control.load)
        return ControlFolder(control=value, folder=self.path(layout.CONTROL))

    @property
    def distilled(self) -> DistilledFolder:
        """Return the outcome of distillation."""
        value = self._once(layout.DISTILLED, layout.DISTILLED_FILE, Distilled.load)
        return DistilledFolder(distilled=value, folder=self.path(layout.DISTILLED))

    @property
    def difficulty(self) -> Difficulty:
        """Return how hard each train instance is for the fold segmenters."""
        return self._once(layout.FOLDS, layout.DIFFICULTY_FILE, Difficulty.load)

    def fold(self, number: int) -> Path:
        """Return the folder of a fold's segmenter."""
        return self.path(layout.FOLDS, layout.fold_folder(number))

    @property
    def mask_model(self) -> Path:
        """Return the folder of the mask model."""
        return self.path(layout.MASK_MODEL)

    @property
    def plan(self) -> Plan:
        """Return the plan, of all rounds that may be read."""
        return self._plan_of([self._plan_in(layout.PLAN), *(self._plan_in(folder) for folder in self._drawn_rounds())])

    def _plan_in(self, folder: str) -> Plan:
        return self._once(folder, layout.PLAN_FILE, Plan.load)

    def _plan_of(self, plans: Sequence[Plan]) -> Plan:
        return self._joined("plan", plans, lambda: join_plans(plans))

    @property
    def rounds(self) -> tuple[Targets, ...]:
        """Return what each further round found, in order: every round that the reading stage has declared.

        Where everything may be read, these are the rounds that are there and follow the plan that is there.
        """
        return tuple(self._rounds().values())

    def _rounds(self) -> dict[str, Targets]:
        """Return what each further round found, by its folder."""
        folders = [layout.round_folder(number) for number in range(2, self._num_rounds + 1)]
        found: dict[str, Targets] = {}
        if self._readable is not None:
            return {f: self._targets_in(f) for f in folders if f in self._readable}
        plans: list[Plan] = []
        for folder in folders:
            if not self.path(folder, layout.TARGETS_FILE).is_file():
                break
            plans = plans or [self._plan_in(layout.PLAN)]
            plan, targets = self._plan_of(plans), self._targets_in(folder)
            # a round after another plan is out of date
            if targets.earlier_digest != self._joined("digest", [plan, *plans], plan.digest):
                break
            found[folder] = targets
            plans += [] if targets.is_over else [self._plan_in(folder)]
        return found

    def _targets_in(self, folder: str) -> Targets:
        return self._once(folder, layout.TARGETS_FILE, Targets.load)

    def _drawn_rounds(self) -> list[str]:
        """Return the folders of the further rounds that drew drafts."""
        return [folder for folder, targets in self._rounds().items() if not targets.is_over]

    @property
    def bank(self) -> MaskBank:
        """Return the mask bank that the plan was made from."""
        return self._once(layout.PLAN, layout.BANK_FILE, MaskBank.load)

    @property
    def calibration(self) -> Calibration:
        """Return mask guidance per class."""
        return self._once(layout.CALIBRATION, layout.CALIBRATION_FILE, Calibration.load)

    @property
    def drafts(self) -> DraftFolder:
        """Return the drafts, of all rounds that may be read."""
        later = {
            job.id: self.path(folder, layout.ROUND_DRAFTS)
            for folder in self._drawn_rounds()
            for job in self._plan_in(folder).jobs
        }
        return DraftFolder(folder=self.path(layout.DRAFTS), later=later)

    @property
    def decisions(self) -> Decisions:
        """Return the decision on each draft, of all rounds that may be read."""
        found = self._in_each_round(layout.DECISIONS_FILE, Decisions.load)
        if len(found) == 1:
            return found[0]
        return self._joined("decisions", found, lambda: join_decisions(self.plan, found))

    def _in_each_round(self, name: str, load: Callable[[Path], T]) -> list[T]:
        """Return what curation wrote under a name, for each round that drew drafts."""
        return [self._once(folder, name, load) for folder in (layout.CURATION, *self._drawn_rounds())]

    @property
    def doubts(self) -> Doubts | None:
        """Return what is doubtful in the accepted drafts; None if nothing is ignored."""
        if not self.path(layout.CURATION, layout.DOUBT_FILE).is_file():
            return None
        found = self._in_each_round(layout.DOUBT_FILE, Doubts.load)
        if len(found) == 1:
            return found[0]
        return self._joined("doubts", found, lambda: join_doubts(self.plan, found))

    @property
    def fidelity(self) -> FidelitySummary:
        """Return the fidelity of all drafts, of all rounds that may be read."""
        found = self._in_each_round(layout.FIDELITY_FILE, FidelitySummary.load)
        if len(found) == 1:
            return found[0]
        plan, decisions = self.plan, self.decisions
        return self._joined("fidelity", [*found, decisions], lambda: join_summaries(plan, decisions, found))

    @property
    def synthetic(self) -> Path:
        """Return the folder of the synthetic set."""
        return self.path(layout.SYNTHETIC)

    @property
    def pipeline(self) -> Path:
        """Return the folder of the finished pipeline, which diffusers loads."""
        return self.path(layout.PIPELINE)

    @property
    def tuning(self) -> Tuning:
        """Return what validation chose for the training of segmenters."""
        return self._once(layout.TUNING, layout.TUNING_FILE, Tuning.load)

    def segmenter(self, arm: str, seed: int) -> SegmenterFolder:
        """Return a trained segmenter."""
        folder = layout.segmenter_folder(arm, seed)
        skipped = self.path(folder, layout.SKIPPED_FILE)
        if skipped.is_file():
            reason = self._once(folder, layout.SKIPPED_FILE, read_json)["reason"]
            return SegmenterFolder(folder=self.path(folder), log={}, skipped=str(reason))
        log = self._once(folder, layout.SEGMENTER_LOG, read_json)
        return SegmenterFolder(folder=self.path(folder), log=log, skipped=None)

    @property
    def scores(self) -> dict[str, Any]:
        """Return all scores of the evaluation."""
        return self._once(layout.EVALUATION, layout.SCORES_FILE, read_json)

    def predictions(self, arm: str, seed: int) -> list[dict[str, Any]]:
        """Return what a segmenter found on test images, as COCO results with RLE."""
        name = f"{layout.PREDICTIONS}/{layout.segmenter_name(arm, seed)}.json"
        return self._once(layout.EVALUATION, name, read_list)

    def score_table(self, arm: str, seed: int) -> Path:
        """Return the file of a segmenter's score table, as `evaluate` wrote it."""
        return self.checked(layout.EVALUATION, layout.score_table(arm, seed))

    @property
    def certificate(self) -> Certificate:
        """Return the split certificate.

        Raises:
            InputError: it is missing, or was changed after it was sealed.
        """
        return self._once(layout.CERTIFICATE, layout.CERTIFICATE_FILE, Certificate.load)

    @property
    def segmenter_card(self) -> SegmenterCard | None:
        """Return the card of the best segmenter; None if no segmenter was trained.

        Raises:
            InputError: the best segmenter was not exported yet.
        """
        is_made = self.path(layout.BEST_SEGMENTER, layout.README).is_file()
        if is_made and not self.path(layout.BEST_SEGMENTER, layout.CARD_FILE).exists():
            return None
        return self._once(layout.BEST_SEGMENTER, layout.CARD_FILE, SegmenterCard.load)

    @property
    def report(self) -> Path:
        """Return the report page."""
        return self.path(layout.REPORT, layout.REPORT_FILE)

    @property
    def next_steps(self) -> tuple[NextStep, ...]:
        """Return what the report suggests to do next, the most useful first."""
        summary = self._once(layout.REPORT, layout.SUMMARY_FILE, read_json)
        return tuple(NextStep.model_validate(step) for step in summary.get("next", ()))

    def losses(self, phase: str) -> list[dict[str, float]]:
        """Return the losses of a training phase, one entry per step or validation.

        Args:
            phase: `concept` or `control`.
        """
        folder = {"concept": layout.CONCEPT, "control": layout.CONTROL}[phase]
        return self._once(folder, layout.LOSSES, read_lines)

    def manifests(self) -> dict[str, Mapping[str, Any]]:
        """Return the manifests of finished stages by folder, in order of completion."""
        return manifests_of(self.folder)

    def origins(self) -> dict[str, str]:
        """Return the origin of each setting by dotted key; empty if it was not saved or is damaged."""
        return origins_in(self.folder / layout.SETTINGS)
