"""Publishing: whole or not at all, proved before it counts, and the same when it comes back."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from morlaif_hub import PMBank
from morlaif_hub.errors import (
    ArtifactError,
    BaseMismatchError,
    HubError,
    ModelNotFoundError,
    MorlaifHubError,
    OptionError,
    WrongWayError,
)
from morlaif_hub.hub.artifact import open_artifact, seal
from morlaif_hub.hub.manifest import (
    BankManifest,
    BaseManifest,
    FeedbackManifest,
    Manifest,
    PreferenceModelManifest,
    RateRecord,
    read_manifest,
)
from morlaif_hub.models.language_model import model_folder
from morlaif_hub.policies.artifact import load_policy
from morlaif_hub.publish.links import _without_folders
from morlaif_hub.publish.making import base_artifact
from morlaif_hub.publish.plan import PushPlan
from morlaif_hub.publish.push import plan_push, push_to_hub
from morlaif_hub.publish.verify import Verification, verify
from tests.hub_server import LoopbackHub
from tests.hub_workspace import PRINCIPLES, WEIGHTS, Made, make_base, push_all
from tests.manifests import validation_record

PROMPTS, RESPONSES = ["What is it?", "And you?"], ["A tree.", "The sea is wide and deep."]


def forget_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Empty both caches, as on a stranger's machine."""
    from huggingface_hub import constants

    monkeypatch.setenv("MORLAIF_CACHE", str(tmp_path / "elsewhere/morlaif"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "elsewhere/hub"))


def change(folder: Path, kind: type[Any], **fields: Any) -> None:
    """Let an artifact claim something else, with hashes that agree."""
    manifest: Manifest = read_manifest(folder, kind)
    seal(folder, replace(manifest, **fields))


def verdicts(found: Verification) -> dict[str, str]:
    return {check.claim: check.verdict for check in found.checks}


def test_every_kind_is_one_private_commit_with_a_version(ann: LoopbackHub, made: Made) -> None:
    for done in push_all(made).values():
        repo_type = "dataset" if "feedback" in done.repo_id else "model"
        repo = ann.repo(repo_type, done.repo_id)
        assert repo is not None
        assert repo.private
        commits = ann.commits(repo_type, done.repo_id)
        assert len(commits) == 2  # the first is the Hub's own
        assert commits[0] == done.commit
        assert ann.tags(repo_type, done.repo_id) == {"v1": done.commit}
        assert all(check.verdict == "holds" for check in done.checks), done.checks


def test_pushing_again_commits_nothing_and_proves_it_again(ann: LoopbackHub, made: Made) -> None:
    first = push_all(made)
    again = push_all(made)
    for name, done in again.items():
        assert not done.new
        assert (done.commit, done.tag) == (first[name].commit, "v1")
    assert len(ann.collections) == 1


