"""Serve a folder of repositories: `python -m tests.hub_server FOLDER --user ann`.

On loopback only and without TLS, quotas or passwords: for trying things out on one machine.
"""

import argparse
import sys
import threading
from pathlib import Path

from tests.hub_server.server import LoopbackHub


def main() -> None:
    """Serve until interrupted; print the address and one token a user."""
    parser = argparse.ArgumentParser(prog="python -m tests.hub_server", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=0, help="by default a free one")
    parser.add_argument("--no-xet", action="store_true", help="large files go over LFS")
    parser.add_argument(
        "--user",
        action="append",
        default=[],
        metavar="NAME[:TOKEN[:ROLE]]",
        help="a user; the role is write, read or fineGrained",
    )
    options = parser.parse_args()
    with LoopbackHub(options.folder, port=options.port, xet=not options.no_xet) as hub:
        lines = [f"HF_ENDPOINT={hub.url}"]
        for user in options.user:
            name, token, role = (*user.split(":"), "", "")[:3]
            token = hub.add_user(name, token=token or None, role=role or "write")
            lines.append(f"HF_TOKEN={token}  # {name}")
        sys.stdout.write("\n".join([*lines, ""]))
        sys.stdout.flush()
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            sys.stderr.write("stopped\n")


if __name__ == "__main__":
    main()
