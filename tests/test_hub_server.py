"""The Hub of these tests behaves like the real one, as the Hub's own clients see it."""

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import datasets
import httpx2
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    HfFileSystem,
    ModelCard,
)
from huggingface_hub.errors import (
    BadRequestError,
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hub_server import LoopbackHub
from tests.hub_server.child import ROOT, run_child

LARGE = bytes(range(256)) * 8192  # 2 MiB, not all of them the same
FILES = {
    "README.md": b"---\nlicense: mit\n---\nHello\n",
    "config.json": b"{}",  # to git this comes before the folder
    "config/a.json": b"{}",
    "empty.txt": b"",
    "weights.safetensors": LARGE,
}


@pytest.fixture
def ann(hub: LoopbackHub) -> HfApi:
    """A user with a write token, and write access to an organisation."""
    return HfApi(token=hub.add_user("ann", orgs={"acme": "write"}))


def write(folder: Path, files: dict[str, bytes] = FILES) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def contents(folder: str | Path) -> dict[str, bytes]:
    found = (path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def git(repo: Path, *arguments: str) -> str:
    command = ["git", "-c", "safe.directory=*", "-C", str(repo), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def refused(action: Callable[[], object]) -> int | None:
    """Return the status with which the Hub refuses; None if it does not."""
    try:
        action()
    except HfHubHTTPError as error:
        return error.response.status_code
    return None


# Commits.


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_what_is_uploaded_comes_back_and_is_a_sound_git_repository(
    hub: LoopbackHub, ann: HfApi, tmp_path: Path, kind: str
) -> None:
    ann.create_repo("ann/x", repo_type=kind, private=True)
    commit = ann.upload_folder(repo_id="ann/x", repo_type=kind, folder_path=write(tmp_path / "up"))
    got = contents(ann.snapshot_download("ann/x", repo_type=kind))
    assert {name: got[name] for name in FILES} == FILES
    assert hub.files(kind, "ann/x") == got
    assert hub.commits(kind, "ann/x")[0] == commit.oid
    repo = hub.repo(kind, "ann/x")
    assert repo is not None
    assert repo.private
    assert git(repo.git.path, "fsck", "--strict", "--full") == ""
    assert set(git(repo.git.path, "ls-tree", "-r", "--name-only", "main").split()) == set(got)
    pointer = git(repo.git.path, "show", "main:weights.safetensors")
    assert pointer.startswith("version https://git-lfs.github.com/spec/v1\noid sha256:")
    # The large file went to and came from the second origin.
    assert [record.origin for record in hub.requests(path="^/lfs/")] == ["cdn", "cdn"]
    assert "weights" not in str([record.path for record in hub.requests("GET", "/resolve/")])


def test_the_same_files_again_make_no_commit(hub: LoopbackHub, ann: HfApi, tmp_path: Path) -> None:
    ann.create_repo("ann/x")
    for _ in range(2):
        ann.upload_folder(repo_id="ann/x", folder_path=write(tmp_path / "up"))
    assert len(hub.commits("model", "ann/x")) == 2
    assert len(hub.requests("PUT")) == 1


def test_a_commit_adds_copies_and_deletes(hub: LoopbackHub, ann: HfApi) -> None:
    hub.commit("model", "ann/x", {**FILES, "old/a": b"1", "old/b": b"2"})
    operations = [
        CommitOperationCopy("weights.safetensors", "copy.safetensors"),
        CommitOperationDelete("old/", is_folder=True),
        CommitOperationDelete("empty.txt"),
        CommitOperationAdd("new.txt", b"3"),
    ]
    ann.create_commit("ann/x", operations, commit_message="Change", commit_description="All of it")
    files = hub.files("model", "ann/x")
    del files[".gitattributes"]
    kept = {name: content for name, content in FILES.items() if name != "empty.txt"}
    assert files == {**kept, "copy.safetensors": LARGE, "new.txt": b"3"}
    made = ann.list_repo_commits("ann/x")[0]
    assert (made.title, made.message, made.authors) == ("Change", "All of it", ["ann"])


@pytest.mark.parametrize("path", ["../a", "a/../../b", ".git/config", "a//b", "a\nb"])
def test_a_commit_refuses_paths_that_leave_the_repository(
    hub: LoopbackHub, ann: HfApi, path: str
) -> None:
    hub.commit("model", "ann/x", {"a": b""})
    operation = CommitOperationAdd("harmless", b"1")
    operation.path_in_repo = path
    with pytest.raises(BadRequestError, match="Invalid path"):
        ann.create_commit("ann/x", [operation], commit_message="Leave")
    assert len(hub.commits("model", "ann/x")) == 2


def test_a_large_file_that_was_never_uploaded_is_refused(hub: LoopbackHub, ann: HfApi) -> None:
    hub.commit("model", "ann/x", {"a": b""})
    lines: list[dict[str, Any]] = [
        {"key": "header", "value": {"summary": "Point to nothing"}},
        {"key": "lfsFile", "value": {"path": "w.bin", "oid": "0" * 64, "size": 1}},
    ]
    answer = httpx2.post(
        f"{hub.url}/api/models/ann/x/commit/main",
        content="\n".join(json.dumps(line) for line in lines),
        headers={"Authorization": f"Bearer {ann.token}"},
    )
    assert answer.status_code == 400
    assert "a file that does not exist. Offending file: - w.bin" in answer.json()["error"]


def test_a_large_file_has_to_be_what_its_name_says(hub: LoopbackHub, ann: HfApi) -> None:
    hub.commit("model", "ann/x", {"a": b""})
    asked = {"operation": "upload", "objects": [{"oid": "0" * 64, "size": 1}]}
    url = f"{hub.url}/ann/x.git/info/lfs/objects/batch"
    answer = httpx2.post(url, json=asked, headers={"Authorization": f"Bearer {ann.token}"})
    actions = answer.json()["objects"][0]["actions"]
    assert httpx2.put(actions["upload"]["href"], content=b"1").status_code == 400


def test_a_commit_on_an_outdated_parent_is_refused_whole(hub: LoopbackHub, ann: HfApi) -> None:
    old = hub.commit("model", "ann/x", {"a": b"1"})
    new = hub.commit("model", "ann/x", {"a": b"2"})

    def upload(parent: str) -> None:
        ann.upload_file(
            path_or_fileobj=b"3", path_in_repo="a", repo_id="ann/x", parent_commit=parent
        )

    with pytest.raises(HfHubHTTPError, match="updated since you opened this page") as caught:
        upload(old)
    assert caught.value.response.status_code == 412
    assert hub.commits("model", "ann/x")[0] == new
    upload(new[:7])
    assert hub.files("model", "ann/x")["a"] == b"3"


def test_a_callback_may_win_the_race(hub: LoopbackHub, ann: HfApi) -> None:
    parent = hub.commit("model", "ann/x", {"a": b"1"})
    hub.before("POST", "/commit/main", lambda: hub.commit("model", "ann/x", {"b": b"2"}))
    upload = dict(path_or_fileobj=b"3", path_in_repo="c", repo_id="ann/x", parent_commit=parent)
    assert refused(lambda: ann.upload_file(**upload)) == 412
    assert set(hub.files("model", "ann/x")) == {".gitattributes", "a", "b"}


def test_racing_writers_who_try_again_all_land(hub: LoopbackHub, ann: HfApi) -> None:
    hub.commit("model", "ann/x", {"a": b""})

    def append(number: int) -> None:
        status: int | None = 412
        while status == 412:
            parent = ann.model_info("ann/x").sha
            add = CommitOperationAdd(f"{number}.txt", b"x")
            status = refused(
                lambda add=add, parent=parent: ann.create_commit(
                    "ann/x", [add], commit_message="Append", parent_commit=parent
                )
            )
        assert status is None

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(append, range(6)))
    assert set(hub.files("model", "ann/x")) >= {f"{number}.txt" for number in range(6)}
    assert len(hub.commits("model", "ann/x")) == 8
    repo = hub.repo("model", "ann/x")
    assert repo is not None
    assert git(repo.git.path, "fsck", "--strict", "--full") == ""


@pytest.mark.usefixtures("hub")
def test_an_upload_in_parts_is_put_together(tmp_path: Path) -> None:
    with LoopbackHub(tmp_path / "parts", part_bytes=600_000) as other:
        api = HfApi(other.url, token=other.add_user("ann"))
        api.create_repo("ann/x")
        api.upload_file(path_or_fileobj=LARGE, path_in_repo="w.bin", repo_id="ann/x")
        assert len(other.requests("PUT", "/part/")) == 4
        assert other.files("model", "ann/x")["w.bin"] == LARGE


# Branches, tags, pull requests.


def test_tags_and_branches_are_revisions(hub: LoopbackHub, ann: HfApi) -> None:
    first = hub.commit("model", "ann/x", {"a": b"1"})
    ann.create_tag("ann/x", tag="v1", tag_message="The first")
    ann.create_branch("ann/x", branch="side/one", revision="v1")
    second = hub.commit("model", "ann/x", {"a": b"2"})
    ann.create_tag("ann/x", tag="v2")
    assert hub.tags("model", "ann/x") == {"v1": first, "v2": second}
    refs = ann.list_repo_refs("ann/x")
    assert {ref.name: ref.target_commit for ref in refs.tags} == {"v1": first, "v2": second}
    assert {ref.name: ref.target_commit for ref in refs.branches} == {
        "main": second,
        "side/one": first,
    }
    for revision in ("v1", "side/one", first, first[:7]):
        assert ann.model_info("ann/x", revision=revision).sha == first
        path = ann.hf_hub_download("ann/x", "a", revision=revision)
        assert Path(path).read_bytes() == b"1"
    assert refused(lambda: ann.create_tag("ann/x", tag="v1")) == 409
    ann.create_tag("ann/x", tag="v1", exist_ok=True)
    ann.delete_tag("ann/x", tag="v1")
    ann.delete_branch("ann/x", branch="side/one")
    assert set(hub.tags("model", "ann/x")) == {"v2"}
    with pytest.raises(RevisionNotFoundError):
        ann.delete_tag("ann/x", tag="v1")
    assert [made.commit_id for made in ann.list_repo_commits("ann/x")] == hub.commits(
        "model", "ann/x"
    )
    ann.super_squash_history("ann/x")
    assert len(hub.commits("model", "ann/x")) == 1
    assert hub.files("model", "ann/x")["a"] == b"2"


def test_a_stranger_can_only_propose(hub: LoopbackHub, ann: HfApi) -> None:
    hub.commit("model", "ann/x", {"a": b"1"})
    bob = HfApi(token=hub.add_user("bob"))
    change = dict(path_or_fileobj=LARGE, path_in_repo="b.bin", repo_id="ann/x")
    assert refused(lambda: bob.upload_file(**change)) == 403
    reader = HfApi(token=hub.add_user("bob", role="read"))
    assert refused(lambda: reader.upload_file(**change, create_pr=True)) == 403
    proposed = bob.upload_file(**change, create_pr=True)
    assert "b.bin" not in hub.files("model", "ann/x")
    assert hub.files("model", "ann/x", revision=proposed.pr_revision)["b.bin"] == LARGE
    number = proposed.pr_num
    said = bob.comment_discussion("ann/x", number, comment="Please")
    bob.edit_discussion_comment("ann/x", number, said.id, new_content="Thanks")
    assert refused(lambda: bob.merge_pull_request("ann/x", number)) == 403
    ann.merge_pull_request("ann/x", number)
    assert hub.files("model", "ann/x")["b.bin"] == LARGE
    details = ann.get_discussion_details("ann/x", number)
    assert details.status == "merged"
    assert details.merge_commit_oid == hub.commits("model", "ann/x")[0]
    assert [event.type for event in details.events] == ["comment", "comment", "status-change"]
    assert details.events[1].content == "Thanks"


def test_discussions_are_listed_and_changed(hub: LoopbackHub, ann: HfApi) -> None:
    hub.commit("dataset", "ann/d", {"a": b"1"})
    where = {"repo_id": "ann/d", "repo_type": "dataset"}
    talk = ann.create_discussion(**where, title="A question", description="Why?")
    draft = ann.create_pull_request(**where, title="An idea")
    ann.rename_discussion(**where, discussion_num=talk.num, new_title="Answered")
    ann.change_discussion_status(**where, discussion_num=talk.num, new_status="closed")
    found = {talk.num: talk for talk in ann.get_repo_discussions(**where)}
    assert [(d.title, d.status, d.is_pull_request) for d in found.values()] == [
        ("An idea", "draft", True),
        ("Answered", "closed", False),
    ]
    open_ones = ann.get_repo_discussions(**where, discussion_status="open")
    assert [talk.num for talk in open_ones] == [draft.num]


# Finding and describing.

CARD = """---
library_name: peft
pipeline_tag: text-classification
license: apache-2.0
base_model: acme/base
tags: [morlaif, "principle:honesty"]
datasets: [ann/d]
---
Described in https://arxiv.org/abs/2406.07295.
"""


def test_tags_come_from_the_card_and_the_files(hub: LoopbackHub, ann: HfApi) -> None:
    files = {"README.md": CARD.encode(), "adapter_config.json": b"{}", "a.safetensors": b"1"}
    commit = hub.commit("model", "ann/x", files)
    info = ann.model_info("ann/x", files_metadata=True)
    assert info.sha == commit
    assert (info.library_name, info.pipeline_tag) == ("peft", "text-classification")
    assert info.card_data is not None
    assert info.card_data.base_model == "acme/base"
    expected = ["peft", "safetensors", "text-classification", "morlaif", "principle:honesty"]
    expected += ["base_model:acme/base", "base_model:adapter:acme/base", "license:apache-2.0"]
    expected += ["dataset:ann/d", "arxiv:2406.07295", "region:us"]
    assert info.tags == expected
    sizes = {file.rfilename: (file.size, file.lfs is not None) for file in info.siblings or []}
    assert sizes["a.safetensors"] == (1, True)
    assert sizes["README.md"] == (len(CARD), False)


def test_listings_filter_sort_and_hide(hub: LoopbackHub, ann: HfApi) -> None:
    for name in ("ann/first", "acme/second", "bob/third", "bob/secret"):
        hub.commit("model", name, {"README.md": CARD.encode()})
    hub.commit("model", "bob/plain", {"a": b""})
    hub.commit("dataset", "ann/d", {"README.md": CARD.encode()})
    secret = hub.repo("model", "bob/secret")
    assert secret is not None
    secret.private = True

    def names(**filters: Any) -> list[str]:
        return [model.id for model in ann.list_models(**filters)]

    assert names() == ["bob/plain", "bob/third", "acme/second", "ann/first"]
    assert names(filter="morlaif") == ["bob/third", "acme/second", "ann/first"]
    assert names(filter=["morlaif", "principle:honesty"], author="ann") == ["ann/first"]
    assert names(filter=["morlaif", "principle:brevity"]) == []
    assert names(search="EC") == ["acme/second"]
    assert names(pipeline_tag="text-classification", limit=1) == ["bob/third"]
    hub.commit("model", "ann/first", {"b": b""})
    assert names(sort="last_modified")[0] == "ann/first"
    bob = HfApi(token=hub.add_user("bob"))
    assert "bob/secret" in [model.id for model in bob.list_models(author="bob")]
    assert [data.id for data in ann.list_datasets(author="ann")] == ["ann/d"]
    (model,) = ann.list_models(author="acme", expand=["cardData", "sha"])
    assert (model.sha, model.tags) == (hub.commits("model", "acme/second")[0], None)
    assert model.card_data is not None
    (model,) = ann.list_models(author="acme")
    assert (model.sha, model.card_data, model.siblings) == (None, None, None)


@pytest.mark.usefixtures("hub")
def test_long_listings_come_in_pages(tmp_path: Path) -> None:
    with LoopbackHub(tmp_path / "pages", page_size=2) as other:
        for number in range(5):
            other.commit("model", f"ann/m{number}", {"a/b": b"1", "c": b"2", "d/e": b"3"})
        api = HfApi(other.url)
        assert len(list(api.list_models(filter="region:us"))) == 5
        assert len(other.requests("GET", "^/api/models$")) == 3
        assert set(api.list_repo_files("ann/m1")) == {".gitattributes", "a/b", "c", "d/e"}
        assert len(api.list_repo_commits("ann/m1")) == 2


def test_trees_and_paths(hub: LoopbackHub, ann: HfApi) -> None:
    hub.commit("model", "ann/x", FILES)
    last = hub.commit("model", "ann/x", {"config/a.json": b"[]"})
    assert {entry.path for entry in ann.list_repo_tree("ann/x")} == {
        ".gitattributes",
        "README.md",
        "config",
        "config.json",
        "empty.txt",
        "weights.safetensors",
    }
    (inner,) = ann.list_repo_tree("ann/x", "config", expand=True)
    assert (inner.path, inner.last_commit.oid) == ("config/a.json", last)
    with pytest.raises(RemoteEntryNotFoundError):
        list(ann.list_repo_tree("ann/x", "nowhere"))
    found = ann.get_paths_info("ann/x", ["config", "weights.safetensors", "nowhere"])
    assert [(entry.path, getattr(entry, "size", None)) for entry in found] == [
        ("config", None),
        ("weights.safetensors", len(LARGE)),
    ]


# Who may do what.

SCOPES = ["repo.content.read", "repo.write"]
PEOPLE: dict[str, tuple[dict[str, Any] | None, bool, bool]] = {
    # who: (arguments of add_user, sees what is private, may write)
    "an administrator": ({"orgs": {"acme": "admin"}}, True, True),
    "a member who may write": ({"orgs": {"acme": "write"}}, True, True),
    "the same with a read token": ({"orgs": {"acme": "write"}, "role": "read"}, True, False),
    "a member who may read": ({"orgs": {"acme": "read"}}, True, False),
    "a fine-grained token for it": (
        {"orgs": {"acme": "write"}, "role": "fineGrained", "scopes": {"acme": SCOPES}},
        True,
        True,
    ),
    "one for reading it": (
        {"orgs": {"acme": "write"}, "role": "fineGrained", "scopes": {"acme/x": SCOPES[:1]}},
        True,
        False,
    ),
    "one for something else": (
        {"orgs": {"acme": "write"}, "role": "fineGrained", "scopes": {"ann": SCOPES}},
        False,
        False,
    ),
    "a stranger": ({}, False, False),
    "nobody": (None, False, False),
}


@pytest.mark.parametrize("who", PEOPLE)
@pytest.mark.parametrize("private", [False, True])
def test_who_may_read_and_write(hub: LoopbackHub, who: str, private: bool) -> None:
    account, sees, writes = PEOPLE[who]
    hub.commit("model", "acme/x", {"a.txt": b"1"})
    repo = hub.repo("model", "acme/x")
    assert repo is not None
    repo.private = private
    api = HfApi(token=False if account is None else hub.add_user("ann", **account))
    missing = 401 if account is None else 404

    def change() -> None:
        api.create_commit("acme/x", [CommitOperationAdd("b", b"2")], commit_message="Add b")

    reads = sees or not private
    assert refused(lambda: api.model_info("acme/x")) == (None if reads else missing)
    assert refused(lambda: api.hf_hub_download("acme/x", "a.txt")) == (None if reads else missing)
    denied = missing if not reads else 401 if account is None else 403
    for action in (
        change,
        lambda: api.create_tag("acme/x", tag="v1"),
        lambda: api.auth_check("acme/x", write=True),
        lambda: api.update_repo_settings("acme/x", gated="auto"),
        lambda: api.delete_repo("acme/x"),
    ):
        assert refused(action) == (None if writes else denied)
    created = refused(lambda: api.create_repo("acme/new"))
    assert created == (None if writes else 401 if account is None else 403)
    assert len(hub.requests("PUT", "^/lfs/")) == 0


def test_whoami_tells_the_role(hub: LoopbackHub) -> None:
    def access(**account: Any) -> dict[str, Any]:
        about = HfApi(token=hub.add_user("ann", **account)).whoami()
        assert (about["name"], [org["name"] for org in about["orgs"]]) == ("ann", ["acme"])
        return about["auth"]["accessToken"]

    assert access(orgs={"acme": "read"})["role"] == "write"
    assert access(role="read")["role"] == "read"
    fine = access(role="fineGrained")
    assert fine["role"] == "fineGrained"
    assert fine["fineGrained"]["scoped"] == [
        {"entity": {"type": "user", "name": "ann"}, "permissions": SCOPES}
    ]
    assert refused(lambda: HfApi(token="hf_wrong").whoami()) == 401


def test_the_client_knows_each_error(hub: LoopbackHub, ann: HfApi) -> None:
    stranger = HfApi(token=hub.add_user("bob"))
    nobody = HfApi(token=False)
    for api in (ann, nobody):
        with pytest.raises(RepositoryNotFoundError):
            api.model_info("ann/nothing")
    hub.commit("model", "ann/x", {"a": b"1"})
    repo = hub.repo("model", "ann/x")
    assert repo is not None
    with pytest.raises(RevisionNotFoundError):
        ann.hf_hub_download("ann/x", "a", revision="nowhere")
    with pytest.raises(RemoteEntryNotFoundError):
        ann.hf_hub_download("ann/x", "b")
    repo.gated = "manual"
    for api in (stranger, nobody):
        assert api.model_info("ann/x").gated == "manual"
        with pytest.raises(GatedRepoError):
            api.hf_hub_download("ann/x", "a")
    repo.grants.add("bob")
    stranger.hf_hub_download("ann/x", "a")
    repo.disabled = True
    with pytest.raises(DisabledRepoError):
        ann.model_info("ann/x")


@pytest.mark.usefixtures("hub")
def test_without_the_code_a_missing_repository_looks_forbidden(tmp_path: Path) -> None:
    with LoopbackHub(tmp_path / "real", http_compat=False) as other:
        api = HfApi(other.url)
        with pytest.raises(HfHubHTTPError) as caught:
            api.model_info("ann/nothing")
    assert not isinstance(caught.value, RepositoryNotFoundError)


def test_a_renamed_repository_is_found_under_its_old_id(hub: LoopbackHub, ann: HfApi) -> None:
    hub.commit("model", "ann/old", {"a": b"1", "w.bin": LARGE})
    hub.rename("model", "ann/old", "ann/new")
    assert hub.repo("model", "ann/old") is None
    assert ann.model_info("ann/old").id == "ann/new"
    assert Path(ann.hf_hub_download("ann/old", "w.bin")).read_bytes() == LARGE
    ann.upload_file(path_or_fileobj=b"2", path_in_repo="a", repo_id="ann/old")
    assert hub.files("model", "ann/new")["a"] == b"2"
    ann.move_repo("ann/new", "acme/newer")
    assert ann.model_info("ann/new").id == "acme/newer"
    assert refused(lambda: ann.move_repo("acme/newer", "bob/stolen")) == 403


def test_repositories_are_created_once_and_deleted(hub: LoopbackHub, ann: HfApi) -> None:
    url = ann.create_repo("ann/x", private=True)
    assert (url, url.repo_id) == (f"{hub.url}/ann/x", "ann/x")
    assert refused(lambda: ann.create_repo("ann/x")) == 409
    assert ann.create_repo("ann/x", exist_ok=True) == url
    ann.update_repo_settings("ann/x", private=False)
    assert HfApi(token=False).model_info("ann/x").private is False
    ann.delete_repo("ann/x")
    ann.delete_repo("ann/x", missing_ok=True)
    assert not ann.repo_exists("ann/x")


BAD_CARDS = {
    "license: Apache 2.0": "license",
    "base_model: /home/ann/model": "base_model",
    "datasets: [./data]": "datasets",
    "language: english": "language",
    "tags: morlaif": "tags",
    "tags: [1]": "tags",
    "a: [": "Invalid YAML",
}


@pytest.mark.parametrize("yaml", BAD_CARDS)
def test_cards_that_the_hub_refuses(hub: LoopbackHub, ann: HfApi, yaml: str) -> None:
    hub.commit("model", "ann/x", {"a": b""})
    card = f"---\n{yaml}\n---\nText"
    with pytest.raises(ValueError, match=BAD_CARDS[yaml]):
        ann.upload_file(path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id="ann/x")
    assert "README.md" not in hub.files("model", "ann/x")


# Collections.


def test_collections(hub: LoopbackHub, ann: HfApi) -> None:
    for number in range(6):
        hub.commit("model", f"ann/m{number}", {"a": b""})
    hub.commit("dataset", "ann/d", {"a": b""})
    made = ann.create_collection("My parts: all", description="What I made", namespace="acme")
    assert made.slug.startswith("acme/my-parts-all-")
    assert refused(lambda: ann.create_collection("My parts: all", namespace="acme")) == 409
    again = ann.create_collection("My parts: all", namespace="acme", exists_ok=True)
    assert again.slug == made.slug
    for number in range(6):
        ann.add_collection_item(made.slug, f"ann/m{number}", "model", note=f"Number {number}")
    got = ann.add_collection_item(made.slug, "ann/d", "dataset")
    assert [item.item_id for item in got.items] == [*(f"ann/m{n}" for n in range(6)), "ann/d"]
    assert [item.note for item in got.items[5:]] == ["Number 5", None]
    assert refused(lambda: ann.add_collection_item(made.slug, "ann/d", "dataset")) == 409
    ann.add_collection_item(made.slug, "ann/d", "dataset", exists_ok=True)
    assert refused(lambda: ann.add_collection_item(made.slug, "ann/nothing", "model")) == 404
    (listed,) = ann.list_collections(owner="acme", item="datasets/ann/d")
    assert (listed.slug, len(listed.items)) == (made.slug, 4)
    assert list(ann.list_collections(owner="ann")) == []
    last = got.items[-1].item_object_id
    ann.update_collection_item(made.slug, last, note="Moved", position=0)
    ann.delete_collection_item(made.slug, got.items[0].item_object_id)
    items = HfApi(token=False).get_collection(made.slug).items
    assert [(item.item_id, item.note) for item in items[:2]] == [
        ("ann/d", "Moved"),
        ("ann/m1", "Number 1"),
    ]
    assert hub.collections[made.slug]["title"] == "My parts: all"


def test_collections_of_others(hub: LoopbackHub, ann: HfApi) -> None:
    hub.commit("model", "ann/x", {"a": b""})
    repo = hub.repo("model", "ann/x")
    assert repo is not None
    repo.private = True
    made = ann.create_collection("Mine")
    ann.add_collection_item(made.slug, "ann/x", "model")
    bob, reader = HfApi(token=hub.add_user("bob")), HfApi(token=hub.add_user("ann", role="read"))
    assert bob.get_collection(made.slug).items == []  # it does not know of the repository
    for api in (bob, reader):
        assert refused(lambda api=api: api.delete_collection(made.slug)) == 403
    assert refused(lambda: reader.create_collection("Another")) == 403
    ann.update_collection_metadata(made.slug, private=True, title="Ours")
    assert refused(lambda: bob.get_collection(made.slug)) == 404
    assert reader.get_collection(made.slug).title == "Ours"
    ann.delete_collection(made.slug)
    assert refused(lambda: ann.get_collection(made.slug)) == 404
    ann.delete_collection(made.slug, missing_ok=True)


# Downloads.


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("bytes=0-9", LARGE[:10]),
        ("bytes=2097140-", LARGE[-12:]),
        ("bytes=-5", LARGE[-5:]),
        ("bytes=2097150-9999999", LARGE[-2:]),
        ("pages=1-2", LARGE),
    ],
    ids=["first", "from", "last", "past the end", "unknown"],
)
def test_parts_of_files(hub: LoopbackHub, wanted: str, expected: bytes) -> None:
    hub.commit("model", "ann/x", {"small.txt": LARGE, "large.bin": LARGE})
    for name in ("small.txt", "large.bin"):
        url = f"{hub.url}/ann/x/resolve/main/{name}"
        answer = httpx2.get(url, headers={"Range": wanted}, follow_redirects=True)
        assert answer.content == expected
        assert answer.status_code == (200 if expected == LARGE else 206)
        assert hub.log[-1].status == answer.status_code
        past = httpx2.get(url, headers={"Range": "bytes=2097152-"}, follow_redirects=True)
        assert (past.status_code, past.headers["Content-Range"]) == (416, "bytes */2097152")


