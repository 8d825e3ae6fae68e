"""What is on the Hub is found through paging, with its claims; bad manifests and faults are told.

Where the Hub does what it should, or stumbles, it is the one on loopback; where it is no Hub or
not there at all, a new process asks a few lines of server instead.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from click.testing import CliRunner, Result
from huggingface_hub import constants

from morlaif_hub.cli import cli
from morlaif_hub.cli.search import KINDS, search
from morlaif_hub.errors import HubError, MorlaifHubError, OptionError, UnknownNameError
from morlaif_hub.hub import catalog
from morlaif_hub.hub.catalog import LARGEST_MANIFEST, LIMIT, Found, SearchResult, search_hub
from morlaif_hub.hub.front_matter import front_matter
from morlaif_hub.hub.manifest import MANIFEST_NAME, MANIFESTS, Kind, Manifest, dump_manifest
from tests.hub_server import LoopbackHub
from tests.manifests import (
    bank_manifest,
    base_identity,
    base_manifest,
    feedback_manifest,
    judge_record,
    policy_manifest,
    preference_model_manifest,
    principle_record,
    sha256,
    validation_record,
)
from tests.test_docs import generator

ESCAPE = "\x1b[31m"
TOKEN = "hf_neverShowThis"
OTHER_BASE = base_identity(repo_id="bob/gpt2-copy", weights_sha256=sha256("9"), source="hub")


def about(principle: str, **changes: Any) -> Manifest:
    """Return a preference model's manifest for a principle."""
    record = principle_record(name=principle, high_score=f"A high score means more {principle}.")
    return preference_model_manifest(principle=record, **{"repo_id": None, **changes})


def accurate(low: float) -> dict[str, Any]:
    """Return the field of a manifest whose accuracy has this lower end."""
    test = preference_model_manifest().evaluations[0]
    return {"evaluations": (replace(test, interval=(low, 0.99)),)}


def card(manifest: Manifest) -> bytes:
    """Return the part of a card that the Hub reads."""
    return f"---\n{yaml.safe_dump(front_matter(manifest))}---\n".encode()


def put(hub: LoopbackHub, repo_id: str, manifest: Manifest, text: bytes | None = None) -> None:
    """Put an artifact on the Hub: its card, and its manifest or another text in its place."""
    written = dump_manifest(manifest).encode() if text is None else text
    kind = "dataset" if manifest.kind == "feedback-dataset" else "model"
    hub.commit(kind, repo_id, {"README.md": card(manifest), MANIFEST_NAME: written})


def ids(result: SearchResult) -> list[str]:
    return [found.repo_id for found in result.found]


def only(result: SearchResult) -> Found:
    (found,) = result.found
    return found


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["search", *arguments])


