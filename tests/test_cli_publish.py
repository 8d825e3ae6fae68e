"""The commands that publish and verify, as they are typed, against the Hub on loopback."""

import json
from pathlib import Path
from typing import Any

import pytest

from morlaif_hub.models.language_model import model_folder
from tests.hub_server import LoopbackHub
from tests.hub_workspace import Made, push_all
from tests.test_cli import passed, put_back, run  # noqa: F401  # the fixture is used by name
from tests.test_docs import generator

pytestmark = pytest.mark.usefixtures("put_back")


@pytest.fixture
def embedded(made: Made, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny base in the place of the embedded model."""
    monkeypatch.setenv("MORLAIF_EMBEDDED_MODEL", str(made.base))
    model_folder(None)
    return made.base


def printed(*arguments: str | Path) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(passed(*arguments, "--json").stdout)
    return plain


@pytest.mark.slow
@pytest.mark.usefixtures("embedded")
def test_a_project_is_published_with_the_commands_that_each_error_names(
    ann: LoopbackHub, made: Made
) -> None:
    there = ("--workspace", made.workspace.root)
    first = run("push-pm", "detail", *there)
    assert first.exit_code == 1
    assert first.stderr.count("\n") == 1
    assert "publish it first, with morlaif-hub push-base" in first.stderr
    assert ann.repo("model", "ann/morlaif-pm-detail-smollm2") is None
    keys = generator().JSON
    base = printed("push-base", *there)
    pm = printed("push-pm", "detail", *there)
    assert "morlaif-hub push-feedback detail" in str(pm["needs"])
    feedback = printed("push-feedback", "detail", *there)
    again = printed("push-pm", "detail", *there)  # now it can name its data
    assert (again["needs"], again["new"], again["tag"]) == ([], True, "v2")
    refused = run("push-bank", *there)
    assert "push-pm conciseness" in refused.stderr
    passed("push-pm", "conciseness", *there)
    bank = printed("push-bank", *there)
    assert bank["collection"].startswith(ann.url)
    policy = printed("push-policy", "brief", *there)
    for done in (base, pm, feedback, bank, policy):
        assert list(done) == list(keys["push-pm"])
    seen = printed("verify", pm["repo_id"])
    assert list(seen) == list(keys["verify"])
    assert seen["holds"]
    assert {check["verdict"] for check in seen["checks"]} == {"holds"}


@pytest.mark.usefixtures("embedded")
def test_a_dry_run_sends_nothing_and_needs_no_token(hub: LoopbackHub, made: Made) -> None:
    there = ("--workspace", made.workspace.root)
    done = passed("push-pm", "detail", "--dry-run", *there)
    assert hub.log == []
    for shown in ("<user>/morlaif-pm-detail-", "adapter_model.safetensors", "# Preference model"):
        assert shown in done.stdout
    assert "NEEDED FIRST" in done.stdout
    data = printed("push-pm", "detail", "--dry-run", *there)
    assert list(data) == list(generator().JSON["push-pm --dry-run"])
    assert {file["change"] for file in data["files"]} == {"new"}


@pytest.mark.usefixtures("embedded")
def test_without_a_token_one_line_says_what_to_do_before_any_work(
    hub: LoopbackHub, made: Made
) -> None:
    for line in (
        ("push-base",),
        ("push-pm", "detail"),
        ("push-feedback", "detail"),
        ("push-bank",),
    ):
        done = run(*line, "--workspace", made.workspace.root)
        assert done.exit_code == 1
        assert done.stderr.count("\n") == 1
        assert "log in with 'hf auth login' or set HF_TOKEN" in done.stderr
    assert hub.log == []


def test_what_is_not_there_names_the_command_that_makes_it(made: Made) -> None:
    there = ("--workspace", made.workspace.root)
    for line, command in {
        ("push-pm", "empathy"): "morlaif-hub train-pm empathy",
        ("push-feedback", "empathy"): "morlaif-hub collect-feedback empathy",
        ("push-policy", "bold"): "morlaif-hub train-policy --name bold",
    }.items():
        done = run(*line, *there)
        assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
        assert command in done.stderr


def test_a_claim_that_fails_ends_with_1(made: Made) -> None:
    from dataclasses import replace

    from morlaif_hub.hub.artifact import seal
    from morlaif_hub.hub.manifest import PreferenceModelManifest, read_manifest

    folder = made.workspace.preference_model("detail")
    manifest = read_manifest(folder, PreferenceModelManifest)
    golden = replace(manifest.golden, scores=tuple(s + 1 for s in manifest.golden.scores))
    seal(folder, replace(manifest, golden=golden))
    model_folder(made.base)
    done = run("verify", folder)
    assert done.exit_code == 1
    assert "FAILS: golden scores" in " ".join(done.stdout.split())
    assert "Error" not in done.stderr


@pytest.mark.slow
def test_the_default_names_and_the_card_of_what_was_pushed(ann: LoopbackHub, made: Made) -> None:
    names = {done.repo_id for done in push_all(made).values()}
    (base,) = (name for name in names if "-base-" in name)
    ending = base.rpartition("-")[2]
    assert names == {
        f"ann/morlaif-base-{ending}",
        "ann/morlaif-feedback-conciseness-sums",
        "ann/morlaif-feedback-detail-sums",
        f"ann/morlaif-pm-conciseness-{ending}",
        f"ann/morlaif-pm-detail-{ending}",
        "ann/morlaif-bank-conciseness-detail",
        "ann/morlaif-policy-brief",
    }
    card = ann.files("model", f"ann/morlaif-pm-detail-{ending}")["README.md"].decode()
    assert f'"ann/morlaif-pm-detail-{ending}"' in card
    assert f"base_model: {base}" in card
