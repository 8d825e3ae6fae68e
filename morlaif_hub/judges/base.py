"""What a judge is, what it answers, and how to get one by its spec.

A spec is `kind:model`, with options after a question mark: `likelihood:embedded?temperature=0.2`.
Whatever changes a judge's answers is in its spec, its base's weights or the hash of its prompts;
these three identify it in the cache of verdicts and in manifests.
"""

import inspect
import json
import math
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, NamedTuple, Protocol, get_args, get_origin, runtime_checkable

from morlaif_hub.comparisons import Comparison
from morlaif_hub.errors import JudgeError, OptionError, PluginError
from morlaif_hub.hub.manifest import BaseIdentity
from morlaif_hub.plugins import Registry
from morlaif_hub.principles import Principle
from morlaif_hub.statistics import combine_orders

Progress = Callable[[int], None]
"""Told how many questions were just answered."""


class Question(NamedTuple):
    """Which response of a comparison is better on a principle?"""

    comparison: Comparison
    principle: Principle


@dataclass(frozen=True)
class Verdict:
    """A judge's answer to one question, in both orders.

    Attributes:
        probability_a_first: Probability, in [0, 1], that response A is better, when A was shown
            first.
        probability_a_second: The same when A was shown second. A judge without an order gives
            the same number twice.

    Raises:
        JudgeError: If one of them is no probability.
    """

    probability_a_first: float
    probability_a_second: float

    def __post_init__(self) -> None:
        for name in ("probability_a_first", "probability_a_second"):
            value = getattr(self, name)
            number = isinstance(value, Real) and not isinstance(value, bool)
            if not number or not 0.0 <= value <= 1.0:  # NaN is not either
                raise JudgeError(
                    f"{name} must be a number from 0 to 1, got {value!r}; that is no answer, and "
                    "must not become a label"
                )
            object.__setattr__(self, name, float(value))  # numpy's own types do not compare alike

    @property
    def probability_a(self) -> float:
        """The debiased probability that A is better: that of the mean log-odds of both orders."""
        return float(combine_orders(self.probability_a_first, self.probability_a_second))

    @property
    def tie(self) -> bool:
        """Whether neither response is better."""
        return self.probability_a == 0.5

    @property
    def flipped(self) -> bool:
        """Whether the two orders disagree on the better side."""
        return (self.probability_a_first - 0.5) * (self.probability_a_second - 0.5) < 0

    @property
    def first_share(self) -> float:
        """Share of the two answers that prefer the response shown first; a tie counts one half."""
        a_first, a_second = self.probability_a_first, self.probability_a_second
        return (_preference(a_first) + 1.0 - _preference(a_second)) / 2

    def swap(self) -> "Verdict":
        """Return the verdict on the same comparison with the responses in the other order."""
        return Verdict(1.0 - self.probability_a_second, 1.0 - self.probability_a_first)


def _preference(probability: float) -> float:
    """Return 1 above one half, 0 below, and 0.5 at it."""
    return 0.5 + 0.5 * math.copysign(1.0, probability - 0.5) if probability != 0.5 else 0.5


@dataclass(frozen=True)
class Unanswered:
    """Why a question got no verdict: it becomes no label, is reported, and is asked again.

    Attributes:
        reason: In a few words, the same for the same cause, since they are counted by it.
    """

    reason: str


Answer = Verdict | Unanswered
"""What a judge gives for one question."""


class Answered(NamedTuple):
    """The answer to one of many questions.

    Attributes:
        number: Which question, counted from 0 in the order in which they were drawn.
        answer: Its verdict, or why it has none.
    """

    number: int
    answer: Answer


