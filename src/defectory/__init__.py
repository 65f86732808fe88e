"""Defectory: controllable synthesis of industrial defect images, and the measurement of what they are worth.

Importing it imports no torch: each name below is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from defectory.api.functions import extract_driver, load_dataset, score_fidelity, synthesize
    from defectory.api.project import Project
    from defectory.api.segmenter import Segmenter
    from defectory.events import Notice, Progress, StageEnded

__version__ = "0.1.0"
_HOMES = {
    "Project": "defectory.api.project",
    "Segmenter": "defectory.api.segmenter",
    "load_dataset": "defectory.api.functions",
    "extract_driver": "defectory.api.functions",
    "score_fidelity": "defectory.api.functions",
    "synthesize": "defectory.api.functions",
    "Progress": "defectory.events",
    "Notice": "defectory.events",
    "StageEnded": "defectory.events",
}

__all__ = [
    "Notice",
    "Progress",
    "Project",
    "Segmenter",
    "StageEnded",
    "__version__",
    "extract_driver",
    "load_dataset",
    "score_fidelity",
    "synthesize",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'defectory' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
