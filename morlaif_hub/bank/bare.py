"""What the base under adapters makes of a padded batch, as deep as it is wanted."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from morlaif_hub.bank.pooling import Wanted, base_outputs
from morlaif_hub.bank.trunk import head_inputs


class Seen(NamedTuple):
    """What was seen of a batch.

    Attributes:
        states: Shape (batch, tokens, width), by layer as in `Wanted`.
        entering: The states that enter the layer that was wanted; None where layers are not known.
        at_head: What the score head was given; None if it was not wanted.
    """

    states: dict[int, Tensor]
    entering: Tensor | None
    at_head: Tensor | None


class BareBase:
    """Runs the base of a classifier, whatever adapters are on it.

    Args:
        model: A classifier, with adapters or without, or a bare base.
        layers: Its layers; None if there is no one list of them.
        watched: Whether states are taken where they enter a layer, and no more layers run than are
            wanted; else they are what transformers itself returns as hidden states.
    """

    def __init__(self, model: Any, layers: nn.ModuleList | None, *, watched: bool) -> None:
        self._model = model
        self._classifier = model.get_base_model() if isinstance(model, PeftModel) else model
        self._layers: list[nn.Module] = list(layers) if layers is not None else []
        self._watched = watched and bool(self._layers)

    def run(self, ids: Tensor, mask: Tensor, wanted: Wanted) -> Seen:
        """Return what is wanted of a batch.

        Args:
            ids: Shape (batch, tokens), padded on the right.
            mask: Shape (batch, tokens), 1 for text.
            wanted: What is.
        """
        depth = len(self._layers)
        indices = set(wanted.layers) - {depth} if self._watched else set()
        if wanted.entering is not None and self._layers:
            indices.add(wanted.entering)
        ends = self._watched and not wanted.head and depth not in wanted.layers
        entering: dict[int, Tensor] = {}
        with ExitStack() as within:
            within.enter_context(without_adapters(self._model))
            at_head = within.enter_context(head_inputs(self._classifier)) if wanted.head else []
            for index in indices:
                last = ends and index == max(indices)
                within.enter_context(_entering(self._layers[index], index, entering, ends=last))
            made = within.enter_context(base_outputs(self._classifier))
            hidden = self._hidden(ids, mask)
        if self._watched:
            hidden = [entering.get(i) for i in range(depth)] + made[-1:]
        return Seen(
            {n: hidden[n] for n in wanted.layers},
            None if wanted.entering is None else entering.get(wanted.entering),
            at_head[0] if at_head else None,
        )

    def _hidden(self, ids: Tensor, mask: Tensor) -> Any:
        """Run the model; return its hidden states if they are asked for, else nothing."""
        try:
            return self._model(
                input_ids=ids, attention_mask=mask, output_hidden_states=not self._watched
            ).hidden_states
        except _DeepEnoughError:
            return None


class _DeepEnoughError(Exception):
    """Ends a pass: nothing of what follows is wanted."""


@contextmanager
def _entering(
    layer: nn.Module, index: int, kept: dict[int, Tensor], *, ends: bool
) -> Iterator[None]:
    """Within this context, keep the states that enter a layer, and end the pass there or not."""

    def keep(_module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        kept[index] = given[0] if given else named["hidden_states"]
        if ends:
            raise _DeepEnoughError

    hook = layer.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Within this context a model computes what its base does.

    PEFT's own way to say so changes which parameters are trained.
    """
    wrapped = [
        m for m in model.modules() if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper)
    ]
    before = [module._disable_adapters for module in wrapped]
    for module in wrapped:
        module._disable_adapters = True
    try:
        yield
    finally:
        for module, disabled in zip(wrapped, before, strict=True):
            module._disable_adapters = disabled
