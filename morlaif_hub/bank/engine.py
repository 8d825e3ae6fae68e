"""Scoring token sequences with every adapter on one base.

Equal texts are scored once, the rest in the fastest way that is exact for the model: packed rows,
or padded batches where texts cannot be packed. Which of them is exact is not believed but tried,
at every load, against plain PEFT.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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
from morlaif_hub.bank.layout import Ids
from morlaif_hub.bank.packed import PackedScorer
from morlaif_hub.bank.padded import PaddedScorer
from morlaif_hub.bank.trial import Scorer, allowed, furthest, probes
from morlaif_hub.bank.trunk import Features, layer_list, out_of_memory
from morlaif_hub.errors import ArtifactError, OptionError, ScoreError

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
    """One classifier and the ways in which it scores: its adapters, or itself.

    Args:
        model: A sequence classifier with one output. From now on it is the engine's: adapters are
            put on it, and nobody else may put others on it.
        pad_token_id: What batches are padded with, on the right; where a text is read, such tokens
            at its end do not count.
        adapters: Checked adapters by objective, in order; none if the model itself is the one
            preference model.
        settings: How to score.

    Attributes:
        method: `packed` or `padded`.
        why: Why texts are not packed; empty if they are.
        kernel: What multiplies matrices.

    Raises:
        BaseMismatchError: If an adapter's tensors are not those that this model takes.
        ArtifactError: If the model cannot score probe texts, or scores them as NaN or infinite.
        OptionError: If the model has adapters already.
    """

    def __init__(
        self,
        model: Any,
        *,
        pad_token_id: int,
        adapters: Mapping[str, AdapterFiles],
        settings: EngineSettings | None = None,
    ) -> None:
        self.settings = settings or EngineSettings()
        self.method: Method = "padded"
        self.why = ""
        self.kernel: KernelName = "torch"
        self._pad = pad_token_id
        self._where = [files.where for files in adapters.values()] or [type(model).__name__]
        self._slots = [f"pm{i}" for i in range(len(adapters))]
        self.model = model
        if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
            raise OptionError("the model has adapters already; load it again for another engine")
        for slot, files in zip(self._slots, adapters.values(), strict=True):
            self.model = put_on(self.model, slot, files)
        self.model.requires_grad_(False).eval()
        self._short = _short(model)
        self._scorer = self._choose()

    @property
    def entries(self) -> tuple[int, ...]:
        """The first layer that each adapter changes.

        It is -1 for one that changes what comes before the layers, and the number of layers for one
        that brings a head alone.
        """
        layers = layer_list(self.model)
        return tuple(entries(self.model, list(layers or ()), self._slots))

    @torch.inference_mode()
    def score(
        self, sequences: Sequence[Sequence[int]], *, progress: Callable[[int], None] | None = None
    ) -> Tensor:
        """Return every adapter's raw score of every sequence.

        Args:
            sequences: Token ids. Equal ones are scored once.
            progress: Told how many different sequences were just scored.

        Returns:
            float32 on the CPU, shape (sequences, adapters), or (sequences, 1) without adapters.

        Raises:
            ScoreError: If a single sequence does not fit into memory.
            OptionError: If a token is not one of the model's.
        """
        read = [self._read(sequence) for sequence in sequences]
        self._check_known(read)
        scored: dict[Ids, Tensor] = {}
        for texts in self._apart(set(read)):
            for batch, scores in self._batches(texts, self._scorer.score):
                scored.update(zip(batch, scores, strict=True))
                if progress:
                    progress(len(batch))
        if not sequences:
            return torch.empty(0, max(len(self._slots), 1))
        return torch.stack([scored[ids] for ids in read])

    def features(
        self,
        sequences: Sequence[Ids],
        depth: int,
        *,
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[tuple[Ids, Features]]:
        """Yield what the model without its adapters makes of each different sequence.

        Args:
            sequences: Token ids.
            depth: The layer whose entering states are wanted.
            progress: Told how many different sequences were just done.

        Raises:
            ScoreError: If a single sequence does not fit into memory.
            TrainingError: If the model's head is of no known kind.
        """
        whole: dict[Ids, list[Ids]] = {}
        for ids in dict.fromkeys(sequences):
            whole.setdefault(self._read(ids), []).append(ids)
        self._check_known(list(whole))
        for texts in self._apart(whole):
            for batch, found in self._batches(texts, partial(self._scorer.features, depth=depth)):
                for ids, states in zip(batch, found, strict=True):
                    yield from ((given, states) for given in whole[ids])
                if progress:
                    progress(sum(len(whole[ids]) for ids in batch))

    def _check_known(self, texts: Sequence[Ids]) -> None:
        count = _vocabulary(self.model)
        for ids in texts:
            if max(ids) >= count:
                raise OptionError(
                    f"token {max(ids)} is not one of the model's {count:,}: its tokenizer is that "
                    "of another model"
                )

    def _read(self, sequence: Sequence[int]) -> Ids:
        """Return a sequence up to the token at which a classifier reads it.

        That is its last one that is no padding, the first if there is none; with a causal model,
        what comes after it does not matter.
        """
        ids = tuple(sequence) or (self._pad,)
        if not self._scorer.causal:
            return ids
        end = len(ids)
        while end > 1 and ids[end - 1] == self._pad:
            end -= 1
        return ids[:end]

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
        self, texts: list[Ids], compute: Callable[[Sequence[Ids]], T]
    ) -> Iterator[tuple[list[Ids], T]]:
        """Yield texts in batches, with what was computed; smaller ones once memory ran out."""
        tokens, start = self.settings.row_tokens, 0
        while start < len(texts):
            end = self._scorer.end(texts, start, tokens)
            batch = texts[start:end]
            try:
                computed = compute(batch)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                tokens = self._smaller(batch, tokens, error)
                continue
            yield batch, computed
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
            return self._tried(probes(_vocabulary(self.model), self._pad))

    def _tried(self, texts: list[Ids]) -> Scorer:
        expected = self._plainly(texts)
        for method, make in self._ways():
            try:
                scorer = make()
                off = furthest(scorer, texts, expected)
            except Exception as error:  # a model may take what it does not know in any way
                if out_of_memory(error):
                    raise
                known = isinstance(error, NotPackableError)
                reason = str(error) if known else f"{type(error).__name__}: {error}"
                _LOG.debug("%s texts cannot be scored", method, exc_info=error)
            else:
                if bool((off <= allowed(expected, self.model.dtype)).all()):
                    self._take(method)
                    return scorer
                reason = f"scores of {method} texts would be off by {float(off.max()):.2g}"
            self.why = self.why or " ".join(reason.split())
        raise ScoreError(
            f"{self._where[0]}: no way to score several texts at once is exact for this model: "
            f"{self.why}"
        )

    def _ways(self) -> Iterator[tuple[Method, Callable[[], Scorer]]]:
        model, slots, pad = self.model, self._slots, self._pad
        if self.settings.method != "padded":
            kernel = choose_kernel(_largest_weight(model), self.settings.kernel)
            sharing = self.settings.share_prefixes
            self.kernel = kernel.name
            yield (
                "packed",
                lambda: PackedScorer(model, slots, kernel=kernel, share_prefixes=sharing),
            )
        if self.settings.method != "packed":
            self.kernel = TORCH.name
            padded = partial(PaddedScorer, model, slots, pad_token_id=pad)
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

    @torch.inference_mode()
    def _plainly(self, texts: Sequence[Ids]) -> Tensor:
        """Return scores of texts by PEFT, one text at a time, shape (texts, adapters)."""
        columns = []
        rows = [torch.tensor([text], device=self.model.device) for text in texts]
        for slot, where in zip(self._slots or (None,), self._where, strict=True):
            if slot is not None:
                self.model.set_adapter(slot, inference_mode=True)
            try:
                found = [self.model(input_ids=r, attention_mask=torch.ones_like(r)) for r in rows]
                scores = torch.cat([output.logits[:, 0] for output in found]).float().cpu()
            except Exception as error:  # a model that is no classifier of one text fails in any way
                if out_of_memory(error):
                    raise
                raise ArtifactError(
                    f"{where}: cannot score a text: {type(error).__name__}: {error}"
                ) from error
            if not bool(scores.isfinite().all()):
                raise ArtifactError(f"{where}: scores probe texts as NaN; its weights are damaged")
            columns.append(scores)
        return torch.stack(columns, dim=1)


def _vocabulary(model: Any) -> int:
    """Return how many tokens a model knows; an adapter may be around its embeddings."""
    embeddings = model.get_input_embeddings()
    count: int = getattr(embeddings, "base_layer", embeddings).weight.shape[0]
    return count


def _short(model: Any) -> int | None:
    """Return the tokens of the longest text that counts as short in a model with two tables."""
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    if not any(kind.get("rope_type") == "longrope" for kind in kinds):
        return None
    limits = [kind.get("original_max_position_embeddings") for kind in kinds]
    limits.append(getattr(config, "original_max_position_embeddings", None))
    return next((limit for limit in limits if limit is not None), None)


def _largest_weight(model: Any) -> Tensor | None:
    """Return the largest of the first layer's weights, (outputs, inputs)."""
    layers = layer_list(model)
    first = layers[0] if layers is not None else model
    weights = [m.weight for m in first.modules() if isinstance(m, torch.nn.Linear)]
    weights += [m.weight.t() for m in first.modules() if isinstance(m, Conv1D)]
    return max(weights, key=torch.numel, default=None)
