"""Adapters applied in place: each module computes what one preference model's adapter makes of it.

PEFT's own forward adds an adapter's product to the base's, and choosing an adapter visits every
module. Here the adapter's product is added to the weight instead, into memory that all modules of
one shape share, so that an adapted layer costs one matrix product like any other; and the first
layer that several adapters change computes once what is the same for all of them.

Source:
    arXiv:2106.09685 (LoRA, section 4.1): W + BA, with nothing added at inference.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from morlaif_hub.bank.kernels import Product

Forward = Callable[..., Any]
MERGED_FROM = 128
"""Rows. For fewer, adding the adapter's product to the weight costs more than it saves."""


class Shared:
    """What the modules of a layer make of what is the same for several adapters.

    Args:
        same: The states that enter the layer. What a module makes of them, the base's part of an
            adapted one included, is computed for the first adapter and taken for the others.
    """

    def __init__(self, same: list[Tensor]) -> None:
        self._same = same
        self._made: dict[nn.Module, tuple[Tensor, Any]] = {}

    def make(self, module: nn.Module, states: Any, compute: Forward) -> Any:
        """Return what a module computes, if it is of something else than what is the same."""
        known = self._made.get(module)
        if known is not None and known[0] is states:
            return known[1]
        made = compute(states)
        if any(states is same for same in self._same):
            self._made[module] = states, made
            self._same.append(made)
        return made


@dataclass
class Choice:
    """Which adapter the modules apply.

    Attributes:
        slot: The adapter's name in the model; None for the base alone.
        shared: What several adapters have in common in the layer with which they begin; None in
            others.
    """

    slot: str | None = None
    shared: Shared | None = None


class InPlace:
    """Forward functions for the modules of a model with adapters.

    Args:
        model: A PEFT model, or one without adapters.
        product: Multiplies matrices.
    """

    def __init__(self, model: nn.Module, product: Product) -> None:
        self.choice = Choice()
        self._merged_from = MERGED_FROM
        self._product = product
        self._scratch: dict[tuple[torch.Size, torch.dtype, torch.device], Tensor] = {}
        self._forwards: dict[nn.Module, Forward] = {}
        inside: set[nn.Module] = set()  # what belongs to a module that is replaced as a whole
        for module in model.modules():
            if module in inside:
                continue
            if made := self._forward_of(module):
                self._forwards[module] = made
                if isinstance(module, LoraLinear):
                    inside.update(module.modules())

    @contextmanager
    def applied(self) -> Iterator[Choice]:
        """Within this context the model's modules apply the adapter that is chosen.

        Yields:
            The choice, to be changed as often as wanted.
        """
        with replaced(self._forwards):
            try:
                yield self.choice
            finally:
                self.choice.slot = self.choice.shared = None

    @contextmanager
    def merging(self, rows: int) -> Iterator[None]:
        """Within this context adapters are added to weights from so many rows of states on."""
        self._merged_from = rows
        try:
            yield
        finally:
            self._merged_from = MERGED_FROM

    def _forward_of(self, module: nn.Module) -> Forward | None:
        if isinstance(module, ModulesToSaveWrapper):
            return self._saved(module)
        if isinstance(module, LoraLinear):
            return self._adapted(module)
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            return self._by_peft(module)
        if type(module) is nn.Linear:
            return self._once(module, lambda x: self._product(x, module.weight, module.bias))
        if isinstance(module, Conv1D):
            weight = _outputs_first(module)
            return self._once(module, lambda x: self._product(x, weight(), module.bias))
        if not list(module.children()) and not isinstance(module, nn.Dropout | nn.ModuleList):
            return self._once(module, module.forward)
        return None

    def _once(self, module: nn.Module, compute: Forward) -> Forward:
        """Return a forward that takes a shared output where there is one for the same input."""

        def forward(*given: Any, **named: Any) -> Any:
            shared = self.choice.shared
            if shared is None or named or len(given) != 1:
                return compute(*given, **named)
            return shared.make(module, given[0], compute)

        return forward

    def _saved(self, module: Any) -> Forward:
        """Return a forward of a module that some adapters bring whole."""

        def forward(*given: Any, **named: Any) -> Any:
            own = self.choice.slot is not None and self.choice.slot in module.modules_to_save
            chosen = module.modules_to_save[self.choice.slot] if own else module.original_module
            return chosen(*given, **named)

        return forward

    def _by_peft(self, module: Any) -> Forward:
        """Return PEFT's own forward, told which adapter is meant."""
        plain = type(module).forward

        def forward(*given: Any, **named: Any) -> Any:
            before = module._active_adapter
            module._active_adapter = [] if self.choice.slot is None else [self.choice.slot]
            try:
                return plain(module, *given, **named)
            finally:
                module._active_adapter = before

        return forward

    def _adapted(self, module: Any) -> Forward:
        """Return a forward of a linear layer with plain LoRA adapters; PEFT's for other kinds."""
        base = module.base_layer
        by_peft = self._by_peft(module)
        if type(base) is not nn.Linear and not isinstance(base, Conv1D):
            return by_peft
        weight = (lambda: base.weight) if type(base) is nn.Linear else _outputs_first(base)
        alone = self._once(module, lambda x: self._product(x, weight(), base.bias))

        def forward(x: Tensor, *given: Any, **named: Any) -> Any:
            slot = self.choice.slot
            if slot is None or slot not in module.lora_A:
                return alone(x)
            if slot in module.lora_variant or module.lora_bias[slot]:
                return by_peft(x, *given, **named)
            down, up = module.lora_A[slot].weight, module.lora_B[slot].weight
            scale = module.scaling[slot]
            rows = x.numel() // x.shape[-1]
            exact = down.dtype == weight().dtype == torch.float32
            if self.choice.shared is None and exact and rows >= self._merged_from:
                merged = torch.addmm(weight(), up, down, alpha=scale, out=self._room(weight()))
                return self._product(x, merged, base.bias)
            added = nn.functional.linear(nn.functional.linear(x.to(down.dtype), down), up)
            result = alone(x)
            return torch.add(result, added, alpha=scale).to(result.dtype)

        return forward

    def _room(self, like: Tensor) -> Tensor:
        key = (like.shape, like.dtype, like.device)
        if key not in self._scratch:
            self._scratch[key] = torch.empty_like(like, memory_format=torch.contiguous_format)
        return self._scratch[key]


