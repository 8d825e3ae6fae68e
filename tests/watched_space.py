"""The demo with a log of what it does: `python watched_space.py APP BANK MODEL LOG`.

Every call of the bank, every pass of the policy and every host that is looked up is a line. It is
a program of its own, since a server leaves sockets and an event loop behind in its process.
"""

import runpy
import socket
import sys
from typing import Any

from torch import Tensor

from morlaif_hub import PMBank, load_policy


def log(line: str) -> None:
    with open(sys.argv[4], "a", encoding="utf-8") as file:
        file.write(line + "\n")


class WatchedBank(PMBank):
    def score(self, prompts: Any, responses: Any, **options: Any) -> Tensor:
        log(f"scored {len(responses)}")
        return super().score(prompts, responses, **options)


def watch_look_ups() -> None:
    look_up = socket.getaddrinfo

    def watched(host: Any, *arguments: Any, **options: Any) -> Any:
        log(f"looked up {host}")
        return look_up(host, *arguments, **options)

    socket.getaddrinfo = watched


def main(app_path: str, bank_path: str, model_path: str) -> None:
    watch_look_ups()
    app = runpy.run_path(app_path)
    bank, policy = WatchedBank.from_pretrained(bank_path), load_policy(model_path)
    policy.model.register_forward_pre_hook(lambda *_: log("passed"))
    log("ready")
    app["build"](bank, policy, sources=[bank_path]).launch(**app["LAUNCH"])


if __name__ == "__main__":
    main(*sys.argv[1:4])
