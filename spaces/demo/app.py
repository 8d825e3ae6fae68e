"""The demo: score responses on every principle, and steer a policy with weights that you move.

On a machine: `python app.py --bank ./morlaif/bank`. On a Space: the variables `MORLAIF_BANK` and
`MORLAIF_MODEL`. Moving a weight ranks anew what was scored before; no model runs for it.
"""

import argparse
import functools
import html
import inspect
import math
import os
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from torch import Tensor

from morlaif_hub import (
    SCALARIZERS,
    LanguageModel,
    MorlaifHubError,
    PMBank,
    SamplingSettings,
    Steered,
    best_of_n,
    bind_scalarizer,
    load_policy,
)

HERE = Path(__file__).parent
DEFAULT_BANK = "./morlaif/bank"
MOST_CANDIDATES = 16
SMALLEST_AXIS = 2  # in standard deviations to each side

THEME = gr.themes.Default(
    primary_hue="blue",
    neutral_hue="slate",
    font=["system-ui", "sans-serif"],  # names of local fonts: nothing is fetched
    font_mono=["monospace"],
).set(  # darker than the theme's own, which are too light to read
    block_title_text_color="*neutral_700",
    body_text_color_subdued="*neutral_600",
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_hover="*primary_700",
    color_accent="*primary_600",
    input_placeholder_color="*neutral_500",
)

LAUNCH: dict[str, Any] = {
    "theme": THEME,
    "css_paths": HERE / "style.css",
    "footer_links": [],
    "run_history": False,  # else the browser keeps what people typed
    "ssr_mode": False,  # would need Node
}

EXAMPLES = tomllib.loads((HERE / "examples.toml").read_text(encoding="utf-8"))

_templates = Environment(
    loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True
)
# U+2212 is as wide as the plus sign and is read out as a minus.
_templates.filters["signed"] = lambda x: f"{x + 0.0:+.2f}".replace("-", "\N{MINUS SIGN}")
DRAW: Any = _templates.get_template("results.html.jinja").module


class Objective(NamedTuple):
    """A column of the bank, in words.

    Attributes:
        name: As weights and scores name it.
        high_score: What a high score means.
        note: What has to be said beside the name, such as `unproven`; empty if it is fit.
        reason: What the note rests on.
    """

    name: str
    high_score: str
    note: str
    reason: str


class Scored(NamedTuple):
    """What the first tab keeps: the letters of the responses and their scores.

    Attributes:
        letters: `A`, `B` or both.
        scores: Calibrated, shape (responses, objectives).
    """

    letters: list[str]
    scores: Tensor


class Response(NamedTuple):
    """A scored response with its scalarized reward, as it is drawn."""

    letter: str
    reward: float
    scores: dict[str, float]


class Demo:
    """What the buttons and sliders call. Results are HTML; every text in it is escaped."""

    def __init__(self, bank: PMBank, policy: LanguageModel) -> None:
        self.bank, self.policy = bank, policy
        self.objectives = _objectives(bank)

    def score(
        self, prompt: str, first: str, second: str, scalarizer: str, *weights: float
    ) -> tuple[Scored, str]:
        """Score one or two responses."""
        written = {letter: text for letter, text in zip("AB", (first, second), strict=True)}
        given = {letter: text.strip() for letter, text in written.items() if text.strip()}
        if not prompt.strip() or not given:
            raise _missing("Write a prompt and at least one response.")
        scores = self.bank.score([prompt.strip()] * len(given), list(given.values()))
        scored = Scored(list(given), scores)
        return scored, self.compare(scored, scalarizer, *weights)

    def compare(self, scored: Scored, scalarizer: str, *weights: float) -> str:
        """Draw scored responses, and which one wins with these weights."""
        shares = self._shares(weights)
        combine = bind_scalarizer(scalarizer, self.bank.objectives, weights=shares)
        responses = [
            Response(letter, reward, dict(zip(self.bank.objectives, row, strict=True)))
            for letter, reward, row in zip(
                scored.letters, combine(scored.scores).tolist(), scored.scores.tolist(), strict=True
            )
        ]
        drawn: str = DRAW.comparison(
            objectives=self.objectives,
            responses=responses,
            ahead=_ahead(responses),
            axis=_axis(response.scores for response in responses),
            scalarizer=scalarizer,
        )
        return drawn

    def steer(
        self, prompt: str, candidates: float, tokens: float, seed: float, *ranking: Any
    ) -> tuple[Steered, str]:
        """Sample candidates and rank them; `ranking` is the scalarizer and the weights."""
        if not prompt.strip():
            raise _missing("Write a prompt.")
        scalarizer, *weights = ranking
        steered = best_of_n(
            prompt.strip(),
            bank=self.bank,
            policy=self.policy,
            n=int(candidates),
            weights=self._shares(weights),
            scalarizer=scalarizer,
            sampling=SamplingSettings(max_new_tokens=int(tokens or 0), seed=int(seed or 0)),
        )
        return steered, self.candidates(steered, scalarizer, *weights)

    def candidates(self, steered: Steered, scalarizer: str, *weights: float) -> str:
        """Draw sampled candidates, the best with these weights first."""
        ranked = steered.with_weights(self._shares(weights), scalarizer=scalarizer)
        drawn: str = DRAW.candidates(
            objectives=self.objectives,
            candidates=ranked.candidates,
            # A number that stays with a candidate when the order changes.
            numbers={c.text: i for i, c in enumerate(steered.candidates, start=1)},
            axis=_axis(candidate.scores for candidate in ranked.candidates),
            scalarizer=scalarizer,
        )
        return drawn

    def rank(
        self, scored: Scored | None, steered: Steered | None, scalarizer: str, *weights: float
    ) -> tuple[Any, Any]:
        """Draw both tabs anew with other weights; nothing is sampled or scored."""
        return (
            gr.skip() if scored is None else self.compare(scored, scalarizer, *weights),
            gr.skip() if steered is None else self.candidates(steered, scalarizer, *weights),
        )

    def _shares(self, weights: Sequence[float]) -> Mapping[str, float]:
        """Return weights that sum to 1, as the defaults of the library do, unless all are 0."""
        total = math.fsum(weights) or 1.0
        return {n: w / total for n, w in zip(self.bank.objectives, weights, strict=True)}


