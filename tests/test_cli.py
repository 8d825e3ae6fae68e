"""The command line, from pairs to a policy, on tiny models; and how it fails.

Commands run in this process where nothing depends on it, since torch takes seconds to import.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from morlaif_hub import PMBank, __version__, quickstart, sampling, steering
from morlaif_hub.bank.artifact import write_bank
from morlaif_hub.cli import COMMANDS, FriendlyGroup, cli, demo, every_command
from morlaif_hub.cli.banks import bank_sources
from morlaif_hub.cli.pairs import read_pairs
from morlaif_hub.cli.preference_models import FORMS_WITH, standing_line
from morlaif_hub.cli.progress import Progress
from morlaif_hub.cli.tables import doubts, printable, table, validation_table
from morlaif_hub.errors import ModelNotFoundError
from morlaif_hub.feedback.collect import CollectSettings
from morlaif_hub.feedback.dataset import FeedbackDataset
from morlaif_hub.hub.artifact import open_artifact, seal
from morlaif_hub.hub.manifest import (
    PartRecord,
    PolicyManifest,
    PreferenceModelManifest,
    ValidationRecord,
    read_manifest,
)
from morlaif_hub.models.generation import Response, SamplingSettings
from morlaif_hub.policies.train import PolicySettings
from morlaif_hub.preference_models.losses import Check
from morlaif_hub.preference_models.settings import GradientSettings
from morlaif_hub.preference_models.standing import Standing
from morlaif_hub.preference_models.train import TrainSettings
from morlaif_hub.principles import DEFAULT_CONSTITUTION, load_constitution
from morlaif_hub.quickstart import QuickstartSettings
from morlaif_hub.workspace import Workspace
from tests.plugin_site import install_example_plugin, use_example_plugin
from tests.test_docs import generator
from tests.test_report import EXAMPLE
from tests.tiny import save_tiny

ROOT = Path(__file__).parent.parent
BOTH = ("conciseness", "detail")
PROMPT = ("--prompt", "Tell me of the sea.")
FULL = ("--form", "full")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def passed(*arguments: str | Path) -> Result:
    """Run a command that has to succeed."""
    result = run(*arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.stderr
    return result


def printed(*arguments: str | Path) -> dict[str, Any]:
    """Return the JSON object that a command prints."""
    plain: dict[str, Any] = json.loads(passed(*arguments, "--json").stdout)
    return plain


def environment(**changes: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **changes}


def started(*arguments: str | Path) -> "subprocess.Popen[str]":
    """Start the command line as a user does, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "morlaif_hub", *map(str, arguments)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(autouse=True)
def put_back() -> Iterator[None]:
    """Undo what a command does to its process."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
    logging.set_tqdm_hook(None)


@pytest.fixture(scope="module", autouse=True)
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        folder = save_tiny(tmp_path_factory.mktemp("embedded") / "tiny", layers=4)
        monkeypatch.setenv("MORLAIF_EMBEDDED_MODEL", str(folder))
        yield folder


class Project(NamedTuple):
    """A workspace made by commands alone, the prompts it began with, and what they printed."""

    folder: Path
    prompts: Path
    printed: dict[str, dict[str, Any]]

    @property
    def workspace(self) -> Workspace:
        return Workspace(self.folder)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("project") / "workspace"
    prompts = folder.parent / "prompts.txt"
    prompts.write_text("\n".join(f"What is {n} and {n}?" for n in range(36)) + "\n")
    there = ("--workspace", folder)
    chain: list[tuple[str | Path, ...]] = [
        ("sample-pairs", "--prompts", prompts, "--max-new-tokens", "8"),
        ("collect-feedback", *BOTH, "--judge", "likelihood:", "--dry-run"),
        ("collect-feedback", *BOTH, "--judge", "likelihood:", "--unvalidated"),
        ("train-pm", *BOTH),
        ("score", *PROMPT, "--response", "It is wide.", "--response", "No."),
        ("score", "--pairs", folder / "pairs/pairs.jsonl", "--limit", "3"),
        (
            "steer",
            *PROMPT,
            "-n",
            "3",
            "--max-new-tokens",
            "8",
            "--weights",
            "detail=2,conciseness=0",
        ),
        ("train-policy", "--prompts", prompts, "--max-steps", "1"),
    ]
    keys = [
        " ".join([str(name), *(o for o in ("--dry-run", "--pairs") if o in options)])
        for name, *options in chain
    ]
    return Project(
        folder,
        prompts,
        {key: printed(*line, *there) for key, line in zip(keys, chain, strict=True)},
    )


def content(folder: Path) -> dict[str, str]:
    """Return the hash of every file of a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# What every command has.


def test_help_and_version() -> None:
    listed = passed("--help").stdout
    order = [line.split()[0] for line in listed.partition("Commands:\n")[2].splitlines()]
    assert order == list(COMMANDS)
    assert passed("--version").stdout == f"morlaif-hub, version {__version__}\n"


