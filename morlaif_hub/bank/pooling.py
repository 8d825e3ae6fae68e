"""States of a frozen base, pooled over each text: what probes read and heads are fitted on.

Layers are counted as transformers counts `hidden_states`: 1 is what the first layer makes, the
number of layers what the last one makes once it went through the model's final norm. Of a text the
last token is its last one that is no padding, and a mean is over those from its start to that one.
The start is where the response begins: on real pairs, means over the prompt as well told less.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from morlaif_hub.bank.layout import Ids, Slices, up_to_read
from morlaif_hub.errors import OptionError
from morlaif_hub.hub.manifest import Pooling


class Pool(NamedTuple):
    """The states of some texts in one layer, each float32 of shape (texts, width).

    Attributes:
        last: At each text's last token.
        mean: Over its tokens from its start on.
    """

    last: Tensor
    mean: Tensor


class Pooled(NamedTuple):
    """What a frozen model makes of one text; tensors on the CPU.

    Attributes:
        last: The state at its last token, float32, shape (layers, width).
        mean: The mean of the states at its tokens from its start on, float32, shape (layers,
            width).
        read: What the score head reads, float32, shape (width of the head,); None if not wanted.
        entering: The states that enter a layer, in the model's type, shape (tokens, width); None
            if not wanted.
    """

    last: Tensor
    mean: Tensor
    read: Tensor | None
    entering: Tensor | None


class Wanted(NamedTuple):
    """What is wanted of a frozen model.

    Attributes:
        layers: Whose pooled states are, from 1 to the number of layers.
        head: Whether what the score head reads is.
        entering: The index, from 0, of the layer whose entering states are; None for none.
    """

    layers: tuple[int, ...] = ()
    head: bool = False
    entering: int | None = None


class RowPools:
    """Pools the states of a row of packed texts, layer by layer.

    Args:
        layers: Whose states are pooled.
        paths: The slices of the row that hold each text's tokens from its start on.

    Attributes:
        layers: The same.
        found: What was pooled so far, by layer.
    """

    def __init__(self, layers: Collection[int], paths: Sequence[Slices]) -> None:
        self.layers = frozenset(layers)
        self.found: dict[int, Pool] = {}
        self._paths = paths

    def see(self, layer: int, states: Tensor) -> None:
        """Pool a layer's states, shape (1, tokens, width). What texts share is summed once."""
        row = states[0].float()
        pieces = {piece for path in self._paths for piece in path}
        sums = {(start, end): row[start:end].sum(0) for start, end in pieces}
        means = [
            torch.stack([sums[piece] for piece in path]).sum(0) / _length(path)
            for path in self._paths
        ]
        places = torch.tensor([path[-1][1] - 1 for path in self._paths], device=row.device)
        self.found[layer] = Pool(row[places], torch.stack(means))


def pooled_batch(states: Tensor, texts: Sequence[Ids], starts: Sequence[int], pad: int) -> Pool:
    """Return the pool of a padded batch.

    Args:
        states: Shape (texts, tokens, width), padded on the right.
        texts: Without what was added to them.
        starts: Of the texts, before their last tokens that are no padding or there.
        pad: The padding token.
    """
    ends = [len(up_to_read(text, pad)) for text in texts]
    each = [states[i, starts[i] : end].float() for i, end in enumerate(ends)]
    return Pool(torch.stack([s[-1] for s in each]), torch.stack([s.mean(0) for s in each]))


def pooled_text(
    found: Mapping[int, Pool],
    wanted: Wanted,
    text: int,
    *,
    read: Tensor | None,
    entering: Tensor | None,
) -> Pooled:
    """Return what was found for one text of a batch.

    Args:
        found: Of the batch, by layer.
        wanted: Which layers, and in which order.
        text: The row of the pools.
        read: Of this text, as in `Pooled`.
        entering: Of this text, as in `Pooled`.

    Raises:
        OptionError: If the layers' states are not equally wide.
    """
    pools = [found[layer] for layer in wanted.layers]
    if not pools:
        return Pooled(torch.empty(0, 0), torch.empty(0, 0), read, entering)
    for layer, pool in zip(wanted.layers, pools, strict=True):
        if pool.last.shape != pools[0].last.shape:
            raise OptionError(
                f"layers {wanted.layers[0]} and {layer} have states of different widths; ask for "
                "them one at a time"
            )
    last = torch.stack([pool.last[text] for pool in pools]).cpu()
    mean = torch.stack([pool.mean[text] for pool in pools]).cpu()
    return Pooled(last, mean, read, entering)


def pool(last: Tensor, mean: Tensor, pooling: Pooling) -> Tensor:
    """Return what a probe reads of the states of texts.

    Args:
        last: At their last tokens, shape (..., width).
        mean: Over the tokens of their responses, shape (..., width).
        pooling: As in `ProbeRecord`.

    Returns:
        Shape (..., width), or (..., 2 * width) for both, `last` first.

    Example:
        >>> pool(torch.tensor([1.0]), torch.tensor([2.0]), "last+mean")
        tensor([1., 2.])
    """
    if pooling == "last+mean":
        return torch.cat([last, mean], dim=-1)
    return last if pooling == "last" else mean


def backbone(model: Any) -> Any:
    """Return the base inside a classifier, or the model itself if it is a bare base."""
    return getattr(model, model.base_model_prefix, model)


def is_bare(model: Any) -> bool:
    """Whether a model is a base without any head."""
    return backbone(model) is model


@contextmanager
def base_outputs(model: Any) -> Iterator[list[Tensor]]:
    """Within this context, keep what a classifier's base returns: states after its final norm."""
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _given: Any, result: Any) -> None:
        seen.append(result[0])

    hook = backbone(model).register_forward_hook(keep)
    try:
        yield seen
    finally:
        hook.remove()


def _length(path: Slices) -> int:
    return sum(end - start for start, end in path)
