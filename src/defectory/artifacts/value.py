"""The base class of all frozen values that stages exchange through the run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from defectory.errors import InputError
from defectory.files import digest_json, reason_of, write_json


class Value(BaseModel):
    """A frozen value with a content digest, stored as one JSON file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def digest(self) -> str:
        """Return the SHA-256 hex digest of the value's content."""
        return digest_json(self.model_dump(mode="json"))

    def save(self, path: Path) -> None:
        """Write the value to a JSON file atomically."""
        write_json(path, self.model_dump(mode="json"))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Load a value from its JSON file.

        Raises:
            InputError: the file is missing or does not contain such a value.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise InputError(path, f"no {cls.__name__} here", "run the stage that makes it first") from None
        except OSError as error:
            raise InputError(
                path, f"cannot be read ({reason_of(error)})", "check the file and its permissions"
            ) from None
        except ValidationError as error:
            first = error.errors()[0]
            field = "".join(f"{part}." for part in first["loc"])[:-1]
            told = first["msg"].removeprefix("Value error, ")
            raise InputError(
                path,
                f"not a valid {cls.__name__} ({f'{field}: ' if field else ''}{told})",
                "run the stage that makes it again",
            ) from None