def test_help_of_all_commands_loads_no_model_library() -> None:
    names = ", ".join(map(repr, COMMANDS))
    code = (
        "import sys; from morlaif_hub.cli import cli\n"
        "for name in ('', " + names + "):\n"
        "    cli.main([name, '--help'] if name else ['--help'], standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_every_command_has_the_common_options() -> None:
    drawing = {
        "quickstart",
        "sample-pairs",
        "validate-judge",
        "inspect-feedback",
        "collect-feedback",
        "train-pm",
        "fit-weights",
        "steer",
        "train-policy",
        "train-sft",
        "evaluate winrate",
    }
    for name, command in every_command().items():
        options = {text for parameter in command.params for text in parameter.opts}
        assert options >= {"--workspace", "--json"}
        assert ("--seed" in options) == (name in drawing)


@pytest.mark.parametrize(
    ("command", "settings", "renamed"),
    [
        ("sample-pairs", SamplingSettings(), {}),
        ("collect-feedback", CollectSettings(), {}),
        ("train-pm", GradientSettings(), {}),
        ("train-pm", TrainSettings(), {}),
        ("steer", SamplingSettings(responses=8), {"candidates": "responses"}),
        ("train-policy", PolicySettings(), {}),
    ],
)
def test_defaults_are_those_of_the_library(
    command: str, settings: Any, renamed: dict[str, str]
) -> None:
    made = cli.get_command(click.Context(cli), command)
    assert made is not None
    given = {renamed.get(str(p.name), str(p.name)): p for p in made.params}
    shared = given.keys() & {field.name for field in fields(settings)}
    assert shared
    for name in shared:
        assert given[name].to_info_dict()["default"] == getattr(settings, name), name


def test_the_default_set_of_principles_is_the_librarys() -> None:
    assert printed("principles")["constitution"] == DEFAULT_CONSTITUTION


def test_the_workspace_comes_from_the_option_then_the_environment(
    project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MORLAIF_WORKSPACE", str(project.folder))
    arguments = ("collect-feedback", "detail", "--judge", "likelihood:", "--dry-run")
    assert printed(*arguments)["questions"] == 36
    refused = run(*arguments, "--workspace", tmp_path)
    assert refused.exit_code == 1
    assert str(tmp_path) in refused.stderr


# The whole chain.


ON_THE_HUB = (
    "push-base",
    "push-feedback",
    "push-pm",
    "push-bank",
    "push-policy",
    "verify",
    "search",
)
"""Commands that need a Hub: tests/test_cli_publish.py and tests/test_catalog.py."""
ELSEWHERE = (
    *ON_THE_HUB,
    "inspect-feedback",
    "fit-weights",
    "demo",
    "quickstart",
    "train-sft",
    "evaluate",
)
"""Commands with tests of their own."""


@pytest.mark.parametrize(
    "name",
    [n for n in generator().JSON if n.split()[0] not in ELSEWHERE],
)
def test_json_has_the_keys_that_are_documented(name: str, project: Project) -> None:
    line = {
        "principles": ("principles",),
        "principles NAME": ("principles", "empathy"),
        "validate-judge": ("validate-judge", "likelihood:", "empathy"),
        "plugins": ("plugins",),
    }.get(name)
    data = printed(*line) if line else project.printed[name]
    assert list(data) == list(generator().JSON[name])


def test_pairs_are_sampled(project: Project) -> None:
    data = project.printed["sample-pairs"]
    assert data["prompts"] == 36
    assert data["pairs"] + data["prompts_without_a_pair"] == 36
    assert 0 <= data["finished"] <= 1
    assert len(Path(data["path"]).read_text().splitlines()) == data["pairs"]


def test_collecting_first_says_how_much_there_is(project: Project) -> None:
    pairs = project.printed["sample-pairs"]["pairs"]
    plan = project.printed["collect-feedback --dry-run"]
    left_out = {"duplicates": 0, "bad_rows": 0}
    to_ask = {"to_ask": 2 * pairs, "calls": 2 * pairs}  # likelihoods have no order
    assert plan == {"questions": 2 * pairs, "cached": 0, **to_ask, **left_out}
    again = ("collect-feedback", *BOTH, "--judge", "likelihood:", "--dry-run")
    after = printed(*again, "--workspace", project.folder)
    nothing = {"to_ask": 0, "calls": 0}
    assert after == {"questions": 2 * pairs, "cached": 2 * pairs, **nothing, **left_out}


def test_feedback_says_where_its_pairs_came_from(project: Project) -> None:
    for name in BOTH:
        row = project.printed["collect-feedback"]["principles"][name]
        assert row["train_pairs"] + row["test_pairs"] == row["pairs"]
        assert (row["validated"], row["validation"]) == (False, None)
        source = FeedbackDataset.load(project.workspace.feedback(name)).manifest.source
        pairs = project.folder / "pairs/pairs.jsonl"
        assert source.name == "pairs.jsonl"
        assert source.sha256 == hashlib.sha256(pairs.read_bytes()).hexdigest()


def test_models_are_trained_measured_and_validated(project: Project) -> None:
    for name in BOTH:
        row = project.printed["train-pm"]["principles"][name]
        assert row["kept"] in ("trained", "start")
        assert row["evaluations"][0]["metric"] == "accuracy"
        assert row["validation"]["n"] == 24
        manifest = open_artifact(Path(row["path"]), PreferenceModelManifest)
        assert manifest.principle.name == name
        assert manifest.training.gradient.layers == (3,)  # the top quarter of four


def test_scores_are_those_of_the_bank(project: Project) -> None:
    bank = PMBank.from_pretrained([project.workspace.preference_model(name) for name in BOTH])
    data = project.printed["score"]
    assert data["objectives"] == bank.high_scores
    assert set(data["validation"].values()) <= {"fit", "unproven", "wrong way"}
    for row in data["responses"]:
        expected = bank.score([PROMPT[1]], [row["response"]])[0].tolist()
        assert list(row["scores"].values()) == pytest.approx(expected, abs=1e-5)


def test_pairs_are_scored_on_both_sides(project: Project) -> None:
    rows = project.printed["score --pairs"]["pairs"]
    assert len(rows) == 3
    for row in rows:
        assert list(row["response_a"]) == list(row["response_b"]) == list(BOTH)


def test_steering_follows_the_weights(project: Project) -> None:
    data = project.printed["steer"]
    candidates = data["candidates"]
    assert data["weights"] == {"detail": 2.0, "conciseness": 0.0}
    assert 1 < len(candidates) <= 3
    assert data["best"] == candidates[0]["text"]
    rewards = [candidate["reward"] for candidate in candidates]
    assert rewards == sorted(rewards, reverse=True)
    for candidate in candidates:
        assert candidate["reward"] == pytest.approx(2 * candidate["scores"]["detail"], abs=1e-4)


def test_a_policy_is_trained_and_answers(project: Project) -> None:
    data = project.printed["train-policy"]
    assert data["kl"] >= 0
    assert set(data["others"]) == set(BOTH)
    policy = project.workspace.policy("policy")
    manifest = open_artifact(policy, PolicyManifest)
    assert (manifest.steps, manifest.stopped_by, manifest.algorithm) == (1, "max_steps", "grpo")
    arguments = ("steer", *PROMPT, "-n", "2", "--max-new-tokens", "4", "--model", policy)
    assert printed(*arguments, "--workspace", project.folder)["best"]


def test_people_read_what_programs_read(project: Project) -> None:
    """Doubts come first, then results, then what a high score means."""
    text = passed("steer", *PROMPT, "-n", "2", "--workspace", project.folder).stdout
    words = load_constitution().get("detail").high_score
    assert text.startswith("UNPROVEN: on the probes of")
    assert " ".join(words.split()) in " ".join(text.split())
    text = passed("score", *PROMPT, "--response", "No.", "--workspace", project.folder).stdout
    assert text.index("UNPROVEN") < text.index("No.") < text.index("A high score means")


def test_the_next_step_is_for_the_same_workspace(project: Project, tmp_path: Path) -> None:
    shutil.copytree(project.folder, tmp_path / "my workspace")
    arguments = ("collect-feedback", "detail", "--judge", "likelihood:", "--unvalidated")
    result = passed(*arguments, "--workspace", tmp_path / "my workspace")
    last = result.stderr.splitlines()[-1]
    assert last == f"next: morlaif-hub train-pm detail --workspace '{tmp_path}/my workspace'"


def test_progress_and_hints_alone_are_on_stderr(project: Project, tmp_path: Path) -> None:
    """The libraries below have bars and warnings of their own, which nobody asked for."""
    folder = tmp_path / "copy"
    shutil.copytree(project.folder, folder)
    arguments = ("--prompts", project.prompts, "--max-steps", "1", "--scalarizer", "max_min")
    with started("train-policy", *arguments, "--workspace", folder, "--json") as process:
        stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert set(json.loads(stdout)) == set(generator().JSON["train-policy"])
    first, second, last = stderr.splitlines()
    assert first == ("reward: max_min of conciseness 0.50, detail 0.50 (weights: all the same)")
    assert second == "training with grpo (1 to do)"
    assert last.startswith("next: morlaif-hub steer --model ")


def test_ctrl_c_ends_with_one_line_and_keeps_what_is_there(project: Project) -> None:
    before = content(project.folder)
    arguments = ("--responses", "40", "--max-new-tokens", "400", "--workspace", project.folder)
    with started("sample-pairs", *arguments) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "sampling (4,320 to do)\n"
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (130, "")
    assert stderr == "Stopped. Work that was finished is kept.\n"
    assert content(project.folder) == before


def test_train_pm_learns_from_people(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": f"What is {n}?",
            "chosen": f"{n} is a number.",
            "rejected": f"I am not sure of {n}.",
        }
        for n in range(40)
    ]
    pairs = tmp_path / "people.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ("train-pm", "empathy", "--labels", "human", "--pairs", pairs)
    data = printed(*arguments, "--workspace", tmp_path / "workspace", "--layers", "all")
    manifest = open_artifact(Path(data["principles"]["empathy"]["path"]), PreferenceModelManifest)
    assert manifest.judge is None
    assert manifest.training.labels == "human"
    assert manifest.training.gradient.layers == (0, 1, 2, 3)
    assert manifest.dataset.sha256 == hashlib.sha256(pairs.read_bytes()).hexdigest()
    assert manifest.license == "other"
    scored = printed("score", "--pairs", pairs, "--workspace", tmp_path / "workspace")
    assert {row["human_choice"] for row in scored["pairs"]} == {"a", "b"}
    named = passed(*arguments, "--workspace", tmp_path / "workspace", "--license", "mit")
    assert "hint:" not in named.stderr
    again = open_artifact(Path(data["principles"]["empathy"]["path"]), PreferenceModelManifest)
    assert again.license == "mit"


@pytest.mark.slow
def test_models_have_the_licence_of_the_feedback_unless_told(
    project: Project, tmp_path: Path
) -> None:
    feedback = ("collect-feedback", "detail", "--judge", "likelihood:", "--unvalidated")
    shutil.copytree(project.folder, tmp_path / "copy")
    there = ("--workspace", tmp_path / "copy")
    passed(*feedback, "--license", "cc-by-4.0", *there)
    model = Workspace(tmp_path / "copy").preference_model("detail")
    for options, expected in (((), "cc-by-4.0"), (("--license", "mit"), "mit")):
        result = passed("train-pm", "detail", *options, *there)
        assert open_artifact(model, PreferenceModelManifest).license == expected
        assert "hint:" not in result.stderr
        assert "r(words)" in result.stdout


def test_sampling_takes_a_system_message_and_stop_strings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    original = sampling.sample_pairs

    def listen(*arguments: Any, settings: SamplingSettings, **rest: Any) -> Any:
        asked.append(settings.stop)
        return original(*arguments, settings=settings, **rest)

    monkeypatch.setattr(sampling, "sample_pairs", listen)
    rows = [
        {"prompt": [{"role": "system", "content": "Be odd."}, {"role": "user", "content": "Hi"}]},
        {"prompt": "Hello"},
    ]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--max-new-tokens", "8", "--stop", "\n", "--stop", "User:", "--system", "Be brief.")
    data = printed("sample-pairs", "--prompts", prompts, *options, "--workspace", tmp_path / "new")
    assert asked == [("\n", "User:")]
    pairs = read_pairs(str(tmp_path / "new/pairs"), Workspace(tmp_path)).comparisons
    assert len(pairs) == data["pairs"] == 2
    assert {tuple(m["content"] for m in pair.prompt) for pair in pairs} == {
        ("Be brief.", "Hi"),
        ("Be brief.", "Hello"),
    }
    printed("sample-pairs", "--prompts", prompts, *options[:2], "--workspace", tmp_path / "plain")
    assert asked[1] == ()


def test_steering_says_when_the_policy_repeats_itself(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("steer", *PROMPT, "-n", "3", "--max-new-tokens", "4", "--workspace")
    assert "repeats itself" not in passed(*arguments, project.folder).stderr
    same = [[Response("Wide.", True), Response("Blue.", True)]]
    monkeypatch.setattr(steering, "sample_responses", lambda *_a, **_k: same)
    said = passed(*arguments, project.folder).stderr
    assert "hint: 2 different answers came back of 3: the policy repeats itself\n" in said


# Errors: one line, exit 1, and nothing that was there is lost.


def fails(*arguments: str | Path) -> str:
    """Run a command that has to fail with an error of ours, and return its message."""
    result = run(*arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert (result.exit_code, result.stdout) == (1, "")
    last = result.stderr.splitlines()[-1]
    assert last.startswith("Error: ")
    assert sum(line.startswith("Error: ") for line in result.stderr.splitlines()) == 1
    return last.removeprefix("Error: ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("principles", "concisness"), "unknown principle 'concisness'; known: bias,"),
        (("principles", "concisness"), "Did you mean 'conciseness'?"),
        (("validate-judge", "likelyhood:"), "unknown judge 'likelyhood'; known: likelihood, local"),
        (("validate-judge", "likelyhood:"), "Did you mean 'likelihood'?"),
        (("steer", *PROMPT, "--scalarizer", "liner"), "unknown scalarizer 'liner'"),
        (("steer", *PROMPT, "--scalarizer", "liner"), "Did you mean 'linear'?"),
        (("steer", *PROMPT, "--weights", "detail=1,tone=2"), "missing: conciseness; extra: tone"),
        (("train-policy", "--weights", "detail=1"), "missing: conciseness; extra: none"),
        (("train-pm", "empathy"), "no feedback on 'empathy'"),
        (("train-pm", "detail", "--layers", "top:2"), "'top:2'"),
        (("score", *PROMPT, "--response", "No.", "--bank", "./nothing"), "nothing"),
        (("sample-pairs", "--model", "./nothing"), "nothing: no such file or folder"),
        (("sample-pairs", "--prompts", "./nothing.txt"), "nothing.txt"),
    ],
)
def test_a_wrong_name_is_one_line(arguments: tuple[str, ...], said: str, project: Project) -> None:
    before = content(project.folder)
    assert said in fails(*arguments, "--workspace", project.folder)
    assert content(project.folder) == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "pairs.jsonl: the file is empty"),
        (
            '{"prompt": "Hi", "chosen": "Yes", "rejected": "No"}\nnope\n',
            "pairs.jsonl: line 2: not JSON",
        ),
        ('{"prompt": "Hi", "answer": "Yes"}\n', "pairs.jsonl: line 1: no columns of a comparison"),
        ('{"prompt": "Hi", "answer": "Yes"}\n', "found: 'prompt', 'answer'"),
        (
            '{"prompt": "Hi", "chosen": "Yes", "rejected": "Yes"}\n',
            "line 1: chosen and rejected are",
        ),
    ],
)
@pytest.mark.parametrize(
    "command",
    [
        ("collect-feedback", "detail", "--judge", "likelihood:"),
        ("train-pm", "detail", "--labels", "human"),
        ("score",),
    ],
)
def test_pairs_that_cannot_be_read_are_named_by_line(
    command: tuple[str, ...], text: str, said: str, project: Project, tmp_path: Path
) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(text)
    before = content(project.folder)
    assert said in fails(*command, "--pairs", pairs, "--workspace", project.folder)
    assert content(project.folder) == before


