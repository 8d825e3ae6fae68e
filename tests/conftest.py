"""What holds for every test, set before anything else is imported: offline, quiet, one thread.

Caches are empty and temporary, so that no test depends on, or changes, what this machine has. A
value that is set already stays: `HF_HUB_OFFLINE=0 pytest -m hub` reaches the Hub.
"""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

_SCRATCH = tempfile.TemporaryDirectory(prefix="morlaif-tests-")
_USERS_CACHE = os.environ.get("MORLAIF_CACHE")

for _name, _value in {
    "CI": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
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


def _use_real_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    if _USERS_CACHE is None:
        monkeypatch.delenv("MORLAIF_CACHE")
    else:
        monkeypatch.setenv("MORLAIF_CACHE", _USERS_CACHE)
