"""How much of a GRPO step goes into scoring: by a bank, and by TRL's own way.

TRL trains a LoRA policy for the sum of 12 preference models, 4 prompts with 8 completions each in a
step. Once the reward functions are those of a bank; once they are 12 models of their own with the
adapters merged into their weights, which TRL feeds itself. Each way has a process of its own, with
the same seed. The first step, which is slower, does not count.

    python -m benchmarks.grpo --tiny     # a minute, to see how it works
    python -m benchmarks.grpo            # on the embedded model

Both ways read the same texts: prompts are strings, with the chat template already applied, and
what is scored is a prompt and its completion joined, without an end of turn. (Of messages, TRL
would score the template's text with its end of turn; so does the bank if a manifest asks for it,
which these adapters have none.) Scores are raw in both. Rewards of the first step are compared.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Any, Literal

import click
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import PrinterCallback, TrainerCallback, set_seed
from trl import GRPOConfig, GRPOTrainer

from benchmarks.adapters import merged, save_random_adapters
from benchmarks.children import in_child, peak_megabytes
from benchmarks.settings import ADAPTERS, TOLERANCE
from benchmarks.texts import find_pairs, prompts_up_to
from morlaif_hub.bank.adapters import check_adapter
from morlaif_hub.bank.bank import PMBank
from morlaif_hub.cli.command import COUNT, Report, command, seed_option
from morlaif_hub.cli.progress import Progress, quiet_libraries
from morlaif_hub.cli.tables import paragraphs, table, wrapped
from morlaif_hub.evaluation.wording import percent
from morlaif_hub.hub.manifest import InputFormat
from morlaif_hub.models.embedded import embedded_model
from morlaif_hub.models.formats import Encoder, prompt_text
from morlaif_hub.models.language_model import load_tokenizer
from morlaif_hub.rewards import reward_functions
from morlaif_hub.workspace import Workspace
from tests.tiny import save_tiny

PROMPTS, COMPLETIONS = 4, 8
SHARE = 0.15
Way = Literal["bank", "models"]
WAYS: dict[Way, str] = {
    "bank": "a bank of 12",
    "models": "12 models, scored by TRL",
}


@dataclass(frozen=True)
class Steps:
    """What training in one way took.

    Attributes:
        way: A key of `WAYS`.
        seconds: Of each step that counts.
        scoring: Of each of them, what TRL spent on rewards.
        megabytes: The most memory that the process had resident.
        completions: Of the first step.
        rewards: Of the first step, shape (completions, preference models).
    """

    way: Way
    seconds: list[float]
    scoring: list[float]
    megabytes: float
    completions: list[str]
    rewards: list[list[float]]

    @property
    def share(self) -> float:
        """The share of a step that goes into scoring, over all steps that count."""
        return sum(self.scoring) / sum(self.seconds)

    @property
    def held(self) -> bool:
        """Whether the share is small enough."""
        return self.share <= SHARE


@dataclass(frozen=True)
class Job:
    """What a process is told.

    Attributes:
        base: The folder of the model that is the policy's base and the preference models'.
        adapters: The folder of the preference models' folders.
        prompts: As texts.
        scratch: Where TRL may write.
        max_new_tokens: Of a completion.
        steps: That count; one more comes before them.
        threads: Of torch.
        seed: Of training.
    """

    base: str
    adapters: str
    prompts: list[str]
    scratch: str
    max_new_tokens: int
    steps: int
    threads: int
    seed: int


class TimedTrainer(GRPOTrainer):
    """TRL's trainer with a look at the clock."""

    def watch(self) -> None:
        """Begin to note what steps and rewards take."""
        self.scoring: list[float] = []
        self.completions: list[str] = []
        self.rewards: list[list[float]] = []
        self.clock = _Clock()
        self.add_callback(self.clock)
        self.remove_callback(PrinterCallback)  # it writes to stdout

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> Any:
        start = time.perf_counter()
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self.scoring.append(time.perf_counter() - start)
        if not self.rewards:
            self.rewards, self.completions = rewards.tolist(), list(completions)
        return rewards


