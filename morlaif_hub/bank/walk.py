"""Running a model with its layers in somebody else's hands.

The model does all else itself: embeddings, tables of positions, masks, norm and head.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from morlaif_hub.bank.in_place import replaced


class ReachedError(Exception):
    """Ends a pass of the model at the place up to which it was wanted."""


class Given(NamedTuple):
    """What a model tells a layer beside its states: positions, tables, caches."""

    values: tuple[Any, ...]
    named: dict[str, Any]


@dataclass(frozen=True)
class Visited:
    """A layer that the model comes to.

    Attributes:
        index: Of the layer.
        own: Its own forward.
        states: That enter it, shape (batch, tokens, width).
        given: What else the model tells it.
    """

    index: int
    own: Callable[..., Any]
    states: Tensor
    given: Given

    def run(self) -> Any:
        """Return what the layer itself makes of it."""
        return self.own(self.states, *self.given.values, **self.given.named)


class Walker:
    """A classifier whose layers can be run one by one, or passed over.

    Args:
        classifier: A sequence classifier.
        layers: Its layers, in order.

    Attributes:
        tuples: Whether each layer returns a tuple; `learn` finds out.
    """

    def __init__(self, classifier: Any, layers: Iterable[nn.Module]) -> None:
        self.classifier = classifier
        self.layers = list(layers)
        self.tuples = [False] * len(self.layers)
        self.last = len(self.layers) - 1

    def walk(self, ids: Tensor, positions: Tensor, visit: Callable[[Visited], Any]) -> Any:
        """Run the model; `visit` returns what each layer is to return.

        Args:
            ids: Shape (batch, tokens).
            positions: Of the tokens in their texts, the same shape.
            visit: May raise `ReachedError`, which ends the pass.

        Returns:
            The model's output, or None if `visit` ended the pass.
        """

        def forward(index: int, own: Callable[..., Any]) -> Callable[..., Any]:
            def run(*values: Any, **named: Any) -> Any:
                if not values:
                    values = (named.pop("hidden_states"),)
                return visit(Visited(index, own, values[0], Given(values[1:], named)))

            return run

        forwards = {layer: forward(i, layer.forward) for i, layer in enumerate(self.layers)}
        try:
            with replaced(forwards):
                return self.classifier(input_ids=ids, position_ids=positions, use_cache=False)
        except ReachedError:
            return None

    def learn(self, at: Visited) -> Any:
        """Run a layer as it is, and keep in which form it returns states."""
        result = at.run()
        self.tuples[at.index] = isinstance(result, tuple)
        return result

    def layer(self, index: int, states: Tensor, given: Given) -> Tensor:
        """Return what a layer makes of states, shape (batch, tokens, width)."""
        result = self.layers[index](states, *given.values, **given.named)
        made: Tensor = result[0] if self.tuples[index] else result
        return made

    def as_returned(self, index: int, states: Tensor) -> Any:
        """Return states in the form in which a layer returns them."""
        return (states,) if self.tuples[index] else states