@contextmanager
def replaced(forwards: Mapping[nn.Module, Forward]) -> Iterator[None]:
    """Within this context modules compute what these functions say; then what they did before."""
    before = {m: m.__dict__["forward"] for m in forwards if "forward" in m.__dict__}
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module in forwards:
            module.__dict__.pop("forward", None)
            if module in before:
                module.__dict__["forward"] = before[module]


def _outputs_first(module: Any) -> Callable[[], Tensor]:
    """Return a function for a Conv1D's weight as (outputs, inputs), laid out in that order.

    The weight keeps its shape and numbers: only its order in memory is turned round, once.
    """
    weight = module.weight
    if not weight.data.t().is_contiguous():
        weight.data = weight.data.t().contiguous().t()
    return lambda: module.weight.t()


def entries(model: nn.Module, layers: Sequence[nn.Module], slots: Sequence[str]) -> list[int]:
    """Return, for each adapter, the index of the first layer that it changes.

    It is -1 for one that changes what comes before the layers, or may: anything outside them but
    the head. It is the number of layers for one that brings a head alone.
    """
    inside = {m: i for i, layer in enumerate(layers) for m in layer.modules()}
    found = dict.fromkeys(slots, len(layers))
    for name, module in model.named_modules():
        for slot in _changed_by(name, module):
            if slot in found:
                found[slot] = min(found[slot], inside.get(module, -1))
    return list(found.values())


HEADS = ("score", "classifier")


def _changed_by(name: str, module: Any) -> list[str]:
    if isinstance(module, ModulesToSaveWrapper):
        return [] if name.endswith(HEADS) else list(module.modules_to_save)
    if isinstance(module, BaseTunerLayer):
        held = [
            getattr(module, kind) for kind in module.adapter_layer_names if hasattr(module, kind)
        ]
        return [slot for layer in held for slot in layer]
    return []