def shown(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def words(text: str) -> str:
    return " ".join(text.split())


# What is found.


def test_a_list_of_several_pages_is_read_to_its_end(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one request for each page and one for each manifest, and no others."""
    monkeypatch.setattr(catalog, "PAGE", 10)
    names = [f"ann/pm-{number:02}" for number in range(25)]
    for name in names:
        put(hub, name, about("toxicity"))
    hub.clear_log()
    result = search_hub()
    assert sorted(ids(result)) == names
    assert not result.more
    assert all(found.problem is None for found in result.found)
    asked = [entry.path for entry in hub.log]
    assert asked.count("/api/models") == 3
    assert sum(path.endswith(f"/{MANIFEST_NAME}") for path in asked) == 25
    assert len(asked) == 28


def test_a_list_that_is_cut_at_the_limit_says_so(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "PAGE", 2)
    for number in range(5):
        put(hub, f"ann/pm-{number}", about("toxicity"))
    hub.clear_log()
    result = search_hub(limit=3)
    assert (len(result.found), result.more) == (3, True)
    assert sum(entry.path.endswith(MANIFEST_NAME) for entry in hub.log) == 3
    assert words(shown("--limit", "3")).startswith("MORE: the Hub has more than 3 of them")
    whole = search_hub(limit=5)
    assert (len(whole.found), whole.more) == (5, False)


def test_principle_base_and_author_narrow_the_search(hub: LoopbackHub) -> None:
    for author in ("ann", "bob"):
        for principle in ("toxicity", "empathy"):
            for base, identity in (("a", base_identity()), ("b", OTHER_BASE)):
                name = f"{author}/{principle}-{base}"
                put(hub, name, about(principle, base=identity))
    put(hub, "ann/not-of-ours", base_manifest())
    wishes: tuple[tuple[dict[str, Any], int], ...] = (
        ({}, 8),
        ({"principle": "toxicity"}, 4),
        ({"author": "bob"}, 4),
        ({"base": "bob/gpt2-copy"}, 4),
        ({"base": sha256("9")[:8]}, 4),
        ({"base": "0" * 8}, 0),
        ({"principle": "empathy", "author": "ann"}, 2),
        ({"principle": "empathy", "base": base_identity().repo_id}, 2),
        ({"author": "bob", "base": sha256("a")}, 2),
        ({"principle": "empathy", "author": "ann", "base": "bob/gpt2-copy"}, 1),
        ({"principle": "honesty"}, 0),
        ({"author": "carl"}, 0),
    )
    for wish, expected in wishes:
        found = search_hub(**wish).found
        assert len(found) == expected, wish
        for one in found:
            author, rest = one.repo_id.split("/")
            assert one.claims is not None
            assert wish.get("author", author) == author
            assert one.claims.principles == (wish.get("principle", rest.split("-")[0]),)
            letter = "b" if one.claims.base == OTHER_BASE else "a"
            assert rest.endswith(f"-{letter}")


def test_a_claim_is_what_the_manifest_says_at_the_commit_that_was_listed(hub: LoopbackHub) -> None:
    manifest = preference_model_manifest(repo_id="ann/original")
    put(hub, "ann/pm", manifest)
    found = only(search_hub())
    assert (found.kind, found.private, found.problem) == ("preference-model", False, None)
    assert found.commit == hub.commits("model", "ann/pm")[0]
    assert any(e.path.endswith(f"/{found.commit}/{MANIFEST_NAME}") for e in hub.log)
    assert found.last_modified is not None
    claims = found.claims
    assert claims is not None
    assert claims.high_scores == {"conciseness": manifest.principle.high_score}
    assert claims.verdicts == {"conciseness": "fit"}
    assert claims.accuracy == manifest.evaluations[0]
    assert claims.validation == manifest.validation
    assert claims.base == manifest.base
    assert (claims.judge, claims.pairs) == ("likelihood:embedded", 287)
    assert (claims.license, claims.published_as) == ("Apache-2.0", "ann/original")


def test_people_and_what_was_not_measured_are_told_as_such(hub: LoopbackHub) -> None:
    training = replace(preference_model_manifest().training, labels="human")
    nothing = {"judge": None, "validation": None, "evaluations": ()}
    put(hub, "ann/pm", preference_model_manifest(training=training, **nothing))
    claims = only(search_hub()).claims
    assert claims is not None
    assert claims.judge == "people"
    assert (claims.accuracy, claims.validation) == (None, None)
    assert claims.verdicts == {"conciseness": None}
    text = shown()
    assert "judge people" in words(text)
    assert "none" in text
    assert "length-only" not in text


def test_figures_of_the_training_pairs_are_no_claim_of_accuracy(hub: LoopbackHub) -> None:
    test = preference_model_manifest().evaluations[0]
    train, held_out = replace(test, split="train", value=0.99), replace(test, split="validation")
    for evaluations, claimed in (
        ((train, held_out, test), test),
        ((train, held_out), held_out),
        ((train,), None),
    ):
        put(hub, "ann/pm", preference_model_manifest(evaluations=evaluations))
        claims = only(search_hub()).claims
        assert claims is not None
        assert claims.accuracy == claimed


@pytest.mark.parametrize(
    ("kind", "manifest", "principles", "pairs"),
    [
        ("feedback-dataset", feedback_manifest(), ("conciseness",), 959),
        ("bank", bank_manifest(), ("conciseness", "toxicity"), None),
        ("policy", policy_manifest(), ("conciseness", "toxicity"), None),
        ("base", base_manifest(), (), None),
    ],
)
def test_other_kinds_are_found_too(
    kind: Kind, manifest: Manifest, principles: tuple[str, ...], pairs: int | None, hub: LoopbackHub
) -> None:
    put(hub, "ann/it", manifest)
    put(hub, "ann/pm", about("toxicity"))
    found = only(search_hub(kind=kind))
    assert (found.repo_id, found.problem) == ("ann/it", None)
    assert found.claims is not None
    assert found.claims.principles == principles
    assert found.claims.pairs == pairs
    if principles:
        assert ids(search_hub(kind=kind, principle=principles[-1])) == ["ann/it"]
        assert ids(search_hub(kind=kind, principle="honesty")) == []
    if kind in ("policy", "base"):
        for base in (base_identity().repo_id, sha256("a")):
            assert ids(search_hub(kind=kind, base=base)) == ["ann/it"]
        assert ids(search_hub(kind=kind, base="bob/gpt2-copy")) == []
    assert "ann/it" in shown("--kind", kind)


def test_private_ones_are_for_those_who_may_read_them(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a manifest lies on the second origin, which must not get the token."""
    ann, bob = hub.add_user("ann"), hub.add_user("bob")
    hub.commit("model", "ann/secret", {".gitattributes": b"*.json filter=lfs"})
    put(hub, "ann/secret", about("toxicity"))
    repo = hub.repo("model", "ann/secret")
    assert repo is not None
    repo.private = True
    put(hub, "ann/open", about("toxicity"))
    for token, expected in ((None, ["ann/open"]), (bob, ["ann/open"])):
        if token is None:
            monkeypatch.delenv("HF_TOKEN", raising=False)
        else:
            monkeypatch.setenv("HF_TOKEN", token)
        assert ids(search_hub()) == expected
    monkeypatch.setenv("HF_TOKEN", ann)
    result = search_hub()
    assert ids(result) == ["ann/open", "ann/secret"]
    assert [found.private for found in result.found] == [False, True]
    assert "private; base" in words(shown())
    assert any(record.origin == "cdn" for record in hub.log)
    assert hub.leaks == []


def test_a_token_that_is_not_valid_is_told(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(hub, "ann/open", about("toxicity"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    refused = run()
    assert refused.exit_code == 1
    assert "does not accept your token" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert TOKEN not in refused.output


def test_what_is_fit_and_measured_best_comes_first(hub: LoopbackHub) -> None:
    def validated(verdict: str) -> dict[str, Any]:
        return {"validation": validation_record(verdict=verdict)}

    put(hub, "ann/1-fit", about("toxicity", **accurate(0.8)))
    put(hub, "ann/2-fit-but-less-sure", about("toxicity", **accurate(0.6)))
    put(hub, "ann/3-fit-unmeasured", about("toxicity", evaluations=()))
    put(hub, "ann/4-unproven", about("toxicity", **validated("unproven"), **accurate(0.9)))
    put(hub, "ann/5-never-validated", about("toxicity", validation=None, **accurate(0.9)))
    put(hub, "ann/6-wrong-way", about("toxicity", **validated("wrong way"), **accurate(0.9)))
    put(hub, "ann/7-broken", about("toxicity"), b"{")
    found = ids(search_hub())
    assert found == sorted(found)
    assert len(found) == 7
    step = run("--limit", "7").stderr.splitlines()[-1]
    assert step == "next: morlaif-hub score --bank ann/1-fit --prompt '...' --response '...'"


def test_what_points_the_wrong_way_is_no_next_step(hub: LoopbackHub) -> None:
    put(hub, "ann/pm", about("toxicity", validation=validation_record(verdict="wrong way")))
    assert run().stderr == ""


# What cannot be used.


def broken(**changes: Any) -> bytes:
    """Return a preference model's manifest with some fields of its JSON changed."""
    return json.dumps({**json.loads(dump_manifest(about("toxicity"))), **changes}).encode()


BROKEN = {
    "not-json": (b"{", "not JSON"),
    "a-list": (b"[]", "must be a JSON object"),
    "deep": (b"[" * 100_000, "not JSON"),
    "not-text": (b"\xff\xfe", "not UTF-8"),
    "too-large": (b" " * (LARGEST_MANIFEST + 1), "over 2,000,000 bytes"),
    "version": (broken(schema_version=2), "schema_version 2 is not known here"),
    "kind": (broken(kind="bank"), "kind is 'bank'"),
    "unknown-key": (broken(extra=1), "extra"),
    "escape": (broken(license=f"MIT{ESCAPE}"), "license: control character '\\x1b'"),
    "escape-in-key": (broken(**{f"x{ESCAPE}": "y\x07"}), "control character"),
    "escape-in-kind": (broken(kind=f"{ESCAPE}{'long' * 500}"), "kind is '\\x1b[31mlong"),
    "leaves-the-folder": (
        broken(files=[{"path": "../x", "size": 1, "sha256": sha256("1")}]),
        "must stay inside",
    ),
}


def test_a_manifest_that_cannot_be_used_is_a_row_with_the_reason(hub: LoopbackHub) -> None:
    put(hub, "ann/good", about("toxicity"))
    for name, (text, _) in BROKEN.items():
        put(hub, f"eve/{name}", about("toxicity"), text)
    hub.commit("model", "eve/none", {"README.md": card(about("toxicity"))})
    expected = {f"eve/{name}": reason for name, (_, reason) in BROKEN.items()}
    expected["eve/none"] = f"it has no {MANIFEST_NAME}"
    first, *others = search_hub(principle="toxicity").found
    assert (first.repo_id, first.problem) == ("ann/good", None)
    assert {one.repo_id for one in others} == set(expected)
    for one in others:
        assert one.claims is None
        assert one.problem is not None
        assert expected[one.repo_id] in one.problem
        assert len(one.problem) < 350
    for arguments in ((), ("--json",)):
        result = run(*arguments)
        assert result.exit_code == 0
        assert not set(result.output) & {"\x1b", "\x07"}
        assert all(repo_id in result.stdout for repo_id in expected)
    assert words(shown()).count("NO CLAIMS:") == len(expected)


def test_a_manifest_that_contradicts_the_tags_has_no_claims(hub: LoopbackHub) -> None:
    hub.commit(
        "model",
        "eve/pm",
        {
            "README.md": card(about("toxicity")),
            MANIFEST_NAME: dump_manifest(about("empathy", base=OTHER_BASE)).encode(),
        },
    )
    found = only(search_hub(principle="toxicity"))
    assert found.problem == "its tags say toxicity, its manifest says empathy"
    assert found.claims is None
    problem = only(search_hub(base=base_identity().repo_id)).problem
    assert problem is not None
    assert problem.endswith("its manifest names bob/gpt2-copy")
    assert only(search_hub(base=sha256("9"))).problem is None


def test_a_gated_repository_is_a_row_that_says_so(hub: LoopbackHub) -> None:
    put(hub, "ann/pm", about("toxicity"))
    repo = hub.repo("model", "ann/pm")
    assert repo is not None
    repo.gated = "auto"
    problem = only(search_hub()).problem
    assert problem is not None
    assert "is gated: ask for access" in problem


def test_a_text_of_a_stranger_stays_one_line_and_a_copy_is_told(hub: LoopbackHub) -> None:
    manifest = about("toxicity", license="a\nb", repo_id="ann/original")
    put(hub, "eve/pm", manifest)
    text = shown()
    assert "licence a b" in words(text)
    assert "made for ann/original, so a copy or a new name" in words(text)


# Faults.


LIST = r"/api/models$"
FAULTS: dict[str, dict[str, Any]] = {
    "429": {"kind": "status", "status": 429},
    "503": {"kind": "status", "status": 503},
    "drop": {"kind": "drop"},
    "truncate": {"kind": "truncate", "after_bytes": 20},
}


@pytest.fixture
def two_pages(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    monkeypatch.setattr(catalog, "PAGE", 2)
    for number in range(3):
        put(hub, f"ann/pm-{number}", about("toxicity"))
    return hub


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("where", "skip"), [(LIST, 0), (LIST, 1), (MANIFEST_NAME, 1)])
def test_a_fault_that_passes_is_not_seen(
    fault: str, where: str, skip: int, two_pages: LoopbackHub
) -> None:
    hit = two_pages.fault("GET", where, **FAULTS[fault], skip=skip)
    result = search_hub()
    assert hit.hits == 1
    assert ids(result) == ["ann/pm-0", "ann/pm-1", "ann/pm-2"]
    assert all(found.problem is None for found in result.found)


@pytest.mark.parametrize(
    ("fault", "skip", "message"),
    [
        ("503", 0, "the Hub cannot be reached for the list of artifacts .* answered 503"),
        ("429", 1, "broke off at page 2 .it answered 429.*a part of it is not shown"),
        ("drop", 1, "broke off at page 2 .RemoteProtocolError"),
    ],
)
def test_a_list_that_breaks_off_is_an_error_and_no_shorter_list(
    fault: str, skip: int, message: str, two_pages: LoopbackHub
) -> None:
    hit = two_pages.fault("GET", LIST, **FAULTS[fault], times=99, skip=skip)
    start = time.monotonic()
    with pytest.raises(HubError, match=message):
        search_hub()
    assert time.monotonic() - start < 4
    assert hit.hits == 3


def test_a_manifest_that_stays_out_of_reach_is_a_row_that_says_so(two_pages: LoopbackHub) -> None:
    two_pages.fault("GET", f"ann/pm-1/.*{MANIFEST_NAME}", kind="status", status=503, times=99)
    result = search_hub()
    assert ids(result) == ["ann/pm-0", "ann/pm-2", "ann/pm-1"]
    problem = result.found[-1].problem
    assert problem == f"{MANIFEST_NAME} could not be read (it answered 503); try again"


# Where there is no Hub.


class NoHub(ThreadingHTTPServer):
    """A server that answers as a Hub should not: how is said by the author that is asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Pages)
        self.asked: list[str] = []
        self.elsewhere = ""  # the address of another server
        self.megabytes = 0  # sent of a manifest that has no end worth waiting for
        self.stopped = Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Pages(BaseHTTPRequestHandler):
    server: NoHub

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.path.endswith(MANIFEST_NAME):
            self._flood()
            return
        query = parse_qs(urlsplit(self.path).query)
        body, links = b"[]", []
        match query.get("author", [""])[0]:
            case "hanging":
                self.server.stopped.wait(10)
            case "portal":
                body = b"<html>log in</html>"
            case "hostile":
                body = json.dumps([{"id": f"../x{ESCAPE}", "sha": "1" * 40}]).encode()
            case "endless":
                links = [f"<{self.server.url}{self.path}>"]
            case "elsewhere" if "cursor" not in query:
                links = [f"<{self.server.elsewhere}{self.path}&cursor=2>"]
            case "repeating":
                body = json.dumps([{"id": "repeating/pm", "sha": "1" * 40}]).encode()
                links = [] if "cursor" in query else [f"<{self.path}&cursor=2>"]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        for link in links:
            self.send_header("Link", f'{link}; rel="next"')
        self.end_headers()
        self.wfile.write(body)

    def _flood(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(64_000_000))
        self.end_headers()
        with suppress(ConnectionError):
            for _ in range(64):
                self.wfile.write(b" " * 1_000_000)
                self.server.megabytes += 1

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@contextmanager
def serving() -> Iterator[NoHub]:
    server = NoHub()
    thread = Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.stopped.set()
        server.shutdown()
        thread.join()
        server.server_close()


CHILD = """
import json, sys, time
from morlaif_hub.errors import MorlaifHubError
from morlaif_hub.hub.catalog import search_hub

for author in sys.argv[1:]:
    start = time.monotonic()
    try:
        answer = len(search_hub(author=author).found)
    except MorlaifHubError as error:
        answer = f"{type(error).__name__}: {error}"
    print(json.dumps([answer, time.monotonic() - start]))
"""


def answers(endpoint: str, *authors: str) -> list[str | int]:
    """Return what searches by these authors came to in a new process, each within 4 seconds."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "HF_ENDPOINT": endpoint,
        "HF_HOME": os.environ["HF_HOME"],
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": TOKEN,
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *authors],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(seconds < 4 for _, seconds in rows)
    return [answer for answer, _ in rows]


@pytest.mark.slow
def test_what_answers_as_no_hub_does_is_told() -> None:
    authors = ("hanging", "portal", "hostile", "endless", "elsewhere", "repeating")
    with serving() as other, serving() as server:
        server.elsewhere = other.url
        found = answers(server.url, *authors)
    hanging, portal, hostile, endless, elsewhere, repeating = found
    assert "HubError: the Hub cannot be reached" in str(hanging)
    assert "no answer within 3 seconds" in str(hanging)
    assert "what answered is not a Hub" in str(portal)
    assert "what answered is not a Hub" in str(hostile)
    assert "has no end" in str(endless)
    assert elsewhere == 0
    assert other.asked == []  # with the token it would have been told
    assert sum("author=elsewhere" in path for path in server.asked) == 2
    assert repeating == 1
    assert server.megabytes < 32  # of 64


def test_where_nothing_answers_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The address that tests have for the Hub is one where nothing listens without `hub`."""
    for offline, reason in ((False, "(ConnectError)"), (True, "(HF_HUB_OFFLINE is set)")):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        refused = run()
        assert refused.exit_code == 1
        assert reason in refused.stderr
        assert refused.stderr.startswith("Error: the Hub cannot be reached")
        assert len(refused.stderr.splitlines()) == 1


# What is asked for, and what is printed.


@pytest.mark.parametrize(
    ("wish", "error"),
    [
        ({"principle": "Toxicity"}, OptionError),
        ({"principle": "a b"}, OptionError),
        ({"author": "ann/pm"}, OptionError),
        ({"author": ""}, OptionError),
        ({"base": "./here"}, OptionError),
        ({"base": ""}, OptionError),
        ({"kind": "base", "principle": "toxicity"}, OptionError),
        ({"kind": "bank", "base": "ann/base"}, OptionError),
        ({"kind": "adapter"}, UnknownNameError),
        ({"limit": 0}, OptionError),
    ],
)
def test_what_cannot_be_asked_for_is_refused_before_the_hub_is_asked(
    wish: dict[str, Any], error: type[MorlaifHubError]
) -> None:
    with pytest.raises(error):
        search_hub(**wish)


def test_the_command_knows_the_kinds_and_the_limit_of_the_library() -> None:
    assert tuple(MANIFESTS) == KINDS
    assert {p.name: p.default for p in search.params}["limit"] == LIMIT


def test_programs_read_what_is_documented(hub: LoopbackHub) -> None:
    put(hub, "ann/pm", about("toxicity"))
    put(hub, "ann/bad", about("toxicity"), b"{")
    data = json.loads(shown("--json"))
    assert list(data) == list(generator().JSON["search"])
    good, bad = data["found"]
    said = generator().JSON["search"]["found"]
    assert all(f"`{key}`" in said for key in (*good, *good["claims"]))
    assert good["claims"]["accuracy"] == {
        "split": "test",
        "metric": "accuracy",
        "value": 0.622,
        "interval": [0.571, 0.673],
        "n": 672,
        "length_baseline": 0.588,
    }
    assert good["last_modified"].startswith("20")
    assert (bad["claims"], good["problem"]) == (None, None)
    assert (data["kind"], data["more"]) == ("preference-model", False)


def test_people_read_figures_words_and_whose_claims_they_are(hub: LoopbackHub) -> None:
    put(hub, "ann/pm-toxicity", about("toxicity"))
    other = preference_model_manifest(principle=principle_record(name="toxicity"))
    put(hub, "bob/pm-toxicity", other)
    result = run("--principle", "toxicity")
    lines = result.stdout.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("repo"))
    header, row, rest = lines[start : start + 3]
    titles = ("repo", "principle", "accuracy", "length-only", "n", "validation", "updated")
    assert tuple(header.split()) == titles
    assert "0.62 (0.57 to 0.67)" in row
    assert row.split()[-6:-1] == ["0.67)", "0.59", "672", "fit", "0.88"]
    assert rest.startswith(f"    base {base_identity().repo_id} (weights aaaaaaaaaaaa); judge")
    text = words(result.stdout)
    assert "2 found: preference-model, principle toxicity. These are the claims" in text
    assert "toxicity of ann/pm-toxicity: A high score means more toxicity." in text
    assert "toxicity of bob/pm-toxicity: A high score means a shorter answer" in text
    assert max(map(len, lines)) <= 120


@pytest.mark.usefixtures("hub")
def test_nothing_found_is_no_error() -> None:
    assert words(shown("--author", "ann", "--principle", "toxicity")) == (
        "Nothing found on the Hub that you may read: preference-model, principle toxicity, "
        "author ann."
    )
    assert json.loads(shown("--author", "ann", "--json"))["found"] == []


def test_a_judge_that_failed_is_in_the_row_of_its_feedback(hub: LoopbackHub) -> None:
    record = validation_record(verdict="unproven", accuracy=0.5)
    put(hub, "ann/data", feedback_manifest(judge=judge_record(validation=record)))
    text = shown("--kind", "feedback-dataset")
    assert "unproven 0.50" in text
    assert "that of a data set is its judge's" in words(text)
