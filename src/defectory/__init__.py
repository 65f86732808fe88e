"""Defectory: controllable synthesis of industrial defect images, and measurement of their value for training.

Importing it imports no torch: each name below is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from defectory.api.bases import list_bases, verify_base
    from defectory.api.data import check_data, import_data, load_dataset
    from defectory.api.demo import open_demo
    from defectory.api.drivers import compare_drivers, extract_drivers, measure_leakage, tune_drivers
    from defectory.api.export import export, export_formats, export_onnx
    from defectory.api.functions import extract_driver, score_fidelity, synthesize
    from defectory.api.insert import insert
    from defectory.api.machine import check_machine
    from defectory.api.masks import preview_masks, review_masks
    from defectory.api.project import Project
    from defectory.api.segmenter import Segmenter, predict
    from defectory.events import Notice, Progress, StageEnded, finish
    from defectory.studies.study import Study

__version__ = "0.1.0"
_HOMES = {
    "list_bases": "defectory.api.bases",
    "verify_base": "defectory.api.bases",
    "check_data": "defectory.api.data",
    "import_data": "defectory.api.data",
    "load_dataset": "defectory.api.data",
    "open_demo": "defectory.api.demo",
    "compare_drivers": "defectory.api.drivers",
    "extract_drivers": "defectory.api.drivers",
    "measure_leakage": "defectory.api.drivers",
    "tune_drivers": "defectory.api.drivers",
    "export": "defectory.api.export",
    "export_formats": "defectory.api.export",
    "export_onnx": "defectory.api.export",
    "extract_driver": "defectory.api.functions",
    "score_fidelity": "defectory.api.functions",
    "synthesize": "defectory.api.functions",
    "insert": "defectory.api.insert",
    "check_machine": "defectory.api.machine",
    "preview_masks": "defectory.api.masks",
    "review_masks": "defectory.api.masks",
    "Project": "defectory.api.project",
    "Segmenter": "defectory.api.segmenter",
    "Study": "defectory.studies.study",
    "predict": "defectory.api.segmenter",
    "Notice": "defectory.events",
    "Progress": "defectory.events",
    "StageEnded": "defectory.events",
    "finish": "defectory.events",
}

__all__ = [
    "Notice",
    "Progress",
    "Project",
    "Segmenter",
    "StageEnded",
    "Study",
    "__version__",
    "check_data",
    "check_machine",
    "compare_drivers",
    "export",
    "export_formats",
    "export_onnx",
    "extract_driver",
    "extract_drivers",
    "finish",
    "import_data",
    "insert",
    "list_bases",
    "load_dataset",
    "measure_leakage",
    "open_demo",
    "predict",
    "preview_masks",
    "review_masks",
    "score_fidelity",
    "synthesize",
    "tune_drivers",
    "verify_base",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'defectory' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
