"""Whatever goes wrong on the way to the Hub: all is well in the end, or nothing is half done.

Each cell of a table is one run of one operation in which one request goes wrong in one way. The
operations are the real ones, on tiny artifacts, against the Hub on loopback. Only our own pauses
are left out; those of the Hub's client are waited for, so that most cells are slow tests.
"""

import hashlib
import json
import logging
import re
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
import torch
from huggingface_hub import constants

from morlaif_hub import PMBank
from morlaif_hub.errors import HubError, MorlaifHubError
from morlaif_hub.hub import access, catalog, client, upload
from morlaif_hub.hub.catalog import SearchResult, search_hub
from morlaif_hub.hub.manifest import MANIFEST_NAME
from morlaif_hub.hub.remote_files import remove_damaged
from morlaif_hub.models.language_model import model_folder
from morlaif_hub.publish.push import Published, push_to_hub
from morlaif_hub.publish.verify import Verification, verify
from tests.hub_server import Fault, LoopbackHub
from tests.hub_server.online import online
from tests.hub_workspace import Made

TOKEN = "hf_neverShowThisToAnybody"
FOREVER = 10**6
PROMPTS, RESPONSES = ["What is it?", "And you?"], ["A tree.", "The sea is wide and deep."]

FAULTS: dict[str, dict[str, Any]] = {
    "drop": {"kind": "drop"},
    "503": {"kind": "status", "status": 503},
    "429": {"kind": "status", "status": 429, "headers": {"Retry-After": "0"}},
    "slow": {"kind": "delay", "seconds": 0.3},
    "lost": {"kind": "lost_response"},
    "truncated": {"kind": "truncate", "after_bytes": 50},
    "corrupted": {"kind": "corrupt", "after_bytes": 50},
}
_CUT = "RemoteProtocolError|ReadError"
CAUSES = {
    "drop": _CUT,
    "503": "503|a Hub in trouble",  # of a card's check the client reads the body first
    "429": "429",
    "slow": "no answer",
    "lost": _CUT,
    "truncated": _CUT,
    "corrupted": "other bytes|UTF-8|cannot be read",
}
ASKED = ("drop", "503", "429", "slow")  # a question whose answer is lost is one that was dropped
DONE = (*ASKED, "lost")
READ = (*ASKED, "truncated", "corrupted")


class Spot(NamedTuple):
    """A request of an operation: the one of this method and path after `skip` others.

    In the path, `{it}` stands for the repository, `{need}` for the base's, `{large}` for the hash
    of a large file and `{file}` for its path.
    """

    name: str
    method: str
    path: str
    faults: tuple[str, ...] = ASKED
    skip: int = 0


class Operation(NamedTuple):
    """One of the things that are done with the Hub.

    Attributes:
        stage: What is on the Hub before.
        folder: The artifact, in the workspace.
        repo_id: Its repository; `{base}` stands for the name of the base.
        large: A file of it that goes over LFS.
        spots: Every request of it.
        run: Does it.
        judge: Checks what is there afterwards.
    """

    stage: str
    folder: str
    repo_id: str
    large: str
    spots: tuple[Spot, ...]
    run: Callable[["Scene"], Any]
    judge: Callable[["Scene", Any], None]


class Stock(NamedTuple):
    """What was published once for all cells: the folders of Hubs, one for each stage."""

    made: Made
    root: Path
    expected: torch.Tensor


