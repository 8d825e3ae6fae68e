"""Attention over a row of packed texts, exact for each text.

transformers builds a mask from a rule: may the token at position q see the one at position k? The
rule covers what a model is built like (causal, sliding window, chunks, both ways). The engine takes
the rule itself from transformers, asks it about the positions in each text, and lets every node of
the layout see the keys of its own path, so that no mask of the whole row is ever made.

Source:
    https://huggingface.co/docs/transformers/attention_interface (own attention and mask functions).
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from morlaif_hub.bank.layout import Layout, Node, Slices
from morlaif_hub.bank.pieces import Mask, Piece, States, attended, part_of

PACKED, ASKING = "morlaif_packed", "morlaif_asking"
"""Names of attention implementations: to compute, and to find out each layer's rule."""

# Told to attention functions, but either covered by the rule or without a meaning here.
_HARMLESS = {
    "cache_position", "cu_seq_lens_k", "cu_seq_lens_q", "deterministic", "dropout", "is_causal",
    "max_length_k", "max_length_q", "output_attentions", "output_hidden_states", "position_ids",
    "return_dict", "sliding_window", "use_cache",
}  # fmt: skip


class NotPackableError(Exception):
    """A model whose texts cannot be packed; says why, for whoever falls back."""


@dataclass(frozen=True, eq=False)
class Rule:
    """Who sees whom in one text.

    Attributes:
        function: As in transformers: (batch, head, query position, key position) to bool; tensors
            of positions give a tensor.
    """

    function: Callable[..., Any]

    @property
    def plain(self) -> bool:
        """Whether each token sees itself and all before it, and this is known at once."""
        return self.function is causal_mask_function

    @property
    def causal(self) -> bool:
        """Whether no token sees a later one."""
        return not bool(self.allowed(range(0, 1), 2)[0, 1])

    def allowed(self, queries: range, keys: int) -> Tensor:
        """Return which of the first so many positions each query position sees.

        Returns:
            bool, shape (queries, keys).
        """
        q = torch.arange(queries.start, queries.stop)[:, None]
        k = torch.arange(keys)[None, :]
        seen = torch.as_tensor(self.function(torch.tensor(0), torch.tensor(0), q, k))
        return seen.expand(len(queries), keys)


class Attending(Protocol):
    """What a forward pass of a packed row asks for attention."""

    def attend(
        self,
        module: nn.Module,
        states: States,
        scaling: float | None,
        more: dict[str, Any],
    ) -> Tensor:
        """Return the attended values, shape (batch, tokens, heads, width)."""


_running: ContextVar[Attending] = ContextVar("running")


