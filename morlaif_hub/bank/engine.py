"""Scoring token sequences with every adapter and every probe on one base.

Equal texts are scored once, the rest in the fastest way that is exact for the model: packed rows,
or padded batches where texts cannot be packed. Which of them is exact is not believed but tried,
at every load, against plain PEFT and plain hidden states.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from morlaif_hub.bank.adapters import AdapterFiles, put_on
from morlaif_hub.bank.attention import NotPackableError
from morlaif_hub.bank.golden import exact_products
from morlaif_hub.bank.in_place import entries
from morlaif_hub.bank.kernels import TORCH, KernelName, choose_kernel
from morlaif_hub.bank.layout import Ids, up_to_read
from morlaif_hub.bank.packed import PackedScorer
from morlaif_hub.bank.padded import PaddedScorer
from morlaif_hub.bank.plain import plain_scores, trial_probes
from morlaif_hub.bank.pooling import Pooled, Wanted, is_bare
from morlaif_hub.bank.probes import ProbeFiles
from morlaif_hub.bank.trial import TRIAL_STARTS, Scorer, allowed, furthest, trial_texts
from morlaif_hub.bank.trunk import layer_list, out_of_memory
from morlaif_hub.errors import OptionError, ScoreError
from morlaif_hub.models.formats import Text

_LOG = logging.getLogger("morlaif_hub.bank")

T = TypeVar("T")
Method = Literal["packed", "padded"]


@dataclass(frozen=True)
class EngineSettings:
    """How an engine scores. The defaults are the fastest that is exact; others are to compare.

    Attributes:
        method: `auto` packs where that is exact.
        kernel: What multiplies float32 matrices on a CPU; `auto` measures.
        row_tokens: Tokens that are computed at once. A longer text is a row of its own.
        share_prefixes: Whether texts share what they begin with in common.
    """

    method: Literal["auto", "packed", "padded"] = "auto"
    kernel: Literal["auto", "torch", "onednn"] = "auto"
    row_tokens: int = 4096
    share_prefixes: bool = True

    def __post_init__(self) -> None:
        if self.row_tokens < 1:
            raise OptionError(f"row_tokens must be at least 1, got {self.row_tokens}")


class Engine:
    """One base and the ways in which it scores: adapters, probes, or the classifier that it is.

    Args:
        model: A sequence classifier with one output, or, if there are no adapters, a bare base.
            From now on it is the engine's: adapters are put on it, and nobody else may put others
            on it.
        pad_token_id: What batches are padded with, on the right; where a text is read, such tokens
            at its end do not count.
        adapters: Checked adapters by objective, in order. Where there are neither these nor probes,
            a classifier is itself the one preference model, and a bare base serves `pooled` alone.
        probes: Checked probes by objective, in order; they read the model without adapters.
        settings: How to score.

    Attributes:
        method: `packed` or `padded`.
        why: Why texts are not packed; empty if they are.
        kernel: What multiplies matrices.

    Raises:
        BaseMismatchError: If an adapter's tensors are not those that this model takes, or a probe
            reads what it has not.
        ArtifactError: If the model cannot score probe texts, or scores them as NaN or infinite.
        OptionError: If the model has adapters already.
    """

    def __init__(
        self,
        model: Any,
        *,
        pad_token_id: int,
        adapters: Mapping[str, AdapterFiles],
        probes: Mapping[str, ProbeFiles] | None = None,
        settings: EngineSettings | None = None,
    ) -> None:
        self.settings = settings or EngineSettings()
        self.method: Method = "padded"
        self.why = ""
        self.kernel: KernelName = "torch"
        self._pad = pad_token_id
        self._where = [files.where for files in adapters.values()] or [type(model).__name__]
        self._slots = [f"pm{i}" for i in range(len(adapters))]
        self._probes = tuple((probes or {}).values())
        self._silent = not adapters and not self._probes and is_bare(model)
        self.model = model
        if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
            raise OptionError("the model has adapters already; load it again for another engine")
        for slot, files in zip(self._slots, adapters.values(), strict=True):
            self.model = put_on(self.model, slot, files)
        self.model.requires_grad_(False).eval()
        self._short = short_texts(model)
        self._scorer = self._choose()

    @property
    def entries(self) -> tuple[int, ...]:
        """The first layer that each adapter changes.

        It is -1 for one that changes what comes before the layers, and the number of layers for one
        that brings a head alone.
        """
        layers = layer_list(self.model)
        return tuple(entries(self.model, list(layers or ()), self._slots))

    @property
    def takes_starts(self) -> bool:
        """Whether scores depend on where a response starts: whether there are probes."""
        return bool(self._probes)

    @torch.inference_mode()
    def score(
        self,
        sequences: Sequence[Sequence[int]],
        starts: Sequence[int] | None = None,
        *,
        progress: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Return the raw score of every sequence by every adapter, then by every probe.

        Args:
            sequences: Token ids. Equal ones are scored once.
            starts: Where the response starts in each, for probes: their means are over the tokens
                from there on, at least the last one. None for 0 in all.
            progress: Told how many different sequences were just scored.

        Returns:
            float32 on the CPU, shape (sequences, adapters and probes), or (sequences, 1) where the
            model itself scores.

        Raises:
            ScoreError: If a single sequence does not fit into memory.
            OptionError: If a token is not one of the model's, starts are not one for each sequence,
                or there is nothing to score with.
        """
        if self._silent:
            raise OptionError("a bare base without probes has nothing to score with")
        read = self._read_all(sequences, starts, counted=self.takes_starts)
        scored: dict[Text, Tensor] = {}
        for batch, scores in self._computed(read, self._scorer.score):
            scored.update(zip(batch, scores, strict=True))
            if progress:
                progress(len(batch))
        if not sequences:
            return torch.empty(0, max(len(self._slots) + len(self._probes), 1))
        return torch.stack([scored[text] for text in read])

    def pooled(
        self,
        sequences: Sequence[Ids],
        layers: Sequence[int],
        starts: Sequence[int] | None = None,
        *,
        head: bool = False,
        entering: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[tuple[Text, Pooled]]:
        """Yield the pooled states of each different text in the model without its adapters.

        The model is run no deeper than what is asked for, once for all of it. A text is a sequence
        with its start, as they were given.

        Args:
            sequences: Token ids.
            layers: As transformers counts `hidden_states`: 1 to the number of layers, the last
                after the final norm.
            starts: Where the response starts in each sequence: means are over the tokens from there
                on, at least the last one. None for 0 in all.
            head: Whether to add what the score head reads, which a bare base does not have.
            entering: The index, from 0, of a layer whose entering states to add.
            progress: Told how many different texts were just done.

        Raises:
            ScoreError: If a single sequence does not fit into memory.
            OptionError: If there is no such layer, a token is not one of the model's, or starts are
                not one for each sequence.
            TrainingError: If the model's head is of no known kind.
        """
        depth = self.model.config.get_text_config().num_hidden_layers
        if outside := [layer for layer in layers if not 1 <= layer <= depth]:
            raise OptionError(f"layer {outside[0]} is not one of the model's, 1 to {depth}")
        wanted = Wanted(tuple(layers), head, entering)
        read = self._read_all(sequences, starts, counted=bool(layers))
        whole: dict[Text, dict[Text, None]] = {}
        for text, given in zip(read, _texts(sequences, starts), strict=True):
            whole.setdefault(text, {})[given] = None
        for batch, found in self._computed(whole, partial(self._scorer.pooled, wanted=wanted)):
            for text, states in zip(batch, found, strict=True):
                for given in whole[text]:
                    yield given, states
            if progress:
                progress(sum(len(whole[text]) for text in batch))

    def _read_all(
        self, sequences: Sequence[Sequence[int]], starts: Sequence[int] | None, *, counted: bool
    ) -> list[Text]:
        """Return each sequence as it is read, with its start if that counts, else with 0."""
        count, found = vocabulary_size(self.model), []
        for sequence, start in _texts(sequences, starts):
            ids = self._read(sequence)
            if max(ids) >= count:
                raise OptionError(
                    f"token {max(ids)} is not one of the model's {count:,}: its tokenizer is that "
                    "of another model"
                )
            last = len(up_to_read(ids, self._pad)) - 1
            found.append(Text(ids, min(start, last) if counted else 0))
        return found

    def _computed(
        self, texts: Iterable[Text], compute: Callable[[Sequence[Ids], Sequence[int]], T]
    ) -> Iterator[tuple[list[Text], T]]:
        """Yield each different text once, in batches, with what was computed of them."""
        rounds: list[dict[Ids, int]] = []  # in each, a sequence has one start
        for ids, start in dict.fromkeys(texts):
            free = next((starts for starts in rounds if ids not in starts), None)
            if free is None:
                rounds.append(free := {})
            free[ids] = start
        for starts in rounds:
            for apart in self._apart(starts):
                yield from self._batches(apart, starts, compute)

    def _read(self, sequence: Sequence[int]) -> Ids:
        """Return a sequence up to the token at which a classifier reads it.

        That is its last one that is no padding, the first if there is none; with a causal model,
        what comes after it does not matter.
        """
        ids = tuple(sequence) or (self._pad,)
        return up_to_read(ids, self._pad) if self._scorer.causal else ids

    def _apart(self, texts: Collection[Ids]) -> list[list[Ids]]:
        """Return texts that a model may read together.

        One with two tables of positions, for short and for long texts, takes that of the longest.
        Padding at a text's end does not count: what matters is up to where it is read.
        """
        if self._short is None:
            return [self._scorer.order(list(texts))]
        sides = [[t for t in texts if (len(t) > self._short) == far] for far in (False, True)]
        return [self._scorer.order(side) for side in sides]

    def _batches(
        self,
        texts: list[Ids],
        starts: Mapping[Ids, int],
        compute: Callable[[Sequence[Ids], Sequence[int]], T],
    ) -> Iterator[tuple[list[Text], T]]:
        """Yield texts in batches, with what was computed; smaller ones once memory ran out."""
        tokens, start = self.settings.row_tokens, 0
        while start < len(texts):
            end = self._scorer.end(texts, start, tokens)
            batch = texts[start:end]
            try:
                computed = compute(batch, [starts[ids] for ids in batch])
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                tokens = self._smaller(batch, tokens, error)
                continue
            yield [Text(ids, starts[ids]) for ids in batch], computed
            start = end

    def _smaller(self, batch: list[Ids], tokens: int, error: BaseException) -> int:
        longest = max(len(text) for text in batch)
        if len(batch) == 1:
            raise ScoreError(
                f"a text of {longest:,} tokens does not fit into memory; score on a larger "
                "machine, or cut it"
            ) from error
        smaller = min(tokens, sum(len(text) for text in batch)) // 2
        _LOG.warning("memory ran out: going on with batches of %d tokens", smaller)
        return smaller

    def _choose(self) -> Scorer:
        """Return the fastest way to score that gives what plain PEFT gives for probe texts."""
        with exact_products():  # a faster product would hide an error, or look like one
            return self._tried(trial_texts(vocabulary_size(self.model), self._pad))

    def _tried(self, texts: list[Ids]) -> Scorer:
        slots: list[str | None] = [*self._slots]
        if not slots and not self._probes:
            if self._silent:
                self._probes = trial_probes(self.model, texts[0])
            else:
                slots = [None]
        named = list(zip(slots, self._where, strict=False))
        starts = TRIAL_STARTS
        expected = plain_scores(self.model, texts, starts, slots=named, probes=self._probes)
        for method, make in self._ways():
            try:
                scorer = make()
                off = furthest(scorer, texts, starts, expected)
            except Exception as error:  # a model may take what it does not know in any way
                if out_of_memory(error):
                    raise
                known = isinstance(error, NotPackableError)
                reason = str(error) if known else f"{type(error).__name__}: {error}"
                _LOG.debug("%s texts cannot be scored", method, exc_info=error)
            else:
                if bool((off <= self._allowed(expected)).all()):
                    self._take(method)
                    return scorer
                reason = f"scores of {method} texts would be off by {float(off.max()):.2g}"
            self.why = self.why or " ".join(reason.split())
        raise ScoreError(
            f"{self._where[0]}: no way to score several texts at once is exact for this model: "
            f"{self.why}"
        )

    def _allowed(self, expected: Tensor) -> Tensor:
        """Return how far each column may be off; adapters and probes are of different sizes."""
        kinds = expected.tensor_split([expected.shape[1] - len(self._probes)], dim=1)
        return torch.cat([allowed(kind, self.model.dtype) for kind in kinds if kind.numel()])

    def _ways(self) -> Iterator[tuple[Method, Callable[[], Scorer]]]:
        model, pad = self.model, self._pad
        columns = (model, self._slots, self._probes)
        if self.settings.method != "padded":
            kernel = choose_kernel(largest_weight(model), self.settings.kernel)
            sharing = self.settings.share_prefixes
            self.kernel = kernel.name
            packed = partial(PackedScorer, *columns, pad_token_id=pad, kernel=kernel)
            yield "packed", partial(packed, share_prefixes=sharing)
        if self.settings.method != "packed":
            self.kernel = TORCH.name
            padded = partial(PaddedScorer, *columns, pad_token_id=pad)
            yield "padded", padded
            yield "padded", partial(padded, share_trunk=False)
            yield "padded", partial(padded, share_trunk=False, equal_lengths=True)

    def _take(self, method: Method) -> None:
        self.method = method
        if method == "packed":
            self.why = ""
        elif self.settings.method == "auto":
            name = type(self.model.get_base_model() if self._slots else self.model).__name__
            _LOG.warning("%s is scored in padded batches, which takes longer: %s", name, self.why)


def _texts(sequences: Sequence[Sequence[int]], starts: Sequence[int] | None) -> list[Text]:
    """Return sequences with their starts.

    Raises:
        OptionError: If there is not one for each, or one is negative.
    """
    starts = [0] * len(sequences) if starts is None else starts
    if len(starts) != len(sequences):
        raise OptionError(f"got {len(starts)} starts for {len(sequences)} sequences")
    if negative := [start for start in starts if start < 0]:
        raise OptionError(f"a start must be at least 0, got {negative[0]}")
    return [Text(tuple(ids), start) for ids, start in zip(sequences, starts, strict=True)]


def vocabulary_size(model: Any) -> int:
    """Return how many tokens a model knows; an adapter may be around its embeddings."""
    embeddings = model.get_input_embeddings()
    count: int = getattr(embeddings, "base_layer", embeddings).weight.shape[0]
    return count


def short_texts(model: Any) -> int | None:
    """Return the tokens of the longest text that counts as short in a model with two tables."""
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    if not any(kind.get("rope_type") == "longrope" for kind in kinds):
        return None
    limits = [kind.get("original_max_position_embeddings") for kind in kinds]
    limits.append(getattr(config, "original_max_position_embeddings", None))
    return next((limit for limit in limits if limit is not None), None)


def largest_weight(model: Any) -> Tensor | None:
    """Return the largest of the first layer's weights, (outputs, inputs)."""
    layers = layer_list(model)
    first = layers[0] if layers is not None else model
    weights = [m.weight for m in first.modules() if isinstance(m, torch.nn.Linear)]
    weights += [m.weight.t() for m in first.modules() if isinstance(m, Conv1D)]
    return max(weights, key=torch.numel, default=None)