class Scene:
    """A Hub at the stage that an operation starts from, with a user whose token is set."""

    def __init__(self, hub: LoopbackHub, stock: Stock, operation: str) -> None:
        self.hub, self.stock, self.name = hub, stock, operation
        self.operation = OPERATIONS[operation]
        self.folder = stock.made.workspace.root / self.operation.folder
        hub.add_user("ann", token=TOKEN)
        base = model_folder(stock.made.base)  # it was used here, so it stands in for its repository
        self.base = base.base.weights_sha256[:8]
        self.kind = "dataset" if "feedback" in self.operation.repo_id else "model"
        self.repo_id = self.operation.repo_id.format(base=self.base)
        self.earlier = self.commits()
        self.tagged = self.tags()

    def commits(self) -> list[str]:
        """Return the commits after the Hub's own one, newest first."""
        there = self.hub.repo(self.kind, self.repo_id)
        return self.hub.commits(self.kind, self.repo_id)[:-1] if there else []

    def ours(self) -> list[str]:
        """Return the commits that were made since."""
        return [commit for commit in self.commits() if commit not in self.earlier]

    def tags(self) -> dict[str, str]:
        there = self.hub.repo(self.kind, self.repo_id)
        return self.hub.tags(self.kind, self.repo_id) if there else {}

    def somebody_else(self) -> None:
        """Let somebody else change the card now."""
        files = {"README.md": b"Mine!\n"}
        made = self.hub.commit(self.kind, self.repo_id, files, message="Say whose it is")
        self.earlier.append(made)

    def spot(self, name: str) -> Spot:
        return next(spot for spot in self.operation.spots if spot.name == name)

    def pattern(self, spot: Spot) -> str:
        large = self.folder / self.operation.large
        return (
            spot.path.replace("{need}", re.escape(f"ann/morlaif-base-{self.base}"))
            .replace("{it}", re.escape(self.repo_id))
            .replace("{data}", "ann/morlaif-feedback-\\w+-sums")
            .replace("{kind}", f"{self.kind}s")
            .replace("{file}", re.escape(self.operation.large))
            .replace("{large}", hashlib.sha256(large.read_bytes()).hexdigest())
        )

    def strike(self, spot: Spot, fault: str, *, times: int = 1) -> Fault:
        details = {"times": times, "skip": spot.skip, **FAULTS[fault]}
        return self.hub.fault(spot.method, self.pattern(spot), **details)

    def attempt(self) -> Any:
        """Return what comes out, or the error of ours that is raised."""
        try:
            return self.operation.run(self)
        except MorlaifHubError as error:
            return error

    def tries(self) -> int:
        """Return how often the request that was struck was sent, and sent again."""
        struck = next(n for n, record in enumerate(self.hub.log) if record.fault)
        first = self.hub.log[struck]
        return sum((r.method, r.path) == (first.method, first.path) for r in self.hub.log[struck:])


# The operations, and how each is judged.


def push(scene: Scene, **options: Any) -> Published:
    return push_to_hub(scene.folder, **options)


def judge_push(scene: Scene, outcome: Any) -> None:
    """It is there whole, once; or nothing of it is; or all of it is, and the error says so."""
    ours = scene.ours()
    assert len(ours) <= 1
    repo = scene.hub.repo(scene.kind, scene.repo_id)
    new_tags = {name: c for name, c in scene.tags().items() if name not in scene.tagged}
    for commit in ours:
        is_whole(scene, commit)
    if isinstance(outcome, MorlaifHubError):
        said = str(outcome)
        assert repo is None or repo.private
        assert bool(ours) == (
            re.search("is on the Hub|is published and proved", said) is not None
        ), said
        assert not new_tags or "is published and proved" in said
    else:
        assert ours == [outcome.commit]
        assert new_tags == {outcome.tag: outcome.commit}
        assert repo is not None
        assert repo.private is not outcome.public
        assert all(check.verdict == "holds" for check in outcome.checks)


def is_whole(scene: Scene, commit: str) -> None:
    """Check that a commit has the artifact's files and no others."""
    files = scene.hub.files(scene.kind, scene.repo_id, revision=commit)
    listed = {e["path"]: e["sha256"] for e in json.loads(files[MANIFEST_NAME])["files"]}
    assert set(files) == {*listed, MANIFEST_NAME, "README.md", ".gitattributes"}
    for path, sha256 in listed.items():
        assert hashlib.sha256(files[path]).hexdigest() == sha256
    large = scene.operation.large
    assert files[large] == (scene.folder / large).read_bytes()


def pull(scene: Scene) -> torch.Tensor:
    return PMBank.from_pretrained(scene.repo_id).score(PROMPTS, RESPONSES)


def judge_pull(scene: Scene, outcome: Any) -> None:
    if not isinstance(outcome, MorlaifHubError):
        assert torch.equal(outcome, scene.stock.expected)


def search(_scene: Scene) -> SearchResult:
    return search_hub()


def judge_search(scene: Scene, outcome: Any) -> None:
    """All is listed, and what could not be read is listed with the reason."""
    if isinstance(outcome, MorlaifHubError):
        return
    names = [f"ann/morlaif-pm-{name}-{scene.base}" for name in ("conciseness", "detail")]
    assert sorted(found.repo_id for found in outcome.found) == names
    assert not outcome.more
    for found in outcome.found:
        assert found.problem or (found.claims and found.claims.principles[0] in found.repo_id)


