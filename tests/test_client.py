"""Sources become folders: local ones as they are, repositories at a commit, errors in one line.

The Hub's client reads its settings when it is imported, so each scenario runs in a process of its
own against a small stand-in for the Hub on this machine.
"""

import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from morlaif_hub.errors import ArtifactError, DataError, ModelNotFoundError
from morlaif_hub.hub.access import Asked, patiently
from morlaif_hub.hub.artifact import open_artifact, seal, stage
from morlaif_hub.hub.client import Resolved, fetch, without_telemetry
from morlaif_hub.hub.manifest import PreferenceModelManifest
from tests.manifests import preference_model_manifest

COMMIT = "1" * 40
TOKEN = "hf_neverShowThis"

CHILD = """
import json, sys, time
from morlaif_hub.errors import MorlaifHubError
from morlaif_hub.hub.client import fetch

for options in json.loads(sys.argv[1]):
    start = time.monotonic()
    try:
        found = fetch(**options)
        answer = {"path": str(found.path), "repo_id": found.repo_id, "revision": found.revision}
    except MorlaifHubError as error:
        answer = {"error": type(error).__name__, "text": str(error)}
    print(json.dumps({**answer, "seconds": time.monotonic() - start}))
"""


class Hub(ThreadingHTTPServer):
    """A stand-in for the Hub: one commit of one repository, and some that answer badly."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Pages)
        self.files = files
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Pages(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(path)
        api, _, rest = path.partition("/api/")
        if not api and rest:
            self._api(rest.removeprefix("models/").removeprefix("datasets/"))
        else:
            name = path.partition(f"/resolve/{COMMIT}/")[2]
            self._send(200, self.server.files[name], name)

    def _api(self, rest: str) -> None:
        if rest.startswith("ann/gated"):
            self._send(403, b"{}", code="GatedRepo")
        elif rest.startswith("ann/broken"):
            self._send(503, b"{}")
        elif rest.startswith("ann/portal"):
            self._send(200, b"<html>log in</html>")
        elif not rest.startswith("ann/pm"):
            self._send(401, b"{}")  # what the real one says to strangers, without a code
        elif "/tree/" in rest:
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": _oid(data)}
                for name, data in self.server.files.items()
            ]
            self._send(200, json.dumps(entries).encode())
        elif rest.rpartition("/revision/")[2] in (rest, "main", "v1", COMMIT):
            self._send(200, json.dumps({"id": "ann/pm", "sha": COMMIT, "siblings": []}).encode())
        else:
            self._send(404, b"{}", code="RevisionNotFound")

    def _send(self, status: int, data: bytes, name: str = "", code: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if name:
            self.send_header("ETag", f'"{_oid(data)}"')
            self.send_header("X-Repo-Commit", COMMIT)
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("pm") / "toxicity"
    with stage(folder) as staged:
        (staged / "figures").mkdir()
        (staged / "figures" / "scores.png").write_bytes(b"png")
        (staged / "adapter_model.safetensors").write_bytes(bytes(range(200)))
        seal(staged, preference_model_manifest())
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    server = Hub(files)
    thread = Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


NO_EMBEDDED_MODEL = """
import json
from morlaif_hub.errors import MorlaifHubError
from morlaif_hub.models import embedded

embedded.WHEEL = "no_such_package"
try:
    embedded.embedded_model()
except MorlaifHubError as error:
    print(json.dumps({"error": type(error).__name__, "text": str(error)}))
