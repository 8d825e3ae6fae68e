"""Small runs of PPO, alike in a test and in each of several processes.

Run as a module it trains, alone or under torchrun, and writes down what came of it.
"""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import TrainerCallback

from morlaif_hub.errors import MorlaifHubError
from morlaif_hub.policies.ppo import PPOTrainer
from morlaif_hub.policies.ppo_config import PPOConfig
from morlaif_hub.scoring.processes import Processes
from tests.tiny import tiny_causal_lm, tiny_tokenizer

WORD = 42
"""A token that is easily learnt."""
PROMPTS = [{"prompt": [{"role": "user", "content": "Say " + "it " * i}]} for i in range(7)]
CONFIG = PPOConfig(
    max_steps=3,
    rollouts=8,
    batch_size=4,
    rollout_batch_size=8,
    epochs=2,
    learning_rate=1e-2,
    max_new_tokens=5,
)


def share(completion_ids: list[list[int]], **_others: Any) -> list[float]:
    """Return the share of the word in each response."""
    return [sum(token == WORD for token in ids) / len(ids) for ids in completion_ids]


def evens(completion_ids: list[list[int]], **_others: Any) -> list[float]:
    """Return the share of even ids in each response."""
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]


def brevity(completion_ids: list[list[int]], **_others: Any) -> list[float]:
    """Return minus the length of each response."""
    return [-float(len(ids)) for ids in completion_ids]


def lora(model: Any | None = None, *, seed: int = 0) -> Any:
    """Return a policy with a new adapter in all its layers."""
    model = tiny_causal_lm() if model is None else model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(
            model,
            LoraConfig(
                task_type="CAUSAL_LM",
                r=4,
                lora_alpha=8,
                target_modules="all-linear",
                fan_in_fan_out=model.config.model_type == "gpt2",
            ),
        )


def trainer(model: Any = None, rewards: Any = evens, **changes: Any) -> PPOTrainer:
    """Return a trainer as most tests here want it.

    Args:
        model: None for a LoRA on a tiny model.
        rewards: The reward functions.
        changes: Of the settings, or what else the trainer takes, by name.
    """
    given: dict[str, Any] = {"train_dataset": PROMPTS, "processing_class": tiny_tokenizer()}
    others = {"train_dataset", "processing_class", "ref_model"}
    given |= {name: changes.pop(name) for name in others & set(changes)}
    policy = lora() if model is None else model
    return PPOTrainer(policy, rewards, args=replace(CONFIG, **changes), **given)


def weights(made: PPOTrainer) -> dict[str, torch.Tensor]:
    """Return copies of what is trained, by name."""
    named = made.actor.named_parameters()
    return {name: p.detach().clone() for name, p in named if p.requires_grad}


class Killed(TrainerCallback):
    """Kills its process at the end of a round, as if the power had failed."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, _args: Any, state: Any, *_: Any, **__: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def _main(folder: Path, kind: str) -> None:
    processes = Processes()
    found: dict[str, Any] = {"processes": processes.count}
    changes: dict[str, Any] = {"output_dir": str(folder / "run"), "value_per_reward": True}
    if kind == "together":
        made = trainer(rewards=[evens, brevity], **changes, save_steps=1)
        made.train()
        again = trainer(rewards=[evens, brevity], **changes)
        again.train(resume_from_checkpoint=folder / "run" / "checkpoint-1")
        found |= {"resumed": again.state.log_history, "error": _error_of_one(processes)}
    else:
        made = trainer(**changes, save_steps=1)
        if kind == "killed":
            made.add_callback(Killed(3))
        made.train(resume_from_checkpoint=True)
    save_file(weights(made), folder / f"weights-{processes.index}.safetensors")
    found["log"] = made.state.log_history
    (folder / f"{processes.index}.json").write_text(json.dumps(found))
    processes.close()


def _error_of_one(processes: Processes) -> str:
    """Return what all are told when one of two processes has a reward that is not a number."""

    def broken(completion_ids: list[list[int]], **_others: Any) -> list[float]:
        return [float("nan") if processes.index == 1 else 0.0 for _ in completion_ids]

    try:
        trainer(rewards=broken).train()
    except MorlaifHubError as raised:
        return str(raised)
    return ""


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2])
