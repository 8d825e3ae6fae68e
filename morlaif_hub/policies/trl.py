"""TRL's trainers that take a reward: GRPO, RLOO and online DPO.

Source:
    https://huggingface.co/docs/trl
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import parse_flag_from_env
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from morlaif_hub.errors import OptionError
from morlaif_hub.models.decoding import decode
from morlaif_hub.policies.settings import COLOCATE, PolicySettings, Prompts
from morlaif_hub.policies.shared_prompts import share_prompts
from morlaif_hub.rewards import RewardFunction


@dataclass(frozen=True)
class Work:
    """What a trainer is made for.

    Attributes:
        prompts: To train on.
        longest: Tokens of the longest of them.
        functions: Reward functions.
        weights: One for each of them; None for the only one.
        settings: Planned.
        processes: How many train.
        folder: For checkpoints.
    """

    prompts: Prompts
    longest: int
    functions: Sequence[RewardFunction]
    weights: list[float] | None
    settings: PolicySettings
    processes: int
    folder: Path


def trl_trainer(model: Any, peft_config: Any, tokenizer: Any, work: Work) -> Any:
    """Return TRL's trainer of the algorithm, which shares what completions have in common.

    Args:
        model: A causal language model, which becomes the policy, or a PEFT model of one.
        peft_config: Of the LoRA that it is to get; None for none.
        tokenizer: With padding on the left and a chat template.
        work: What it is made for.

    Raises:
        OptionError: If vLLM is asked for and not there.
    """
    settings = work.settings
    makers = {"grpo": _grpo, "rloo": _rloo, "online-dpo": _online_dpo}
    rows = _in_order(work)
    try:
        trainer = makers[settings.algorithm](
            work,
            {
                "model": model,
                "reward_funcs": list(work.functions),
                "train_dataset": rows,
                "processing_class": tokenizer,
                "peft_config": peft_config,
            },
        )
    except (ImportError, ConnectionError) as error:
        if settings.vllm is None:
            raise
        raise OptionError(f"vLLM cannot be used: {error}") from error
    trainer.remove_callback(PrinterCallback)  # it writes to stdout, which is for data
    trainer.create_model_card = lambda **_named: None  # a checkpoint is for nobody to see
    _do_shared_work_once(trainer, settings)
    return trainer


def _grpo(work: Work, parts: dict[str, Any]) -> Any:
    config = GRPOConfig(
        **_common(work),
        **_in_groups(work.settings),
        multi_objective_aggregation=work.settings.aggregation,
    )
    return GRPOTrainer(**parts, args=_one_gpu(config))


def _rloo(work: Work, parts: dict[str, Any]) -> Any:
    config = RLOOConfig(**_common(work), **_in_groups(work.settings))
    return RLOOTrainer(**parts, args=_one_gpu(config))


def _online_dpo(work: Work, parts: dict[str, Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is experimental, as TRL calls it
        from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    settings = work.settings
    config = OnlineDPOConfig(
        **{**_common(work), "beta": [settings.beta]},
        max_new_tokens=settings.max_new_tokens,
        train_sampling_strategy="sequential",
        max_length=work.longest + settings.max_new_tokens + 1,  # nothing is to be cut
    )
    config.per_device_train_batch_size //= 2  # TRL counts the prompts, of two completions each
    return OnlineDPOTrainer(**parts, args=_one_gpu(config))


def _in_order(work: Work) -> Dataset:
    """Return the prompts of all steps, one after the other: epochs, each in an order of its own.

    TRL's sampler begins with its first epoch again where a run goes on.
    """
    settings, each = work.settings, work.settings.prompts_per_step or 1
    random = np.random.default_rng(settings.seed)
    order: list[int] = []
    while len(order) < settings.max_steps * each:
        epoch = random.permutation(len(work.prompts)).tolist()
        order += epoch[: len(epoch) - len(epoch) % each]  # a step has no prompt twice
    rows = Dataset.from_dict({"prompt": [list(prompt) for prompt in work.prompts]})
    return rows.select(order[: settings.max_steps * each])


def _common(work: Work) -> dict[str, Any]:
    """Return what all of TRL's configurations take."""
    settings = work.settings
    at_once = settings.rows_at_once(work.processes)
    vllm: dict[str, Any] = {}
    if settings.vllm == COLOCATE:
        vllm = {"use_vllm": True, "vllm_mode": "colocate"}
    elif settings.vllm:
        vllm = {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": settings.vllm}
    return {
        "output_dir": str(work.folder),
        "max_steps": settings.max_steps,
        "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": settings.step_rows // work.processes // at_once,
        "temperature": settings.temperature,
        "beta": settings.beta,
        "learning_rate": settings.learning_rate,
        "reward_weights": work.weights,
        "lr_scheduler_type": "constant",
        "use_cpu": parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available(),
        "bf16": settings.form == "full" and settings.dtype == "bfloat16",
        "gradient_checkpointing": False,
        "disable_dropout": True,
        "report_to": "none",
        "save_strategy": "no",  # the watch says when
        "save_total_limit": 2,  # the second one is whole while the first is written
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would hide a loss that is no number
        "disable_tqdm": True,
        "seed": settings.seed,
        "dataloader_pin_memory": False,
        **vllm,
    }


def _in_groups(settings: PolicySettings) -> dict[str, Any]:
    return {
        "num_generations": settings.completions,
        "max_completion_length": settings.max_new_tokens,
        "shuffle_dataset": False,
    }


def _one_gpu(config: Any) -> Any:
    # One process takes one GPU, however many there are: TRL refuses to use several.
    config._n_gpu = min(config.n_gpu, 1)
    return config


def _do_shared_work_once(trainer: Any, settings: PolicySettings) -> None:
    """Let completions of one prompt share its work, in sampling and in the loss."""
    model = trainer.model
    # TRL offers no way to choose how `generate` decodes.
    model.generate = partial(model.generate, custom_generate=decode)
    if settings.algorithm == "online-dpo":  # it has no loss that could share prompts
        model.generate = partial(_side_by_side, model.generate)
    else:
        inner = model.get_base_model() if isinstance(model, PeftModel) else model
        share_prompts(inner, temperature=settings.temperature)


def _side_by_side(
    generate: Any, *, input_ids: Tensor, attention_mask: Tensor, **options: Any
) -> Tensor:
    """Generate with equal prompts next to each other, as the decoder shares them."""
    prompts = torch.stack([input_ids, attention_mask], 1)
    _, owner = torch.unique(prompts, dim=0, return_inverse=True)
    order = owner.argsort(stable=True)
    rows: Tensor = generate(
        input_ids=input_ids[order], attention_mask=attention_mask[order], **options
    )
    return rows[order.argsort()]
