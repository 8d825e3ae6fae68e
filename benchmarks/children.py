"""Work in a process of its own, so that its memory can be told from that of everything else."""

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
MEGABYTE = 1e6

# The answer goes through a file, since libraries write to stdout.
CHILD = """
import json, sys
from pathlib import Path
from {module} import {function}
given, answer = json.loads(sys.argv[1]), Path(sys.argv[2])
answer.write_text(json.dumps({function}(**given)))
"""


def in_child(
    where: str, given: dict[str, Any], *, scratch: Path, python: str = sys.executable
) -> Any:
    """Return what a function gives in a new process.

    Args:
        where: Its module and name, such as `benchmarks.memory:score`.
        given: Its arguments by name. JSON has to hold them, and what it returns.
        scratch: A folder for the answer.
        python: The interpreter, which may be that of another environment.

    Raises:
        RuntimeError: If the process fails, as it does when there is not enough memory.
    """
    module, function = where.split(":")
    answer = scratch / "answer.json"
    answer.unlink(missing_ok=True)
    code = CHILD.format(module=module, function=function)
    done = subprocess.run(
        [python, "-c", code, json.dumps(given), str(answer)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode or not answer.is_file():
        raise RuntimeError(f"{where} ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(answer.read_text())


def peak_megabytes() -> float:
    """Return the most memory that this process has had resident so far, in megabytes.

    On Linux a new process inherits the `ru_maxrss` of the one that started it; `VmHWM` is its own.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        lines = [line.split() for line in status.read_text().splitlines()]
        return next(int(line[1]) * 1024 for line in lines if line[:1] == ["VmHWM:"]) / MEGABYTE
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on a Mac
    return peak * (1 if sys.platform == "darwin" else 1024) / MEGABYTE
