"""How the benchmark of a bank is shown to people."""

from collections.abc import Sequence

from benchmarks.settings import DEPTHS, Goal, Setting
from morlaif_hub.cli.tables import Cell, paragraphs, table, wrapped
from morlaif_hub.evaluation.wording import number, percent

OPPONENTS = ("a", "b", "c")


def shown(settings: Sequence[Setting], *, judged: bool) -> str:
    """Return all settings as tables.

    Args:
        settings: At least one.
        judged: Whether the goals are for this base.
    """
    how = settings[0].how
    packed = f"not packed: {how['why']}" if how["why"] else how["method"]
    return paragraphs(
        wrapped(f"Engine: {packed}, matrix product by {how['kernel']}."),
        _lists(settings),
        _seconds(settings),
        _ratios(settings, judged=judged),
        _limits(settings),
        _bfloat16(settings),
        _verdict(settings) if judged else "The goals are for the embedded model.",
    )


def _lists(settings: Sequence[Setting]) -> str:
    different = {setting.responses: setting.counts for setting in settings}
    header = ("responses", "texts", "tokens", "padded", "sorted", "unique", "waste", "sharing")
    rows: list[list[Cell]] = [
        [
            responses,
            counts.texts,
            counts.tokens,
            counts.padded_to_list,
            counts.padded_to_batch,
            counts.unique,
            counts.waste,
            1 / counts.unique_share,
        ]
        for responses, counts in different.items()
    ]
    said = (
        "responses: to each prompt; padded: tokens with all texts as long as the longest; sorted: "
        "padded to the longest of 8 of similar length; unique: shared beginnings counted once; "
        "waste: padded / tokens; sharing: tokens / unique."
    )
    return table(header, rows) + "\n" + wrapped(said)


def _seconds(settings: Sequence[Setting]) -> str:
    own = ("engine", *(["stock"] if settings[0].how["kernel"] != "torch" else []), "bfloat16")
    who = [w for w in (*own, "base", *OPPONENTS) if _timed(settings, w)]
    rows = [[*_name(setting), *(_spread(setting, w) for w in who)] for setting in settings]
    said = (
        "Seconds for all adapters, median (least-most); stock: the engine with PyTorch's own "
        "matrix product, if that is not its choice; base: one plain forward of the base, sorted."
    )
    return table(("layers", "responses", *who), rows) + "\n" + wrapped(said)


def _ratios(settings: Sequence[Setting], *, judged: bool) -> str:
    opponents = [who for who in OPPONENTS if _timed(settings, who)]
    header = ["layers", "responses", *(f"x {who}" for who in opponents), "trunk", "difference"]
    rows: list[list[Cell]] = [
        [
            *_name(setting),
            *(setting.times_faster(who) for who in opponents),
            setting.work.trunk_factor,
            f"{setting.difference:.1e}",
            *([_goals(setting.goals)] if judged else []),
        ]
        for setting in settings
    ]
    said = (
        "x a: how many times faster than opponent a the engine is; trunk: how many times less the "
        "floor is for sharing the layers below the adapters; difference: the largest of the scores "
        f"to those of opponent {min(opponents, default='-')}."
    )
    return table((*header, "goals") if judged else header, rows) + "\n" + wrapped(said)


def _limits(settings: Sequence[Setting]) -> str:
    header = ("layers", "responses", "engine", "stock", "floor", "stock / floor", "x a there")
    rows: list[list[Cell]] = [
        [
            *_name(setting),
            setting.base_forwards("engine"),
            setting.base_forwards("stock"),
            setting.floor,
            setting.base_forwards("stock") / setting.floor,
            setting.limit,
        ]
        for setting in settings
    ]
    share = percent(settings[0].work.last_layer_share)
    said = (
        "In base forwards over the texts without padding. The floor counts layers below the "
        f"adapters once, and {share} of the last layer (its keys and values) for all tokens; x a "
        "there: how many times faster than a is who reaches the floor with PyTorch's own product."
    )
    return table(header, rows) + "\n" + wrapped(said)


def _bfloat16(settings: Sequence[Setting]) -> str:
    rows: list[list[Cell]] = [
        [*_name(setting), setting.times_faster_in_bfloat16, setting.rounded.largest, rms]
        for setting in settings
        if setting.rounded and (rms := f"{setting.rounded.rms:.4f}")
    ]
    if not rows:
        return ""
    said = "bfloat16 against the engine in float32; in standard deviations of an adapter's scores."
    header = ("layers", "responses", "times faster", "largest difference", "rms")
    return table(header, rows) + "\n" + wrapped(said)


def _verdict(settings: Sequence[Setting]) -> str:
    missed = [
        f"{DEPTHS[s.depth].words}, {s.responses} responses: {goal.name} is {_figure(goal.value)}, "
        f"to be {goal.limit:g}"
        for s in settings
        for goal in s.goals
        if not goal.held
    ]
    return "\n".join(["goals NOT held:", *missed]) if missed else "all goals are held"


def _name(setting: Setting) -> list[Cell]:
    return [setting.depth, setting.responses]


def _timed(settings: Sequence[Setting], who: str) -> bool:
    return all(who in setting.seconds for setting in settings)


def _spread(setting: Setting, who: str) -> str:
    its = setting.seconds[who]
    return f"{_short(setting.median(who))} ({_short(min(its))}-{_short(max(its))})"


def _short(seconds: float) -> str:
    """Return a time with three digits or more, so that a row fits the screen."""
    return number(seconds, 2 if seconds < 10 else 1 if seconds < 100 else 0)


def _goals(goals: Sequence[Goal]) -> str:
    return ", ".join(f"{g.name} {g.limit:g}: {'' if g.held else 'NOT '}held" for g in goals)


def _figure(value: float) -> str:
    return f"{value:.1e}" if 0 < value < 0.01 else number(value)
