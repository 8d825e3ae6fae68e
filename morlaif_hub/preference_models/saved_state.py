"""An unfinished training run in one file, from which it goes on as if it had never stopped."""

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from morlaif_hub.bank.layout import Ids
from morlaif_hub.errors import WorkspaceError

_LOG = logging.getLogger("morlaif_hub.preference_models")
_NAME = "training.safetensors"
_SAMPLE = 64
"""Numbers of each weight that tell one base from another."""


class State(NamedTuple):
    """What a run has come to.

    Attributes:
        tensors: By name.
        facts: The rest, as JSON has it.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def packed(weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return weights by name, and what an optimizer has come to for each of them, as tensors."""
    moments = optimizer.state_dict()["state"]
    tensors = {f"now/{name}": weight for name, weight in weights.items()}
    return tensors | {f"moment/{i}/{k}": t for i, its in moments.items() for k, t in its.items()}


def put_back(
    tensors: Mapping[str, Tensor], weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> None:
    """Put what `packed` returned, among other tensors, into the same weights and optimizer."""
    moments: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        if kind == "now":
            weights[rest].data.copy_(tensor)
        elif kind == "moment":
            place, _, moment = rest.partition("/")
            moments.setdefault(int(place), {})[moment] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})


class SavedState:
    """A place for one state of one run.

    Args:
        folder: Where its file is; None to keep nothing.
        key: Of everything that the run's result depends on. A state of another key is not taken.
    """

    def __init__(self, folder: Path | None, key: str) -> None:
        self._file = None if folder is None else folder / _NAME
        self._key = key

    def save(self, state: State) -> None:
        """Put a state in the place of the one before; a process killed meanwhile leaves one whole.

        Raises:
            WorkspaceError: If it cannot be written.
        """
        if self._file is None:
            return
        unfinished = self._file.with_name(f"{_NAME}.new")
        tensors = {name: t.detach().cpu().contiguous() for name, t in state.tensors.items()}
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, unfinished, {"key": self._key, "facts": json.dumps(state.facts)})
            with unfinished.open("rb") as written:
                os.fsync(written.fileno())
            unfinished.replace(self._file)
        except (OSError, SafetensorError) as error:
            raise WorkspaceError(
                f"{self._file.parent}: the state of training cannot be written: {error}"
            ) from error

    def load(self) -> State | None:
        """Return the run's state; None if there is none, or only that of another run."""
        if self._file is None or not self._file.is_file():
            return None
        try:
            with safe_open(self._file, framework="pt") as found:
                about = found.metadata() or {}
                if about.get("key") != self._key:
                    _LOG.info("%s is of another run and will be replaced", self._file)
                    return None
                names = found.keys()  # the file itself is no iterator of them
                tensors = {name: found.get_tensor(name) for name in names}
                return State(tensors, json.loads(about["facts"]))
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            _LOG.warning("%s cannot be read, training begins anew: %s", self._file, error)
            return None


class Digest:
    """A hash of what a run's result depends on."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, *facts: object) -> None:
        """Add what JSON can say."""
        self._hash.update(json.dumps(facts, sort_keys=True, default=str).encode())

    def add_texts(self, texts: Sequence[Ids]) -> None:
        """Add token ids."""
        self.add([len(text) for text in texts])
        for text in texts:
            self._hash.update(np.array(text, dtype=np.int64).tobytes())

    def add_weights(self, weights: Mapping[str, nn.Parameter]) -> None:
        """Add names, shapes and some numbers of weights, which tell one base from another."""
        for name, weight in weights.items():
            self.add(name, list(weight.shape), str(weight.dtype))
            flat = weight.detach().reshape(-1)
            some = flat[:: max(1, len(flat) // _SAMPLE)].to("cpu", torch.float64)
            self._hash.update(some.numpy().tobytes())

    def __str__(self) -> str:
        return self._hash.hexdigest()
