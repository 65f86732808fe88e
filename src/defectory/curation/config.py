"""Configuration of curation."""

from __future__ import annotations

from pydantic import Field

from defectory.artifacts.config import Section


class CurationConfig(Section):
    """Which drafts are kept."""

    difference_threshold: float = Field(default=24.0, gt=0)
    """Difference of a counterfactual pair that counts as drawn, in grey levels on a surface of grey level 128 and in proportion
    on others; fixed once on procedural data."""
    min_fidelity: float = Field(default=0.35, ge=0, le=1)
    """Drafts with a lower counterfactual fidelity are rejected."""
    enabled: bool = True