def verify_it(scene: Scene) -> Verification:
    return verify(scene.repo_id)


def judge_verify(_scene: Scene, outcome: Any) -> None:
    if not isinstance(outcome, MorlaifHubError):
        assert outcome.holds
        assert all(check.verdict == "holds" for check in outcome.checks), outcome.checks


NEED = (
    Spot("base: info", "GET", "/api/models/{need}$"),
    Spot("base: tree", "GET", "/{need}/tree/"),
    Spot("base: head", "HEAD", "/{need}/resolve/[0-9a-f]{40}/morlaif.json$"),
    Spot("base: file", "GET", "/{need}/resolve/[0-9a-f]{40}/morlaif.json$", READ),
    Spot("base: weights, info", "GET", "/api/models/{need}/revision/[0-9a-f]{40}$"),
    Spot("base: weights, tree", "GET", "/{need}/tree/", skip=1),
)
NEW = (
    Spot("who", "GET", "/api/whoami-v2$"),
    Spot("info", "GET", "/api/{kind}/{it}$"),
    Spot("create", "POST", "/api/repos/create$", DONE),
    Spot("made: info", "GET", "/api/{kind}/{it}$", skip=1),
    Spot("made: tree", "GET", "/{it}/tree/"),
)
SEND = (
    Spot("card check", "POST", "/api/validate-yaml$"),
    Spot("preupload", "POST", "/{it}/preupload/"),
    Spot("lfs batch", "POST", "/{it}.git/info/lfs/objects/batch$"),
    Spot("lfs put", "PUT", "^/lfs/{large}", DONE),
    Spot("lfs verify", "POST", "/{it}.git/info/lfs/objects/verify$"),
    Spot("commit", "POST", "/{it}/commit/main$", (*DONE, "truncated", "corrupted")),
)
PROVE = (
    Spot("proof: info", "GET", "/api/{kind}/{it}/revision/[0-9a-f]{40}$"),
    Spot("proof: tree", "GET", "/{it}/tree/", skip=1),
    Spot("proof: head", "HEAD", "/{it}/resolve/[0-9a-f]{40}/morlaif.json$"),
    Spot("proof: file", "GET", "/{it}/resolve/[0-9a-f]{40}/morlaif.json$", READ),
    Spot("proof: lfs head", "HEAD", "/{it}/resolve/[0-9a-f]{40}/{file}$"),
    Spot("proof: lfs get", "GET", "^/lfs/{large}", READ),
    Spot("refs", "GET", "/{it}/refs$"),
    Spot("tag", "POST", "/{it}/tag/", DONE),
)
GET = (
    Spot("info", "GET", "/api/models/{it}$"),
    Spot("tree", "GET", "/{it}/tree/"),
    Spot("head", "HEAD", "/{it}/resolve/[0-9a-f]{40}/morlaif.json$"),
    Spot("file", "GET", "/{it}/resolve/[0-9a-f]{40}/morlaif.json$", READ),
    Spot("lfs head", "HEAD", "/{it}/resolve/[0-9a-f]{40}/{file}$"),
    Spot("lfs get", "GET", "^/lfs/{large}", READ),
)
WHOLE = Spot("all of it: info", "GET", "/api/models/{it}/revision/[0-9a-f]{40}$")
DATA = (
    Spot("data: info", "GET", "/api/datasets/{data}(/revision/[0-9a-f]{40})?$"),
    Spot("data: tree", "GET", "/{data}/tree/"),
    Spot("data: head", "HEAD", "/{data}/resolve/[0-9a-f]{40}/morlaif.json$"),
    Spot("data: file", "GET", "/{data}/resolve/[0-9a-f]{40}/morlaif.json$", READ),
)
COLLECTED = (
    Spot("collection", "POST", "/api/collections$", DONE),
    Spot("collection: item", "POST", "/api/collections/.*/items$", DONE, skip=2),
)


def known(*spots: Spot) -> tuple[Spot, ...]:
    """Return spots at which nothing goes wrong here: another operation asks the same there."""
    return tuple(spot._replace(faults=()) for spot in spots)


