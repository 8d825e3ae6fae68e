"""Log-probabilities of the tokens that a loss is of, with their gradient, in one pass.

TRL's head computes the logits once forward and once more backward, tile by tile and in float32,
which without a GPU takes most of the time of a small model's loss. The gradient of a
log-probability is that number's alone, whatever the loss makes of it: it can be computed while the
logits are in the caches, and is no larger than the states.
"""

from typing import Any

import torch
from torch import Tensor

ROWS = 128
"""Tokens whose logits over the whole vocabulary are held at once: few enough to stay in caches."""

_SCALES = ("logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")


def takes(model: Any) -> bool:
    """Return whether a model's logits are a frozen matrix times its final states and no more.

    On a GPU TRL has a kernel of its own, and this is not for it.
    """
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    if not isinstance(head, torch.nn.Linear) or head.bias is not None:
        return False
    changed = ("final_logit_softcapping", *_SCALES)
    return (
        not head.weight.requires_grad
        and head.weight.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and all(getattr(config, name, None) is None for name in changed)
    )


def log_probs_and_entropies(
    states: Tensor, weight: Tensor, targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return log-probabilities of tokens and entropies of their distributions, in nats, float32.

    Gradients flow from the log-probabilities to the states. The entropies have none.

    Args:
        states: Final states that predict the tokens, shape (tokens, width).
        weight: That makes logits of them, frozen, shape (vocabulary, width).
        targets: Ids of the tokens, shape (tokens,).
        temperature: Logits are divided by it.

    Returns:
        Two tensors of shape (tokens,).
    """
    log_probs, entropies = _LogProbs.apply(states, weight, targets, temperature)
    return log_probs, entropies


class _LogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, targets: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        log_probs = states.new_empty(len(states), dtype=torch.float32)
        entropies = torch.empty_like(log_probs)
        wanted: bool = ctx.needs_input_grad[0]
        slopes = torch.empty_like(states, dtype=torch.float32) if wanted else None
        for start in range(0, len(states), ROWS):
            part = slice(start, start + ROWS)
            logits = torch.mm(states[part], weight.t()).float().div_(temperature)
            total = logits.logsumexp(-1, keepdim=True)
            chosen = targets[part, None]
            log_probs[part] = (logits.gather(1, chosen) - total)[:, 0]
            shares = (logits - total).exp_()
            entropies[part] = total[:, 0] - (shares * logits).sum(-1)
            if slopes is not None:
                # The derivative by a logit: 1 for the token's own, less the token's share.
                by_logit = shares.neg_().scatter_add_(1, chosen, torch.ones_like(total))
                by_state = torch.mm(by_logit.to(weight.dtype), weight)
                slopes[part] = by_state.float().div_(temperature)
        ctx.type = states.dtype
        ctx.save_for_backward(slopes)
        ctx.mark_non_differentiable(entropies)
        return log_probs, entropies

    @staticmethod
    def backward(ctx: Any, by_log_prob: Tensor, _by_entropy: Tensor) -> Any:
        (slopes,) = ctx.saved_tensors
        return (slopes * by_log_prob[:, None]).to(ctx.type), None, None, None
