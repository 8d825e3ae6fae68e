"""Scoring token sequences with every adapter on one base.

Equal texts are scored once, the rest in the fastest way that is exact for the model: packed rows,
or padded batches where texts cannot be packed. Which of them is exact is not believed but tried,
at every load, against plain PEFT.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from morlaif_hub.bank.adapters import AdapterFiles, put_on
from morlaif_hub.bank.in_place import entries
from morlaif_hub.bank.kernels import TORCH, KernelName, choose_kernel
from morlaif_hub.bank.layout import Ids
from morlaif_hub.bank.packed import PackedScorer
from morlaif_hub.bank.padded import PaddedScorer
from morlaif_hub.bank.trunk import Features, layer_list
from morlaif_hub.errors import ArtifactError, OptionError, ScoreError

_LOG = logging.getLogger("morlaif_hub.bank")

T = TypeVar("T")
Method = Literal["packed", "padded"]
EXACT = {torch.float32: 1e-4, torch.float64: 1e-4}
"""How far scores may be off plain PEFT's, as a share of the largest of them and of 1."""
ROUGH = 0.1  # the same for half precision, in which plain PEFT itself is off by some hundredths


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
    row_tokens: int = 2048
    share_prefixes: bool = True

    def __post_init__(self) -> None:
        if self.row_tokens < 1:
            raise OptionError(f"row_tokens must be at least 1, got {self.row_tokens}")


class Scorer(Protocol):
    """A way to score a batch of texts."""

    def batch(self, texts: list[Ids], tokens: int) -> list[Ids]:
        """Return those of some texts that are scored next, the first ones of the list."""

    def score(self, texts: Sequence[Ids]) -> Tensor:
        """Return raw scores, float32 on the CPU, shape (texts, adapters)."""

    def features(self, texts: Sequence[Ids], depth: int) -> list[Features]:
        """Return what the model without adapters makes of texts."""


class Engine:
    """One classifier and the ways in which it scores: its adapters, or itself.

    Args:
        model: A sequence classifier with one output.
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
        ArtifactError: If an adapter scores probe texts as NaN or infinite.
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
        for slot, files in zip(self._slots, adapters.values(), strict=True):
            self.model = put_on(self.model, slot, files)
        self.model.requires_grad_(False).eval()
        self._causal = False
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
        for texts in self._apart(sorted(set(read))):
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
        for texts in self._apart(sorted(whole)):
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
        if not self._causal:
            return ids
        end = len(ids)
        while end > 1 and ids[end - 1] == self._pad:
            end -= 1
        return ids[:end]

    def _apart(self, texts: list[Ids]) -> list[list[Ids]]:
        """Return texts that a model may read together.

        One with two tables of positions, for short and for long texts, takes that of the longest.
        Padding at a text's end does not count: what matters is up to where it is read.
        """
        if self._short is None:
            return [texts]
        return [[t for t in texts if (len(t) > self._short) == far] for far in (False, True)]

    def _batches(
        self, texts: list[Ids], compute: Callable[[Sequence[Ids]], T]
    ) -> Iterator[tuple[list[Ids], T]]:
        """Yield texts in batches, with what was computed; smaller ones once memory ran out."""
        tokens = self.settings.row_tokens
        while texts:
            batch = self._scorer.batch(texts, tokens)
            try:
                computed = compute(batch)
            except (RuntimeError, MemoryError) as error:
                if not _out_of_memory(error):
                    raise
                tokens = self._smaller(batch, tokens, error)
                continue
            yield batch, computed
            texts = texts[len(batch) :]

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
        texts = sorted(_probes(self.model, self._pad))
        expected = self._plainly(texts)
        for name, scores in zip(self._where, expected.T, strict=True):
            if not bool(scores.isfinite().all()):
                raise ArtifactError(f"{name}: scores probe texts as NaN; its weights are damaged")
        for method, make in self._ways():
            try:
                scorer = make()
                off = self._off(scorer, texts, expected)
            except Exception as error:  # a model may take what it does not know in any way
                reason = str(error) or type(error).__name__
            else:
                share = EXACT.get(self.model.dtype, ROUGH)
                if off <= share * max(1.0, float(expected.abs().max())):
                    self._take(method, scorer)
                    return scorer
                reason = f"scores of {method} texts would be off by {off:.2g}"
            self.why = self.why or " ".join(reason.split())
        raise ScoreError(
            f"{self._where[0]}: no way to score several texts at once is exact for this model: "
            f"{self.why}"
        )

    @staticmethod
    def _off(scorer: Scorer, texts: list[Ids], expected: Tensor) -> float:
        """Return how far a scorer's scores are off the expected ones at most."""
        left, off = list(range(len(texts))), 0.0
        while left:
            waiting = [texts[i] for i in left]
            batch = scorer.batch(waiting, 1 << 20)
            places = [texts.index(text) for text in batch]
            differences = (scorer.score(batch) - expected[places]).abs()
            off = max(off, float(differences.max().nan_to_num(torch.inf)))
            left = [i for i in left if i not in places]
        return off

    def _ways(self) -> Iterator[tuple[Method, Callable[[], Scorer]]]:
        model, slots, pad = self.model, self._slots, self._pad
        if self.settings.method != "padded":
            kernel = choose_kernel(_larger_weight(model), self.settings.kernel)
            sharing = self.settings.share_prefixes
            self.kernel = kernel.name
            yield (
                "packed",
                lambda: PackedScorer(model, slots, kernel=kernel, share_prefixes=sharing),
            )
        if self.settings.method != "packed":
            self.kernel = TORCH.name
            yield "padded", lambda: PaddedScorer(model, slots, pad_token_id=pad)
            yield "padded", lambda: PaddedScorer(model, slots, pad_token_id=pad, plainly=True)

    def _take(self, method: Method, scorer: Scorer) -> None:
        self.method = method
        self._causal = isinstance(scorer, PackedScorer) and scorer.causal
        if method == "packed":
            self.why = ""
        elif self.settings.method == "auto":
            name = type(self.model.get_base_model() if self._slots else self.model).__name__
            _LOG.warning("%s is scored in padded batches, which takes longer: %s", name, self.why)

    @torch.inference_mode()
    def _plainly(self, texts: Sequence[Ids]) -> Tensor:
        """Return scores of texts by PEFT, one text at a time."""
        columns = []
        for slot in self._slots or (None,):
            if slot is not None:
                self.model.set_adapter(slot, inference_mode=True)
            rows = [torch.tensor([text], device=self.model.device) for text in texts]
            logits = [self.model(input_ids=r, attention_mask=torch.ones_like(r)) for r in rows]
            columns.append(torch.cat([output.logits[:, 0] for output in logits]).float().cpu())
        return torch.stack(columns, dim=1)


def _probes(model: Any, pad: int) -> list[Ids]:
    """Return three texts: two that share a prefix, and another. None has padding."""
    count = _vocabulary(model)
    ids = [(37 * i + 11) % count for i in range(60)]
    ids = [i for i in ids if i != pad]
    return [tuple(ids[:16]), (*ids[:10], *ids[20:25]), tuple(ids[30:37])]


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


def _larger_weight(model: Any) -> Tensor:
    layers = layer_list(model)
    found = [m.weight for m in (layers or model).modules() if isinstance(m, torch.nn.Linear)]
    return max(found, key=torch.numel) if found else next(model.parameters())


def _out_of_memory(error: BaseException) -> bool:
    said = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        "can't allocate memory" in said or "not enough memory" in said
    )
