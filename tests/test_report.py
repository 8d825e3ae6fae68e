"""The report says what the numbers carry and no more, is whole in itself, and trusts no text."""

import copy
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from jinja2 import UndefinedError
from matplotlib.figure import Figure

from morlaif_hub.evaluation import report
from morlaif_hub.evaluation.report import closing_table, findings, render_report


def validation(verdict: str, accuracy: float, interval: list[float]) -> dict[str, Any]:
    parts = [
        {"part": "longer", "accuracy": min(1.0, accuracy + 0.1), "n": 12},
        {"part": "shorter", "accuracy": max(0.0, accuracy - 0.1), "n": 12},
    ]
    return {"verdict": verdict, "accuracy": accuracy, "interval": interval, "n": 24, "parts": parts}


FIT = validation("fit", 0.833, [0.641, 0.933])
UNPROVEN = validation("unproven", 0.583, [0.388, 0.755])
WRONG_WAY = validation("wrong way", 0.25, [0.12, 0.449])

EXAMPLE: dict[str, Any] = {
    "seconds": {
        "sample": 92.4,
        "label": 128.0,
        "train": 41.3,
        "steer": 9.8,
        "align": 131.7,
        "total": 403.2,
    },
    "principles": {
        "conciseness": {
            "pairs": 664,
            "judge_position_bias": 0.0,
            "judge_flip_rate": 0.0,
            "pm_accuracy": 0.622,
            "pm_accuracy_interval": [0.571, 0.673],
            "length_baseline": 0.588,
            "validation": "unproven",
        },
        "detail": {
            "pairs": 664,
            "judge_position_bias": 0.0,
            "judge_flip_rate": 0.0,
            "pm_accuracy": 0.693,
            "pm_accuracy_interval": [0.643, 0.743],
            "length_baseline": 0.649,
            "validation": "fit",
        },
        "empathy": {
            "pairs": 664,
            "judge_position_bias": 0.0,
            "judge_flip_rate": 0.0,
            "pm_accuracy": 0.68,
            "pm_accuracy_interval": [0.632, 0.731],
            "length_baseline": 0.591,
            "validation": "unproven",
        },
    },
    "letter_judge": {"position_bias": 0.479, "flip_rate": 0.958},
    "steering": {
        "conciseness": {
            "random": 0.5,
            "chosen": 0.688,
            "difference_interval": [0.071, 0.295],
            "words_random": 33.9,
            "words_chosen": 27.5,
        },
        "detail": {
            "random": 0.5,
            "chosen": 0.589,
            "difference_interval": [-0.036, 0.205],
            "words_random": 33.9,
            "words_chosen": 39.7,
        },
        "empathy": {
            "random": 0.5,
            "chosen": 0.652,
            "difference_interval": [0.062, 0.241],
            "words_random": 33.9,
            "words_chosen": 39.8,
        },
    },
    "policy": {
        "reward_before": -0.215,
        "reward_after": 0.76,
        "delta_interval": [0.57, 1.37],
        "others": {"detail": -0.48, "empathy": -0.31},
        "kl": 0.061,
        "words_before": 24.9,
        "words_after": 16.4,
    },
    "details": {
        "seed": 0,
        "letter_judge_pairs": 24,
        "model": {"name": "embedded", "weights_sha256": "5af571cbf074e6d21a03528d2330792e" * 2},
        "findings": ["A first sentence.", "A second sentence."],
        "sweep": {
            "from": "conciseness",
            "to": "detail",
            "share": [0.0, 0.25, 0.5, 0.75, 1.0],
            "words": [27.5, 28.6, 38.2, 40.0, 39.7],
            "scores": {
                "conciseness": [1.21, 1.16, 0.12, -0.31, -0.33],
                "detail": [-0.41, -0.22, 0.88, 1.22, 1.24],
            },
        },
        "judge_validation": {"conciseness": FIT, "detail": FIT, "empathy": UNPROVEN},
        "pm_validation": {"conciseness": UNPROVEN, "detail": FIT, "empathy": UNPROVEN},
        "equal_length_accuracy": {
            "conciseness": {
                "value": 0.578,
                "interval": [0.488, 0.665],
                "n": 101,
                "length_baseline": 0.51,
            },
            "detail": {
                "value": 0.597,
                "interval": [0.493, 0.692],
                "n": 101,
                "length_baseline": 0.53,
            },
            "empathy": {
                "value": 0.656,
                "interval": [0.551, 0.751],
                "n": 101,
                "length_baseline": 0.52,
            },
        },
        "length_correlation": {"conciseness": -0.71, "detail": 0.66, "empathy": 0.43},
        "correlations": {
            "names": ["conciseness", "detail", "empathy"],
            "matrix": [[1.0, -0.74, -0.31], [-0.74, 1.0, 0.63], [-0.31, 0.63, 1.0]],
        },
        "steering_examples": [
            {
                "prompt": "I feel lonely since I moved to a new city.",
                "random": "It's common to feel a sense of loneliness when moving to a new city, "
                "especially if you're used to living in a different place.",
                "chosen": {
                    "conciseness": "I'm sorry you feel lonely.",
                    "detail": "Moving to a new city can be both exciting and challenging, and it "
                    "helps to join a local club, a sports team or a class where you meet the same "
                    "people every week and can get to know them over time",
                    "empathy": "I'm sorry to hear that you're feeling lonely, and I understand "
                    "how hard it can be to leave friends behind and start again somewhere new.",
                },
            },
            {
                "prompt": "Why do we see lightning before we hear thunder?",
                "random": "Lightning is visible before thunder because light travels much faster "
                "than sound.",
                "chosen": {
                    "conciseness": "Light travels faster than sound.",
                    "detail": "Lightning is a discharge of electricity between the atmosphere and "
                    "the ground, and the light from it travels at about 300,000 kilometres per "
                    "second, while the sound of thunder travels at about 340 metres per second",
                    "empathy": "",
                },
            },
        ],
        "policy_curve": [
            {
                "step": step,
                "reward": reward,
                "objectives": {"conciseness": reward, "detail": detail, "empathy": empathy},
                "kl": kl,
                "words": words,
                "finished": finished,
            }
            for step, reward, detail, empathy, kl, words, finished in [
                (0, -0.215, 0.11, 0.08, 0.0, 24.9, 0.19),
                (2, -0.18, 0.13, 0.02, 0.004, 25.2, 0.22),
                (4, 0.12, -0.02, -0.05, 0.011, 22.3, 0.41),
                (6, 0.35, -0.17, -0.11, 0.024, 20.0, 0.56),
                (8, 0.61, -0.31, -0.2, 0.043, 17.8, 0.69),
                (10, 0.76, -0.37, -0.23, 0.061, 16.4, 0.78),
            ]
        ],
        "policy_stopped_by": "max_steps",
        "policy_steps": 10,
        "policy_examples": [
            {
                "prompt": "What is a haiku?",
                "before": "A haiku is a traditional form of Japanese poetry that consists of three "
                "lines with a total of seventeen syllables, and it often describes nature",
                "after": "A haiku is a short Japanese poem about a moment in nature.",
            },
            {
                "prompt": "I feel guilty whenever I take a day off.",
                "before": "It's completely normal to feel guilty when you take a day off, but "
                "remember that rest is important for your health and",
                "after": "It's a serious issue.",
            },
        ],
    },
}


