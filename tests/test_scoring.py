"""Scoring sets of any size: part by part, resumed, shared between processes, within some memory."""

import json
import os
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from torch import Tensor

from morlaif_hub import PMBank
from morlaif_hub.bank.members import Member
from morlaif_hub.cli import score_pairs
from morlaif_hub.cli.pairs import PairStream
from morlaif_hub.comparisons import Comparison, read_comparisons
from morlaif_hub.errors import DataError, ScoreError, WorkspaceError
from morlaif_hub.hub.manifest import SourceRecord, manifest_sha256
from morlaif_hub.scoring import pairs as scoring
from morlaif_hub.scoring.pairs import ScoredPairs
from morlaif_hub.scoring.parts import METADATA, PARTS, RECORD, ScoredBy, ScoresOf, lock, scored_by
from morlaif_hub.scoring.summary import summarize
from morlaif_hub.statistics import bootstrap_interval
from tests.hub_workspace import Made
from tests.test_cli import environment as cli_environment
from tests.test_cli import passed, printed, put_back, run  # noqa: F401  # a fixture, by name

pytestmark = pytest.mark.usefixtures("put_back")

NAMES = ("brief", "calm")
SOURCE = SourceRecord(name="pairs.jsonl", revision=None, sha256="0" * 64)
MEMBERS = tuple(ScoredBy(name, None, None, "1" * 64) for name in NAMES)

T = TypeVar("T")


class Lengths:
    """Scores by a text's length, and counts what it was asked; a bank without models."""

    objectives = NAMES

    def __init__(self, fails_at: str = "") -> None:
        self.calls: list[int] = []
        self.fails_at = fails_at

    def score(
        self,
        prompts: Sequence[Any],
        responses: Sequence[str],
        *,
        progress: Callable[[int], None] | None = None,
    ) -> Tensor:
        self.calls.append(len(responses))
        if self.fails_at in responses:
            raise ScoreError(f"cannot score {self.fails_at!r}")
        if progress is not None:
            progress(len(responses))
        turns = [len(prompt[0]["content"]) for prompt in prompts]
        lengths = torch.tensor([len(text) for text in responses], dtype=torch.float32)
        return torch.stack([-lengths, lengths / torch.tensor(turns)], dim=1)


def some(count: int) -> Iterator[Comparison]:
    """Yield different comparisons: two of each prompt, some with a human choice or a split."""
    for n in range(count):
        yield Comparison(
            ({"role": "user", "content": f"What is {n // 2}?"},),
            f"It is {n}.",
            f"I do not know what {n} may be." + "!" * (n % 7),
            human_choice=(None, "a", "b")[n % 3],
            split=(None, "train", "test")[n % 5 % 3],
        )


def of(chunk: int = 4, **changes: Any) -> ScoresOf:
    return replace(ScoresOf(SOURCE, MEMBERS, chunk=chunk), **changes)


def score_some(
    folder: Path, count: int, bank: Lengths | None = None, **changes: Any
) -> ScoredPairs:
    """Score so many comparisons."""
    return scoring.score_pairs(bank or Lengths(), some(count), folder, of=of(**changes))


def frame(folder: Path) -> pd.DataFrame:
    """Return all scores of a folder, as its user reads them."""
    files = sorted(folder.glob(PARTS))
    return pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)


class OneOf(NamedTuple):
    """A process that is told that there are others, and does not wait for them."""

    index: int
    count: int

    @property
    def main(self) -> bool:
        return self.index == 0

    def together(self, work: Callable[[], T]) -> list[T]:
        return [work()]


def as_one_of(monkeypatch: pytest.MonkeyPatch, index: int, count: int) -> None:
    monkeypatch.setattr(scoring, "Processes", lambda: OneOf(index, count))


# What the files hold.


