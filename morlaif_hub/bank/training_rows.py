"""Rows of packed texts with gradients: what many adapters learn from, in one pass of their base.

As in scoring, layers below the adapters run once for all of them and a row has no padding. Above
them each adapter has its turn with a graph of its own, which is gone before the next one's begins.
Adapters are applied as products of their own, never added to weights: what is trained is A and B.
"""

import sys
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from morlaif_hub.bank.attention import PACKED, NotPackableError, attended_by
from morlaif_hub.bank.engine import largest_weight, short_texts, vocabulary_size
from morlaif_hub.bank.golden import exact_products
from morlaif_hub.bank.in_place import HEADS, Shared
from morlaif_hub.bank.kernels import TORCH, Kernel, KernelName, Product, choose_kernel
from morlaif_hub.bank.layout import Ids, common_start, up_to_read
from morlaif_hub.bank.packed import PackedScorer
from morlaif_hub.bank.trial import allowed, trial_texts
from morlaif_hub.bank.trunk import out_of_memory

Item = tuple[Ids, ...]
"""Texts that have to be in one row."""
_NEVER = sys.maxsize


class TrainingRows(PackedScorer):
    """Scores rows of packed texts with one adapter after the other, with gradients.

    Args:
        model: A PEFT model of a sequence classifier with one output. It is frozen but for its
            adapters and put into evaluation mode: nothing is dropped, as TRL trains it.
        slots: Names of its adapters, all of them plain LoRA with a score head.
        pad_token_id: Where a text is read, such tokens at its end do not count.
        kernel: What multiplies float32 matrices on a CPU; None measures.

    Attributes:
        parameters: What is trained, by adapter and name in the model; float32.

    Raises:
        NotPackableError: If texts of this model cannot be packed, or an adapter is not plain LoRA.
    """

    def __init__(
        self,
        model: Any,
        slots: Sequence[str],
        *,
        pad_token_id: int,
        kernel: KernelName | None = None,
    ) -> None:
        _check_plain(model, slots)
        model.requires_grad_(False).eval()
        chosen = choose_kernel(largest_weight(model.get_base_model()), kernel or "auto")
        kernel_here = Kernel(chosen.name, _differentiable(chosen))
        super().__init__(model, slots, pad_token_id=pad_token_id, kernel=kernel_here)
        self._entry = dict(zip(slots, self._entries, strict=True))
        self._far = short_texts(model)
        for slot, entry in self._entry.items():
            if not 0 <= entry <= self._walker.last:
                raise NotPackableError(f"adapter {slot} changes something outside of the layers")
        self.parameters = {slot: _trained(model, slot) for slot in slots}
        self._heads = _heads(model, slots)
        with exact_products(), self.ready():
            self._try(model, slots[0])

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Within this context parameters take gradients, and heads read float32."""
        every = [p for named in self.parameters.values() for p in named.values()]
        hooks = [head.register_forward_pre_hook(_in_float32) for head in self._heads]
        try:
            for parameter in every:
                parameter.requires_grad_(True)
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for parameter in every:
                parameter.requires_grad_(False)

    def read(self, ids: Ids) -> Ids:
        """Return a text up to where it is read.

        Raises:
            NotPackableError: If the model counts positions of a text of this length differently.
        """
        read = up_to_read(ids, self._pad) if self.causal else ids
        if self._far is not None and len(read) > self._far:
            raise NotPackableError(
                f"this model has other positions for texts of more than {self._far:,} tokens, and "
                f"one of {len(read):,} is among them"
            )
        return read

    def rows(self, items: Sequence[Item], tokens: int) -> list[list[Item]]:
        """Return items in rows of at most so many tokens; a larger item has a row of its own.

        Args:
            items: Texts from `read`.
            tokens: Of a row; what texts begin with in common counts once.
        """
        found: list[list[Item]] = []
        texts: list[Ids] = []
        filled = 0
        for item in sorted(items):
            added = self._add(texts, item)
            if not found or filled + added > tokens:
                found.append([])
                texts.clear()
                filled, added = 0, self._add(texts, item)
            found[-1].append(item)
            filled += added
        return found

    def each(
        self,
        items: Sequence[Item],
        slots: Sequence[str],
        look: Callable[[str, dict[Ids, Tensor]], None],
    ) -> None:
        """Show scores of a row's texts by each adapter, with a graph if gradients are on.

        Args:
            items: One row, from `rows`.
            slots: Names of adapters.
            look: Given an adapter's name and the score of each text, float32, shape (). The graph
                is to be used before it returns.
        """
        texts = self.order(list({text for item in items for text in item}))
        row = self._row(texts)
        with (
            self._in_place.applied() as choice,
            self._in_place.merging(_NEVER),
            attended_by(row, self._configs, PACKED),
        ):
            with torch.no_grad():
                trunk = row.trunk({self._entry[slot] for slot in slots})
            turns = sorted(slots, key=self._entry.__getitem__)
            for entry, group in groupby(turns, key=self._entry.__getitem__):
                shared = Shared([trunk.states[entry]])
                for slot in group:
                    choice.slot = slot
                    scores = row.tail(row.finish(trunk, entry, shared)).float()
                    look(slot, dict(zip(texts, scores, strict=True)))

    def _add(self, texts: list[Ids], item: Item) -> int:
        """Put an item's texts among ordered ones; return how many tokens that adds."""
        added = 0
        for text in item:
            place = bisect_left(texts, text)
            beside = texts[max(place - 1, 0) : place + 1]
            if text in beside:
                continue
            common = max((common_start(text, other) for other in beside), default=0)
            added += len(text) - (common if self._sharing else 0)
            texts.insert(place, text)
        return added

    @torch.no_grad()
    def _try(self, model: Any, slot: str) -> None:
        """Compare scores of probe texts to those of PEFT, one text at a time."""
        texts = self.order(trial_texts(vocabulary_size(model), self._pad))
        before = model.active_adapter
        model.set_adapter(slot, inference_mode=True)
        rows = [torch.tensor([text], device=model.device) for text in texts]
        found = [model(input_ids=r, attention_mask=torch.ones_like(r)).logits[0] for r in rows]
        expected = torch.stack(found).float().cpu()
        model.set_adapter(before, inference_mode=True)
        scores: list[Tensor] = []
        try:
            self.each(
                [tuple(texts)],
                [slot],
                lambda _slot, its: scores.append(torch.stack([its[text] for text in texts])),
            )
        except Exception as error:  # a model may take what it does not know in any way
            if out_of_memory(error) or isinstance(error, NotPackableError):
                raise
            raise NotPackableError(f"{type(error).__name__}: {error}") from error
        off = (scores[0].cpu()[:, None] - expected).abs().amax(0).nan_to_num(torch.inf)
        if not bool((off <= allowed(expected, model.dtype)).all()):
            raise NotPackableError(f"scores of packed texts would be off by {float(off):.2g}")


