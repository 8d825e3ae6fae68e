"""The judge behind a server, over real HTTP: every fault ends in a right label or a report."""

import math
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai_server import Body, Reply, completion, failure, serving

from morlaif_hub.comparisons import Comparison
from morlaif_hub.errors import JudgeError, OptionError
from morlaif_hub.judges import limits, openai_client
from morlaif_hub.judges.base import (
    Answer,
    Answered,
    Question,
    StreamingJudge,
    Unanswered,
    Verdict,
    load_judge,
)
from morlaif_hub.judges.examples import Manner
from morlaif_hub.judges.limits import Bucket, retry_after
from morlaif_hub.judges.openai_judge import OpenAIJudge
from morlaif_hub.judges.openai_requests import Asking, letter_of, read_answer, request_body
from morlaif_hub.judges.prices import Price, Usage, price_of
from morlaif_hub.principles import load_constitution

PRINCIPLES = load_constitution("morlaif-12").principles
LETTERS = {" A": math.log(0.6), "a": math.log(0.1), "ĠB": math.log(0.2), "The": math.log(0.05)}
KEY = "sk-very-secret"


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MORLAIF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setattr(limits, "FIRST_BACKOFF", 0.005)


def questions(count: int) -> list[Question]:
    return [
        Question(Comparison.from_choice(f"Why {i}?", f"good {i}", f"bad {i}"), PRINCIPLES[0])
        for i in range(count)
    ]


def options_of(body: Body) -> tuple[str, str]:
    text = body["messages"][-1]["content"]
    found = re.search(r"Option A: (.*?)\n\nOption B: (.*?)\n\nWhich", text, re.DOTALL)
    assert found
    return found[1], found[2]


def probe(body: Body) -> bool:
    return "capital of France" in body["messages"][-1]["content"]


def fair(body: Body) -> Body:
    """Answer that the option with `good` in it (or Paris) is better, as probable as 0.8."""
    first = any(word in options_of(body)[0] for word in ("good", "Paris"))
    better, worse = ("A", "B") if first else ("B", "A")
    if body.get("logprobs"):
        return completion(better, top={better: math.log(0.8), worse: math.log(0.2)})
    if "response_format" in body:
        return completion(f'{{"answer": "{better}"}}')
    return completion(*[better] * body.get("n", 1))


def judge_at(url: str, **options: Any) -> OpenAIJudge:
    judge = load_judge("openai:m", base_url=url, **options)
    assert isinstance(judge, OpenAIJudge)
    return judge


def prefers_good(question: Question, answer: Answer) -> float:
    assert isinstance(answer, Verdict)
    good_is_a = "good" in question.comparison.response_a
    return answer.probability_a if good_is_a else 1 - answer.probability_a


def until_it_stops(judge: OpenAIJudge) -> tuple[list[Answered], JudgeError]:
    """Return what a judge answers of 1,000 questions before it gives up, and why."""
    got: list[Answered] = []
    try:
        for answered in judge.stream(questions(1000)):
            got += answered
    except JudgeError as error:
        return got, error
    raise AssertionError("it did not stop")


def check_right(asked: list[Question], answers: list[Answer], share: float = 0.8) -> None:
    assert len(answers) == len(asked)
    for question, answer in zip(asked, answers, strict=True):
        assert prefers_good(question, answer) == pytest.approx(share)


def test_a_consistent_judge_is_read_from_log_probabilities() -> None:
    with serving(lambda body, _: fair(body)) as server:
        judge = judge_at(server.url)
        assert isinstance(judge, StreamingJudge)
        asked = questions(20)
        answers = judge.verdicts(asked)
    check_right(asked, answers)
    assert judge.spec == f"openai:m?base_url={server.url}&answers=logprobs"
    assert judge.cache_spec == f"openai:m?base_url={server.url}"
    assert load_judge(judge.cache_spec).spec == judge.spec  # what was found out is kept
    assert sum(map(probe, server.got)) == 1
    assert all(key == f"Bearer {KEY}" for key in server.keys)
    assert KEY not in repr(judge) + judge.spec