def damaged(
    folder: Path, damage: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> None:
    """Change an adapter's weights and write down their new hash, as a careless author might."""
    weights = folder / "adapter_model.safetensors"
    save_file(damage(load_file(weights)), weights, metadata={"format": "pt"})
    manifest = read_manifest(folder, PreferenceModelManifest)
    seal(folder, replace(manifest, files=()))


def not_a_number(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor * float("nan") for name, tensor in weights.items()}


def without_head(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in weights.items() if "score" not in name}


@pytest.mark.parametrize(
    ("damage", "said"),
    [(not_a_number, "has NaN or infinite values"), (without_head, "has no score head")],
)
@pytest.mark.parametrize("command", [("score", "--response", "No."), ("steer",)])
def test_a_broken_preference_model_scores_nothing(
    command: tuple[str, ...],
    damage: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    said: str,
    project: Project,
    tmp_path: Path,
) -> None:
    model = tmp_path / "detail"
    shutil.copytree(project.workspace.preference_model("detail"), model)
    damaged(model, damage)
    good = project.workspace.preference_model("conciseness")
    before = content(project.folder)
    assert said in fails(*command, *PROMPT, "--bank", good, "--bank", model)
    assert content(project.folder) == before


def test_a_preference_model_refuses_another_base(project: Project, tmp_path: Path) -> None:
    """The Hub's cache has a base under the declared name, but with other weights."""
    commit, other = "0123456789" * 4, "f" * 64
    cached = Path(os.environ["HF_HOME"]) / "hub/models--ann--other-base"
    save_tiny(cached / "snapshots" / commit, layers=4, seed=1)
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text(commit)
    model = tmp_path / "detail"
    shutil.copytree(project.workspace.preference_model("detail"), model)
    manifest = read_manifest(model, PreferenceModelManifest)
    base = replace(manifest.base, repo_id="ann/other-base", source="hub", weights_sha256=other)
    seal(model, replace(manifest, base=base, files=()))
    said = fails("score", *PROMPT, "--response", "No.", "--bank", model)
    assert "made for the base ann/other-base (weights ffffffffffff)" in said
    assert "but put on ann/other-base (weights" in said


@pytest.mark.parametrize(
    "command",
    [
        ("quickstart",),
        ("sample-pairs",),
        ("collect-feedback", "detail", "--judge", "likelihood:"),
        ("train-pm", "detail"),
        ("train-policy",),
    ],
)
def test_a_workspace_that_cannot_be_written_is_found_before_any_work(
    command: tuple[str, ...], project: Project, tmp_path: Path
) -> None:
    place = tmp_path / "workspace"
    place.write_text("a file in the place of a folder")
    bank = ("--bank", project.workspace.preference_model("detail"))
    more = bank if command == ("train-policy",) else ()
    said = fails(*command, *more, "--workspace", place)
    assert f"the workspace {place} cannot be written" in said
    assert "--workspace or MORLAIF_WORKSPACE" in said
    assert place.read_text() == "a file in the place of a folder"


@pytest.mark.parametrize(
    "command",
    [("sample-pairs",), ("validate-judge", "local:"), ("quickstart",), ("steer", *PROMPT)],
)
def test_no_embedded_model_to_be_had(
    command: tuple[str, ...], project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MORLAIF_EMBEDDED_MODEL", str(tmp_path))
    before = content(project.folder)
    assert f"MORLAIF_EMBEDDED_MODEL is '{tmp_path}'" in fails(
        *command, "--workspace", project.folder
    )
    assert content(project.folder) == before


def test_an_empty_workspace_says_what_to_do(tmp_path: Path) -> None:
    there = ("--workspace", tmp_path)
    assert "morlaif-hub train-pm" in fails("score", *PROMPT, "--response", "No.", *there)
    asked = ("collect-feedback", "detail", "--judge", "likelihood:")
    assert "morlaif-hub sample-pairs" in fails(*asked, *there)
    assert "morlaif-hub collect-feedback detail" in fails("train-pm", "detail", *there)


class Faulty(FriendlyGroup):
    """A command line whose one command has a bug."""

    def get_command(self, _ctx: click.Context, _name: str) -> click.Command:
        def bug() -> None:
            raise ValueError("a bug")

        return click.Command("bug", callback=bug)


def test_a_bug_keeps_its_traceback() -> None:
    result = CliRunner().invoke(Faulty("faulty"), ["bug"])
    assert isinstance(result.exception, ValueError)


# Wrong usage: exit 2.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("steer", *PROMPT, "--weights", "detail"), "'detail' is not objective=number"),
        (("steer", *PROMPT, "--weights", "detail=1,"), "'' is not objective=number"),
        (("steer", *PROMPT, "--weights", "detail=much"), "must be a number, got 'much'"),
        (("steer", *PROMPT, "--weights", "a=1,a=2"), "'a' is there twice"),
        (("steer", *PROMPT, "-n", "0"), "0 is not in the range x>=1"),
        (("steer",), "Missing option '--prompt'"),
        (("steer", *PROMPT, "--method", "magic"), "'magic' is not 'best-of-n'"),
        (("score", "--prompt", "Hi"), "give either --prompt and --response, or --pairs"),
        (("score", "--pairs", "./p.jsonl", *PROMPT), "give either --prompt and --response"),
        (("collect-feedback", "--judge", "local:"), "Missing argument 'PRINCIPLE...'"),
        (("collect-feedback", "detail"), "Missing option '--judge'"),
        (("train-pm", "detail", "--labels", "human"), "--labels human and --pairs SRC go together"),
        (("train-pm", "detail", "--pairs", "./p.jsonl"), "--labels human and --pairs SRC go"),
        (("train-pm", "detail", *FULL, "--layers", "all"), "--layers is for --form lora and"),
        (("train-pm", "detail", *FULL, "--trainer", "together"), "--trainer together is for"),
        (("train-policy", "--name", "../elsewhere"), "'../elsewhere' must be a folder's name"),
        (("train-policy", "--max-kl", "0"), "0.0 is not in the range x>0"),
        (("sample-pairs", "--responses", "1"), "1 is not in the range x>=2"),
        (("score-pairs",), "No such command 'score-pairs'"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], said: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr


@pytest.mark.parametrize("more", [(), ("--labels", "human", "--pairs", "./pairs.jsonl")])
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--layers", "all"),
        ("--epochs", "3"),
        ("--batch-size", "16"),
        ("--learning-rate", "0.1"),
        ("--loss", "margin"),
        ("--label-smoothing", "0.1"),
        ("--distillation", "0"),
        ("--trainer", "trl"),
        ("--trainer", "together"),
    ],
)
def test_what_a_probe_has_no_use_for_is_refused(
    option: str, value: str, more: tuple[str, ...]
) -> None:
    result = run("train-pm", "detail", "--form", "probe", option, value, *more)
    assert result.exit_code == 2
    forms = "lora" if option == "--layers" else "lora or full"
    said = " ".join(result.stderr.split())
    assert f"{option} is for --form {forms} and changes nothing for --form probe" in said


