"""Running Python in a process of its own against a server: for Xet, and for settings at import."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.hub_server.online import TOKENS
from tests.hub_server.server import LoopbackHub

ROOT = Path(__file__).parent.parent.parent


def run_child(
    script: str,
    *,
    hub: LoopbackHub,
    home: Path,
    token: str | None = None,
    xet: bool = True,
    offline: bool = False,
    env: Mapping[str, str] | None = None,
) -> "subprocess.CompletedProcess[str]":
    """Run a script and return how it ended and what it printed.

    The token must show neither in its output nor in its errors.

    Args:
        script: Python source.
        hub: The Hub that it talks to.
        home: Its `HF_HOME` and `MORLAIF_CACHE`; the same folder again is the same machine again.
        token: Its `HF_TOKEN`; without, it has none.
        xet: Whether large files go over Xet.
        offline: Whether it may not use the network at all.
        env: More variables.
    """
    variables = {name: value for name, value in os.environ.items() if name not in TOKENS}
    variables |= {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home / "huggingface"),
        "HF_HUB_DISABLE_XET": str(int(not xet)),
        "HF_HUB_OFFLINE": str(int(offline)),
        "MORLAIF_CACHE": str(home / "morlaif"),
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
    }
    variables |= {"HF_TOKEN": token} if token else {}
    home.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=variables | dict(env or {}),
        cwd=home,
        capture_output=True,
        text=True,
        timeout=120,
    )
    if token:
        assert token not in done.stdout, "the token was printed"
        assert token not in done.stderr, "the token is among the errors"
    return done