"""


def run(home: Path, endpoint: str, *calls: dict[str, Any], offline: bool = False) -> list[Any]:
    """Return what `fetch` did with each of the calls in a new process."""
    return run_script(CHILD, json.dumps(calls), home=home, endpoint=endpoint, offline=offline)


def run_script(
    script: str, *arguments: str, home: Path, endpoint: str, offline: bool = False
) -> list[Any]:
    """Return the lines of JSON that a script prints in a new process."""
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("HF_")},
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": str(int(offline)),
        "HF_TOKEN": TOKEN,
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    finished = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert finished.returncode == 0, finished.stderr
    assert TOKEN not in finished.stdout + finished.stderr
    return [json.loads(line) for line in finished.stdout.splitlines()]


@pytest.mark.parametrize("source", ["./pm", "../here/pm", "{tmp_path}/here/pm", Path("pm")])
def test_a_local_folder_is_returned_as_it_is(
    source: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "here" / "pm"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    if isinstance(source, str):
        source = source.format(tmp_path=tmp_path)
    assert fetch(source) == Resolved(folder, None, None)


def test_a_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetch("~").path == tmp_path


def test_a_link_to_a_file_keeps_its_name(tmp_path: Path) -> None:
    (tmp_path / "blob").write_text("{}")
    (tmp_path / "pairs.jsonl").symlink_to("blob")
    assert fetch(tmp_path / "pairs.jsonl").path == tmp_path / "pairs.jsonl"


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere/at/all", Path("nowhere"), "~/../x/y"])
def test_a_missing_path_is_named(source: str | Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no such file or folder"):
        fetch(source)
    with pytest.raises(DataError, match=r"no such file or folder"):
        fetch(source, repo_type="dataset")


@pytest.mark.parametrize(
    "source", ["", "a/b/c", "morlaif/pms/toxicity", "a b", "a--b/c", "~ann/x", "@main", "x.git"]
)
def test_what_is_neither_path_nor_repo_id_is_said_to_be_so(source: str) -> None:
    with pytest.raises(ModelNotFoundError, match=r"is no repo id .* start a local path with \./"):
        fetch(source)


@pytest.mark.parametrize("revision", ["", "../../../x", "a//b", "/etc", "-x", "a b", "a\nb"])
def test_a_revision_that_could_leave_the_cache_is_refused(revision: str) -> None:
    with pytest.raises(ModelNotFoundError, match=r"is no branch, tag or commit"):
        fetch(f"ann/pm@{revision}")


def test_a_branch_is_resolved_to_a_commit_and_a_commit_needs_no_second_request(
    hub: Hub, tmp_path: Path
) -> None:
    (branch,) = run(tmp_path, hub.url, {"source": "ann/pm"})
    assert (branch["repo_id"], branch["revision"]) == ("ann/pm", COMMIT)
    assert {p.name for p in Path(branch["path"]).iterdir()} >= {"morlaif.json", "figures"}
    hub.asked.clear()
    (pinned,) = run(tmp_path, hub.url, {"source": f"ann/pm@{COMMIT}"})
    assert pinned["path"] == branch["path"]
    assert hub.asked == []


def test_a_fetched_artifact_opens_and_a_damaged_one_does_not(hub: Hub, tmp_path: Path) -> None:
    (found,) = run(tmp_path, hub.url, {"source": "ann/pm@v1"})
    open_artifact(Path(found["path"]), PreferenceModelManifest)
    weights = (Path(found["path"]) / "adapter_model.safetensors").resolve()
    weights.write_bytes(bytes(reversed(range(200))))
    with pytest.raises(ArtifactError, match=r"adapter_model\.safetensors: its bytes are not"):
        open_artifact(Path(found["path"]), PreferenceModelManifest)


def test_patterns_choose_files_and_must_match_one(hub: Hub, tmp_path: Path) -> None:
    some, none = run(
        tmp_path,
        hub.url,
        {"source": "ann/pm", "repo_type": "dataset", "allow_patterns": ["*.json"]},
        {"source": "ann/pm", "allow_patterns": ["*.parquet", "*.csv"]},
    )
    assert [p.name for p in Path(some["path"]).iterdir()] == ["morlaif.json"]
    assert none["error"] == "ModelNotFoundError"
    assert "no file that matches *.parquet, *.csv" in none["text"]


def test_a_local_folder_never_stands_in_for_a_repository(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ann" / "pm").mkdir(parents=True)
    (tmp_path / "ann" / "missing").mkdir()
    found, missing = run(
        tmp_path / "home", hub.url, {"source": "ann/pm"}, {"source": "ann/missing"}
    )
    assert found["revision"] == COMMIT
    assert missing["error"] == "ModelNotFoundError"
    assert "for the local folder, write ./ before it" in missing["text"]


def test_each_refusal_is_one_clear_line(hub: Hub, tmp_path: Path) -> None:
    expected = {
        "ann/missing": ("ModelNotFoundError", "the Hub does not accept your token"),
        "ann/gated": ("HubError", "ann/gated is gated"),
        "ann/pm@v2": ("ModelNotFoundError", "has no revision 'v2'"),
        f"ann/pm@{'2' * 40}": ("ModelNotFoundError", f"has no revision '{'2' * 40}'"),
        "ann/broken": ("HubError", "it answered 503"),
        "ann/portal": ("HubError", "what answered is not a Hub"),
    }
    answers = run(tmp_path, hub.url, *({"source": source} for source in expected))
    for answer, (error, text) in zip(answers, expected.values(), strict=True):
        assert (answer["error"], text in answer["text"]) == (error, True), answer
        assert "\n" not in answer["text"]
    (dataset,) = run(tmp_path, hub.url, {"source": "ann/missing", "repo_type": "dataset"})
    assert dataset["error"] == "DataError"


@pytest.mark.slow
def test_without_a_network_the_cache_is_used_and_else_it_fails_at_once(
    hub: Hub, tmp_path: Path
) -> None:
    run(tmp_path, hub.url, {"source": "ann/pm"})
    calls = [{"source": s} for s in ("ann/pm", f"ann/pm@{COMMIT}", "ann/other", "ann/pm@v1")]
    with socket.socket() as closed:  # bound but not listening: connections are refused
        closed.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}"
        for offline, reason in ((False, "ConnectError"), (True, "HF_HUB_OFFLINE is set")):
            branch, commit, other, tag = run(tmp_path, nowhere, *calls, offline=offline)
            assert branch["revision"] == commit["revision"] == COMMIT
            assert other["error"] == tag["error"] == "HubError"
            assert f"the Hub cannot be reached ({reason})" in other["text"]
            assert max(a["seconds"] for a in (branch, commit, other, tag)) < 5


@pytest.mark.slow
def test_a_hub_that_never_finishes_its_answer_is_given_up_after_seconds(tmp_path: Path) -> None:
    """Each byte begins the client's own time-out anew, so that only a limit on the whole helps."""

    def trickle() -> None:
        connection, _ = server.accept()
        with connection, contextlib.suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nX-Header: ")
            while True:
                connection.sendall(b"x")
                time.sleep(0.2)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = Thread(target=trickle)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        start = time.monotonic()
        (answer,) = run(tmp_path, url, {"source": "ann/pm"})
        thread.join()
    assert answer["error"] == "HubError"
    assert "the Hub cannot be reached (no answer within 3 seconds)" in answer["text"]
    assert answer["seconds"] < 5
    assert time.monotonic() - start < 30  # the request that hangs does not hold up the exit


