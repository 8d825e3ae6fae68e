"""A Hugging Face Hub on loopback: real HTTP, git repositories, LFS and Xet, for the real clients.

Tests use the fixture `hub`, and `child.run_child` for what needs a process of its own (Xet).
`python -m tests.hub_server FOLDER` serves a folder.
"""

from tests.hub_server.faults import Fault
from tests.hub_server.server import LoopbackHub
from tests.hub_server.store import Repo
from tests.hub_server.transport import Record

__all__ = ["Fault", "LoopbackHub", "Record", "Repo"]
