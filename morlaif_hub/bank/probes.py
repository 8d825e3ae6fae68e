"""Probes: linear heads on pooled states of one layer of a frozen base, as files and as scores.

A probe is the cheapest form of a preference model. It is one vector, its base is only run up to
its layer, and all probes on one base share that run.

Source:
    arXiv:1610.01644 (linear probes of intermediate layers).
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from numpy.typing import ArrayLike
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from morlaif_hub.bank.pooling import Pool, pool
from morlaif_hub.errors import ArtifactError, BaseMismatchError, OptionError
from morlaif_hub.hub.artifact import POINTER_SAID, is_pointer
from morlaif_hub.hub.manifest import MANIFEST_NAME, Pooling, ProbeRecord

PROBE_WEIGHTS = "probe.safetensors"
_TENSOR = "weight"
_LARGEST = 1 << 20
"""Numbers in a probe; those of real ones are one or two widths of a model."""


@dataclass(frozen=True, eq=False)
class ProbeFiles:
    """A checked probe.

    Attributes:
        weight: float32, shape (width,), or (2 * width,) for `last+mean`, `last` first.
        layer: Whose states it reads, as in `ProbeRecord`.
        pooling: Of the states over a text.
        where: The repo or folder, for errors.
    """

    weight: Tensor
    layer: int
    pooling: Pooling
    where: str

    def score(self, states: Pool) -> Tensor:
        """Return the raw scores of texts, float32, shape (texts,)."""
        read = pool(states.last, states.mean, self.pooling)
        return (read * self.weight.to(read.device)).sum(-1)

    def check_fits(self, layers: int, width: int) -> None:
        """Check that a probe can read a base.

        Args:
            layers: That the base has.
            width: Of the states in the probe's layer, if it has that.

        Raises:
            BaseMismatchError: If it cannot.
        """
        if self.layer > layers:
            raise BaseMismatchError(
                f"{self.where}: {MANIFEST_NAME}: probe.layer is {self.layer}, but its base has "
                f"{layers} layers"
            )
        wanted = width * (2 if self.pooling == "last+mean" else 1)
        if len(self.weight) != wanted:
            raise BaseMismatchError(
                f"{self.where}: {PROBE_WEIGHTS} does not fit its base: {_TENSOR} has "
                f"{len(self.weight)} numbers, but {self.pooling} of layer {self.layer} has {wanted}"
            )


def check_probe(folder: Path, where: str, record: ProbeRecord) -> ProbeFiles:
    """Return a probe's files after checking that they are safe and complete.

    Whether it fits its base is seen once that is loaded: `ProbeFiles.check_fits`.

    Args:
        folder: Holds `probe.safetensors`.
        where: The repo or folder, for errors.
        record: What its manifest says that it reads.

    Raises:
        ArtifactError: If the file is not there, or is anything but one vector of finite float32
            numbers in safetensors.
    """
    path = folder / PROBE_WEIGHTS
    if not path.is_file():
        raise ArtifactError(f"{where}: no {PROBE_WEIGHTS}, which a probe needs")
    if is_pointer(path):
        raise ArtifactError(f"{where}: {PROBE_WEIGHTS}: {POINTER_SAID}")
    try:
        with safe_open(path, framework="pt") as tensors:
            names = sorted(tensors.keys())  # a method of the file, which is no dict
            if names != [_TENSOR]:
                raise ArtifactError(
                    f"{where}: {PROBE_WEIGHTS} must have one tensor, {_TENSOR}; it has "
                    f"{', '.join(names[:5]) or 'none'}"
                )
            header = tensors.get_slice(_TENSOR)
            shape, dtype = tuple(header.get_shape()), header.get_dtype()
            if len(shape) != 1 or not 0 < shape[0] <= _LARGEST or dtype != "F32":
                raise ArtifactError(
                    f"{where}: {PROBE_WEIGHTS}: {_TENSOR} must be one vector of float32 numbers, "
                    f"got {dtype} of shape {shape}"
                )
            weight = tensors.get_tensor(_TENSOR)
    except (SafetensorError, OSError) as error:
        raise ArtifactError(
            f"{where}: {PROBE_WEIGHTS} is not a safetensors file: {error}"
        ) from error
    if not bool(weight.isfinite().all()):
        raise ArtifactError(f"{where}: {PROBE_WEIGHTS}: {_TENSOR} has NaN or infinite values")
    return ProbeFiles(weight, record.layer, record.pooling, where)


def write_probe(folder: Path, weight: ArrayLike) -> Path:
    """Write a probe's one file, and return its path.

    Args:
        folder: Where; it is made if it is not there.
        weight: Shape (width,), or (2 * width,) for `last+mean`, `last` first; the score is its
            product with the pooled states.

    Raises:
        OptionError: If it is not one vector of finite numbers.
    """
    vector = torch.as_tensor(weight).detach().float().cpu().contiguous()
    if vector.dim() != 1 or not len(vector) or not bool(vector.isfinite().all()):
        raise OptionError(
            f"a probe must be one vector of finite numbers, got shape {tuple(vector.shape)}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    save_file({_TENSOR: vector}, folder / PROBE_WEIGHTS)
    return folder / PROBE_WEIGHTS