def test_a_judge_that_always_prefers_the_first_option_comes_out_at_a_tie() -> None:
    first = completion("A", top={"A": math.log(0.9), "B": math.log(0.1)})
    with serving(lambda *_: first) as server:
        answers = judge_at(server.url).verdicts(questions(5))
    assert all(isinstance(a, Verdict) and a.tie and a.first_share == 1.0 for a in answers)


@pytest.mark.parametrize(
    ("takes", "method", "share"),
    [({"response_format"}, "structured", 2 / 3), ({"n"}, "samples", 0.9), (set(), "samples", 0.9)],
)
def test_what_the_server_cannot_do_is_found_out_and_the_next_way_taken(
    takes: set[str], method: str, share: float
) -> None:
    def answer(body: Body, _: int) -> Body | Reply:
        if "logprobs" in body:
            return completion("A")  # ignored
        if "response_format" in body and "response_format" not in takes:
            return completion("A")
        if body.get("n", 1) > 1 and "n" not in takes:
            return fair({**body, "n": 1})  # ignored: one choice
        return fair(body)

    with serving(answer) as server:
        judge = judge_at(server.url)
        asked = questions(3)
        check_right(asked, judge.verdicts(asked), share)
    assert judge.asking().method == method
    if method == "samples":
        rest = [body for body in server.got if not probe(body)]
        assert len(rest) == (6 if "n" in takes else 6 * 8)  # choices are counted


def test_new_parameter_names_are_learnt_once() -> None:
    def answer(body: Body, _: int) -> Body | Reply:
        if "max_tokens" in body:
            return failure(400, "Unsupported parameter: 'max_tokens'.", "unsupported_parameter")
        if "temperature" in body:
            return failure(400, "Unsupported value: 'temperature' must be 1.", "unsupported_value")
        if "logprobs" in body:
            return failure(400, "logprobs are not supported with reasoning models")
        if body["max_completion_tokens"] < 1000:
            return completion("", finish="length")
        return fair(body)

    with serving(answer) as server:
        judge = judge_at(server.url)
        asked = questions(3)
        check_right(asked, judge.verdicts(asked), 2 / 3)
    rest = [body for body in server.got if not probe(body)]
    assert len(rest) == 6
    assert judge.asking().dialect.thinking


@pytest.mark.parametrize(
    "fault",
    [
        failure(429, "slow down", retry_after="0.05"),
        failure(429, "slow down", retry_after_ms="20"),
        failure(429, "slow down"),
        failure(500, "oops"),
        failure(503, "oops"),
        failure(408, "oops"),
        Reply(completion("A"), cut=True),
        Reply(b'{"choices": [{'),
        Reply(b"[]"),
        Reply({"choices": []}),
        Reply(completion("A")),
        Reply(completion("A", top={"A": math.nan})),
        Reply(completion("A", top={"A": -0.1}), delay=1.0),
    ],
    ids=str,
)
def test_a_fault_that_does_not_last_changes_no_label(fault: Reply) -> None:
    def answer(body: Body, number: int) -> Body | Reply:
        return fair(body) if probe(body) or number % 3 else fault

    with serving(answer) as server:
        asked = questions(6)
        answers = judge_at(server.url, timeout=0.5).verdicts(asked)
    check_right(asked, answers)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (failure(400, "bad", "context_length_exceeded"), "HTTP 400: context_length_exceeded"),
        (failure(400, "bad", "content_filter"), "refused"),
        (Reply(completion("", finish="content_filter")), "refused"),
        (Reply(completion("I", top={"I": -0.1, "The": -3.0})), "no letter in the answer"),
        (failure(500, "oops"), "HTTP 500"),
        (Reply(b"no"), "the server's answer is no JSON"),
        (Reply(completion("A")), "the server's answer has no log-probabilities"),
    ],
    ids=str,
)
def test_a_question_that_cannot_be_answered_is_no_label(fault: Reply, reason: str) -> None:
    def answer(body: Body, _: int) -> Body | Reply:
        return fault if "Why 2?" in body["messages"][-1]["content"] else fair(body)

    with serving(answer) as server:
        asked = questions(5)
        answers = judge_at(server.url).verdicts(asked)
    assert answers.pop(2) == Unanswered(reason)
    del asked[2]
    check_right(asked, answers)


