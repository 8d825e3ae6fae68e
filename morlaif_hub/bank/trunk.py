"""What many adapters on one base have in common: the layers below the first adapted one.

The shared trunk is computed once per batch; each preference model goes on from its states. The
model runs its own code throughout: the layers below are skipped and the first layer above them is
handed the states, so this holds for every architecture whose layers sit in one list.

Source:
    https://huggingface.co/docs/peft/package_reference/lora (`layers_to_transform`), which keeps
    adapters out of the lower layers.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from morlaif_hub.bank.classifier import score_head


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that there was no memory left, on a CPU or a GPU."""
    said = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        "can't allocate memory" in said or "not enough memory" in said
    )


class _Reached(Exception):
    """Carries the states that arrived at the first layer above the trunk."""

    def __init__(self, states: Tensor) -> None:
        self.states = states


def layer_list(model: Any) -> nn.ModuleList | None:
    """Return the list of a model's layers, or None where there is not exactly one.

    Lists inside of lists, such as a layer's experts, do not count.
    """
    depth = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    nested = {inner for outer in lists for inner in outer.modules() if inner is not outer}
    found = [m for m in lists if len(m) == depth and m not in nested]
    return found[0] if len(found) == 1 else None


@contextmanager
def head_inputs(model: Any) -> Iterator[list[Tensor]]:
    """Within this context, keep what a classifier's score head is given."""
    seen: list[Tensor] = []

    def keep(_module: nn.Module, given: tuple[Tensor, ...]) -> None:
        seen.append(given[0])

    hook = score_head(model).register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        hook.remove()


class SharedTrunk:
    """The first layers of a model, run once for all who go on from them.

    Args:
        model: A sequence classifier, with adapters in place or to come.
        depth: How many layers belong to the trunk.
    """

    def __init__(self, model: Any, depth: int) -> None:
        layers = layer_list(model)
        self.model = model
        self.depth = depth if layers is not None else 0
        self._layers: list[nn.Module] = list(layers) if layers is not None else []
        self._tuple = self.depth > 0 and _returns_tuple(model, self._layers[0])

    @torch.no_grad()
    def states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return what enters the first layer above the trunk.

        Args:
            input_ids: Shape (batch, tokens), padded on the right.
            attention_mask: Shape (batch, tokens), 1 for text.

        Returns:
            Shape (batch, tokens, width).
        """

        def reached(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise _Reached(args[0] if args else kwargs["hidden_states"])

        hook = self._layers[self.depth].register_forward_pre_hook(reached, with_kwargs=True)
        try:
            self.model(input_ids=input_ids, attention_mask=attention_mask)
        except _Reached as end:
            return end.states
        finally:
            hook.remove()
        raise AssertionError("the first layer above the trunk was not called")

    @contextmanager
    def resumed(self, find: Callable[[int], Tensor]) -> Iterator[None]:
        """Within this context the model skips the trunk and goes on from given states.

        Args:
            find: Told the number of tokens of the padded batch, returns its states, shape
                (batch, tokens, width).
        """

        def skip(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Any:
            return (hidden_states,) if self._tuple else hidden_states

        def enter(
            _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            entering = args[0] if args else kwargs["hidden_states"]
            states = find(entering.shape[1]).to(entering.dtype)
            if args:
                return (states, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": states}

        below = self._layers[: self.depth]
        hook = self._layers[self.depth].register_forward_pre_hook(enter, with_kwargs=True)
        for layer in below:
            layer.forward = skip
        try:
            yield
        finally:
            hook.remove()
            for layer in below:
                del layer.forward


@torch.no_grad()
def _returns_tuple(model: Any, layer: nn.Module) -> bool:
    """Return whether a layer returns its states in a tuple, as those of older models do."""
    seen: list[bool] = []

    def look(_module: nn.Module, _given: Any, result: Any) -> None:
        seen.append(isinstance(result, tuple))

    hook = layer.register_forward_hook(look)
    try:
        model(input_ids=torch.tensor([[0]], device=model.device))
    finally:
        hook.remove()
    return any(seen)
