"""Every figure is legible (nothing cut off, nothing overlapping) and drawn the same each time."""

import subprocess
import sys
from collections.abc import Callable
from itertools import combinations
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from morlaif_hub.errors import OptionError
from morlaif_hub.figures import (
    Bars,
    accuracy_bars,
    calibration_curve,
    correlation_matrix,
    grouped_bars,
    learning_curves,
    png,
    rate_points,
    score_histogram,
    svg,
    sweep_lines,
    weight_bars,
)

TWELVE = [f"principle_{i}" for i in range(11)] + ["understandability"]
LONGEST = "a_principle_with_the_longest_name_there_"  # 40 characters, the most a name can have


def _numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(0.3, 0.9, size=shape)


def _around(values: np.ndarray) -> list[tuple[float, float]]:
    return [(value - 0.05, value + 0.07) for value in values.tolist()]


def _accuracy_bars(names: list[str]) -> Figure:
    values = _numbers(len(names))
    baselines = [None, *(values[1:] - 0.1).tolist()]
    return accuracy_bars(names, values.tolist(), _around(values), baselines)


def _rate_points(names: list[str]) -> Figure:
    values = _numbers(len(names))
    return rate_points(names, values.tolist(), _around(values))


def _weight_bars(names: list[str]) -> Figure:
    values = _numbers(len(names)) - 0.6
    return weight_bars(names, values.tolist(), _around(values))


def _grouped_bars(names: list[str]) -> Figure:
    values = _numbers(len(names))
    series = {"random": Bars(values.tolist(), _around(values)), "chosen": Bars(values.tolist())}
    return grouped_bars(names, series, x_label="words")


def _learning_curves(names: list[str]) -> Figure:
    series = {name: _numbers(5, i + 1)[:, -1].tolist() for i, name in enumerate(names)}
    return learning_curves([0, 2, 4, 8, 10], series, y_label="calibrated score")


def _sweep_lines(names: list[str]) -> Figure:
    series = {name: [1.0, float("nan"), 3.0] for name in names}
    return sweep_lines([0.0, 0.5, 1.0], series, x_label="weight of detail", y_label="words")


def _score_histogram(names: list[str]) -> Figure:
    title = f"{', '.join(names)}: a high score means more of it"
    return score_histogram(_numbers(50), title=title, unit="standard deviations")


def _calibration_curve(_names: list[str]) -> Figure:
    probabilities = _numbers(40)
    return calibration_curve(probabilities, np.arange(40) % 2)


def _correlation_matrix(names: list[str]) -> Figure:
    return correlation_matrix(names, _numbers(len(names), len(names)) - 0.6)


DRAWN: list[Callable[[list[str]], Figure]] = [
    _accuracy_bars,
    _rate_points,
    _weight_bars,
    _grouped_bars,
    _learning_curves,
    _sweep_lines,
    _score_histogram,
    _calibration_curve,
    _correlation_matrix,
]
NAMES = {"one": ["detail"], "twelve": TWELVE, "long": [LONGEST, LONGEST[::-1], "bias"]}


def faults(figure: Figure) -> list[str]:
    """Return each text that is cut off by the figure's edge or lies over another."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    page = figure.bbox.padded(1.0)
    beyond = _tick_labels(figure, drawn=False) - _tick_labels(figure, drawn=True)
    texts = [
        text
        for text in figure.findobj(Text)
        if text.get_text() and text.get_visible() and text not in beyond
    ]
    boxes = {text: text.get_window_extent(canvas.get_renderer()) for text in texts}
    cut = [
        f"cut off: {text.get_text()}"
        for text, box in boxes.items()
        if not (page.contains(box.x0, box.y0) and page.contains(box.x1, box.y1))
    ]
    # Slanted labels have boxes that overlap although the letters do not.
    level = [text for text in texts if text.get_rotation() in (0.0, 90.0)]
    over = [
        f"overlap: {one.get_text()} and {other.get_text()}"
        for one, other in combinations(level, 2)
        if boxes[one].padded(-1.0).overlaps(boxes[other].padded(-1.0))
    ]
    return cut + over


def _tick_labels(figure: Figure, *, drawn: bool) -> set[Text]:
    """Return labels of ticks: those on the page, or all that are kept, also beyond the limits."""
    labels = set()
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        ticks = axis.get_major_ticks() if drawn else [*axis.majorTicks, *axis.minorTicks]
        for tick in ticks:
            if not drawn or low <= tick.get_loc() <= high:
                labels |= {tick.label1, tick.label2}
    return labels


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("draw", DRAWN, ids=lambda draw: draw.__name__.strip("_"))
def test_every_text_is_whole_and_free(
    draw: Callable[[list[str]], Figure], names: list[str]
) -> None:
    assert faults(draw(names)) == []


def test_faults_are_seen() -> None:
    """The check above is worth something only if it finds what it looks for."""
    figure = Figure(figsize=(2, 2))
    figure.text(0.9, 0.5, "runs off the page")
    figure.text(0.1, 0.1, "below")
    figure.text(0.1, 0.12, "above")
    assert faults(figure) == ["cut off: runs off the page", "overlap: below and above"]


@pytest.mark.parametrize("draw", DRAWN, ids=lambda draw: draw.__name__.strip("_"))
def test_bytes_are_the_same_each_time(draw: Callable[[list[str]], Figure]) -> None:
    assert svg(draw(TWELVE)) == svg(draw(TWELVE))
    assert png(draw(TWELVE)) == png(draw(TWELVE))


def test_svg_is_the_same_in_another_process_and_says_nothing_of_when() -> None:
    """Hash seeds, ids and dates differ between processes; the file must not."""
    code = (
        "from morlaif_hub.figures import svg, score_histogram\n"
        "print(svg(score_histogram([1, 2, 3], title='t', unit='u')), end='')"
    )
    there = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    here = svg(score_histogram([1, 2, 3], title="t", unit="u"))
    assert there == here
    assert "dc:date" not in here
    assert ElementTree.fromstring(here).tag == "{http://www.w3.org/2000/svg}svg"


def test_png_is_one() -> None:
    assert png(_score_histogram(["detail"])).startswith(b"\x89PNG\r\n\x1a\n")


LEAVES_NO_TRACE = """
import sys
import matplotlib
from morlaif_hub.figures import png, score_histogram, svg