@pytest.mark.parametrize(
    "fault",
    [
        failure(401, f"Incorrect API key provided: {KEY}."),
        failure(404, "The model `m` does not exist", "model_not_found"),
        failure(403, "no access"),
        failure(429, "pay first", "insufficient_quota"),
        failure(429, "later", retry_after="9999"),
    ],
    ids=str,
)
def test_what_every_question_would_meet_is_one_error_at_once(fault: Reply) -> None:
    with serving(lambda *_: fault) as server, pytest.raises(JudgeError) as error:
        judge_at(server.url).verdicts(questions(50))
    assert len(server.got) == 1
    assert KEY not in str(error.value)


def test_a_server_that_is_not_there_is_one_error_at_once() -> None:
    with pytest.raises(JudgeError, match="cannot be reached"):
        judge_at("http://127.0.0.1:9/v1").verdicts(questions(3))


def test_a_server_that_breaks_down_stops_the_run_and_what_was_answered_is_there() -> None:
    def answer(body: Body, number: int) -> Body | Reply:
        return fair(body) if number < 41 else failure(500, "oops")

    with serving(answer) as server:
        got, error = until_it_stops(judge_at(server.url, concurrency=4))
    assert "failed in a row" in str(error)
    assert sum(isinstance(answered.answer, Verdict) for answered in got) >= 18
    assert len(server.got) < 200


def test_no_more_requests_at_once_than_allowed_and_questions_are_drawn_when_needed() -> None:
    drawn = 0

    def lazily() -> Iterator[Question]:
        nonlocal drawn
        for question in questions(60):
            drawn += 1
            yield question

    def slowly(body: Body, _: int) -> Reply:
        return Reply(fair(body), delay=0.02)

    with serving(slowly) as server:
        judge = judge_at(server.url, concurrency=8)
        done = 0
        for answered in judge.stream(lazily()):
            assert drawn - done <= judge.questions_at_once
            done += len(answered)
    assert done == 60
    assert server.most_at_once == 8


def test_leaving_early_cancels_what_is_open() -> None:
    with serving(lambda body, _: Reply(fair(body), delay=0 if probe(body) else 0.05)) as server:
        stream = judge_at(server.url, concurrency=2).stream(questions(100))
        next(stream)
        stream.close()
        assert len(server.got) <= 5


@pytest.mark.parametrize("stated", ["flag", "header"])
def test_a_limit_of_requests_is_kept_and_used(stated: str) -> None:
    rate = 50.0
    headers = {"x-ratelimit-limit-requests": str(rate * 60)} if stated == "header" else {}
    times: list[float] = []

    def answer(body: Body, _: int) -> Reply:
        times.append(time.monotonic())
        return Reply(fair(body), headers=headers)

    options = {"rpm": rate * 60} if stated == "flag" else {}
    with serving(answer) as server:
        judge_at(server.url, **options).verdicts(questions(50))
    # After the first second's worth, which may go at once.
    reached = (len(times) - 1 - rate) / (times[-1] - times[0])
    assert reached <= rate * 1.1
    assert len(times) / (times[-1] - times[0]) >= 0.9 * rate


def test_a_pause_that_the_server_asks_for_holds_for_all_requests() -> None:
    times: list[float] = []

    def answer(body: Body, number: int) -> Body | Reply:
        times.append(time.monotonic())
        return failure(429, "wait", retry_after="0.4") if number == 9 else fair(body)

    with serving(answer) as server:
        judge_at(server.url, concurrency=2).verdicts(questions(10))
    longest = max(later - earlier for earlier, later in pairwise(times))
    assert 0.35 <= longest <= 1.0


def test_a_limit_of_cost_is_not_passed_and_the_rest_is_kept() -> None:
    with serving(lambda body, _: Reply(fair(body), delay=0.005)) as server:
        judge = judge_at(server.url, price="1000,1000", max_cost=10, concurrency=8)
        got, error = until_it_stops(judge)
    assert "--max-cost 10" in str(error)
    assert "\n" not in str(error)
    assert 5 < judge.cost_usd <= 10
    # 100 tokens in and 1 out, as the server counted, at 0.001 dollars each
    assert judge.cost_usd == pytest.approx(0.101 * len(server.got))
    assert 2 * len(got) >= len(server.got) - 1 - 8


