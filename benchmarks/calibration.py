"""How far the reported calibration error is off, and how often its interval holds the true one.

Pairs are drawn from models whose true error is known: prompts of four pairs, on half of which the
responses differ more than the scores say, on the other half less, so that pairs of a prompt are not
independent. Probabilities are taken as they are, or given by a temperature that is fitted as for a
preference model: then the true error is that of the temperature that is kept.

    python -m benchmarks.calibration
    python -m benchmarks.calibration --soft
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import NamedTuple

import click
import numpy as np
from numpy.typing import NDArray

from morlaif_hub.cli.command import Report, command
from morlaif_hub.cli.tables import Cell, paragraphs, table, wrapped
from morlaif_hub.evaluation.wording import number, percent
from morlaif_hub.statistics import (
    calibration_error,
    cross_fitted_temperatures,
    expected_calibration_error,
    fit_temperature,
    sigmoid,
)
from morlaif_hub.workspace import Workspace

Array = NDArray[np.float64]
SIZES = (100, 500, 2000)
PAIRS_PER_PROMPT = 4
CONCENTRATION = 4.0
"""Of a judge's soft labels around the true probability: a beta distribution's two counts."""

# The true probability of A by the difference in score; sigmoid(difference) is what is predicted.
MODELS: dict[str, Callable[[Array], Array]] = {
    "calibrated": sigmoid,
    "overconfident by 1.35": lambda d: sigmoid(d / 1.35),
    "overconfident by 2": lambda d: sigmoid(d / 2),
    "underconfident by 2": lambda d: sigmoid(2 * d),
    "levels off": lambda d: sigmoid(np.clip(1.5 * d, -0.8, 0.8)),
    "no information": lambda d: np.full_like(d, 0.5),
}
WITH_A_TEMPERATURE = ("calibrated", "levels off", "no information")


class Sample(NamedTuple):
    """Pairs: difference in score, label and prompt of each, shape (pairs,)."""

    differences: Array
    labels: Array
    prompts: NDArray[np.intp]


@dataclass(frozen=True)
class Row:
    """What came out for one model and number of pairs.

    Attributes:
        model: Its name in `MODELS`.
        fitted: Whether a temperature was fitted.
        pairs: In each sample.
        true: The true error, on average over the samples.
        plain: Mean and standard deviation of ten bins of equal width, minus the true error.
        ours: The same of `calibration_error`.
        covered: Share of samples whose interval holds the true error.
        width: Mean width of the interval.
    """

    model: str
    fitted: bool
    pairs: int
    true: float
    plain: tuple[float, float]
    ours: tuple[float, float]
    covered: float
    width: float


def draw(model: str, pairs: int, generator: np.random.Generator, *, soft: bool) -> Sample:
    """Return pairs of a model, their labels 0 or 1 or, soft, between."""
    prompts = np.arange(pairs) // PAIRS_PER_PROMPT
    differences = generator.normal(size=pairs)
    strength = np.where(generator.random(prompts[-1] + 1) < 0.5, 1.5, 0.5)[prompts]
    p = 0.5 + np.clip((MODELS[model](differences) - 0.5) * strength, -0.499, 0.499)
    if soft:
        labels = generator.beta(CONCENTRATION * p, CONCENTRATION * (1 - p))
    else:
        labels = (generator.random(pairs) < p).astype(np.float64)
    return Sample(differences, labels, prompts)


def true_error(model: str, temperature: float, differences: Array) -> float:
    """Return the error of sigmoid(difference / temperature), over many differences."""
    lead = MODELS[model](differences) - 0.5
    halves = [np.clip(strength * lead, -0.499, 0.499) for strength in (1.5, 0.5)]
    actual = 0.5 + (halves[0] + halves[1]) / 2
    return float(np.abs(sigmoid(differences / temperature) - actual).mean())


def measure(model: str, pairs: int, *, fitted: bool, soft: bool, samples: int) -> Row:
    """Return what comes out on so many samples."""
    generator = np.random.default_rng([pairs, samples, *model.encode()])
    many = generator.normal(size=100_000)
    found = []
    for _ in range(samples):
        sample = draw(model, pairs, generator, soft=soft)
        temperatures, kept = np.ones(pairs), 1.0
        if fitted:
            temperatures = cross_fitted_temperatures(*sample)
            kept = fit_temperature(sample.differences, sample.labels)
        true = true_error(model, kept, many)
        predicted = sigmoid(sample.differences / temperatures)
        ours = calibration_error(predicted, sample.labels, sample.prompts, resamples=500)
        plain = expected_calibration_error(predicted, sample.labels)
        low, high = ours.interval
        found.append((true, plain - true, ours.value - true, low <= true <= high, high - low))
    columns = np.array(found, dtype=np.float64).T
    mean, deviation = columns.mean(axis=1), columns.std(axis=1)
    return Row(
        model,
        fitted,
        pairs,
        true=float(mean[0]),
        plain=(float(mean[1]), float(deviation[1])),
        ours=(float(mean[2]), float(deviation[2])),
        covered=float(mean[3]),
        width=float(mean[4]),
    )


@command("calibration")
@click.option("--samples", type=click.IntRange(min=2), default=300, show_default=True)
@click.option("--soft", is_flag=True, help="Labels are a judge's probabilities, not 0 or 1.")
def main(_workspace: Workspace, *, samples: int, soft: bool) -> Report:
    """Measure the estimate of the calibration error on models whose true error is known."""
    cases = [(m, False) for m in MODELS] + [(m, True) for m in WITH_A_TEMPERATURE]
    rows = [
        measure(model, pairs, fitted=fitted, soft=soft, samples=samples)
        for model, fitted in cases
        for pairs in SIZES
    ]
    return Report({"rows": [asdict(row) for row in rows]}, shown(rows))


def shown(rows: list[Row]) -> str:
    """Return the rows as a table."""
    cells: list[list[Cell]] = [
        [
            row.model,
            "fitted" if row.fitted else "as it is",
            row.pairs,
            number(row.true, 3),
            *(f"{number(b, 3, sign=True)} ({number(s, 3)})" for b, s in (row.plain, row.ours)),
            percent(row.covered),
            number(row.width, 3),
        ]
        for row in rows
    ]
    header = ("model", "temperature", "pairs", "true", "ten bins", "ours", "covered", "width")
    said = (
        "ten bins: of equal width over [0, 1], minus the true error, mean (standard deviation); "
        "ours: the same of calibration_error; covered: how often its interval holds the true error."
    )
    return paragraphs(table(header, cells), wrapped(said))


if __name__ == "__main__":
    main()
