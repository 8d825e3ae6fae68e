"""Our own head for TRL's losses: the same numbers and gradients as TRL's, with one pass less."""

from typing import Any

import pytest
import torch
from torch import Tensor
from trl.kernels import ChunkedLogProbFunction
from trl.trainer.utils import add_fused_lm_head

from morlaif_hub.policies.loss_head import ROWS, log_probs_and_entropies, takes
from morlaif_hub.policies.shared_prompts import share_prompts
from tests.test_shared_prompts import batch
from tests.tiny import tiny_causal_lm

TEMPERATURE = 0.7


def given(
    rows: int, dtype: torch.dtype = torch.float32, width: int = 24
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return states, a head's weight, tokens, and what a loss makes of their log-probabilities."""
    generator = torch.Generator().manual_seed(rows)
    states = torch.randn(rows, width, generator=generator).to(dtype)
    weight = torch.randn(301, width, generator=generator).to(dtype)
    targets = torch.randint(301, (rows,), generator=generator)
    return states, weight, targets, torch.randn(rows, generator=generator)


@pytest.mark.parametrize("rows", [1, 7, ROWS, 2 * ROWS + 3])
def test_it_is_the_definition_in_float64(rows: int) -> None:
    states, weight, targets, of_loss = given(rows, torch.float64)
    reference = states.clone().requires_grad_()
    log_softmax = (reference @ weight.t() / TEMPERATURE).log_softmax(-1)
    expected = log_softmax.gather(1, targets[:, None])[:, 0]
    (expected * of_loss).sum().backward()
    entropy = -(log_softmax.exp() * log_softmax).sum(-1)
    mine = states.clone().requires_grad_()
    found, entropies = log_probs_and_entropies(mine, weight, targets, TEMPERATURE)
    (found * of_loss).sum().backward()
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropies.double(), entropy, atol=1e-4, rtol=0)
    torch.testing.assert_close(mine.grad, reference.grad, atol=1e-5, rtol=1e-5)
    assert not entropies.requires_grad


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_it_is_trls_head(dtype: torch.dtype, atol: float) -> None:
    states, weight, targets, of_loss = given(200, dtype)
    theirs, mine = (states.clone().requires_grad_() for _ in range(2))
    wanted = ("log_probs", "entropy")
    expected, entropy, *_ = ChunkedLogProbFunction.apply(
        theirs, weight, None, targets, TEMPERATURE, 64, None, 1.0, wanted
    )
    (expected * of_loss).sum().backward()
    found, entropies = log_probs_and_entropies(mine, weight, targets, TEMPERATURE)
    (found * of_loss).sum().backward()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(entropies, entropy, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(mine.grad, theirs.grad, atol=atol, rtol=2e-2)


def frozen(kind: Any) -> Any:
    model = tiny_causal_lm(kind)
    model.get_input_embeddings().weight.requires_grad_(False)
    model.get_output_embeddings().weight.requires_grad_(False)
    return model


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_model_with_it_has_trls_values_and_gradients(kind: str) -> None:
    found = []
    for temperature in (None, TEMPERATURE):
        model = frozen(kind)
        add_fused_lm_head(model, temperature=TEMPERATURE, outputs=("log_probs", "entropy"))
        share_prompts(model, temperature=temperature)
        outputs = model(**batch(), fused_lm_head=True)
        weights = torch.linspace(-1, 1, outputs.log_probs.numel()).view_as(outputs.log_probs)
        (outputs.log_probs * weights).sum().backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        found.append([outputs.log_probs.detach(), outputs.entropy.detach(), *gradients])
    assert len(found[0]) > 10
    for expected, mine in zip(*found, strict=True):
        torch.testing.assert_close(mine, expected, atol=2e-5, rtol=1e-4)


def test_it_is_for_a_frozen_plain_head_alone() -> None:
    assert takes(frozen("llama"))
    assert not takes(tiny_causal_lm())  # trained
    capped = frozen("llama")
    capped.config.final_logit_softcapping = 30.0
    assert not takes(capped)
    scaled = frozen("llama")
    scaled.config.logit_scale = 0.5
    assert not takes(scaled)
    biased = frozen("llama")
    biased.set_output_embeddings(torch.nn.Linear(32, 291, bias=True).requires_grad_(False))
    assert not takes(biased)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not takes(frozen("llama"))
