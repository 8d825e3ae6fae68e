"""Prompts computed once for TRL's losses: nothing else changes, neither values nor gradients."""

from typing import Any

import pytest
import torch
from trl.trainer.utils import add_fused_lm_head

from morlaif_hub.policies.shared_prompts import share_prompts
from tests.tiny import tiny_causal_lm, tiny_windowed

IGNORED = -100


MODELS = {"llama": tiny_causal_lm, "gpt2": lambda: tiny_causal_lm("gpt2"), "window": tiny_windowed}


def batch() -> dict[str, torch.Tensor]:
    """Return completions of different lengths on two prompts, shuffled, as GRPO has them."""
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(5, 200, (2, 14), generator=generator)
    mask = torch.ones(6, 24, dtype=torch.long)
    ids = torch.cat(
        [prompts[[0, 1, 1, 0, 1, 0]], torch.randint(5, 200, (6, 10), generator=generator)], 1
    )
    mask[[1, 2, 4], :5] = 0  # the second prompt is shorter
    for row, length in enumerate([10, 3, 7, 1, 10, 5]):
        mask[row, 14 + length :] = 0
    labels = ids.masked_fill(mask == 0, IGNORED)
    labels[:, :14] = IGNORED
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def measured(model: Any) -> list[torch.Tensor]:
    """Return log-probabilities, entropies, and the gradient of both."""
    model.zero_grad()
    outputs = model(**batch(), fused_lm_head=True)
    weights = torch.linspace(-1, 1, outputs.log_probs.numel()).view_as(outputs.log_probs)
    (outputs.log_probs * weights + 0.1 * outputs.entropy).sum().backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return [outputs.log_probs.detach(), outputs.entropy.detach(), *gradients]


@pytest.mark.parametrize("kind", MODELS)
def test_values_and_gradients_are_those_of_whole_texts(kind: str) -> None:
    model = MODELS[kind]()
    add_fused_lm_head(model, temperature=0.7, outputs=("log_probs", "entropy"))
    whole = measured(model)
    share_prompts(model)
    seen: list[int] = []
    model.base_model.register_forward_hook(
        lambda _module, _args, kwargs, _output: seen.append(kwargs["input_ids"].numel()),
        with_kwargs=True,
    )
    for expected, found in zip(whole, measured(model), strict=True):
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)
    assert seen == [2 * 13, 6 * 10]  # each prompt once, but for the token that predicts


def test_other_calls_are_the_models_own() -> None:
    model = tiny_causal_lm()
    ids = batch()["input_ids"]
    with torch.no_grad():
        plain = model(input_ids=ids, labels=ids)
        add_fused_lm_head(model)
        share_prompts(model)
        found = model(input_ids=ids, labels=ids)
        torch.testing.assert_close(found.loss, plain.loss)
        torch.testing.assert_close(model(ids).logits, plain.logits)
        fused = model(input_ids=ids, labels=ids, fused_lm_head=True)  # nothing is shared
    torch.testing.assert_close(fused.loss, plain.loss)
