"""The quickstart: repeatable, resumable, without a connection.

On a tiny model here; .ci/run runs the real one.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from morlaif_hub.policies.train import PolicySettings
from morlaif_hub.preference_models.train import TrainSettings
from morlaif_hub.quickstart import PRINCIPLES, QuickstartSettings, run_quickstart
from morlaif_hub.workspace import Workspace
from tests.tiny import save_tiny

SETTINGS = QuickstartSettings(
    train_prompts=10,
    train_responses=4,
    held_out_prompts=6,
    held_out_responses=4,
    max_new_tokens=12,
    letter_pairs=4,
    training=TrainSettings(dtype="float32"),
    policy=PolicySettings(
        max_steps=2, prompts_per_step=2, completions=2, max_new_tokens=8, max_kl=5.0
    ),
)
# What architecture.md promises to whoever reads the JSON.
KEYS = {
    "principles": {
        "pairs",
        "judge_position_bias",
        "judge_flip_rate",
        "pm_accuracy",
        "pm_accuracy_interval",
        "length_baseline",
        "validation",
    },
    "steering": {"random", "chosen", "difference_interval", "words_random", "words_chosen"},
}
POLICY_KEYS = {
    "reward_before",
    "reward_after",
    "delta_interval",
    "others",
    "kl",
    "words_before",
    "words_after",
}


@pytest.fixture(scope="module", autouse=True)
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as monkeypatch:
        folder = save_tiny(tmp_path_factory.mktemp("embedded"), layers=4)
        monkeypatch.setenv("MORLAIF_EMBEDDED_MODEL", str(folder))
        yield folder


class Log:
    """Keeps the stages that were started, and checks that they are told to the end."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int]] = []
        self.done: list[int] = []

    def start(self, stage: str, total: int) -> None:
        self.stages.append((stage, total))
        self.done.append(0)

    def advance(self, count: int) -> None:
        self.done[-1] += count


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, dict[str, Any], Log]:
    workspace, log = Workspace(tmp_path_factory.mktemp("first")), Log()
    return workspace, run_quickstart(workspace, SETTINGS, progress=log), log


def without_times(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key != "seconds"}


def test_the_result_has_what_is_promised(first: tuple[Workspace, dict[str, Any], Log]) -> None:
    workspace, result, _ = first
    assert json.loads((workspace.reports / "quickstart.json").read_text()) == result
    for part, keys in KEYS.items():
        assert set(result[part]) == set(PRINCIPLES)
        assert all(set(row) == keys for row in result[part].values())
    assert set(result["letter_judge"]) == {"position_bias", "flip_rate"}
    assert set(result["policy"]) == POLICY_KEYS
    assert set(result["policy"]["others"]) == {"detail", "empathy"}
    seconds = result["seconds"]
    assert set(seconds) == {"sample", "label", "train", "steer", "align", "total"}
    assert seconds["total"] == pytest.approx(sum(seconds.values()) - seconds["total"])
    assert all(row["random"] == pytest.approx(0.5) for row in result["steering"].values())


def test_progress_is_told_to_the_end(first: tuple[Workspace, dict[str, Any], Log]) -> None:
    log = first[2]
    assert [total for _, total in log.stages] == log.done


def test_the_artifacts_are_there(first: tuple[Workspace, dict[str, Any], Log]) -> None:
    workspace = first[0]
    for name in PRINCIPLES:
        assert (workspace.feedback(name) / "morlaif.json").is_file()
        assert (workspace.preference_model(name) / "README.md").is_file()
    assert (workspace.bank / "morlaif.json").is_file()
    assert (workspace.policy("quickstart") / "morlaif.json").is_file()
    page = (workspace.reports / "quickstart.html").read_text()
    assert "conciseness" in page
    assert "://" not in page.replace("http://www.w3.org", "")  # nothing is fetched


def test_a_second_run_reuses_every_stage(first: tuple[Workspace, dict[str, Any], Log]) -> None:
    workspace, result, _ = first
    log = Log()
    assert run_quickstart(workspace, SETTINGS, progress=log) == result
    assert [stage for stage, _ in log.stages] == ["preparing the embedded model (converted once)"]