def _packed(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any = None,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    more = {name: v for name, v in more.items() if v is not None and name not in _HARMLESS}
    if attention_mask is not None:
        more["attention_mask"] = attention_mask
    return _running.get().attend(module, (query, key, value), scaling, more), None


def _rule_as_mask(mask_function: Callable[..., Any], **_sizes: Any) -> Rule:
    return Rule(mask_function)


ALL_ATTENTION_FUNCTIONS.register(PACKED, _packed)  # has no mask function, so no mask is made
ALL_ATTENTION_FUNCTIONS.register(ASKING, _packed)
ALL_MASK_ATTENTION_FUNCTIONS.register(ASKING, _rule_as_mask)


def attention_configs(model: nn.Module) -> list[Any]:
    """Return the configurations that say which attention a model's modules use, each once."""
    found = [module.config for module in model.modules() if hasattr(module, "config")]
    usable = [c for c in found if hasattr(c, "_attn_implementation_internal")]
    return list({id(config): config for config in usable}.values())


@contextmanager
def attended_by(attending: Attending, configs: Sequence[Any], name: str) -> Iterator[None]:
    """Within this context the models of these configurations ask `attending` for attention."""
    before = [config._attn_implementation_internal for config in configs]
    token = _running.set(attending)
    for config in configs:
        config._attn_implementation_internal = name
    try:
        yield
    finally:
        _running.reset(token)
        for config, implementation in zip(configs, before, strict=True):
            config._attn_implementation_internal = implementation


class Asking:
    """A pass in which every layer is asked who sees whom in its attention.

    Args:
        depth: Number of layers.

    Attributes:
        layer: The one that is running; set by whoever runs them.
    """

    def __init__(self, depth: int) -> None:
        self.layer = 0
        self._found: list[list[Any]] = [[] for _ in range(depth)]

    def attend(
        self, _module: nn.Module, states: States, _scaling: float | None, more: dict[str, Any]
    ) -> Tensor:
        """Note the rule; what is attended does not matter."""
        self._found[self.layer].append(more.get("attention_mask"))
        query, _, value = states
        return query.new_zeros(*query.shape[:3], value.shape[3]).transpose(1, 2)

    def rules(self, name: str) -> list[Rule]:
        """Return the rules, if every layer asked for attention once and was told its own.

        Args:
            name: Of the model, for the error.

        Raises:
            NotPackableError: If one did not.
        """
        for index, found in enumerate(self._found):
            if len(found) != 1 or not isinstance(found[0], Rule):
                raise NotPackableError(
                    f"layer {index} of {name} has no attention, or one of its own kind, which "
                    "cannot be asked who sees whom"
                )
        return [found[0] for found in self._found]


class RowAttention(Protocol):
    """Attention over one row."""

    def of_row(self, rule: Rule, states: States, call: "Call") -> Tensor:
        """Return attention for every token, shape (1, tokens, heads, width)."""

    def of_reads(
        self, rule: Rule, query: Tensor, keys_and_values: tuple[Tensor, Tensor], call: "Call"
    ) -> Tensor:
        """Return attention of one query for each text, shape (1, texts, heads, width)."""


class SegmentAttention:
    """Attention of each node to its path, one after the other.

    Args:
        layout: The row.
        device: Of the states.
    """

    def __init__(self, layout: Layout, device: torch.device) -> None:
        self._layout, self._device = layout, device
        self._known: dict[tuple[Rule, int, int, int], Mask] = {}

    def of_row(self, rule: Rule, states: States, call: "Call") -> Tensor:
        """Return attention for every token, shape (1, tokens, heads, width)."""
        pieces = []
        for node in self._layout.nodes:
            offset = node.position - node.start
            for start, end in _blocks(rule, node):
                positions = range(start + offset, end + offset)
                pieces.append(self._piece(rule, (start, end), positions, node.path))
        return attended(pieces, states, call)

    def of_reads(
        self, rule: Rule, query: Tensor, keys_and_values: tuple[Tensor, Tensor], call: "Call"
    ) -> Tensor:
        """Return attention of one query for each text, shape (1, texts, heads, width).

        Args:
            rule: Of the layer.
            query: Shape (1, heads, texts, width).
            keys_and_values: Of the whole row, each shape (1, heads, tokens, width).
            call: Computes it.
        """
        pieces = [
            self._piece(rule, (i, i + 1), range(read.position, read.position + 1), read.path)
            for i, read in enumerate(self._layout.reads)
        ]
        return attended(pieces, (query, *keys_and_values), call)

    def _piece(
        self, rule: Rule, queries: tuple[int, int], positions: range, path: Slices
    ) -> "Piece":
        mask = self._mask(rule, positions, sum(end - start for start, end in path))
        return Piece(*queries, part_of(path, mask.first, mask.first + mask.keys), mask)

    def _mask(self, rule: Rule, queries: range, keys: int) -> "Mask":
        named = (rule, queries.start, queries.stop, keys)
        if named in self._known:
            return self._known[named]
        mask = _mask(rule, queries, keys, self._device)
        if mask.seen is None or mask.seen.numel() <= LARGEST_KEPT:
            self._known[named] = mask
        return mask


QUERIES_AT_ONCE = 1024
"""In attention with windows: a text's later tokens do not see its first ones."""
LARGEST_KEPT = 1 << 20
"""Elements of a mask that is made once for all layers."""


def _blocks(rule: Rule, node: Node) -> Iterator[tuple[int, int]]:
    """Yield a node's places in the row, in stretches that are attended for together."""
    step = node.end - node.start if rule.plain else QUERIES_AT_ONCE
    for start in range(node.start, node.end, step):
        yield start, min(start + step, node.end)


def _mask(rule: Rule, queries: range, keys: int, device: torch.device) -> Mask:
    if rule.plain and len(queries) == keys:
        return Mask(0, keys, causal=keys > 1)
    seen = rule.allowed(queries, keys)
    wanted = seen.any(0).nonzero()
    first, end = int(wanted[0]), int(wanted[-1]) + 1
    seen = seen[:, first:end]
    if bool(seen.all()):
        return Mask(first, end - first)
    if seen.shape[0] == seen.shape[1] and torch.equal(seen, torch.ones_like(seen).tril()):
        return Mask(first, end - first, causal=True)
    return Mask(first, end - first, seen=seen.to(device))


class Call:
    """The attention of one layer, as a function of queries, keys, values and a mask.

    PyTorch's is taken unless the model asks for what that does not know, such as a cap on the
    scores or sinks: then the model's own plain attention is.

    Args:
        module: The model's attention.
        scaling: Of the scores; None for one over the root of the width.
        more: What else the model told its attention.
    """

    def __init__(self, module: nn.Module, scaling: float | None, more: dict[str, Any]) -> None:
        self.scaling, self.more = scaling, more
        self._module = module
        self._own: Any = None
        if more:
            self._own = getattr(
                sys.modules[type(module).__module__], "eager_attention_forward", None
            )
            if self._own is None:
                raise NotPackableError(
                    f"{type(module).__name__} tells its attention {', '.join(sorted(more))}"
                )

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Mask) -> Tensor:
        """Return attended values, shape (batch, queries, heads, width)."""
        if self._own is not None:
            told = {"scaling": self.scaling, "dropout": 0.0, **self.more}
            added = mask.additive(query)
            values: Tensor = self._own(self._module, query, key, value, added, **told)[0]
            return values
        found = nn.functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask.seen,
            is_causal=mask.causal,
            scale=self.scaling,
            enable_gqa=key.shape[1] != query.shape[1],
        )
        return found.transpose(1, 2)