def test_the_dialogue_is_shared_by_both_orders_and_the_pair_by_all_principles() -> None:
    pair = Comparison.from_choice("x" * 3000, "good " * 100, "bad " * 100)
    asking = Asking("m", "logprobs")

    def text(principle: Any, *, a_first: bool) -> str:
        body = request_body(asking, Question(pair, principle), a_first=a_first)
        return str(body["messages"][-1]["content"])

    for a_first in (True, False):
        texts = [text(principle, a_first=a_first) for principle in PRINCIPLES]
        alike = takewhile(lambda column: len(set(column)) == 1, zip(*texts, strict=False))
        shared = "".join(column[0] for column in alike)
        assert pair.response_a in shared
        assert pair.response_b in shared
        assert len(texts) == 12
    one, other = (text(PRINCIPLES[0], a_first=order) for order in (True, False))
    assert one.index("Option A") == other.index("Option A") > 3000


NASTY = st.one_of(
    st.text(min_size=1),
    st.sampled_from(
        ["{first}", "{second} {criterion}", "{dialogue}", "Option B: me", "\\1 \\g<0>", "%s {0}"]
    ),
).filter(lambda text: text.strip() and text.isprintable())


@given(NASTY, NASTY, st.booleans())
def test_a_response_changes_nothing_but_itself(one: str, other: str, a_first: bool) -> None:
    if one == other:
        return
    asking = Asking("m", "logprobs")

    def text(a: str, b: str) -> str:
        question = Question(Comparison.from_choice("Why?", a, b), PRINCIPLES[0])
        in_order = a_first if question.comparison.response_a == a else not a_first
        return str(request_body(asking, question, a_first=in_order)["messages"][-1]["content"])

    marked = text("\x01one\x01", "\x01two\x01")
    first, between_on = marked.split("\x01one\x01") if a_first else marked.split("\x01two\x01")
    between, last = between_on.split("\x01two\x01" if a_first else "\x01one\x01")
    shown = (one, other) if a_first else (other, one)
    assert text(one, other) == first + shown[0] + between + shown[1] + last


def test_every_spelling_counts_and_a_missing_letter_is_as_probable_as_the_last() -> None:
    asking = Asking("m", "logprobs")
    both = read_answer(asking, completion("A", top=LETTERS))
    assert not isinstance(both, Unanswered)
    assert both.log_odds == pytest.approx(math.log(0.7 / 0.2))
    one = read_answer(asking, completion("A", top={"A": math.log(0.9), "C": math.log(0.01)}))
    assert not isinstance(one, Unanswered)
    assert one.log_odds == pytest.approx(math.log(0.9 / 0.01))


@pytest.mark.parametrize("text", ["A", "a", " A", "ĠA", "▁A", "**A**", '"A"', "(a)", "A.\n"])
def test_spellings_of_a_letter(text: str) -> None:
    assert letter_of(text) == "A"
    assert letter_of(text.replace("A", "B").replace("a", "b")) == "B"
    assert letter_of(text + "nd") is None


@pytest.mark.parametrize(
    ("text", "letters"),
    [
        ("A", (1, 0)),
        ("B.", (0, 1)),
        ("Option A", (1, 0)),
        ("**Answer: B**", (0, 1)),
        ("Answer: Option B: since", (0, 1)),
        ("Anger", (0, 0)),
        ("Both", (0, 0)),
        ("The answer is B.", (0, 1)),
        ("the answer is: **A**", (1, 0)),
        ("A is better", (1, 0)),
        ("A: a good reply", (1, 0)),
        ("Option A gives more", (1, 0)),
        ("A good reply would be", (0, 0)),  # an article
        ("The answer is a matter of taste", (0, 0)),
        ("The answer", (0, 0)),
        ("The first, A", (0, 0)),  # only a letter at the start is an answer
        ("", (0, 0)),
    ],
)
def test_letters_in_answers_are_counted(text: str, letters: tuple[int, int]) -> None:
    reading = read_answer(Asking("m", "samples"), completion(text, "A", "A"))
    assert not isinstance(reading, Unanswered)
    assert (reading.first - 2, reading.second) == letters
    assert reading.choices == 3


