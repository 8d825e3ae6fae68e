"""PPO side by side: this package's trainer, and the last one that TRL had.

TRL removed its PPO in version 1.13. The benchmark makes an environment for TRL 1.12 that has the
same versions of everything else. Both train a LoRA policy from the same model, on the same prompts,
for the same reward, with the same sizes of rounds and batches and as many epochs, each in a process
of its own. TRL collects garbage twice in a round, which on tiny models is most of its time, so it
is also run with that left out. The first round, which is slower, does not count.

    python -m benchmarks.ppo --tiny     # a minute, to see how it works
    python -m benchmarks.ppo            # on the embedded model, minutes

TRL has the values from a second model. It is trained by a LoRA as well, which is quicker and takes
less memory than training all of it, as TRL's own example does (`--value full`). The reward is the
share of even token ids: it costs neither side time or memory.
"""

import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Any, Literal
from venv import EnvBuilder

import click
import torch

from benchmarks.children import in_child, peak_megabytes
from benchmarks.ppo_peer import even_share
from benchmarks.texts import find_pairs, prompts_up_to
from morlaif_hub.cli.command import COUNT, Report, command, seed_option
from morlaif_hub.cli.progress import Progress, quiet_libraries
from morlaif_hub.cli.tables import paragraphs, table, wrapped
from morlaif_hub.errors import MorlaifHubError
from morlaif_hub.hub.artifact import cache_folder
from morlaif_hub.hub.manifest import InputFormat
from morlaif_hub.models.embedded import embedded_model
from morlaif_hub.models.formats import Encoder, prompt_text
from morlaif_hub.models.language_model import load_causal_lm, load_tokenizer
from morlaif_hub.workspace import Workspace
from tests.tiny import save_tiny

TRL = "1.12.0"
FASTER, SMALLER = 1.5, 0.7
Way = Literal["ours", "trl", "trl without gc"]
WAYS: dict[Way, str] = {
    "ours": "morlaif_hub",
    "trl": f"TRL {TRL}",
    "trl without gc": f"TRL {TRL}, gc.collect left out",
}


@dataclass(frozen=True)
class Job:
    """What a process is told.

    Attributes:
        base: The folder of the policy's base.
        prompts: As texts.
        scratch: Where it may write.
        rollouts: Responses in a round.
        minibatches: Optimizer steps in an epoch.
        epochs: Over a round's responses.
        max_new_tokens: Of a response.
        steps: Rounds that count; one more comes before them.
        learning_rate: Of both trainers.
        threads: Of torch.
        seed: Of training.
        trl: The version that is expected there.
    """

    base: str
    prompts: list[str]
    scratch: str
    rollouts: int
    minibatches: int
    epochs: int
    max_new_tokens: int
    steps: int
    learning_rate: float
    threads: int
    seed: int
    trl: str = TRL


@dataclass(frozen=True)
class Rounds:
    """What training in one way took.

    Attributes:
        way: A key of `WAYS`.
        seconds: Of each round that counts.
        processor: Seconds of it that the process was given a processor, over all threads: what
            other processes take from it does not count.
        megabytes: The most memory that the process had resident.
        rewards: Mean of every round, the first one included.
        kl: Mean of a response in every round, in nats, as each estimates it.
    """

    way: Way
    seconds: list[float]
    processor: list[float]
    megabytes: float
    rewards: list[float]
    kl: list[float]

    @property
    def speed(self) -> float:
        """Rounds in a second, by the median."""
        return 1 / median(self.seconds)