# What PEFT asks of a base's repository when it looks whether its vocabulary was changed.
PEFT = known(
    Spot("peft: head", "HEAD", "/{need}/resolve/(main|[0-9a-f]{40})/config.json$"),
    Spot("peft: file", "GET", "/{need}/resolve/[0-9a-f]{40}/config.json$"),
    Spot("peft: info", "GET", "/api/models/{need}/revision/main$"),
)
OTHERS = known(Spot("the rest", "*", "^/(datasets/)?ann/[^/]+/resolve/|^/lfs/|{data}/"))

PM = ("pms/conciseness", "ann/morlaif-pm-conciseness-{base}", "adapter_model.safetensors")
FEEDBACK = ("feedback/conciseness", "ann/morlaif-feedback-conciseness-sums", "data/train.parquet")
BANK = ("bank", "ann/morlaif-bank-conciseness-detail", "figures/correlations.png")

OPERATIONS = {
    "push pm": Operation(
        "data", *PM, (*NEED, *NEW, *SEND, *PROVE, *known(*DATA), *PEFT, *OTHERS), push, judge_push
    ),
    "push pm again": Operation(
        "older",
        *PM,
        (
            Spot("info", "GET", "/api/{kind}/{it}$"),
            Spot("tree", "GET", "/{it}/tree/"),
            Spot("kept: head", "HEAD", "/{it}/resolve/[0-9a-f]{40}/morlaif.json$"),
            Spot("kept: file", "GET", "/{it}/resolve/[0-9a-f]{40}/morlaif.json$", READ),
            Spot("commit", "POST", "/{it}/commit/main$", DONE),
            Spot("tag", "POST", "/{it}/tag/", DONE),
            *known(NEW[0], *NEED, *DATA, *SEND, *PROVE),
            *PEFT,
            *OTHERS,
        ),
        push,
        judge_push,
    ),
    "push feedback": Operation(
        "base",
        *FEEDBACK,
        (
            *SEND[-3:],
            *PROVE[-4:],
            Spot("settings", "PUT", "/api/{kind}/{it}/settings$", DONE),
            *known(*NEW, *SEND, *PROVE),
            *OTHERS,
        ),
        lambda scene: push(scene, public=True),
        judge_push,
    ),
    "push bank": Operation(
        "all",
        *BANK,
        (
            *COLLECTED,
            *known(*NEW, *SEND, *PROVE, Spot("parts", "GET", "/ann/morlaif-pm-"), *NEED),
            *PEFT,
            *OTHERS,
        ),
        push,
        judge_push,
    ),
    "pull pm": Operation("all", *PM, (*GET, *PEFT, *OTHERS), pull, judge_pull),
    "search": Operation(
        "all",
        *PM,
        (
            Spot("list", "GET", "/api/models$", (*ASKED, "truncated")),
            Spot("list: page 2", "GET", "/api/models$", (*ASKED, "truncated"), skip=1),
            Spot("manifest", "GET", "/{it}/resolve/[0-9a-f]{40}/morlaif.json$", READ),
            *OTHERS,
        ),
        search,
        judge_search,
    ),
    "verify pm": Operation(
        "all", *PM, (*GET, WHOLE, *DATA, *PEFT, *OTHERS), verify_it, judge_verify
    ),
}


# Cells.

TABLE: dict[tuple[str, str, str], str] = {}
SAID: dict[str, str] = {}

QUICK = {
    "push pm": {
        "commit lost",
        "commit 503",
        "create drop",
        "lfs put drop",
        "proof: file corrupted",
    },
    "push pm again": {"commit drop", "kept: head 503"},
    "push feedback": {"tag lost", "settings 503"},
    "push bank": {"collection: item lost"},
    "pull pm": {"info drop", "lfs get corrupted", "file corrupted", "lfs get 503"},
    "search": {"list: page 2 503", "manifest corrupted"},
    "verify pm": {"lfs get 503", "data: file corrupted"},
}


def cells() -> Iterator[Any]:
    for name, operation in OPERATIONS.items():
        for spot in operation.spots:
            for fault in spot.faults:
                what = f"{spot.name} {fault}"
                marks = () if what in QUICK[name] else (pytest.mark.slow,)
                yield pytest.param(name, spot, fault, id=f"{name}-{what}", marks=marks)


