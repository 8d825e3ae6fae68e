"""PPO: what it learns, what it must not depend on, how it goes on, and what can fail."""

import copy
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, TrainerCallback

from morlaif_hub.errors import OptionError, ScoreError, TrainingError, WorkspaceError
from morlaif_hub.models.generation import SamplingSettings, sample_rows
from morlaif_hub.models.language_model import load_causal_lm, load_tokenizer
from morlaif_hub.policies import ppo
from morlaif_hub.policies.ppo_model import ActorCritic
from morlaif_hub.rewards import reward_function, reward_functions
from tests.ppo_runs import PROMPTS, WORD, brevity, evens, lora, share, trainer, weights
from tests.tiny import CONTEXT, tiny_causal_lm, tiny_tokenizer

ROOT = Path(__file__).parent.parent
FAMILIES = ("gpt2", "llama", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3")


def family(kind: str) -> Any:
    """Return a tiny model of a family."""
    if kind in ("gpt2", "llama"):
        return tiny_causal_lm(kind)  # type: ignore[arg-type]
    config = AutoConfig.for_model(
        kind,
        vocab_size=len(tiny_tokenizer()),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=8,
        max_position_embeddings=CONTEXT,
        initializer_range=0.2,
        eos_token_id=tiny_tokenizer().eos_token_id,
        pad_token_id=tiny_tokenizer().pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()


def close(one: dict[str, Tensor], two: dict[str, Tensor], **tolerance: float) -> None:
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, **tolerance)


def curve(made: Any) -> list[dict[str, float]]:
    log: list[dict[str, float]] = made.state.log_history
    return log


# The policy and its values.


@pytest.mark.parametrize("kind", FAMILIES)
@settings(max_examples=5)
@given(seed=st.integers(0, 1000))
def test_a_batch_is_predicted_as_each_text_alone(kind: str, seed: int) -> None:
    """Against the model's own logits; padding and the other texts change nothing."""
    model = family(kind)
    actor = ActorCritic(model, columns=2, temperature=0.7)
    generator = torch.Generator().manual_seed(seed)
    actor.value_head.weight.data.normal_(generator=generator)
    lengths = torch.randint(2, 30, (3,), generator=generator).tolist()
    beginning = [7] * (seed % 3 * 9)
    texts = [torch.randint(5, 200, (n,), generator=generator).tolist() for n in lengths]
    texts = [[*beginning, *text] for text in texts]
    starts = [int(torch.randint(1, len(text), (), generator=generator)) for text in texts]
    with torch.no_grad():
        found = actor(texts, starts)
        expected: list[list[Tensor]] = [[], [], []]
        for text, start in zip(texts, starts, strict=True):
            out = model(torch.tensor([text]), output_hidden_states=True)
            chances = (out.logits[0, start - 1 : -1] / 0.7).log_softmax(-1)
            expected[0].append(chances.gather(1, torch.tensor(text[start:])[:, None])[:, 0])
            expected[1].append(actor.value_head(out.hidden_states[-1][0, start - 1 : -1]))
            expected[2].append(-(chances.exp() * chances).sum(-1))
    for its, parts in zip(found, expected, strict=True):
        torch.testing.assert_close(its, torch.cat(parts), atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2"])
def test_a_shared_beginning_has_the_same_gradient(kind: str) -> None:
    """It is run once for all rows, and learns from each of them."""
    texts = [[7] * 12 + [9, 8, 5], [7] * 12 + [3], [7] * 11 + [4, 4, 4, 4, 4]]
    gradients = []
    for keeps_keys in (True, False):
        actor = ActorCritic(family(kind), columns=1, temperature=1.0)
        actor.value_head.weight.data.fill_(0.1)
        actor._keeps_keys = keeps_keys
        ran: list[int] = []
        actor.base.base_model.register_forward_hook(
            lambda _module, _args, given, _output, ran=ran: ran.append(given["input_ids"].numel()),
            with_kwargs=True,
        )
        found = actor(texts, [5, 12, 13])
        assert ran == ([11, 3 * 5] if keeps_keys else [3 * 16])
        weights = torch.linspace(-1, 1, len(found.values))
        (found.log_probabilities * weights + found.values[:, 0] * weights).sum().backward()
        gradients.append({n: p.grad for n, p in actor.named_parameters() if p.grad is not None})
    close(*gradients, atol=1e-3, rtol=1e-3)


def test_a_model_that_changes_its_logits_is_refused() -> None:
    config = AutoConfig.for_model(
        "granite",
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        logits_scaling=8.0,
    )
    with pytest.raises(OptionError, match="GraniteForCausalLM makes its logits in a way"):
        ActorCritic(AutoModelForCausalLM.from_config(config), columns=1, temperature=1.0)


# Sampling.


@settings(max_examples=5)
@given(st.permutations(range(5)), st.integers(1, 5))
def test_a_row_is_sampled_alike_whatever_it_is_sampled_with(order: list[int], size: int) -> None:
    model, tokenizer = tiny_causal_lm(), tiny_tokenizer()
    prompts = [[7] * n for n in (3, 1, 3, 6, 2)]
    chances = torch.rand(5, 6, generator=torch.Generator().manual_seed(0))
    how = SamplingSettings(max_new_tokens=6, temperature=0.9, top_p=1.0, distinct=False)
    whole = sample_rows(model, tokenizer, prompts, how, chances=chances)
    for start in range(0, 5, size):
        part = order[start : start + size]
        some = [prompts[i] for i in part]
        found = sample_rows(model, tokenizer, some, how, chances=chances[part])
        assert [r.ids for r in found] == [whole[i].ids for i in part]


def test_the_policy_is_sampled_as_it_is_whatever_its_model_is_set_to() -> None:
    made = trainer(rollouts=32, batch_size=32, learning_rate=0.0, max_steps=1)
    plain = made._respond(made._rows())
    config = made.actor.base.generation_config
    config.repetition_penalty, config.top_k, config.suppress_tokens = 5.0, 1, [WORD]
    assert [r.text for r in made._respond(made._rows())] == [r.text for r in plain]


def test_what_is_sampled_has_the_probabilities_that_are_trained() -> None:
    """The share of the first tokens is what the policy says, within four standard errors."""
    made = trainer(
        rollouts=600,
        batch_size=600,
        rollout_batch_size=600,
        max_new_tokens=1,
        train_dataset=PROMPTS[:1],
        temperature=0.5,
    )
    found = made._respond(made._rows())
    text, start = found[0].text, found[0].start
    logits = made.actor.base(torch.tensor([text[:start]])).logits[0, -1] / 0.5
    chances = logits.softmax(-1)
    seen = torch.bincount(torch.tensor([r.text[start] for r in found]), minlength=len(chances))
    likely = chances > 0.02
    assert likely.sum() >= 3
    error = (chances * (1 - chances) / 600).sqrt()
    assert bool(((seen / 600 - chances).abs() <= 4 * error)[likely].all())


# Learning.


def learn(**changes: Any) -> list[dict[str, float]]:
    """Return the figures of a policy that is rewarded for one token."""
    reference = tiny_causal_lm()
    options: dict[str, Any] = {
        "ref_model": reference,
        "train_dataset": [{"prompt": "a"}],
        "max_steps": 20,
        "rollouts": 32,
        "batch_size": 16,
        "rollout_batch_size": 32,
        "max_new_tokens": 8,
        "kl_target": None,
        "max_grad_norm": None,
    }
    made = trainer(copy.deepcopy(reference), share, **options | changes)
    made.train()
    return curve(made)


def test_a_rewarded_token_is_learnt() -> None:
    """Its share of what a tiny model says rises to 0.9 and more."""
    log = learn(kl_coef=0.0)
    assert log[0]["reward"] < 0.05
    assert log[-1]["reward"] >= 0.9
    assert log[-1]["kl"] > 1  # it is another policy now
    assert log[-1]["entropy"] < log[0]["entropy"] / 2


def test_the_divergence_draws_the_policy_back() -> None:
    """Where nothing else is rewarded a policy comes nearer to its reference."""
    reference = tiny_causal_lm()
    policy, generator = copy.deepcopy(reference), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=generator))
    made = trainer(
        policy,
        rewards=lambda completion_ids, **_: [0.0] * len(completion_ids),
        ref_model=reference,
        train_dataset=[{"prompt": "a"}],
        max_steps=6,
        rollouts=64,
        batch_size=32,
        rollout_batch_size=64,
        max_new_tokens=8,
        learning_rate=1e-3,
        kl_coef=1.0,
        kl_target=None,
    )
    log = made.train().log_history
    assert log[-1]["kl_sum"] < 0.75 * log[0]["kl_sum"]
    assert log[-1]["kl"] < 0.75 * log[0]["kl"]


