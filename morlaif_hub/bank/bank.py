"""A bank: several preference models that score the same responses."""

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from morlaif_hub.bank.bases import base_of
from morlaif_hub.bank.golden import exact_products, golden_sequences
from morlaif_hub.bank.groups import Group, load_group
from morlaif_hub.bank.members import Member, Sources, find_members
from morlaif_hub.comparisons import Message
from morlaif_hub.errors import ArtifactError, OptionError, ScoreError
from morlaif_hub.hub.client import Progress
from morlaif_hub.hub.manifest import BankManifest, Calibration, GoldenScores, InputFormat
from morlaif_hub.models.formats import Encoder, Text, encode_whole_pair
from morlaif_hub.models.language_model import Dtype, ModelFolder

Pair = tuple[str | Sequence[Message], str]
"""A prompt and a response."""
_LOG = logging.getLogger("morlaif_hub.bank")


class PMBank:
    """Several preference models that score together.

    Make one with `from_pretrained`. Scoring is thread-safe; calls wait for each other.

    Example:
        >>> from morlaif_hub import PMBank
        >>> bank = PMBank.from_pretrained(["./morlaif/pms/conciseness"])  # doctest: +SKIP
        >>> bank.score(["What is a haiku?"], ["A short Japanese poem."])  # doctest: +SKIP
        tensor([[0.8120]])
    """

    def __init__(
        self,
        members: Sequence[Member],
        groups: Sequence[Group],
        *,
        manifest: BankManifest | None = None,
    ) -> None:
        self.members = tuple(members)
        self._groups = tuple(groups)
        self._manifest = manifest
        self._lock = threading.Lock()
        self._texts_cut = 0

    @property
    def objectives(self) -> tuple[str, ...]:
        """The names of the columns that `score` returns, in order."""
        return tuple(member.objective for member in self.members)

    @property
    def high_scores(self) -> dict[str, str]:
        """What a high score means in words, by objective."""
        return {
            member.objective: member.manifest.principle.high_score
            if member.manifest
            else f"A high score means what {member.source} was trained to prefer."
            for member in self.members
        }

    @property
    def calibrations(self) -> tuple[Calibration | None, ...]:
        """The calibration of each column; None for a model without a manifest."""
        return tuple(m.manifest.calibration if m.manifest else None for m in self.members)

    @property
    def texts_cut(self) -> int:
        """How many texts so far were longer than a preference model reads, and cut on the left."""
        return self._texts_cut

    @property
    def scalarizer(self) -> str | None:
        """The scalarizer that a bank's artifact names; None if it was loaded from anything else."""
        return self._manifest.scalarizer if self._manifest else None

    @property
    def weights(self) -> dict[str, float] | None:
        """The weight of each objective in the bank's artifact; None as for `scalarizer`."""
        if self._manifest is None:
            return None
        return {weight.objective: weight.value for weight in self._manifest.weights}

    @classmethod
    def from_pretrained(
        cls,
        sources: Sources,
        *,
        base: str | Path | None = None,
        dtype: Dtype = "float32",
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> "PMBank":
        """Load preference models into one bank.

        Preference models on the same base share one copy of it in memory. What is on the Hub is
        pinned to a commit once and fetched at the same time; each repository whose commit is in
        the Hub's cache costs one request, or none if it is pinned or `HF_HUB_OFFLINE` is set.

        Args:
            sources: Folders (`./` or absolute) or repo ids (`repo@revision` to pin one), a
                mapping from objective names to them, or one bank, whose scalarizer and weights
                are kept, or the slug of a Collection of them. A plain reward model or PEFT adapter
                without a manifest needs the mapping, since nothing else names it.
            base: A folder or repo id that stands in for the base; its weights are compared.
            dtype: `float32` is exact; `bfloat16` is faster and differs by about 1 %.
            device: Where to score.
            progress: Told how many repositories are fetched.

        Raises:
            ArtifactError: If a preference model's files are unsafe, damaged or not what its
                manifest says, or a bank names one by what is not a commit; nothing is skipped.
            BaseMismatchError: If a base is not the one that a preference model was made for.
            OptionError: If two preference models have one objective name.
            ModelNotFoundError: If a repository or a base is not to be had.
            HubError: If the Hub refuses, or cannot be reached and its cache lacks something.
        """
        parts = _load(sources, base=base, dtype=dtype, device=device, progress=progress)
        bank = cls(parts.members, parts.groups, manifest=parts.manifest)
        if dtype == "float32" and device == "cpu":
            bank._check_golden()
        return bank

    def score(
        self,
        prompts: Sequence[str | Sequence[Message]],
        responses: Sequence[str | Sequence[Message]],
        *,
        calibrated: bool = True,
        progress: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Return every preference model's score of every response.

        A response's score does not depend on what else is in the batch. A text that is longer than
        a preference model reads is cut on the left, so that the response stays; `texts_cut` counts
        them, and the first time a warning is logged. An empty response is scored like any other.

        Args:
            prompts: Strings or message lists, one per response.
            responses: Strings, or lists of one assistant message.
            calibrated: Scores with mean 0 and standard deviation 1 on the reference set of each
                preference model, comparable between them; False for raw logits.
            progress: Told how many responses were just scored, by all preference models: what it
                is told sums up to the number of responses.

        Returns:
            float32 on the CPU, shape (batch, objectives), columns in the order of `objectives`;
            a higher score is better on its principle.

        Raises:
            OptionError: If prompts and responses differ in number.
            ScoreError: If a score is NaN or infinite, or prompt and response have no token; the
                message names the objective or the response.
        """
        if len(prompts) != len(responses):
            raise OptionError(
                f"prompts and responses must be as many; got {len(prompts)} and {len(responses)}"
            )
        pairs = list(zip(prompts, map(_response_text, responses), strict=True))
        cut: dict[int, int] = {}
        scores = self._raw(pairs, cut, _Told(len(pairs), progress))
        self._report_cut(cut, len(pairs))
        self._check_finite(scores)
        return self._calibrate(scores) if calibrated else scores

    def _raw(self, pairs: Sequence[Pair], cut: dict[int, int], told: "_Told") -> Tensor:
        """Return raw scores; note which pairs are longer than so many tokens."""
        scores = torch.empty(len(pairs), len(self.members))
        ways = [(g, f) for g in self._groups for f in dict.fromkeys(g.formats)]
        with self._lock:
            for done, (group, input_format) in enumerate(ways):
                texts = _encoded(group, input_format, pairs, cut)
                different = max(1, len(set(texts)))
                told.expect(done / len(ways), 1 / len(ways) / different)
                raw = group.engine.score(
                    [text.ids for text in texts],
                    starts=[text.start for text in texts],
                    progress=told,
                )
                for i, column in enumerate(group.columns):
                    if group.formats[i] == input_format:
                        scores[:, column] = raw[:, i]
        told.finish()
        return scores

    def _report_cut(self, cut: dict[int, int], count: int) -> None:
        if cut and not self._texts_cut:
            _LOG.warning(
                "%d of %d texts are longer than %d tokens and were cut on the left; "
                "PMBank.texts_cut goes on counting",
                len(cut),
                count,
                min(cut.values()),
            )
        self._texts_cut += len(cut)

    def _calibrate(self, scores: Tensor) -> Tensor:
        kept = [c or _IDENTITY for c in self.calibrations]
        mean = torch.tensor([c.mean for c in kept])
        std = torch.tensor([c.std for c in kept])
        return (scores - mean) / std

    def _check_finite(self, scores: Tensor) -> None:
        bad = ~torch.isfinite(scores)
        if bad.any():
            row, column = bad.nonzero()[0].tolist()
            raise ScoreError(
                f"{self.objectives[column]} ({self.members[column].source}) scored response "
                f"{row} as {scores[row, column].item()}; its weights are damaged or overflow"
            )

    def _check_golden(self) -> None:
        """Check the golden scores of every member, and those that the bank was made with."""
        prompts, responses = golden_sequences()
        with exact_products():
            scores = self._raw(list(zip(prompts, responses, strict=True)), {}, _Told(0, None))
        self._check_finite(scores)
        noted = self._manifest.golden if self._manifest else ()
        for column, member in enumerate(self.members):
            own = [member.manifest.golden] if member.manifest else []
            for golden in (*own, *noted[column : column + 1]):
                worst = golden_distance(golden, scores[:, column])
                if worst > golden.tolerance:
                    raise ArtifactError(
                        f"{member.source}: its golden scores are off by {worst:.4g}, allowed is "
                        f"{golden.tolerance:.4g}; the files are not those that were published"
                    )


def load_bank(
    sources: Sources,
    *,
    base: str | Path | None = None,
    dtype: Dtype = "float32",
    device: str = "cpu",
    progress: Progress | None = None,
) -> PMBank:
    """Load a bank as `PMBank.from_pretrained` does, but for the check of its golden scores.

    For whoever measures them. Everything else should use `PMBank.from_pretrained`.
    """
    parts = _load(sources, base=base, dtype=dtype, device=device, progress=progress)
    return PMBank(parts.members, parts.groups, manifest=parts.manifest)


class _Parts(NamedTuple):
    """What a bank is made of."""

    members: list[Member]
    groups: list[Group]
    manifest: BankManifest | None


def _load(
    sources: Sources,
    *,
    base: str | Path | None,
    dtype: Dtype,
    device: str,
    progress: Progress | None,
) -> _Parts:
    members, manifest = find_members(sources, progress=progress)
    _refuse_equal_names(members)
    grouped: dict[Path, list[int]] = {}
    bases: dict[Path, ModelFolder | None] = {}
    for column, member in enumerate(members):
        found = base_of(member, base)
        key = member.path if found is None else found.path
        bases[key] = found
        grouped.setdefault(key, []).append(column)
    groups = [
        load_group(
            [members[c] for c in columns], columns, base=bases[key], dtype=dtype, device=device
        )
        for key, columns in grouped.items()
    ]
    return _Parts(members, groups, manifest)


def _refuse_equal_names(members: Sequence[Member]) -> None:
    sources: dict[str, list[str]] = {}
    for member in members:
        sources.setdefault(member.objective, []).append(member.source)
    for name, of_it in sources.items():
        if len(of_it) > 1:
            raise OptionError(
                f"two preference models are named {name}: {' and '.join(of_it)}; give each a name "
                f"of its own: {{'name': {of_it[0]!r}, 'other name': {of_it[1]!r}}}"
            )


def golden_distance(golden: GoldenScores, scores: Tensor) -> float:
    """Return how far scores of the golden texts are off the noted ones at most; NaN is infinite.

    Args:
        golden: As a manifest has them.
        scores: Raw scores, shape (texts,).
    """
    noted = torch.tensor(golden.scores)
    if noted.shape != scores.shape:
        return float("inf")
    return float((scores - noted).abs().max().nan_to_num(nan=float("inf")))


_IDENTITY = Calibration(mean=0.0, std=1.0, temperature=1.0, n=0)


class _Told:
    """Turns what single engines tell into numbers of responses that all of them have scored.

    Args:
        count: Of the responses.
        tell: Is told; None for nobody.
    """

    def __init__(self, count: int, tell: Callable[[int], None] | None) -> None:
        self._count, self._tell = count, tell
        self._share = self._step = 0.0
        self._told = 0

    def expect(self, share: float, step: float) -> None:
        """Begin an engine's work, of which each text is one step of the whole."""
        self._share, self._step = share, step

    def __call__(self, texts: int) -> None:
        self._share += self._step * texts
        self._reach(int(self._share * self._count))

    def finish(self) -> None:
        """Tell of those that were not told of."""
        self._reach(self._count)

    def _reach(self, responses: int) -> None:
        if self._tell and responses > self._told:
            self._tell(responses - self._told)
            self._told = responses


def _encoded(
    group: Group,
    input_format: InputFormat,
    pairs: Sequence[Pair],
    cut: dict[int, int],
) -> list[Text]:
    """Return the token ids of pairs; add to `cut` which are longer than so many tokens.

    Where the responses start is found for probes alone: it costs reading the prompts once more.
    """
    encoder = Encoder(group.tokenizer, input_format)
    texts = []
    for i, (prompt, response) in enumerate(pairs):
        if group.engine.takes_starts:
            text = encoder.whole(prompt, response)
        else:
            ids = encode_whole_pair(group.tokenizer, prompt, response, input_format)
            text = Text(tuple(ids), 0)
        if not text.ids:
            raise ScoreError(
                f"response {i} and its prompt are both empty: there is nothing to score"
            )
        if len(text.ids) > input_format.max_length:
            cut[i] = input_format.max_length
        texts.append(text.cut(input_format.max_length))
    return texts


def _response_text(response: str | Sequence[Message]) -> str:
    if isinstance(response, str):
        return response
    if len(response) != 1:
        raise OptionError(
            f"a response must be a string or a list of one message, got {len(response)} messages"
        )
    return response[0]["content"]