class _Frozen(torch.autograd.Function):
    """A product with a weight that takes no gradient, in both directions by one kernel."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, product: Product
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.product = product
        return product(states, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        return ctx.product(gradients[0].contiguous(), weight.t(), None), None, None, None


def _differentiable(kernel: Kernel) -> Product:
    """Return a kernel's product with a gradient for states; for trained weights, PyTorch's own."""
    if kernel.name == TORCH.name:
        return kernel.product

    def product(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if weight.requires_grad:
            return TORCH.product(states, weight, bias)
        result: Tensor = _Frozen.apply(states, weight, bias, kernel.product)
        return result

    return product


def _in_float32(_module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (given[0].float(),)


def _check_plain(model: Any, slots: Sequence[str]) -> None:
    """Check that adapters are LoRA matrices on linear layers, and a score head, and no more."""
    for name, module in model.named_modules():
        for slot in slots:
            if _holds(module, slot) and not _is_plain(name, module, slot):
                raise NotPackableError(
                    f"adapter {slot} changes {name} by something else than plain LoRA"
                )
    for slot in slots:
        if not any(isinstance(m, LoraLinear) and slot in m.lora_A for m in model.modules()):
            raise NotPackableError(f"adapter {slot} has no LoRA matrices")


def _holds(module: nn.Module, slot: str) -> bool:
    """Return whether an adapter has something in a module that PEFT put there."""
    if not isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
        return False
    return any(slot in name.split(".") for name, _ in module.named_parameters())


def _is_plain(name: str, module: Any, slot: str) -> bool:
    if isinstance(module, ModulesToSaveWrapper):
        return name.endswith(HEADS)
    if not isinstance(module, LoraLinear) or type(module.base_layer) not in (nn.Linear, Conv1D):
        return False
    dropped = not isinstance(module.lora_dropout[slot], nn.Identity)
    return not (dropped or slot in module.lora_variant or module.lora_bias[slot])


def _trained(model: nn.Module, slot: str) -> dict[str, nn.Parameter]:
    """Return an adapter's matrices and head by name, after making them float32.

    A head's bias is left as it is: it is in both scores of a pair, so no loss depends on it, and
    an optimiser that divides by a gradient's size would follow rounding errors.
    """
    found = {name: p for name, p in model.named_parameters() if slot in name.split(".")}
    for parameter in found.values():
        parameter.data = parameter.data.float()
    return {name: p for name, p in found.items() if not name.endswith("bias")}


def _heads(model: nn.Module, slots: Sequence[str]) -> list[nn.Module]:
    wrappers = [m for m in model.modules() if isinstance(m, ModulesToSaveWrapper)]
    return [w.modules_to_save[s] for w in wrappers for s in slots if s in w.modules_to_save]