@pytest.mark.parametrize("form", ["lora", "full"])
def test_a_learning_rate_of_zero_leaves_the_policy_as_it_is(form: str) -> None:
    reference = tiny_causal_lm()
    full = {"model": copy.deepcopy(reference), "ref_model": reference}
    made = trainer(learning_rate=0.0, **(full if form == "full" else {}))
    before = {name: p.clone() for name, p in made.actor.named_parameters()}
    log = made.train().log_history
    assert all(torch.equal(p, before[name]) for name, p in made.actor.named_parameters())
    assert [row["kl"] for row in log] == [0.0] * 3
    assert log[-1]["ratio"] == pytest.approx(1, abs=1e-5)
    assert log[-1]["grad_norm"] > 0


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_is_trained_without_a_chat_template(kind: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    seen: list[Any] = []

    def reward(prompts: Any, completions: Any, completion_ids: Any, **_others: Any) -> list[float]:
        seen.extend(zip(prompts, completions, strict=True))
        return evens(completion_ids)

    model = lora(family(kind))
    made = trainer(model, reward, processing_class=tokenizer, max_steps=2)
    before = weights(made)
    with model.disable_adapter():
        expected = model(torch.tensor([[5, 6, 7]])).logits
    made.train()
    changed = weights(made)
    assert any(not torch.equal(before[name], changed[name]) for name in before)
    with model.disable_adapter():  # the base is what it was
        assert torch.equal(model(torch.tensor([[5, 6, 7]])).logits, expected)
    prompt, (turn,) = seen[0]
    assert prompt in [row["prompt"] for row in PROMPTS]
    assert turn["role"] == "assistant"
    assert made._encode(prompt) == tokenizer(prompt[0]["content"])["input_ids"]


def test_the_reference_is_the_policy_without_its_adapter() -> None:
    """Or the given one, which then gives the same numbers."""
    own, other = run(max_steps=4), run(max_steps=4, ref_model=tiny_causal_lm())
    assert own[0][-1]["kl"] > 1e-3
    for one, two in zip(own[0], other[0], strict=True):
        assert two == pytest.approx(one)


# What it must not depend on.


def run(**changes: Any) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    made = trainer(**changes)
    made.train()
    return curve(made), weights(made)


def test_the_same_seed_gives_the_same_run() -> None:
    one, two, other = (run(max_steps=2, seed=seed) for seed in (0, 0, 1))
    assert one[0] == two[0]
    assert all(torch.equal(one[1][name], two[1][name]) for name in one[1])
    assert other[0] != one[0]


WHOLE = cache(lambda: run(max_steps=1))


@settings(max_examples=3)
@given(st.sampled_from([1, 2, 3]), st.sampled_from([1, 3, 8]))
def test_how_many_responses_are_run_at_once_changes_nothing(micro: int, sampled: int) -> None:
    """The loss is a mean over the tokens of a batch, not over means of its parts."""
    whole = WHOLE()
    parts = run(max_steps=1, micro_batch_size=micro, rollout_batch_size=sampled)
    assert parts[0][0] == pytest.approx(whole[0][0], rel=2e-3, abs=2e-4)
    close(whole[1], parts[1], atol=2e-3, rtol=1e-2)


def test_every_prompt_comes_once_before_one_comes_again() -> None:
    made = trainer(rollouts=8, batch_size=8, train_dataset=PROMPTS, max_steps=7)
    seen: list[str] = []
    for step in range(7):
        made.state.global_step = step
        seen += [row["prompt"][0]["content"] for row in made._rows()]
    for epoch in range(8):
        assert len({*seen[epoch * 7 : epoch * 7 + 7]}) == 7
    assert seen[:7] != seen[7:14]


# Rewards.


class Scorer:
    """Stands for a bank: it gives each response its number of letters, and of the letter e."""

    objectives = ("length", "es")

    def score(self, prompts: Any, responses: Any) -> Tensor:
        texts = [r if isinstance(r, str) else r[0]["content"] for r in responses]
        assert len(prompts) == len(texts)
        return torch.tensor([[float(len(t)), float(t.count("e"))] for t in texts])


def test_every_objective_of_a_bank_is_logged() -> None:
    functions = reward_functions(Scorer())
    made = trainer(rewards=functions, reward_weights=[0.5, 2.0], max_steps=1)
    (log,) = made.train().log_history
    assert log["reward"] == pytest.approx(0.5 * log["rewards/length"] + 2 * log["rewards/es"])
    one = reward_function(Scorer(), scalarizer="max_min", weights={"length": 1.0, "es": 1.0})
    made = trainer(rewards=one, max_steps=1)
    (alone,) = made.train().log_history
    assert alone["objective/length"] == pytest.approx(log["rewards/length"])
    assert alone["rewards/max_min"] == alone["reward"]


def test_rewards_get_what_trl_gives_them() -> None:
    given_to: dict[str, Any] = {}

    async def reward(completions: Any, **others: Any) -> list[float | None]:
        given_to.update(others, completions=completions)
        assert "prompt" not in others
        return [None, *[1.0] * (len(completions) - 1)]

    rows = [{"prompt": f"Say {i}:", "answer": i} for i in range(5)]
    made = trainer(rewards=reward, train_dataset=rows, max_steps=1)
    (log,) = made.train().log_history
    assert log["reward"] == pytest.approx(7 / 8)
    assert {"prompts", "answer", "completion_ids", "trainer_state", "log_extra"} <= set(given_to)
    texts = tiny_tokenizer().batch_decode(given_to["completion_ids"], skip_special_tokens=True)
    assert given_to["completions"] == texts
    assert [f"Say {i}:" for i in given_to["answer"]] == given_to["prompts"]


def test_a_stop_string_ends_a_response_and_is_not_scored() -> None:
    seen: list[str] = []

    def reward(completions: Any, **_others: Any) -> list[float]:
        seen.extend(completions)
        return [0.0] * len(completions)

    options = {"train_dataset": [{"prompt": "a"}], "rollouts": 64, "batch_size": 64}
    made = trainer(rewards=reward, stop=("e", "K"), max_new_tokens=12, max_steps=1, **options)
    (log,) = made.train().log_history
    assert not any(mark in text for text in seen for mark in "eK")
    assert log["tokens"] < 12
    assert 0 < log["finished"] <= 1


def test_a_value_for_each_reward_gives_the_same_advantages_at_first() -> None:
    """Values begin at zero, and advantages of a sum are sums of advantages."""
    options = {"rewards": [evens, brevity], "reward_weights": [3.0, 0.1], "max_steps": 3}
    apart, whole = (trainer(value_per_reward=apart, **options) for apart in (True, False))
    for made in (apart, whole):
        made.model.eval()
    advantages = []
    for made in (apart, whole):
        rollouts = made._respond(made._rows())
        made._score(made._rows(), rollouts)
        made._estimate(rollouts)
        advantages.append(torch.cat([r.advantages for r in rollouts]))
    torch.testing.assert_close(*advantages)
    apart.train()
    assert apart.actor.value_head.weight.shape == (3, 32)
    assert {"rewards/evens", "rewards/brevity"} <= set(curve(apart)[-1])


def test_rewards_are_scaled_by_all_so_far_and_clipped() -> None:
    def reward(completion_ids: Any, **_others: Any) -> list[float]:
        return [1000.0 * (i == 0) for i in range(len(completion_ids))]

    made = trainer(rewards=reward, max_steps=2, kl_coef=0.0, reward_clip=0.5, gamma=1.0)
    made.train()
    scores = [1000.0, *[0.0] * 7] * 2
    assert curve(made)[-1]["reward_scale"] == pytest.approx(float(torch.tensor(scores).std()))
    rollouts = made._respond(made._rows())
    made._score(made._rows(), rollouts)
    made._estimate(rollouts)
    best = rollouts[0]
    zero = torch.zeros_like(best.then.values)
    best.then = best.then._replace(values=zero)
    made._estimate(rollouts)
    assert float(best.returns[-1]) == pytest.approx(0.5)


# Callbacks.


class Spy(TrainerCallback):
    """Notes what it is told; does what it is asked to."""

    def __init__(self, at_step_end: Callable[..., None] = lambda *_, **__: None) -> None:
        self.told: list[str] = []
        self.at_step_end = at_step_end

    def on_train_begin(self, _args: Any, state: Any, *_: Any, **__: Any) -> None:
        self.told.append(f"begin {state.global_step} of {state.max_steps}")

    def on_step_end(self, _args: Any, state: Any, control: Any, **given: Any) -> Any:
        self.told.append(f"step {state.global_step}")
        self.at_step_end(state=state, control=control, **given)
        return control

    def on_log(self, _args: Any, _state: Any, _control: Any, **given: Any) -> None:
        self.told.append(f"log {given['logs']['reward']:.3f}")

    def on_save(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        assert Path(args.output_dir, f"checkpoint-{state.global_step}").is_dir()
        self.told.append("save")

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.told.append("end")


def test_callbacks_see_rounds_and_can_save_and_stop(tmp_path: Path) -> None:
    def at_step_end(state: Any, control: Any, **_given: Any) -> None:
        control.should_save = state.global_step == 1
        control.should_training_stop = state.global_step == 2

    made, spy = trainer(output_dir=str(tmp_path)), Spy(at_step_end)
    made.add_callback(spy)
    made.train()
    first, second = (f"log {row['reward']:.3f}" for row in curve(made))
    assert spy.told == ["begin 0 of 3", "step 1", first, "save", "step 2", second, "end"]


def test_dropout_stays_off_whatever_a_callback_does() -> None:
    def at_step_end(model: Any, **_given: Any) -> None:
        model.train()

    model = tiny_causal_lm("gpt2")  # which has dropout
    made = trainer(lora(model), learning_rate=0.0)
    made.add_callback(Spy(at_step_end))
    made.train()
    assert curve(made)[-1]["approx_kl"] < 1e-8


# Going on.


@pytest.mark.parametrize("form", ["lora", "full"])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(form: str, tmp_path: Path) -> None:
    def new(**changes: Any) -> Any:
        reference = tiny_causal_lm()
        full = {"model": copy.deepcopy(reference), "ref_model": reference}
        return trainer(output_dir=str(tmp_path), **changes, **(full if form == "full" else {}))

    whole = new(max_steps=4)
    whole.train()

    def interrupt(state: Any, **_given: Any) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt

    stopped = new(max_steps=4, save_steps=2)
    stopped.add_callback(Spy(interrupt))
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    made = new(max_steps=4)
    made.train(resume_from_checkpoint=True)
    assert curve(made) == curve(whole)
    one, two = weights(made), weights(whole)
    assert all(torch.equal(one[name], two[name]) for name in one)
    longer = new(max_steps=5)  # from the folder by name
    longer.train(resume_from_checkpoint=tmp_path / "checkpoint-2")
    assert curve(longer)[:4] == curve(whole)


def test_nothing_goes_on_from_another_run(tmp_path: Path) -> None:
    made = trainer(output_dir=str(tmp_path), max_steps=1)
    assert made.train(resume_from_checkpoint=True).global_step == 1  # there was none yet
    folder = made.save_checkpoint()
    with pytest.raises(OptionError, match="checkpoint-1 holds no checkpoint of a run with these"):
        trainer(gamma=0.9).train(resume_from_checkpoint=folder)
    with pytest.raises(OptionError, match="holds no checkpoint"):
        trainer().train(resume_from_checkpoint=tmp_path / "nowhere")


def launch(folder: Path, kind: str, processes: int = 1) -> "subprocess.CompletedProcess[str]":
    several = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.run(
        [
            sys.executable,
            *(several if processes > 1 else []),
            "-m",
            "tests.ppo_runs",
            str(folder),
            kind,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    assert launch(tmp_path, "killed").returncode == -9
    assert not (tmp_path / "0.json").exists()
    assert (tmp_path / "run/checkpoint-2").is_dir()
    done = launch(tmp_path, "resumed")
    assert done.returncode == 0, done.stderr[-3000:]
    whole = trainer(value_per_reward=True)
    whole.train()
    assert json.loads((tmp_path / "0.json").read_text())["log"] == curve(whole)
    close(weights(whole), load_file(tmp_path / "weights-0.safetensors"), atol=0.0, rtol=0.0)


@pytest.mark.slow
def test_two_processes_come_to_what_one_does(tmp_path: Path) -> None:
    """And they go on from a checkpoint; what fails in one of them fails in both."""
    done = launch(tmp_path, "together", processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    said = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [one["processes"] for one in said] == [2, 2]
    assert said[0]["log"] == said[1]["log"]
    assert [one["resumed"] for one in said] == [said[0]["log"]] * 2
    assert said[0]["error"] == said[1]["error"]
    assert "reward function 'broken' gave nan" in said[0]["error"]
    alone = trainer(rewards=[evens, brevity], value_per_reward=True)
    alone.train()
    for one, two in zip(curve(alone), said[0]["log"], strict=True):
        assert two == pytest.approx(one, rel=2e-3, abs=2e-4)
    both = [load_file(tmp_path / f"weights-{rank}.safetensors") for rank in (0, 1)]
    close(both[0], both[1], atol=0.0, rtol=0.0)
    close(weights(alone), both[0], atol=2e-3, rtol=1e-2)


# What can fail.


def test_a_reward_that_is_no_number_is_told_by_its_name() -> None:
    def broken(completion_ids: Any, **_others: Any) -> list[float]:
        return [0.0, float("inf"), *[0.0] * (len(completion_ids) - 2)]

    made = trainer(rewards=[evens, broken])
    with pytest.raises(ScoreError, match="reward function 'broken' gave inf for response 1"):
        made.train()
    with pytest.raises(OptionError, match="'few' must give 8 numbers, got 1"):
        trainer(rewards=few).train()


def few(**_others: Any) -> list[float]:
    return [1.0]


def test_a_loss_that_is_no_number_changes_nothing_and_the_checkpoint_stays(tmp_path: Path) -> None:
    made = trainer(output_dir=str(tmp_path), save_steps=1)
    kept: dict[str, Tensor] = {}

    def poison(state: Any, **_given: Any) -> None:
        if state.global_step == 2:
            kept.update(weights(made))
            made._kl.coef = float("nan")

    made.add_callback(Spy(poison))
    with pytest.raises(TrainingError, match=r"loss of step 3 is not finite, and changed no weight"):
        made.train()
    assert made.state.global_step == 2
    close(kept, weights(made), atol=0.0, rtol=0.0)
    again = trainer(output_dir=str(tmp_path))
    again.train(resume_from_checkpoint=tmp_path / "checkpoint-1")
    assert again.state.global_step == 3


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("sample_rows", "memory ran out with 8 texts .* lower rollout_batch_size"),
        ("losses.policy_losses", "memory ran out with 4 texts .* lower micro_batch_size"),
    ],
)
def test_running_out_of_memory_names_what_to_lower(
    where: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object, **_others: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(f"{ppo.__name__}.{where}", full)
    with pytest.raises(TrainingError, match=said):
        trainer().train()


def test_a_place_that_cannot_be_written_is_named_and_the_checkpoint_before_stays(
    tmp_path: Path,
) -> None:
    (tmp_path / "checkpoint-2").write_text("in the way")
    made = trainer(output_dir=str(tmp_path), save_steps=1)
    with pytest.raises(WorkspaceError, match="checkpoint-2: the state of training cannot be"):
        made.train()
    (tmp_path / "checkpoint-2").unlink()
    again = trainer(output_dir=str(tmp_path), save_steps=1)
    assert again.train(resume_from_checkpoint=True).global_step == 3
    assert len(curve(again)) == 3


def refused() -> Iterator[tuple[dict[str, Any], str]]:
    yield {"rewards": []}, "reward functions need different names"
    yield {"rewards": [evens, evens]}, r"different names: \['evens', 'evens'\]"
    yield {"reward_weights": [1.0, 2.0]}, "2 reward_weights for 1 rewards"
    yield {"train_dataset": []}, "no prompts"
    yield {"model": tiny_causal_lm()}, "needs a ref_model"
    yield {"model": lora(tiny_causal_lm()).requires_grad_(False)}, "no parameter of the model"
    yield {"model": lora(tiny_causal_lm()).bfloat16()}, "must be in float32"
    long = [*PROMPTS, {"prompt": "a" * CONTEXT}]
    yield (
        {"train_dataset": long},
        "prompt 7 has 512 tokens; with max_new_tokens of 5 this model takes from 1 to 507",
    )
    yield {"train_dataset": [{"prompt": ""}]}, "prompt 0 has 0 tokens"
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<new>"])
    unpadded = tiny_tokenizer()
    unpadded.pad_token = None
    yield {"processing_class": unpadded}, "the tokenizer needs a pad_token"
    yield {"processing_class": tokenizer}, r"the tokenizer has \d+ tokens, the model \d+"


@pytest.mark.parametrize("number", range(11))
def test_what_does_not_fit_is_refused_before_training(number: int) -> None:
    changes, said = list(refused())[number]
    with pytest.raises(OptionError, match=said):
        trainer(**changes)


@pytest.mark.slow
@pytest.mark.usefixtures("users_cache")
def test_the_embedded_model_is_trained_in_half_precision(embedded_folder: Path) -> None:
    """Its adapter and its values are in float32."""
    made = trainer(
        lora(load_causal_lm(embedded_folder, dtype="bfloat16")),
        processing_class=load_tokenizer(embedded_folder),
        max_steps=2,
        rollouts=4,
        batch_size=2,
        epochs=1,
        learning_rate=1e-4,
    )
    before = weights(made)
    log = made.train().log_history
    assert all(math.isfinite(figure) for row in log for figure in row.values())
    assert log[0]["kl"] < 1e-3  # of an adapter that changes nothing yet
    assert 0.9 < log[0]["ratio"] < 1.1
    changed = [not torch.equal(before[name], now) for name, now in weights(made).items()]
    assert all(changed)
