"""Cards: the README of an artifact, rendered from its manifest alone.

A manifest is text from a stranger, so whatever a template prints is escaped for HTML and Markdown
unless a filter of this module made it. A field that a template names and the context lacks, or
that is null where a value is printed, is an error: a card never has silent gaps.
"""

import html
import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from morlaif_hub.hub.front_matter import front_matter, one_line
from morlaif_hub.hub.manifest import Manifest, PolicyManifest, to_plain
from morlaif_hub.hub.over_optimisation import signs

HUB = "https://huggingface.co"

_SHORT = 12  # characters of a hash or commit that a card shows
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_PLAIN_CODE = re.compile(r"[\w./@:+=, -]*[\w./@:+=,-]", re.ASCII)
_INLINE_MARKUP = re.compile(r"([\\`*_\[\]|~$])")
_BLOCK_MARKUP = re.compile(r"^([#+=-]|\d+[.)](?=\s|$))")
_BLANK_LINES = re.compile(r"\n{3,}")

# What the figures that our own stages draw show: a text for who cannot see it, and a caption.
_FIGURES = {
    "scores": (
        "histogram of raw scores",
        "How the raw scores of the responses in the held-out pairs are distributed. The dashed "
        "line is their mean.",
    ),
    "calibration": (
        "calibration curve",
        "How likely the response with the higher score, here A, is the better one by the labels, "
        "against the probability that the scores give for it, on the held-out pairs that are no "
        "ties; a larger point stands for more pairs. On the dashed line both are equal. The "
        "temperature was fitted on these pairs, so the figure shows what one number could not "
        "put right.",
    ),
    "judge_bias": (
        "rates of the judge's answers with their 95 % intervals",
        "What the judge's answers in both orders show. Of what is shown first it should prefer one "
        "half, which is the dashed line; the more often its choice is the same in both orders, the "
        "less the position matters. One bit of entropy is a coin flip.",
    ),
    "position_bias": (
        "position bias with its 95 % interval",
        "How much more often than half of the time the judge preferred the response shown first; "
        "at zero, the position makes no difference.",
    ),
    "correlations": (
        "correlations between the objectives",
        "Two objectives near 1 measure much the same, two near -1 pull against each other.",
    ),
    "weights": (
        "weights of the objectives with their 95 % intervals",
        "The fitted weights; their absolute values sum to 1. Of two responses that are alike "
        "otherwise, the preferred one has the higher score where the weight is positive, and the "
        "lower one where it is negative.",
    ),
    "objectives": (
        "scores over the steps of training",
        "Mean calibrated score of each objective on held-out prompts. Higher is better on its "
        "principle.",
    ),
    "kl": (
        "KL over the steps of training",
        "How far the policy moved from where it started: mean KL per token, on held-out prompts.",
    ),
    "answers": (
        "shares of answers over the steps of training",
        "Of the answers to held-out prompts: how many ended by themselves, how many say what no "
        "other one says, and how many a judge prefers to those before training, if one was asked; "
        "one half means no difference.",
    ),
    "words": (
        "length of the answers over the steps of training",
        "Mean number of words of an answer to a held-out prompt.",
    ),
}
# What a policy that learnt from dialogues has nothing to say of.
_OF_A_BANK = (
    *("objectives", "scalarizer", "weights", "curve", "kl", "max_kl", "delta_interval"),
    *("stopped_by", "watched"),
)
_METRICS = {
    "accuracy_equal_length": "accuracy where the lengths are nearly equal",
    "calibration_error": "calibration error",
}


def render_card(manifest: Manifest, *, figures: Sequence[str]) -> str:
    """Return the card of an artifact: YAML front matter, then Markdown.

    Args:
        manifest: Of any kind.
        figures: Names of the images in the artifact's `figures/` folder, in order.

    Raises:
        jinja2.UndefinedError: If the template names a field that the manifest does not have.
    """
    return render_context(manifest.kind, card_context(manifest, figures=figures))