def test_every_gradient_option_is_known_to_be_one() -> None:
    options = {str(parameter.name) for parameter in every_command()["train-pm"].params}
    gradient = {field.name for field in fields(GradientSettings)}
    assert {*FORMS_WITH} == (options & gradient) | {"trainer"}


# Parts.


def test_the_quickstart_is_run_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """tests/test_quickstart.py runs the loop itself; its settings are not the command's."""
    asked = []

    def finished(
        workspace: Workspace, settings: QuickstartSettings, *, progress: Progress
    ) -> dict[str, Any]:
        asked.append((workspace.root, settings))
        progress.start("sampling train responses", 144)
        return EXAMPLE

    monkeypatch.setattr(quickstart, "run_quickstart", finished)
    result = passed("quickstart", "--seed", "7", "--workspace", tmp_path)
    assert asked == [(tmp_path, QuickstartSettings(seed=7))]
    assert result.stderr.splitlines() == [
        "sampling train responses (144 to do)",
        f"next: morlaif-hub demo --workspace {tmp_path}",
    ]
    first = EXAMPLE["details"]["findings"][0]
    assert " ".join(result.stdout.split()).startswith(f"- {first}")
    assert result.stdout.splitlines()[-1] == f"{tmp_path}/reports/quickstart.html"
    data = printed("quickstart", "--workspace", tmp_path)
    assert data == EXAMPLE
    assert list(data) == list(generator().JSON["quickstart"])


