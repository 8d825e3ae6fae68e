"""What is to go wrong, and what is to happen just before a request: once, or a few times."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Literal, get_args

FaultKind = Literal["status", "drop", "lost_response", "truncate", "corrupt", "delay"]


@dataclass
class Fault:
    """One way in which requests go wrong, for the next `times` matching ones.

    Attributes:
        method: The method, or `*`.
        path: Searched for in the request's path.
        kind: `status`: answer `status` with `headers`, and do nothing.
            `drop`: read `after_bytes` of the body, do nothing, and cut the connection.
            `lost_response`: do what was asked for, then cut the connection.
            `truncate`: cut the connection after `after_bytes` of the answer's body.
            `corrupt`: flip the answer's byte number `after_bytes`.
            `delay`: wait `seconds`, then go on.
        times: How many more requests it strikes.
        skip: How many matching requests it lets pass first.
        hits: How many requests it has struck.
    """

    method: str
    path: str
    kind: FaultKind
    times: int = 1
    skip: int = 0
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    after_bytes: int = 0
    seconds: float = 0.0
    hits: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(FaultKind):
            known = ", ".join(get_args(FaultKind))
            raise ValueError(f"unknown kind of fault {self.kind!r}; known: {known}")


@dataclass
class _Hook:
    """A callback to run before a matching request is handled."""

    method: str
    path: str
    callback: Callable[[], object]
    times: int


class Plan:
    """The faults and callbacks that are still to come; safe to use from several threads."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._hooks: list[_Hook] = []
        self._lock = Lock()

    def add_fault(self, fault: Fault) -> Fault:
        """Add a fault; where two match a request, the one that was added first strikes."""
        with self._lock:
            self._faults.append(fault)
        return fault

    def add_hook(
        self, method: str, path: str, *, callback: Callable[[], object], times: int
    ) -> None:
        """Add a callback."""
        with self._lock:
            self._hooks.append(_Hook(method, path, callback, times))

    def fault(self, method: str, path: str) -> Fault | None:
        """Return the fault that strikes this request, and count it."""
        with self._lock:
            for fault in self._faults:
                if not (fault.times and _matches(fault, method, path)):
                    continue
                if fault.skip:
                    fault.skip -= 1
                    continue
                fault.times -= 1
                fault.hits += 1
                return fault
        return None

    def callbacks(self, method: str, path: str) -> list[Callable[[], object]]:
        """Return what is to run before this request, and count it."""
        with self._lock:
            due = [hook for hook in self._hooks if hook.times and _matches(hook, method, path)]
            for hook in due:
                hook.times -= 1
        return [hook.callback for hook in due]


def _matches(rule: Fault | _Hook, method: str, path: str) -> bool:
    return rule.method in ("*", method) and re.search(rule.path, path) is not None