def card_context(manifest: Manifest, *, figures: Sequence[str]) -> dict[str, Any]:
    """Return what a card is rendered from: the manifest's plain fields and what follows them."""
    context = to_plain(manifest)
    without = _OF_A_BANK if context.get("sft") else ()
    for name in ("files", "kind", "schema_version", *without):
        del context[name]
    if isinstance(manifest, PolicyManifest) and manifest.sft is None:
        context["signs"] = signs(manifest)
    header = yaml.safe_dump(
        front_matter(manifest), sort_keys=False, allow_unicode=True, width=float("inf")
    )
    return {**context, "figures": list(figures), "front_matter": Markup(header)}


def render_context(kind: str, context: dict[str, Any]) -> str:
    """Return the card of that kind of artifact for a context made by `card_context`."""
    card = _environment().get_template(f"{kind}.md.jinja").render(context)
    return _BLANK_LINES.sub("\n\n", card)


def escape_markdown(text: str) -> Markup:
    r"""Return a stranger's text as one line of Markdown that shows exactly that text.

    Example:
        >>> print(escape_markdown("<b> *is* | not"))
        &lt;b&gt; \*is\* \| not
    """
    line = html.escape(one_line(text), quote=False)
    line = _INLINE_MARKUP.sub(r"\\\1", line)
    return Markup(_BLOCK_MARKUP.sub(lambda found: _escape_last(found[1]), line))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("morlaif_hub.hub"),
        undefined=StrictUndefined,
        autoescape=True,
        finalize=_printed,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        alt=_alt,
        bounds=_bounds,
        caption=_caption,
        code=_code,
        literal=_literal,
        metric=lambda name: _METRICS.get(name, name),
        number=_number,
        percent=lambda share: Markup(f"{100 * float(share):.0f} %"),
        setting=lambda value: _code(value if isinstance(value, str) else _literal(value)),
        short=lambda sha256: _code(str(sha256)[:_SHORT]),
        url_path=lambda path: Markup(quote(str(path))),
    )
    environment.globals.update(model_link=_model_link, dataset_link=_dataset_link)
    return environment


def _printed(value: object) -> Markup:
    """Return what an expression of a template prints."""
    if isinstance(value, Markup):
        return value
    if value is None or isinstance(value, bool | list | dict):
        raise TypeError(f"a card cannot print {value!r}; the template must say it in words")
    if isinstance(value, int | float):
        return Markup(f"{value:g}" if isinstance(value, float) else f"{value}")
    return escape_markdown(str(value))


def _escape_last(text: str) -> str:
    return f"{text[:-1]}\\{text[-1]}"


def _number(value: float, digits: int = 3, sign: str = "-") -> Markup:
    return Markup(f"{float(value):{sign}.{digits}f}")


def _bounds(interval: Sequence[float]) -> Markup:
    return Markup(f"{float(interval[0]):.3f} to {float(interval[1]):.3f}")


def _alt(figure: str) -> str:
    name = PurePosixPath(figure).stem
    return _FIGURES[name][0] if name in _FIGURES else name.replace("_", " ")


def _caption(figure: str) -> str | None:
    name = PurePosixPath(figure).stem
    return _FIGURES[name][1] if name in _FIGURES else None


def _code(text: object) -> Markup:
    text = str(text)
    if _PLAIN_CODE.fullmatch(text):
        return Markup(f"`{text}`")
    return Markup(f"<code>{escape_markdown(text)}</code>")


def _literal(value: object) -> Markup:
    # JSON is Python too for the strings and numbers that the templates' code blocks hold, and it
    # keeps line breaks escaped, so that no value can end a code block. What acts on a terminal or
    # turns the direction of the text is escaped as well.
    text = json.dumps(value, ensure_ascii=False, default=str)
    return Markup("".join(c if c.isprintable() else _escape_code(c) for c in text))


def _escape_code(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _model_link(repo_id: str, revision: str | None) -> Markup:
    return _link(repo_id, revision, f"{HUB}/{repo_id}")


def _dataset_link(repo_id: str, revision: str | None) -> Markup:
    return _link(repo_id, revision, f"{HUB}/datasets/{repo_id}")


def _link(repo_id: str, revision: str | None, address: str) -> Markup:
    if not _REPO_ID.fullmatch(repo_id):
        return _code(repo_id)
    if revision is None:
        return Markup(f"[{escape_markdown(repo_id)}]({address})")
    tree = f"{address}/tree/{quote(str(revision), safe='')}"
    return Markup(f"[{escape_markdown(repo_id)}]({tree}) at {_code(revision[:_SHORT])}")