def test_talk_in_place_of_the_form_that_was_asked_for_is_no_thinking() -> None:
    def rambling(*_: object) -> Body:
        return completion("Paris is the capital of", finish="length")

    with serving(rambling) as server:
        asking = judge_at(server.url).asking()
        assert (asking.method, asking.dialect.thinking) == ("samples", False)
        assert max(body["max_tokens"] for body in server.got) < 100


def test_with_reasoning_the_letter_is_the_last_that_is_answered() -> None:
    asking = Asking("m", "samples", manner=Manner(reasoning=64))
    said = "Option A is short. Answer: A? No.\nAnswer: B"
    reading = read_answer(asking, completion(said, "B, no answer"))
    assert not isinstance(reading, Unanswered)
    assert (reading.first, reading.second, reading.choices) == (0, 1, 2)


def test_how_long_to_wait_is_read_as_seconds_or_as_a_date() -> None:
    now = datetime(2026, 11, 27, 12, 0, 0, tzinfo=UTC)
    assert retry_after({"retry-after": "1.5"}) == 1.5
    assert retry_after({"retry-after": "Fri, 27 Nov 2026 12:00:10 GMT"}, now=now) == 10.0
    assert retry_after({"retry-after": "Fri, 27 Nov 2026 11:00:10 GMT"}, now=now) == 0.0
    for nothing in ({}, {"retry-after": "soon"}, {"retry-after": "-1"}, {"retry-after": "nan"}):
        assert retry_after(nothing) is None


@given(st.floats(1, 1e5), st.lists(st.floats(0, 5), min_size=1, max_size=50))
def test_a_bucket_never_gives_more_than_its_rate(rate: float, gaps: list[float]) -> None:
    bucket = Bucket(rate, filled=0.0)
    now, due = 0.0, []
    for gap in gaps:
        now += gap
        due.append(now + bucket.take(1, now))
    for i, start in enumerate(due):
        for j in range(i, len(due)):
            allowed = max(1.0, rate / 60) + 1 + rate / 60 * (due[j] - start)
            assert j - i + 1 <= allowed + 1e-6


def test_prices() -> None:
    assert price_of("gpt-4o-mini-2024-07-18") == price_of("gpt-4o-mini")
    assert price_of("gpt-4o-mini") is not None
    assert price_of("unknown") is None
    price = price_of("unknown", "1,0.5,2")
    assert price == Price(1, 0.5, 2)
    assert price.of(Usage(3_000_000, 1_000_000, 500_000)) == 2 + 0.5 + 1


def test_own_prices_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text('[prices]\n"m" = { input = 1, output = 2 }\n')
    assert price_of("m", str(path)) == Price(1, 1, 2)
    assert price_of("gpt-4o", str(path)) == price_of("gpt-4o")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_url": "ftp://x"}, "base_url"),
        ({"base_url": "http://me:secret@x/v1"}, "no user"),
        ({"concurrency": 0}, "concurrency"),
        ({"rpm": -1}, "rpm"),
        ({"price": "cheap"}, "price"),
        ({"max_cost": 1}, "price of 'm'"),
        ({"samples": 0}, "samples"),
        ({"answers": "guess"}, "answers"),
        ({"colour": 1}, "colour"),
    ],
)
def test_an_option_that_is_not_accepted_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message) as error:
        load_judge("openai:m", **options)
    assert "secret" not in str(error.value)


def test_openai_itself_needs_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    judge = load_judge("openai:gpt-4o-mini")
    with pytest.raises(OptionError, match="OPENAI_API_KEY"):
        judge.verdicts(questions(1))


def test_attempts_are_bounded() -> None:
    def answer(body: Body, _: int) -> Body | Reply:
        return fair(body) if probe(body) else failure(429, "slow down")

    with serving(answer) as server:
        answers = judge_at(server.url).verdicts(questions(1))
    assert answers == [Unanswered("HTTP 429")]
    assert len(server.got) == 1 + 2 * openai_client.ATTEMPTS
