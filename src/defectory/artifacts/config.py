"""The base class of every configuration section."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from defectory.registry import Registry


class Section(BaseModel):
    """A frozen configuration section that rejects unknown keys and numbers that are not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @classmethod
    def added_names(cls) -> tuple[str, ...]:
        """Return the names of settings, all numbers, that packages add to the section."""
        return ()


def registered_name(value: str, registry: Registry[Any]) -> str:
    """Check that a setting names a thing of a registry, without importing it; for validators.

    Raises:
        ValueError: it does not, and is no `package.module:attribute` either.
    """
    if value in registry.names() or ":" in value:
        return value
    raise ValueError(f"not known; choose among {', '.join(registry.names())}, or give `package.module:attribute`")