def settings():
    # Merely reading `backend` makes matplotlib choose one, by importing pyplot.
    return {key: matplotlib.rcParams[key] for key in matplotlib.rcParams if key != "backend"}

before = settings()
figure = score_histogram([1, 2, 3], title="t", unit="u")
svg(figure)
png(figure)
assert settings() == before
assert "matplotlib.pyplot" not in sys.modules
"""


def test_nothing_global_is_left_behind() -> None:
    """In a process of its own: here an earlier test would have left it already."""
    subprocess.run([sys.executable, "-c", LEAVES_NO_TRACE], check=True)


class TestWhatIsDrawn:
    def test_bars_and_arms_have_the_lengths_given(self) -> None:
        axes = accuracy_bars(["a", "b"], [0.7, 0.4], [(0.6, 0.9), (0.3, 0.45)], [0.5, None]).axes[0]
        assert [bar.get_width() for bar in axes.patches] == [0.7, 0.4]
        *_, (arms,) = next(c for c in axes.containers if hasattr(c, "has_xerr"))
        ends = np.array([segment[:, 0] for segment in arms.get_segments()])
        assert ends == pytest.approx(np.array([[0.6, 0.9], [0.3, 0.45]]))

    def test_rates_stand_beside_their_points(self) -> None:
        axes = rate_points(["ties", "flips"], [0.0, 0.257], [(0.0, 0.0), (0.2, 0.3)]).axes[0]
        assert [text.get_text() for text in axes.texts] == ["0.00", "0.26"]
        (points, _, (arms,)) = next(c for c in axes.containers if hasattr(c, "has_xerr"))
        assert points.get_xdata().tolist() == [0.0, 0.257]
        ends = [segment[:, 0].tolist() for segment in arms.get_segments()]
        assert ends == [pytest.approx([0.0, 0.0]), pytest.approx([0.2, 0.3])]

    def test_the_first_name_is_on_top(self) -> None:
        axes = _rate_points(["first", "second"]).axes[0]
        first, second = (axes.transData.transform((0, tick))[1] for tick in axes.get_yticks())
        assert first > second

    def test_a_missing_baseline_is_left_out(self) -> None:
        axes = accuracy_bars(["a"], [0.7], [(0.6, 0.8)], [None]).axes[0]
        assert "length only" not in axes.get_legend_handles_labels()[1]

    def test_calibration_points_are_shares_of_bins(self) -> None:
        figure = calibration_curve([0.1, 0.1, 0.9, 0.9], [0, 1, 1, 1], bins=2)
        points = figure.axes[0].collections[-1].get_offsets()
        assert np.asarray(points).tolist() == [[0.1, 0.5], [0.9, 1.0]]

    def test_correlations_are_written_in_their_cells(self) -> None:
        figure = correlation_matrix(["a", "b"], [[1.0, -0.004], [float("nan"), 1.0]])
        assert [text.get_text() for text in figure.axes[0].texts] == ["1.00", "0.00", "-", "1.00"]

    def test_no_two_of_twelve_lines_look_alike(self) -> None:
        lines = _learning_curves(TWELVE).axes[0].get_lines()
        looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines}
        assert len(looks) == len(lines) == 12


class TestRefusals:
    def test_a_series_of_another_length_is_named(self) -> None:
        with pytest.raises(OptionError, match="series 'a' must have 2 values, got 1"):
            sweep_lines([0.0, 1.0], {"a": [1.0]}, x_label="x", y_label="y")
        with pytest.raises(OptionError, match="series 'a' must have 2 values, got 1"):
            grouped_bars(["x", "y"], {"a": Bars([1.0])}, x_label="words")

    def test_a_missing_interval(self) -> None:
        with pytest.raises(OptionError, match="an interval per value"):
            rate_points(["a", "b"], [0.1, 0.2], [(0.0, 0.2)])

    def test_a_matrix_of_another_shape(self) -> None:
        with pytest.raises(OptionError, match="2 rows and columns"):
            correlation_matrix(["a", "b"], np.eye(3))
