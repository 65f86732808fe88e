"""Configuration of evaluation."""

from __future__ import annotations

from pydantic import Field

from defectory.artifacts.config import Section


class EvaluationConfig(Section):
    """Settings for scoring segmenters and image sets."""

    bootstrap_samples: int = Field(default=200, ge=10)
    max_kid_tiles: int = Field(default=500, ge=10)