@pytest.fixture(scope="module")
def stock(made_once: Made, tmp_path_factory: pytest.TempPathFactory) -> Stock:
    """Publish what the operations need, stage by stage, and keep a copy of the Hub at each."""
    root, live = tmp_path_factory.mktemp("stock"), tmp_path_factory.mktemp("live")
    workspace = made_once.workspace

    def stage(name: str, after: str | None, *folders: Path) -> None:
        if after is not None:
            shutil.rmtree(live / "hub")
            shutil.copytree(root / after, live / "hub")
        port = urlsplit(constants.ENDPOINT).port or 0
        with LoopbackHub(live / "hub", port=port) as hub, online(live / "client"):
            patch.setenv("HF_TOKEN", hub.add_user("ann"))
            model_folder(made_once.base)
            for folder in folders:
                push_to_hub(folder)
        shutil.copytree(live / "hub", root / name)

    feedback, pm = workspace.feedback("conciseness"), workspace.preference_model("conciseness")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MORLAIF_CACHE", str(live / "cache"))
        stage("base", None, made_once.base)
        stage("older", "base", pm, feedback)
        stage("data", "base", feedback)
        stage("all", "data", pm, workspace.preference_model("detail"))
        model_folder(made_once.base)
        expected = PMBank.from_pretrained(pm).score(PROMPTS, RESPONSES)
    return Stock(made_once, root, expected)


@pytest.fixture
def scene(
    request: pytest.FixtureRequest,
    stock: Stock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Scene]:
    """Return the scene of the operation that the test is parametrized with, without our pauses."""
    shutil.copytree(stock.root / OPERATIONS[request.param].stage, tmp_path / "hub")
    hub = request.getfixturevalue("hub")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for module in (access, client, upload):
        monkeypatch.setattr(module, "sleep", lambda _seconds: None)
    monkeypatch.setattr(catalog, "PAGE", 1)
    caplog.set_level(logging.DEBUG)
    yield Scene(hub, stock, request.param)
    for thread in threading.enumerate():  # what nobody waits for any more must not ask the next Hub
        if thread.name.endswith("(run)"):
            thread.join(10)
    shown = capsys.readouterr()
    assert TOKEN not in shown.out + shown.err + caplog.text
    assert hub.leaks == []


@pytest.fixture(scope="module", autouse=True)
def _show(request: pytest.FixtureRequest) -> Iterator[None]:
    """Print the table when all cells have run."""
    yield
    if not TABLE:
        return
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        request.config.pluginmanager.getplugin("terminalreporter").write(f"\n\n{rendered()}\n")


def rendered() -> str:
    """Return the table: a row for each request, a column for each fault."""
    rows = dict.fromkeys((name, spot) for name, spot, _ in TABLE)
    lines = [f"{'operation':<16}{'request':<25}" + "".join(f"{fault:<13}" for fault in FAULTS)]
    for row in rows:
        found = [TABLE.get((*row, fault), "") for fault in FAULTS]
        lines.append(f"{row[0]:<16}{row[1]:<25}" + "".join(f"{cell:<13}" for cell in found))
    numbered = [f"{number}: {text}" for text, number in SAID.items()]
    return "\n".join([*lines, "", "What the errors say:", *numbered])


def note(scene: Scene, spot: str, fault: str, outcome: Any) -> None:
    """Enter the outcome into the table: ok, ok on a later try, or an error by its number.

    `told` stands for a search that lists everything, and for one repository says what is wrong.
    """
    if isinstance(outcome, MorlaifHubError):
        said = str(outcome).replace(scene.base, "<base>")
        said = re.sub(r"\b[0-9a-f]{12,40}\b", "<hash>", said)
        cell = f"error {SAID.setdefault(said, str(len(SAID) + 1))}"
    elif isinstance(outcome, SearchResult) and any(found.problem for found in outcome.found):
        cell = "told"
    else:
        tries = scene.tries()
        cell = "ok" if tries == 1 else f"ok, {tries} tries"
    TABLE[scene.name, spot, fault] = cell


def is_in_words(error: MorlaifHubError, fault: str) -> None:
    """Check that an error is one line that names the cause, and gives nothing away."""
    said = str(error)
    assert "\n" not in said
    assert re.search(CAUSES[fault], said), said
    assert not re.search(r"[?&]\w+=|Traceback", said), said
    assert TOKEN not in "".join(traceback.format_exception(error))


@pytest.mark.parametrize(("scene", "spot", "fault"), list(cells()), indirect=["scene"])
def test_one_fault(scene: Scene, spot: Spot, fault: str) -> None:
    struck = scene.strike(spot, fault)
    outcome = scene.attempt()
    assert struck.hits == 1
    note(scene, spot.name, fault, outcome)
    scene.operation.judge(scene, outcome)
    if isinstance(outcome, MorlaifHubError):
        is_in_words(outcome, fault)
    works_afterwards(scene)


