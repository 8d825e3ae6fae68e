"""Sampling pairs: different responses, in files that can be read back."""

from pathlib import Path
from typing import Any

import pytest

from morlaif_hub import sampling
from morlaif_hub.comparisons import read_comparisons
from morlaif_hub.errors import DataError, OptionError
from morlaif_hub.models.generation import Response, SamplingSettings
from morlaif_hub.models.language_model import LanguageModel
from morlaif_hub.sampling import PAIRS_FILE, RESPONSES_FILE, pairs_of, read_responses, sample_pairs
from tests.tiny import save_tiny

PROMPTS = [({"role": "user", "content": f"Say {i}"},) for i in range(3)]
SETTINGS = SamplingSettings(responses=4, max_new_tokens=8, temperature=1.0, top_p=1.0)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return LanguageModel.load(save_tiny(tmp_path_factory.mktemp("policy")), dtype="float32")


@pytest.mark.parametrize(("all_pairs", "pairs"), [(False, 2), (True, 6)])
def test_pairs_and_responses_are_written_and_read_back(
    policy: LanguageModel, tmp_path: Path, all_pairs: bool, pairs: int
) -> None:
    sampled = sample_pairs(policy, PROMPTS, folder=tmp_path, settings=SETTINGS, all_pairs=all_pairs)
    assert len(sampled.comparisons) == 3 * pairs
    assert sampled.prompts_without_a_pair == 0
    assert list(read_comparisons(tmp_path / PAIRS_FILE)) == sampled.comparisons
    prompts, responses = zip(*read_responses(tmp_path / RESPONSES_FILE), strict=True)
    assert [tuple(prompt) for prompt in prompts] == PROMPTS
    assert list(responses) == sampled.responses


def test_each_response_is_in_one_pair_unless_all_are_wanted() -> None:
    texts = ["a", "b", "c", "d", "e"]
    few = pairs_of(PROMPTS[0], texts, all_pairs=False)
    assert [(c.response_a, c.response_b) for c in few] == [("a", "b"), ("c", "d")]
    assert len(pairs_of(PROMPTS[0], texts)) == 10
    assert {c.split for c in pairs_of(PROMPTS[0], texts, split="test")} == {"test"}


def test_a_policy_that_repeats_itself_gives_no_pairs(
    policy: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = [[Response("again", True)]] * 3
    monkeypatch.setattr("morlaif_hub.sampling.sample_responses", lambda *_a, **_k: same)
    with pytest.raises(DataError, match="no prompt of 3 gave two different responses"):
        sample_pairs(policy, PROMPTS, folder=tmp_path, settings=SETTINGS)
    assert not list(tmp_path.iterdir())


def test_a_broken_file_of_responses_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / RESPONSES_FILE
    path.write_text('{"prompt": [], "responses": []}\n{"prompt": []}\n')
    with pytest.raises(DataError, match="line 2"):
        read_responses(path)
    with pytest.raises(DataError, match=r"none\.jsonl: no readable file of responses"):
        read_responses(tmp_path / "none.jsonl")


def test_instructions_share_the_responses_and_leave_the_prompts(
    policy: LanguageModel, tmp_path: Path
) -> None:
    asked: list[list[dict[str, str]]] = []
    original = sampling.sample_responses

    def listen(
        policy: LanguageModel, prompts: list, settings: SamplingSettings, **rest: Any
    ) -> Any:
        asked.extend(prompts)
        assert settings.responses == 2
        return original(policy, prompts, settings, **rest)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(sampling, "sample_responses", listen)
        sampled = sample_pairs(
            policy, PROMPTS, folder=tmp_path, settings=SETTINGS, instructions=("Be short.", None)
        )
    assert [len(found) for found in sampled.responses] == [4, 4, 4]
    assert all(c.prompt in PROMPTS for c in sampled.comparisons)
    assert [p[0]["content"] for p in asked] == ["Be short."] * 3 + ["Say 0", "Say 1", "Say 2"]
    with pytest.raises(OptionError, match="4 responses cannot be shared equally among 3"):
        sample_pairs(
            policy, PROMPTS, folder=tmp_path, settings=SETTINGS, instructions=("a", "b", None)
        )


@pytest.mark.parametrize("separator", ["\u2028", "\x85", "\x0b", "\r", "\n", "\x1e"])
def test_responses_with_separators_of_lines_are_read_back(separator: str, tmp_path: Path) -> None:
    answers = [[Response(f"one{separator}two", finished=True)], [Response("three", finished=False)]]
    prompts = [[{"role": "user", "content": f"Hi{separator}"}], [{"role": "user", "content": "Yo"}]]
    path = tmp_path / RESPONSES_FILE
    sampling._write_responses(path, prompts, answers)
    found = read_responses(path)
    assert [prompt for prompt, _ in found] == prompts
    assert [[r.text for r in its] for _, its in found] == [[r.text for r in a] for a in answers]