def test_principles_are_listed_with_their_direction() -> None:
    constitution = load_constitution()
    text = passed("principles").stdout
    for principle in constitution.principles:
        assert f"{principle.name} " in text
    rows = printed("principles")["principles"]
    assert [row["name"] for row in rows] == list(constitution.names)
    assert {row["probes"] for row in rows} == {24}
    one = constitution.get("toxicity")
    shown = " ".join(passed("principles", "toxicity").stdout.split())
    for words in (one.criterion, one.opposite, one.high_score, one.probes[-1].worse):
        assert " ".join(words.split()) in shown


def test_principles_of_another_set(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'name = "mine"\n[[principles]]\nname = "calm"\ncriterion = "It is calm."\n'
        'opposite = "It is loud."\nhigh_score = "A high score means calmer."\n'
    )
    data = printed("principles", "--constitution", path)
    assert (data["constitution"], [p["name"] for p in data["principles"]]) == ("mine", ["calm"])
    said = fails("validate-judge", "likelihood:", "--constitution", path)
    assert said.startswith("no probes of calm; add [[principles.probes]]")


def test_a_judge_is_validated_on_probes() -> None:
    result = passed("validate-judge", "likelihood:", "empathy", "detail")
    assert "empathy" in result.stdout
    assert result.stderr == "asking the judge (48 to do)\n"
    data = printed("validate-judge", "likelihood:", "empathy")
    assert data["judge"] == "likelihood:embedded"
    (record,) = data["principles"].values()
    assert record["n"] == sum(part["n"] for part in record["parts"]) == 24
    assert data["choices"] == {}


