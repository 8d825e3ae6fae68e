"""Attention over a packed row in one call, for GPUs.

There, one call for each text would leave the machine waiting. FlexAttention compiles the question
who sees whom into its kernel and skips the blocks in which nobody sees anybody.

Source:
    arXiv:2412.05496 (FlexAttention).
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from morlaif_hub.bank.attention import Call, Rule, SegmentAttention
from morlaif_hub.bank.layout import Layout, Node
from morlaif_hub.bank.pieces import States


@lru_cache(maxsize=1)
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=True)


class FlexAttention:
    """Attention of a whole row at once.

    Args:
        layout: The row.
        device: Of the states.
        compiled: False runs FlexAttention's reference code, on any device.
    """

    def __init__(self, layout: Layout, device: torch.device, *, compiled: bool = True) -> None:
        # For what cannot be told to a kernel.
        self._one_by_one = SegmentAttention(layout, device)
        self._attention: Any = _compiled() if compiled else flex_attention
        self._device = device
        ends = subtree_ends(layout.nodes)
        sizes = torch.tensor([node.end - node.start for node in layout.nodes])
        starts = torch.tensor([node.start for node in layout.nodes])
        self._starts = starts.repeat_interleave(sizes).to(device)
        self._ends = torch.tensor(ends).repeat_interleave(sizes).to(device)
        self._positions = torch.tensor(layout.positions, device=device)
        self._row = torch.arange(len(layout.ids), device=device)
        self._reads = torch.tensor([read.place for read in layout.reads], device=device)
        self._blocks: dict[tuple[Rule, bool], BlockMask] = {}

    def of_row(self, rule: Rule, states: States, call: Call) -> Tensor:
        """Return attention for every token, shape (1, tokens, heads, width)."""
        if not _told(call):
            return self._one_by_one.of_row(rule, states, call)
        return self._attend(states, self._block(rule, reads=False), call)

    def of_reads(
        self, rule: Rule, query: Tensor, keys_and_values: tuple[Tensor, Tensor], call: Call
    ) -> Tensor:
        """Return attention of one query for each text, shape (1, texts, heads, width)."""
        if not _told(call):
            return self._one_by_one.of_reads(rule, query, keys_and_values, call)
        return self._attend((query, *keys_and_values), self._block(rule, reads=True), call)

    def _attend(self, states: States, block: BlockMask, call: Call) -> Tensor:
        query, key, value = states
        found: Tensor = self._attention(
            query,
            key,
            value,
            score_mod=_capped(call.more.get("softcap")),
            block_mask=block,
            scale=call.scaling,
            enable_gqa=key.shape[1] != query.shape[1],
        )
        return found.transpose(1, 2)

    def _block(self, rule: Rule, *, reads: bool) -> BlockMask:
        if (rule, reads) not in self._blocks:
            places = self._reads if reads else self._row
            starts, ends, positions = self._starts, self._ends, self._positions

            def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
                place = places[query]
                below = (starts[key] <= place) & (place < ends[key])
                allowed: Tensor = rule.function(batch, head, positions[place], positions[key])
                return below & allowed

            self._blocks[rule, reads] = create_block_mask(
                seen, None, None, len(places), len(self._row), device=str(self._device)
            )
        return self._blocks[rule, reads]


def subtree_ends(nodes: tuple[Node, ...]) -> list[int]:
    """Return, for each node, the place in the row after the last of those that go on from it.

    Nodes that go on from one follow it directly, and begin in their texts where it ends or later.
    """
    ends = [0] * len(nodes)
    open_nodes: list[int] = []
    for i, node in enumerate(nodes):
        while open_nodes and node.position < _end_position(nodes[open_nodes[-1]]):
            ends[open_nodes.pop()] = node.start
        open_nodes.append(i)
    for i in open_nodes:
        ends[i] = nodes[-1].end
    return ends


def _end_position(node: Node) -> int:
    return node.position + node.end - node.start


def _told(call: Call) -> bool:
    return set(call.more) <= {"softcap"}


def _capped(cap: float | None) -> Callable[..., Tensor] | None:
    if cap is None:
        return None

    def score(value: Tensor, *_place: Tensor) -> Tensor:
        return cap * torch.tanh(value / cap)

    return score