def test_a_published_bank_scores_the_same_on_another_machine(
    ann: LoopbackHub, made: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here = PMBank.from_pretrained(made.workspace.bank, base=made.base)
    expected = here.score(PROMPTS, RESPONSES)
    done = push_all(made)
    forget_this_machine(monkeypatch, tmp_path)
    slug = str(done["bank"].collection).partition("/collections/")[2]
    for source in (done["bank"].repo_id, f"{done['bank'].repo_id}@v1", slug):
        bank = PMBank.from_pretrained(source)
        assert bank.objectives == PRINCIPLES
        assert (bank.scalarizer, bank.weights) == ("soft_max_min", WEIGHTS)
        assert torch.equal(bank.score(PROMPTS, RESPONSES), expected)
    apart = PMBank.from_pretrained([done[name].repo_id for name in PRINCIPLES])
    assert torch.equal(apart.score(PROMPTS, RESPONSES), expected)
    load_policy(done["policy"].repo_id)
    assert [request for request in ann.log if request.status >= 500] == []


def test_a_bank_pins_the_commits_of_its_members(ann: LoopbackHub, made: Made) -> None:
    done = push_all(made)
    files = ann.files("model", done["bank"].repo_id)
    parts = json.loads(files["morlaif.json"])["objectives"]
    assert {p["name"]: (p["repo_id"], p["revision"]) for p in parts} == {
        name: (done[name].repo_id, done[name].commit) for name in PRINCIPLES
    }
    (collection,) = ann.collections.values()
    assert {
        item["item_id"] if "item_id" in item else item["id"] for item in collection["items"]
    } == {done["bank"].repo_id, *(done[name].repo_id for name in PRINCIPLES)}


def test_only_the_artifacts_own_files_are_sent(ann: LoopbackHub, made: Made) -> None:
    folder = made.workspace.preference_model("detail")
    model_folder(made.base)
    push_to_hub(made.base)
    (folder / "notes.txt").write_text("mine")
    done = push_to_hub(folder)
    listed = {entry.path for entry in open_artifact(folder, PreferenceModelManifest).files}
    there = set(ann.files("model", done.repo_id))
    assert there - {".gitattributes"} == listed | {"README.md", "morlaif.json"}


def test_a_file_that_is_no_longer_part_of_it_is_removed(ann: LoopbackHub, made: Made) -> None:
    folder = made.workspace.feedback("detail")
    done = push_to_hub(folder)
    ann.commit("dataset", done.repo_id, {"figures/old.png": b"old"}, author="ann", message="more")
    plan = plan_push(folder)
    assert [file.path for file in plan.files if file.change == "removed"] == ["figures/old.png"]
    assert {f.change for f in plan.files} == {"removed", "same"}
    again = push_to_hub(folder)
    assert again.tag == "v2"
    assert "figures/old.png" not in ann.files("dataset", done.repo_id)


def test_it_becomes_public_at_the_very_end(ann: LoopbackHub, made: Made) -> None:
    folder = made.workspace.feedback("detail")
    seen: list[bool] = []
    repo_id = "ann/morlaif-feedback-detail-sums"
    ann.before("POST", r"/tag/", lambda: seen.append(bool(ann.repo("dataset", repo_id).private)))
    done = push_to_hub(folder, public=True)
    assert seen == [True]
    assert done.public
    assert not ann.repo("dataset", repo_id).private
    with pytest.raises(HubError, match=r"is public, and a push is private unless .* add --public"):
        push_to_hub(folder)
    assert push_to_hub(folder, public=True).commit == done.commit


def test_what_is_public_needs_public_parts(ann: LoopbackHub, made: Made) -> None:
    folder = made.workspace.preference_model("detail")
    model_folder(made.base)
    base = push_to_hub(made.base)
    push_to_hub(made.workspace.feedback("detail"))
    with pytest.raises(
        HubError, match=r"its base, .*, is private.* morlaif-hub push-base --public"
    ):
        push_to_hub(folder, public=True)
    assert ann.repo("model", "ann/morlaif-pm-detail-smollm2") is None
    assert push_to_hub(made.base, public=True).commit == base.commit
    done = push_to_hub(folder, public=True)
    assert done.public
    (need,) = done.needs  # its data may stay private, which is said
    assert need.command == "morlaif-hub push-feedback detail --public"


def test_what_somebody_else_keeps_there_is_not_written_over(ann: LoopbackHub, made: Made) -> None:
    model_folder(made.base)
    push_to_hub(made.base)
    ann.commit("model", "ann/mine", {"model.bin": b"1"}, author="ann", message="mine")
    with pytest.raises(HubError, match="ann/mine holds something else"):
        push_to_hub(made.workspace.preference_model("detail"), "ann/mine")
    first = push_to_hub(made.workspace.preference_model("detail"), "ann/pm")
    with pytest.raises(HubError, match=r"holds the preference-model of 'detail'.*--repo-id"):
        push_to_hub(made.workspace.preference_model("conciseness"), "ann/pm")
    assert ann.commits("model", "ann/pm")[0] == first.commit
    assert set(ann.files("model", "ann/mine")) >= {"model.bin"}


def test_a_model_that_points_the_wrong_way_is_refused_before_anything_is_sent(
    ann: LoopbackHub, made: Made
) -> None:
    folder = made.workspace.preference_model("detail")
    wrong = validation_record(verdict="wrong way", accuracy=0.1, interval=(0.03, 0.3))
    change(folder, PreferenceModelManifest, validation=wrong)
    ann.clear_log()
    with pytest.raises(WrongWayError, match=r"detail: .* prefers the worse side .* not published"):
        push_to_hub(folder)
    assert [request.path for request in ann.log] == ["/api/whoami-v2"]


def test_claims_that_do_not_hold_here_are_not_published(ann: LoopbackHub, made: Made) -> None:
    """The golden scores and the probes are measured before anything is sent."""
    model_folder(made.base)
    push_to_hub(made.base)
    folder = made.workspace.preference_model("detail")
    manifest = read_manifest(folder, PreferenceModelManifest)
    golden = replace(manifest.golden, scores=tuple(s + 1 for s in manifest.golden.scores))
    change(folder, PreferenceModelManifest, golden=golden)
    with pytest.raises(ArtifactError, match=r"golden scores: claimed off by at most .* measured"):
        push_to_hub(folder, "ann/pm")
    assert ann.repo("model", "ann/pm") is None


def test_another_base_is_refused_by_name(ann: LoopbackHub, made: Made, tmp_path: Path) -> None:
    other = push_to_hub(make_base(tmp_path / "other", seed=7), "ann/other-base")
    with pytest.raises(BaseMismatchError, match=r"--base-repo ann/other-base: made for the base"):
        push_to_hub(made.workspace.preference_model("detail"), base_repo=other.repo_id)
    right = push_to_hub(made.base, "ann/its-base")
    done = push_to_hub(made.workspace.preference_model("detail"), base_repo=right.repo_id)
    config = json.loads(ann.files("model", done.repo_id)["adapter_config.json"])
    assert (config["base_model_name_or_path"], config["revision"]) == ("ann/its-base", right.commit)


def test_a_pull_request_changes_nothing_by_itself(ann: LoopbackHub, made: Made) -> None:
    folder = made.workspace.feedback("detail")
    with pytest.raises(HubError, match="nothing to open a pull request on"):
        push_to_hub(folder, create_pr=True)
    first = push_to_hub(folder)
    change_license(folder)
    done = push_to_hub(folder, create_pr=True)
    assert done.tag is None
    assert ann.commits("dataset", first.repo_id)[0] == first.commit
    assert done.commit in ann.commits("dataset", first.repo_id, revision="refs/pr/1")


def change_license(folder: Path) -> None:
    change(folder, FeedbackManifest, license="mit")


def test_a_push_can_be_stopped_when_it_is_seen_what_it_would_do(
    ann: LoopbackHub, made: Made
) -> None:
    class Reader:
        def __init__(self) -> None:
            self.plan: PushPlan | None = None

        def planned(self, plan: PushPlan) -> bool:
            self.plan = plan
            return False

        def step(self, text: str) -> None:
            assert text

    reader = Reader()
    with pytest.raises(HubError, match="stopped; nothing was published"):
        push_to_hub(made.workspace.feedback("detail"), watch=reader)
    assert reader.plan is not None
    assert {file.change for file in reader.plan.files} == {"new"}
    assert ann.repo("dataset", reader.plan.repo_id) is None


@pytest.mark.parametrize("role", ["read", "revoked"])
def test_a_token_that_may_not_write_is_told_before_any_work(
    role: str, hub: LoopbackHub, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = hub.add_user("bob", role="read") if role == "read" else "hf_" + "x" * 34
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError) as caught:
        push_to_hub(made.workspace.feedback("detail"))
    said = "may only read" if role == "read" else "does not accept your token"
    assert said in str(caught.value)
    assert token not in str(caught.value)
    assert [request.path for request in hub.log] == ["/api/whoami-v2"]


def test_somebody_elses_account_is_refused_with_what_to_do(ann: LoopbackHub, made: Made) -> None:
    ann.add_user("bob")
    with pytest.raises(HubError, match=r"nothing was|403.*write access to bob"):
        push_to_hub(made.workspace.feedback("detail"), "bob/feedback")
    assert ann.repo("dataset", "bob/feedback") is None


def test_the_named_base_is_the_one_that_counts(
    ann: LoopbackHub, made: Made, tmp_path: Path
) -> None:
    """What is remembered from an earlier push does not stand in for what the user names."""
    model_folder(made.base)
    push_to_hub(made.base)
    other = push_to_hub(make_base(tmp_path / "other", seed=7), "ann/other-base")
    folder = made.workspace.preference_model("detail")
    with pytest.raises(BaseMismatchError, match="--base-repo ann/other-base: made for the base"):
        push_to_hub(folder, base_repo=other.repo_id)
    with pytest.raises(ModelNotFoundError, match="--base-repo bob/nothing"):
        push_to_hub(folder, base_repo="bob/nothing")
    assert ann.commits("model", "ann/morlaif-base-0892fb8e")


def test_a_base_is_not_believed_on_its_manifests_word(
    ann: LoopbackHub, made: Made, tmp_path: Path
) -> None:
    forged = make_base(tmp_path / "forged", seed=7)
    manifest = read_manifest(forged, BaseManifest)
    ours = read_manifest(made.base, BaseManifest).base
    seal(forged, replace(manifest, base=ours))
    files = {path.name: path.read_bytes() for path in forged.iterdir()}
    ann.commit("model", "eve/base", files, author="eve", message="trust me")
    model_folder(made.base)
    with pytest.raises(ArtifactError, match=r"eve/base@.*declares the weights .* but the tensors"):
        push_to_hub(made.workspace.preference_model("detail"), base_repo="eve/base")


@pytest.mark.parametrize(
    "repo_id", ["ann/..", "..", "a/b/c", "x y", "ann/a@v2", "", "ann/a--b", "ann/.x", "../up"]
)
@pytest.mark.parametrize("with_token", [True, False])
def test_an_odd_repository_is_refused_before_anything_is_staged(
    repo_id: str, with_token: bool, ann: LoopbackHub, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not with_token:
        monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(OptionError, match="is no repository to publish as; accepted: user/name"):
        plan_push(made.workspace.feedback("detail"), repo_id)
    assert {request.path for request in ann.log} <= {"/api/whoami-v2"}


def test_a_name_without_an_owner_is_one_in_the_account(ann: LoopbackHub, made: Made) -> None:
    assert push_to_hub(made.workspace.feedback("detail"), "mine").repo_id == "ann/mine"
    assert ann.repo("dataset", "ann/mine") is not None


@pytest.mark.parametrize(("name", "other"), [("feedback", "conciseness"), ("base", "")])
def test_another_artifact_of_the_kind_is_not_written_over(
    name: str, other: str, ann: LoopbackHub, made: Made, tmp_path: Path
) -> None:
    first, second = made.base, tmp_path / "base"
    if name == "feedback":
        first, second = made.workspace.feedback("detail"), made.workspace.feedback(other)
    else:
        make_base(second, seed=7)
    done = push_to_hub(first, "ann/x")
    with pytest.raises(HubError, match=r"ann/x holds the .* which is not written over"):
        push_to_hub(second, "ann/x")
    assert ann.commits("dataset" if name == "feedback" else "model", "ann/x")[0] == done.commit


def test_a_pull_request_without_a_change_is_not_opened(ann: LoopbackHub, made: Made) -> None:
    folder = made.workspace.feedback("detail")
    push_to_hub(folder)
    assert not push_to_hub(folder, create_pr=True).new
    assert ann.requests("POST", "/discussions") == []


def test_a_plan_says_why_the_push_would_be_refused(ann: LoopbackHub, made: Made) -> None:
    folder = made.workspace.feedback("detail")
    assert "nothing to open a pull request on" in str(plan_push(folder, create_pr=True).refused)
    assert plan_push(folder).refused is None
    push_to_hub(folder, public=True)
    assert "is public" in str(plan_push(folder).refused)
    assert "neither your account (ann) nor" in str(plan_push(folder, "bob/x").refused)
    assert ann.repo("dataset", "bob/x") is None


def test_a_bank_made_public_later_has_a_public_collection(ann: LoopbackHub, made: Made) -> None:
    push_all(made)
    (collection,) = ann.collections.values()
    assert collection["private"]
    push_to_hub(made.base, public=True)
    for name in PRINCIPLES:
        push_to_hub(made.workspace.preference_model(name), public=True)
    assert push_to_hub(made.workspace.bank, public=True).public
    (collection,) = ann.collections.values()
    assert not collection["private"]


def test_a_cache_that_cannot_be_written_makes_no_push_fail(
    ann: LoopbackHub, made: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MORLAIF_CACHE", str(tmp_path / "file" / "cache"))
    done = push_to_hub(made.workspace.feedback("detail"))
    assert ann.tags("dataset", done.repo_id) == {"v1": done.commit}


def test_a_policy_is_published_without_its_preference_models(ann: LoopbackHub, made: Made) -> None:
    model_folder(made.base)
    push_to_hub(made.base)
    for name in PRINCIPLES:
        shutil.rmtree(made.workspace.preference_model(name))
    done = push_to_hub(made.workspace.policy("brief"))
    assert len(done.needs) == 2
    text = b"".join(ann.files("model", done.repo_id).values())
    assert b"../" not in text
    assert str(made.workspace.root).encode() not in text


def test_what_training_left_beside_a_base_is_not_published(made: Made, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(made.base, plain)
    (plain / "morlaif.json").unlink()
    (plain / "trainer_state.json").write_text("{}")
    config = json.loads((plain / "config.json").read_text())
    (plain / "config.json").write_text(json.dumps({**config, "_name_or_path": "/home/ann/x"}))
    with base_artifact(model_folder(plain), license="mit") as folder:
        names = {path.name for path in folder.iterdir()}
        assert "trainer_state.json" not in names
        assert names >= {"config.json", "model.safetensors", "tokenizer.json", "morlaif.json"}
        assert b"/home/ann" not in b"".join(path.read_bytes() for path in folder.iterdir())


@pytest.mark.usefixtures("ann")
def test_a_judges_folder_is_not_told(made: Made) -> None:
    folder = made.workspace.feedback("detail")
    manifest = read_manifest(folder, FeedbackManifest)
    local = replace(manifest.judge, spec=f"likelihood:{made.workspace.root}/judge")
    change(folder, FeedbackManifest, judge=local)
    card = plan_push(folder).card
    assert str(made.workspace.root) not in card
    assert "likelihood:judge" in card


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("likelihood:/home/ann/judge?temperature=0.2", "likelihood:judge?temperature=0.2"),
        (
            "single-objective:local:./models/judge?examples=2&constitution=/home/ann/own.toml",
            "single-objective:local:judge?examples=2&constitution=own.toml",
        ),
        ("local:~/judge", "local:judge"),
        ("local:ann/judge@v1", "local:ann/judge@v1"),
        ("openai:m?base_url=http://host:8000/v1", "openai:m?base_url=http://host:8000/v1"),
    ],
)
def test_no_folder_in_a_judges_spec_is_told(spec: str, told: str) -> None:
    assert _without_folders(spec) == told


# What others claim.


@pytest.mark.slow
@pytest.mark.usefixtures("ann")
@pytest.mark.parametrize(
    ("fields", "claim"),
    [
        ({"validation": validation_record(verdict="fit", accuracy=0.5, n=24)}, "probes"),
        ({"length_correlation": 0.99}, "correlation with length"),
    ],
)
def test_a_claim_that_is_off_fails(fields: dict[str, Any], claim: str, made: Made) -> None:
    push_all(made)
    folder = made.workspace.preference_model("detail")
    dataset = replace(
        read_manifest(folder, PreferenceModelManifest).dataset,
        repo_id="ann/morlaif-feedback-detail-sums",
        revision=push_to_hub(made.workspace.feedback("detail")).commit,
    )
    change(folder, PreferenceModelManifest, dataset=dataset, **fields)
    assert [c for c, verdict in verdicts(verify(folder)).items() if verdict == "fails"] == [claim]


@pytest.mark.slow
@pytest.mark.usefixtures("ann")
@pytest.mark.parametrize(
    "field",
    ["accuracy", "interval", "length_baseline", "calibration_error", "temperature", "mean"],
)
def test_a_number_that_is_off_fails(field: str, made: Made) -> None:
    push_all(made)
    folder = made.workspace.preference_model("detail")
    manifest = read_manifest(folder, PreferenceModelManifest)
    dataset = replace(
        manifest.dataset,
        repo_id="ann/morlaif-feedback-detail-sums",
        revision=push_to_hub(made.workspace.feedback("detail")).commit,
    )
    first, *others = manifest.evaluations
    calibration = manifest.calibration
    match field:
        case "accuracy":
            first = replace(first, value=first.value - 0.05)
        case "interval":
            first = replace(first, interval=(first.interval[0] - 0.1, first.interval[1]))
        case "length_baseline":
            first = replace(first, length_baseline=(first.length_baseline or 0) - 0.1)
        case "calibration_error":
            *others, last = others
            assert last.metric == field
            others.append(replace(last, value=last.value + 0.01))
        case "temperature":
            calibration = replace(calibration, temperature=calibration.temperature * 2)
        case "mean":
            calibration = replace(calibration, mean=calibration.mean + calibration.std)
    change(
        folder,
        PreferenceModelManifest,
        dataset=dataset,
        evaluations=(first, *others),
        calibration=calibration,
    )
    failed = [c for c, verdict in verdicts(verify(folder)).items() if verdict == "fails"]
    claims = {"temperature": "calibration", "mean": "calibration", "calibration_error": field}
    assert failed == [claims.get(field, "accuracy")]


@pytest.mark.usefixtures("ann")
def test_what_a_bank_says_of_its_members_is_compared(made: Made) -> None:
    push_all(made)
    manifest = read_manifest(made.workspace.bank, BankManifest)
    first, *others = manifest.objectives
    boast = replace(first, verdict="fit")
    change(made.workspace.bank, BankManifest, objectives=(boast, *others))
    assert verdicts(verify(made.workspace.bank))["what is said of conciseness"] == "fails"


def test_a_missing_revision_and_a_missing_repository_are_told_apart(
    ann: LoopbackHub, made: Made
) -> None:
    done = push_to_hub(made.workspace.feedback("detail"))
    model_folder(made.base)
    base = push_to_hub(made.base)
    for repo_id in (done.repo_id, base.repo_id):
        with pytest.raises(MorlaifHubError, match="has no revision 'v9'"):
            verify(f"{repo_id}@v9")
    with pytest.raises(ModelNotFoundError, match="neither a model nor a data set ann/nothing"):
        verify("ann/nothing")
    assert ann.leaks == []


def test_a_strangers_claims_hold_or_fail_one_by_one(
    ann: LoopbackHub, made: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done = push_all(made)
    forget_this_machine(monkeypatch, tmp_path)
    assert verify(done["detail"].repo_id).holds
    boast = tmp_path / "boast"
    boast.mkdir()
    for path, data in ann.files("model", done["detail"].repo_id).items():
        if path != ".gitattributes":
            (boast / path).parent.mkdir(exist_ok=True)
            (boast / path).write_bytes(data)
    manifest = read_manifest(boast, PreferenceModelManifest)
    (first, *others) = manifest.evaluations
    lower = replace(first, value=first.value - 0.1)
    better = validation_record(accuracy=0.99, interval=(0.8, 1.0), verdict="fit")
    change(boast, PreferenceModelManifest, evaluations=(lower, *others), validation=better)
    found = verify(boast)
    assert not found.holds
    assert {claim for claim, verdict in verdicts(found).items() if verdict == "fails"} == {
        "accuracy",
        "probes",
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["base", "feedback detail", "bank", "policy"])
@pytest.mark.usefixtures("ann")
def test_every_kind_can_be_verified(name: str, made: Made) -> None:
    done = push_all(made)[name]
    found = verify(done.repo_id)
    assert found.holds
    assert done.commit in found.source
    assert "holds" in verdicts(found).values()


def test_what_claims_nothing_cannot_be_verified(ann: LoopbackHub, tmp_path: Path) -> None:
    ann.commit("model", "bob/plain", {"config.json": b"{}"}, author="bob", message="x")
    with pytest.raises(ArtifactError, match=r"bob/plain@.*no morlaif\.json"):
        verify("bob/plain")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match=r"no morlaif\.json"):
        verify(tmp_path / "empty")


@pytest.mark.usefixtures("ann")
def test_a_bank_of_other_golden_scores_fails(made: Made) -> None:
    push_all(made)
    manifest = read_manifest(made.workspace.bank, BankManifest)
    first, *others = manifest.golden
    moved = replace(first, scores=tuple(score + 1 for score in first.scores))
    change(made.workspace.bank, BankManifest, golden=(moved, *others))
    found = verify(made.workspace.bank)
    assert verdicts(found)["golden scores of conciseness"] == "fails"
    with pytest.raises(ArtifactError, match="golden scores are off by 1"):
        PMBank.from_pretrained(made.workspace.bank, base=made.base)


@pytest.mark.usefixtures("ann")
@pytest.mark.parametrize("field", ["consistency", "human_agreement", "tie_rate", "mean_entropy"])
def test_a_figure_of_a_judges_bias_that_is_off_fails(field: str, made: Made) -> None:
    folder = made.workspace.feedback("detail")
    bias = read_manifest(folder, FeedbackManifest).bias
    rate = RateRecord(value=0.123, interval=(0.1, 0.2), n=9)
    off = 0.123 if field in ("tie_rate", "mean_entropy") else rate
    assert verify(folder).holds
    change(folder, FeedbackManifest, bias=replace(bias, **{field: off}))
    failed = [c for c, verdict in verdicts(verify(folder)).items() if verdict == "fails"]
    assert failed == [field.replace("_", " ")]
