"""Principle sets: reading them, what their errors say, and the quality of the built-in ones."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from morlaif_hub.errors import DataError, UnknownNameError
from morlaif_hub.principles import (
    CONSTITUTIONS,
    Constitution,
    Principle,
    Probe,
    load_constitution,
    read_constitution,
)

TWELVE = (
    "helpfulness",
    "ethicality",
    "factuality",
    "toxicity",
    "sycophancy",
    "empathy",
    "relevance",
    "context",
    "bias",
    "understandability",
    "detail",
    "conciseness",
)
FIVE = ("ethicality", "factuality", "helpfulness", "sycophancy", "toxicity")
LENGTH_IS_THE_SUBJECT = {"detail": "longer", "conciseness": "shorter"}

OWN_SET = """
name = "house-style"

[[principles]]
name = "brevity"
criterion = "The response is short."
opposite = "The response is long."
high_score = "A high score means shorter."
length = "shorter"

[[principles.probes]]
prompt = "Hello?"
better = "Hello."
worse = "Hello, hello, and once more hello."

[[principles]]
name = "calm_2-b"
criterion = "The response is calm."
opposite = "The response is agitated."
high_score = "A high score means calmer."
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that writes a set to a file."""

    def to_file(text: str) -> Path:
        path = tmp_path / "own.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return to_file


class TestReading:
    def test_own_set_with_and_without_probes(self, write: Callable[[str], Path]) -> None:
        expected = Constitution(
            name="house-style",
            principles=(
                Principle(
                    name="brevity",
                    criterion="The response is short.",
                    opposite="The response is long.",
                    high_score="A high score means shorter.",
                    length="shorter",
                    probes=(Probe("Hello?", "Hello.", "Hello, hello, and once more hello."),),
                ),
                Principle(
                    name="calm_2-b",
                    criterion="The response is calm.",
                    opposite="The response is agitated.",
                    high_score="A high score means calmer.",
                ),
            ),
        )
        path = write(OWN_SET)
        assert load_constitution(path) == load_constitution(str(path)) == expected

    def test_an_included_principle_is_the_built_in_one(self, write: Callable[[str], Path]) -> None:
        path = write(
            'include = { from = "morlaif-12", principles = ["detail", "bias"] }\n' + OWN_SET
        )
        own, built_in = load_constitution(path), load_constitution("morlaif-12")
        assert own.names == ("detail", "bias", "brevity", "calm_2-b")
        assert own.get("bias") == built_in.get("bias")

    def test_unknown_set_with_the_nearest_name(self) -> None:
        with pytest.raises(UnknownNameError, match=r"'morlaif-21'.*Did you mean 'morlaif-12'\?"):
            load_constitution("morlaif-21")

    def test_unknown_principle_with_the_nearest_name(self) -> None:
        with pytest.raises(UnknownNameError, match=r"'toxicty'.*Did you mean 'toxicity'\?"):
            load_constitution().get("toxicty")

    def test_unknown_names_in_an_include(self, write: Callable[[str], Path]) -> None:
        with pytest.raises((DataError, UnknownNameError), match="Did you mean 'morlaif-5'"):
            read_constitution(
                write('name = "x"\ninclude = { from = "morlaif-6", principles = ["bias"] }')
            )
        with pytest.raises((DataError, UnknownNameError), match="Did you mean 'bias'"):
            read_constitution(
                write('name = "x"\ninclude = { from = "morlaif-12", principles = ["bais"] }')
            )


def _without(line: str) -> str:
    assert OWN_SET.count(line) == 1
    return OWN_SET.replace(line, "")


def _with(old: str, new: str) -> str:
    assert old in OWN_SET
    return OWN_SET.replace(old, new, 1)


BREVITY = '[[principles]]\nname = "brevity"\n'
FAULTY = {
    "not TOML": ("name = ", "not a readable TOML file"),
    "no name": (_without('name = "house-style"\n'), "key 'name' is missing"),
    "name of another type": (_with('"house-style"', "12"), "name must be a string, got 12"),
    "empty name": (_with('"house-style"', '"  "'), "name must not be empty"),
    "no principles": ('name = "empty"', r"no principles; add at least one \[\[principles\]\]"),
    "principles of another type": (
        'name = "x"\nprinciples = "all"',
        "principles must be a list, got 'all'",
    ),
    "a principle that is a word": (
        'name = "x"\nprinciples = ["kindness"]',
        r"principles\[0\] must be a table, got 'kindness'",
    ),
    "unknown key of the set": ("version = 2\n" + OWN_SET, "unknown key 'version'; known: name"),
    "no opposite": (
        _without('opposite = "The response is agitated."\n'),
        r"principles\[1\]: key 'opposite' is missing; needed: name, criterion",
    ),
    "empty criterion": (
        _with("The response is short.", ""),
        r"principles\[0\]: criterion must not",
    ),
    "unknown key of a principle": (
        _with(BREVITY, BREVITY + "weight = 1\n"),
        r"principles\[0\]: unknown key 'weight'",
    ),
    "name that no repo can have": (
        _with('"brevity"', '"Brevity!"'),
        r"principles\[0\]: name 'Brevity!' must match",
    ),
    "name of 41 characters": (
        _with('"brevity"', '"' + "b" * 41 + '"'),
        r"principles\[0\]: name 'b{41}' must match",
    ),
    "unknown length": (
        _with('length = "shorter"', 'length = "short"'),
        r"principles\[0\]: length 'short' must be 'none', 'shorter' or 'longer'",
    ),
    "named twice": (_with('"calm_2-b"', '"brevity"'), "principle named twice: brevity"),
    "included and own": (
        'include = { from = "morlaif-12", principles = ["bias"] }\n' + _with('"brevity"', '"bias"'),
        "principle named twice: bias",
    ),
    "include without a source": (
        'name = "x"\ninclude = { principles = ["bias"] }',
        "include: key 'from' is missing",
    ),
    "include of another type": (
        'name = "x"\ninclude = { from = "morlaif-12", principles = "bias" }',
        "include: principles must be a list",
    ),
    "probe without a worse side": (
        _without('worse = "Hello, hello, and once more hello."\n'),
        r"principles\[0\]: probes\[0\]: key 'worse' is missing",
    ),
    "probe with an unknown key": (
        _with('prompt = "Hello?"', 'prompt = "Hello?"\nbest = "Hi."'),
        r"principles\[0\]: probes\[0\]: unknown key 'best'",
    ),
    "probe with equal sides": (
        _with('"Hello, hello, and once more hello."', '"Hello."'),
        r"principles\[0\]: probes\[0\]: better and worse are the same text",
    ),
    "probe that is a word": (
        _without(
            '[[principles.probes]]\nprompt = "Hello?"\nbetter = "Hello."\n'
            'worse = "Hello, hello, and once more hello."\n'
        ).replace('length = "shorter"', 'length = "shorter"\nprobes = ["Hello?"]'),
        r"principles\[0\]: probes\[0\] must be a table, got 'Hello\?'",
    ),
}


class TestErrors:
    @pytest.mark.parametrize(("text", "reason"), FAULTY.values(), ids=FAULTY)
    def test_a_faulty_file_is_named_with_its_key(
        self, text: str, reason: str, write: Callable[[str], Path]
    ) -> None:
        path = write(text)
        with pytest.raises(DataError, match=reason) as caught:
            read_constitution(path)
        assert str(caught.value).startswith(str(path))

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"nowhere\.toml: not a readable TOML file"):
            load_constitution(tmp_path / "nowhere.toml")

    def test_a_file_in_another_encoding_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "latin.toml"
        path.write_bytes('name = "caf\u00e9"'.encode("latin-1"))
        with pytest.raises(DataError, match=r"latin\.toml: not a readable TOML file"):
            load_constitution(path)


class TestHashes:
    PRINCIPLE = Principle("a", "good", "bad", "more", probes=(Probe("p", "b", "w"),))

    @pytest.mark.parametrize("field", ["name", "criterion", "opposite"])
    def test_what_defines_a_principle_is_hashed(self, field: str) -> None:
        assert replace(self.PRINCIPLE, **{field: "other"}).sha256() != self.PRINCIPLE.sha256()

    def test_what_only_describes_it_is_not(self) -> None:
        same = replace(self.PRINCIPLE, high_score="other", length="longer", probes=())
        assert same.sha256() == self.PRINCIPLE.sha256()

    def test_moving_text_between_fields_is_seen(self) -> None:
        moved = replace(self.PRINCIPLE, criterion="goodb", opposite="ad")
        assert moved.sha256() != self.PRINCIPLE.sha256()

    def test_probes_are_hashed_apart_and_in_order(self) -> None:
        first, second = Probe("p", "b", "w"), Probe("q", "b", "w")
        hashes = {
            replace(self.PRINCIPLE, probes=probes).probes_sha256()
            for probes in [(), (first,), (first, second), (second, first), (Probe("p", "w", "b"),)]
        }
        assert len(hashes) == 5


@pytest.mark.parametrize(
    ("better", "worse", "part"),
    [("a b", "ccccc", "longer"), ("ccccc", "a b", "shorter"), ("a b", " c\n d ", "equal")],
)
def test_the_part_of_a_probe_is_counted_in_words(better: str, worse: str, part: str) -> None:
    assert Probe("p", better, worse).part == part


def probe_faults(principle: Principle) -> list[str]:
    """Return what is wrong with a built-in principle's probes.

    Where length is not the subject, a judge that only sees length has to be right on exactly half.
    Where it is, one third is free of it: as many words, and characters within a tenth.
    """
    faults = []
    if len(principle.probes) < 24:
        faults.append(f"{len(principle.probes)} probes, fewer than 24")
    prompts = Counter(probe.prompt for probe in principle.probes)
    faults += [f"prompt twice: {prompt}" for prompt, count in prompts.items() if count > 1]
    if principle.length == "none":
        parts = dict.fromkeys(("longer", "shorter"), len(principle.probes) / 2)
    else:
        third = len(principle.probes) / 3
        parts = {principle.length: 2 * third, "equal": third}
    counted = Counter(probe.part for probe in principle.probes)
    if counted != parts:
        faults.append(f"parts are {dict(counted)}, not {parts}")
    return faults + [
        f"characters say otherwise than words: {probe.prompt}"
        for probe in principle.probes
        if not _characters_agree(probe)
    ]


def _characters_agree(probe: Probe) -> bool:
    better, worse = len(probe.better), len(probe.worse)
    if probe.part == "equal":
        return abs(better - worse) <= 0.1 * max(better, worse)
    return better > worse if probe.part == "longer" else better < worse


class TestBuiltInSets:
    def test_each_name_is_a_set_of_that_name(self) -> None:
        for name in CONSTITUTIONS.names():
            assert load_constitution(name).name == name

    def test_morlaif_12_is_the_default_in_the_papers_order(self) -> None:
        assert load_constitution().names == load_constitution("morlaif-12").names == TWELVE

    def test_morlaif_5_is_taken_from_morlaif_12(self) -> None:
        five, twelve = load_constitution("morlaif-5"), load_constitution("morlaif-12")
        assert five.names == FIVE
        assert five.principles == tuple(twelve.get(name) for name in FIVE)

    def test_single_objective_has_sentences_to_draw_from(self) -> None:
        criteria = {p.criterion for p in load_constitution("single-objective").principles}
        assert len(criteria) >= 12

    def test_the_umbrella_of_the_baseline_has_probes_in_which_length_gives_nothing_away(
        self,
    ) -> None:
        (umbrella,) = load_constitution("constitutional").principles
        assert umbrella.name == "constitutional"
        assert probe_faults(umbrella) == []

    @pytest.mark.parametrize("name", ["morlaif-12", "single-objective", "constitutional"])
    def test_every_principle_says_its_direction_in_words(self, name: str) -> None:
        for principle in load_constitution(name).principles:
            assert principle.high_score.startswith("A high score means "), principle.name
            for text in (principle.criterion, principle.opposite, principle.high_score):
                assert text.endswith("."), f"{principle.name}: {text}"
            assert principle.criterion != principle.opposite

    def test_names_that_mislead_are_put_right(self) -> None:
        twelve = load_constitution("morlaif-12")
        assert "less toxic" in twelve.get("toxicity").high_score
        assert "less sycophantic" in twelve.get("sycophancy").high_score

    @pytest.mark.parametrize("name", TWELVE)
    def test_length_gives_nothing_away(self, name: str) -> None:
        principle = load_constitution("morlaif-12").get(name)
        assert principle.length == LENGTH_IS_THE_SUBJECT.get(name, "none")
        assert probe_faults(principle) == []


class TestProbeFaults:
    """The check of the probes sees each fault that it is there for."""

    @staticmethod
    def principle(probes: list[Probe], length: str = "none") -> Principle:
        return Principle("a", "good", "bad", "more", length, tuple(probes))  # type: ignore[arg-type]

    @staticmethod
    def half_and_half() -> list[Probe]:
        return [
            Probe(f"prompt {i}", *(("a b c", "a b") if i % 2 else ("a b", "a b c")))
            for i in range(24)
        ]

    def test_none(self) -> None:
        assert probe_faults(self.principle(self.half_and_half())) == []
        about_length = [Probe(f"prompt {i}", "a b", "a b c") for i in range(16)]
        about_length += [Probe(f"prompt {i}", "a b", "c d") for i in range(16, 24)]
        assert probe_faults(self.principle(about_length, "shorter")) == []

    def test_too_few(self) -> None:
        faults = probe_faults(self.principle(self.half_and_half()[:22]))
        assert faults == ["22 probes, fewer than 24"]

    def test_a_prompt_twice(self) -> None:
        probes = self.half_and_half()
        probes[1] = replace(probes[1], prompt="prompt 0")
        assert probe_faults(self.principle(probes)) == ["prompt twice: prompt 0"]

    def test_more_longer_than_shorter(self) -> None:
        probes = self.half_and_half()
        probes[0] = Probe("prompt 0", "a b c", "a b")
        (fault,) = probe_faults(self.principle(probes))
        assert fault.startswith("parts are {'longer': 13, 'shorter': 11}")

    def test_an_equal_pair_where_length_is_not_the_subject(self) -> None:
        probes = self.half_and_half()
        probes[0] = Probe("prompt 0", "a b", "c d")
        (fault,) = probe_faults(self.principle(probes))
        assert "'equal': 1" in fault

    @pytest.mark.parametrize("worse", ["abcdefghijk b c", "abcde b c"])
    def test_fewer_words_but_no_fewer_characters(self, worse: str) -> None:
        probes = self.half_and_half()
        probes[0] = Probe("prompt 0", "abcdefg h", worse)
        fine = len("abcdefg h") < len(worse)
        assert (probe_faults(self.principle(probes)) == []) == fine

    def test_as_many_words_but_far_more_characters(self) -> None:
        probes = [Probe(f"prompt {i}", "a b c", "a b") for i in range(16)]
        probes += [Probe(f"prompt {i}", "aaaaaaaaaa b", "aaaaaaaa b") for i in range(16, 24)]
        faults = probe_faults(self.principle(probes, "longer"))
        assert len(faults) == 8
        assert faults[0] == "characters say otherwise than words: prompt 16"