def build(bank: PMBank, policy: LanguageModel, *, sources: Sequence[str]) -> gr.Blocks:
    """Return the page for a bank and a policy; `LAUNCH` says how it is launched.

    Args:
        bank: Scores the responses.
        policy: Samples the candidates.
        sources: What the bank was called when it was loaded.
    """
    demo = Demo(bank, policy)
    heading = DRAW.heading(bank=", ".join(sources), size=len(bank.members), policy=policy.name)
    with gr.Blocks(title="morlaif-hub demo", analytics_enabled=False) as blocks:
        gr.HTML(heading, apply_default_css=False)
        with gr.Row(elem_classes="page"):
            with gr.Column(scale=3, min_width=430):
                with gr.Tab("Scores"):
                    scores = _scores_tab()
                with gr.Tab("Steered generation"):
                    steering = _steering_tab()
            with gr.Column(scale=1, min_width=230, elem_classes="ranking"):
                ranking = _ranking_panel(demo.objectives)
        _connect(demo, scores, steering, ranking)
    return blocks


class _Tab(NamedTuple):
    """What a tab asks for, its button, what it keeps between events, and where it draws."""

    inputs: list[Any]
    button: Any
    kept: Any
    results: Any


def _scores_tab() -> _Tab:
    prompt = gr.Textbox(label="Prompt", lines=2, placeholder="What a person asks or says")
    with gr.Row():
        first = gr.Textbox(label="Response A", lines=3, min_width=200)
        second = gr.Textbox(
            label="Response B", lines=3, min_width=200, placeholder="Optional, to compare"
        )
    button = gr.Button("Score", variant="primary")
    results = gr.HTML(
        DRAW.empty(text="Scores appear here."), apply_default_css=False, elem_id="comparison"
    )
    _examples([list(example.values()) for example in EXAMPLES["scores"]], [prompt, first, second])
    return _Tab([prompt, first, second], button, gr.State(), results)


def _steering_tab() -> _Tab:
    prompt = gr.Textbox(label="Prompt", lines=2, placeholder="What the policy should answer")
    with gr.Row():
        candidates = gr.Slider(
            2, MOST_CANDIDATES, value=6, step=1, label="Candidates", min_width=180, buttons=[]
        )
        tokens = gr.Number(
            96, minimum=1, maximum=512, precision=0, label="Token limit", min_width=90
        )
        seed = gr.Number(0, precision=0, label="Seed", min_width=90)
    button = gr.Button("Generate", variant="primary")
    results = gr.HTML(
        DRAW.empty(text="Candidates appear here, the best first."),
        apply_default_css=False,
        elem_id="candidates",
    )
    _examples([[text] for text in EXAMPLES["steering"]], [prompt])
    return _Tab([prompt, candidates, tokens, seed], button, gr.State(), results)


def _examples(examples: list[list[str]], inputs: list[Any]) -> None:
    gr.Examples(examples, inputs, cache_examples=False)


