"""Signs of over-optimisation: told where something fell while the reward rose, and only there."""

from dataclasses import replace
from typing import Any

import pytest

from morlaif_hub.hub.cards import render_card
from morlaif_hub.hub.manifest import PolicyManifest
from morlaif_hub.hub.over_optimisation import LESS_DIFFERENT, signs
from morlaif_hub.hub.policy_records import ChangeRecord
from tests.manifests import held_out_record, policy_manifest, weight_records

CALM = {
    "changes": (
        ChangeRecord(objective="conciseness", interval=(0.6, 1.4)),
        ChangeRecord(objective="toxicity", interval=(-0.2, 0.3)),
    ),
    "judge": None,
}


def manifest(*, distinct: float = 1.0, reward: float = 0.97, **watched: Any) -> PolicyManifest:
    """Return a policy's manifest in which nothing fell, with what is changed."""
    made = policy_manifest(watched=held_out_record(**CALM | watched))
    first, last = made.curve
    curve = (replace(first, distinct=1.0), replace(last, distinct=distinct, reward=reward))
    weights = tuple(replace(weight, value=abs(weight.value)) for weight in weight_records())
    return replace(made, curve=curve, weights=weights)


def changed(low: float, high: float) -> tuple[ChangeRecord, ...]:
    return (CALM["changes"][0], ChangeRecord(objective="toxicity", interval=(low, high)))  # type: ignore[index]


def judge(low: float, high: float) -> Any:
    found = held_out_record().judge
    assert found is not None
    return replace(found, interval=(low, high))


def test_nothing_is_said_where_nothing_fell() -> None:
    assert signs(manifest()) == []
    assert "Look at what it cost" not in render_card(manifest(), figures=[])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"changes": changed(-0.9, -0.1)}, "toxicity fell by"),
        ({"judge": judge(0.1, 0.4)}, "the judge prefers the answers from before training on helpf"),
        (
            {"distinct": 0.99 - LESS_DIFFERENT},
            "the answers became alike: 89% of them",
        ),
    ],
)
def test_what_fell_is_said_in_the_card_too(change: Any, said: str) -> None:
    (sign,) = signs(manifest(**change))
    assert sign.startswith(f"The reward rose by 1.01, but {said}")
    card = render_card(manifest(**change), figures=[])
    assert card.index("Look at what it cost") < card.index("## What it was rewarded for")
    assert said.split(":")[0] in card


@pytest.mark.parametrize(
    "change",
    [
        {"changes": changed(-0.9, 0.1)},  # chance alone may explain it
        {"judge": judge(0.4, 0.6)},
        {"distinct": 1.01 - LESS_DIFFERENT},
        {"changes": changed(-0.9, -0.1), "judge": judge(0.1, 0.4), "reward": -0.04},  # no rise
    ],
)
def test_chance_and_a_reward_that_did_not_rise_are_not_told(change: Any) -> None:
    assert signs(manifest(**change)) == []


def test_a_principle_of_negative_weight_is_meant_to_fall() -> None:
    made = manifest(changes=changed(-0.9, -0.1))
    assert signs(replace(made, weights=weight_records())) == []


def test_what_was_not_recorded_is_not_judged() -> None:
    assert signs(policy_manifest(watched=None)) == []
    assert signs(policy_manifest(curve=(), delta_interval=None)) == []
