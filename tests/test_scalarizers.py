"""Properties that every scalarizer has, a plugin's included, and values worked out by hand.

A property is a function `check_...(combine)`. The faults of the original implementation are
imitated at the end, and each must fail the property that is there to catch it.
"""

import inspect
import itertools
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plugin_site import DISTRIBUTION, install_example_plugin, use_example_plugin
from torch import Tensor

from morlaif_hub.errors import OptionError, ScoreError
from morlaif_hub.scalarizers import SCALARIZERS, Scalarizer, log_sigmoid, weighted

OURS = SCALARIZERS.names()
PLUGIN = f"{DISTRIBUTION}/certainty_equivalent"
EVERY = [*[name for name in OURS if "/" not in name], PLUGIN]
NOT_MONOTONE = {"soft_max_min", "uncertainty_weighted"}  # and their docstrings say so
UNBOUNDED = {"linear", "uncertainty_weighted", "bernoulli_nash"}  # may leave [min r, max r]

every = pytest.mark.parametrize("name", EVERY)
steady = settings(deadline=None, derandomize=True, database=None, max_examples=40)


@pytest.fixture(scope="module", autouse=True)
def example_plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        use_example_plugin(install_example_plugin(tmp_path_factory), patch)
        yield


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Scores of 1 to 4 rows and 1 to 6 objectives, with weights that are not all zero."""
    rows, objectives = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    score = st.floats(-9, 9, width=32) | st.sampled_from([-1.0, 0.0, 1.0])  # ties matter
    weight = st.floats(0.125, 4, width=32) | st.sampled_from([0.0, 1.0])
    row = st.lists(score, min_size=objectives, max_size=objectives)
    scores = draw(st.lists(row, min_size=rows, max_size=rows))
    weights = draw(st.lists(weight, min_size=objectives, max_size=objectives).filter(any))
    return torch.tensor(scores).double(), torch.tensor(weights).double()


def random_batch(rows: int, objectives: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, objectives, generator=generator, dtype=torch.float64) * 2
    weights = torch.rand(objectives, generator=generator, dtype=torch.float64) + 0.25
    return scores, weights


# Properties


def check_rows_are_independent(combine: Scalarizer, scores: Tensor, weights: Tensor) -> None:
    alone = torch.cat([combine(row[None], weights) for row in scores])
    torch.testing.assert_close(combine(scores, weights), alone)


def check_order_of_objectives(combine: Scalarizer, scores: Tensor, weights: Tensor) -> None:
    for order in itertools.islice(itertools.permutations(range(len(weights))), 24):
        moved = combine(scores[:, list(order)], weights[list(order)])
        torch.testing.assert_close(moved, combine(scores, weights))


def check_monotone(combine: Scalarizer, scores: Tensor, weights: Tensor) -> None:
    before = combine(scores, weights)
    for objective in range(len(weights)):
        better = scores.clone()
        better[:, objective] += 0.75
        assert (combine(better, weights) >= before - 1e-9).all()


def check_inputs_stay(combine: Scalarizer, scores: Tensor, weights: Tensor) -> None:
    given_scores, given_weights = scores.clone(), weights.clone()
    combine(scores, weights).fill_(7.0)  # nor may the result be a window on them
    assert torch.equal(scores, given_scores)
    assert torch.equal(weights, given_weights)


def check_finite(combine: Scalarizer, scores: Tensor, weights: Tensor) -> None:
    scores = scores.clone().requires_grad_()
    weights = weights.clone().requires_grad_()
    rewards = combine(scores, weights)
    rewards.sum().backward()
    for tensor in (rewards, scores.grad, weights.grad):
        assert tensor is not None
        assert tensor.isfinite().all()


@every
@given(batch=batches())
@steady
def test_rows_are_independent(name: str, batch: tuple[Tensor, Tensor]) -> None:
    check_rows_are_independent(SCALARIZERS.get(name), *batch)


@every
@given(batch=batches())
@steady
def test_order_of_objectives_is_of_no_account(name: str, batch: tuple[Tensor, Tensor]) -> None:
    check_order_of_objectives(SCALARIZERS.get(name), *batch)


@pytest.mark.parametrize("name", sorted(set(EVERY) - NOT_MONOTONE))
@given(batch=batches())
@steady
def test_a_better_score_never_lowers_the_reward(name: str, batch: tuple[Tensor, Tensor]) -> None:
    check_monotone(SCALARIZERS.get(name), *batch)


@pytest.mark.parametrize("name", sorted(NOT_MONOTONE))
def test_the_others_are_not_monotone_and_say_so(name: str) -> None:
    combine = SCALARIZERS.get(name)
    apart, further = torch.tensor([[0.0, 4.0]]), torch.tensor([[0.0, 5.0]])
    assert combine(further, torch.ones(2)) < combine(apart, torch.ones(2))
    assert "can lower the result" in " ".join(str(inspect.getdoc(combine)).split())


@every
@given(batch=batches())
@steady
def test_inputs_are_not_changed(name: str, batch: tuple[Tensor, Tensor]) -> None:
    check_inputs_stay(SCALARIZERS.get(name), *batch)


@every
@given(batch=batches())
@steady
def test_values_and_gradients_are_finite(name: str, batch: tuple[Tensor, Tensor]) -> None:
    check_finite(SCALARIZERS.get(name), *batch)


@every
@pytest.mark.parametrize("objectives", [1, 2, 12])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e4])
def test_extreme_scores_stay_finite(name: str, objectives: int, size: float) -> None:
    scores, weights = random_batch(5, objectives)
    check_finite(SCALARIZERS.get(name), (scores * size).float(), weights.float())


@every
def test_gradients_are_the_slopes(name: str) -> None:
    scores, weights = random_batch(3, 4)
    assert torch.autograd.gradcheck(
        SCALARIZERS.get(name), (scores.requires_grad_(), weights.requires_grad_())
    )


@pytest.mark.parametrize("name", sorted(set(EVERY) - UNBOUNDED))
@given(batch=batches())
@steady
def test_reward_lies_between_worst_and_best(name: str, batch: tuple[Tensor, Tensor]) -> None:
    combined, rewards = weighted(*batch), SCALARIZERS.get(name)(*batch)
    assert (rewards >= combined.amin(dim=1) - 1e-9).all()
    assert (rewards <= combined.amax(dim=1) + 1e-9).all()


@pytest.mark.parametrize("name", [n for n in EVERY if n != "bernoulli_nash"])
def test_one_objective_is_its_own_reward(name: str) -> None:
    scores = torch.tensor([[1.5], [-3.0], [0.0]])
    rewards = SCALARIZERS.get(name)(scores, torch.tensor([2.0]))
    torch.testing.assert_close(rewards, torch.tensor([3.0, -6.0, 0.0]))


@every
def test_shape_and_dtype_are_kept(name: str) -> None:
    combine = SCALARIZERS.get(name)
    for dtype in (torch.float32, torch.float64):
        rewards = combine(torch.zeros(3, 2, dtype=dtype), torch.ones(2, dtype=dtype))
        assert (rewards.shape, rewards.dtype) == ((3,), dtype)
    assert combine(torch.zeros(0, 2), torch.ones(2)).shape == (0,)


# Values worked out by hand

BY_HAND: list[tuple[str, dict[str, float], list[float], list[float], float]] = [
    # name, options, scores, weights, reward
    ("linear", {}, [1.0, -2.0, 3.0], [1.0, 2.0, 0.5], 1 - 4 + 1.5),
    ("max_min", {}, [1.0, -2.0, 3.0], [1.0, 0.25, 2.0], -0.5),
    ("max_min", {}, [5.0, 1.0], [0.0, 3.0], 0.0),
    # softmin of 0 and ln 3 is 3/4 and 1/4
    ("soft_max_min", {}, [0.0, math.log(3)], [1.0, 1.0], math.log(3) / 4),
    ("soft_max_min", {"temperature": 2.0}, [0.0, math.log(9)], [1.0, 1.0], math.log(9) / 4),
    ("soft_max_min", {}, [0.0, math.log(3) / 5], [1.0, 5.0], math.log(3) / 4),
    ("soft_max_min", {"temperature": 1e-6}, [2.0, -1.0, 4.0], [1.0, 1.0, 1.0], -1.0),
    ("soft_max_min", {"temperature": 1e-300}, [2.0, 2.0, 4.0], [1.0, 1.0, 1.0], 2.0),
    ("soft_max_min", {"temperature": 1e9}, [2.0, -1.0, 5.0], [1.0, 1.0, 1.0], 2.0),
    # 1, 3: mean 2, population variance 1 (the sample's would be 2)
    ("uncertainty_weighted", {}, [1.0, 3.0], [1.0, 1.0], 2 - 0.5),
    ("uncertainty_weighted", {"penalty": 2.0}, [1.0, 3.0], [1.0, 1.0], 2 - 2.0),
    ("uncertainty_weighted", {"penalty": 0.0}, [1.0, 3.0], [1.0, 1.0], 2.0),
    ("uncertainty_weighted", {}, [1.0, 1.0], [1.0, 3.0], 2 - 0.5),
    # the lowest ceil(K / 3): 1 of 1, 2 and 3; 2 of 4; 4 of 12
    ("lower_quantile", {}, [3.0, -1.0], [1.0, 1.0], -1.0),
    ("lower_quantile", {}, [3.0, -1.0, 0.0], [1.0, 1.0, 1.0], -1.0),
    ("lower_quantile", {}, [3.0, -1.0, 0.0, 9.0], [1.0, 1.0, 1.0, 1.0], -0.5),
    ("lower_quantile", {}, [float(i) for i in range(12)], [1.0] * 12, 1.5),
    ("lower_quantile", {}, [1.0, 2.0, 3.0], [5.0, 1.0, 1.0], 2.0),
    ("lower_quantile", {"quantile": 1.0}, [3.0, -1.0, 1.0], [1.0, 1.0, 1.0], 1.0),
    ("lower_quantile", {"quantile": 0.01}, [3.0, -1.0], [1.0, 1.0], -1.0),
    ("lower_quantile", {"quantile": 0.07}, [float(i) for i in range(100)], [1.0] * 100, 3.0),
    ("max_median", {}, [9.0, -4.0, 1.0], [1.0, 1.0, 1.0], 1.0),
    ("max_median", {}, [9.0, -4.0, 1.0, 2.0], [1.0, 1.0, 1.0, 1.0], 1.5),
    ("max_median", {}, [4.0, 2.0], [0.5, 3.0], 4.0),
    # sigmoid(0) is 1/2, sigmoid(ln 3) is 3/4, sigmoid(-ln 3) is 1/4
    ("bernoulli_nash", {}, [0.0], [5.0], 0.5),
    ("bernoulli_nash", {}, [math.log(3)] * 12, [0.3] * 12, 0.75),
    ("bernoulli_nash", {}, [math.log(3), -math.log(3)], [1.0, 1.0], math.sqrt(3) / 4),
    ("bernoulli_nash", {}, [math.log(3), 0.0], [3.0, 1.0], (0.75**3 * 0.5) ** 0.25),
    ("bernoulli_nash", {}, [math.log(3), -1e4], [1.0, 0.0], 0.75),
    # -ln((1 + e^-ln3) / 2) = ln(3/2)
    (PLUGIN, {}, [0.0, math.log(3)], [1.0, 1.0], math.log(1.5)),
]


@pytest.mark.parametrize(("name", "options", "scores", "weights", "expected"), BY_HAND)
def test_by_hand(
    name: str, options: dict[str, float], scores: list[float], weights: list[float], expected: float
) -> None:
    rewards = SCALARIZERS.get(name)(
        torch.tensor([scores, scores], dtype=torch.float64),
        torch.tensor(weights, dtype=torch.float64),
        **options,
    )
    torch.testing.assert_close(rewards, torch.tensor([expected] * 2, dtype=torch.float64))


def test_every_scalarizer_has_a_value_by_hand_and_a_source() -> None:
    assert {row[0] for row in BY_HAND} == set(EVERY)
    for name in EVERY:
        _, _, source = str(inspect.getdoc(SCALARIZERS.get(name))).partition("Source:\n")
        assert source.strip().startswith("https://"), name


def test_the_seven_and_their_aliases() -> None:
    assert {name for name in SCALARIZERS.names() if "/" not in name} == {
        "linear",
        "max_min",
        "soft_max_min",
        "uncertainty_weighted",
        "lower_quantile",
        "max_median",
        "bernoulli_nash",
    }
    assert SCALARIZERS.aliases() == {"worst_case": "max_min", "minimax": "max_min"}
    assert SCALARIZERS.get("minimax") is SCALARIZERS.get("worst_case") is SCALARIZERS.get("max_min")


# Refusals


@every
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_named(name: str, value: float) -> None:
    scores = torch.zeros(3, 2)
    scores[2, 1] = value
    with pytest.raises(ScoreError, match=r"row 2 .*objective 1"):
        SCALARIZERS.get(name)(scores, torch.ones(2))


@every
@pytest.mark.parametrize(
    ("scores", "weights"),
    [
        (torch.zeros(2), torch.ones(2)),
        (torch.zeros(2, 2, 2), torch.ones(2)),
        (torch.zeros(2, 3), torch.ones(2)),
        (torch.zeros(2, 3), torch.ones(1)),  # would broadcast
        (torch.zeros(2, 3), torch.ones(2, 3)),  # would broadcast
        (torch.zeros(2, 3), torch.tensor(1.0)),  # would broadcast
        (torch.zeros(2, 0), torch.ones(0)),
        (torch.zeros(2, 3, dtype=torch.int64), torch.ones(3)),
        (torch.zeros(2, 2), torch.tensor([1.0, math.nan])),
        (torch.zeros(2, 2), torch.tensor([1.0, math.inf])),
    ],
)
def test_wrong_inputs_are_refused(name: str, scores: Tensor, weights: Tensor) -> None:
    with pytest.raises(OptionError):
        SCALARIZERS.get(name)(scores, weights)


@pytest.mark.parametrize(
    ("name", "option", "values"),
    [
        ("soft_max_min", "temperature", [0.0, -1.0, math.inf, math.nan]),
        ("uncertainty_weighted", "penalty", [-0.1, math.inf, math.nan]),
        ("lower_quantile", "quantile", [0.0, -0.5, 1.01, math.nan]),
    ],
)
def test_wrong_options_are_refused(name: str, option: str, values: list[float]) -> None:
    for value in values:
        with pytest.raises(OptionError, match=f"{option} .*{value}"):
            SCALARIZERS.get(name)(torch.zeros(2, 2), torch.ones(2), **{option: value})


@pytest.mark.parametrize("weights", [[1.0, -0.5], [0.0, 0.0], [-1.0, -1.0]])
def test_bernoulli_nash_needs_weights_of_at_least_zero(weights: list[float]) -> None:
    with pytest.raises(OptionError, match="bernoulli_nash needs weights of at least 0"):
        SCALARIZERS.get("bernoulli_nash")(torch.zeros(2, 2), torch.tensor(weights))


# bernoulli_nash and log_sigmoid


def test_bernoulli_nash_does_not_underflow() -> None:
    """A product of 40 probabilities of about 5e-5 is no float32; their geometric mean is."""
    scores = torch.full((1, 40), -10.0, requires_grad=True)
    reward = SCALARIZERS.get("bernoulli_nash")(scores, torch.ones(40))
    torch.testing.assert_close(reward, torch.tensor([-10.0]).sigmoid())
    reward.sum().backward()
    assert scores.grad is not None
    assert (scores.grad > 0).all()


@given(batch=batches())
@steady
def test_bernoulli_nash_lies_between_the_probabilities(batch: tuple[Tensor, Tensor]) -> None:
    scores, weights = batch
    rewards = SCALARIZERS.get("bernoulli_nash")(scores, weights)
    heard = scores[:, weights > 0].sigmoid()
    assert (rewards >= heard.amin(dim=1) - 1e-12).all()
    assert (rewards <= heard.amax(dim=1) + 1e-12).all()
    torch.testing.assert_close(SCALARIZERS.get("bernoulli_nash")(scores, weights * 10), rewards)


def test_log_sigmoid_by_hand() -> None:
    scores = torch.tensor([[0.0, math.log(3)], [-math.log(3), -1e4]], dtype=torch.float64)
    expected = torch.tensor(
        [[math.log(1 / 2), math.log(3 / 4)], [math.log(1 / 4), -1e4]], dtype=torch.float64
    )
    torch.testing.assert_close(log_sigmoid(scores), expected)
    torch.testing.assert_close(log_sigmoid(scores + 2, center=2.0), expected)


def test_log_sigmoid_makes_a_sum_a_logical_and() -> None:
    """Two middling scores beat a very good and a very bad one, which a plain sum cannot tell."""
    middling, uneven = torch.tensor([[0.0, 0.0]]), torch.tensor([[6.0, -6.0]])
    linear = SCALARIZERS.get("linear")
    assert linear(middling, torch.ones(2)) == linear(uneven, torch.ones(2))
    assert linear(log_sigmoid(middling), torch.ones(2)) > linear(log_sigmoid(uneven), torch.ones(2))


@every
def test_log_sigmoid_goes_before_any_scalarizer(name: str) -> None:
    scores, weights = random_batch(4, 3)
    given_scores = scores.clone()

    def combine(scores: Tensor, weights: Tensor) -> Tensor:
        return SCALARIZERS.get(name)(log_sigmoid(scores, center=0.5), weights)

    check_rows_are_independent(combine, scores, weights)
    check_finite(combine, scores * 1e3, weights)
    assert torch.equal(scores, given_scores)


def test_log_sigmoid_refuses_what_scalarizers_refuse() -> None:
    with pytest.raises(ScoreError, match=r"row 0 .*objective 1"):
        log_sigmoid(torch.tensor([[0.0, math.nan]]))
    with pytest.raises(OptionError, match="shape"):
        log_sigmoid(torch.zeros(3))
    with pytest.raises(OptionError, match="center"):
        log_sigmoid(torch.zeros(1, 1), center=math.inf)


# The faults of the original implementation, imitated


def pooled_lower_third(scores: Tensor, weights: Tensor) -> Tensor:
    """Sorts the whole batch as if it were one row."""
    values = (scores * weights).flatten().sort().values
    return values[: max(len(values) // 3, 1)].mean()


def empty_lower_third(scores: Tensor, weights: Tensor) -> Tensor:
    """Rounds down, so that a third of two objectives is none of them."""
    ordered = (scores * weights).sort(dim=1).values
    return ordered[:, : scores.shape[1] // 3].mean(dim=1)


def pooled_median(scores: Tensor, weights: Tensor) -> Tensor:
    return (scores * weights).median()


def one_row_soft_max_min(scores: Tensor, weights: Tensor) -> Tensor:
    """Raises on a batch: a dot product knows no rows."""
    combined = scores * weights
    return torch.dot(combined, (-combined).softmax(dim=0))


def product_of_signed_logits(scores: Tensor, weights: Tensor) -> Tensor:
    return (scores * weights).prod(dim=1)


def product_without_the_root(scores: Tensor, weights: Tensor) -> Tensor:
    return (scores.sigmoid() ** weights).prod(dim=1)


def weighs_in_place(scores: Tensor, weights: Tensor) -> Tensor:
    return scores.mul_(weights).sum(dim=1)


def weighs_the_nash_scores(scores: Tensor, weights: Tensor) -> Tensor:
    """Uses r where z is meant."""
    return SCALARIZERS.get("bernoulli_nash")(scores * weights, weights)


def nash_in_plain_numbers(scores: Tensor, weights: Tensor) -> Tensor:
    return (scores.sigmoid() ** (weights / weights.sum())).prod(dim=1)


def check_two_bad_scores_are_worse_than_two_good(
    combine: Scalarizer, scores: Tensor, weights: Tensor
) -> None:
    bad = torch.full_like(scores, -2.0)
    assert (combine(bad, weights) < combine(-bad, weights)).all()


def check_number_of_objectives_is_of_no_account(
    combine: Scalarizer, scores: Tensor, weights: Tensor
) -> None:
    twice = combine(torch.cat([scores, scores], dim=1), torch.cat([weights, weights]))
    torch.testing.assert_close(twice, combine(scores, weights))


def check_scale_of_weights_is_of_no_account(
    combine: Scalarizer, scores: Tensor, weights: Tensor
) -> None:
    torch.testing.assert_close(combine(scores, weights * 2), combine(scores, weights))


def check_extremes_are_finite(combine: Scalarizer, scores: Tensor, weights: Tensor) -> None:
    check_finite(combine, torch.full_like(scores, -1e4), weights)


Check = Callable[[Scalarizer, Tensor, Tensor], None]

FAULTS: list[tuple[str, Scalarizer, Check]] = [
    ("lower_quantile", pooled_lower_third, check_rows_are_independent),
    ("lower_quantile", empty_lower_third, check_finite),
    ("max_median", pooled_median, check_rows_are_independent),
    ("soft_max_min", one_row_soft_max_min, check_rows_are_independent),
    (
        "bernoulli_nash",
        product_of_signed_logits,
        check_two_bad_scores_are_worse_than_two_good,
    ),
    ("bernoulli_nash", product_of_signed_logits, check_monotone),
    ("bernoulli_nash", product_without_the_root, check_number_of_objectives_is_of_no_account),
    ("bernoulli_nash", weighs_the_nash_scores, check_scale_of_weights_is_of_no_account),
    ("bernoulli_nash", nash_in_plain_numbers, check_extremes_are_finite),
    ("linear", weighs_in_place, check_inputs_stay),
]


@pytest.mark.parametrize(("name", "faulty", "check"), FAULTS)
def test_faults_of_the_original_are_caught(name: str, faulty: Scalarizer, check: Check) -> None:
    with pytest.raises((AssertionError, RuntimeError)):
        check(faulty, *random_batch(2, 2))
    check(SCALARIZERS.get(name), *random_batch(2, 2))


@every
def test_two_bad_scores_are_worse_than_two_good(name: str) -> None:
    check_two_bad_scores_are_worse_than_two_good(SCALARIZERS.get(name), *random_batch(2, 2))
