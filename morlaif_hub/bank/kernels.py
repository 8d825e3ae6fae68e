"""The fastest exact matrix product of this machine, found by a measurement.

For float32, PyTorch's linear layer goes to MKL, which on some processors of other makers reaches
half of what oneDNN does. oneDNN is called by an operator that PyTorch keeps to itself, so whatever
may go wrong with it leads back to PyTorch's own product.
"""

import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Takes states (..., inputs), a weight (outputs, inputs) and a bias (outputs,) or None."""

KernelName = Literal["torch", "onednn"]
WORTH_IT = 1.1
"""How much faster oneDNN has to be: less is within what a measurement of milliseconds can tell."""
_ROWS, _TURNS = 512, 5
_EXACT = 1e-5  # of the largest output: what the order of a sum changes


class Kernel(NamedTuple):
    """A way to multiply matrices."""

    name: KernelName
    product: Product


def _onednn(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    try:
        return _by_onednn(states, weight, bias)
    except RuntimeError:  # a size or a layout that it does not take
        return nn.functional.linear(states, weight, bias)


def _by_onednn(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Any = torch.ops.mkldnn._linear_pointwise
    result: Tensor = product(states, weight, bias, "none", [], "")
    return result


TORCH = Kernel("torch", nn.functional.linear)
ONEDNN = Kernel("onednn", _onednn)


def choose_kernel(weight: Tensor | None, wanted: Literal["auto", "torch", "onednn"]) -> Kernel:
    """Return the kernel for a model.

    Args:
        weight: The largest of a layer, (outputs, inputs); None if it has none.
        wanted: `auto` measures; `onednn` takes it wherever it works and is exact.
    """
    if weight is None or weight.device.type != "cpu" or weight.dtype != torch.float32:
        return TORCH
    if wanted == "torch":
        return TORCH
    gain = _measured_gain(*weight.shape, torch.get_num_threads())
    return ONEDNN if gain > (0.0 if wanted == "onednn" else WORTH_IT) else TORCH


@lru_cache(maxsize=32)
def _measured_gain(outputs: int, inputs: int, _threads: int) -> float:
    """Return how many times faster oneDNN is on a product of this size; 0 if it cannot be used."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(_ROWS, inputs, generator=generator)
    weight = torch.randn(outputs, inputs, generator=generator)
    bias = torch.randn(outputs, generator=generator)
    try:
        with torch.inference_mode():
            ours, theirs = _by_onednn(states, weight, bias), TORCH.product(states, weight, bias)
            if not float((ours - theirs).abs().max()) <= _EXACT * float(theirs.abs().max()):
                return 0.0
            seconds = {ONEDNN: float("inf"), TORCH: float("inf")}
            for _ in range(_TURNS):
                for kernel in seconds:
                    start = time.perf_counter()
                    kernel.product(states, weight, None)
                    seconds[kernel] = min(seconds[kernel], time.perf_counter() - start)
    except Exception:  # a private operator: absent, of another signature, or without this shape
        return 0.0
    return seconds[TORCH] / seconds[ONEDNN]
