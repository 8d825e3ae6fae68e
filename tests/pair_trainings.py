"""Small trainings of one preference model, alike in a test and in each of several processes.

Run as a module under torchrun it trains in every process, and writes down what came of it.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from morlaif_hub.bank.classifier import load_classifier
from morlaif_hub.errors import TrainingError
from morlaif_hub.models.language_model import load_tokenizer
from morlaif_hub.preference_models import trl
from morlaif_hub.preference_models.full import new_full_model
from morlaif_hub.preference_models.losses import Trained
from morlaif_hub.preference_models.new_adapters import new_adapters
from morlaif_hub.preference_models.padded_pairs import padded
from morlaif_hub.preference_models.settings import GradientSettings
from morlaif_hub.preference_models.tokens import TokenPairs
from morlaif_hub.scoring.processes import Processes
from morlaif_hub.statistics import fit_logistic
from tests.tiny import tiny_tokenizer

SETTINGS = GradientSettings(
    layers="top:0.5", rank=2, learning_rate=1e-3, batch_size=8, epochs=3, patience=3
)
GOOD, BAD, UNSCORED = 7, 8, 250
PAD = tiny_tokenizer().pad_token_id


def pairs(count: int, *, seed: int, probabilities: Sequence[float] = (0.9, 0.75)) -> TokenPairs:
    """Return pairs that differ in their last token, which is what their labels go by."""
    generator = np.random.default_rng(seed)
    texts = [
        tuple(generator.integers(10, 200, generator.integers(3, 19)).tolist()) for _ in range(count)
    ]
    wanted = np.resize(probabilities, count)
    return TokenPairs([(*t, GOOD) for t in texts], [(*t, BAD) for t in texts], wanted)


def make_model(form: str, base: Path, *, head: Any = None, fitted: bool = False) -> Any:
    """Return a model to be trained, from a random head, the given or a good one."""
    model = load_classifier(base, dtype=torch.float32, pad_token_id=PAD).requires_grad_(False)
    if fitted:
        head = _fitted(model)
    elif head is None:
        head = np.random.default_rng(3).normal(size=32) / 10
    if form == "full":
        return new_full_model(model, head)
    return new_adapters(model, {"pm": head}, SETTINGS, seed=0)


@torch.no_grad()
def _fitted(model: Any) -> Any:
    some = pairs(300, seed=5)
    read = []
    for side in (some.first, some.second):
        inputs = padded(side, PAD)
        states = model.model(**inputs).last_hidden_state
        last = inputs["attention_mask"].sum(1) - 1
        read.append(states[torch.arange(len(side)), last].double().numpy())
    return fit_logistic(read[0] - read[1], np.ones(300), l2=0.1)


def trained_weights(model: Any) -> dict[str, torch.Tensor]:
    """Return copies of the weights that are trained, by name."""
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def _main(folder: Path, form: str, base: Path) -> None:
    processes = Processes()
    texts = 0
    real = trl.scores

    def counted(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        nonlocal texts
        texts += len(inputs["input_ids"])
        return real(model, inputs)

    trl.scores = counted

    def run(model: Any, **changes: Any) -> Trained:
        options: dict[str, Any] = {
            "train": pairs(24, seed=0),
            "validation": pairs(9, seed=1),
            "settings": SETTINGS,
            "seed": 0,
            "tokenizer": load_tokenizer(base),
        }
        return trl.train_with_trl(model, **options | changes)

    model = make_model(form, base)
    result = run(model)
    trained_on = texts
    save_file(trained_weights(model), folder / f"weights-{processes.index}.safetensors")

    done: list[int] = []

    def stop(steps: int) -> None:
        done.append(steps)
        if sum(done) == 5:
            raise KeyboardInterrupt

    try:
        run(make_model(form, base), checkpoints=folder / "checkpoints", progress=stop)
    except KeyboardInterrupt:
        model = make_model(form, base)
        resumed = run(model, checkpoints=folder / "checkpoints")
        save_file(trained_weights(model), folder / f"resumed-{processes.index}.safetensors")

    # Only one of the processes gets to see the pair that cannot be scored.
    error, some, model = "", pairs(24, seed=0), make_model(form, base)
    some.first[17] = (5, UNSCORED, 6)
    model.get_input_embeddings().weight.data[UNSCORED] = float("nan")
    try:
        run(model, train=some)
    except TrainingError as raised:
        error = str(raised)
    found = {
        "processes": processes.count,
        "texts": trained_on,
        "result": result,
        "resumed": resumed,
        "error": error,
    }
    (folder / f"{processes.index}.json").write_text(json.dumps(found))
    processes.close()


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
