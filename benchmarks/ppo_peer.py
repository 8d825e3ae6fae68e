"""PPO as TRL 1.12 has it, in a process of its own and in an environment of its own.

Nothing of morlaif_hub is imported here, so that the memory is TRL's alone.
"""

import gc
import time
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.children import peak_megabytes

EVEN = 2


class EvenTokens(nn.Module):
    """A reward model in the form that TRL's PPO wants: the share of even ids among the tokens."""

    base_model_prefix = "backbone"

    def __init__(self) -> None:
        super().__init__()
        self.backbone = _Shares()

    def score(self, states: Tensor) -> Tensor:
        """Return the rewards after each token, shape (rows, tokens, 1)."""
        return states


class _Shares(nn.Module):
    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_trl_extras: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutput

        there = attention_mask.float()
        even = (input_ids % EVEN == 0).float() * there
        shares = even.cumsum(1) / there.cumsum(1).clamp(min=1)
        return BaseModelOutput(hidden_states=(shares[..., None],))


def even_share(ids: list[int]) -> float:
    """Return the reward of a prompt and its response: the share of even token ids."""
    return sum(i % EVEN == 0 for i in ids) / len(ids)


def train(*, collect: bool, value: str, **job: Any) -> dict[str, Any]:
    """Train with TRL and return what it took, as plain values.

    Args:
        collect: Whether TRL's own calls of the garbage collector are made.
        value: `lora` or `full`: what is trained of the model that gives the values.
        job: The fields of a `Job`.
    """
    torch.set_num_threads(job["threads"])
    import trl
    from datasets import Dataset
    from peft import LoraConfig, inject_adapter_in_model
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        TrainerCallback,
        set_seed,
    )
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    if trl.__version__ != job["trl"]:
        raise RuntimeError(f"trl {job['trl']} is wanted, this is {trl.__version__}")
    if not collect:
        gc.collect = lambda *_: 0
    set_seed(job["seed"])
    tokenizer = AutoTokenizer.from_pretrained(job["base"], padding_side="left")
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        tokenizer.add_special_tokens({"pad_token": tokenizer.convert_ids_to_tokens(0)})
    policy = AutoModelForCausalLM.from_pretrained(job["base"], dtype=torch.float32)
    critic = AutoModelForSequenceClassification.from_pretrained(
        job["base"], num_labels=1, dtype=torch.float32
    )
    lora = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
    if value == "lora":
        critic.requires_grad_(False)
        inject_adapter_in_model(LoraConfig(**lora), critic)
        critic.score.requires_grad_(True)
    marks: list[tuple[float, float]] = []

    class Clock(TrainerCallback):
        def on_log(self, *_args: object, **_trainer: object) -> None:
            marks.append((time.perf_counter(), time.process_time()))

    prompts = [tokenizer(p, add_special_tokens=False)["input_ids"] for p in job["prompts"]]
    trainer = PPOTrainer(
        args=PPOConfig(
            job["scratch"],
            # Minibatches are cut from this; an optimizer step is taken for each of them.
            per_device_train_batch_size=job["rollouts"],
            gradient_accumulation_steps=1,
            num_mini_batches=job["minibatches"],
            total_episodes=job["rollouts"] * (job["steps"] + 1),
            num_ppo_epochs=job["epochs"],
            response_length=job["max_new_tokens"],
            local_rollout_forward_batch_size=job["rollouts"],
            num_sample_generations=0,
            stop_token="eos",
            missing_eos_penalty=None,
            temperature=1.0,
            kl_coef=0.05,
            learning_rate=job["learning_rate"],
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            logging_steps=1,
            disable_tqdm=True,
            seed=job["seed"],
            dataloader_pin_memory=False,
        ),
        processing_class=tokenizer,
        model=policy,
        ref_model=None,
        reward_model=EvenTokens(),
        value_model=critic,
        train_dataset=Dataset.from_dict({"input_ids": prompts}),
        callbacks=[Clock()],
        peft_config=LoraConfig(task_type="CAUSAL_LM", **lora),
    )
    trainer.train()
    ends = marks[: job["steps"] + 1]  # the last log is of the whole run
    history = [row for row in trainer.state.log_history if "objective/scores" in row]
    return {
        "seconds": [after[0] - before[0] for before, after in pairwise(ends)],
        "processor": [after[1] - before[1] for before, after in pairwise(ends)],
        "megabytes": peak_megabytes(),
        "rewards": [row["objective/scores"] for row in history],
        "kl": [row["objective/kl"] for row in history],
    }