class _Clock(TrainerCallback):
    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._start = 0.0

    def on_step_begin(self, *_args: object, **_trainer: object) -> None:
        self._start = time.perf_counter()

    def on_step_end(self, *_args: object, **_trainer: object) -> None:
        self.seconds.append(time.perf_counter() - self._start)


def train(*, way: Way, **job: Any) -> dict[str, Any]:
    """Train in one way and return the steps as plain values; for a process of its own.

    Args:
        way: A key of `WAYS`.
        job: The fields of a `Job`.
    """
    quiet_libraries()
    given = Job(**job)
    torch.set_num_threads(given.threads)
    rewards = _bank(given) if way == "bank" else _models(given)
    set_seed(given.seed)
    trainer = _trainer(given, rewards)
    trainer.watch()
    trainer.train()
    steps = Steps(
        way,
        trainer.clock.seconds[1:],
        trainer.scoring[1:],
        peak_megabytes(),
        trainer.completions,
        trainer.rewards,
    )
    return asdict(steps)


def _bank(job: Job) -> list[Any]:
    sources = {folder.name: folder for folder in sorted(Path(job.adapters).iterdir())}
    return list(reward_functions(PMBank.from_pretrained(sources, base=job.base)))


def _models(job: Job) -> list[Any]:
    models = []
    for folder in sorted(Path(job.adapters).iterdir()):
        model = merged(Path(job.base), check_adapter(folder, folder.name))
        model.config._name_or_path = folder.name  # TRL logs rewards by it
        models.append(model)
    return models


def _trainer(job: Job, rewards: list[Any]) -> TimedTrainer:
    tokenizer = load_tokenizer(Path(job.base))
    tokenizer.padding_side = "left"
    readers = [load_tokenizer(Path(job.base)) for _ in rewards]
    return TimedTrainer(
        model=job.base,
        reward_funcs=rewards,
        reward_processing_classes=readers,
        args=GRPOConfig(
            job.scratch,
            max_steps=job.steps + 1,
            per_device_train_batch_size=COMPLETIONS,
            gradient_accumulation_steps=PROMPTS,
            num_generations=COMPLETIONS,
            max_completion_length=job.max_new_tokens,
            temperature=1.0,
            beta=0.04,
            learning_rate=1e-5,
            model_init_kwargs={"dtype": "float32"},
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            disable_dropout=True,
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            dataloader_pin_memory=False,
            seed=job.seed,
        ),
        train_dataset=Dataset.from_dict({"prompt": job.prompts}),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]
        ),
    )


def measure(job: Job, *, scratch: Path) -> list[Steps]:
    """Return what training took, in each way."""
    found = []
    with Progress() as progress:
        progress.start("training, each way in a process of its own", len(WAYS))
        for way in WAYS:
            steps = in_child("benchmarks.grpo:train", {"way": way, **asdict(job)}, scratch=scratch)
            found.append(Steps(**steps))
            progress.advance(1)
    return found


def difference(first: Steps, second: Steps) -> float | None:
    """Return the largest difference of the first step's rewards; None if the texts differ."""
    if first.completions != second.completions:
        return None
    return float((torch.tensor(first.rewards) - torch.tensor(second.rewards)).abs().max())


def shown(found: list[Steps], *, about: str, judged: bool) -> str:
    """Return what was measured as a table.

    Args:
        found: One for each way.
        about: What was trained, in words.
        judged: Whether the goal is for this base.
    """
    rows = [
        (
            WAYS[steps.way],
            median(steps.seconds),
            median(steps.scoring),
            percent(steps.share),
            round(steps.megabytes),
        )
        for steps in found
    ]
    off = difference(*found)
    same = (
        "The two ways sampled different completions in the first step."
        if off is None
        else f"Rewards of the first step, of the same texts: at most {off:.1e} apart."
    )
    bank = next(steps for steps in found if steps.way == "bank")
    goal = f"the bank takes at most {percent(SHARE)} of a step: {'' if bank.held else 'NOT '}held"
    return paragraphs(
        wrapped(about),
        table(("rewards by", "seconds a step", "of them scoring", "share", "peak MB"), rows),
        wrapped(same),
        goal if judged else "The goal is for the embedded model.",
    )


