"""What holds for every test, set before anything else is imported: offline, quiet, one thread.

Caches are empty and temporary, so that no test depends on, or changes, what this machine has. A
value that is set already stays: `HF_HUB_OFFLINE=0 pytest -m hub` reaches the Hub.
"""

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.hub_server import LoopbackHub
    from tests.hub_workspace import Made

_SCRATCH = tempfile.TemporaryDirectory(prefix="morlaif-tests-")
_USERS_CACHE = os.environ.get("MORLAIF_CACHE")

for _name, _value in {
    "CI": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    "MKL_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRL_EXPERIMENTAL_SILENCE": "1",
}.items():
    os.environ.setdefault(_name, _value)
os.environ["HF_HOME"] = f"{_SCRATCH.name}/huggingface"
os.environ["MORLAIF_CACHE"] = f"{_SCRATCH.name}/morlaif"
for _name in ("MORLAIF_HUB_PLUGINS", "MORLAIF_WORKSPACE"):
    os.environ.pop(_name, None)

# The Hub's clients read its address when they are imported, so it has to be known before there is
# a server. The socket listens to nothing: it keeps the port for the servers of the `hub` fixture.
_HUB_PORT = socket.socket()
_HUB_PORT.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
_HUB_PORT.bind(("127.0.0.1", 0))
_REAL_HUB = os.environ["HF_HUB_OFFLINE"] == "0"
if not _REAL_HUB:
    os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{_HUB_PORT.getsockname()[1]}"

# The same examples on every run and machine, however slow; look for new ones with
# `--hypothesis-profile=default`.
settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")


@pytest.fixture
def users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a test the real cache, where the embedded model is converted once and for all."""
    _use_real_cache(monkeypatch)


@pytest.fixture(scope="session")
def embedded_folder() -> Path:
    """Return the folder of the embedded model, in the real cache."""
    from morlaif_hub.models.embedded import embedded_model

    with pytest.MonkeyPatch.context() as monkeypatch:
        _use_real_cache(monkeypatch)
        return embedded_model()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["LoopbackHub"]:
    """Return an empty Hub of this test's own; the clients here are online, without a token or Xet.

    At the end no token may have reached the second origin, where the large files are.
    """
    if _REAL_HUB:
        pytest.skip("HF_HUB_OFFLINE=0 asks for the real Hub")
    from tests.hub_server import LoopbackHub
    from tests.hub_server.online import online

    monkeypatch.setenv("MORLAIF_CACHE", str(tmp_path / "morlaif-cache"))
    port = _HUB_PORT.getsockname()[1]
    with LoopbackHub(tmp_path / "hub", port=port) as server, online(tmp_path / "hub-client"):
        yield server
    assert server.leaks == []


@pytest.fixture
def ann(hub: "LoopbackHub", monkeypatch: pytest.MonkeyPatch) -> "LoopbackHub":
    """Return the Hub, with the token of a user named ann in the environment."""
    monkeypatch.setenv("HF_TOKEN", hub.add_user("ann"))
    return hub


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> "Made":
    """Return a workspace with one artifact of each kind on a tiny base; not to be changed."""
    from tests.hub_workspace import Made, make_base, make_workspace

    root = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("MORLAIF_CACHE", str(root / "cache"))
        base = make_base(root / "base")
        return Made(make_workspace(root / "workspace", base), base)


@pytest.fixture
def made(made_once: "Made", tmp_path: Path) -> "Made":
    """Return a copy of that workspace, for a test to change and publish."""
    from morlaif_hub.workspace import Workspace
    from tests.hub_workspace import Made

    root = shutil.copytree(made_once.workspace.root, tmp_path / "workspace")
    return Made(Workspace(Path(root)), made_once.base)


def _use_real_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    if _USERS_CACHE is None:
        monkeypatch.delenv("MORLAIF_CACHE")
    else:
        monkeypatch.setenv("MORLAIF_CACHE", _USERS_CACHE)
