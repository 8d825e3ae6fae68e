"""Which verdicts are picked to be read, how they look on a terminal, and who agrees with whom."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_judges import Rule, RuleJudge, always_first, longer, shorter
from hypothesis import given, settings
from hypothesis import strategies as st

from morlaif_hub.cli import cli
from morlaif_hub.cli.columns import room, side_by_side, wrap
from morlaif_hub.cli.tables import printable
from morlaif_hub.comparisons import Comparison
from morlaif_hub.errors import OptionError
from morlaif_hub.feedback.audit import SHOWS, agreement, preferred_sides, select_verdicts
from morlaif_hub.feedback.collect import CollectSettings, collect_feedback
from morlaif_hub.feedback.dataset import FeedbackDataset, Labelled
from morlaif_hub.hub.manifest import SourceRecord
from morlaif_hub.judges.base import Verdict
from morlaif_hub.judges.single_objective import single_objective_judge
from morlaif_hub.principles import Principle, load_constitution

SOURCE = SourceRecord(name="pairs.jsonl", revision=None, sha256="c" * 64)

texts = st.text(st.characters(exclude_categories=["Cs", "Cn", "Cf"]), max_size=80)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MORLAIF_CACHE", str(tmp_path / "cache"))


def principle(name: str) -> Principle:
    return Principle(name, "Good.", "Bad.", "A high score means better.")


def pairs(count: int, *, each: int = 1) -> list[Comparison]:
    return [
        Comparison.from_choice(f"Question {i}?", f"A long answer {j} to {i}", f"No {j}")
        for i in range(count)
        for j in range(each)
    ]


def labelled(*verdicts: tuple[float, float]) -> list[Labelled]:
    return [
        Labelled(pair, Verdict(*verdict))
        for pair, verdict in zip(pairs(len(verdicts)), verdicts, strict=True)
    ]


class TestSelection:
    MIXED = labelled((0.9, 0.9), (0.9, 0.2), (0.5, 0.5), (0.4, 0.55), (0.7, 0.7), (0.99, 0.01))

    def test_flipped_ones_come_with_the_largest_change_first(self) -> None:
        found, shown = select_verdicts(self.MIXED, "flipped", n=2)
        assert found == 3
        assert [item.verdict.probability_a_first for item in shown] == [0.99, 0.9]

    def test_uncertain_ones_come_nearest_to_one_half(self) -> None:
        found, shown = select_verdicts(self.MIXED, "uncertain", n=4)
        assert found == 6
        assert {item.verdict.probability_a_first for item in shown[:2]} == {0.5, 0.99}
        assert shown[2].verdict.probability_a_first == 0.4

    def test_random_ones_are_of_the_seed_whatever_the_order(self) -> None:
        many = labelled(*[(0.8, 0.8)] * 60)
        first = select_verdicts(many, "random", n=5).shown
        assert select_verdicts(many[::-1], "random", n=5).shown == first
        assert select_verdicts(many, "random", n=5, seed=1).shown != first
        assert len(select_verdicts(many, "random", n=100).shown) == 60

    def test_two_principles_show_the_same_pairs(self) -> None:
        one, other = labelled(*[(0.8, 0.8)] * 40), labelled(*[(0.3, 0.6)] * 40)
        drawn = [select_verdicts(items, "random", n=4).shown for items in (one, other)]
        assert [i.comparison for i in drawn[0]] == [i.comparison for i in drawn[1]]

    def test_what_cannot_be_is_refused(self) -> None:
        with pytest.raises(OptionError, match="random, flipped, uncertain, got 'all'"):
            select_verdicts(self.MIXED, "all", n=1)  # type: ignore[arg-type]
        with pytest.raises(OptionError, match="n must be at least 1, got 0"):
            select_verdicts(self.MIXED, "random", n=0)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a workspace: `long` and `short` are opposites, `first` sees the position alone."""
    folder = tmp_path_factory.mktemp("workspace")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MORLAIF_CACHE", str(folder / "cache"))
        collect(folder, "long", longer, pairs(12))
        collect(folder, "short", shorter, [pair.swap() for pair in pairs(20)])
        collect(folder, "first", always_first, pairs(12))
        collect(folder, "apart", longer, pairs(30)[25:])
    return folder


def collect(workspace: Path, name: str, rule: Rule, judged: Sequence[Comparison]) -> None:
    collect_feedback(
        [principle(name)],
        judged,
        RuleJudge(rule),
        folder=workspace / "feedback",
        source=SOURCE,
        settings=CollectSettings(unvalidated=True),
    )


