"""The commands that ask a judge behind a server, over real HTTP."""

import json
import math
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from openai_server import Body, Reply, completion, failure, serving
from test_openai_judge import fair, options_of, probe

from morlaif_hub.cli import cli, judge_options
from morlaif_hub.hub.manifest import MANIFEST_NAME
from morlaif_hub.judges import limits
from morlaif_hub.judges.base import load_judge

KEY = "sk-very-secret"


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MORLAIF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setattr(limits, "FIRST_BACKOFF", 0.005)
    monkeypatch.chdir(tmp_path)
    rows = [
        {"prompt": f"Why {i}?", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(40)
    ]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def collect(url: str, *more: str) -> Result:
    arguments = ["collect-feedback", "toxicity", "--judge", "openai:m", "--base-url", url]
    arguments += ["--pairs", "pairs.jsonl", "--unvalidated", *more]
    result = CliRunner().invoke(cli, arguments)
    assert KEY not in result.output
    return result


def manifest_of(principle: str) -> Body:
    folder = Path("morlaif/feedback") / principle
    found: Body = json.loads((folder / MANIFEST_NAME).read_text())
    return found


def asked(got: list[Body]) -> list[Body]:
    return [body for body in got if not probe(body)]


def test_a_run_asks_each_pair_once_in_each_order_and_the_next_one_asks_nothing() -> None:
    with serving(lambda body, _: fair(body)) as server:
        first = collect(server.url, "--price", "1,2", "--json")
        assert first.exit_code == 0, first.output
        assert len(asked(server.got)) == 80
        first_tokens = manifest_of("toxicity")["judge_tokens"]
        again = collect(server.url, "--json")
        assert again.exit_code == 0, again.output
        assert len(server.got) == 81
    told = json.loads(first.stdout)["principles"]["toxicity"]
    assert told["calls"] == 80
    assert first_tokens == 80 * 101
    assert told["cost_usd"] == pytest.approx(80 * (100 + 2) / 1e6)
    assert told["bias"]["human_agreement"]["value"] in (0.0, 1.0)
    assert json.loads(again.stdout)["principles"]["toxicity"]["calls"] == 0
    manifest = Path("morlaif/feedback/toxicity")
    assert manifest_of("toxicity")["judge_tokens"] == 0  # of the second run, which asked nothing
    written = "".join(p.read_text() for p in manifest.rglob("*.json"))
    assert f"openai:m?base_url={server.url}&answers=logprobs" in written
    assert KEY not in written


def test_a_dry_run_sends_nothing_and_tells_calls_tokens_and_price() -> None:
    with serving(lambda body, _: fair(body)) as server:
        result = collect(server.url, "--dry-run", "--price", "1,2", "--json")
        assert server.got == []
    assert result.exit_code == 0, result.output
    estimate = json.loads(result.stdout)["estimate"]
    assert estimate["calls"] == 80
    assert estimate["output_tokens"] == 80
    expected = (estimate["input_tokens"] * 1 + 80 * 2) / 1e6
    assert estimate["cost_usd"] == pytest.approx(expected)


def test_a_limit_of_cost_ends_the_command_and_the_next_run_goes_on() -> None:
    with serving(lambda body, _: Reply(fair(body), delay=0.002)) as server:
        few = ("--price", "1000,1000", "--concurrency", "2")
        stopped = collect(server.url, *few, "--max-cost", "4")
        paid = len(server.got)
        assert stopped.exit_code == 1
        assert "--max-cost 4 is passed" in stopped.stderr.splitlines()[-1]
        assert paid * 0.101 <= 4
        result = collect(server.url, *few, "--json")
        assert result.exit_code == 0, result.output
        assert len(server.got) <= 81 + 2  # nothing is paid twice but what was in flight


def test_what_got_no_answer_is_reported_and_no_label() -> None:
    def answer(body: Body, _: int) -> Body | Reply:
        refused = "Why 3?" in body["messages"][-1]["content"]
        return failure(400, "no", "content_filter") if refused else fair(body)

    with serving(answer) as server:
        result = collect(server.url, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)["principles"]["toxicity"]
    assert told["pairs"] == 39
    assert told["unanswered"] == [{"reason": "refused", "n": 1}]


def test_a_wrong_key_is_one_line() -> None:
    fault = failure(401, f"Incorrect API key provided: {KEY}")
    with serving(lambda *_: fault) as server:
        result = collect(server.url)
    assert result.exit_code == 1
    assert "HTTP 401" in result.stderr.splitlines()[-1]


def test_validate_judge_takes_the_options_too() -> None:
    def longer(body: Body, _: int) -> Body:
        one, other = options_of(body)
        log_odds = 2.0 if len(one) > len(other) else -2.0
        return completion(
            "A", top={"A": -math.log1p(math.exp(-log_odds)), "B": -math.log1p(math.exp(log_odds))}
        )

    with serving(longer) as server:
        arguments = ["validate-judge", "openai:m", "toxicity", "--base-url", server.url, "--json"]
        result = CliRunner().invoke(cli, [*arguments, "--concurrency", "4", "--rpm", "60000"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["principles"]["toxicity"]["n"] > 0


def test_another_judge_does_not_take_them() -> None:
    result = CliRunner().invoke(cli, ["validate-judge", "likelihood:", "toxicity", "--rpm", "5"])
    assert result.exit_code == 1
    assert "takes no option 'rpm'" in result.stderr


def test_progress_tells_rate_spend_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(judge_options, "SECONDS_BETWEEN_LINES", 0.0)
    judge = load_judge("openai:m", base_url="http://localhost:1/v1")
    with judge_options.JudgeProgress(judge) as progress:
        progress.start("judging", 10)
        progress.advance(5)
    told = capsys.readouterr().err
    assert "5 done" in told
    assert "a second, 0.00 US dollars, about 0 seconds left" in told


def test_the_baseline_with_one_principle_for_each_pair_asks_it_too() -> None:
    arguments = ["collect-feedback", "constitutional", "--constitution", "constitutional"]
    arguments += ["--judge", "single-objective:openai:m?answers=samples&samples=3"]
    arguments += ["--pairs", "pairs.jsonl", "--unvalidated", "--json"]
    with serving(lambda body, _: fair(body)) as server:
        options = ["--base-url", server.url, "--price", "1,2"]
        plan = CliRunner().invoke(cli, [*arguments, *options, "--dry-run"])
        assert plan.exit_code == 0, plan.output
        result = CliRunner().invoke(cli, [*arguments, *options])
        assert result.exit_code == 0, result.output
        bodies = asked(server.got)
    assert json.loads(plan.stdout)["estimate"]["calls"] == len(bodies) == 80
    assert all(body["n"] == 3 for body in bodies)
    assert len({body["messages"][-1]["content"].split("this only:")[1] for body in bodies}) > 5
    assert json.loads(result.stdout)["principles"]["constitutional"]["cost_usd"] > 0