@runtime_checkable
class Judge(Protocol):
    """Anything that answers questions."""

    @property
    def spec(self) -> str:
        """What `load_judge` takes to make the same judge again."""
        ...

    @property
    def orders(self) -> bool:
        """Whether the responses are shown in an order, so that both orders are asked for."""
        ...

    @property
    def base(self) -> BaseIdentity | None:
        """The identity of a local model's weights; None for a model behind an API."""
        ...

    @property
    def prompt_sha256(self) -> str:
        """Hash of the prompt templates."""
        ...

    def verdicts(
        self, questions: Sequence[Question], *, progress: Progress | None = None
    ) -> Sequence[Answer]:
        """Return one answer for each question, in order.

        A judge whose every question can be answered gives verdicts alone.

        Raises:
            JudgeError: If what it gets is no usable answer, or nothing more can be asked.
        """
        ...


@runtime_checkable
class RemoteJudge(Judge, Protocol):
    """A judge that answers many questions at once, and may be paid for."""

    @property
    def cost_usd(self) -> float:
        """What it has cost so far, in US dollars."""
        ...

    @property
    def questions_at_once(self) -> int:
        """How many questions to hand it between two saves of its answers."""
        ...


@runtime_checkable
class StreamingJudge(RemoteJudge, Protocol):
    """A remote judge that takes new questions while earlier ones are still open."""

    def stream(self, questions: Iterable[Question]) -> Generator[list[Answered]]:
        """Yield answers as they come, in any order, in lists that are not empty.

        Each question is answered once. It is open from when it is drawn until its answer is
        yielded, with all requests that it takes; at most `questions_at_once` are open. Questions
        are drawn on the caller's thread when the next list is asked for, so whoever saves a list
        before asking for the next one never has more to lose than the open questions. Closing
        the iterator cancels them.

        Args:
            questions: Any number, drawn when there is room for more.

        Raises:
            JudgeError: If nothing more can be asked; all that was open has been yielded before.
        """
        ...


JudgeFactory = Callable[..., Judge]
"""Takes what follows the colon of a spec, and options by keyword."""

JUDGES: Registry[JudgeFactory] = Registry("judge")


@JUDGES.register("local")
def _local(
    model: str,
    *,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    examples: int = 0,
    reasoning: int = 0,
) -> Judge:
    from morlaif_hub.judges.examples import Manner
    from morlaif_hub.judges.local import LocalJudge  # torch is only paid for when asked for

    return LocalJudge.load(model, dtype=dtype, manner=Manner(examples, reasoning))


@JUDGES.register("likelihood")
def _likelihood(
    model: str,
    *,
    temperature: float | None = None,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
) -> Judge:
    from morlaif_hub.judges.likelihood import LikelihoodJudge  # as above

    return LikelihoodJudge.load(model, temperature=temperature, dtype=dtype)


@JUDGES.register("openai")
def _openai(
    model: str,
    *,
    base_url: str = "",
    answers: Literal["auto", "logprobs", "structured", "samples"] = "auto",
    samples: int = 8,
    examples: int = 0,
    reasoning: int = 0,
    **server: Any,
) -> Judge:
    from morlaif_hub.judges.examples import Manner
    from morlaif_hub.judges.openai_judge import OpenAIJudge  # as above
    from morlaif_hub.judges.openai_server import server_of

    return OpenAIJudge(
        model, base_url, answers, samples, Manner(examples, reasoning), server_of(server)
    )


@JUDGES.register("single-objective")
def _single_objective(
    model: str, *, constitution: str = "single-objective", draw: int = 0, **options: Any
) -> Judge:
    from morlaif_hub.judges.single_objective import single_objective_judge

    if not model:
        raise OptionError(
            "judge 'single-objective' asks another one; name it, as in single-objective:likelihood:"
        )
    return single_objective_judge(
        load_judge(model, **options), constitution=constitution, draw=draw
    )


