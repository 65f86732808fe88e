"""The tiny finished run of the stages' tests, for code in guides that reads one."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

_SPEC = spec_from_file_location("tiny_project", Path(__file__).parents[1] / "stages" / "conftest.py")
assert _SPEC is not None
assert _SPEC.loader is not None
_MODULE = module_from_spec(_SPEC)
_SPEC.loader.exec_module(_MODULE)

tiny_run = _MODULE.tiny_run
