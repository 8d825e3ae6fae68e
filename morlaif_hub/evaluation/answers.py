"""What policies answer to prompts: sampled in portions that are kept, so that none is lost.

A portion is known by the policy, the prompts in it and how they are answered. Whoever is stopped
goes on with the next portion, and a policy that was compared once is not asked again.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from morlaif_hub.comparisons import Message, prompt_id
from morlaif_hub.errors import UnknownNameError
from morlaif_hub.hub.client import fetch
from morlaif_hub.hub.manifest import MANIFEST_NAME, manifest_kind, manifest_sha256
from morlaif_hub.messages import content_hash
from morlaif_hub.models.embedded import EMBEDDED
from morlaif_hub.models.generation import SamplingSettings, sample_responses
from morlaif_hub.models.language_model import model_folder
from morlaif_hub.policies.artifact import POLICY_FILES, load_policy
from morlaif_hub.policies.measure import mean_kl
from morlaif_hub.policies.reference import reference_of
from morlaif_hub.workspace import Workspace, write_text

Array = NDArray[np.float64]

PROMPTS_AT_ONCE = 16
VERSION = 1
"""Of what is kept; raise it when answers are sampled or measured in another way."""


class Contestant(NamedTuple):
    """A policy that is compared with another.

    Attributes:
        name: What the user called it.
        spec: What `load_policy` takes.
        folder: Its files, or those of the model that it is.
        identity: Hash of its weights, or of the manifest that lists their hashes.
    """

    name: str
    spec: str | Path | None
    folder: Path
    identity: str


@dataclass(frozen=True)
class Answers:
    """The answers of one policy, one row for each.

    Attributes:
        texts: By prompt, as many for each.
        finished: Whether each ended by itself, shape (answers,).
        kl: Mean per token to the policy's base, in nats, >= 0; None for a model that has none.
    """

    texts: list[list[str]]
    finished: Array
    kl: float | None

    @property
    def flat(self) -> list[str]:
        """All texts, those of a prompt next to each other."""
        return [text for texts in self.texts for text in texts]

    @property
    def words(self) -> Array:
        """The length of each, shape (answers,)."""
        return np.array([float(len(text.split())) for text in self.flat])


def find_contestant(spec: str, workspace: Workspace) -> Contestant:
    """Return a policy by its name in the workspace, or as `load_policy` takes it.

    Raises:
        UnknownNameError: If it is a plain name, and no policy of the workspace has it.
        ArtifactError, HubError, ModelNotFoundError: If it cannot be had.
    """
    own = workspace.policy(spec)
    if "/" not in spec and (own / MANIFEST_NAME).is_file():
        return Contestant(spec, own.absolute(), own, manifest_sha256(own))
    if spec == EMBEDDED:
        found = model_folder(None)
        return Contestant(spec, None, found.path, found.base.weights_sha256)
    if "/" not in spec:
        there = (path.parent.name for path in workspace.policy("*").parent.glob("*/morlaif.json"))
        known = [name for name in there if not name.startswith(".")]
        raise UnknownNameError("policy", spec, [*known, EMBEDDED])
    folder = fetch(spec, allow_patterns=POLICY_FILES).path
    if manifest_kind(folder) == "policy":
        return Contestant(spec, spec, folder, manifest_sha256(folder))
    return Contestant(spec, spec, folder, model_folder(spec).base.weights_sha256)


def answer(
    contestant: Contestant,
    prompts: Sequence[Sequence[Message]],
    *,
    sampling: SamplingSettings,
    folder: Path,
    progress: Callable[[int], None] | None = None,
) -> Answers:
    """Return a policy's answers to prompts; what was answered before is read from the folder.

    Every sample counts, equal and empty ones too. The model is loaded only if something is new.

    Args:
        contestant: The policy.
        prompts: Message lists.
        sampling: How to sample; `distinct` is taken for False.
        folder: Where portions are kept.
        progress: Told how many answers are there.

    Raises:
        MorlaifHubError: As `load_policy`.
    """
    settings = replace(sampling, distinct=False)
    asked = _Asked(contestant, settings)
    portions = []
    for start in range(0, len(prompts), PROMPTS_AT_ONCE):
        portion = prompts[start : start + PROMPTS_AT_ONCE]
        portions.append(_kept(asked, portion, folder))
        if progress:
            progress(len(portion) * settings.responses)
    rows = [row for portion in portions for row in portion["answers"]]
    tokens = sum(portion["tokens"] for portion in portions)
    moved = [portion["kl"] * portion["tokens"] for portion in portions if portion["kl"] is not None]
    return Answers(
        texts=[[text for text, _ in row] for row in rows],
        finished=np.array([float(finished) for row in rows for _, finished in row]),
        kl=sum(moved) / max(tokens, 1) if moved else None,
    )


class _Asked:
    """A policy that is loaded when it is asked something for the first time."""

    def __init__(self, contestant: Contestant, settings: SamplingSettings) -> None:
        self.contestant, self.settings = contestant, settings
        self._policy: Any = None
        self._reference: Any = None

    def key(self, prompts: Sequence[Sequence[Message]]) -> str:
        ids = [prompt_id(prompt) for prompt in prompts]
        return content_hash([VERSION, self.contestant.identity, asdict(self.settings), ids])

    def ask(self, prompts: Sequence[Sequence[Message]]) -> dict[str, Any]:
        if self._policy is None:
            self._policy = load_policy(self.contestant.spec)
            self._reference = reference_of(self._policy, self.contestant.folder)
        sampled = sample_responses(self._policy, prompts, self.settings)
        pairs = [
            (prompt, response.ids)
            for prompt, found in zip(prompts, sampled, strict=True)
            for response in found
        ]
        kl = None
        if self._reference is not None:
            kl = mean_kl(self._policy, pairs, self._reference)
        return {
            "answers": [[[r.text, r.finished] for r in found] for found in sampled],
            "kl": kl,
            "tokens": sum(len(ids) for _, ids in pairs),
        }


def _kept(asked: _Asked, prompts: Sequence[Sequence[Message]], folder: Path) -> dict[str, Any]:
    path = folder / f"{asked.key(prompts)}.json"
    try:
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or damaged: it is asked again
        kept = asked.ask(prompts)
        write_text(path, json.dumps(kept, ensure_ascii=False) + "\n")
    return kept


def pairs_of_answers(a: Answers, b: Answers) -> Iterator[tuple[int, str, str]]:
    """Yield the number of each prompt with an answer of either policy, in order."""
    for i, (first, second) in enumerate(zip(a.texts, b.texts, strict=True)):
        for left, right in zip(first, second, strict=True):
            yield i, left, right