def test_a_judge_is_validated_on_what_people_chose(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"Why {i % 9}?", "chosen": f"So {i}.", "rejected": "No."} for i in range(18)]
    path.write_text("\n".join(map(json.dumps, rows)))
    asked = ("validate-judge", "likelihood:", "empathy", "--pairs", path)
    data = printed(*asked)
    assert data["choices"]["empathy"]["n"] == 9  # one of each prompt
    assert "on choices of people" in passed(*asked).stdout
    bare = tmp_path / "bare.jsonl"
    bare.write_text(json.dumps({"prompt": "Why?", "response_a": "So.", "response_b": "No."}))
    assert "no pair has a human choice" in fails(*asked[:-1], bare)


def test_plugins_lists_ours_and_theirs(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_example_plugin(install_example_plugin(tmp_path_factory), monkeypatch)
    found = {row["name"]: row for row in printed("plugins", "--check")["plugins"]}
    assert found["linear"] == {
        "kind": "scalarizer",
        "name": "linear",
        "package": "morlaif-hub",
        "aliases": [],
        "source": "https://arxiv.org/abs/2406.07295",
        "error": None,
    }
    assert found["max_min"]["aliases"] == ["worst_case", "minimax"]
    theirs = [row for name, row in found.items() if name.startswith("morlaif-example-plugin/")]
    assert {row["kind"] for row in theirs} == {"principle", "judge", "scalarizer"}
    assert {row["package"] for row in theirs} == {"morlaif-example-plugin 1.0.0"}
    assert {row["error"] for row in theirs} == {None}


def test_a_broken_plugin_is_told_not_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "acme-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[morlaif_hub.scalarizers]\nworst = acme_gone:worst\n"
        "[morlaif_hub.principles]\nkind = acme_here:PATH\n"
    )
    (tmp_path / "acme_here.py").write_text(f"PATH = {str(tmp_path / 'gone.toml')!r}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = {row["name"]: row for row in printed("plugins", "--check")["plugins"]}
    assert "No module named 'acme_gone'" in found["acme/worst"]["error"]
    assert "gone.toml: not a readable TOML file" in found["acme/kind"]["error"]
    assert "acme_gone" in passed("plugins", "--check").stdout
    assert "error" not in printed("plugins")["plugins"][0]
    monkeypatch.setenv("MORLAIF_HUB_PLUGINS", "off")
    assert "acme" not in passed("plugins").stdout


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a program in the place of the demo that writes down its arguments and ends."""
    app, seen = tmp_path / "app.py", tmp_path / "seen.json"
    app.write_text(
        "import json, os, sys\n"
        f"with open({str(seen)!r}, 'w') as file:\n"
        "    json.dump([sys.argv[1:], os.environ.get('GRADIO_SERVER_PORT')], file)\n"
        "sys.exit(int(os.environ.get('ENDS_WITH', 0)))\n"
    )
    monkeypatch.setattr(demo, "program", lambda: app)
    monkeypatch.setattr(demo, "find_spec", lambda _name: True)
    return seen


def test_the_demo_gets_the_bank_of_the_workspace(
    stand_in: Path, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_SERVER_PORT", "7999")
    data = printed("demo", "--workspace", project.folder, "--model", "./mine")
    models = [str(project.workspace.preference_model(name)) for name in BOTH]
    assert data == {"bank": models, "model": "./mine"}
    expected = ["--bank", models[0], "--bank", models[1], "--model", "./mine"]
    assert json.loads(stand_in.read_text()) == [expected, "7999"]
    assert printed("demo", "--bank", "ann/a", "--bank", "bob/b@v2")["bank"] == ["ann/a", "bob/b@v2"]


def test_what_is_printed_can_be_typed_as_a_source(
    stand_in: Path, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path without `./` before it would be taken for a Hub id."""
    monkeypatch.chdir(project.folder.parent)
    served = printed("demo", "--workspace", project.folder.name)["bank"]
    assert served == [f"./{project.folder.name}/pms/{name}" for name in BOTH]
    assert json.loads(stand_in.read_text())[0] == ["--bank", served[0], "--bank", served[1]]
    assert printed("score", *PROMPT, "--response", "No.", "--bank", served[1])["responses"]


def test_the_demo_ends_as_its_program_does(
    stand_in: Path, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENDS_WITH", "3")
    result = run("demo", "--workspace", project.folder)
    assert (result.exit_code, result.stdout) == (3, "")
    assert stand_in.exists()


def test_the_demo_needs_gradio(
    stand_in: Path, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda _name: None)
    said = fails("demo", "--workspace", project.folder)
    assert "make setup" in said
    assert "pip install morlaif" not in said
    assert not stand_in.exists()


def test_the_demos_program_is_found(tmp_path: Path) -> None:
    """In the checkout beside the package; a wheel has it inside."""
    assert demo.program() == ROOT / "spaces/demo/app.py"
    with pytest.raises(click.ClickException, match="program is not there"):
        demo.program(tmp_path)
    inside = tmp_path / "spaces/demo/app.py"
    inside.parent.mkdir(parents=True)
    inside.touch()
    assert demo.program(tmp_path) == inside


@pytest.fixture
def banked(project: Project, tmp_path: Path) -> Workspace:
    """Return a workspace with a bank of its two preference models."""
    workspace = Workspace(tmp_path / "copy")
    shutil.copytree(project.folder, workspace.root)
    bank = PMBank.from_pretrained([workspace.preference_model(name) for name in BOTH])
    weights = {"conciseness": 0.25, "detail": 2.0}
    scores = [[0.0, 1.0], [1.0, 0.5], [2.0, 0.7]]
    write_bank(bank, workspace.bank, scores=scores, weights=weights, scalarizer="max_min")
    return workspace


def test_a_workspaces_own_bank_goes_first(
    banked: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ModelNotFoundError, match="no --bank was given"):
        bank_sources(Workspace(tmp_path / "none"), ())
    assert bank_sources(banked, ()) == [banked.bank]
    assert bank_sources(banked, ("ann/bank",)) == ["ann/bank"]
    shutil.rmtree(banked.bank)
    assert bank_sources(banked, ()) == [banked.preference_model(name) for name in BOTH]
    assert capsys.readouterr().err == ""


def test_a_bank_that_is_out_of_date_is_left_aside(banked: Workspace) -> None:
    """Loading it would fail, or leave out what was trained since."""
    detail, empathy = map(banked.preference_model, ("detail", "empathy"))
    arguments = ("score", *PROMPT, "--response", "No.", "--workspace", banked.root)
    assert "hint:" not in passed(*arguments).stderr
    seal(detail, replace(read_manifest(detail, PreferenceModelManifest), license="mit"))
    result = passed(*arguments)
    (hint,) = (line for line in result.stderr.splitlines() if line.startswith("hint: "))
    assert "is out of date (trained again since: detail), so all" in hint
    principle = load_constitution().get("empathy")
    manifest = read_manifest(banked.preference_model("conciseness"), PreferenceModelManifest)
    named = replace(manifest.principle, name=principle.name)
    shutil.copytree(banked.preference_model("conciseness"), empathy)
    seal(empathy, replace(manifest, principle=named, files=()))
    result = run(*arguments, "--json")
    assert "(trained again since: detail; not in it: empathy)" in result.stderr
    assert list(json.loads(result.stdout)["objectives"]) == [*BOTH, "empathy"]
    shutil.rmtree(detail)
    assert "(no longer there: detail; not in it: empathy)" in passed(*arguments).stderr


def test_what_a_killed_run_left_is_no_preference_model(banked: Workspace) -> None:
    detail = banked.preference_model("detail")
    shutil.copytree(detail, detail.with_name(".detail.0123.new"))
    assert bank_sources(banked, ()) == [banked.bank]
    shutil.rmtree(banked.bank)
    assert bank_sources(banked, ()) == [banked.preference_model(name) for name in BOTH]


@pytest.mark.parametrize(
    ("options", "scalarizer", "weights", "whose"),
    [
        ((), "max_min", (0.25, 2.0), "the bank's own"),
        (("--scalarizer", "linear"), "linear", (0.25, 2.0), "the bank's own"),
        (("--weights", "detail=1,conciseness=3"), "max_min", (3.0, 1.0), "as given"),
        (("--bank", "pms/conciseness", "--bank", "pms/detail"), "linear", (0.5, 0.5), "all the"),
    ],
)
def test_a_banks_own_weights_and_scalarizer_are_the_default(
    banked: Workspace,
    options: tuple[str, ...],
    scalarizer: str,
    weights: tuple[float, float],
    whose: str,
) -> None:
    places = [str(banked.root / o) if o.startswith("pms/") else o for o in options]
    arguments = ("steer", *PROMPT, "-n", "2", "--max-new-tokens", "4", *places)
    result = passed(*arguments, "--workspace", banked.root, "--json")
    data = json.loads(result.stdout)
    assert data["scalarizer"] == scalarizer
    assert data["weights"] == dict(zip(BOTH, weights, strict=True))
    assert f"(weights: {whose}" in result.stderr


@pytest.mark.slow
def test_a_policy_is_trained_for_the_banks_own_reward(project: Project, banked: Workspace) -> None:
    there = ("--workspace", banked.root)
    passed("train-policy", "--prompts", project.prompts, "--max-steps", "1", *there)
    manifest = open_artifact(banked.policy("policy"), PolicyManifest)
    assert manifest.scalarizer == "max_min"
    assert {w.objective: w.value for w in manifest.weights} == {"conciseness": 0.25, "detail": 2.0}


def test_all_that_was_measured_on_probes_fits_a_terminal() -> None:
    record = ValidationRecord(
        verdict="wrong way",
        accuracy=0.21,
        interval=(0.09, 0.4),
        n=24,
        parts=(
            PartRecord(part="longer", accuracy=0.11, n=8),
            PartRecord(part="equal", accuracy=0.33, n=16),
        ),
        first_share=0.98,
        length_correlation=-0.47,
    )
    lines = validation_table({"understandability": record}).splitlines()
    assert max(map(len, lines)) < 100
    assert lines[1].split() == [
        *("understandability", "24", "0.21", "0.09", "to", "0.40", "0.11", "-", "0.33", "-0.47"),
        *("98", "%", "wrong", "way"),
    ]
    header = ["n", "accuracy", "95", "%", "interval", "longer", "shorter", "equal", "r(words)"]
    assert lines[0].split()[3:] == [*header, "first", "verdict"]
    no_order = validation_table({"detail": replace(record, first_share=None)})
    assert "first" not in no_order


def test_the_hash_of_a_folder_of_pairs(tmp_path: Path) -> None:
    """As `sha256sum train.jsonl test.jsonl | sha256sum` has it, in the folder."""
    row = json.dumps({"prompt": "Hi", "chosen": "Yes", "rejected": "No"})
    other = json.dumps({"prompt": "Hello", "chosen": "Yes", "rejected": "No"})
    for name, text in (("test.jsonl", row), ("train.jsonl", other)):
        (tmp_path / name).write_text(text)
    pairs = read_pairs(str(tmp_path), Workspace(tmp_path / "none"))
    assert {pair.split for pair in pairs.comparisons} == {"train", "test"}
    listed = "".join(
        f"{hashlib.sha256(text.encode()).hexdigest()}  {name}\n"
        for name, text in (("test.jsonl", row), ("train.jsonl", other))
    )
    assert pairs.source.sha256 == hashlib.sha256(listed.encode()).hexdigest()
    assert pairs.source.name == tmp_path.name


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with Progress() as progress:
        progress.start("judging", 4)
        progress.advance(1)
        progress.advance(3)
        progress.reach("train detail", 1, 2)
        progress.reach("train detail", 2, 2)
    text = screen.getvalue()
    assert "judging: 100%" in text
    assert "4/4" in text
    assert "train detail: 100%" in text
    assert "2/2" in text
    assert text.endswith("\n")  # what follows begins on a line of its own


def test_progress_is_a_line_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as progress:
        progress.start("judging", 4000)
        progress.advance(4000)
        for done in range(1, 4):
            progress.reach("train detail", done, 3)
    assert capsys.readouterr() == ("", "judging (4,000 to do)\ntrain detail (3 to do)\n")


def test_how_models_stand_is_a_line_for_each_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = [
        Standing("empathy", 5, 1400, Check(0.6612, 0.58)),
        Standing("detail", 5, 1400, Check(0.7, None)),
    ]
    line = (
        "step 5 of 1,400, accuracy (loss) on validation pairs: empathy 0.58 (0.661), detail all "
        "ties (0.700)"
    )
    assert standing_line(first) == line
    ended = Standing("empathy", 9, 1400, ended=True)
    assert standing_line([ended]) == "empathy: training ended at step 9 of 1,400"
    with Progress() as progress:
        progress.start("train empathy, detail", 2800)
        progress.say(line)
    assert capsys.readouterr() == ("", f"train empathy, detail (2,800 to do)\n{line}\n")
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with Progress() as progress:
        progress.start("train empathy, detail", 2800)
        progress.say(line)
        progress.advance(2800)
    shown = screen.getvalue()
    assert f"{line}\n" in shown
    assert "2800/2800" in shown.split(line)[1]  # the bar goes on below


def test_tables_are_aligned_and_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    text = table(
        ("name", "pairs", "share", "words"),
        [("a", 1200, 0.5, "one two three four five six"), ("bcd", 7, None, "x\x1b[2Jy")],
    )
    assert text.splitlines() == [
        "name  pairs  share  words",
        "a     1,200   0.50  one two three four five six",
        "bcd       7      -  x\\x1b[2Jy",
    ]
    monkeypatch.setenv("COLUMNS", "20")
    narrow = table(("name", "words"), [("a", "word " * 12)])
    assert [line.find("word") for line in narrow.splitlines()] == [6, 6, 6]
    assert printable("a\nb\tc\x9b\x07") == "a\nb\tc\\x9b\\x07"


def test_doubts_come_worst_first() -> None:
    verdicts = {"a": "fit", "b": "unproven", "c": "wrong way", "d": None, "e": "unproven"}
    lines = doubts(verdicts, "judge")
    assert [line.split(":")[0] for line in lines] == ["WRONG WAY", "UNPROVEN", "NOT VALIDATED"]
    assert "b and e" in lines[1]
    assert doubts({"a": "fit"}, "judge") == []


def test_a_few_rows_that_cannot_be_read_are_left_out_and_named(
    project: Project, tmp_path: Path
) -> None:
    """As in hh-rlhf, where some chosen responses are empty."""
    pairs = tmp_path / "pairs.jsonl"
    good = [json.dumps({"prompt": f"{i}?", "chosen": "Yes", "rejected": "No"}) for i in range(20)]
    pairs.write_text("\n".join([*good, '{"prompt": "x", "chosen": "", "rejected": "No"}']))
    done = run("score", "--pairs", pairs, "--json", "--workspace", project.folder)
    assert len(json.loads(done.stdout)["pairs"]) == 20
    assert "hint: 1 row is left out, beside 20 that can be read: " in done.stderr
    assert "line 21: chosen is empty" in done.stderr