@given(count=st.integers(1, 23), chunk=st.integers(1, 9), processes=st.integers(1, 4))
@settings(max_examples=6)
def test_the_files_hold_what_scoring_all_at_once_gives(
    count: int, chunk: int, processes: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("scores") / "folder"
    with pytest.MonkeyPatch.context() as monkeypatch:
        for index in range(processes):  # the main one opens the folder, so it comes first
            as_one_of(monkeypatch, index, processes)
            score_some(folder, count, chunk=chunk)
    table, pairs = frame(folder), list(some(count))
    expected = Lengths().score(
        [pair.prompt for pair in pairs for _ in range(2)],
        [text for pair in pairs for text in (pair.response_a, pair.response_b)],
    )
    for column, name in enumerate(NAMES):
        for side in (0, 1):
            scores = table[f"{name}_{'ab'[side]}"]
            assert scores.dtype == np.float32
            assert scores.tolist() == expected[side::2, column].tolist()
    for name in ("id", "prompt_id", "split", "human_choice"):
        kept = [None if pd.isna(value) else value for value in table[name]]
        assert kept == [getattr(pair, name) for pair in pairs]
    assert len(list(folder.glob(PARTS))) == -(-count // chunk)


def test_every_part_has_one_schema_and_says_what_it_is(tmp_path: Path) -> None:
    """Also a part in which no human choice is known."""
    score_some(tmp_path / "s", 9, chunk=1)
    schemas = [parquet.read_schema(path) for path in sorted((tmp_path / "s").glob(PARTS))]
    assert len(schemas) == 9
    for schema in schemas:
        assert schema.equals(schemas[0], check_metadata=True)
        assert list(map(str, schema.types)) == ["string"] * 4 + ["float"] * 4
    record = json.loads((tmp_path / "s" / RECORD).read_text())
    assert record == of(chunk=1).plain()
    without_limit = {key: value for key, value in record.items() if key != "limit"}
    assert json.loads(schemas[0].metadata[METADATA]) == without_limit
    found = load_dataset(
        "parquet", data_files=str(tmp_path / "s" / PARTS), cache_dir=str(tmp_path / "cache")
    )["train"]
    assert found["id"] == [pair.id for pair in some(9)]


def test_progress_counts_every_pair_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    as_one_of(monkeypatch, 0, 2)
    scoring.score_pairs(Lengths(), some(11), tmp_path / "s", of=of(), progress=told.append)
    assert sum(told) == 11
    told.clear()
    monkeypatch.undo()
    scoring.score_pairs(Lengths(), some(13), tmp_path / "s", of=of(), progress=told.append)
    assert sum(told) == 13


# Stopped and resumed.


def test_what_is_there_is_not_scored_again(tmp_path: Path) -> None:
    assert score_some(tmp_path / "s", 10).new == 10
    before = frame(tmp_path / "s")
    again = score_some(tmp_path / "s", 10, bank := Lengths())
    assert (bank.calls, again.new, again.count) == ([], 0, 10)
    pd.testing.assert_frame_equal(frame(tmp_path / "s"), before)


def test_a_larger_limit_scores_what_is_missing(tmp_path: Path) -> None:
    score_some(tmp_path / "s", 6, limit=6)
    scored = score_some(tmp_path / "s", 11, bank := Lengths(), limit=11)
    assert (scored.count, scored.new) == (11, 5)
    assert bank.calls == [4, 6]  # responses: two pairs of a part that was begun, then a new one
    score_some(tmp_path / "s", 13, limit=None)
    score_some(tmp_path / "other", 13)
    pd.testing.assert_frame_equal(frame(tmp_path / "s"), frame(tmp_path / "other"))


def test_other_processes_go_on_where_some_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three processes the last never came to do its parts."""
    for index in (0, 1):
        as_one_of(monkeypatch, index, 3)
        score_some(tmp_path / "s", 21)
    monkeypatch.undo()
    scored = score_some(tmp_path / "s", 21, bank := Lengths())
    assert bank.calls == [8, 2]  # parts 2 and 5
    assert (scored.count, scored.new) == (21, 5)


class Blocks(Lengths):
    """Never comes back from its third part, and says so."""

    def __init__(self, told: int) -> None:
        super().__init__()
        self.told = told

    def score(self, *given: Any, **named: Any) -> Tensor:
        if len(self.calls) == 2:
            os.write(self.told, b"!")
            signal.pause()
        return super().score(*given, **named)


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    waits, told = os.pipe()
    child = os.fork()
    if not child:
        score_some(tmp_path / "s", 14, Blocks(told))
        os._exit(1)  # it is killed before
    os.read(waits, 1)
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    part = tmp_path / "s/scores-000002.parquet"
    left = part.with_name(f".{part.name}.{child}.partial")
    left.write_bytes(b"PAR1")  # as if it had been killed while it wrote
    scored = score_some(tmp_path / "s", 14, bank := Lengths())
    assert (bank.calls, scored.new) == ([8, 4], 6)
    assert not left.exists()
    score_some(tmp_path / "other", 14)
    pd.testing.assert_frame_equal(frame(tmp_path / "s"), frame(tmp_path / "other"))


def cut(content: bytes) -> bytes:
    return content[:-100]


def changed(content: bytes) -> bytes:
    """Change a score, which only a checksum can tell."""
    scores = np.float32([-len(pair.response_a) for pair in list(some(8))[4:]]).tobytes()
    at = content.find(scores[:4])
    assert at > 0
    return content[:at] + b"\x01" + content[at + 1 :]


@pytest.mark.parametrize("damage", [cut, changed, lambda _: b""])
def test_a_damaged_part_is_scored_again(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    score_some(tmp_path / "s", 10)
    before = frame(tmp_path / "s")
    part = tmp_path / "s/scores-000001.parquet"
    part.write_bytes(damage(part.read_bytes()))
    assert score_some(tmp_path / "s", 10, bank := Lengths()).new == 4
    assert bank.calls == [8]
    pd.testing.assert_frame_equal(frame(tmp_path / "s"), before)


def test_what_was_scored_before_an_error_stays(tmp_path: Path) -> None:
    bank = Lengths(fails_at="It is 9.")
    with pytest.raises(ScoreError, match=r"It is 9\."):
        score_some(tmp_path / "s", 20, bank)
    assert len(frame(tmp_path / "s")) == 8
    bank.fails_at = ""
    assert score_some(tmp_path / "s", 20, bank).new == 12
    assert sorted(path.name[0] for path in (tmp_path / "s").iterdir()) == ["s"] * 6


# Other scores.


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"source": replace(SOURCE, sha256="2" * 64)}, 'source.sha256 is "000'),
        ({"source": replace(SOURCE, revision="abc")}, 'source.revision is null there and "abc"'),
        ({"members": MEMBERS[:1]}, "members is"),
        (
            {"members": (MEMBERS[0], replace(MEMBERS[1], sha256="2" * 64))},
            "members[1].sha256 is",
        ),
        ({"dtype": "bfloat16"}, 'dtype is "float32" there and "bfloat16" now'),
        ({"chunk": 5}, "chunk is 4 there and 5 now"),
        ({"versions": {"torch": "0"}}, "versions.torch is"),
        ({"limit": 9}, "was to hold, the first 10 pairs and not only the first 9"),
    ],
)
def test_a_folder_of_other_scores_is_refused(
    other: dict[str, Any], said: str, tmp_path: Path
) -> None:
    score_some(tmp_path / "s", 10, limit=10)
    before = frame(tmp_path / "s")
    with pytest.raises(WorkspaceError) as caught:
        score_some(tmp_path / "s", 9, bank := Lengths(), **{"limit": 10, **other})
    assert said in str(caught.value)
    assert str(caught.value).endswith("choose another --output, or remove it")
    assert bank.calls == []
    pd.testing.assert_frame_equal(frame(tmp_path / "s"), before)


def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(WorkspaceError, match=r"is not empty and has no scores\.json"):
        score_some(tmp_path, 3)
    with pytest.raises(WorkspaceError, match="cannot be used for scores"):
        score_some(tmp_path / "notes.txt", 3)
    (tmp_path / "s").mkdir()
    for content in ("[]", "{broken"):
        (tmp_path / "s" / RECORD).write_text(content)
        with pytest.raises(WorkspaceError, match=r"not a record of scores|cannot be used"):
            score_some(tmp_path / "s", 3)


def test_parts_of_other_pairs_are_refused(tmp_path: Path) -> None:
    """Whoever calls the library may say that other comparisons are the same."""
    score_some(tmp_path / "s", 10)
    with pytest.raises(WorkspaceError, match=r"000002\.parquet has scores of other pairs"):
        score_some(tmp_path / "s", 9)
    with pytest.raises(WorkspaceError, match=r"after the last one, such as scores-000001"):
        score_some(tmp_path / "s", 4)
    score_some(tmp_path / "t", 10, source=replace(SOURCE, name="t"))
    part = "scores-000000.parquet"
    (tmp_path / "s" / part).write_bytes((tmp_path / "t" / part).read_bytes())
    with pytest.raises(WorkspaceError, match="a part of other scores"):
        score_some(tmp_path / "s", 10)


def test_the_folders_name_is_of_all_that_counts() -> None:
    names = {of().name, of(chunk=5).name, of(limit=3).name, of(dtype="bfloat16").name}
    assert len(names) == 4
    assert all(name.startswith("pairs.jsonl-") for name in names)
    hub = replace(SOURCE, name="owner/name", revision="a" * 40)
    assert of(source=hub).name.startswith("owner--name-")
    assert of(source=hub).name == of(source=hub).name


def test_no_comparison_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no comparison to score"):
        score_some(tmp_path / "s", 0)


# What the scores come to.


def test_the_summary_is_that_of_all_pairs(tmp_path: Path) -> None:
    scored = score_some(tmp_path / "s", 50)
    pairs, found = list(some(50)), summarize(scored)
    assert list(found) == list(NAMES)
    brief = found["brief"]
    lengths = np.array([[len(p.response_a), len(p.response_b)] for p in pairs])
    assert [brief.mean_a, brief.mean_b] == pytest.approx((-lengths.mean(0)).tolist())
    chosen = [p for p in pairs if p.human_choice]
    right = [
        float((len(p.response_a) < len(p.response_b)) == (p.human_choice == "a")) for p in chosen
    ]
    assert (brief.n, brief.agreement) == (33, pytest.approx(np.mean(right)))
    # Which prompts go together counts, not what they are called.
    assert brief.interval == pytest.approx(
        bootstrap_interval(right, [int(p.prompt_id[:15], 16) for p in chosen])
    )


def test_without_human_choices_nothing_agrees(tmp_path: Path) -> None:
    unknown = [replace(pair, human_choice=None) for pair in some(5)]
    scored = scoring.score_pairs(Lengths(), unknown, tmp_path / "s", of=of())
    for found in summarize(scored).values():
        assert (found.n, found.agreement, found.interval) == (0, None, None)


def test_a_part_that_went_away_is_named(tmp_path: Path) -> None:
    scored = score_some(tmp_path / "s", 9)
    (tmp_path / "s/scores-000001.parquet").unlink()
    with pytest.raises(WorkspaceError, match=r"scores-000001\.parquet cannot be read; run"):
        summarize(scored)


def peak(folder: Path, count: int) -> int:
    """Return how many bytes were in use at most while comparisons of 1,000 letters were scored."""
    long = (
        Comparison(({"role": "user", "content": f"{n} " + "?" * 500},), f"{n}", "no" * 250)
        for n in range(count)
    )
    tracemalloc.start()
    try:
        scoring.score_pairs(Lengths(), long, folder, of=of(chunk=128))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_is_that_of_one_part(tmp_path: Path) -> None:
    few = peak(tmp_path / "few", 256)
    assert peak(tmp_path / "many", 1024) < 1.2 * few < 1_000_000


@pytest.mark.slow
def test_memory_does_not_grow_with_hundreds_of_thousands_of_pairs(tmp_path: Path) -> None:
    """As texts alone, they would be two hundred megabytes."""
    assert peak(tmp_path / "many", 200_000) < 1_000_000


# Rows that cannot be read.


def write_rows(path: Path, good: Sequence[bool]) -> Path:
    """Write a pair for each, some with an empty response."""
    rows = [
        {"prompt": f"{n}?", "chosen": f"Yes, {n}." if fine else "", "rejected": "No"}
        for n, fine in enumerate(good)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_stream_leaves_out_what_is_bad_and_tells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_rows(tmp_path / "p.jsonl", [n % 25 != 3 for n in range(200)])
    stream = PairStream(str(path))
    assert stream.most() == 200
    assert len(list(stream)) == 192
    stream.tell()
    said = capsys.readouterr().err
    assert said.startswith("hint: 8 rows are left out, beside 192 that can be read: ")
    assert said.count("chosen is empty") == 5


@pytest.mark.parametrize(
    ("limit", "counted", "taken"),
    [(None, True, 30), (None, False, 80), (40, False, 30), (40, True, 30)],
)
def test_too_many_bad_rows_end_a_stream_once_that_is_certain(
    limit: int | None, counted: bool, taken: int, tmp_path: Path
) -> None:
    """Twenty of a hundred cannot be read, after the first thirty."""
    path = write_rows(tmp_path / "p.jsonl", [not 30 <= n < 50 for n in range(100)])
    stream = PairStream(str(path), limit=limit)
    if counted:
        stream.most()
    read: list[Comparison] = []
    with pytest.raises(DataError, match="line 31: chosen is empty"):
        read.extend(stream)  # keeps what came before the error
    assert len(read) == taken


# The command.


@pytest.fixture
def bank(made_once: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a bank of tiny models, whose base is in the place of the embedded model."""
    monkeypatch.setenv("MORLAIF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MORLAIF_EMBEDDED_MODEL", str(made_once.base))
    return made_once.workspace.bank


@pytest.fixture
def people(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "people.jsonl", [n % 25 != 3 for n in range(40)])


def test_the_command_prints_what_the_files_hold(bank: Path, people: Path) -> None:
    output = people.parent / "out"
    arguments = ("score", "--bank", bank, "--pairs", people, "--output", output)
    data = printed(*arguments)
    pairs = list(read_comparisons(people, on_bad=lambda _: None))
    loaded = PMBank.from_pretrained(bank)
    expected = loaded.score(
        [pair.prompt for pair in pairs for _ in range(2)],
        [text for pair in pairs for text in (pair.response_a, pair.response_b)],
    )
    assert data["output"] == str(output)
    assert data["count"] == len(data["pairs"]) == len(pairs)
    assert data["texts_cut"] == 0
    table = frame(output)
    for column, name in enumerate(loaded.objectives):
        for row, side in enumerate("ab"):
            scores = expected[row::2, column].numpy()
            np.testing.assert_allclose(table[f"{name}_{side}"], scores, atol=1e-4)
            listed = [pair[f"response_{side}"][name] for pair in data["pairs"]]
            assert listed == table[f"{name}_{side}"].tolist()
            mean = data["summary"][name][f"mean_{side}"]
            assert mean == pytest.approx(float(scores.mean()), abs=1e-4)
    record = json.loads((output / RECORD).read_text())
    assert [row["objective"] for row in record["members"]] == list(loaded.objectives)
    text = passed(*arguments)
    assert "hint: 38 of 38 pairs had been scored before" in text.stderr
    assert "... and 18 more in the files" in text.stdout
    assert "95 % interval" in text.stdout
    other = run(*arguments, "--dtype", "bfloat16")
    assert other.exit_code == 1
    assert 'dtype is "float32" there and "bfloat16" now' in other.stderr


def test_of_many_pairs_the_files_are_named(
    bank: Path, people: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_pairs, "LISTED", 3)
    workspace = people.parent / "workspace"
    arguments = ("score", "--bank", bank, "--pairs", people, "--workspace", workspace)
    few = printed(*arguments, "--limit", "3")
    assert len(few["pairs"]) == 3
    assert "pairs_only_in" not in few
    many = printed(*arguments)
    assert "pairs" not in many
    assert Path(many["pairs_only_in"]) == Path(many["output"]) / PARTS
    assert len({few["output"], many["output"]}) == 2  # one command's scores are not another's
    assert all(Path(data["output"]).parent == workspace / "scores" for data in (few, many))


def test_output_is_for_pairs(tmp_path: Path) -> None:
    result = run("score", "--prompt", "Hi", "--response", "No.", "--output", tmp_path / "out")
    assert (result.exit_code, "--output is for --pairs" in result.stderr) == (2, True)


def test_members_are_known_by_what_they_hold(made_once: Made, tmp_path: Path) -> None:
    folders = [made_once.workspace.preference_model(name) for name in ("conciseness", "detail")]
    plain = tmp_path / "plain"
    plain.mkdir()
    known = []
    for content in ("1", "2"):
        (plain / "model.safetensors").write_text(content)
        members = [Member("x", "./x", f, None, None, None) for f in (*folders, plain)]
        members.append(Member("x", "a/b", plain, "a/b", "c" * 40, None))
        known.append(scored_by(PMBank(members, [])))
    first, second = known
    assert first[:2] == second[:2]
    assert first[0].sha256 == manifest_sha256(folders[0])
    assert len({first[0].sha256, first[1].sha256, first[2].sha256, second[2].sha256}) == 4
    # The commit of what is on the Hub is enough.
    assert first[3] == ScoredBy("x", "a/b", "c" * 40, None)


# Two processes.

LAUNCHED = """
import os
from morlaif_hub.bank.bank import PMBank
from morlaif_hub.cli import main
from morlaif_hub.errors import ScoreError

score, rank = PMBank.score, os.environ["RANK"]

def watched(bank, prompts, responses, **named):
    if "progress" in named:
        with open(os.environ["WATCHED"] + rank, "a") as file:
            file.write(f"{len(responses)} ")
        if rank == os.environ.get("FAILS"):
            raise ScoreError("this one cannot score")
    return score(bank, prompts, responses, **named)

PMBank.score = watched
main()
"""
"""The command line, in which each process notes how many responses it scores."""


class Two(NamedTuple):
    """What two processes said, and the responses that each scored, call by call."""

    stdout: str
    said: list[str]
    code: int
    scored: list[str]


def two_processes(folder: Path, *arguments: str | Path, **environment: str) -> Two:
    script = folder / "launched.py"
    script.write_text(LAUNCHED)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc_per_node", "2", str(script), *map(str, arguments)),
        ],
        env={**cli_environment(**environment), "WATCHED": str(folder / "scored-by-")},
        capture_output=True,
        text=True,
        check=False,
    )
    ours = ("Error", "hint", "scoring")
    return Two(
        done.stdout,
        [line for line in done.stderr.splitlines() if line.startswith(ours)],
        done.returncode,
        [path.read_text() for path in sorted(folder.glob("scored-by-*"))],
    )


