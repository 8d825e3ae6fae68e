"""Named things that other packages can add to: principles, judges and scalarizers.

Ours are registered by a decorator under a bare name. A third party's come from an entry point in
the group `morlaif_hub.<kind>s` and are named `package/name`, so that no two can collide; each is
imported when it is asked for, never before. `MORLAIF_HUB_PLUGINS=off` leaves third parties out,
to tell whose bug it is.

Source:
    https://packaging.python.org/en/latest/specifications/entry-points/
"""

import os
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar, cast

from morlaif_hub.errors import PluginError, UnknownNameError

T = TypeVar("T")


class Registry(Generic[T]):
    """The things of one kind, by name.

    Args:
        kind: The singular, as errors say it, such as `scalarizer`. The entry-point group is
            `morlaif_hub.scalarizers`.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.group = f"morlaif_hub.{kind}s"
        self._ours: dict[str, T] = {}
        self._aliases: dict[str, str] = {}

    def register(self, name: str, *aliases: str) -> Callable[[T], T]:
        """Return a decorator that adds one of ours under `name` and its aliases."""

        def add(thing: T) -> T:
            for taken in (name, *aliases):
                if taken in self._ours or taken in self._aliases:
                    raise ValueError(f"two {self.kind}s are named {taken!r}")
            self._ours[name] = thing
            self._aliases.update(dict.fromkeys(aliases, name))
            return thing

        return add

    def names(self) -> list[str]:
        """Return every name without importing any plugin: ours first, then `package/name`."""
        return [*self._ours, *sorted(self._installed())]

    def aliases(self) -> dict[str, str]:
        """Return the other names of ours, each with the name that it stands for."""
        return dict(self._aliases)

    def package(self, name: str) -> str:
        """Return the package and version that provide `name`, such as `acme 1.0`."""
        entry = self._installed().get(name)
        if entry is None or entry.dist is None:
            return "morlaif-hub"
        return f"{entry.dist.name} {entry.dist.version}"

    def get(self, name: str) -> T:
        """Return the thing of that name, importing its package if it is a plugin.

        Raises:
            UnknownNameError: If there is none; the message has the nearest name.
            PluginError: If its package fails to import.
        """
        ours = self._ours.get(self._aliases.get(name, name))
        if ours is not None:
            return ours
        installed = self._installed()
        if name not in installed:
            raise UnknownNameError(self.kind, name, [*self._ours, *self._aliases, *installed])
        try:
            return cast(T, installed[name].load())
        except Exception as error:  # somebody else's package can fail in any way
            raise PluginError(
                f"{self.kind} {name!r} of {self.package(name)} cannot be loaded: "
                f"{type(error).__name__}: {error}. Set MORLAIF_HUB_PLUGINS=off to go on without "
                "third-party plugins."
            ) from error

    def _installed(self) -> dict[str, EntryPoint]:
        if os.environ.get("MORLAIF_HUB_PLUGINS", "").lower() == "off":
            return {}
        return {f"{e.dist.name}/{e.name}": e for e in entry_points(group=self.group) if e.dist}