def test_the_file_system_of_the_hub_reads_parts(hub: LoopbackHub, ann: HfApi) -> None:
    hub.commit("dataset", "ann/d", {"data/a.bin": LARGE})
    files = HfFileSystem(token=ann.token)
    assert files.ls("datasets/ann/d/data", detail=False) == ["datasets/ann/d/data/a.bin"]
    with files.open("datasets/ann/d/data/a.bin", block_size=1000) as file:
        file.seek(1_000_000)
        assert file.read(10) == LARGE[1_000_000:1_000_010]
    assert sum(record.bytes_out for record in hub.requests("GET", "^/lfs/")) < 10_000


def test_links_go_to_the_host_that_the_client_named(hub: LoopbackHub, ann: HfApi) -> None:
    local = hub.url.replace("127.0.0.1", "localhost")
    assert HfApi(local, token=ann.token).create_repo("ann/x") == f"{local}/ann/x"
    hub.commit("model", "ann/x", {"w.bin": LARGE})
    found = httpx2.head(f"{local}/ann/x/resolve/main/w.bin")
    assert found.status_code == 302
    assert found.headers["Location"].startswith(hub.cdn_url.replace("127.0.0.1", "localhost"))


def test_a_large_file_needs_a_signed_address(hub: LoopbackHub) -> None:
    hub.commit("model", "ann/x", {"w.bin": LARGE})
    location = httpx2.head(f"{hub.url}/ann/x/resolve/main/w.bin").headers["Location"]
    assert httpx2.get(location).content == LARGE
    assert httpx2.get(location.partition("?")[0]).status_code == 403
    assert httpx2.get(location.replace("sig=", "sig=0")).status_code == 403


