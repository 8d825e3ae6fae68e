"""The whole loop on the embedded model: sample, label, train, steer, align. No network.

Labels come from the likelihoods of a model with 135 million parameters, and mostly follow length.
What this shows is the pipeline, with honest numbers, not aligned behaviour.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from morlaif_hub import __version__
from morlaif_hub.bank.artifact import write_bank
from morlaif_hub.bank.bank import PMBank
from morlaif_hub.comparisons import Comparison, Message, Split, read_prompts, write_comparisons
from morlaif_hub.evaluation.report import findings, render_report
from morlaif_hub.evaluation.selection import join_candidates, steered, sweep
from morlaif_hub.evaluation.summary import (
    before_and_after,
    model_details,
    principle_summary,
)
from morlaif_hub.feedback.bias import bias_report
from morlaif_hub.feedback.collect import CollectSettings, collect_feedback
from morlaif_hub.feedback.dataset import FeedbackDataset
from morlaif_hub.hub.artifact import open_artifact
from morlaif_hub.hub.manifest import (
    FeedbackManifest,
    PreferenceModelManifest,
    SourceRecord,
)
from morlaif_hub.hub.over_optimisation import signs
from morlaif_hub.judges.base import Question, ask_all, load_judge
from morlaif_hub.judges.examples import QUESTION
from morlaif_hub.judges.likelihood import REQUEST
from morlaif_hub.judges.prompts import prompt_sha256
from morlaif_hub.models.embedded import embedded_model
from morlaif_hub.models.generation import SamplingSettings
from morlaif_hub.models.language_model import LanguageModel, model_folder
from morlaif_hub.policies.artifact import policy_summary
from morlaif_hub.policies.train import PolicySettings, RewardSpec, train_policy
from morlaif_hub.preference_models.preferences import feedback_preferences
from morlaif_hub.preference_models.train import TrainSettings, train_preference_models
from morlaif_hub.principles import load_constitution
from morlaif_hub.progress import Reached, Silent, StageProgress
from morlaif_hub.sampling import PAIRS_FILE, RESPONSES_FILE, pairs_of, read_responses, sample_pairs
from morlaif_hub.stages import Stages
from morlaif_hub.statistics import correlation
from morlaif_hub.workspace import Workspace, write_text

Array = NDArray[np.float64]
Prompt = tuple[Message, ...]
_Answered = tuple[Prompt, list[str]]

PRINCIPLES = ("conciseness", "detail", "empathy")
TRAINED_FOR = "conciseness"
SYSTEM = "Reply in one short sentence."
INSTRUCTIONS = (SYSTEM, None)  # half of the responses are asked to be short, half are not
JUDGE = "likelihood:embedded"
LETTER_JUDGE = "local:embedded"
REPORT = "quickstart"
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
EXAMPLES = 4
SAMPLED_AT_ONCE = 160  # the embedded model is small: this many rows take some 500 MB


@dataclass(frozen=True)
class QuickstartSettings:
    """How much the quickstart does. The defaults fit two CPU cores and a coffee.

    Attributes:
        seed: Of everything that is drawn.
        train_prompts: Everyday prompts to learn from.
        train_responses: Sampled for each of them.
        held_out_prompts: Other prompts, on which everything is measured.
        held_out_responses: Sampled for each; also the n of best-of-n.
        max_new_tokens: Limit of a response.
        letter_pairs: Pairs on which the letter judge's position bias is shown.
        training: Of the preference models.
        policy: Of the policy; None to end after steering.
    """

    seed: int = 0
    train_prompts: int = 36
    train_responses: int = 4
    held_out_prompts: int = 20
    held_out_responses: int = 8
    max_new_tokens: int = 48
    letter_pairs: int = 24
    training: TrainSettings = field(default_factory=TrainSettings)
    policy: PolicySettings | None = field(
        default_factory=lambda: PolicySettings(max_kl=0.2, learning_rate=1e-3)
    )

    def with_one_seed(self) -> "QuickstartSettings":
        """Return the same settings with the seed in all parts."""
        training = replace(self.training, seed=self.seed)
        policy = replace(self.policy, seed=self.seed) if self.policy else None
        return replace(self, training=training, policy=policy)


def run_quickstart(
    workspace: Workspace,
    settings: QuickstartSettings | None = None,
    *,
    progress: StageProgress | None = None,
) -> dict[str, Any]:
    """Run the whole loop and write its artifacts and reports into a workspace.

    A stage that is finished is not run again: a second run with the same settings reuses all, one
    that was killed goes on at the stage where it stopped.

    Args:
        workspace: Where everything goes; `reports/quickstart.json` and `.html` at the end.
        settings: How much to do.
        progress: Told of each stage.

    Returns:
        What `morlaif-hub quickstart --json` prints; see docs/cli.md.

    Raises:
        ModelNotFoundError: If the embedded model is not to be had.
        WorkspaceError: If the workspace cannot be written.
    """
    workspace.check_writable()
    settings = (settings or QuickstartSettings()).with_one_seed()
    run = _Quickstart(workspace, settings, progress or Silent())
    return run.all()


@dataclass(frozen=True)
class _Sampled:
    """The prompts of the run and their responses, read back from the workspace."""

    train: list[_Answered]
    held_out: list[_Answered]


class _Quickstart:
    def __init__(
        self, workspace: Workspace, settings: QuickstartSettings, progress: StageProgress
    ) -> None:
        self.workspace, self.settings, self.progress = workspace, settings, progress
        self.constitution = load_constitution()
        self.principles = [self.constitution.get(name) for name in PRINCIPLES]
        progress.start("preparing the embedded model (converted once)", 1)
        embedded_model()  # the one-off conversion is not part of the run
        self.base = model_folder(None)
        progress.advance(1)
        self.pairs_file = workspace.pairs / PAIRS_FILE
        self.stages = Stages(
            workspace.reports / "quickstart-stages.json",
            [
                __version__,
                self.base.base.weights_sha256,
                INSTRUCTIONS,
                self.prompts(),
                [(p.sha256(), p.probes_sha256()) for p in self.principles],
            ],
        )

    def all(self) -> dict[str, Any]:
        settings, stages = self.settings, self.stages
        sizes = {k: v for k, v in asdict(settings).items() if isinstance(v, int)}
        feedback = [self.workspace.feedback(name) for name in PRINCIPLES]
        results: dict[str, Any] = {"policy": None}
        files = [self.workspace.pairs / name / RESPONSES_FILE for name in ("train", "held-out")]
        stages.run("sample", sizes, [self.pairs_file, *files], self.sample)
        asked = [JUDGE, LETTER_JUDGE, prompt_sha256(REQUEST, QUESTION)]
        results |= stages.run("label", asked, feedback, self.label)
        stages.run("train", asdict(settings.training), self.model_folders(), self.train)
        results |= stages.run("steer", SHARES, [self.workspace.bank], self.steer)
        if settings.policy is not None:
            folder = self.workspace.policy(REPORT)
            results |= stages.run("align", asdict(settings.policy), [folder], self.align)
        return self.report(results)

    def sample(self) -> dict[str, Any]:
        settings = self.settings
        prompts = self.prompts()
        policy = LanguageModel.load()
        wanted = [
            (prompts[: settings.train_prompts], settings.train_responses, "train"),
            (prompts[settings.train_prompts :], settings.held_out_responses, "held-out"),
        ]
        for chosen, responses, name in wanted:
            self.progress.start(f"sampling {name} responses", len(chosen) * responses)
            sample_pairs(
                policy,
                chosen,
                folder=self.workspace.pairs / name,
                settings=SamplingSettings(
                    responses=responses,
                    max_new_tokens=settings.max_new_tokens,
                    seed=settings.seed,
                    batch_size=SAMPLED_AT_ONCE,
                ),
                all_pairs=True,
                instructions=INSTRUCTIONS,
                progress=self.progress.advance,
            )
        write_comparisons(self.pairs_file, self.comparisons())
        return {}

    def label(self) -> dict[str, Any]:
        judge = load_judge(JUDGE)
        collect_feedback(
            self.principles,
            self.comparisons(),
            judge,
            folder=self.workspace.all_feedback,
            source=SourceRecord(
                name="everyday prompts of morlaif-hub",
                revision=None,
                sha256=hashlib.sha256(self.pairs_file.read_bytes()).hexdigest(),
            ),
            settings=CollectSettings(seed=self.settings.seed),
            progress=self.progress,
        )
        return self.letter_judge()

    def letter_judge(self) -> dict[str, Any]:
        """Show what a judge that names a letter does when the order changes."""
        held_out = [c for c in self.comparisons() if c.split == "test"]
        every = max(1, len(held_out) // self.settings.letter_pairs)
        chosen = held_out[::every][: self.settings.letter_pairs]
        self.progress.start("asking a letter judge in both orders", len(chosen))
        principle = self.constitution.get(TRAINED_FOR)
        questions = [Question(comparison, principle) for comparison in chosen]
        verdicts = ask_all(load_judge(LETTER_JUDGE), questions, progress=self.progress.advance)
        report = bias_report(chosen, verdicts, seed=self.settings.seed)
        return {
            "letter_judge": {
                "position_bias": report.position_bias.value,
                "flip_rate": report.flip_rate.value,
            },
            "letter_judge_pairs": len(chosen),
        }

    def train(self) -> dict[str, Any]:
        preferences = [
            feedback_preferences(p, FeedbackDataset.load(self.workspace.feedback(p.name)))
            for p in self.principles
        ]
        train_preference_models(
            preferences,
            base=self.base,
            folders=self.model_folders(),
            settings=self.settings.training,
            progress=Reached(self.progress),
        )
        return {}

    def steer(self) -> dict[str, Any]:
        bank = PMBank.from_pretrained(self.model_folders())
        sampled = self.sampled().held_out
        texts = [text for _, responses in sampled for text in responses]
        self.progress.start("scoring the candidates", len(texts))
        prompts = [list(prompt) for prompt, responses in sampled for _ in responses]
        scores = bank.score(prompts, texts, progress=self.progress.advance).double().numpy()
        feedback = [FeedbackDataset.load(self.workspace.feedback(name)) for name in PRINCIPLES]
        candidates = join_candidates(sampled, scores, feedback)
        write_bank(
            bank,
            self.workspace.bank,
            scores=scores,
            weights=dict.fromkeys(PRINCIPLES, 1 / len(PRINCIPLES)),
        )
        one = np.eye(len(PRINCIPLES))
        return {
            "steering": {n: steered(candidates, one[k], n) for k, n in enumerate(PRINCIPLES)},
            "sweep": sweep(candidates, (0, 1), PRINCIPLES[:2], SHARES),
            "correlations": {
                "names": list(PRINCIPLES),
                "matrix": [[correlation(a, b) for a in scores.T] for b in scores.T],
            },
            "steering_examples": [
                {
                    "prompt": c.prompt[-1]["content"],
                    "random": c.texts[0],
                    "chosen": {n: c.texts[c.best(one[k])] for k, n in enumerate(PRINCIPLES)},
                }
                for c in candidates[:EXAMPLES]
            ],
        }

    def align(self) -> dict[str, Any]:
        settings = self.settings.policy or PolicySettings()
        weights = {name: float(name == TRAINED_FOR) for name in PRINCIPLES}
        # As a reward bfloat16 is close enough, and three times as fast.
        bank = PMBank.from_pretrained(self.workspace.bank, dtype="bfloat16")
        sampled = self.sampled()
        self.progress.start(f"aligning a policy with {TRAINED_FOR}", settings.max_steps)
        trained = train_policy(
            self.base,
            RewardSpec(bank, "linear", weights),
            prompts=[prompt for prompt, _ in sampled.train],
            held_out=[prompt for prompt, _ in sampled.held_out],
            folder=self.workspace.policy(REPORT),
            settings=settings,
            progress=self.progress.advance,
        )
        return {
            "policy": policy_summary(trained.manifest),
            "policy_curve": [asdict(point) for point in trained.manifest.curve],
            "policy_stopped_by": trained.manifest.stopped_by,
            "policy_steps": trained.manifest.steps,
            "policy_signs": signs(trained.manifest),
            "policy_examples": before_and_after(
                trained.before, trained.after, [prompt for prompt, _ in sampled.held_out[:EXAMPLES]]
            ),
        }

    def prompts(self) -> list[Prompt]:
        count = self.settings.train_prompts + self.settings.held_out_prompts
        system = {"role": "system", "content": SYSTEM}
        return [(system, *prompt) for prompt in read_prompts("everyday", limit=count)]

    def model_folders(self) -> list[Path]:
        return [self.workspace.preference_model(name) for name in PRINCIPLES]

    def sampled(self) -> _Sampled:
        return _Sampled(*(_answered(self.workspace.pairs / name) for name in ("train", "held-out")))

    def comparisons(self) -> list[Comparison]:
        sampled = self.sampled()
        sides: list[tuple[Split, list[_Answered]]] = [
            ("train", sampled.train),
            ("test", sampled.held_out),
        ]
        return [
            pair
            for split, rows in sides
            for prompt, texts in rows
            for pair in pairs_of(prompt, texts, split=split)
        ]

    def report(self, results: dict[str, Any]) -> dict[str, Any]:
        """Put the results of all stages together, and write the reports."""
        feedback = [
            open_artifact(self.workspace.feedback(name), FeedbackManifest) for name in PRINCIPLES
        ]
        models = [open_artifact(folder, PreferenceModelManifest) for folder in self.model_folders()]
        seconds = self.stages.seconds
        main = {name: results.pop(name) for name in ("letter_judge", "steering", "policy")}
        result: dict[str, Any] = {
            "seconds": {**seconds, "total": sum(seconds.values())},
            "principles": {
                m.principle.name: principle_summary(f, m)
                for f, m in zip(feedback, models, strict=True)
            },
            **main,
            "details": {
                "seed": self.settings.seed,
                "model": {
                    "name": self.base.name,
                    "weights_sha256": self.base.base.weights_sha256,
                },
                **model_details(models),
                **results,
            },
        }
        result["details"]["findings"] = findings(result)
        reports = self.workspace.reports
        write_text(reports / f"{REPORT}.json", json.dumps(result, indent=2) + "\n")
        write_text(reports / f"{REPORT}.html", render_report(result))
        return result


def _answered(folder: Path) -> list[_Answered]:
    rows = read_responses(folder / RESPONSES_FILE)
    return [(tuple(prompt), [response.text for response in found]) for prompt, found in rows]
