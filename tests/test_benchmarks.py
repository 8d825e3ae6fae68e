"""The benchmarks count what they say they count; what they measure is for people to read."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from click.testing import CliRunner

from benchmarks import accuracy, bank, feedback, grpo, probes, training
from benchmarks.adapters import (
    bank_engine,
    base_classifier,
    merged,
    save_random_adapters,
    with_adapters,
)
from benchmarks.children import in_child, peak_megabytes
from benchmarks.feedback_server import counts, serving
from benchmarks.floors import Counts, Work, last_layer_share, unique_tokens
from benchmarks.loops import Opponents
from benchmarks.settings import Rounded, Setting, rounding
from benchmarks.tables import shown
from benchmarks.texts import made_up_pairs, natural_list, prompts_up_to
from morlaif_hub.bank.layout import lay_out
from morlaif_hub.errors import OptionError
from morlaif_hub.hub.manifest import InputFormat
from morlaif_hub.models.formats import Encoder, common_prefix
from tests.tiny import save_tiny, tiny_tokenizer

# By hand, for 30 layers and 12 adapters: the first adapted layer, and the base forwards when the
# last layer needs 0.16 of itself for all tokens.
FLOORS = {0: 11.66, 15: 6.16, 22: 3.60, 27: 1.76, 29: 1.03, 30: 0.97}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"), layers=2)


def encoder(length: int = 512) -> Encoder:
    return Encoder(tiny_tokenizer(), InputFormat(kind="chat", append_eos=True, max_length=length))


def setting(**changes: Any) -> Setting:
    """Return a setting whose engine is at the floor, and twelve times faster than opponent a."""
    counts = Counts(texts=4, tokens=100, padded_to_list=200, padded_to_batch=110, unique=50)
    work = Work(first=0, layers=30, adapters=12, last_layer_share=0.16)
    forwards = work.floor(counts.unique_share)
    found = Setting(
        depth="all",
        responses=8,
        counts=counts,
        work=work,
        seconds={
            "engine": [forwards, forwards, 99.0],
            "stock": [forwards],
            "base": [1.1],
            "a": [12 * forwards],
        },
        difference=1e-6,
        how={"method": "packed", "why": "", "kernel": "torch"},
        rounded=None,
    )
    return replace(found, **changes)


@pytest.mark.parametrize("first", FLOORS)
def test_the_floor(first: int) -> None:
    work = Work(first=first, layers=30, adapters=12, last_layer_share=0.16)
    assert work.floor() == pytest.approx(FLOORS[first], abs=0.006)
    assert work.floor(0.39) == pytest.approx(0.39 * work.floor())
    assert work.trunk_factor == pytest.approx(12 / FLOORS[first], rel=0.01)


def test_the_last_layers_share_is_of_its_weights(base: Path) -> None:
    # Width 32, two heads of 8 for keys and values, four for queries, and an MLP of 64.
    keys_and_values, layer = 2 * 32 * 16, 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64
    model = base_classifier(base, dtype=torch.float32)
    assert last_layer_share(model) == pytest.approx(keys_and_values / layer)


def test_a_base_without_keys_and_values_of_their_own_is_refused(tmp_path: Path) -> None:
    model = base_classifier(save_tiny(tmp_path, "gpt2"), dtype=torch.float32)
    with pytest.raises(OptionError, match="no k_proj and v_proj"):
        last_layer_share(model)


def test_unique_tokens_are_those_of_a_row_that_shares_everything() -> None:
    draw = random.Random(0)
    for _ in range(50):
        texts = [
            tuple(draw.choices((1, 2), k=draw.randint(1, 9))) for _ in range(draw.randint(1, 12))
        ]
        row = lay_out(sorted(set(texts)), shortest_prefix=1)
        assert unique_tokens(texts) == len(row.ids)


def test_counts() -> None:
    texts = [(1, 2, 3, 4), (1,), (1, 2), (9, 9, 9)]
    counts = Counts.of(texts, batch=2)
    assert counts == Counts(texts=4, tokens=10, padded_to_list=16, padded_to_batch=12, unique=7)
    assert (counts.waste, counts.unique_share) == (1.6, 0.7)


def test_all_ways_give_the_same_scores_in_the_order_of_the_texts(
    base: Path, tmp_path: Path
) -> None:
    adapters = save_random_adapters(tmp_path, base, count=3, layers="top:0.5", seed=0)
    names = list(adapters)
    draw = random.Random(0)
    texts = [tuple(draw.choices(range(5, 200), k=draw.randint(1, 40))) for _ in range(19)]
    model = with_adapters(base_classifier(base, dtype=torch.float32), adapters)
    opponents = Opponents(model, pad_token_id=tiny_tokenizer().pad_token_id)
    expected = bank_engine(base, adapters).score(texts)
    assert float(expected.std(dim=1).min()) > 1e-3  # no two adapters are the same
    for way in (opponents.hot_swap, opponents.sorted_hot_swap, opponents.mixed):
        torch.testing.assert_close(way(texts, names), expected, atol=1e-5, rtol=0)
        chosen = way(texts, [names[2], names[0]])
        torch.testing.assert_close(chosen, expected[:, [2, 0]], atol=1e-5, rtol=0)
    opponents.base_forward(texts)  # leaves the adapters on
    torch.testing.assert_close(
        opponents.hot_swap(texts, names[1:2]), expected[:, 1:2], atol=1e-5, rtol=0
    )
    with torch.inference_mode():
        alone = merged(base, adapters[names[1]])(input_ids=torch.tensor([texts[0]])).logits
    torch.testing.assert_close(alone[0], expected[0, 1:2], atol=1e-5, rtol=0)


@pytest.mark.parametrize("responses", [1, 2, 8])
def test_the_responses_of_a_list_share_their_prompt(responses: int) -> None:
    pairs = made_up_pairs(20, median=12, seed=0)
    texts = natural_list(pairs, encoder(), responses=responses, texts=16)
    assert len(texts) == len(set(texts)) == 16
    prompts = [len(encoder().ids(pair.prompt, "")) for pair in pairs[: len(texts) // responses]]
    for i, length in enumerate(prompts):
        of_prompt = texts[i * responses : (i + 1) * responses]
        assert responses == 1 or common_prefix(of_prompt) >= length - 3  # without the end of turn


def test_too_few_pairs_for_a_list_are_refused() -> None:
    pairs = made_up_pairs(3, median=12, seed=0)
    with pytest.raises(OptionError, match="there are 3"):
        natural_list(pairs, encoder(), responses=2, texts=8)
    with pytest.raises(OptionError, match="need 0 pairs"):
        natural_list(pairs, encoder(), responses=8, texts=4)


def test_made_up_pairs_have_the_lengths_of_real_ones() -> None:
    pairs = made_up_pairs(400, median=100, seed=0)
    words = sorted(len(f"{p.prompt[0]['content']} {p.response_a}".split()) for p in pairs)
    assert 80 < words[200] < 130
    assert 2 < words[380] / words[200] < 4.5  # 3.3 in hh-rlhf
    assert pairs == made_up_pairs(400, median=100, seed=0)


def test_only_short_prompts_are_trained_on() -> None:
    pairs = made_up_pairs(50, median=20, seed=0)
    reader = encoder(61)
    prompts = prompts_up_to(pairs, reader, tokens=60, count=8)
    assert len(prompts) == 8
    assert all(len(reader.ids(prompt, "")) <= 60 for prompt in prompts)
    with pytest.raises(OptionError, match="8 prompts of at most 9 tokens"):
        prompts_up_to(pairs, reader, tokens=9, count=8)


def test_a_process_tells_its_own_peak(tmp_path: Path) -> None:
    """What Linux tells as `ru_maxrss` is at least what the starting process had."""
    child = in_child("benchmarks.children:peak_megabytes", {}, scratch=tmp_path)
    assert 1 < child < peak_megabytes() / 2


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="unexpected keyword argument 'wrong'"):
        in_child("benchmarks.children:peak_megabytes", {"wrong": 1}, scratch=tmp_path)


def test_medians_ratios_and_goals() -> None:
    found = setting()
    assert found.times_faster("a") == pytest.approx(12)
    assert found.times_faster("b") is None
    assert found.base_forwards("engine") == pytest.approx(found.floor)
    assert found.limit == pytest.approx(12 * 2 / found.floor)
    assert [goal.held for goal in found.goals] == [True, True, True]
    slow = replace(found, responses=2, seconds={**found.seconds, "stock": [7.0]}, difference=1e-3)
    assert [goal.held for goal in slow.goals] == [True, False, False]
    assert not slow.equal
    data = json.loads(json.dumps(slow.data(judged=True)))
    assert data["factors"] == {
        "padding_waste": 2.0,
        "prefix_sharing": 2.0,
        "trunk_sharing": pytest.approx(12 / 11.66, rel=1e-3),
    }


def test_a_table_says_what_is_not_held() -> None:
    text = shown([setting(), setting(responses=1, difference=0.01)], judged=True)
    assert "all layers, 1 responses: difference is 0.01, to be 0.0001" in text
    assert "all goals are held" in shown([setting()], judged=True)
    assert "held" not in shown([setting()], judged=False)


def test_rounding_is_in_standard_deviations() -> None:
    exact = torch.tensor([[1.0, 10.0], [3.0, 30.0]])
    off = torch.tensor([[0.0, 0.0], [0.5, 0.0]])
    std = 2**0.5
    assert rounding(exact + off, exact) == pytest.approx(Rounded(0.5 / std, 0.25 / std))


@pytest.mark.slow
def test_the_benchmark_of_a_bank_runs() -> None:
    options = ["--tiny", "--layers", "quarter", "--responses", "2", "--dtype", "bfloat16", "--json"]
    result = CliRunner().invoke(bank.main, options, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    (found,) = data["settings"]
    assert data["equal"]
    assert set(found["seconds"]) == {"engine", "stock", "bfloat16", "base", "a", "b", "c"}
    assert found["goals"] == []


@pytest.mark.slow
def test_the_benchmark_of_a_bank_measures_memory_alone() -> None:
    options = ["--tiny", "--no-times", "--json"]
    result = CliRunner().invoke(bank.main, options, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data["settings"] == []
    assert len(data["memory"]) == 6
    assert all(row["megabytes"] for row in data["memory"])


@pytest.mark.slow
def test_the_benchmark_of_grpo_runs() -> None:
    options = ["--tiny", "--steps", "1", "--max-new-tokens", "8", "--json"]
    result = CliRunner().invoke(grpo.main, options, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data["same_completions_at_first"]
    assert data["difference"] < 1e-4
    assert [0 < way["share"] < 1 for way in data["ways"]] == [True, True]


def test_the_benchmark_of_probes_runs() -> None:
    result = CliRunner().invoke(probes.main, ["--tiny", "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data["equal"]
    assert (data["layer"], data["layers"], data["method"]) == (5, 10, "packed")
    assert set(data["seconds"]) == {"probes", "base", "padded"}
    assert data["goal"] is None  # of a tiny base, what is not a layer costs as much


@pytest.mark.slow
def test_the_benchmark_of_training_runs() -> None:
    options = ["--tiny", "--batch-size", "4", "--layers", "quarter", "--json"]
    result = CliRunner().invoke(training.main, options, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    (found,) = data["found"]
    assert data["equal"]
    assert found["loss_difference"] < 1e-6
    assert found["goal"] is None
    assert found["counts"]["unique"] < found["counts"]["tokens"] < found["counts"]["padded"]


def test_the_benchmark_of_feedback_runs() -> None:
    result = CliRunner().invoke(feedback.main, ["--tiny", "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data["right"]
    judge, loop, unlimited = data["ways"]
    assert [way["right"] for way in data["ways"]] == [250, 5, 250]
    assert 0 < judge["share"] < 1.11  # what the server takes at once is a tenth of this short time
    assert unlimited["share"] is None
    assert judge["at_once"] > loop["at_once"] == 1
    assert loop["requests"] == 2 * 5
    assert loop["seconds"] >= 2 * 5 * 0.05
    assert data["times_one_after_the_other"] > 2
    assert data["held"] is None  # it is too short for the goals


def test_the_server_of_the_benchmark_of_feedback_keeps_to_its_limit() -> None:
    with serving(latency=0.0, rpm=1) as url:
        statuses, waits = [], []
        for _ in range(3):
            answer = httpx2.post(f"{url}/chat/completions", json={"messages": []})
            statuses.append(answer.status_code)
            waits.append(float(answer.headers.get("retry-after", 0)))
            assert answer.headers["x-ratelimit-limit-requests"] == "1"
        done = counts(url)
    assert statuses == [200, 429, 429]
    assert waits[0] == 0 < waits[2] < waits[1] <= 60
    assert (done.answered, done.refused) == (1, 2)


@pytest.mark.parametrize(
    ("requests", "loops", "right", "held"),
    [(451, 22, 1, True), (449, 22, 1, False), (451, 23, 1, False), (451, 22, 0, False)],
)
def test_goals_of_feedback(requests: float, loops: float, right: int, held: bool) -> None:
    one = feedback.Asked("judge", 30_000, 1, right, 2 / requests, 0, 0, 0, 2, 0, 1)
    found = [one, replace(one, way="loop", right=1, seconds=2 / loops)]
    goals = feedback.Goals.of(found, {"judge": 1, "loop": 1, "unlimited": 1})
    assert goals.held is held
    report = feedback.report(found, goals, about="A server.", judged=True)
    assert ("NOT held" in report.text) is not held
    assert report.exit_code == (not held)


@pytest.mark.slow
def test_the_benchmark_of_accuracy_runs() -> None:
    options = ["--tiny", "--seeds", "2", "--forms", "probe", "--forms", "quarter"]
    result = CliRunner().invoke(accuracy.main, [*options, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["results"]
    assert [(one["form"], one["seed"]) for one in found] == [
        ("probe", 0),
        ("probe", 1),
        ("quarter", 0),
        ("quarter", 1),
    ]
    assert all(one["interval"][0] <= one["accuracy"] <= one["interval"][1] for one in found)
    assert [one["kept"] is None for one in found] == [True, True, False, False]