def test_a_token_at_the_second_origin_is_noticed(hub: LoopbackHub, ann: HfApi) -> None:
    hub.commit("model", "ann/x", {"w.bin": LARGE})
    location = httpx2.head(f"{hub.url}/ann/x/resolve/main/w.bin").headers["Location"]
    for extra, headers in (
        ("", {"Authorization": f"Bearer {ann.token}"}),
        (f"&token={ann.token}", {}),
    ):
        httpx2.get(location + extra, headers=headers)
        assert [record.path for record in hub.leaks] == [location[len(hub.cdn_url) :].split("?")[0]]
        hub.clear_log()


# Faults.


def upload_one(api: HfApi) -> None:
    api.upload_file(path_or_fileobj=b"2", path_in_repo="b", repo_id="ann/x")


def test_a_status_is_answered_as_often_as_asked(hub: LoopbackHub, ann: HfApi) -> None:
    hub.commit("model", "ann/x", {"a": b"1"})
    headers = {"Retry-After": "7"}
    fault = hub.fault("POST", "/commit/", "status", status=429, headers=headers, times=2, skip=1)
    upload_one(ann)
    for _ in range(2):
        with pytest.raises(HfHubHTTPError) as caught:
            ann.upload_file(path_or_fileobj=b"3", path_in_repo="c", repo_id="ann/x")
        assert caught.value.response.status_code == 429
        assert caught.value.response.headers["Retry-After"] == "7"
    assert len(hub.commits("model", "ann/x")) == 3
    ann.upload_file(path_or_fileobj=b"3", path_in_repo="c", repo_id="ann/x")
    assert fault.hits == 2
    assert [r.fault for r in hub.requests(path="/commit/")] == [None, "status", "status", None]


