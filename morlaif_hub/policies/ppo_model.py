"""A policy with a value head on its trunk."""

from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from morlaif_hub.errors import OptionError
from morlaif_hub.models.likelihood import LOGIT_ROWS, next_token_logits


class Predictions(NamedTuple):
    """About tokens of responses, one response after the other.

    Attributes:
        log_probabilities: Of each token, in nats, shape (tokens,).
        values: Of the state before each, shape (tokens, columns).
        entropies: Of what each was drawn from, in nats, shape (tokens,); 0 with gradients.
    """

    log_probabilities: Tensor
    values: Tensor
    entropies: Tensor


class ActorCritic(nn.Module):
    """A causal language model, and a linear value head on the states that its own head reads.

    Args:
        policy: A transformers model, or one with a PEFT adapter in its layers.
        columns: Values of a state; all are 0 at first.
        temperature: Of the policy.

    Raises:
        OptionError: If the model's logits are not those that its head makes of its last states.
    """

    def __init__(self, policy: Any, *, columns: int, temperature: float) -> None:
        super().__init__()
        self.policy, self.temperature = policy, temperature
        width = self.base.get_output_embeddings().weight.shape[-1]
        self.value_head = nn.Linear(width, columns, device=policy.device, dtype=torch.float32)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        layers = DynamicCache(config=self.base.config).layers
        self._keeps_keys = all(type(layer) is DynamicLayer for layer in layers)
        ids = torch.tensor([[0, 1, 2]], device=policy.device)
        with torch.no_grad():
            own, here = self.base(ids).logits, next_token_logits(self.base, self._states(ids))
        if not torch.allclose(own.float(), here, atol=1e-2, rtol=1e-2):
            raise OptionError(f"{type(self.base).__name__} makes its logits in a way of its own")

    @property
    def base(self) -> Any:
        """The transformers model; an adapter is in its layers."""
        return self.policy.get_base_model() if isinstance(self.policy, PeftModel) else self.policy

    def _states(self, ids: Tensor) -> Tensor:
        """Return the final states of rows; how they all begin, as after a template, is run once."""
        # Rows begin at the left: no token sees the padding, with no mask and the usual positions.
        run, shared = self.base.base_model, int((ids == ids[0]).all(0).long().cumprod(0).sum())
        shared = min(shared, ids.shape[1] - 1) if self._keeps_keys and len(ids) > 1 else 0
        if not shared:
            states: Tensor = run(input_ids=ids, use_cache=False).last_hidden_state
            return states
        start = run(input_ids=ids[:1, :shared], use_cache=True)
        cache, first = start.past_key_values, start.last_hidden_state.expand(len(ids), -1, -1)
        cache.batch_select_indices(torch.zeros(len(ids), dtype=torch.long, device=ids.device))
        rest = run(input_ids=ids[:, shared:], past_key_values=cache, use_cache=True)
        return torch.cat([first, rest.last_hidden_state], 1)

    def forward(self, texts: list[list[int]], starts: list[int]) -> Predictions:
        """Return what is predicted about responses, by one pass of the trunk.

        Args:
            texts: Prompts with their responses, as token ids.
            starts: Where in them the responses begin, at least 1.
        """
        rows = [torch.tensor(text) for text in texts]
        ids = pad_sequence(rows, batch_first=True).to(self.policy.device)
        place, ends = torch.arange(ids.shape[1]), torch.tensor([[len(row)] for row in rows])
        chosen = ((place >= torch.tensor(starts)[:, None]) & (place < ends)).to(ids.device)
        states, tokens = self._states(ids)[:, :-1][chosen[:, 1:]], ids[chosen]
        # Logits are as wide as the vocabulary: few at a time, and made again for gradients.
        parts = [
            checkpoint(self._predict, *part, use_reentrant=False, preserve_rng_state=False)
            for part in zip(states.split(LOGIT_ROWS), tokens.split(LOGIT_ROWS), strict=True)
        ]
        found, entropies = (torch.cat(column) for column in zip(*parts, strict=True))
        return Predictions(found, self.value_head(states.float()), entropies)

    def _predict(self, states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        logits = next_token_logits(self.base, states) / self.temperature
        total = logits.logsumexp(-1)
        found = logits.gather(-1, tokens[:, None])[:, 0] - total
        if torch.is_grad_enabled():
            return found, torch.zeros_like(total)
        return found, total - (logits * (logits - total[:, None]).exp()).sum(-1)