@command("grpo", with_models=True)
@click.option("--tiny", is_flag=True, help="With a tiny model and short texts.")
@click.option("--pairs", metavar="SOURCE", help="Comparisons to take prompts from.")
@click.option(
    "--layers",
    metavar="LAYERS",
    default="top:0.25",
    show_default=True,
    help="Of the preference models.",
)
@click.option(
    "--prompt-tokens",
    type=COUNT,
    metavar="N",
    default=256,
    show_default=True,
    help="Longer prompts are left out.",
)
@click.option(
    "--max-new-tokens",
    type=COUNT,
    metavar="N",
    default=32,
    show_default=True,
    help="Of a completion.",
)
@click.option("--steps", type=COUNT, metavar="N", default=3, show_default=True, help="That count.")
@click.option("--threads", type=COUNT, metavar="N", help="Of torch. [default: torch's own choice]")
@seed_option
def main(
    workspace: Workspace,
    *,
    tiny: bool,
    pairs: str | None,
    layers: str,
    prompt_tokens: int,
    max_new_tokens: int,
    steps: int,
    threads: int | None,
    seed: int,
) -> Report:
    """Show how much of a GRPO step goes into the scores of 12 preference models."""
    del workspace  # nothing of it is used
    source = find_pairs(pairs, tiny=tiny, seed=seed)
    with TemporaryDirectory(prefix="morlaif-grpo-") as place:
        scratch = Path(place)
        base = save_tiny(scratch / "base", layers=8) if tiny else embedded_model()
        adapters = scratch / "adapters"
        save_random_adapters(adapters, base, count=ADAPTERS, layers=layers, seed=seed)
        # One token more, so that a prompt that is too long is still seen to be.
        how = InputFormat(kind="chat", append_eos=False, max_length=prompt_tokens + 1)
        encoder = Encoder(load_tokenizer(base), how)
        prompts = prompts_up_to(
            source.comparisons, encoder, tokens=prompt_tokens, count=PROMPTS * (steps + 1)
        )
        job = Job(
            base=str(base),
            adapters=str(adapters),
            prompts=[prompt_text(encoder.tokenizer, prompt) for prompt in prompts],
            scratch=str(scratch / "trl"),
            max_new_tokens=max_new_tokens,
            steps=steps,
            threads=threads or torch.get_num_threads(),
            seed=seed,
        )
        found = measure(job, scratch=scratch)
    name = "a tiny model" if tiny else "the embedded model"
    length = mean(len(encoder.ids(prompt, "")) for prompt in prompts)
    about = (
        f"LoRA policy on {name}, {PROMPTS} prompts x {COMPLETIONS} completions in a step, prompts "
        f"of {length:.0f} tokens in the mean, at most {max_new_tokens} new ones, {job.threads} "
        f"threads, medians of {steps} steps. Preference models: {layers}. Prompts: {source.origin}."
    )
    return report(found, about=about, tiny=tiny)


def report(found: list[Steps], *, about: str, tiny: bool) -> Report:
    """Return both ways as a report, which fails if their rewards of the same texts differ."""
    off = difference(*found)
    equal = off is None or off <= TOLERANCE
    data: dict[str, Any] = {
        "about": about,
        "goal": SHARE,
        "ways": [
            {
                "way": steps.way,
                "seconds": steps.seconds,
                "scoring": steps.scoring,
                "share": steps.share,
                "megabytes": steps.megabytes,
                "held": None if tiny else steps.held,
            }
            for steps in found
        ],
        "same_completions_at_first": off is not None,
        "difference": off,
        "equal": equal,
    }
    text = shown(found, about=about, judged=not tiny)
    return Report(data, text, exit_code=int(not equal))


if __name__ == "__main__":
    main()