def works_afterwards(scene: Scene) -> None:
    """Do it again without faults: it has to succeed, with one commit in all."""
    outcome = scene.attempt()
    assert not isinstance(outcome, MorlaifHubError), outcome
    scene.operation.judge(scene, outcome)


@pytest.mark.parametrize("scene", OPERATIONS, indirect=True)
def test_every_request_of_an_operation_is_in_the_table(scene: Scene) -> None:
    """And every row of the table is a request that is made, so that no cell tests nothing."""
    outcome = scene.attempt()
    assert not isinstance(outcome, MorlaifHubError), outcome
    scene.operation.judge(scene, outcome)
    used = [(spot, re.compile(scene.pattern(spot))) for spot in scene.operation.spots]
    for record in scene.hub.log:
        found = [s for s, p in used if s.method in ("*", record.method) and p.search(record.path)]
        assert found, (record.method, record.path)
    for spot, _ in used:
        if spot.faults:
            there = scene.hub.requests(spot.method, scene.pattern(spot))
            assert len(there) > spot.skip, spot


# Faults that stay.

STAYS = {
    "push pm": {
        "who": ("drop", "503", "slow"),
        "base: info": ("503", "slow"),
        "create": ("drop", "503", "slow", "lost"),
        "made: info": ("503",),
        "card check": ("503",),
        "lfs put": ("429",),
        "commit": ("drop", "503", "slow", "lost"),
        "proof: info": ("503",),
        "proof: file": ("corrupted",),
        "proof: lfs get": ("503", "corrupted"),
        "refs": ("503",),
        "tag": ("503", "lost", "slow"),
    },
    "push pm again": {"info": ("503",), "kept: file": ("503", "corrupted")},
    "push feedback": {"settings": ("503",)},
    "push bank": {"collection": ("503",), "collection: item": ("drop",)},
    "pull pm": {
        "info": ("drop", "503", "slow"),
        "tree": ("429",),
        "file": ("corrupted",),
        "lfs get": ("503", "truncated", "corrupted"),
    },
    "search": {"list": ("drop", "503", "slow"), "list: page 2": ("503",), "manifest": ("503",)},
    "verify pm": {"lfs get": ("corrupted",)},
}
STAYS_QUICK = {"push pm-proof: lfs get corrupted", "push pm-tag 503", "pull pm-lfs get corrupted"}


def lasting() -> Iterator[Any]:
    for name, spots in STAYS.items():
        for spot, faults in spots.items():
            for fault in faults:
                what = f"{name}-{spot} {fault}"
                marks = () if what in STAYS_QUICK else (pytest.mark.slow,)
                yield pytest.param(name, spot, fault, id=what, marks=marks)


@pytest.mark.parametrize(("scene", "name", "fault"), list(lasting()), indirect=["scene"])
def test_a_fault_that_stays(scene: Scene, name: str, fault: str) -> None:
    """It ends in time: with an error, or well, where what was done is there to be seen."""
    struck = scene.strike(scene.spot(name), fault, times=FOREVER)
    start = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        if fault == "slow":  # slower than anybody waits
            patch.setattr(access, "ANSWER_SECONDS", 0.2)
            patch.setattr(access, "PATIENCE", 0.2)
            patch.setattr(upload, "PATIENCE", 0.2)
            patch.setattr(upload, "COMMIT_SECONDS", 0.0)
        outcome = scene.attempt()
    assert time.monotonic() - start < 45
    assert struck.hits
    note(scene, f"{name}, stays", fault, outcome)
    scene.operation.judge(scene, outcome)
    if isinstance(outcome, MorlaifHubError):
        is_in_words(outcome, fault)
    struck.times = 0
    works_afterwards(scene)


@pytest.mark.parametrize("scene", ["pull pm"], indirect=True)
@pytest.mark.parametrize("fault", ["drop", "hang"])
def test_a_pull_says_within_five_seconds_that_nothing_answers(scene: Scene, fault: str) -> None:
    details = FAULTS["drop"] if fault == "drop" else {"kind": "delay", "seconds": 3.5}
    struck = scene.hub.fault("*", "", times=FOREVER, **details)
    start = time.monotonic()
    outcome = scene.attempt()
    assert time.monotonic() - start < 5.0
    struck.times = 0
    assert isinstance(outcome, HubError)
    assert "the Hub cannot be reached" in str(outcome)


