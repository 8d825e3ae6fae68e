"""Probes with random weights, and what they score by transformers' own hidden states."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel

from morlaif_hub.bank.golden import golden_sequences
from morlaif_hub.bank.probes import ProbeFiles, write_probe
from morlaif_hub.hub.artifact import seal
from morlaif_hub.hub.manifest import GoldenScores, InputFormat, Pooling, ProbeRecord
from morlaif_hub.models.formats import Encoder
from morlaif_hub.models.language_model import load_tokenizer, model_folder
from morlaif_hub.principles import load_constitution
from tests.manifests import probe_manifest

CHAT = InputFormat(kind="chat", append_eos=False, max_length=128)


def random_probe(model: Any, layer: int, pooling: Pooling, *, seed: int = 0) -> ProbeFiles:
    """Return a probe with random weights that fits a model."""
    width = hidden_states(model, [5, 6, 7])[layer].shape[-1]
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(width * (2 if pooling == "last+mean" else 1), generator=generator)
    return ProbeFiles(weight, layer, pooling, f"probe of layer {layer}")


@torch.inference_mode()
def hidden_states(model: Any, text: Sequence[int]) -> tuple[Tensor, ...]:
    """Return transformers' hidden states of one text, each of shape (tokens, width)."""
    row = torch.tensor([list(text)])
    result = model(input_ids=row, attention_mask=torch.ones_like(row), output_hidden_states=True)
    return tuple(states[0].float() for states in result.hidden_states)


def probed_alone(
    model: Any,
    probes: Iterable[ProbeFiles],
    texts: Sequence[Sequence[int]],
    *,
    starts: Sequence[int],
    pad: int,
) -> Tensor:
    """Return the scores of probes, one text at a time, shape (texts, probes).

    Of a text count the last token that is no padding, and in means those from its start to it.
    """
    rows = []
    for text, start in zip(texts, starts, strict=True):
        states = hidden_states(model, text)
        end = end_of(text, pad)
        scores = [_score(probe, states[probe.layer][min(start, end - 1) : end]) for probe in probes]
        rows.append(torch.stack(scores))
    return torch.stack(rows)


def end_of(text: Sequence[int], pad: int) -> int:
    """Return how many tokens a text has up to its last one that is no padding, at least 1."""
    return max((i for i, token in enumerate(text) if token != pad), default=0) + 1


def make_probe(
    folder: Path, base: Path, name: str, *, layer: int, pooling: Pooling, seed: int = 0
) -> Path:
    """Write a probe with random weights as an artifact, with its true golden scores."""
    model = AutoModel.from_pretrained(base).eval()
    probe = random_probe(model, layer, pooling, seed=seed)
    write_probe(folder, probe.weight)
    tokenizer = load_tokenizer(base)
    prompts, responses = golden_sequences()
    encoder = Encoder(tokenizer, CHAT)
    texts, starts = zip(*map(encoder.text, prompts, responses), strict=True)
    scores = probed_alone(model, [probe], texts, starts=starts, pad=tokenizer.pad_token_id)[:, 0]
    record = ProbeRecord(layer=layer, pooling=pooling)
    manifest = replace(
        probe_manifest(),
        probe=record,
        principle=load_constitution().get(name).record(),
        base=model_folder(base).base,
        input_format=CHAT,
        golden=GoldenScores(scores=tuple(scores.tolist()), tolerance=1e-3),
        validation=None,
        repo_id=None,
        files=(),
    )
    seal(folder, manifest)
    return folder


def _score(probe: ProbeFiles, states: Tensor) -> Tensor:
    last, mean = states[-1], states.mean(0)
    read = {"last": last, "mean": mean, "last+mean": torch.cat([last, mean])}[probe.pooling]
    return read @ probe.weight
