"""Turning a test process that is offline towards a server, and back.

The clients read most settings when they are imported and keep connections, listings and folders for
as long as the process lives. So the address of the Hub is set before anything is imported (see
`tests/conftest.py`), and the rest is changed here where the clients look it up on every call.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


@contextmanager
def online(folder: Path) -> Iterator[None]:
    """Let the clients of this process reach the Hub, with empty caches in a folder and no token.

    Without Xet, whose library keeps state for the whole process: see `child.run_child`.
    """
    _forget()
    # Else the first request of the process asks the Hub which program may have started it.
    registry = Path(constants.AGENT_HARNESSES_PATH)
    registry.parent.mkdir(parents=True, exist_ok=True)
    registry.write_text(json.dumps({"standardEnvVars": [], "harnesses": {}}))
    with pytest.MonkeyPatch.context() as patch:
        for name in TOKENS:
            patch.delenv(name, raising=False)
        patch.setenv("HF_HUB_OFFLINE", "0")  # peft asks the environment
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
        patch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
        patch.setattr(constants, "HF_STORED_TOKENS_PATH", str(folder / "stored_tokens"))
        if "datasets" in sys.modules:
            _datasets_online(patch, folder / "datasets")
        yield
    _forget()
    if "datasets" in sys.modules:
        # Imported only meanwhile, it would think itself online for good.
        _datasets_config().HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE


def _datasets_config() -> Any:
    return sys.modules["datasets"].config


def _datasets_online(patch: pytest.MonkeyPatch, folder: Path) -> None:
    config = _datasets_config()
    patch.setattr(config, "HF_HUB_OFFLINE", False)
    patch.setattr(config, "USE_PARQUET_EXPORT", False)  # asks a host that there is not
    patch.setattr(config, "HF_DATASETS_CACHE", folder)
    patch.setattr(config, "DOWNLOADED_DATASETS_PATH", folder / "downloads")
    patch.setattr(config, "EXTRACTED_DATASETS_PATH", folder / "downloads" / "extracted")


def _forget() -> None:
    """Close connections, and drop listings that the file system of the Hub remembers."""
    huggingface_hub.close_session()
    if "huggingface_hub.hf_file_system" in sys.modules:
        huggingface_hub.HfFileSystem.clear_instance_cache()
