"""What a frozen base makes of texts, computed once for all principles of a run."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from morlaif_hub.bank.engine import Engine
from morlaif_hub.bank.pooling import Pooled, pool
from morlaif_hub.errors import ScoreError, TrainingError
from morlaif_hub.hub.manifest import Pooling
from morlaif_hub.models.formats import Encoder, Text
from morlaif_hub.preference_models.head import Sides
from morlaif_hub.preference_models.preferences import LabelledPairs

FEW_LAYERS = 12
SHARES = (0.4, 0.45, 0.5, 0.55, 0.6)
POOLINGS: tuple[Pooling, ...] = ("mean", "last+mean")


class Candidate(NamedTuple):
    """What a probe could read: pooled states of a layer, counted as in `ProbeRecord`."""

    layer: int
    pooling: Pooling


def probe_candidates(depth: int) -> list[Candidate]:
    """Return what is worth trying as a probe on a base with so many layers.

    Of a deep base those around the middle: on real pairs they told as much as any, and a probe
    needs no layer above its own. Of a base with few layers all in its upper half. The likeliest
    comes first.
    """
    first = middle(depth)
    layers = sorted({math.ceil(share * depth) for share in SHARES})
    if depth <= FEW_LAYERS:
        layers = list(range(max(1, depth // 2), depth + 1))
    every = [Candidate(layer, pooling) for layer in layers for pooling in POOLINGS]
    return [first, *(candidate for candidate in every if candidate != first)]


def middle(depth: int) -> Candidate:
    """Return what told most of the candidates of a deep base, on real pairs."""
    return Candidate(math.ceil(0.55 * depth), "last+mean")


class FrozenStates:
    """Pooled states of texts in a frozen base.

    Args:
        model: A sequence classifier without adapters, or a bare base.
        encoder: How texts are read.
    """

    def __init__(self, model: Any, encoder: Encoder) -> None:
        self._encoder = encoder
        self._engine = Engine(model, pad_token_id=encoder.tokenizer.pad_token_id, adapters={})
        self._layers: tuple[int, ...] = ()
        self._known: dict[Text, Pooled] = {}

    def add(
        self,
        pairs: Iterable[LabelledPairs],
        *,
        layers: Sequence[int] = (),
        head: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Compute the states of the texts of pairs, in place of what was computed before.

        Raises TrainingError if a single text does not fit into memory; what to lower is named.

        Args:
            pairs: One set or several; what they have in common is computed once.
            layers: Whose states, as in `ProbeRecord`.
            head: Whether to keep what the score head reads, too.
            progress: Told how many different texts are done, and of how many.
        """
        self._layers, self._known = tuple(layers), {}
        wanted = {text: None for given in pairs for pair in self._texts(given) for text in pair}
        texts = list(wanted)
        done = 0

        def tell(more: int) -> None:
            nonlocal done
            done += more
            if progress:
                progress(done, len(texts))

        found = self._engine.pooled(
            [text.ids for text in texts],
            self._layers,
            starts=[text.start for text in texts],
            head=head,
            progress=tell,
        )
        try:
            self._known.update(found)
        except ScoreError as error:
            raise TrainingError(f"{error}; or lower max_length") from error

    def pooled(self, pairs: LabelledPairs, candidate: Candidate) -> Sides:
        """Return what a probe would read of pairs; their texts and its layer were added."""
        at = self._layers.index(candidate.layer)
        return self._sides(pairs, lambda p: pool(p.last[at], p.mean[at], candidate.pooling))

    def read(self, pairs: LabelledPairs) -> Sides:
        """Return what the score head reads of pairs; their texts were added with `head`."""

        def of(pooled: Pooled) -> Tensor:
            if pooled.read is None:
                raise AssertionError("what the head reads was not kept")
            return pooled.read

        return self._sides(pairs, of)

    def _sides(self, pairs: LabelledPairs, of: Callable[[Pooled], Tensor]) -> Sides:
        texts = self._texts(pairs)
        a, b = (
            np.asarray(torch.stack([of(self._known[pair[side]]) for pair in texts]).double())
            for side in (0, 1)
        )
        return Sides(a, b)

    def _texts(self, pairs: LabelledPairs) -> list[tuple[Text, Text]]:
        return [self._encoder.texts(comparison) for comparison in pairs.comparisons]