class TestAgreement:
    def test_opposites_ties_and_strangers(self, workspace: Path) -> None:
        sides = {
            name: preferred_sides(FeedbackDataset.load(workspace / "feedback" / name))
            for name in ("long", "short", "first", "apart")
        }
        found = agreement(sides)
        assert list(found) == [
            *(("long", other) for other in ("short", "first", "apart")),
            *(("short", other) for other in ("first", "apart")),
            ("first", "apart"),
        ]
        opposed, tied = found["long", "short"], found["long", "first"]
        assert opposed is not None
        assert tied is not None
        # A and B are the other way round in one of the sets; what they are is what counts.
        assert (opposed.value, opposed.interval, opposed.n) == (0.0, (0.0, 0.0), 12)
        assert (tied.value, tied.n) == (0.5, 12)
        assert found["long", "apart"] is None

    def test_a_set_agrees_with_itself(self, workspace: Path) -> None:
        sides = preferred_sides(FeedbackDataset.load(workspace / "feedback" / "long"))
        whole = agreement({"one": sides, "other": sides})["one", "other"]
        assert whole is not None
        assert (whole.value, whole.n) == (1.0, 12)


def inspected(workspace: Path, *arguments: str, columns: int = 100) -> str:
    done = CliRunner(env={"COLUMNS": str(columns)}).invoke(
        cli, ["inspect-feedback", *arguments, "--workspace", str(workspace)]
    )
    assert done.exit_code == 0, done.output
    return done.stdout


class TestCommand:
    def test_json_has_all_that_is_shown(self, workspace: Path) -> None:
        data = json.loads(inspected(workspace, "long", "first", "-n", "3", "--json"))
        assert data["principles"]["long"]["pairs"] == 12
        assert data["principles"]["long"]["judge"] == "fake:rule"
        shown = data["principles"]["first"]["shown"]
        assert set(shown) == set(SHOWS)
        assert [len(kind["verdicts"]) for kind in shown.values()] == [3, 3, 3]
        assert shown["flipped"]["found"] == 12
        assert data["principles"]["long"]["shown"]["flipped"] == {"found": 0, "verdicts": []}
        verdict = shown["flipped"]["verdicts"][0]
        assert verdict["probability_a_first"] == pytest.approx(0.9)
        assert verdict["probability_a_second"] == pytest.approx(0.1)
        assert verdict["human_choice"] in ("a", "b")
        assert data["agreement"] == [
            {"principles": ["long", "first"], "value": 0.5, "interval": [0.5, 0.5], "n": 12}
        ]

    def test_only_what_is_asked_for(self, workspace: Path) -> None:
        data = json.loads(inspected(workspace, "long", "--show", "uncertain", "--json"))
        assert set(data["principles"]["long"]["shown"]) == {"uncertain"}
        assert data["agreement"] == []
        apart = json.loads(inspected(workspace, "long", "apart", "--json"))["agreement"]
        assert apart == [{"principles": ["long", "apart"], "value": None, "interval": None, "n": 0}]
        one, other = (
            json.loads(inspected(workspace, "long", "--seed", seed, "--json")) for seed in "01"
        )
        assert one != other

    def test_both_responses_stand_side_by_side(self, workspace: Path) -> None:
        text = inspected(workspace, "first", "long", "--show", "flipped", "-n", "1")
        assert text.startswith("NOT VALIDATED")
        assert "P(A is better): 0.500 together, 0.900 with A shown first, 0.100 with B" in text
        assert "User: Question" in text
        heading = next(line for line in text.splitlines() if "│" in line)
        assert "(a tie)" in heading
        assert "preferred by people" in heading
        both = next(line for line in text.splitlines() if "A long answer" in line)
        assert "No 0" in both
        assert "long, flipped by the order: none" in text
        assert "agreement between principles" in text

    def test_a_judge_that_is_against_people_is_said_first(self, tmp_path: Path) -> None:
        collect_feedback(
            [principle("short")],
            pairs(20),
            RuleJudge(shorter),
            folder=tmp_path / "feedback",
            source=SOURCE,
        )
        text = " ".join(inspected(tmp_path, "short", "--show", "random").split())
        assert "AGAINST PEOPLE: the judge mostly prefers what people had not chosen" in text
        assert "on short (0 % of 20 pairs, 95 % interval 0.00 to 0.16)" in text
        assert text.index("AGAINST PEOPLE") < text.index("20 pairs, judged by")

    @pytest.mark.parametrize("columns", [40, 80, 120])
    def test_no_line_is_wider_than_the_terminal(self, workspace: Path, columns: int) -> None:
        text = inspected(workspace, "first", "long", columns=columns)
        above, _, tables = text.partition("agreement between principles")
        assert max(map(room, above.splitlines())) <= columns
        assert ("│" in above) == (columns > 70)
        assert "first and long" in tables  # as wide as its numbers are

    def test_long_texts_are_cut_unless_all_is_asked_for(self, tmp_path: Path) -> None:
        talk = "\n".join(f"line {i}" for i in range(40))
        pair = Comparison.from_choice(f"{talk}\nlast of it", "short", f"{talk}\nend of it")
        collect(tmp_path, "long", longer, [pair, *pairs(1)])
        cut = inspected(tmp_path, "long", "--show", "random")
        assert "[30 earlier lines]" in cut
        assert "last of it" in cut  # the end of a dialogue is what was answered
        assert "[30 more lines]" in cut
        assert "end of it" not in cut
        assert "end of it" in inspected(tmp_path, "long", "--show", "random", "--full")

    def test_what_the_baseline_drew_is_shown(self, tmp_path: Path) -> None:
        judge = single_objective_judge(RuleJudge(longer))
        (umbrella,) = load_constitution("constitutional").principles
        collect_feedback(
            [umbrella],
            pairs(8),
            judge,
            folder=tmp_path / "feedback",
            source=SOURCE,
            settings=CollectSettings(unvalidated=True),
        )
        asked = ("constitutional", "--show", "random", "-n", "1")
        data = json.loads(inspected(tmp_path, *asked, "--json"))
        (shown,) = data["principles"]["constitutional"]["shown"]["random"]["verdicts"]
        (pair,) = [pair for pair in pairs(8) if pair.id == shown["id"]]
        assert shown["drawn"] == judge.drawn(pair).name
        text = " ".join(inspected(tmp_path, *asked).split())
        assert f"drawn, by the set as it is now: {judge.drawn(pair).criterion}" in text

    def test_a_folder_will_do(self, workspace: Path, tmp_path: Path) -> None:
        folder = str(workspace / "feedback" / "long")
        assert "12 pairs, judged by fake:rule" in inspected(tmp_path / "elsewhere", folder)

    def test_what_is_not_there_is_said(self, workspace: Path) -> None:
        there = ("--workspace", str(workspace))
        done = CliRunner().invoke(cli, ["inspect-feedback", "detail", *there])
        assert done.exit_code == 1
        assert "no feedback on 'detail'; it has: apart, first, long, short." in done.output
        assert "morlaif-hub collect-feedback detail" in done.output