def test_two_runs_do_not_write_into_one_folder(bank: Path, tmp_path: Path) -> None:
    pairs = write_rows(tmp_path / "p.jsonl", [True] * 3)
    arguments = ("score", "--bank", bank, "--pairs", pairs, "--output", tmp_path / "out")
    (tmp_path / "out").mkdir()
    held = lock(tmp_path / "out/.lock")
    assert held is not None
    refused = run(*arguments)
    assert refused.exit_code == 1
    assert "another run is writing scores into" in refused.stderr
    assert not list((tmp_path / "out").glob(PARTS))
    held.close()
    assert printed(*arguments, "--json")["count"] == 3
    assert not list((tmp_path / "out").glob(".*"))


def test_a_folder_that_was_there_stays(bank: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    pairs = write_rows(tmp_path / "p.jsonl", [False] * 3)
    failed = run("score", "--bank", bank, "--pairs", pairs, "--output", tmp_path / "out")
    assert failed.exit_code == 1
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
def test_two_processes_share_the_work(bank: Path, tmp_path: Path) -> None:
    """Where they do not find each other, each would score everything."""
    pairs = write_rows(tmp_path / "p.jsonl", [n != 500 for n in range(601)])
    arguments = ("score", "--bank", bank, "--pairs", pairs, "--json", "--output")
    done = two_processes(tmp_path, *arguments, tmp_path / "two")
    assert (done.code, done.scored) == (0, ["512 176 ", "512 "])
    assert done.said[0] == "scoring (601 to do)"
    assert done.said[1].startswith("hint: 1 row is left out, beside 600 that can be read: ")
    assert len(done.said) == 2
    one = printed(*arguments[:-1], "--output", tmp_path / "one")
    two = json.loads(done.stdout)
    assert (one.pop("output"), two.pop("output")) == tuple(
        str(tmp_path / name) for name in ("one", "two")
    )
    table, other = frame(tmp_path / "one"), frame(tmp_path / "two")
    assert table["id"].tolist() == other["id"].tolist()
    pd.testing.assert_frame_equal(table, other, rtol=0, atol=1e-4)
    assert one["summary"].keys() == two["summary"].keys()
    assert len(one["pairs"]) == len(two["pairs"]) == 600


@pytest.mark.slow
@pytest.mark.parametrize("failing", ["0", "1"])
def test_an_error_in_one_process_ends_all_with_one_line(
    failing: str, bank: Path, tmp_path: Path
) -> None:
    pairs = write_rows(tmp_path / "p.jsonl", [True] * 3000)
    output = tmp_path / "out"
    arguments = ("score", "--bank", bank, "--pairs", pairs, "--output", output)
    done = two_processes(tmp_path, *arguments, FAILS=failing)
    assert done.code == 1
    assert done.stdout == ""
    assert done.said == ["scoring (3,000 to do)", "Error: this one cannot score"]
    # The other one finished the part that it was at, which stays, and began no more than another.
    assert len(list(output.glob(PARTS))) <= 2
    assert not [path for path in output.glob(".*")]