def load_judge(spec: str, **options: Any) -> Judge:
    """Return the judge of a spec.

    Args:
        spec: `local:MODEL`, `likelihood:MODEL`, `openai:MODEL`, `single-objective:SPEC` or a
            plugin's `package/name:...`, optionally with `?option=value&option=value`. No model, or
            `embedded`, means the embedded one.
        **options: For that kind of judge, such as `dtype="float32"`; they win over the spec's.

    Raises:
        UnknownNameError: If there is no such kind; the message has the nearest.
        PluginError: If a plugin fails to import, or what it makes is no judge.
        OptionError: If the kind does not take an option.
        ModelNotFoundError: If there is no such model.
    """
    kind, _, rest = spec.partition(":")
    model, _, query = rest.partition("?")
    factory = JUDGES.get(kind)
    options = {**_options(query, spec), **options}
    _check_options(kind, factory, options)
    judge = factory(model, **options)
    if not isinstance(judge, Judge):
        raise PluginError(
            f"judge {kind!r} of {JUDGES.package(kind)} made a {type(judge).__name__}, which lacks "
            "what a judge has: spec, orders, base, prompt_sha256 and verdicts()"
        )
    return judge


def spec_of(kind: str, model: str, **options: object) -> str:
    """Return the spec of a judge with these options; those that are None are left out.

    Example:
        >>> spec_of("likelihood", "", temperature=0.2, dtype=None)
        'likelihood:embedded?temperature=0.2'
    """
    query = "&".join(f"{name}={value}" for name, value in options.items() if value is not None)
    return f"{kind}:{model or 'embedded'}" + (f"?{query}" if query else "")


def ask(
    judge: Judge, questions: Sequence[Question], *, progress: Progress | None = None
) -> list[Answer]:
    """Return a judge's answers, having checked that it gave one for each question.

    Raises:
        JudgeError: If it did not.
    """
    answers = list(judge.verdicts(questions, progress=progress))
    if len(answers) != len(questions) or not all(isinstance(a, Answer) for a in answers):
        raise JudgeError(
            f"judge {judge.spec!r} must give one Verdict for each of {len(questions)} questions; "
            f"it gave {len(answers)} answers. This is a fault of the judge, not of the data"
        )
    return answers


def ask_all(
    judge: Judge, questions: Sequence[Question], *, progress: Progress | None = None
) -> list[Verdict]:
    """Return a judge's verdicts where none may be lacking.

    Raises:
        JudgeError: If it did not give one for each question; the message has the first reason.
    """
    verdicts = []
    for answer in ask(judge, questions, progress=progress):
        if isinstance(answer, Unanswered):
            raise JudgeError(f"judge {judge.spec!r} left a question unanswered: {answer.reason}")
        verdicts.append(answer)
    return verdicts


def in_questions(progress: Progress | None, *, questions: int, pieces: int) -> Progress | None:
    """Return a progress callback for `pieces` of work that together answer `questions`.

    A judge shares work between questions, so its pieces are not questions. The callback tells
    `progress` whole questions, which sum up to `questions` when all pieces are done.
    """
    if progress is None:
        return None
    done = told = 0

    def tell(more: int) -> None:
        nonlocal done, told
        done += more
        now = questions * done // pieces
        if now > told:
            progress(now - told)
            told = now

    return tell


def _options(query: str, spec: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for part in query.split("&") if query else []:
        name, equals, value = part.partition("=")
        if not equals:
            raise OptionError(
                f"judge {spec!r}: {part!r} is no option; write ?name=value&name=value"
            )
        options[name] = _number(value)
    return options


def _number(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _check_options(kind: str, factory: JudgeFactory, options: dict[str, Any]) -> None:
    parameters = list(inspect.signature(factory).parameters.values())
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise OptionError(
            f"judge {kind!r} takes no option {unknown[0]!r}; it takes: {', '.join(known) or 'none'}"
        )
    for parameter in parameters:
        accepted = get_args(parameter.annotation)
        chosen = options.get(parameter.name)
        literal = get_origin(parameter.annotation) is Literal
        if literal and parameter.name in options and chosen not in accepted:
            raise OptionError(
                f"judge {kind!r}: {parameter.name} must be one of "
                f"{', '.join(map(str, accepted))}, got {chosen!r}"
            )