def test_a_lost_answer_leaves_its_commit(hub: LoopbackHub, ann: HfApi) -> None:
    hub.commit("model", "ann/x", {"a": b"1"})
    fault = hub.fault("POST", "/commit/", "lost_response")
    with pytest.raises(httpx2.RemoteProtocolError):
        upload_one(ann)
    assert fault.hits == 1
    assert hub.files("model", "ann/x")["b"] == b"2"
    assert hub.requests(path="/commit/")[0].status is None


def test_a_dropped_request_does_nothing(hub: LoopbackHub, ann: HfApi) -> None:
    hub.commit("model", "ann/x", {"a": b"1"})
    hub.fault("POST", "/commit/", "drop", after_bytes=10)
    with pytest.raises(httpx2.TransportError):
        upload_one(ann)
    assert "b" not in hub.files("model", "ann/x")
    hub.fault("PUT", "/lfs/", "drop", after_bytes=100_000)
    ann.upload_file(path_or_fileobj=LARGE, path_in_repo="w.bin", repo_id="ann/x")
    first, second = hub.requests("PUT", "/lfs/")
    assert (first.status, second.status, second.bytes_in) == (None, 200, len(LARGE))
    assert first.bytes_in < len(LARGE)


def test_a_truncated_download_is_fetched_again(hub: LoopbackHub, ann: HfApi) -> None:
    hub.commit("model", "ann/x", {"w.bin": LARGE})
    hub.fault("GET", "/lfs/", "truncate", after_bytes=1000)
    assert Path(ann.hf_hub_download("ann/x", "w.bin")).read_bytes() == LARGE
    assert [record.bytes_out for record in hub.requests("GET", "/lfs/")] == [1000, len(LARGE)]


