"""What a quickstart's numbers say and do not say, in plain sentences.

Each sentence is bound to a rule on the numbers, and none is about more than was measured: an
interval that contains chance is said to do so, and what has no interval is said to have none.
Verbs are in the past tense, so that a sentence reads the same about one principle and several.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from morlaif_hub.evaluation.wording import bounds, listed, number, percent
from morlaif_hub.principles import load_constitution
from morlaif_hub.statistics import wilson_interval

Result = Mapping[str, Any]
Items = Iterable[tuple[str, str]]
"""What sentences are about: the kind, which is a key of the sentences, and the words for it."""

FOLLOWS_LENGTH = 0.5  # |r| of a score with the number of words above which it is said to follow it
OVERLAPS = 0.6  # |r| of two objectives above which they are said to coincide or to oppose
OTHER_LENGTH = 0.1  # share of its words by which a policy's answers have to change to be mentioned
PARTS = {"longer": "the longer one", "shorter": "the shorter one", "equal": "equally long"}

_JUDGE_ON_PROBES = {
    "fit": "The judge found the better side of the probes more often than chance: fit for {these}.",
    "unproven": "The judge is unproven on {these}: it did no better on the probes than chance can "
    "explain.",
    "wrong way": "The judge went the wrong way on {these}: it preferred the worse side of the "
    "probes. Do not use its labels there.",
    "untried": "The judge was not tried on probes of {these}: nothing shows that its labels follow "
    "the principle.",
}
_MODELS_ON_PROBES = {
    "fit": "The {models} found the better side of the probes more often than chance: fit.",
    "unproven": "The {models} did no better on the probes than chance can explain: unproven.",
    "wrong way": "The {models} preferred the worse side of the probes: wrong way. Do not train on "
    "such a score.",
    "untried": "The {models} had no probes to be tried on: nothing shows that such a score follows "
    "the principle.",
}
_MODELS_ON_PAIRS = {
    "above": "The {models} agreed with the judge on held-out pairs more often than chance.",
    "open": "The {models} agreed with the judge on held-out pairs no more often than chance can "
    "explain.",
    "below": "The {models} disagreed with the judge on held-out pairs more often than chance.",
    "untried": "The {models} had no held-out pairs to be tried on.",
}
_MODELS_AND_LENGTH = {
    "no better": "The {models} did not beat the rule that only looks at length by more than chance "
    "can explain.",
    "equal, above": "On pairs of about equal length the {models} still agreed with the judge more "
    "often than chance or length can explain.",
    "equal, open": "On pairs of about equal length the {models} agreed with the judge no more "
    "often than chance or length can explain: length may be all that was learned.",
    "equal, untried": "Whether the {models} saw more than length was not measured: no held-out "
    "pairs were of about equal length.",
}


def findings(result: Result) -> list[str]:
    """Return what a quickstart's numbers say, in the order of its stages.

    Args:
        result: What `morlaif-hub quickstart --json` prints; `details.findings` may be missing.
    """
    stages = (_judge, _letter_judge, _models, _length, _objectives, _steering, _policy)
    return [sentence for stage in stages for sentence in stage(result)]


def _judge(result: Result) -> Iterator[str]:
    records = result["details"]["judge_validation"]
    yield from _sentences(_JUDGE_ON_PROBES, _verdicts(result, records))
    yield from _leanings("judge", result, records)


def _letter_judge(result: Result) -> Iterator[str]:
    judge = result["letter_judge"]
    yield (
        "Asked to name a letter, in both orders, the same model preferred the response shown first "
        f"in {percent(0.5 + judge['position_bias'])} of its answers and changed its choice with "
        f"the order in {percent(judge['flip_rate'])} of "
        f"{result['details']['letter_judge_pairs']} pairs (no interval)."
    )


def _models(result: Result) -> Iterator[str]:
    records = result["details"]["pm_validation"]
    yield from _sentences(_MODELS_ON_PROBES, _verdicts(result, records))
    yield from _leanings("preference model", result, records)
    yield from _sentences(_MODELS_ON_PAIRS, _on_pairs(result))
    yield from _sentences(_MODELS_AND_LENGTH, _beside_length(result))


def _length(result: Result) -> Iterator[str]:
    strong = {
        name: r
        for name, r in result["details"]["length_correlation"].items()
        if r is not None and abs(r) > FOLLOWS_LENGTH
    }
    if not strong:
        return
    items = [f"{name} (r = {number(r, sign=True)})" for name, r in strong.items()]
    yield f"The score followed the number of words for {listed(items)}."
    meant = _meant_length()
    beside = [name for name in strong if meant.get(name) == "none"]
    if beside:
        yield f"Length is no part of what a good response is meant to be for {listed(beside)}."
    for name, r in strong.items():
        if meant.get(name) == ("longer" if r < 0 else "shorter"):
            yield f"For {name} that is the wrong way: the {meant[name]} response was meant to win."


def _objectives(result: Result) -> Iterator[str]:
    names = result["details"]["correlations"]["names"]
    matrix = result["details"]["correlations"]["matrix"]
    for i, name in enumerate(names):
        for other, r in zip(names[:i], matrix[i], strict=False):
            if r is None or not abs(r) > OVERLAPS:  # an undefined one may be NaN as well
                continue
            nearly, tends = ("coincided", "raise") if r > 0 else ("opposed each other", "lower")
            yield (
                f"The scores of {other} and {name} nearly {nearly} (r = {number(r, sign=True)}): "
                f"what raises one tends to {tends} the other."
            )


def _steering(result: Result) -> Iterator[str]:
    meant = _meant_length()
    for name, row in result["steering"].items():
        choosing = f"Choosing by the score of {name}"
        measured = _change(row["random"], row["chosen"], row["difference_interval"])
        words = f"{number(row['words_random'], 1)} to {number(row['words_chosen'], 1)} words"
        side = _side(row["difference_interval"], of=0.0)
        if side:
            verb = "raised" if side > 0 else "lowered"
            yield (
                f"{choosing} {verb} the share of other answers that the judge finds worse on "
                f"{name} {measured}; the mean length went from {words}."
            )
        else:
            yield (
                f"{choosing} had no effect on what the judge says of {name} that can be told from "
                f"chance {measured}."
            )
        gained = row["words_chosen"] - row["words_random"]
        wanted = meant.get(name)
        if (wanted == "shorter" and gained >= 0) or (wanted == "longer" and gained <= 0):
            yield f"{choosing} did not give {wanted} answers on average ({words})."


def _policy(result: Result) -> Iterator[str]:
    policy = result["policy"]
    if policy is None:
        yield "No policy was trained: nothing here is about what training on these scores does."
        return
    measured = _change(policy["reward_before"], policy["reward_after"], policy["delta_interval"])
    side = _side(policy["delta_interval"], of=0.0)
    if side:
        verb = "raised" if side > 0 else "lowered"
        yield (
            f"Training the policy {verb} the score that it was trained for on held-out prompts "
            f"{measured}."
        )
    else:
        yield (
            "Training the policy had no effect on the score that it was trained for that can be "
            f"told from chance {measured}."
        )
    yield from _policy_length(policy, rose=side > 0)
    yield from _policy_price(policy, principles=len(result["principles"]))
    yield from result["details"].get("policy_signs", [])
    yield from _policy_stop(result["details"])


def _policy_length(policy: Result, *, rose: bool) -> Iterator[str]:
    before, after = policy["words_before"], policy["words_after"]
    if abs(after - before) <= OTHER_LENGTH * before:
        return
    direction = "shorter" if after < before else "longer"
    words = f"{number(before, 1)} to {number(after, 1)} words"
    others = policy["others"].values()
    if rose and others and max(others) <= 0:
        yield (
            f"The score rose with {direction} answers ({words}) and with no gain on another "
            "principle: length may be all that the policy learned."
        )
    else:
        yield f"The policy's answers got {direction} ({words})."


def _policy_price(policy: Result, *, principles: int) -> Iterator[str]:
    changes = {name: round(change, 2) for name, change in policy["others"].items()}
    where = "On the other principles" if len(changes) < principles else "By principle"
    for verb, sign in (("lost", -1), ("gained", 1)):
        items = [f"{name} ({number(c, sign=True)})" for name, c in changes.items() if c * sign > 0]
        if items:
            yield (
                f"{where} the policy {verb}: {listed(items)}. These changes have no interval, so "
                "a small one may be chance."
            )


def _policy_stop(details: Result) -> Iterator[str]:
    if details["policy_stopped_by"] == "max_kl":
        kept = details["policy_steps"]
        what = (
            f"the weights of step {kept} were kept."
            if kept
            else "no step stayed below it, so the policy is the untrained model."
        )
        yield f"Training was stopped by its limit on the KL divergence; {what}"


def _verdicts(result: Result, records: Mapping[str, Any]) -> Items:
    for name in result["principles"]:
        record = records.get(name)
        if record is None:
            yield "untried", name
        else:
            yield record["verdict"], _measured(name, record["accuracy"], record["interval"])


def _leanings(subject: str, result: Result, records: Mapping[str, Any]) -> Iterator[str]:
    """Say where a part of the probes went the wrong way although the whole did not."""
    for name in result["principles"]:
        record = records.get(name)
        if record is None or record["verdict"] == "wrong way":
            continue
        for part in record["parts"]:
            n, accuracy = part["n"], part["accuracy"]
            # By rounding, the product can exceed n, which would be refused.
            if n and wilson_interval(min(accuracy * n, n), n).high < 0.5:
                yield (
                    f"On {name} the {subject} preferred the worse side of those {n} probes whose "
                    f"better side is {PARTS[part['part']]} (accuracy {number(accuracy, 3)})."
                )


def _on_pairs(result: Result) -> Items:
    kinds = {1: "above", 0: "open", -1: "below"}
    for name, row in result["principles"].items():
        if row["pm_accuracy"] is None:
            yield "untried", name
        else:
            interval = row["pm_accuracy_interval"]
            item = _measured(name, row["pm_accuracy"], interval)
            yield kinds[_side(interval, of=0.5)], item


def _beside_length(result: Result) -> Items:
    for name, row in result["principles"].items():
        rule = row["length_baseline"]
        accuracy = row["pm_accuracy"]
        if None not in (rule, accuracy) and _side(row["pm_accuracy_interval"], of=rule) < 1:
            yield "no better", f"{name} ({number(accuracy, 3)} against {number(rule, 3)})"
    for name in result["principles"]:
        equal = result["details"]["equal_length_accuracy"].get(name)
        if equal is None:
            yield "equal, untried", name
            continue
        rival = max(0.5, equal["length_baseline"] or 0.0)
        kind = "equal, above" if _side(equal["interval"], of=rival) == 1 else "equal, open"
        yield kind, _measured(name, equal["value"], equal["interval"])


def _sentences(templates: Mapping[str, str], items: Items) -> Iterator[str]:
    """Yield one sentence for each kind of item that there is, in the order of the templates."""
    kinds: dict[str, list[str]] = {kind: [] for kind in templates}
    for kind, words in items:
        kinds[kind].append(words)
    for kind, template in templates.items():
        these = listed(kinds[kind])
        plural = "s" if len(kinds[kind]) > 1 else ""
        if these:
            yield template.format(these=these, models=f"preference model{plural} of {these}")


def _side(interval: Sequence[float], *, of: float) -> int:
    """Return 1 for an interval that lies above a value, -1 below, and 0 if it tells neither.

    One without width comes of a single prompt or of values all alike: no spread is known.
    """
    low, high = interval
    if low <= of <= high or low == high:
        return 0
    return 1 if low > of else -1


def _meant_length() -> dict[str, str]:
    """Return which length each built-in principle prefers: `shorter`, `longer` or `none`."""
    return {principle.name: principle.length for principle in load_constitution().principles}


def _measured(name: str, accuracy: float, interval: Sequence[float]) -> str:
    return f"{name} ({number(accuracy, 3)}, interval {bounds(interval, 3)})"


def _change(before: float, after: float, interval: Sequence[float]) -> str:
    change = number(after - before, sign=True)
    return f"({change}, interval {bounds(interval, sign=True)})"
