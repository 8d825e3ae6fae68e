"""Figures for cards and reports: arrays in, a matplotlib figure out, then PNG or SVG.

Drawn with matplotlib's object interface, so that nothing is registered globally and threads do not
meet. Bars lie on their side, since the names of principles are long. Colours can be told apart
with any colour vision.

Source:
    Colours: M. Okabe and K. Ito, "Color universal design" (2008).
"""

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from morlaif_hub.errors import OptionError
from morlaif_hub.statistics import FloatArray, calibration_bins, wilson_interval

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#555555"
WIDTH = 6.4  # inches; a card's column at the resolution below
DOTS_PER_INCH = 150

Bounds = tuple[float, float]


class Bars(NamedTuple):
    """The bars of one series: a value per name, each with its 95 % interval if it has one."""

    values: Sequence[float]
    intervals: Sequence[Bounds] | None = None


def png(figure: Figure) -> bytes:
    """Return the figure as PNG; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return buffer.getvalue()


def svg(figure: Figure) -> str:
    """Return the figure as SVG with text as outlines; the same figure gives the same text."""
    buffer = io.StringIO()
    # The salt of element ids can only be set here; it is put back when drawing is done.
    with matplotlib.rc_context({"svg.hashsalt": "morlaif", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def score_histogram(scores: ArrayLike, *, title: str, unit: str) -> Figure:
    """Draw how scores are distributed, with their mean.

    Args:
        scores: Any shape, at least one.
        title: Above the figure.
        unit: What a score of 1 means, such as `standard deviations`; the label of the axis.
    """
    values = np.asarray(scores, dtype=np.float64).ravel()
    figure, axes = _canvas(height=3.4)
    axes.hist(values, bins=min(40, max(5, int(np.sqrt(values.size)))), color=COLOURS[0])
    mean = float(values.mean())
    axes.axvline(mean, color=COLOURS[1], linestyle="--", label=f"mean {mean:.2f}")
    axes.set_title(textwrap.fill(title, 60), parse_math=False)  # a dollar sign is a dollar sign
    axes.set(xlabel=unit, ylabel=f"responses (of {values.size})")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(figure)
    return figure


def rate_points(
    names: Sequence[str], values: Sequence[float], intervals: Sequence[Bounds]
) -> Figure:
    """Draw rates as points with 95 % intervals and their numbers, one under the other.

    Args:
        names: What each rate is of.
        values: The rates, in [0, 1].
        intervals: Of the rates.
    """
    figure, axes = _bar_canvas(names, series=1)
    rows = range(len(names))
    axes.axvline(0.5, color=GREY, linestyle="--", linewidth=1)
    axes.errorbar(
        values,
        rows,
        xerr=_arms(values, intervals),
        fmt="o",
        color=COLOURS[0],
        ecolor="black",
        capsize=2.5,
        linewidth=1.2,
        clip_on=False,
    )
    for row, value in zip(rows, values, strict=True):
        axes.text(1.05, row, f"{value:.2f}", va="center")
    axes.set(xlim=(-0.02, 1.02), xlabel="share, with its 95 % interval")
    axes.spines["left"].set_visible(False)
    return figure


def calibration_curve(probabilities: ArrayLike, outcomes: ArrayLike, *, bins: int = 10) -> Figure:
    """Draw how often A was better against the probability given for it, per bin.

    Bars are Wilson 95 % intervals; a point's area grows with the pairs in its bin.

    Args:
        probabilities: Predicted probability that A is better; shape (n,).
        outcomes: 1 where A was better, 0 where B was, 0.5 for a tie; shape (n,).
        bins: Number of bins of equal width.
    """
    predicted, observed = (np.asarray(v, dtype=np.float64) for v in (probabilities, outcomes))
    members = calibration_bins(predicted, bins)
    counts = np.bincount(members, minlength=bins)
    filled = counts > 0
    n, means, successes = (
        counts[filled],
        np.bincount(members, weights=predicted, minlength=bins)[filled] / counts[filled],
        np.bincount(members, weights=observed, minlength=bins)[filled],
    )
    figure, axes = _canvas(height=4.6)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", label="perfectly calibrated")
    intervals = [wilson_interval(s, int(k)) for s, k in zip(successes, n, strict=True)]
    axes.errorbar(
        means,
        successes / n,
        yerr=_arms(successes / n, intervals),
        fmt="none",
        color=COLOURS[0],
        capsize=3,
    )
    areas = 20 + 180 * n / n.max()
    axes.scatter(means, successes / n, s=areas, color=COLOURS[0], label=f"{n.sum()} pairs")
    axes.set(
        xlim=(-0.03, 1.03),
        ylim=(-0.03, 1.03),
        xlabel="predicted probability that A is better",
        ylabel="share of pairs in which A was better",
    )
    _legend(figure)
    return figure


def accuracy_bars(
    names: Sequence[str],
    accuracies: Sequence[float],
    intervals: Sequence[Bounds],
    baselines: Sequence[float | None],
) -> Figure:
    """Draw accuracies with 95 % intervals, and what a rule that only sees length reaches.

    Args:
        names: Of the preference models or principles.
        accuracies: In [0, 1].
        intervals: Of the accuracies.
        baselines: Accuracy of the length-only rule; None where it makes no sense.
    """
    figure, axes = _bar_canvas(names, series=1)
    _bars(axes, Bars(accuracies, intervals), lane=0, lanes=1, label="accuracy")
    known = [(b, i) for i, b in enumerate(baselines) if b is not None]
    if known:
        at, rows = zip(*known, strict=True)
        axes.vlines(
            at,
            np.subtract(rows, 0.4),
            np.add(rows, 0.4),
            color=COLOURS[1],
            linewidth=3,
            label="length only",
        )
    axes.axvline(0.5, color=GREY, linestyle="--", linewidth=1, label="chance")
    axes.set(xlim=(0.0, 1.0), xlabel="accuracy")
    _legend(figure)
    return figure


def weight_bars(
    names: Sequence[str], weights: Sequence[float], intervals: Sequence[Bounds]
) -> Figure:
    """Draw the weights of objectives with 95 % intervals.

    Args:
        names: Of the objectives.
        weights: Of either sign.
        intervals: Of the weights.
    """
    figure, axes = _bar_canvas(names, series=1)
    _bars(axes, Bars(weights, intervals), lane=0, lanes=1)
    axes.axvline(0.0, color=GREY, linewidth=1)
    axes.set(xlabel="weight (absolute values sum to 1)")
    return figure


def learning_curves(
    steps: Sequence[int], series: Mapping[str, Sequence[float]], *, y_label: str
) -> Figure:
    """Draw one line per series over the steps of training.

    Args:
        steps: Where the series were measured.
        series: Values by name, as many as there are steps; NaN leaves a gap.
        y_label: What the values are, with their unit.
    """
    figure = sweep_lines(steps, series, x_label="step", y_label=y_label)
    figure.axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def sweep_lines(
    x: Sequence[float], series: Mapping[str, Sequence[float]], *, x_label: str, y_label: str
) -> Figure:
    """Draw one line per series over a swept quantity.

    Args:
        x: The values of what is swept.
        series: Values by name, as many as `x` has; NaN leaves a gap.
        x_label: What is swept, with its unit.
        y_label: What the values are, with their unit.
    """
    _check_lengths(len(x), series)
    figure, axes = _canvas(height=3.6)
    for i, (name, values) in enumerate(series.items()):
        axes.plot(
            x,
            values,
            color=COLOURS[i % len(COLOURS)],
            marker=MARKERS[i % len(MARKERS)],
            # Past the last colour they repeat, told apart by the stroke.
            linestyle=("-", "--", ":")[i // len(COLOURS) % 3],
            label=name,
        )
    axes.set(xlabel=x_label, ylabel=y_label)
    _legend(figure)
    return figure


def correlation_matrix(names: Sequence[str], matrix: ArrayLike) -> Figure:
    """Draw correlations between objectives as a table of coloured cells.

    Args:
        names: Of the objectives.
        matrix: Shape (objectives, objectives), in [-1, 1]; NaN where undefined, shown as a dash.
    """
    values = np.asarray(matrix, dtype=np.float64)
    if values.shape != (len(names), len(names)):
        raise OptionError(f"matrix must have {len(names)} rows and columns, got {values.shape}")
    # In inches: a cell holds a number, and the names, slanted below, need room of their own.
    cells, letters = 0.45 * len(names), max(map(len, names), default=0)
    size = (1.5 + cells + 0.085 * letters, 0.6 + cells + 0.06 * letters)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(values, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    for (row, column), value in np.ndenumerate(values):
        axes.text(
            column,
            row,
            "-" if np.isnan(value) else f"{round(value, 2) + 0.0:.2f}",  # + 0.0: no "-0.00"
            ha="center",
            va="center",
            fontsize=8,
            color="white" if abs(value) > 0.6 else "black",
        )
    figure.colorbar(image, ax=axes, label="correlation", ticks=[-1, 0, 1])
    return figure


def grouped_bars(names: Sequence[str], series: Mapping[str, Bars], *, x_label: str) -> Figure:
    """Draw several series of bars side by side, with 95 % intervals where they have them.

    Args:
        names: One group of bars each.
        series: Bars by name, as many as there are names.
        x_label: What the values are, with their unit.
    """
    _check_lengths(len(names), {name: bars.values for name, bars in series.items()})
    figure, axes = _bar_canvas(names, series=len(series))
    for lane, (name, bars) in enumerate(series.items()):
        _bars(axes, bars, lane=lane, lanes=len(series), label=name)
    axes.axvline(0.0, color=GREY, linewidth=1)
    axes.set(xlabel=x_label)
    _legend(figure)
    return figure


def _canvas(*, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(color="#dddddd", linewidth=0.8)
    return figure, axes


def _bar_canvas(names: Sequence[str], *, series: int) -> tuple[Figure, Axes]:
    figure, axes = _canvas(height=1.2 + len(names) * (0.12 + 0.24 * series))
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)  # the first name on top
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    return figure, axes


def _bars(axes: Axes, bars: Bars, *, lane: int, lanes: int, label: str | None = None) -> None:
    height = 0.8 / lanes
    rows = np.arange(len(bars.values)) + (lane - (lanes - 1) / 2) * height
    colour = COLOURS[lane % len(COLOURS)]
    axes.barh(rows, bars.values, height=0.85 * height, color=colour, alpha=0.75, label=label)
    if bars.intervals is not None:
        axes.errorbar(
            bars.values,
            rows,
            xerr=_arms(bars.values, bars.intervals),
            fmt="none",
            color="black",
            capsize=2.5,
            linewidth=1.2,
        )


def _arms(values: ArrayLike, intervals: Sequence[Bounds]) -> FloatArray:
    """Return the lengths of error bars, low then high; shape (2, n)."""
    centre, ends = np.asarray(values, dtype=np.float64), np.asarray(intervals).reshape(-1, 2)
    if len(ends) != len(centre):
        raise OptionError(f"there must be an interval per value, got {len(ends)}, {len(centre)}")
    return np.asarray(np.abs(np.stack([centre - ends[:, 0], ends[:, 1] - centre])))


def _check_lengths(n: int, series: Mapping[str, Sequence[float]]) -> None:
    for name, values in series.items():
        if len(values) != n:
            raise OptionError(f"series {name!r} must have {n} values, got {len(values)}")


def _legend(figure: Figure) -> None:
    """Put the legend above the axes, where it cannot cover anything."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if handles:
        columns = max(1, 75 // (max(map(len, labels)) + 8))
        figure.legend(
            handles, labels, loc="outside upper left", ncols=columns, frameon=False, fontsize=9
        )