class TestColumns:
    @settings(max_examples=150, deadline=None)
    @given(texts, st.integers(2, 40))
    def test_lines_fit_and_lose_nothing(self, text: str, width: int) -> None:
        lines = wrap(text, width)
        assert all(room(line) <= width for line in lines)
        assert "".join("".join(lines).split()) == "".join(printable(text).split())

    @settings(max_examples=100, deadline=None)
    @given(texts, texts, st.integers(20, 120))
    def test_two_columns_fit_and_are_straight(self, left: str, right: str, width: int) -> None:
        lines = side_by_side(("A", left), ("B", right), width)
        assert all(room(line) <= width for line in lines)
        rules = {room(line[: line.index(" │")]) for line in lines if " │" in line and room(line)}
        if (width - 3) // 2 >= 34 and "│" not in left + right:
            assert rules == {(width - 3) // 2}
        elif "│" not in left + right:
            assert not rules

    def test_what_would_command_the_terminal_is_shown(self) -> None:
        (line,) = wrap("a\x1b[2J\u202eb", 40)
        assert line == r"a\x1b[2J\u202eb"

    def test_letters_take_the_room_that_they_take(self) -> None:
        assert [room(text) for text in ("abc", "日本語", "e\u0301", "👍")] == [3, 6, 1, 2]
        assert wrap("日本語" * 4, 10) == ["日本語日本", "語日本語日", "本語"]
        line = side_by_side(("A", "日本"), ("B", "x"), 80)[2]
        assert line == "日本" + " " * 34 + " │ x"

    def test_line_breaks_stay_and_blank_lines_are_few(self) -> None:
        assert wrap("one\n\n\n\ntwo\n  three\n", 20) == ["one", "", "two", "  three"]