# Somebody else writes at the same time.


@pytest.mark.parametrize("scene", ["push pm", "push pm again"], indirect=True)
def test_a_push_that_is_overtaken_publishes_nothing(scene: Scene) -> None:
    commit = scene.spot("commit")
    scene.hub.before("POST", scene.pattern(commit), scene.somebody_else)
    outcome = scene.attempt()
    assert isinstance(outcome, HubError)
    assert re.search("was changed by bob .* nothing of it was published", str(outcome))
    scene.operation.judge(scene, outcome)
    assert scene.hub.files(scene.kind, scene.repo_id)["README.md"] == b"Mine!\n"
    works_afterwards(scene)


@pytest.mark.parametrize("scene", ["push pm"], indirect=True)
def test_a_commit_whose_answer_is_lost_is_found_below_somebody_elses(scene: Scene) -> None:
    scene.strike(scene.spot("commit"), "lost")
    scene.hub.before("GET", f"{scene.repo_id}/commits/", scene.somebody_else)
    outcome = scene.attempt()
    scene.operation.judge(scene, outcome)
    assert scene.commits() == [*scene.earlier, outcome.commit]


@pytest.mark.parametrize("scene", ["push pm"], indirect=True)
def test_a_lost_answer_that_cannot_be_asked_for_is_told(scene: Scene) -> None:
    scene.strike(scene.spot("commit"), "lost")
    history = f"{scene.repo_id}/commits/"  # 501: the client does not ask again for half a minute
    struck = scene.hub.fault("GET", history, "status", status=501, times=FOREVER)
    outcome = scene.attempt()
    assert isinstance(outcome, HubError)
    assert "it cannot be asked whether the commit is there" in str(outcome)
    assert len(scene.ours()) == 1
    assert not scene.tags()
    struck.times = 0
    works_afterwards(scene)


@pytest.mark.parametrize("scene", ["push pm"], indirect=True)
def test_a_version_that_somebody_else_took_is_not_moved(scene: Scene) -> None:
    def tag() -> None:
        repo = scene.hub.repo(scene.kind, scene.repo_id)
        assert repo is not None
        repo.git.tag("v1", scene.hub.commits(scene.kind, scene.repo_id)[-1], author="bob")

    scene.hub.before("POST", f"{scene.repo_id}/tag/", tag)
    outcome = scene.attempt()
    assert outcome.tag == "v2"
    first = scene.hub.commits(scene.kind, scene.repo_id)[-1]
    assert scene.tags() == {"v1": first, "v2": outcome.commit}


@pytest.mark.parametrize("scene", ["push pm"], indirect=True)
def test_nothing_goes_into_a_public_repository_that_somebody_else_made(scene: Scene) -> None:
    scene.hub.before("POST", "/api/repos/create", scene.somebody_else)
    outcome = scene.attempt()
    assert isinstance(outcome, HubError)
    assert "is public, and a push is private" in str(outcome)
    assert scene.ours() == []


def test_a_damaged_file_is_removed_with_what_it_links_to(tmp_path: Path) -> None:
    """As the Hub's client keeps them: a folder of links to files named by their hashes."""
    whole, damaged = hashlib.sha256(b"whole").hexdigest(), hashlib.sha256(b"sound").hexdigest()
    small = hashlib.sha1(b"blob 5\0small").hexdigest()
    blobs, folder, store = (
        tmp_path / name
        for name in ("models--ann--x/blobs", "models--ann--x/snapshots/1/data", "blobs")
    )
    for place in (blobs, folder, store):
        place.mkdir(parents=True)
    (blobs / whole).write_bytes(b"whole")
    (blobs / small).write_bytes(b"small")
    (store / "of-xet").write_bytes(b"sOund")
    (blobs / damaged).symlink_to("../../blobs/of-xet")
    for name, blob in (("a", whole), ("b", small), ("c", damaged)):
        (folder / name).symlink_to(f"../../../blobs/{blob}")
    assert remove_damaged(folder.parent) == ["data/c"]
    assert not list(store.iterdir())
    assert sorted(path.name for path in blobs.iterdir()) == sorted([whole, small])
    assert remove_damaged(folder.parent) == []
