"""Stages of a long run that are not done twice.

A stage is known by what went into it: its settings and the stage before. Its result and the
manifests of what it wrote are kept in one file, so a run that was killed goes on where it stopped,
and a stage whose artifacts were changed since is run again.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from morlaif_hub.hub.manifest import MANIFEST_NAME, manifest_sha256
from morlaif_hub.workspace import write_text


class Stages:
    """The finished stages of a run, in order.

    Args:
        path: The JSON file in which they are kept.
        start: What the first stage depends on; plain values.
    """

    def __init__(self, path: Path, start: object) -> None:
        self._path = path
        self._chain = _hash(start)
        self._kept: dict[str, dict[str, Any]] = _read(path)
        self.seconds: dict[str, float] = {}

    def run(
        self,
        name: str,
        settings: object,
        outputs: Sequence[Path],
        work: Callable[[], dict[str, Any]],
    ) -> dict[str, Any]:
        """Return a stage's result, doing its work unless it is done.

        Args:
            name: Of the stage.
            settings: What it depends on beside the stages before it; plain values.
            outputs: Folders or files that it writes.
            work: Does it and returns its result as plain values.
        """
        self._chain = _hash([self._chain, name, settings])
        kept = self._kept.get(name)
        if kept is None or kept["from"] != self._chain or kept["wrote"] != _states(outputs):
            started = time.monotonic()
            result = work()
            kept = {
                "from": self._chain,
                "wrote": _states(outputs),
                "seconds": time.monotonic() - started,
                "result": result,
            }
            self._kept[name] = kept
            self._write()
        self.seconds[name] = kept["seconds"]
        result = kept["result"]
        return dict(result)

    def _write(self) -> None:
        write_text(self._path, json.dumps(self._kept, indent=1) + "\n")


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # none yet, or not ours: every stage is run
    return kept if isinstance(kept, dict) else {}


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _states(outputs: Sequence[Path]) -> list[str | None]:
    return [_state(path) for path in outputs]


def _state(path: Path) -> str | None:
    if (path / MANIFEST_NAME).is_file():
        return manifest_sha256(path)
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return None
