"""Runs the cells of a study side by side, resumes what was stopped, and gathers what came of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from defectory.api.project import Project
from defectory.artifacts.study import StudyOutcome
from defectory.config.recipes import RECIPES
from defectory.errors import ConfigError
from defectory.events import Event, Notice
from defectory.folders.claims import claim_folder, require_claimable
from defectory.lock import run_lock
from defectory.runs.executors import MAX_PROCESSES
from defectory.runs.graph import UP_TO_DATE, states_of
from defectory.runs.stage import Run
from defectory.stages.all import run_all, stages_of
from defectory.studies.cells import EVERYTHING, Cell, cells_of, overrides_of
from defectory.studies.gather import gather
from defectory.studies.results import has_result, key_of, load_result
from defectory.studies.running import LAST_STAGE, CellChanged, Running, stages_until_scores
from defectory.studies.writing import write_outcome

KIND = "study"
CELLS, RESULTS = "cells", "results"
ANOTHER_FOLDER = 'set `study.out` to a new folder, for example study.out = "runs/second-study"'


@dataclass(frozen=True, kw_only=True)
class Study:
    """A project and the cells of its study. Make one with `Study.open`.

    Attributes:
        project: the project that cells vary.
        overrides: settings of the command line, as texts.
        device: of the command line; None for the project's.
        preset: of the command line; None for the project's.
    """

    project: Project
    overrides: tuple[str, ...] = ()
    device: str | None = None
    preset: str | None = None
    _known: dict[str, int] = field(default_factory=lambda: dict[str, int](), repr=False)

    @classmethod
    def open(
        cls,
        file: Path | str = "project.toml",
        *,
        overrides: Mapping[str, Any] | Sequence[str] = (),
        preset: str | None = None,
        seed: int | None = None,
        device: str | None = None,
    ) -> Study:
        """Open a project file with the section `study`; nothing is written.

        Args:
            file: project file (TOML).
            overrides: settings that win over the file, as for `Project.open`.
            preset: in place of the file's.
            seed: of the test images; `study.seeds` are those of everything else.
            device: `auto`, `cpu`, `cuda`, ...

        Raises:
            ConfigError: a setting, or a variant's, is unknown or wrong.
        """
        from defectory.config.resolve import texts_of

        texts = [*texts_of(overrides), *([f"seed={seed}"] if seed is not None else [])]
        project = Project.open(file, overrides=texts, preset=preset, device=device)
        study = cls(project=project, overrides=tuple(texts), device=device, preset=preset)
        for cell in study.all_cells:
            study.project_of(cell)
        return study

    @property
    def folder(self) -> Path:
        """Return the study's folder."""
        return self.project.file.resolve().parent / self.project.config.study.out

    @property
    def siblings(self) -> Path:
        """Return the folder of the cells' runs."""
        return self.folder / CELLS

    @property
    def transfer_to(self) -> Path | None:
        """Return the other data set that segmenters are tested on."""
        other = self.project.config.study.transfer_to
        return None if other is None else self.project.run_values.sources.path(other)

    @property
    def others(self) -> Mapping[str, Path]:
        """Return the folders of images made elsewhere, by their names."""
        sources = self.project.run_values.sources
        return {Path(name).name: sources.path(name) for name in self.project.config.study.others}

    @cached_property
    def all_cells(self) -> tuple[Cell, ...]:
        """Return the cells that the settings ask for."""
        return tuple(cells_of(self.project.config))

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Return the cells in the order in which they are run; amounts above what there is are left out, once known."""
        most = self._num_labelled()
        return tuple(c for c in self.all_cells if most is None or c.amount.count is None or c.amount.count < most)

    def _whole_cell(self) -> Cell | None:
        """Return the first cell with all labelled images; None if there is none, or their number does not matter."""
        if all(cell.amount.count is None for cell in self.all_cells):
            return None
        return next((cell for cell in self.all_cells if cell.amount.settings == EVERYTHING), None)

    def _num_labelled(self) -> int | None:
        """Return how many labelled images train has in all; None while that is not known."""
        if "labelled" not in self._known and (count := self._counted()) is not None:
            self._known["labelled"] = count
        return self._known.get("labelled")

    def _counted(self) -> int | None:
        cell = self._whole_cell()
        if cell is None:
            return None
        run = self.run_of(cell)
        stages = stages_of(run.config)
        try:
            if states_of(run, stages)["split"].state != UP_TO_DATE:
                return None
        except ConfigError:
            return None
        data = run.store().data.dataset
        return sum(not data.image(i).is_defect_free for i in run.store().split.train)

    def _look_at_data(self) -> Iterator[Event]:
        """Import and split the data, to know how many labelled images there are."""
        cell = self._whole_cell()
        if cell is not None and self._num_labelled() is None:
            run = self.run_of(cell)
            run.folder.parent.mkdir(parents=True, exist_ok=True)
            yield from run_all(run, only=self.project_of(cell).stages(until="split"))
        left_out = dict.fromkeys(c.amount.label for c in self.all_cells if c not in self.cells)
        if left_out:
            text = f"{', '.join(left_out)}: left out, train has {self._num_labelled()} labelled images in all"
            yield Notice(stage="study", text=text)

    def project_of(self, cell: Cell) -> Project:
        """Open the project of one cell; nothing is written.

        Raises:
            ConfigError: a setting of its variant is unknown or wrong.
        """
        return Project.open(
            self.project.file, overrides=self.overrides_of_cell(cell), preset=self.preset, device=self.device
        )

    def run_of(self, cell: Cell) -> Run:
        """Return the run of one cell, with its siblings."""
        return replace(self.project_of(cell).run_values, siblings=self.siblings)

    def overrides_of_cell(self, cell: Cell) -> list[str]:
        """Return the settings of a cell, as texts of the command line."""
        own: dict[str, object] = {"out": f"{self.project.config.study.out}/{CELLS}/{cell.folder_name}"}
        if self.num_parallel > 1:
            own |= {"threads": self._threads_of_one, "executor": "in-process"}
        return [*self.overrides, *overrides_of({**cell.settings, **own})]

    @cached_property
    def num_parallel(self) -> int:
        """Return how many cells run side by side."""
        wanted = self.project.config.study.num_parallel
        return min(wanted or (MAX_PROCESSES if self._on_cpu else 1), self._num_threads, max(1, len(self.all_cells)))

    @cached_property
    def _on_cpu(self) -> bool:
        from defectory.engine.devices import device_of

        return device_of(self.project.config.device, threads=self.project.config.threads) == "cpu"

    @cached_property
    def _num_threads(self) -> int:
        import torch

        return self.project.config.threads or torch.get_num_threads()

    @property
    def _threads_of_one(self) -> int:
        return max(1, self._num_threads // self.num_parallel)

    def result_folder(self, cell: Cell) -> Path:
        """Return the folder of a cell's result, which is named after everything that decides it."""
        run = self.run_of(cell)
        beside = {"transfer_to": self.transfer_to, **self.others}
        listings = {name: run.sources.listing(str(path)) for name, path in beside.items() if path is not None}
        return self.folder / RESULTS / key_of(run, stages_until_scores(run), listings)

    def finished(self) -> list[Cell]:
        """Return the cells with a result, in order."""
        return [cell for cell in self.cells if has_result(self.result_folder(cell))]

    def check(self) -> tuple[str, ...]:
        """Check what can be known before the first cell, and return remarks. Nothing is written.

        Raises:
            ConfigError: a setting, a source or a device that cannot work.
            OutputError: the study's folder holds files that Defectory did not write.
        """
        require_claimable(self.folder, kind=KIND, todo=ANOTHER_FOLDER)
        config = self.project.config.study
        if config.recipe == "transfer" and config.transfer_to is None:
            raise ConfigError("study.transfer_to", "is not set", "name the data set that segmenters are tested on")
        for setting, path in (
            ("study.transfer_to", self.transfer_to),
            *(("study.others", p) for p in self.others.values()),
        ):
            if path is not None and not path.exists():
                raise ConfigError(f"{setting} {path}", "no such file or folder", "check the path")
        if len(self.others) < len(config.others):
            raise ConfigError("study.others", "two folders have one name", "rename one of them")
        require_cells(self)
        return self.project_of(self.cells[0]).check(until=LAST_STAGE)

    def events(self) -> Iterator[Event | CellChanged]:
        """Run every cell without a result, several at a time; yield what changes, and the notices of cells.

        Leaving the loop stops the study; the next call resumes it. A cell that fails is told and left out; the others
        go on.

        Raises:
            ConfigError: nothing can be run.
            OutputError: the study's folder holds files that Defectory did not write, or cannot be written.
            StageError: another process runs a study in this folder, or every cell failed.
        """
        self.check()
        claim_folder(self.folder, kind=KIND, todo=ANOTHER_FOLDER)
        with run_lock(self.folder):
            yield from self._look_at_data()
            yield from Running(self).events()
        self.write()

    def events_of(self, cell: Cell, *, until: str | Sequence[str]) -> Iterator[Event]:
        """Run one cell's stages up to some, with what it shares with other cells; the study goes on from there.

        Args:
            cell: of `cells`.
            until: these stages and all that they need; the name of a group selects all its stages.

        Raises:
            ConfigError: an unknown stage, or a setting that cannot work.
            OutputError: the study's folder holds files that Defectory did not write, or cannot be written.
            StageError: a stage failed, or another process runs a study in this folder.
        """
        self.check()
        claim_folder(self.folder, kind=KIND, todo=ANOTHER_FOLDER)
        with run_lock(self.folder):
            run = self.run_of(cell)
            run.folder.parent.mkdir(parents=True, exist_ok=True)
            yield from run_all(run, only=self.project_of(cell).stages(until=until))

    def outcome(self) -> StudyOutcome:
        """Return what is known from the finished cells.

        Raises:
            StageError: a result is damaged.
        """
        config = self.project.config
        found = {cell: load_result(folder) for cell in self.cells if has_result(folder := self.result_folder(cell))}
        return gather(
            self.cells,
            found,
            project=config.name,
            recipe=config.study.recipe,
            summary=RECIPES.get(config.study.recipe).summary,
            seeds=config.study.seeds,
        )

    def write(self) -> StudyOutcome:
        """Write what is known from the finished cells, as JSON, CSV, SVG and a page, and return it."""
        outcome = self.outcome()
        write_outcome(outcome, self.folder, name=self.project.config.study.recipe)
        return outcome

    @property
    def page(self) -> Path:
        """Return the page of the study."""
        return self.folder / f"{self.project.config.study.recipe}.html"


def require_cells(study: Study) -> None:
    """Require that a study has something to compare.

    Raises:
        ConfigError: it has a single arm and a single variant.
    """
    if len({(cell.variant.name, arm) for cell in study.cells for arm in cell.arms}) < 2:
        raise ConfigError("study.arms", "a single arm of a single variant", "name at least two arms to compare")
