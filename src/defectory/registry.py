"""Registries: the things of one sort that a setting names, ours and those of installed packages. Knows no sort."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from defectory.errors import ConfigError

T = TypeVar("T")


class Registry(Generic[T]):
    """Look up things of one sort by name; each is imported when it is first asked for.

    A package adds one through an entry point of the group `defectory.<group>`; a notebook or a test adds one with
    `register` or `registered`; a setting may also name one as `package.module:attribute`. Ours cannot be replaced.

    Args:
        group: name of the sort, also of the entry-point group: `concept_methods` for `defectory.concept_methods`.
        setting: that names one, for messages: `concept.method`.
        builtin: where each of ours is found, by name: `package.module:attribute`. Nothing is imported for it.
    """

    def __init__(self, group: str, *, setting: str, builtin: Mapping[str, str]) -> None:
        self.group, self.setting = group, setting
        self._builtin = dict(builtin)
        self._added: dict[str, T] = {}
        self._loaded: dict[str, T] = {}
        self._points: dict[str, EntryPoint] | None = None

    def names(self) -> tuple[str, ...]:
        """Return all names, ours first, in their order."""
        return tuple(dict.fromkeys((*self._builtin, *self._added, *sorted(self._installed()))))

    def get(self, name: str) -> T:
        """Return the thing of a name.

        Raises:
            ConfigError: there is none, it needs a package that is missing, or an installed package's cannot be
                imported.
        """
        if name in self._added:
            return self._added[name]
        if name not in self._loaded:
            self._loaded[name] = self._find(name)
        return self._loaded[name]

    def _find(self, name: str) -> Any:
        if name in self._builtin:
            return self._ours(name)
        if (point := self._installed().get(name)) is not None:
            return self._told(name, point.value, point.load)
        if ":" in name:
            return self._told(name, name, lambda: _imported(name))
        known = ", ".join(self.names())
        todo = f"choose among {known}, or give `package.module:attribute`"
        raise ConfigError(f"{self.setting} {name!r}", "is not known", todo)

    def register(self, name: str, thing: T) -> None:
        """Add a thing for this process.

        Raises:
            ConfigError: the name is taken.
        """
        if name in self.names():
            raise ConfigError(f"{self.setting} {name!r}", "is registered already", "choose another name")
        self._added[name] = thing

    @contextmanager
    def registered(self, name: str, thing: T) -> Generator[None]:
        """Add a thing within a `with` block."""
        self.register(name, thing)
        try:
            yield
        finally:
            del self._added[name]

    def _installed(self) -> dict[str, EntryPoint]:
        # every installed package's metadata are read for it, and every setting with a registry asks
        if self._points is None:
            points = entry_points(group=f"defectory.{self.group}")
            self._points = {point.name: point for point in points if point.name not in self._builtin}
        return self._points

    def _ours(self, name: str) -> Any:
        try:
            return _imported(self._builtin[name])
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if missing in ("", "defectory"):
                raise
            found = f"needs the package {missing}, which is not installed"
            raise ConfigError(f"{self.setting} {name!r}", found, f"install {missing}, or choose another") from error

    def _told(self, name: str, place: str, load: Callable[[], Any]) -> Any:
        try:
            return load()
        except Exception as error:  # whatever another's code raises
            found = f"cannot be imported from {place} ({type(error).__name__}: {error})"
            raise ConfigError(
                f"{self.setting} {name!r}", found, "install or repair that package, or correct the name"
            ) from error


def _imported(place: str) -> Any:
    module, _, attribute = place.partition(":")
    return getattr(import_module(module), attribute)


__all__ = ["Registry"]
