"""A small workspace with one artifact of each kind, made by the library itself on a tiny model.

Labels come from a rule that likes few characters, or many; the model's weights are random. What is
tested on it is the way to the Hub and back, not how good anything is.
"""

from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from morlaif_hub.bank.artifact import write_bank
from morlaif_hub.bank.bank import PMBank
from morlaif_hub.bank.golden import golden_sequences
from morlaif_hub.comparisons import Comparison
from morlaif_hub.feedback.collect import CollectSettings, collect_feedback
from morlaif_hub.feedback.dataset import FeedbackDataset
from morlaif_hub.hub.artifact import seal, weights_sha256
from morlaif_hub.hub.manifest import BaseIdentity, BaseManifest, SourceRecord
from morlaif_hub.models.language_model import model_folder
from morlaif_hub.policies.train import PolicySettings, RewardSpec, train_policy
from morlaif_hub.preference_models.preferences import feedback_preferences
from morlaif_hub.preference_models.settings import GradientSettings
from morlaif_hub.preference_models.train import TrainSettings, train_preference_models
from morlaif_hub.principles import Principle, load_constitution
from morlaif_hub.publish.plan import Published
from morlaif_hub.publish.push import push_to_hub
from morlaif_hub.workspace import Workspace
from tests.fake_judges import RuleJudge, longer
from tests.tiny import Kind, save_tiny

PRINCIPLES = ("conciseness", "detail")
WEIGHTS = {"conciseness": 0.75, "detail": 0.25}
# So that the adapter, not only its head, moves scores.
GRADIENT = GradientSettings(learning_rate=0.05)
PROMPTS = [[{"role": "user", "content": f"What is {n} and {n}?"}] for n in range(36)]


class Made(NamedTuple):
    """The workspace and the base that everything in it is made on."""

    workspace: Workspace
    base: Path


def make_base(folder: Path, kind: Kind = "llama", *, seed: int = 0) -> Path:
    """Write the artifact of a tiny base; its source says that it came from a GGUF file."""
    save_tiny(folder, kind, layers=2, seed=seed)
    identity = BaseIdentity(
        repo_id=None,
        revision=None,
        weights_sha256=weights_sha256(folder),
        source=f"gguf:{seed:064x}",
    )
    manifest = BaseManifest(
        license="apache-2.0", base=identity, made_from="random numbers", versions={"torch": "2"}
    )
    seal(folder, manifest)
    return folder


def make_workspace(root: Path, base: Path, *, policy: bool = True) -> Workspace:
    """Write feedback, preference models, bank and, if wanted, a policy."""
    workspace = Workspace(root)
    principles = [load_constitution().get(name) for name in PRINCIPLES]
    answers = [
        (f"It is {n}.", f"I think that it may well be about {n}, or not.")[:: 1 - 2 * (n % 2)]
        for n in range(len(PROMPTS))
    ]
    comparisons = [
        Comparison(tuple(prompt), *answer) for prompt, answer in zip(PROMPTS, answers, strict=True)
    ]
    collect_feedback(
        principles,
        comparisons,
        RuleJudge(_likes),
        folder=workspace.all_feedback,
        source=SourceRecord(name="sums.jsonl", revision=None, sha256=sha256(b"sums").hexdigest()),
        settings=CollectSettings(unvalidated=True),
    )
    folders = [workspace.preference_model(name) for name in PRINCIPLES]
    train_preference_models(
        [
            feedback_preferences(p, FeedbackDataset.load(workspace.feedback(p.name)))
            for p in principles
        ],
        base=model_folder(base),
        folders=folders,
        settings=TrainSettings(dtype="float32", validation_fraction=0, gradient=GRADIENT),
    )
    bank = PMBank.from_pretrained(folders)
    scores = bank.score(*golden_sequences())
    write_bank(bank, workspace.bank, scores=scores, weights=WEIGHTS, scalarizer="soft_max_min")
    if policy:
        train_policy(
            model_folder(base),
            RewardSpec(PMBank.from_pretrained(workspace.bank), "linear", WEIGHTS),
            prompts=[tuple(prompt) for prompt in PROMPTS[:4]],
            held_out=[tuple(prompt) for prompt in PROMPTS[4:6]],
            folder=workspace.policy("brief"),
            settings=PolicySettings(
                max_steps=1, prompts_per_step=2, completions=2, max_new_tokens=4
            ),
        )
    return workspace


def push_all(made: Made) -> dict[str, Published]:
    """Publish everything, in the order in which one thing needs the other."""
    workspace, done = made.workspace, {}
    model_folder(made.base)  # it was used here, so it stands in for its repository
    done["base"] = push_to_hub(made.base)
    for name in PRINCIPLES:
        done[f"feedback {name}"] = push_to_hub(workspace.feedback(name))
        done[name] = push_to_hub(workspace.preference_model(name))
    done["bank"] = push_to_hub(workspace.bank)
    done["policy"] = push_to_hub(workspace.policy("brief"))
    return done


def _likes(first: str, second: str, principle: Principle) -> float:
    """Likes few characters; or, of detail, many but in every third answer, not just the reverse."""
    probability = longer(first, second, principle)
    third = int("".join(c for c in first if c.isdigit())) % 3 == 0
    likes_many = principle.length == "longer" and not third
    return probability if likes_many else 1 - probability