@pytest.fixture(params=["swallowed", "refused"])
def nowhere(request: pytest.FixtureRequest) -> Iterator[str]:
    """An address at which nothing answers: connections are taken and forgotten, or refused."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if request.param == "swallowed":
            server.listen()  # the system accepts, and nobody ever reads
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.slow
def test_when_nothing_can_be_reached_a_new_process_ends_within_5_seconds(
    nowhere: str, tmp_path: Path
) -> None:
    start = time.monotonic()
    (answer,) = run(tmp_path, nowhere, {"source": "ann/pm"})
    assert time.monotonic() - start < 5  # imports and exit included
    assert answer["error"] == "HubError"
    assert "the Hub cannot be reached" in answer["text"]


@pytest.mark.slow
def test_without_wheel_and_hub_three_ways_to_the_embedded_model_are_named_within_5_seconds(
    nowhere: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MORLAIF_EMBEDDED_MODEL", raising=False)
    start = time.monotonic()
    (answer,) = run_script(NO_EMBEDDED_MODEL, home=tmp_path, endpoint=nowhere)
    assert time.monotonic() - start < 5
    assert answer["error"] == "ModelNotFoundError"
    for way in ("MORLAIF_EMBEDDED_MODEL", "make setup", "reach the Hugging Face Hub"):
        assert way in answer["text"]


@pytest.mark.parametrize("chosen", [False, True])
def test_telemetry_is_off_within_and_as_the_user_chose_after(
    chosen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    def fail_inside() -> None:
        with without_telemetry():
            assert constants.HF_HUB_DISABLE_TELEMETRY
            raise RuntimeError("stop")

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", chosen)
    with pytest.raises(RuntimeError, match="stop"):
        fail_inside()
    assert chosen == constants.HF_HUB_DISABLE_TELEMETRY


def test_a_fault_of_this_program_keeps_its_traceback() -> None:
    """It must not be told as a connection that failed."""

    def ask() -> None:
        raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        patiently(Asked("ann/pm"), ask)