def _ranking_panel(objectives: Sequence[Objective]) -> list[Any]:
    """Return the scalarizer's dropdown and one slider per objective."""
    names = SCALARIZERS.names()
    scalarizer = gr.Dropdown(names, value=names[0], label="Scalarizer", info=_describe(names[0]))
    scalarizer.change(
        _shown(lambda name: gr.Dropdown(info=_describe(name))),
        scalarizer,
        scalarizer,
        show_progress="hidden",
        api_visibility="undocumented",
    )
    gr.HTML(DRAW.weights_heading(), apply_default_css=False)
    sliders = []
    for objective in objectives:
        with gr.Group(elem_classes="weight"):
            sliders.append(
                gr.Slider(0.0, 2.0, value=1.0, step=0.1, label=objective.name, buttons=[])
            )
            gr.HTML(DRAW.direction(objective=objective), apply_default_css=False)
    return [scalarizer, *sliders]


def _connect(demo: Demo, scores: _Tab, steering: _Tab, ranking: list[Any]) -> None:
    """Let the buttons run the models, one at a time, and the ranking only draw."""
    for tab, handler, name in ((scores, demo.score, "score"), (steering, demo.steer, "steer")):
        tab.button.click(
            _shown(handler),
            [*tab.inputs, *ranking],
            [tab.kept, tab.results],
            api_name=name,
            concurrency_id="models",
            concurrency_limit=1,
            trigger_mode="once",
        )
    gr.on(
        [component.change for component in ranking],
        _shown(demo.rank),
        [scores.kept, steering.kept, *ranking],
        [scores.results, steering.results],
        api_name="rank",
        show_progress="hidden",
        trigger_mode="always_last",
    )


def _shown(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Return a handler that shows an error of ours as one line; a bug keeps its traceback."""

    @functools.wraps(handler)
    def handle(*values: Any) -> Any:
        try:
            return handler(*values)
        except MorlaifHubError as error:
            message = html.escape(str(error))  # it may quote what a stranger wrote
            raise gr.Error(message, print_exception=False) from error

    return handle


def _missing(message: str) -> Exception:
    error: Exception = gr.Error(message, title="Nothing to do yet", print_exception=False)
    return error


def _objectives(bank: PMBank) -> list[Objective]:
    """Return what to say about each column: what is not known to be fit says so first."""
    described = []
    for member in bank.members:
        validation = member.manifest.validation if member.manifest else None
        note, reason = "not validated", "It was not tried on the principle's probes."
        if validation is not None:
            low, high = validation.interval
            note = "" if validation.verdict == "fit" else validation.verdict
            reason = (
                f"Right on {validation.accuracy:.0%} of {validation.n} probes "
                f"(95 % interval {low:.0%} to {high:.0%})."
            )
        high_score = bank.high_scores[member.objective]
        described.append(Objective(member.objective, high_score, note, reason))
    return described


def _describe(scalarizer: str) -> str:
    """Return the first line of a scalarizer's documentation."""
    return (inspect.getdoc(SCALARIZERS.get(scalarizer)) or "").partition("\n")[0]


def _ahead(responses: Sequence[Response]) -> dict[str, list[str]]:
    """Return, by the letter of each of two responses, on which objectives it is the better one."""
    if len(responses) < 2:
        return {}
    one, two = responses
    return {
        one.letter: [name for name, score in one.scores.items() if score > two.scores[name]],
        two.letter: [name for name, score in two.scores.items() if score > one.scores[name]],
    }


def _axis(scores: Iterable[Mapping[str, float]]) -> int:
    """Return how far bars may reach to each side, in standard deviations."""
    farthest = max(abs(score) for by_objective in scores for score in by_objective.values())
    return max(SMALLEST_AXIS, math.ceil(farthest))


def _arguments() -> tuple[list[str], str | None]:
    """Return the bank's sources and the policy's name, from the arguments or the environment."""
    parser = argparse.ArgumentParser(description="Score responses and steer a policy, in a browser")
    parser.add_argument(
        "--bank",
        action="append",
        metavar="SOURCE",
        help="bank or preference model: a folder or repo id; repeats (MORLAIF_BANK, with commas)",
    )
    parser.add_argument(
        "--model", metavar="M", help="policy; without it the embedded model (MORLAIF_MODEL)"
    )
    given = parser.parse_args()
    named = os.environ.get("MORLAIF_BANK", "").split(",")
    sources = given.bank or [name.strip() for name in named if name.strip()]
    if not sources and not Path(DEFAULT_BANK).exists():
        parser.error(f"name a bank with --bank or MORLAIF_BANK; there is no {DEFAULT_BANK}")
    return sources or [DEFAULT_BANK], given.model or os.environ.get("MORLAIF_MODEL") or None


def main() -> None:
    """Load the models and serve the page."""
    sources, model = _arguments()
    try:
        bank, policy = PMBank.from_pretrained(sources), load_policy(model)
    except MorlaifHubError as error:
        sys.exit(f"Error: {error}")
    build(bank, policy, sources=sources).launch(**LAUNCH)


if __name__ == "__main__":
    main()