def test_a_fresh_run_with_the_same_seed_gives_the_same_numbers(
    first: tuple[Workspace, dict[str, Any], Log],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MORLAIF_CACHE", str(tmp_path / "cache"))  # no verdict is remembered
    again = run_quickstart(Workspace(tmp_path / "again"), SETTINGS)
    assert without_times(again) == without_times(first[1])


def test_another_seed_gives_other_numbers(
    first: tuple[Workspace, dict[str, Any], Log], tmp_path: Path
) -> None:
    other = replace(SETTINGS, seed=1, policy=None)
    result = run_quickstart(Workspace(tmp_path), other)
    assert result["policy"] is None
    assert result["steering"] != first[1]["steering"]


NO_NETWORK = """
import socket
def refused(name, real):
    def call(*args, **options):
        if not (args and isinstance(args[0], socket.socket) and args[0].family == socket.AF_UNIX):
            open({log!r}, "a").write(f"{{name}} {{args}}\\n")
            raise OSError("no network in this test")
        return real(*args, **options)
    return call
socket.getaddrinfo = refused("getaddrinfo", socket.getaddrinfo)
for name in ("connect", "connect_ex", "sendto", "sendmsg"):
    setattr(socket.socket, name, refused(name, getattr(socket.socket, name)))
"""
ATTEMPT = "import socket; socket.create_connection(('localhost', 9))"


def watched(folder: Path) -> tuple[Path, dict[str, str]]:
    """Return a log of connections, and an environment that writes and refuses them."""
    (folder / "site").mkdir()
    log = folder / "connections.txt"
    (folder / "site/sitecustomize.py").write_text(NO_NETWORK.format(log=str(log)))
    quiet = {"HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "CI", "TRL_EXPERIMENTAL_SILENCE"}
    environment = {k: v for k, v in os.environ.items() if k not in quiet}
    environment |= {
        "PYTHONPATH": str(folder / "site"),
        "MORLAIF_CACHE": str(folder / "cache"),
    }
    return log, environment


@pytest.mark.slow
def test_the_conversion_of_the_real_model_opens_no_connection(tmp_path: Path) -> None:
    log, environment = watched(tmp_path)
    environment.pop("MORLAIF_EMBEDDED_MODEL")
    code = "from morlaif_hub import LanguageModel; print(LanguageModel.load().base.source)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, check=True
    )
    assert done.stdout.startswith(b"gguf:")
    assert not log.exists(), log.read_text()


@pytest.mark.slow
def test_no_connection_is_opened_and_a_killed_run_goes_on(tmp_path: Path, embedded: Path) -> None:
    """The command itself, in a process that logs and refuses every connection."""
    log, environment = watched(tmp_path)
    environment["MORLAIF_EMBEDDED_MODEL"] = str(embedded)
    subprocess.run([sys.executable, "-c", ATTEMPT], env=environment, capture_output=True)
    assert "getaddrinfo" in log.read_text()  # what is attempted is seen
    log.unlink()
    command = [sys.executable, "-m", "morlaif_hub", "quickstart", "--json"]
    command += ["--workspace", str(tmp_path / "workspace")]
    stages = tmp_path / "workspace/reports/quickstart-stages.json"
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as run:
        while not (stages.is_file() and "label" in stages.read_text()):
            assert run.poll() is None
            time.sleep(0.05)
        run.send_signal(signal.SIGKILL)
    before = json.loads(stages.read_text())
    finished = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    result = json.loads(finished.stdout)
    assert result["seconds"]["sample"] == before["sample"]["seconds"]
    assert result["policy"] is not None
    assert not log.exists(), log.read_text()


def test_the_readmes_example_runs_on_the_quickstarts_bank(
    first: tuple[Workspace, dict[str, Any], Log], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    (tmp_path / "morlaif").symlink_to(first[0].root)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["scores"].shape == (1, 3)
    assert len(names["steered"].candidates) == 4
    assert [reward.__name__ for reward in names["rewards"]] == list(PRINCIPLES)


@pytest.mark.slow
def test_the_real_model_gives_the_same_numbers_twice(
    embedded_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Judged and steered in bfloat16, as `make quickstart` does."""
    monkeypatch.setenv("MORLAIF_EMBEDDED_MODEL", str(embedded_folder))
    small = replace(
        SETTINGS, max_new_tokens=24, training=TrainSettings(append_eos=True), policy=None
    )
    results = []
    for run in ("one", "two"):
        monkeypatch.setenv("MORLAIF_CACHE", str(tmp_path / run))
        results.append(without_times(run_quickstart(Workspace(tmp_path / run / "work"), small)))
    assert results[0] == results[1]