def test_a_corrupted_download_goes_unnoticed_by_the_client(hub: LoopbackHub, ann: HfApi) -> None:
    hub.commit("model", "ann/x", {"w.bin": LARGE})
    hub.fault("GET", "/lfs/", "corrupt", after_bytes=1_500_000)
    got = Path(ann.hf_hub_download("ann/x", "w.bin")).read_bytes()
    wrong = [place for place in range(len(LARGE)) if got[place] != LARGE[place]]
    assert wrong == [1_500_000]


def test_a_delayed_answer_holds_up_nobody_else(hub: LoopbackHub, ann: HfApi) -> None:
    hub.commit("model", "ann/x", {"a": b"1"})
    hub.fault("GET", "/api/models/ann/x", "delay", seconds=0.3)
    asked = Event()
    hub.before("GET", "/api/models/ann/x", asked.set)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(ann.model_info, "ann/x")
        asked.wait()
        ann.whoami()
        assert not slow.done()
        assert slow.result().id == "ann/x"


def test_an_unknown_kind_of_fault_is_an_error(hub: LoopbackHub) -> None:
    with pytest.raises(ValueError, match=r"'explode'; known: status, drop"):
        hub.fault("GET", "/", "explode")


# The other libraries.


def test_a_pushed_dataset_loads(ann: HfApi) -> None:
    rows = {"text": [f"row {number}" for number in range(50)], "label": list(range(50))}
    both = {"train": datasets.Dataset.from_dict(rows)}
    both["test"] = both["train"].select(range(5))
    datasets.DatasetDict(both).push_to_hub("ann/d", token=ann.token, private=True)
    with pytest.raises(datasets.exceptions.DatasetNotFoundError):
        datasets.load_dataset("ann/d", token=False)
    loaded = datasets.load_dataset("ann/d", token=ann.token)
    assert {name: split.to_dict() for name, split in loaded.items()} == {
        "train": rows,
        "test": {"text": rows["text"][:5], "label": rows["label"][:5]},
    }
    stream = datasets.load_dataset("ann/d", split="test", streaming=True, token=ann.token)
    assert [row["label"] for row in stream] == [0, 1, 2, 3, 4]


