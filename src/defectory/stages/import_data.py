"""Stage import: copies the user's data set into a folder of the run."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from defectory.config.project import ProjectConfig
from defectory.dataset.check import check_dataset, write_contact_sheet
from defectory.dataset.importer import import_dataset
from defectory.events import Notice, Work
from defectory.files import write_json
from defectory.images.header import IMAGE_SUFFIXES
from defectory.runs import layout
from defectory.runs.sources import Sources
from defectory.runs.stage import Stage
from defectory.runs.store import RunStore

SOURCES = ("path", "image_root", "defect_free", "index", "class_colours")
"""Settings of the data section that name the user's files or folders."""


class Import(Stage):
    """Copies the user's images and labels into the run."""

    VERSION = 2
    name, folder = "import", layout.DATA
    is_preparation = True

    def inputs(self, config: ProjectConfig) -> tuple[str, ...]:
        """Return no stages: the import reads only the user's files."""
        return ()

    def cache_key(self, config: ProjectConfig, sources: Sources) -> Mapping[str, object]:
        """Depend on the data section and on the state of each source's files."""
        data = config.data
        listings = {
            f"files of data.{name}": sources.listing(path, follow_links=data.follow_links)
            for name in SOURCES
            if (path := getattr(data, name)) is not None
        }
        return {"data": data.model_dump(mode="json"), **listings}

    def run(self, inputs: RunStore, config: ProjectConfig, out: Path) -> Work[str]:
        """Import and check the data set, after a warning if the disk may be too small."""
        needed = 0
        for value in self.cache_key(config, inputs.sources).values():
            rows = value if isinstance(value, list) else []
            needed += sum(size for name, size, _ in rows if Path(name).suffix.lower() in IMAGE_SUFFIXES)
        free = shutil.disk_usage(inputs.folder).free
        if free < needed:
            # the data set may use only some of these images
            found = f"{free / 1e6:,.0f} MB free, the images beside the annotations are {needed / 1e6:,.0f} MB"
            yield Notice(text=f"the disk has {found}")
        result = import_dataset(config.data, out, base_folder=inputs.sources.folder)
        report = check_dataset(out, result.dataset)
        write_json(out / layout.CHECK_FILE, report.model_dump(mode="json"))
        write_json(out / layout.REJECTED_FILE, [{"id": r.id, "reason": r.reason} for r in result.rejected])
        write_contact_sheet(out, result.dataset, out / layout.CONTACT_SHEET)
        skipped = f", {len(result.rejected)} skipped" if result.rejected else ""
        num_remarks = len(report.remarks) + len(report.problems)
        problems = f", {num_remarks} remarks ({self.folder}/{layout.CHECK_FILE})" if num_remarks else ""
        return (
            f"{report.num_images} images, {report.num_defect_free} defect-free, {report.num_instances} instances, "
            f"{report.num_groups} groups{skipped}{problems}"
        )
