"""Log-probabilities for TRL's losses, with prompts that completions share computed once.

TRL runs every completion together with its prompt, and without a GPU it also scores every token of
the prompts. GRPO's completions come in groups on one prompt, so most of that is the same again.
"""

import functools
import types
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer
from trl.trainer.utils import FusedCausalLMOutput

from morlaif_hub.policies.loss_head import log_probs_and_entropies, takes

_IGNORED = -100  # the label of a token that is not scored
_SCORED = {"input_ids", "attention_mask", "labels", "fused_lm_head"}


def share_prompts(model: Any, *, temperature: float | None = None) -> None:
    """Make a model that TRL gave its fused head compute each prompt of a batch once.

    Log-probabilities, entropies and their gradients are those of TRL's own forward pass, up to
    rounding. Whatever else the model is called with goes to its forward pass as before, and so does
    everything of a model that keeps more than keys and values.

    Args:
        model: A causal language model, inside of PEFT's wrapper; its `forward` is replaced.
        temperature: That TRL's head was made with; then our own, which is faster without a GPU, is
            used where it can be. The entropies have no gradient then, so a loss must not be of
            them. None keeps TRL's.
    """
    fused = model.forward
    layers = DynamicCache(config=model.config).layers
    keeps_states = all(isinstance(layer, DynamicLayer) for layer in layers)
    if not isinstance(fused, types.MethodType) or not keeps_states:
        return

    @functools.wraps(fused)
    def forward(*args: Any, **inputs: Any) -> Any:
        given = {name for name, value in inputs.items() if value is not None}
        if not args and given - {"return_dict"} == _SCORED and inputs["fused_lm_head"]:
            own = None if temperature is None or not takes(model) else temperature
            return _scored(model, fused, inputs, own)
        return fused(*args, **inputs)

    model.forward = forward


def _scored(model: Any, fused: Any, inputs: dict[str, Tensor], temperature: float | None) -> Any:
    """Return what TRL's forward pass does: fields of shape (rows, tokens - 1), 0 if not scored."""
    following = inputs["labels"][:, 1:]
    wanted = following != _IGNORED
    first = int(wanted.any(0).int().argmax())  # the token that predicts the first one of all
    states = _states(model, inputs["input_ids"], inputs["attention_mask"], first)
    chosen = states[wanted[:, first:]]
    if temperature is None:
        stand_in = types.SimpleNamespace(
            base_model=lambda **_: types.SimpleNamespace(last_hidden_state=chosen[None]),
            get_output_embeddings=model.get_output_embeddings,
        )
        outputs = fused.__func__(stand_in, fused_lm_head=True, shift_labels=following[wanted][None])
    else:
        weight = model.get_output_embeddings().weight
        found = log_probs_and_entropies(chosen, weight, following[wanted], temperature)
        outputs = FusedCausalLMOutput(log_probs=found[0], entropy=found[1])
    for name in ("log_probs", "entropy"):
        if (its := outputs[name]) is not None:
            outputs[name] = its.new_zeros(wanted.shape).masked_scatter(wanted, its)
    return outputs


def _states(model: Any, ids: Tensor, mask: Tensor, first: int) -> Tensor:
    """Return the final states from a token on to the last but one, (rows, tokens, width)."""
    rest, backbone = ids[:, first:-1], model.base_model
    if first == 0:
        whole: Tensor = backbone(input_ids=rest, attention_mask=mask[:, :-1]).last_hidden_state
        return whole
    before = torch.stack([ids[:, :first], mask[:, :first]], 1)
    different, owner = torch.unique(before, dim=0, return_inverse=True)
    cache = backbone(
        input_ids=different[:, 0], attention_mask=different[:, 1], use_cache=True
    ).past_key_values
    cache.batch_select_indices(owner)
    states: Tensor = backbone(
        input_ids=rest, attention_mask=mask[:, :-1], past_key_values=cache, use_cache=True
    ).last_hidden_state
    return states