def test_models_and_adapters_load(ann: HfApi, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tests.tiny import save_tiny

    save_tiny(tmp_path / "base")
    ann.create_repo("ann/base", private=True)
    ann.upload_folder(repo_id="ann/base", folder_path=tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained("ann/base", token=ann.token)
    tokens = AutoTokenizer.from_pretrained("ann/base", token=ann.token)(
        "hello", return_tensors="pt"
    )
    adapted = get_peft_model(base, LoraConfig(r=2, init_lora_weights=False)).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    ModelCard("---\nbase_model: ann/base\n---\n").save(tmp_path / "adapter" / "README.md")
    ann.create_repo("ann/adapter")
    ann.upload_folder(repo_id="ann/adapter", folder_path=tmp_path / "adapter")
    again = AutoModelForCausalLM.from_pretrained("ann/base", token=ann.token)
    loaded = PeftModel.from_pretrained(again, "ann/adapter", token=ann.token).eval()
    with torch.no_grad():
        assert torch.equal(loaded(**tokens).logits, adapted(**tokens).logits)
    assert "base_model:adapter:ann/base" in (ann.model_info("ann/adapter").tags or [])


# Processes of their own.

ROUND_TRIP = """
import sys
from pathlib import Path
from huggingface_hub import HfApi, get_token

api = HfApi()
api.create_repo("ann/x", private=True)
api.upload_folder(repo_id="ann/x", folder_path="up")
got = Path(api.snapshot_download("ann/x"))
for path in Path("up").rglob("*"):
    if path.is_file():
        assert (got / path.relative_to("up")).read_bytes() == path.read_bytes(), path
"""


@pytest.mark.parametrize("xet", [True, False])
def test_a_round_trip_with_and_without_xet(
    hub: LoopbackHub, ann: HfApi, tmp_path: Path, xet: bool
) -> None:
    home = tmp_path / "home"
    write(home / "up")
    # Xet finds what repeats: this file is a few chunks over and over, and a part of one.
    write(home / "up", {"repeats.bin": LARGE[:-100_000], "reversed.bin": LARGE[::-1][5:]})
    done = run_child(ROUND_TRIP, hub=hub, home=home, token=hub.add_user("ann"), xet=xet)
    assert done.returncode == 0, done.stderr
    assert hub.files("model", "ann/x")["weights.safetensors"] == LARGE
    used = {
        path: bool(hub.requests(path=path)) for path in ("/xorbs/", "/reconstructions/", "/lfs/")
    }
    assert used == {"/xorbs/": xet, "/reconstructions/": xet, "/lfs/": not xet}
    # Whoever has no Xet gets the file as well.
    assert Path(ann.hf_hub_download("ann/x", "weights.safetensors")).read_bytes() == LARGE
    offline = 'from huggingface_hub import snapshot_download as s; print(s("ann/x"))'
    hub.clear_log()
    done = run_child(offline, hub=hub, home=home, offline=True)
    assert contents(done.stdout.strip())["weights.safetensors"] == LARGE
    assert hub.log == []


def test_a_child_that_prints_its_token_is_caught(hub: LoopbackHub, tmp_path: Path) -> None:
    for stream in ("stdout", "stderr"):
        script = f"import os, sys; print(os.environ['HF_TOKEN'], file=sys.{stream})"
        with pytest.raises(AssertionError, match="the token"):
            run_child(script, hub=hub, home=tmp_path, token=hub.add_user("ann"))


# The server's own life.

RUDE_CLIENTS = """
import socket, sys, threading
from pathlib import Path
from tests.hub_server import LoopbackHub

hub = LoopbackHub(Path(sys.argv[1]))
with hub:
    hub.fault("GET", "/slow", "delay", seconds=60)
    hub.fault("GET", "/cut", "lost_response")
    host = ("127.0.0.1", int(hub.url.rpartition(":")[2]))
    arrived = threading.Semaphore(0)
    hub.before("*", "", arrived.release, times=4)
    asked = [socket.create_connection(host) for _ in range(4)]
    for connection, path in zip(asked, ("/slow", "/cut", "/api/models")):
        connection.sendall(f"GET {path} HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n".encode())
    asked[-1].sendall(b"POST /x HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 9\\r\\n\\r\\n{")
    for _ in asked:
        arrived.acquire()
    asked.pop().close()
for connection in asked:
    connection.close()
assert threading.active_count() == 1, threading.enumerate()
"""


def test_the_server_stops_without_a_word(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", RUDE_CLIENTS, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.usefixtures("hub")
def test_a_folder_is_served_again(tmp_path: Path) -> None:
    root = tmp_path / "kept"
    with LoopbackHub(root) as first:
        api = HfApi(first.url, token=first.add_user("ann"))
        first.commit("model", "ann/x", {"w.bin": LARGE})
        first.rename("model", "ann/x", "ann/y")
        slug = api.create_collection("Kept").slug
    command = [sys.executable, "-m", "tests.hub_server", str(root), "--user", "bob:hf_secret:read"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as served:
        assert served.stdout is not None
        address = served.stdout.readline().strip().removeprefix("HF_ENDPOINT=")
        api = HfApi(address, token="hf_secret")
        assert api.whoami()["auth"]["accessToken"]["role"] == "read"
        assert Path(api.hf_hub_download("ann/x", "w.bin")).read_bytes() == LARGE
        assert api.get_collection(slug).title == "Kept"
        served.terminate()


def test_a_taken_port_is_an_error(hub: LoopbackHub, tmp_path: Path) -> None:
    port = int(hub.url.rpartition(":")[2])
    with pytest.raises(OSError, match="in use"):
        LoopbackHub(tmp_path / "second", port=port).start()
