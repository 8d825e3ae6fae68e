"""What PEFT and transformers alone give for a text, which every way to score is compared with."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from morlaif_hub.bank.bare import without_adapters
from morlaif_hub.bank.layout import Ids
from morlaif_hub.bank.pooling import Pool
from morlaif_hub.bank.probes import ProbeFiles
from morlaif_hub.bank.trunk import out_of_memory
from morlaif_hub.errors import ArtifactError

T = TypeVar("T")


@torch.inference_mode()
def plain_scores(
    model: Any,
    texts: Sequence[Ids],
    starts: Sequence[int],
    *,
    slots: Sequence[tuple[str | None, str]],
    probes: Sequence[ProbeFiles],
) -> Tensor:
    """Return scores of texts, one text at a time.

    Args:
        model: With adapters or without, or a bare base.
        texts: Without padding.
        starts: Of each, the first token that counts in a probe's mean.
        slots: Each adapter's name in the model and what errors call it; None for the model itself.
        probes: On the model without its adapters.

    Returns:
        float32 on the CPU, shape (texts, adapters and probes).

    Raises:
        ArtifactError: If the model cannot score a text, or scores it as NaN or infinite.
        BaseMismatchError: If a probe reads what the model has not.
    """
    rows = [torch.tensor([text], device=model.device) for text in texts]
    columns = []
    for slot, where in slots:
        if slot is not None:
            model.set_adapter(slot, inference_mode=True)
        logits = _computed(where, lambda: [_run(model, row).logits[:, 0] for row in rows])
        columns.append(_finite(torch.cat(logits), where))
    if probes:
        hidden = _hidden_states(model, rows, probes[0].where)
        for probe in probes:
            columns.append(_finite(_probed(probe, hidden, starts), probe.where))
    return torch.stack(columns, dim=1)


@torch.inference_mode()
def trial_probes(model: Any, text: Ids) -> tuple[ProbeFiles, ...]:
    """Return probes of a middle layer and of the last one, to try a bare base with."""
    where = type(model).__name__
    (hidden,) = _hidden_states(model, [torch.tensor([text], device=model.device)], where)
    depth, generator = len(hidden) - 1, torch.Generator().manual_seed(0)
    return tuple(
        ProbeFiles(
            torch.randn(2 * hidden[layer].shape[-1], generator=generator),
            layer,
            "last+mean",
            where,
        )
        for layer in sorted({max(1, depth // 2), depth})
    )


def _hidden_states(model: Any, rows: Sequence[Tensor], where: str) -> list[tuple[Tensor, ...]]:
    def run() -> list[tuple[Tensor, ...]]:
        found = [_run(model, row, output_hidden_states=True).hidden_states for row in rows]
        return [tuple(states[0].float() for states in hidden) for hidden in found]

    with without_adapters(model):
        return _computed(where, run)


def _probed(
    probe: ProbeFiles, hidden: Sequence[tuple[Tensor, ...]], starts: Sequence[int]
) -> Tensor:
    depth = len(hidden[0]) - 1
    probe.check_fits(depth, hidden[0][min(probe.layer, depth)].shape[-1])
    states = [each[probe.layer] for each in hidden]
    means = [s[start:].mean(0) for s, start in zip(states, starts, strict=True)]
    return probe.score(Pool(torch.stack([s[-1] for s in states]), torch.stack(means)))


def _run(model: Any, row: Tensor, **asked: bool) -> Any:
    return model(input_ids=row, attention_mask=torch.ones_like(row), **asked)


def _computed(where: str, compute: Callable[[], T]) -> T:
    try:
        return compute()
    except Exception as error:  # a model that does not read one text fails in any way
        if out_of_memory(error):
            raise
        raise ArtifactError(
            f"{where}: cannot score a text: {type(error).__name__}: {error}"
        ) from error


def _finite(scores: Tensor, where: str) -> Tensor:
    if not bool(scores.isfinite().all()):
        raise ArtifactError(f"{where}: scores probe texts as NaN; its weights are damaged")
    return scores.float().cpu()
