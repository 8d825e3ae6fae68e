"""Work on many rows of token ids, some of similar length at a time."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from morlaif_hub.bank.trunk import out_of_memory
from morlaif_hub.errors import TrainingError

T = TypeVar("T")


def in_portions(
    rows: Sequence[Sequence[int]],
    size: int,
    work: Callable[[list[int]], Iterable[T]],
    *,
    lower: str,
) -> list[T]:
    """Return what work makes of each row, in the order of the rows.

    Rows of similar length come together, so that few are padded, and equal ones side by side.

    Args:
        rows: Token ids.
        size: Rows at once.
        work: Given indices of rows; returns one thing for each.
        lower: The setting that `size` is, for whom memory runs out.

    Raises:
        TrainingError: If memory runs out.

    Example:
        >>> in_portions([[5], [1, 2], [3]], 2, lambda part: [str(part)] * len(part), lower="size")
        ['[2, 0]', '[1]', '[2, 0]']
    """
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i]), rows[i]))
    done: dict[int, T] = {}
    for start in range(0, len(rows), size):
        part = order[start : start + size]
        try:
            done |= zip(part, work(part), strict=True)
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, TrainingError) or not out_of_memory(error):
                raise
            raise TrainingError(
                f"memory ran out with {len(part)} texts of up to {len(rows[part[-1]]):,} tokens at "
                f"once; lower {lower}, shorten the texts, or take a smaller model"
            ) from error
    return [done[i] for i in range(len(rows))]
