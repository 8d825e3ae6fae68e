"""Choosing by a bank's scores: measured by the judge, not by the scores that chose."""

import numpy as np
import pytest

from morlaif_hub.comparisons import Comparison
from morlaif_hub.evaluation.selection import (
    Candidates,
    by_text_order,
    judged_shares,
    steered,
    sweep,
)

PROMPT = ({"role": "user", "content": "Say something."},)
TEXTS = ("one", "one two", "one two three")
LONGER_IS_WORSE = {text: -len(text) for text in TEXTS}


def verdicts(better: dict[str, float]) -> dict[str, float]:
    """Return the verdicts of a judge that prefers the text with the higher number."""
    found = {}
    for i, a in enumerate(TEXTS):
        for b in TEXTS[:i]:
            pair = Comparison(PROMPT, a, b)
            probability_a = 0.5 + 0.4 * float(np.sign(better[a] - better[b]))
            found[pair.id] = by_text_order(pair, probability_a)
    return found


def candidates(scores: list[list[float]]) -> Candidates:
    shares = judged_shares(PROMPT, TEXTS, verdicts(LONGER_IS_WORSE))
    return Candidates(PROMPT, TEXTS, np.array(scores), {"short": shares})


def test_shares_count_how_many_of_the_others_are_worse() -> None:
    np.testing.assert_allclose(
        judged_shares(PROMPT, TEXTS, verdicts(LONGER_IS_WORSE)), [1.0, 0.5, 0.0]
    )
    even = judged_shares(PROMPT, TEXTS, verdicts(dict.fromkeys(TEXTS, 0.0)))
    np.testing.assert_allclose(even, [0.5, 0.5, 0.5])


def test_shares_do_not_depend_on_which_response_was_a() -> None:
    swapped = {}
    for i, a in enumerate(TEXTS):
        for b in TEXTS[:i]:
            pair = Comparison(PROMPT, b, a)
            probability_a = 0.9 if len(b) < len(a) else 0.1
            swapped[pair.id] = by_text_order(pair, probability_a)
    np.testing.assert_allclose(judged_shares(PROMPT, TEXTS, swapped), [1.0, 0.5, 0.0])


def test_a_pair_that_was_not_judged_is_an_error() -> None:
    with pytest.raises(KeyError):
        judged_shares(PROMPT, TEXTS, {})


def test_a_perfect_score_chooses_what_the_judge_prefers() -> None:
    right = [candidates([[3.0], [2.0], [1.0]]) for _ in range(4)]
    result = steered(right, np.ones(1), "short")
    assert result == {
        "random": 0.5,
        "chosen": 1.0,
        "difference_interval": [0.5, 0.5],
        "words_random": 2.0,
        "words_chosen": 1.0,
    }


def test_a_score_that_is_wrong_chooses_what_the_judge_finds_worst() -> None:
    result = steered([candidates([[1.0], [2.0], [3.0]])] * 2, np.ones(1), "short")
    assert (result["chosen"], result["words_chosen"]) == (0.0, 3.0)


def test_the_interval_is_over_prompts() -> None:
    mixed = [candidates([[3.0], [2.0], [1.0]]), candidates([[1.0], [2.0], [3.0]])] * 8
    low, high = steered(mixed, np.ones(1), "short")["difference_interval"]
    assert low < 0 < high


def test_a_sweep_moves_from_one_objective_to_the_other() -> None:
    opposed = [candidates([[2.0, -2.0], [0.0, 0.0], [-2.0, 2.0]])]
    result = sweep(opposed, (0, 1), ("short", "long"), (0.0, 1.0))
    assert result["words"] == [1.0, 3.0]
    assert result["scores"] == {"short": [2.0, -2.0], "long": [-2.0, 2.0]}
    assert (result["from"], result["to"], result["share"]) == ("short", "long", [0.0, 1.0])
