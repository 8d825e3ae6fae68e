"""Our metrics, as `evaluate` loads them, are the plain functions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest

from morlaif_hub.errors import OptionError
from morlaif_hub.feedback.bias import bias_report
from morlaif_hub.judges.base import Verdict
from morlaif_hub.metrics import METRICS, metric_folder
from morlaif_hub.statistics import (
    Estimate,
    calibration_error,
    estimate_accuracy,
    pairwise_accuracy,
    position_bias,
)
from tests.test_calibration import compared

FUNCTIONS: dict[str, tuple[Callable[..., Estimate], tuple[str, str]]] = {
    "pairwise_accuracy": (estimate_accuracy, ("predictions", "references")),
    "calibration_error": (calibration_error, ("predictions", "references")),
    "position_bias": (position_bias, ("first", "second")),
}


def inputs(name: str, n: int = 60) -> dict[str, list[float]]:
    generator = np.random.default_rng(0)
    first, second = FUNCTIONS[name][1]
    numbers = generator.normal(size=n) if name == "pairwise_accuracy" else generator.random(n)
    return {first: numbers.tolist(), second: generator.random(n).tolist()}


def plain(name: str, found: Estimate) -> dict[str, Any]:
    return {name: found.value, "interval": list(found.interval), "n": found.n}


@pytest.fixture(params=METRICS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_metric_is_its_function(name: str) -> None:
    metric, given = evaluate.load(metric_folder(name)), inputs(name)
    prompts = [f"prompt {i // 3}" for i in range(60)]
    function, _ = FUNCTIONS[name]
    assert metric.compute(**given) == plain(name, function(*given.values()))
    by_prompt = metric.compute(**given, groups=prompts, seed=3)
    assert by_prompt == plain(name, function(*given.values(), prompts, seed=3))
    assert by_prompt["interval"] != metric.compute(**given)["interval"]


def test_a_metric_takes_pairs_a_few_at_a_time(name: str) -> None:
    metric, given = evaluate.load(metric_folder(name)), inputs(name)
    for start in range(0, 60, 25):
        metric.add_batch(**{key: values[start : start + 25] for key, values in given.items()})
    assert metric.compute() == plain(name, FUNCTIONS[name][0](*given.values()))


def test_a_metric_explains_itself(name: str) -> None:
    metric = evaluate.load(metric_folder(name))
    said = metric.inputs_description
    assert all(f"    {key}: " in said for key in (*metric.features, "groups", "seed"))
    assert all(f"    {key}: " in said for key in metric.compute(**inputs(name)))
    card = (Path(metric_folder(name)) / "README.md").read_text(encoding="utf-8")
    assert metric.description in card


def test_what_a_card_shows_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    card = (Path(metric_folder(name)) / "README.md").read_text(encoding="utf-8")
    (code,) = [part.split("```")[0] for part in card.split("```python")[1:]]
    exec(compile(code, f"{name}/README.md", "exec"), {})
    assert capsys.readouterr().out.startswith(f"{{'{name}': ")


def test_folders_are_those_of_the_metrics() -> None:
    folders = {path.name for path in Path(metric_folder("position_bias")).parent.iterdir()}
    assert {folder for folder in folders if not folder.startswith("__")} == set(METRICS)
    with pytest.raises(OptionError, match="unknown metric 'accuracy'; known: calibration_error"):
        metric_folder("accuracy")


def test_accuracy_is_the_mean_of_the_pairs() -> None:
    differences, labels = inputs("pairwise_accuracy").values()
    found = estimate_accuracy(differences, labels)
    assert found.value == pairwise_accuracy(differences, labels).mean()
    assert found.interval.low < found.value < found.interval.high


@pytest.mark.parametrize(
    ("first", "second", "bias"),
    [([0.9] * 4, [0.9] * 4, 0.0), ([0.9] * 4, [0.1] * 4, 0.5), ([0.1] * 4, [0.9] * 4, -0.5)],
)
def test_position_bias_of_judges_that_are_known(
    first: list[float], second: list[float], bias: float
) -> None:
    """One that has an opinion, one that takes the first, one that takes the second."""
    assert position_bias(first, second) == (bias, (bias, bias), 4)


def test_position_bias_is_that_of_a_report() -> None:
    first, second = map(np.array, inputs("position_bias").values())
    first[:5] = 0.5
    verdicts = [Verdict(a, b) for a, b in zip(first.tolist(), second.tolist(), strict=True)]
    pairs = compared(np.arange(60) // 3)
    found = position_bias(first, second, [pair.prompt_id for pair in pairs])
    assert found.value == pytest.approx(np.mean([v.first_share for v in verdicts]) - 0.5)
    report = bias_report(pairs, verdicts).position_bias
    assert (report.value, report.interval, report.n) == found


def test_turning_every_pair_round_leaves_position_bias() -> None:
    """A and B swapped: what was A shown first is B shown second."""
    first, second = map(np.array, inputs("position_bias").values())
    assert position_bias(1 - second, 1 - first).value == pytest.approx(
        position_bias(first, second).value
    )
