"""Proximal policy optimisation of a language model, for any number of rewards.

What is drawn depends on seed and round alone, so a run that was stopped goes on as if it had not
been. Losses are means over the tokens of a whole batch, however it is padded and divided.

Sources:
    arXiv:1707.06347 (PPO); arXiv:1909.08593 (PPO for language models, from preferences).
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from peft import PeftModel
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import TrainerCallback, TrainerControl, TrainerState

from morlaif_hub.errors import OptionError, TrainingError
from morlaif_hub.models.formats import encode, prompt_text
from morlaif_hub.models.generation import sample_rows
from morlaif_hub.policies import ppo_losses as losses
from morlaif_hub.policies.portions import in_portions
from morlaif_hub.policies.ppo_config import PPOConfig
from morlaif_hub.policies.ppo_model import ActorCritic, Predictions
from morlaif_hub.preference_models.saved_state import SavedState, State, packed, put_back
from morlaif_hub.rewards import call_rewards, reward_name
from morlaif_hub.scoring.processes import Processes
from morlaif_hub.statistics import RunningMoments

DATA, SAMPLES, BATCHES = range(3)  # what random numbers are drawn for
SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
Rows = Sequence[Mapping[str, Any]]


@dataclass
class Rollout:
    """A prompt with a response as token ids, and what was known before the policy learnt from it.

    Of each token of the response `then` is what the policy predicted and `reference` what the
    reference policy did; `advantages` and `returns` are found for a round as a whole.
    """

    text: list[int]
    start: int
    finished: bool
    then: Predictions
    reference: Tensor
    scores: Tensor = field(default_factory=Tensor)
    advantages: Tensor = field(default_factory=Tensor)
    returns: Tensor = field(default_factory=Tensor)


class PPOTrainer:
    """Trains a policy by PPO, in one process or with a copy in each of several.

    Args:
        model: A transformers causal language model, or one with a PEFT adapter in its layers, which
            alone is trained then. What is trained has to be in float32. There is no dropout: PPO
            compares probabilities.
        reward_funcs: One or more, as TRL's trainers take them, such as `reward_functions(bank)`.
            They are given texts, so their tokenizers may be others than the policy's.
        args: The settings.
        train_dataset: Rows with a `prompt`: messages, or a text that is continued as it is. Without
            a chat template the contents of messages are joined. Other columns go to the rewards.
        processing_class: The model's tokenizer.
        ref_model: What the divergence is measured from; None for `model` without its adapter.

    Attributes:
        state: Of transformers: `global_step` counts rounds, `log_history` has the figures of each.
        control: Of transformers: callbacks may set `should_training_stop` and `should_save`.

    Raises:
        OptionError: If model, tokenizer, rewards and prompts do not fit each other.

    Example:
        trainer = PPOTrainer(get_peft_model(model, LoraConfig(task_type="CAUSAL_LM")),
            reward_functions(bank), args=PPOConfig("run", reward_weights=[2.0, 1.0]),
            train_dataset=[{"prompt": "Why is the sky blue?"}], processing_class=tokenizer)
        trainer.train()
    """

    def __init__(
        self,
        model: Any,
        reward_funcs: Callable[..., Any] | Sequence[Callable[..., Any]],
        *,
        args: PPOConfig,
        train_dataset: Sequence[Mapping[str, Any]],
        processing_class: Any,
        ref_model: Any = None,
    ) -> None:
        self.model, self.args, self.train_dataset = model, args, train_dataset
        self.processing_class, self.callbacks = processing_class, list[TrainerCallback]()
        self.functions = [reward_funcs] if callable(reward_funcs) else list(reward_funcs)
        self.names = [reward_name(function) for function in self.functions]
        self.processes, self.accelerator = Processes(), Accelerator()
        weights = [*(args.reward_weights or [1.0] * len(self.names))]
        self._check(weights, ref_model)
        self._weights = torch.tensor([*weights, 1.0] if args.value_per_reward else weights)
        columns = len(self._weights) if args.value_per_reward else 1
        self.actor = ActorCritic(model.eval(), columns=columns, temperature=args.temperature)
        self._trained = {n: p for n, p in self.actor.named_parameters() if p.requires_grad}
        optimizer = torch.optim.AdamW(
            self._trained.values(), args.learning_rate, betas=(0.9, 0.95), weight_decay=0.0
        )
        self._wrapped, self.optimizer = self.accelerator.prepare(self.actor, optimizer)
        self._other: ActorCritic | None = None
        if ref_model is not None:
            ref_model = ref_model.eval().to(self.accelerator.device)
            self._other = ActorCritic(ref_model, columns=1, temperature=args.temperature)
        self._kl = losses.KLController(args.kl_coef, args.kl_target, args.kl_horizon)
        self._moments, self.control = RunningMoments(), TrainerControl()
        self.state = TrainerState(max_steps=args.max_steps, log_history=[])
        self.state.is_local_process_zero = self.state.is_world_process_zero = self.processes.main

    def add_callback(self, callback: TrainerCallback) -> None:
        """Have a callback told of rounds (as steps), figures and checkpoints."""
        self.callbacks.append(callback)

    def train(self, resume_from_checkpoint: str | Path | bool | None = None) -> TrainerState:
        """Train until `max_steps`, or until a callback stops it, and return the state.

        Args:
            resume_from_checkpoint: A checkpoint's folder; True for the newest, if there is one.

        Raises:
            OptionError: If the checkpoint is none of a run with these settings.
            ScoreError: If a reward is not finite; the message names the objective.
            TrainingError: If a loss is not finite, before it changes a weight, or memory runs out.
            WorkspaceError: If a checkpoint cannot be written; those before it stay.
        """
        if resume_from_checkpoint:
            self._resume(resume_from_checkpoint)
        self._tell("on_train_begin")
        state, args, every = self.state, self.args, self.args.save_steps
        while state.global_step < args.max_steps and not self.control.should_training_stop:
            self._tell("on_step_begin")
            figures = self._round()
            state.global_step += 1
            state.epoch = state.global_step * args.rollouts / len(self.train_dataset)
            state.log_history.append({**figures, "step": state.global_step})
            self._tell("on_step_end")
            self._tell("on_log", logs=figures)
            if self.control.should_save or (every and state.global_step % every == 0):
                self.save_checkpoint()
        self._tell("on_train_end")
        return self.state

    def save_checkpoint(self) -> Path:
        """Write all that a run goes on from to `checkpoint-<round>` in `output_dir`."""
        folder = Path(self.args.output_dir, f"checkpoint-{self.state.global_step}")
        facts = {"kl": asdict(self._kl), "moments": asdict(self._moments)}
        facts |= {"step": self.state.global_step, "log": self.state.log_history}
        state = State(packed(self._trained, self.optimizer), facts)
        save = self._saved(folder).save if self.processes.main else bool
        self.processes.together(lambda: save(state))
        self.control.should_save = False
        self._tell("on_save")
        return folder

    def _resume(self, folder: str | Path | bool) -> None:
        if isinstance(folder, bool):
            files = Path(self.args.output_dir).glob("checkpoint-*/*.safetensors")
            folders = {int(file.parent.name.rpartition("-")[2]): file.parent for file in files}
            if not folders:
                return
            folder = folders[max(folders)]
        state = self._saved(Path(folder)).load()
        if state is None:
            raise OptionError(f"{folder} holds no checkpoint of a run with these settings")
        put_back(state.tensors, self._trained, self.optimizer)
        self._kl = losses.KLController(**state.facts["kl"])
        self._moments = RunningMoments(**state.facts["moments"])
        self.state.global_step, self.state.log_history = state.facts["step"], state.facts["log"]

    def _saved(self, folder: Path) -> SavedState:
        """Return a place for this run's state: another run's settings do not fit it."""
        free = {"output_dir": "", "max_steps": 1, "save_steps": None, "micro_batch_size": None}
        return SavedState(folder, str(asdict(self.args) | free))

    def _tell(self, event: str, **more: Any) -> None:
        more |= {"model": self.model, "processing_class": self.processing_class}
        for callback in self.callbacks:
            told = getattr(callback, event)(self.args, self.state, self.control, **more)
            self.control = told or self.control

    def _round(self) -> dict[str, float]:
        """Sample, score and learn; return the figures."""
        self.model.eval()  # whatever a callback did
        rows, mine = self._rows(), list[Rollout]()
        self.processes.together(lambda: mine.extend(self._respond(rows)))
        parts = self.processes.together(lambda: (mine, self._score(rows, mine)))
        rollouts = [r for row in zip(*(part for part, _ in parts), strict=True) for r in row]
        logged = {name: fmean(its[name] for _, its in parts) for name in parts[0][1]}
        figures = logged | self._estimate(rollouts)
        sums: defaultdict[str, float] = defaultdict(float)
        generator, batches = self._generator(BATCHES, self.state.global_step), 0
        for _ in range(self.args.epochs):
            order = torch.randperm(len(rollouts), generator=generator)
            for batch in order.split(self.args.batch_size):
                self._update([rollouts[i] for i in batch], sums)
                batches += 1
        found = self.processes.together(lambda: sums)
        return figures | {name: sum(its[name] for its in found) / batches for name in sums}

    def _generator(self, purpose: int, number: int) -> torch.Generator:
        return torch.Generator().manual_seed(hash((self.args.seed, purpose, number)) % 2**63)

    def _share(self, items: Any) -> Any:
        """Return those that are this process's, whatever they are."""
        return items[self.processes.index :: self.processes.count]

    def _rows(self) -> Rows:
        """Return this process's rows of the round; each comes once before one comes again."""
        size, first = len(self.train_dataset), self.state.global_step * self.args.rollouts
        places = [divmod(place, size) for place in range(first, first + self.args.rollouts)]
        orders = {
            epoch: torch.randperm(size, generator=self._generator(DATA, epoch)).tolist()
            for epoch in {epoch for epoch, _ in places}
        }
        return [self.train_dataset[orders[epoch][i]] for epoch, i in self._share(places)]

    def _encode(self, prompt: Any) -> list[int]:
        text = prompt if isinstance(prompt, str) else prompt_text(self.processing_class, prompt)
        return encode(self.processing_class, text)

    @torch.no_grad()
    def _respond(self, rows: Rows) -> list[Rollout]:
        """Return responses to the rows' prompts, and what both policies predicted about them."""
        args, prompts = self.args, [self._encode(row["prompt"]) for row in rows]
        shape = args.rollouts, args.max_new_tokens
        generator = self._generator(SAMPLES, self.state.global_step)
        chances = self._share(torch.rand(shape, generator=generator))

        def respond(part: list[int]) -> Iterator[Rollout]:
            some, policy = [prompts[i] for i in part], (self.actor.base, self.processing_class)
            found = sample_rows(*policy, some, args.sampling, chances=chances[part])
            texts = [[*prompt, *its.ids] for prompt, its in zip(some, found, strict=True)]
            starts, lengths = [len(prompt) for prompt in some], [len(its.ids) for its in found]
            then = self.actor(texts, starts)
            with nullcontext() if self._other else self.model.disable_adapter():
                reference = (self._other or self.actor)(texts, starts).log_probabilities
            columns = zip(*(c.cpu().split(lengths) for c in (*then, reference)), strict=True)
            for text, start, its, (*own, other) in zip(texts, starts, found, columns, strict=True):
                yield Rollout(text, start, its.finished, Predictions(*own), other)

        return in_portions(prompts, args.rollout_batch_size, respond, lower="rollout_batch_size")

    def _score(self, rows: Rows, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """Give rollouts their scores, and return what the reward functions logged."""
        completions: list[Any] = []
        for row, rollout in zip(rows, rollouts, strict=True):
            response = rollout.text[rollout.start :]
            text = self.processing_class.decode(response, skip_special_tokens=True)
            for mark in self.args.stop:
                text = text.split(mark, 1)[0]
            turn = {"role": "assistant", "content": text}
            completions.append(text if isinstance(row["prompt"], str) else [turn])
        logged: defaultdict[str, list[float]] = defaultdict(list)
        scores = call_rewards(
            self.functions,
            rows,
            prompts=[row["prompt"] for row in rows],
            completions=completions,
            completion_ids=[r.text[r.start :] for r in rollouts],
            trainer_state=self.state,
            log_metric=lambda name, value: logged[name].append(value),
            log_extra=lambda *_: None,
        )
        for rollout, its in zip(rollouts, scores, strict=True):
            rollout.scores = its
        return {name: fmean(values) for name, values in logged.items()}

    def _estimate(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """Give rollouts their advantages and returns, and return the round's figures."""
        args, apart, coef = self.args, self.args.value_per_reward, self._kl.coef
        columns = zip(*((*r.then, r.reference) for r in rollouts), strict=True)
        now, values, entropies, reference = (pad_sequence([*c], batch_first=True) for c in columns)
        lengths = [len(r.reference) for r in rollouts]
        mask = torch.arange(now.shape[1]) < torch.tensor(lengths)[:, None]
        scores, moved = torch.stack([r.scores for r in rollouts]), now - reference
        total = scores @ self._weights[: len(self.names)].double()
        self._moments.update(total.numpy())
        scale = (self._moments.deviation if args.scale_rewards else 0.0) or 1.0
        limit = args.reward_clip or math.inf
        rewards = ((scores if apart else total[:, None]) / scale).float().clamp(-limit, limit)
        rewards = losses.token_rewards(rewards, coef * moved, mask, apart=apart)
        each = losses.advantages(rewards, values, mask, gamma=args.gamma, lam=args.lam)
        weights, returns = self._weights if apart else torch.ones(1), each + values
        combined = losses.whitened((each @ weights)[mask]).split(lengths)
        for rollout, advantages, its in zip(rollouts, combined, returns, strict=True):
            rollout.advantages, rollout.returns = advantages, its[: len(advantages)]
        divergence, k3 = float(moved.sum(1).mean()), ((-moved).expm1() + moved)[mask]
        self._kl.update(divergence, len(rollouts))
        explained = losses.explained_variance((values @ weights)[mask], (returns @ weights)[mask])
        return {
            "reward": float(total.mean()),
            "reward_std": float(total.std(correction=0)),
            **{f"rewards/{n}": float(c.mean()) for n, c in zip(self.names, scores.T, strict=True)},
            "reward_scale": scale,
            "kl": float(k3.mean()),  # k3 of joschu.net/blog/kl-approx.html, which is never negative
            "kl_sum": divergence,
            "kl_coef": coef,
            "entropy": float(entropies[mask].mean()),
            "explained_variance": explained,
            "tokens": fmean(lengths),
            "finished": fmean(r.finished for r in rollouts),
        }

    def _update(self, batch: Sequence[Rollout], sums: dict[str, float]) -> None:
        """Take an optimizer step, with this process's share of a batch."""
        mine, tokens = self._share(batch), sum(len(r.reference) for r in batch)
        left = len(mine)
        self.optimizer.zero_grad()

        def backward(part: list[int]) -> list[int]:
            nonlocal left
            left -= len(part)
            with self.accelerator.no_sync(self._wrapped) if left else nullcontext():
                loss = self._loss([mine[i] for i in part], tokens, sums)
                self.accelerator.backward(loss * self.processes.count)  # they take a mean
            return part

        size = self.args.micro_batch_size or left
        in_portions([r.text for r in mine], size, backward, lower="micro_batch_size")
        limit = self.args.max_grad_norm or math.inf
        norm = float(self.accelerator.clip_grad_norm_(self._trained.values(), limit))
        if not math.isfinite(norm):
            raise TrainingError(
                f"the loss of step {self.state.global_step + 1} is not finite, and changed no "
                "weight; lower learning_rate or load the model in float32, and resume from the "
                "newest checkpoint, if there is one"
            )
        sums["grad_norm"] += norm / self.processes.count
        self.optimizer.step()

    def _loss(self, some: Sequence[Rollout], tokens: int, sums: dict[str, float]) -> Tensor:
        """Return what rollouts add to a loss that is the mean over so many tokens."""
        args, now = self.args, self._wrapped([r.text for r in some], [r.start for r in some])
        rows = [(*r.then[:2], r.advantages, r.returns) for r in some]
        then, values, advantages, returns = (
            torch.cat(column).to(now.values.device) for column in zip(*rows, strict=True)
        )
        chances, clip = now.log_probabilities, args.value_clip_range
        policy = losses.policy_losses(chances, then, advantages, clip=args.clip_range)
        value = losses.value_losses(now.values, values, returns, clip=clip).mean(-1)
        with torch.no_grad():
            ratio, moved = (chances - then).exp(), (now.values - values).abs()
            figures = {
                "policy_loss": policy,
                "value_loss": value,
                "clip_fraction": (ratio - 1).abs() > args.clip_range,
                "value_clip_fraction": (moved > clip).float().mean(-1),
                "approx_kl": ratio - 1 - ratio.log(),
                "ratio": ratio,
            }
            totals = torch.stack([figure.float().sum() for figure in figures.values()]).tolist()
        for name, total in zip(figures, totals, strict=True):
            sums[name] += total / tokens
        return (policy + args.value_coef * value).sum() / tokens

    def _check(self, weights: Sequence[float], ref_model: Any) -> None:
        args, model, names, count = self.args, self.model, self.names, self.processes.count
        tokens, rows = len(self.processing_class), len(model.get_input_embeddings().weight)
        trained = [p for p in model.parameters() if p.requires_grad]
        alone = ref_model is None and not isinstance(model, PeftModel)
        for wrong, what in (
            (len({*names}) < max(len(names), 1), f"reward functions need different names: {names}"),
            (len(weights) != len(names), f"{len(weights)} reward_weights for {len(names)} rewards"),
            (not len(self.train_dataset), "there are no prompts to train on"),
            (args.batch_size % count, f"batch_size must be a multiple of {count} processes"),
            (self.accelerator.distributed_type in SHARDED, "PPO takes no model in shards"),
            (not trained, "no parameter of the model is to be trained (requires_grad)"),
            (any(p.dtype != torch.float32 for p in trained), "what is trained must be in float32"),
            (alone, "a policy without an adapter to turn off needs a ref_model"),
            (self.processing_class.pad_token_id is None, "the tokenizer needs a pad_token"),
            (tokens > rows, f"the tokenizer has {tokens} tokens, the model {rows}: not its own?"),
        ):
            if wrong:
                raise OptionError(what)
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", math.inf)
        for i, row in enumerate(self.train_dataset):
            length, room = len(self._encode(row["prompt"])), limit - args.max_new_tokens
            if not 0 < length <= room:
                raise OptionError(
                    f"prompt {i} has {length} tokens; with max_new_tokens of {args.max_new_tokens} "
                    f"this model takes from 1 to {room}"
                )