NO_POLICY: dict[str, Any] = {
    "policy": None,
    **{
        f"details.{key}": "absent"
        for key in ("policy_curve", "policy_stopped_by", "policy_steps", "policy_examples")
    },
}


def example(changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a result with values replaced at dotted paths; `absent` deletes the key."""
    result = copy.deepcopy(EXAMPLE)
    for path, value in (changes or {}).items():
        *parents, last = path.split(".")
        at: Any = result
        for key in parents:
            at = at[int(key) if isinstance(at, list) else key]
        if value == "absent":
            del at[last]
        else:
            at[last] = copy.deepcopy(value)
    return result


class Rule(NamedTuple):
    """A sentence, numbers that call for it, and numbers on the other side of its condition."""

    sentence: str
    said: dict[str, Any]
    not_said: dict[str, Any]


def leaning(part: str, accuracy: float) -> dict[str, Any]:
    parts = [{"part": part, "accuracy": accuracy, "n": 12}]
    return {**UNPROVEN, "parts": parts}


EVERY_JUDGE_FIT = dict.fromkeys(EXAMPLE["principles"], FIT)
RULES = {
    "judge fit": Rule(
        "The judge found the better side of the probes more often than chance: fit for "
        "conciseness (0.833, interval 0.641 to 0.933) and detail (0.833, interval 0.641 to 0.933).",
        {},
        {"details.judge_validation": dict.fromkeys(EXAMPLE["principles"], UNPROVEN)},
    ),
    "judge unproven": Rule(
        "The judge is unproven on empathy (0.583, interval 0.388 to 0.755): it did no better on "
        "the probes than chance can explain.",
        {},
        {"details.judge_validation": EVERY_JUDGE_FIT},
    ),
    "judge wrong way": Rule(
        "The judge went the wrong way on detail (0.250, interval 0.120 to 0.449): it preferred "
        "the worse side of the probes. Do not use its labels there.",
        {"details.judge_validation.detail": WRONG_WAY},
        {},
    ),
    "judge untried": Rule(
        "The judge was not tried on probes of detail: nothing shows that its labels follow the "
        "principle.",
        {"details.judge_validation.detail": None},
        {},
    ),
    "judge untried, no record": Rule(
        "The judge was not tried on probes of detail and empathy: nothing shows that its labels "
        "follow the principle.",
        {"details.judge_validation": {"conciseness": FIT}},
        {},
    ),
    "judge leans on length": Rule(
        "On empathy the judge preferred the worse side of those 12 probes whose better side is "
        "the shorter one (accuracy 0.167).",
        {"details.judge_validation.empathy": leaning("shorter", 2 / 12)},
        {"details.judge_validation.empathy": leaning("shorter", 3 / 12)},
    ),
    "model leans on length": Rule(
        "On detail the preference model preferred the worse side of those 12 probes whose better "
        "side is equally long (accuracy 0.083).",
        {"details.pm_validation.detail": leaning("equal", 1 / 12)},
        {"details.pm_validation.detail": {**leaning("equal", 1 / 12), "verdict": "wrong way"}},
    ),
    "letter judge": Rule(
        "Asked to name a letter, in both orders, the same model preferred the response shown first "
        "in 25 % of its answers and changed its choice with the order in 40 % of 24 pairs (no "
        "interval).",
        {"letter_judge": {"position_bias": -0.25, "flip_rate": 0.4}},
        {},
    ),
    "model fit": Rule(
        "The preference model of detail (0.833, interval 0.641 to 0.933) found the better side of "
        "the probes more often than chance: fit.",
        {},
        {"details.pm_validation.detail": UNPROVEN},
    ),
    "models unproven": Rule(
        "The preference models of conciseness (0.583, interval 0.388 to 0.755) and empathy (0.583, "
        "interval 0.388 to 0.755) did no better on the probes than chance can explain: unproven.",
        {},
        {"details.pm_validation.empathy": FIT},
    ),
    "model wrong way": Rule(
        "The preference model of empathy (0.250, interval 0.120 to 0.449) preferred the worse side "
        "of the probes: wrong way. Do not train on such a score.",
        {"details.pm_validation.empathy": WRONG_WAY},
        {},
    ),
    "model untried": Rule(
        "The preference model of empathy had no probes to be tried on: nothing shows that such a "
        "score follows the principle.",
        {"details.pm_validation.empathy": None},
        {},
    ),
    "model above chance": Rule(
        "The preference models of conciseness (0.622, interval 0.571 to 0.673), detail (0.693, "
        "interval 0.643 to 0.743) and empathy (0.680, interval 0.632 to 0.731) agreed with the "
        "judge on held-out pairs more often than chance.",
        {},
        {"principles.detail.pm_accuracy_interval": [0.5, 0.8]},
    ),
    "model at chance": Rule(
        "The preference model of empathy (0.680, interval 0.500 to 0.810) agreed with the judge on "
        "held-out pairs no more often than chance can explain.",
        {"principles.empathy.pm_accuracy_interval": [0.5, 0.81]},
        {"principles.empathy.pm_accuracy_interval": [0.501, 0.81]},
    ),
    "model below chance": Rule(
        "The preference model of empathy (0.400, interval 0.310 to 0.490) disagreed with the judge "
        "on held-out pairs more often than chance.",
        {
            "principles.empathy.pm_accuracy": 0.4,
            "principles.empathy.pm_accuracy_interval": [0.31, 0.49],
        },
        {
            "principles.empathy.pm_accuracy": 0.4,
            "principles.empathy.pm_accuracy_interval": [0.31, 0.5],
        },
    ),
    "model without pairs": Rule(
        "The preference model of empathy had no held-out pairs to be tried on.",
        {
            "principles.empathy.pm_accuracy": None,
            "principles.empathy.pm_accuracy_interval": None,
            "principles.empathy.length_baseline": None,
        },
        {},
    ),
    "models and the length rule": Rule(
        "The preference models of conciseness (0.622 against 0.588) and detail (0.693 against "
        "0.649) did not beat the rule that only looks at length by more than chance can explain.",
        {},
        {"principles.detail.length_baseline": 0.6},
    ),
    "the length rule far ahead": Rule(
        "The preference model of empathy (0.680 against 0.900) did not beat the rule that only "
        "looks at length by more than chance can explain.",
        {
            "principles.conciseness.length_baseline": None,
            "principles.detail.length_baseline": 0.642,
            "principles.empathy.length_baseline": 0.9,
        },
        {
            "principles.conciseness.length_baseline": None,
            "principles.detail.length_baseline": 0.642,
            "principles.empathy.length_baseline": 0.631,
        },
    ),
    "more than length": Rule(
        "On pairs of about equal length the preference model of empathy (0.656, interval 0.551 to "
        "0.751) still agreed with the judge more often than chance or length can explain.",
        {},
        {"details.equal_length_accuracy.empathy.length_baseline": 0.56},
    ),
    "no more than length": Rule(
        "On pairs of about equal length the preference models of conciseness (0.578, interval "
        "0.488 to 0.665) and detail (0.597, interval 0.493 to 0.692) agreed with the judge no more "
        "often than chance or length can explain: length may be all that was learned.",
        {},
        {"details.equal_length_accuracy.detail.interval": [0.54, 0.69]},
    ),
    "no pairs of equal length": Rule(
        "Whether the preference model of detail saw more than length was not measured: no held-out "
        "pairs were of about equal length.",
        {"details.equal_length_accuracy.detail": None},
        {},
    ),
    "follows length": Rule(
        "The score followed the number of words for conciseness (r = -0.71) and detail (r = "
        "+0.66).",
        {"details.length_correlation.empathy": 0.5},
        {"details.length_correlation.empathy": 0.51},
    ),
    "follows length beside the point": Rule(
        "Length is no part of what a good response is meant to be for empathy.",
        {"details.length_correlation.empathy": -0.51},
        {},
    ),
    "shorter wanted, longer scored": Rule(
        "For conciseness that is the wrong way: the shorter response was meant to win.",
        {"details.length_correlation.conciseness": 0.71},
        {},
    ),
    "longer wanted, shorter scored": Rule(
        "For detail that is the wrong way: the longer response was meant to win.",
        {"details.length_correlation.detail": -0.66},
        {},
    ),
    "oppose": Rule(
        "The scores of conciseness and detail nearly opposed each other (r = -0.74): what raises "
        "one tends to lower the other.",
        {},
        {"details.correlations.matrix": [[1, -0.6, 0], [-0.6, 1, 0], [0, 0, 1]]},
    ),
    "coincide": Rule(
        "The scores of detail and empathy nearly coincided (r = +0.63): what raises one tends to "
        "raise the other.",
        {},
        {"details.correlations.matrix": [[1, 0, 0], [0, 1, 0.6], [0, 0.6, 1]]},
    ),
    "steering raised": Rule(
        "Choosing by the score of empathy raised the share of other answers that the judge finds "
        "worse on empathy (+0.15, interval +0.06 to +0.24); the mean length went from 33.9 to 39.8 "
        "words.",
        {},
        {"steering.empathy.difference_interval": [0.0, 0.24]},
    ),
    "steering lowered": Rule(
        "Choosing by the score of empathy lowered the share of other answers that the judge finds "
        "worse on empathy (-0.10, interval -0.20 to -0.01); the mean length went from 33.9 to 39.8 "
        "words.",
        {"steering.empathy.chosen": 0.4, "steering.empathy.difference_interval": [-0.2, -0.01]},
        {"steering.empathy.chosen": 0.4, "steering.empathy.difference_interval": [-0.2, 0.0]},
    ),
    "steering by chance": Rule(
        "Choosing by the score of detail had no effect on what the judge says of detail that can "
        "be told from chance (+0.09, interval -0.04 to +0.20).",
        {},
        {"steering.detail.difference_interval": [0.04, 0.2]},
    ),
    "steering on one prompt": Rule(
        "Choosing by the score of detail had no effect on what the judge says of detail that can "
        "be told from chance (+0.09, interval +0.09 to +0.09).",
        {"steering.detail.difference_interval": [0.089, 0.089]},
        {"steering.detail.difference_interval": [0.088, 0.089]},
    ),
    "steering not shorter": Rule(
        "Choosing by the score of conciseness did not give shorter answers on average (33.9 to "
        "33.9 words).",
        {"steering.conciseness.words_chosen": 33.9},
        {"steering.conciseness.words_chosen": 33.8},
    ),
    "steering not longer": Rule(
        "Choosing by the score of detail did not give longer answers on average (33.9 to 30.0 "
        "words).",
        {"steering.detail.words_chosen": 30.0},
        {},
    ),
    "no policy": Rule(
        "No policy was trained: nothing here is about what training on these scores does.",
        NO_POLICY,
        {},
    ),
    "policy raised": Rule(
        "Training the policy raised the score that it was trained for on held-out prompts (+0.97, "
        "interval +0.57 to +1.37).",
        {},
        {"policy.delta_interval": [-0.01, 1.37]},
    ),
    "policy lowered": Rule(
        "Training the policy lowered the score that it was trained for on held-out prompts (-0.30, "
        "interval -0.50 to -0.10).",
        {"policy.reward_after": -0.515, "policy.delta_interval": [-0.5, -0.1]},
        {"policy.reward_after": -0.515, "policy.delta_interval": [-0.5, 0.1]},
    ),
    "policy by chance": Rule(
        "Training the policy had no effect on the score that it was trained for that can be told "
        "from chance (+0.97, interval -0.01 to +1.37).",
        {"policy.delta_interval": [-0.01, 1.37]},
        {"policy.delta_interval": [0.01, 1.37]},
    ),
    "policy only shorter": Rule(
        "The score rose with shorter answers (24.9 to 16.4 words) and with no gain on another "
        "principle: length may be all that the policy learned.",
        {},
        {"policy.others.empathy": 0.1},
    ),
    "policy only shorter, not without a rise": Rule(
        "The policy's answers got shorter (24.9 to 16.4 words).",
        {"policy.delta_interval": [-0.1, 0.9]},
        {},
    ),
    "policy shorter, with a gain": Rule(
        "The policy's answers got shorter (24.9 to 16.4 words).",
        {"policy.others.empathy": 0.1},
        {"policy.others.empathy": 0.1, "policy.words_after": 22.5},
    ),
    "policy only longer": Rule(
        "The score rose with longer answers (24.9 to 30.0 words) and with no gain on another "
        "principle: length may be all that the policy learned.",
        {"policy.words_after": 30.0},
        {"policy.words_after": 27.3},
    ),
    "policy lost": Rule(
        "On the other principles the policy lost: detail (-0.48) and empathy (-0.31). These "
        "changes have no interval, so a small one may be chance.",
        {},
        {"policy.others.empathy": -0.004},
    ),
    "policy gained": Rule(
        "On the other principles the policy gained: empathy (+0.20). These changes have no "
        "interval, so a small one may be chance.",
        {"policy.others.empathy": 0.2},
        {"policy.others.empathy": 0.004},
    ),
    "policy pleased its reward": Rule(
        "The reward rose by 0.97, but the answers became alike.",
        {"details.policy_signs": ["The reward rose by 0.97, but the answers became alike."]},
        {},
    ),
    "policy trained for all": Rule(
        "By principle the policy lost: detail (-0.10). These changes have no interval, so a small "
        "one may be chance.",
        {"policy.others": {"conciseness": 0.2, "detail": -0.1, "empathy": 0.1}},
        {},
    ),
    "policy trained for all, gained": Rule(
        "By principle the policy gained: conciseness (+0.20) and empathy (+0.10). These changes "
        "have no interval, so a small one may be chance.",
        {"policy.others": {"conciseness": 0.2, "detail": -0.1, "empathy": 0.1}},
        {},
    ),
    "policy stopped": Rule(
        "Training was stopped by its limit on the KL divergence; the weights of step 10 were kept.",
        {"details.policy_stopped_by": "max_kl"},
        {},
    ),
    "policy stopped at once": Rule(
        "Training was stopped by its limit on the KL divergence; no step stayed below it, so the "
        "policy is the untrained model.",
        {"details.policy_stopped_by": "max_kl", "details.policy_steps": 0},
        {"details.policy_stopped_by": "max_kl"},
    ),
}


class TestFindings:
    @pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
    def test_a_sentence_is_said_where_the_numbers_call_for_it_alone(self, rule: Rule) -> None:
        assert rule.sentence in findings(example(rule.said))
        assert rule.sentence not in findings(example(rule.not_said))

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            (
                {"details.correlations": {"names": ["a", "b"], "matrix": [[1, -0.6], [-0.6, 1]]}},
                "opposed",
            ),
            (
                {"details.correlations": {"names": ["a", "b"], "matrix": [[1, 0.6], [0.6, 1]]}},
                "coincided",
            ),
            (
                {"details.length_correlation": {"detail": 0.5, "conciseness": -0.5}},
                "number of words",
            ),
            (
                {"steering.empathy.difference_interval": [0.0, 0.2]},
                "by the score of empathy raised",
            ),
            ({"steering.empathy.difference_interval": [-0.2, 0.0]}, "of empathy lowered"),
            ({"policy.words_before": 20.0, "policy.words_after": 22.0}, "longer answers"),
            ({"policy.words_before": 20.0, "policy.words_after": 18.0}, "shorter answers"),
            (
                {"details.judge_validation.empathy": leaning("shorter", 3 / 12)},
                "worse side of those",
            ),
        ],
    )
    def test_nothing_is_said_at_a_limit(self, changes: dict[str, Any], words: str) -> None:
        assert words not in " ".join(findings(example(changes)))

    @pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
    def test_each_question_has_one_answer(self, rule: Rule) -> None:
        said = findings(example(rule.said))
        for answers in (
            r"^The judge .*detail",
            r"^The preference models? of .*detail.*(probes)",
            r"^The preference models? of .*detail.*held-out pairs",
            r"^(On pairs of about equal length|Whether) .*detail",
            r"^Choosing by the score of detail (raised|lowered|had no effect)",
            r"^(Training the policy (raised|lowered|had no effect)|No policy was trained)",
        ):
            assert len([sentence for sentence in said if re.search(answers, sentence)]) == 1

    def test_each_sentence_has_a_rule(self) -> None:
        """What is said of any of these results is a sentence that a test above expects somewhere.

        Compared without numbers and names, since they differ from result to result.
        """
        expected = {_form(rule.sentence) for rule in RULES.values()}
        said = {_form(s) for rule in RULES.values() for s in findings(example(rule.said))}
        assert said <= expected

    def test_the_order_is_that_of_the_stages(self) -> None:
        said = findings(example())
        about = ["The judge", "Asked to name", "The preference", "The score followed", "Choosing"]
        firsts = [next(i for i, s in enumerate(said) if s.startswith(words)) for words in about]
        assert firsts == sorted(firsts)
        assert said[0].startswith("The judge")

    def test_nothing_is_claimed_about_people_or_behaviour(self) -> None:
        for rule in RULES.values():
            text = " ".join(findings(example(rule.said)))
            words = r"people|person|human|user|empathetic|aligned|safe|significant|prove[sd]?\b"
            assert not re.search(words, text)

    def test_an_undefined_correlation_is_not_spoken_of(self) -> None:
        nothing = [[1.0, None, float("nan")], [None, 1.0, None], [float("nan"), None, 1.0]]
        changes = {
            "details.correlations.matrix": nothing,
            "details.length_correlation": dict.fromkeys(EXAMPLE["principles"]),
        }
        assert not [s for s in findings(example(changes)) if "r = " in s]

    def test_a_principle_of_ones_own_is_spoken_of(self) -> None:
        """Nothing is known of its length, so nothing is said of which was meant to win."""
        result = json.loads(json.dumps(EXAMPLE).replace('"detail"', '"brevity"'))
        said = " ".join(findings(result))
        assert "brevity (r = +0.66)" in said
        assert "meant to" not in said


def _form(sentence: str) -> str:
    """Return a sentence without what differs between results: names, numbers, one or several."""
    bare = re.sub(r"\([^()]*\)", "", sentence)
    bare = re.sub(r"conciseness|detail|empathy|\band\b|,|\d+", "", bare)
    return re.sub(r"\s+", " ", bare.replace("models", "model"))


class TestClosingTable:
    def test_numbers_stand_in_their_columns(self) -> None:
        lines = closing_table(example()).splitlines()
        header, rule, *rows = lines[:5]
        assert [row.split()[0] for row in rows] == ["conciseness", "detail", "empathy"]
        assert {len(line) for line in (header, rule, *rows)} == {len(header)}
        assert "fit 0.83  0.62 [0.57, 0.67]    0.59  0.58 [0.49, 0.67]     -0.71" in rows[0]
        assert "unproven 0.58  0.68 [0.63, 0.73]" in rows[2]

    @pytest.mark.parametrize(
        "line",
        [
            "conciseness    0.50    0.69  +0.19 [+0.07, +0.29]          33.9          27.5",
            "score trained for   -0.21  +0.76  +0.97 [+0.57, +1.37]",
            "score of detail                                  -0.48",
            "words                24.9   16.4                  -8.5",
        ],
    )
    def test_steering_and_policy_are_in_it(self, line: str) -> None:
        assert line in closing_table(example()).splitlines()

    def test_its_notes_say_what_happened(self) -> None:
        text = " ".join(closing_table(example()).split())
        assert "response shown first in 98 % of its answers" in text
        assert "with the order in 96 % of the pairs" in text
        assert "Stopped after its last step; the weights of step 10 are kept" in text
        assert "time: 6 min 43 s (sample 1 min 32 s, label 2 min 8 s, train 41 s" in text
        warned = closing_table(example({"details.policy_signs": ["The reward rose, but."]}))
        assert "WARNING: The reward rose, but." in warned
        stopped = closing_table(example({"details.policy_stopped_by": "max_kl"}))
        assert "Stopped at its KL limit" in stopped

    def test_without_a_policy_it_says_so(self) -> None:
        text = closing_table(example(NO_POLICY))
        assert "policy: none was trained" in text
        assert "score trained for" not in text

    def test_what_was_not_measured_is_a_dash(self) -> None:
        changes = {
            "principles.detail.pm_accuracy": None,
            "principles.detail.pm_accuracy_interval": None,
            "principles.detail.length_baseline": None,
            "details.judge_validation.detail": None,
            "details.equal_length_accuracy.detail": None,
            "details.length_correlation.detail": None,
        }
        line = closing_table(example(changes)).splitlines()[3]
        assert line.split() == ["detail", "664", "-", "-", "-", "-", "-"]

    def test_no_line_is_too_long_for_a_terminal(self) -> None:
        longest = "a_principle_with_the_longest_name_there_"
        text = json.dumps(example({"details.judge_validation.detail": WRONG_WAY}))
        for name in ("detail", longest):
            lines = closing_table(json.loads(text.replace('detail"', f'{name}"')))
            assert max(map(len, lines.splitlines())) <= 100

    def test_a_name_that_does_not_fit_is_cut_and_shown_to_be(self) -> None:
        longest = "a_principle_with_the_longest_name_there_"
        result = json.loads(json.dumps(EXAMPLE).replace('detail"', f'{longest}"'))
        result["details"]["judge_validation"][longest] = WRONG_WAY
        assert re.search(r"^a_principle_with\w*\.\.\. ", closing_table(result), re.MULTILINE)


class Page(HTMLParser):
    """What a browser would see in a page: elements with their attributes, and the text."""

    VOID = ("meta", "link", "br", "use", "path", "rect")

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.faults: list[str] = []
        self.words: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if tag in self.VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, *tags: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.elements if tag in tags]

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def says(self, words: str) -> bool:
        """Whether words follow each other in the text, however they are spaced or set."""
        return "".join(words.split()) in "".join(self.text.split())


@pytest.fixture(scope="module")
def source() -> str:
    return render_report(json.loads(json.dumps(EXAMPLE)))


@pytest.fixture(scope="module")
def page(source: str) -> Page:
    return Page(source)


class TestPage:
    def test_every_element_is_closed(self, page: Page) -> None:
        assert page.faults == []
        assert page.open == []

    def test_ids_are_unique_and_references_find_theirs(self, page: Page) -> None:
        ids = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
        assert [name for name, count in ids.items() if count > 1] == []
        for _, attributes in page.elements:
            for name in ("href", "xlink:href"):
                if attributes.get(name, "").startswith("#"):
                    assert attributes[name][1:] in ids
            for style in attributes.values():
                assert set(re.findall(r"url\(#([^)]*)\)", style)) <= set(ids)
            if "aria-labelledby" in attributes:
                assert attributes["aria-labelledby"] in ids

    def test_nothing_is_fetched_and_nothing_runs(self, page: Page, source: str) -> None:
        tags = {tag for tag, _ in page.elements}
        assert not tags & {"script", "img", "iframe", "object", "embed", "form", "base", "video"}
        for _, attributes in page.elements:
            assert not [name for name in attributes if name.startswith("on") or name == "src"]
            for name in ("href", "xlink:href"):
                target = attributes.get(name, "#")
                assert target.startswith(("#", "data:"))
        assert not re.search(r"@import|url\((?!#)", source)
        assert len(page.all("style")) == 1  # a figure's own rules would hold for the whole page
        addresses = set(re.findall(r"https?://[^\s\"'<>]*", source))
        assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
        policy = next(m["content"] for m in page.all("meta") if "http-equiv" in m)
        assert policy.startswith("default-src 'none'")

    def test_a_screen_reader_finds_its_way(self, page: Page) -> None:
        assert page.all("html") == [{"lang": "en"}]
        levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
        assert levels.count(1) == 1
        assert all(after - before <= 1 for before, after in pairwise(levels))
        assert all(attributes.get("aria-label") for attributes in page.all("svg"))
        assert all(attributes["role"] == "img" for attributes in page.all("svg"))
        assert all("scope" in attributes for attributes in page.all("th"))
        assert len(page.all("svg")) == len(page.all("figcaption")) == 10

    @pytest.mark.parametrize(
        "words",
        [
            "A first sentence. A second sentence.",
            "to score higher on conciseness, and was watched on held-out prompts",
            "conciseness A high score means more concise",
            "conciseness fit 0.833 (0.641 to 0.933) 664 0.622 0.571 to 0.673 0.588 0.578 0.488 to "
            "0.665 101 pairs -0.71 unproven 0.583 (0.388 to 0.755)",
            "shown first in 98 % of its answers",
            "in 96 % of the pairs",
            "names a letter +48 points 96 %",
            "conciseness 50 % 69 % +0.19 +0.07 to +0.29 33.9 27.5",
            "25 % 28.6 +1.16 -0.22",
            "Score trained for: conciseness -0.21 +0.76 +0.97 +0.57 to +1.37",
            "Score of detail +0.11 -0.37 -0.48",
            "Answers that end by themselves 19 % 78 % +59 points",
            "KL, nats per token 0.000 0.061 +0.061",
            "10 (kept) +0.76 +0.76 -0.37 -0.23 0.061 16.4 78 %",
            "before A haiku is a traditional form",
            "after A haiku is a short Japanese poem",
            "by conciseness Light travels faster than sound.",
            "by empathy empty",
            "label 2 min 8 s 32 %",
            "--weights conciseness=0.33,detail=0.33,empathy=0.33",
        ],
    )
    def test_the_numbers_and_texts_are_there(self, page: Page, words: str) -> None:
        assert page.says(words)

    def test_the_same_result_gives_the_same_page(self, source: str) -> None:
        assert render_report(example()) == source

    def test_a_models_text_is_text(self) -> None:
        hostile = "</h4></article><script>alert(1)</script><img src=//x onerror='y'>&\"{{ 7 * 7 }}"
        changes = {
            "details.model.name": hostile,
            "details.findings": [hostile],
            "details.steering_examples.0.prompt": hostile,
            "details.steering_examples.0.random": hostile,
            "details.steering_examples.0.chosen.detail": hostile,
            "details.policy_examples.0.prompt": hostile,
            "details.policy_examples.0.before": hostile,
            "details.policy_examples.0.after": hostile,
        }
        page = Page(render_report(example(changes)))
        assert page.faults == []
        assert page.all("script", "img") == []
        assert page.text.count(hostile) == len(changes)

    @pytest.mark.parametrize(
        "path",
        [
            "seconds.total",
            "letter_judge.flip_rate",
            "details.seed",
            "details.judge_validation.detail.interval",
            "details.steering_examples.0.random",
            "policy.kl",
        ],
    )
    def test_a_missing_field_is_an_error_and_no_gap(self, path: str) -> None:
        with pytest.raises(UndefinedError):
            render_report(example({path: "absent"}))

    def test_a_null_is_an_error_where_a_value_is_shown(self) -> None:
        with pytest.raises(TypeError, match="a page cannot print None"):
            render_report(example({"details.seed": None}))

    def test_without_a_policy_it_ends_with_steering(self) -> None:
        page = Page(render_report(example(NO_POLICY)))
        assert page.faults == []
        assert "No policy was trained in this run" in page.text
        assert "GRPO" not in page.text
        assert "Before and after" not in page.text
        assert len(page.all("svg")) == 6

    def test_what_was_not_measured_is_said_in_words(self) -> None:
        changes: dict[str, Any] = {
            "details.correlations.matrix": [[1.0, None, float("nan")]] * 3,
            "details.equal_length_accuracy.detail": None,
            "details.length_correlation.detail": None,
            "details.judge_validation.detail": None,
            "details.pm_validation.detail": None,
        }
        for name in EXAMPLE["principles"]:
            for key in ("pm_accuracy", "pm_accuracy_interval", "length_baseline"):
                changes[f"principles.{name}.{key}"] = None
        page = Page(render_report(example(changes)))
        row = "detail not tried 664 not measured not measured no such pairs not defined not tried"
        assert page.says(row)
        assert len(page.all("svg")) == 9

    def test_the_kept_weights_are_those_compared(self) -> None:
        """Above the limit a last check follows the kept one; it is drawn and not compared."""
        changes = {
            "details.policy_stopped_by": "max_kl",
            "details.policy_steps": 8,
            "policy.others": {"detail": -0.42, "empathy": -0.28},
        }
        page = Page(render_report(example(changes)))
        assert page.says("Score of detail +0.11 -0.31 -0.42")
        assert page.says("Answers that end by themselves 19 % 69 % +50 points")
        assert "8 (kept)" in page.text
        assert "stopped at its limit on the KL" in page.text

    @pytest.mark.parametrize(
        ("reward", "drawn"),
        [(None, ["conciseness", "detail", "empathy"]), (0.1, ["reward", *EXAMPLE["principles"]])],
    )
    def test_the_reward_is_drawn_where_it_is_not_one_principles_score(
        self, reward: float | None, drawn: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        series: list[list[str]] = []
        draw = report.learning_curves

        def watched(steps: Any, lines: Any, *, y_label: str) -> Figure:
            series.append(list(lines))
            return draw(steps, lines, y_label=y_label)

        monkeypatch.setattr(report, "learning_curves", watched)
        changes = {} if reward is None else {"details.policy_curve.5.reward": reward}
        render_report(example(changes))
        assert series == [drawn, ["KL"], ["words"], ["finished"]]

    def test_a_principle_of_ones_own_has_its_direction_too(self) -> None:
        renamed = json.loads(json.dumps(EXAMPLE).replace('"detail"', '"brevity"'))
        text = Page(render_report(renamed)).text
        assert "A high score means that the response does better on brevity." in text


def test_reporting_needs_no_model_library() -> None:
    code = "import sys, morlaif_hub.evaluation.report as r; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_the_readmes_table_is_that_of_the_stored_run() -> None:
    """The run of `make quickstart` whose result is kept in docs/quickstart.json."""
    root = Path(__file__).parents[1]
    stored = json.loads((root / "docs/quickstart.json").read_text(encoding="utf-8"))
    readme = (root / "README.md").read_text(encoding="utf-8")
    assert f"```\n{closing_table(stored)}\n```" in readme
    assert stored["details"]["findings"] == findings(stored)
