"""A quickstart's result as a page that needs nothing beside it.

Figures, style and text are inside the page, it runs no script, and its content security policy
lets it fetch nothing. Prompts and responses are a model's text, so every value is escaped unless
this module made it.
"""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from morlaif_hub.evaluation.closing import closing_table
from morlaif_hub.evaluation.findings import PARTS, Result, findings
from morlaif_hub.evaluation.wording import bounds, duration, listed, number, percent
from morlaif_hub.figures import (
    Bars,
    accuracy_bars,
    correlation_matrix,
    grouped_bars,
    learning_curves,
    svg,
    sweep_lines,
)
from morlaif_hub.principles import load_constitution

__all__ = ["closing_table", "findings", "render_report"]

# What an SVG file has and a page must not: what precedes the drawing, who made it, texts as
# comments, and style rules that would hold for the whole page.
_OF_A_FILE = re.compile(r"^.*?(?=<svg)|<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", re.S)
_REFERENCE = re.compile(r'(\sid="|href="#|url\(#)')


class _Drawing(NamedTuple):
    name: str
    figure: Figure
    description: str


def render_report(result: Result) -> str:
    """Return a quickstart's report: one HTML page that needs nothing beside it.

    Args:
        result: What `morlaif-hub quickstart --json` prints. Without a policy (null) the page ends
            with steering.

    Raises:
        jinja2.UndefinedError: If the result lacks a field that the page shows.
    """
    drawings = [*_measured_once(result), *_sweep(result), *_training(result)]
    return (
        _environment()
        .get_template("quickstart.html.jinja")
        .render(
            **result,
            meanings=_meanings(result),
            figures={drawing.name: _inline(drawing) for drawing in drawings},
            parts=PARTS,
        )
    )


def _meanings(result: Result) -> dict[str, str]:
    """Return what a high score means, in words, since the names of principles mislead."""
    known = {principle.name: principle.high_score for principle in load_constitution().principles}
    return {
        name: known.get(name, f"A high score means that the response does better on {name}.")
        for name in result["principles"]
    }


def _measured_once(result: Result) -> Iterator[_Drawing]:
    measured = {n: row for n, row in result["principles"].items() if row["pm_accuracy"] is not None}
    if measured:
        rows = measured.values()
        figure = accuracy_bars(
            list(measured),
            [row["pm_accuracy"] for row in rows],
            [tuple(row["pm_accuracy_interval"]) for row in rows],
            [row["length_baseline"] for row in rows],
        )
        yield _Drawing("accuracy", figure, "Held-out accuracy with intervals, per principle")
    correlations = result["details"]["correlations"]
    matrix = [[float("nan") if r is None else r for r in row] for row in correlations["matrix"]]
    figure = correlation_matrix(correlations["names"], matrix)
    yield _Drawing("correlations", figure, "Correlations between the scores of the principles")

    steering = result["steering"]
    changes = [row["chosen"] - row["random"] for row in steering.values()]
    # The bars' arms are the interval of the change itself.
    arms = [tuple(row["difference_interval"]) for row in steering.values()]
    figure = grouped_bars(
        list(steering),
        {"chosen minus random": Bars(changes, arms)},
        x_label="change in the share of answers that the judge finds worse",
    )
    yield _Drawing("steering", figure, "What choosing changes in the judge's view, with intervals")
    words = {
        label: Bars([row[key] for row in steering.values()])
        for label, key in (("at random", "words_random"), ("chosen", "words_chosen"))
    }
    figure = grouped_bars(list(steering), words, x_label="words per answer")
    yield _Drawing("steering-words", figure, "Words per answer, at random and chosen")


def _sweep(result: Result) -> Iterator[_Drawing]:
    sweep = result["details"]["sweep"]
    x_label = f"share of the weight on {sweep['to']}; the rest is on {sweep['from']}"
    for name, series, y_label in (
        ("sweep-words", {"chosen answers": sweep["words"]}, "words per answer"),
        ("sweep-scores", sweep["scores"], "calibrated score"),
    ):
        figure = sweep_lines(sweep["share"], series, x_label=x_label, y_label=y_label)
        yield _Drawing(name, figure, f"{y_label} of the chosen answers over the {x_label}")


def _training(result: Result) -> Iterator[_Drawing]:
    if result["policy"] is None:
        return
    curve = result["details"]["policy_curve"]
    scores = {name: [point["objectives"][name] for point in curve] for name in result["principles"]}
    reward = [point["reward"] for point in curve]
    if reward not in scores.values():  # with all weight on one principle, its score is the reward
        scores = {"reward": reward, **scores}
    for name, series, y_label in (
        ("policy-scores", scores, "calibrated score"),
        ("policy-kl", {"KL": [point["kl"] for point in curve]}, "KL per token (nats)"),
        ("policy-words", {"words": [point["words"] for point in curve]}, "words per answer"),
        (
            "policy-finished",
            {"finished": [point["finished"] for point in curve]},
            "answers that ended (share)",
        ),
    ):
        figure = learning_curves([point["step"] for point in curve], series, y_label=y_label)
        yield _Drawing(name, figure, f"{y_label} on held-out prompts over the steps of training")


def _inline(drawing: _Drawing) -> Markup:
    """Return a figure as an element of a page: described, and with ids of its own."""
    element = _OF_A_FILE.sub("", svg(drawing.figure))
    element = _REFERENCE.sub(rf"\1{drawing.name}-", element)
    described = f'<svg role="img" aria-label="{escape(drawing.description)}"'
    return Markup(element.replace("<svg", described, 1))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("morlaif_hub.evaluation"),
        undefined=StrictUndefined,
        autoescape=True,
        finalize=_printed,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        bounds=bounds, duration=duration, listed=listed, number=number, percent=percent
    )
    return environment


def _printed(value: Any) -> Any:
    """Refuse what has no one way to be written; the template must say it in words."""
    if value is None or isinstance(value, bool | float | list | dict):
        raise TypeError(f"a page cannot print {value!r}; the template must say it in words")
    return value
