"""The benchmark of PPO compares what it says it compares."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from benchmarks import ppo
from benchmarks.ppo import Goals, Rounds, report
from benchmarks.ppo_peer import EvenTokens, even_share

ABOUT = "a policy"


def found(ours: float, memory: float) -> list[Rounds]:
    """Return figures of two seconds a round and 1,000 MB for TRL, twelve with its collector."""
    figures: dict[str, Any] = {"rewards": [0.5, 0.6], "kl": [0.0, 0.1]}
    return [
        Rounds("ours", [ours, ours, 99.0], [0.5, 0.5, 9.0], memory, **figures),
        Rounds("trl", [12.0], [10.0], 1001.0, **figures),
        Rounds("trl without gc", [2.0], [2.0], 1000.0, **figures),
    ]


def test_both_sides_have_the_same_reward() -> None:
    model = EvenTokens()
    ids = torch.tensor([[9, 9, 4, 6, 7, 8], [3, 2, 5, 5, 9, 9]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    states = model.backbone(ids, mask).hidden_states[-1]
    rewards = model.score(states)[..., 0]
    assert rewards[0, 5] == pytest.approx(even_share([4, 6, 7, 8]))
    assert rewards[1, 3] == pytest.approx(even_share([3, 2, 5, 5]))


@pytest.mark.parametrize(
    ("ours", "memory", "held"), [(1.0, 600.0, True), (1.5, 600.0, False), (1.0, 800.0, False)]
)
def test_goals_are_against_trl_without_its_collector(
    ours: float, memory: float, held: bool
) -> None:
    some = found(ours, memory)
    goals = Goals.of(some)
    assert (goals.faster, goals.smaller) == (pytest.approx(2 / ours), pytest.approx(memory / 1000))
    assert goals.cheaper == 0.25
    made = report(some, about=ABOUT, tiny=False)
    assert goals.held is held
    assert made.exit_code == int(not held)
    assert ("NOT held" in " ".join(made.text.split())) is not held
    json.dumps(made.data, allow_nan=False)
    tiny = report(some, about=ABOUT, tiny=True)
    assert (tiny.exit_code, tiny.data["held"]) == (0, None)


def test_the_options_are_explained() -> None:
    done = CliRunner().invoke(ppo.main, ["--help"])
    assert done.exit_code == 0
    assert "--environment" in done.output


@pytest.mark.slow
def test_our_side_trains_in_a_process_of_its_own(tmp_path: Path) -> None:
    from benchmarks.children import in_child
    from tests.tiny import save_tiny

    job = {
        "base": str(save_tiny(tmp_path / "base")),
        "prompts": ["Say it"] * 8,
        "scratch": str(tmp_path),
        "rollouts": 4,
        "minibatches": 2,
        "epochs": 1,
        "max_new_tokens": 4,
        "steps": 1,
        "learning_rate": 1e-3,
        "threads": 1,
        "seed": 0,
    }
    took = in_child("benchmarks.ppo:train", job, scratch=tmp_path)
    assert len(took["seconds"]) == 1
    assert len(took["rewards"]) == 2
    assert took["megabytes"] > 100