def train(**job: Any) -> dict[str, Any]:
    """Train with this package's trainer and return what it took, as plain values.

    Args:
        job: The fields of a `Job`.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import TrainerCallback

    from morlaif_hub.policies.ppo import PPOTrainer
    from morlaif_hub.policies.ppo_config import PPOConfig

    quiet_libraries()
    given = Job(**job)
    torch.set_num_threads(given.threads)
    tokenizer = load_tokenizer(Path(given.base))
    lora = LoraConfig(
        task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]
    )
    torch.manual_seed(given.seed)
    policy = get_peft_model(load_causal_lm(Path(given.base), dtype="float32"), lora)
    marks: list[tuple[float, float]] = []

    class Clock(TrainerCallback):
        def on_log(self, *_args: object, **_trainer: object) -> None:
            marks.append((time.perf_counter(), time.process_time()))

    def reward(
        prompts: list[str], completion_ids: list[list[int]], **_trainer: object
    ) -> list[float]:
        known = {p: tokenizer(p, add_special_tokens=False)["input_ids"] for p in {*prompts}}
        return [even_share(known[p] + ids) for p, ids in zip(prompts, completion_ids, strict=True)]

    trainer = PPOTrainer(
        policy,
        reward,
        args=PPOConfig(
            given.scratch,
            max_steps=given.steps + 1,
            rollouts=given.rollouts,
            batch_size=given.rollouts // given.minibatches,
            rollout_batch_size=given.rollouts,
            epochs=given.epochs,
            learning_rate=given.learning_rate,
            kl_target=None,
            max_new_tokens=given.max_new_tokens,
            seed=given.seed,
        ),
        train_dataset=[{"prompt": text} for text in given.prompts],
        processing_class=tokenizer,
    )
    trainer.add_callback(Clock())
    log = trainer.train().log_history
    return {
        "seconds": [after[0] - before[0] for before, after in pairwise(marks)],
        "processor": [after[1] - before[1] for before, after in pairwise(marks)],
        "megabytes": peak_megabytes(),
        "rewards": [row["reward"] for row in log],
        "kl": [row["kl_sum"] for row in log],
    }


def peer_python(folder: Path) -> str:
    """Return the interpreter of an environment with TRL's last PPO, making it if it is not there.

    It is new but for the packages of this environment, which come after its own: TRL alone differs.

    Args:
        folder: Where it is.

    Raises:
        MorlaifHubError: If TRL cannot be installed.
    """
    python = folder / "bin" / "python"
    done = folder / f"trl-{TRL}"
    if not done.is_file():
        EnvBuilder(clear=True).create(folder)
        place = next(folder.glob("lib/python*/site-packages"))
        stack = Path(torch.__file__).parents[1]
        (place / "stack.pth").write_text(f"{stack}\n", encoding="utf-8")
        install = ["install", "--quiet", "--no-deps", f"trl=={TRL}"]
        told = subprocess.run(
            [sys.executable, "-m", "pip", "--python", str(python), *install],
            capture_output=True,
            text=True,
            check=False,
        )
        if told.returncode:
            raise MorlaifHubError(
                f"TRL {TRL} cannot be installed in {folder}: {told.stderr[-300:]}"
            )
        done.touch()
    return str(python)


def measure(job: Job, *, value: str, python: str, scratch: Path) -> list[Rounds]:
    """Return what training took, in each way.

    Args:
        job: What is trained.
        value: What TRL trains of the model that gives the values: `lora` or `full`.
        python: Of the environment with TRL.
        scratch: A folder for answers.
    """
    found = []
    with Progress() as progress:
        progress.start("training, each way in a process of its own", len(WAYS))
        for way in WAYS:
            given = asdict(job)
            if way == "ours":
                took = in_child("benchmarks.ppo:train", given, scratch=scratch)
            else:
                given |= {"collect": way == "trl", "value": value}
                where = "benchmarks.ppo_peer:train"
                took = in_child(where, given, scratch=scratch, python=python)
            found.append(Rounds(way, **took))
            progress.advance(1)
    return found


@dataclass(frozen=True)
class Goals:
    """How the two compare, TRL's calls of the garbage collector left out.

    Attributes:
        faster: Rounds a second, as a multiple of TRL's.
        cheaper: Processor time of a round, as a share of TRL's.
        smaller: Peak memory, as a share of TRL's.
    """

    faster: float
    cheaper: float
    smaller: float

    @classmethod
    def of(cls, found: list[Rounds]) -> "Goals":
        """Compare the ways of one run."""
        by_way = {rounds.way: rounds for rounds in found}
        ours, peer = by_way["ours"], by_way["trl without gc"]
        return cls(
            ours.speed / peer.speed,
            median(ours.processor) / median(peer.processor),
            ours.megabytes / peer.megabytes,
        )

    @property
    def held(self) -> bool:
        """Whether both are good enough."""
        return self.faster >= FASTER and self.smaller <= SMALLER


def shown(found: list[Rounds], *, about: str, judged: bool) -> str:
    """Return what was measured as a table.

    Args:
        found: One for each way.
        about: What was trained, in words.
        judged: Whether the goals are for this base.
    """
    rows = [
        (
            WAYS[r.way],
            f"{r.speed:.3g}",
            f"{median(r.seconds):.3g} ({min(r.seconds):.3g}-{max(r.seconds):.3g})",
            f"{median(r.processor):.3g}",
            round(r.megabytes),
            f"{r.rewards[0]:.3f}",
            f"{r.rewards[-1]:.3f}",
            f"{r.kl[-1]:.3f}",
        )
        for r in found
    ]
    header = ("PPO by", "steps/s", "seconds a step", "CPU s", "peak MB", "reward", "last", "KL")
    goals = Goals.of(found)
    said = (
        f"{goals.faster:.2f} times the steps a second of TRL without gc (goal {FASTER}), "
        f"{goals.smaller:.2f} of its peak memory (goal {SMALLER}), {goals.cheaper:.2f} of its CPU "
        "time"
    )
    verdict = (
        f": {'' if goals.held else 'NOT '}held"
        if judged
        else "; the goals are for the " + ("embedded model")
    )
    return paragraphs(wrapped(about), table(header, rows), wrapped(said + verdict))


@command("ppo", with_models=True)
@click.option("--tiny", is_flag=True, help="With a tiny model and short texts.")
@click.option("--pairs", metavar="SOURCE", help="Comparisons to take prompts from.")
@click.option(
    "--value",
    type=click.Choice(["lora", "full"]),
    default="lora",
    show_default=True,
    help="What TRL trains of the model that gives the values.",
)
@click.option("--rollouts", type=COUNT, metavar="N", default=8, show_default=True)
@click.option("--minibatches", type=COUNT, metavar="N", default=2, show_default=True)
@click.option("--epochs", type=COUNT, metavar="N", default=2, show_default=True)
@click.option(
    "--prompt-tokens",
    type=COUNT,
    metavar="N",
    default=128,
    show_default=True,
    help="Longer prompts are left out.",
)
@click.option("--max-new-tokens", type=COUNT, metavar="N", default=32, show_default=True)
@click.option("--steps", type=COUNT, metavar="N", default=3, show_default=True, help="That count.")
@click.option("--threads", type=COUNT, metavar="N", help="Of torch. [default: torch's own choice]")
@click.option("--environment", metavar="FOLDER", help=f"For TRL {TRL}. [default: in the cache]")
@seed_option
def main(
    workspace: Workspace,
    *,
    tiny: bool,
    pairs: str | None,
    value: str,
    prompt_tokens: int,
    threads: int | None,
    environment: str | None,
    seed: int,
    **sizes: Any,
) -> Report:
    """Compare PPO here and in TRL 1.12: steps a second and peak memory."""
    del workspace  # nothing of it is used
    source = find_pairs(pairs, tiny=tiny, seed=seed)
    python = peer_python(Path(environment) if environment else cache_folder() / f"trl-{TRL}")
    with TemporaryDirectory(prefix="morlaif-ppo-") as place:
        scratch = Path(place)
        base = save_tiny(scratch / "base") if tiny else embedded_model()
        how = InputFormat(kind="chat", append_eos=False, max_length=prompt_tokens + 1)
        encoder = Encoder(load_tokenizer(base), how)
        count = sizes["rollouts"] * (sizes["steps"] + 1)
        prompts = prompts_up_to(source.comparisons, encoder, tokens=prompt_tokens, count=count)
        job = Job(
            base=str(base),
            prompts=[prompt_text(encoder.tokenizer, prompt) for prompt in prompts],
            scratch=str(scratch / "runs"),
            learning_rate=1e-4,
            threads=threads or torch.get_num_threads(),
            seed=seed,
            **sizes,
        )
        found = measure(job, value=value, python=python, scratch=scratch)
    length = mean(len(encoder.ids(prompt, "")) for prompt in prompts)
    about = (
        f"LoRA policy on {'a tiny model' if tiny else 'the embedded model'} in float32, "
        f"{job.rollouts} responses in a step to prompts of {length:.0f} tokens in the mean, at "
        f"most {job.max_new_tokens} new ones, {job.epochs} epochs of {job.minibatches} "
        f"minibatches, {job.threads} threads, medians of {job.steps} steps. TRL trains its value "
        f"model {'by a LoRA' if value == 'lora' else 'in full'}. Prompts: {source.origin}."
    )
    return report(found, about=about, tiny=tiny)


def report(found: list[Rounds], *, about: str, tiny: bool) -> Report:
    """Return all ways as a report, which fails if a goal that is for this base is not reached."""
    goals = Goals.of(found)
    data: dict[str, Any] = {
        "about": about,
        "ways": [asdict(rounds) for rounds in found],
        "times_the_steps": goals.faster,
        "share_of_the_memory": goals.smaller,
        "share_of_the_processor_time": goals.cheaper,
        "goals": {"times_the_steps": FASTER, "share_of_the_memory": SMALLER},
        "held": None if tiny else goals.held,
    }
    failed = not tiny and not goals.held
    return Report(data, shown(found, about=about, judged=not tiny), exit_code=int(failed))


if __name__ == "__main__":
    main()
