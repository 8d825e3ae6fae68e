"""Steering: candidates of one policy, ranked by weights that are chosen afterwards."""

from collections.abc import Sequence

import pytest
import torch

from morlaif_hub.errors import ObjectiveMismatchError, ScoreError
from morlaif_hub.models.generation import Response, SamplingSettings
from morlaif_hub.models.language_model import LanguageModel
from morlaif_hub.steering import best_of_n
from tests.tiny import save_tiny


class ByLength:
    """A bank with two objectives that oppose each other: the length and its opposite."""

    objectives = ("long", "short")

    def __init__(self) -> None:
        self.calls = 0

    def score(self, prompts: Sequence, responses: Sequence) -> torch.Tensor:
        self.calls += 1
        assert len(prompts) == len(responses)
        length = torch.tensor([float(len(response)) for response in responses])
        return torch.stack([length, -length], dim=1)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return LanguageModel.load(save_tiny(tmp_path_factory.mktemp("policy")), dtype="float32")


SAMPLING = SamplingSettings(max_new_tokens=12, temperature=1.0, top_p=1.0)


def test_weights_decide_what_is_best(policy: LanguageModel) -> None:
    bank = ByLength()
    weights = {"long": 1.0, "short": 0.0}
    longest = best_of_n("Hi", bank=bank, policy=policy, n=5, weights=weights, sampling=SAMPLING)
    assert len(longest.candidates) == 5
    lengths = [len(c.text) for c in longest.candidates]
    assert lengths == sorted(lengths, reverse=True)
    assert longest.best.reward == longest.best.scores["long"] == lengths[0]
    shortest = longest.with_weights({"long": 0.0, "short": 1.0})
    assert len(shortest.best.text) == lengths[-1]
    assert {c.text for c in shortest.candidates} == {c.text for c in longest.candidates}
    assert bank.calls == 1  # ranking again scores nothing


def test_a_scalarizer_and_its_options_can_be_chosen_afterwards(policy: LanguageModel) -> None:
    steered = best_of_n("Hi", bank=ByLength(), policy=policy, n=3, sampling=SAMPLING)
    assert steered.weights == {"long": 0.5, "short": 0.5}
    worst = steered.with_weights(None, scalarizer="max_min")
    assert worst.scalarizer == "max_min"
    for candidate in worst.candidates:
        assert candidate.reward == pytest.approx(-len(candidate.text) / 2)
    soft = steered.with_weights(None, scalarizer="soft_max_min", options={"temperature": 1e-3})
    assert [c.text for c in soft.candidates] == [c.text for c in worst.candidates]


def test_the_same_seed_gives_the_same_candidates(policy: LanguageModel) -> None:
    one = best_of_n("Hi", bank=ByLength(), policy=policy, n=3, sampling=SAMPLING)
    two = best_of_n("Hi", bank=ByLength(), policy=policy, n=3, sampling=SAMPLING)
    assert one == two


def test_wrong_weights_are_refused_before_anything_is_sampled(policy: LanguageModel) -> None:
    bank = ByLength()
    with pytest.raises(ObjectiveMismatchError, match="missing: long; extra: tall"):
        best_of_n("Hi", bank=bank, policy=policy, weights={"tall": 1.0, "short": 1.0})
    assert bank.calls == 0


def test_nothing_but_empty_responses_is_an_error(
    policy: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing: list[list[Response]] = [[]]
    monkeypatch.setattr("morlaif_hub.steering.sample_responses", lambda *_args: nothing)
    with pytest.raises(ScoreError, match="empty responses"):
        best_of_n("Hi", bank=ByLength(), policy=policy)
