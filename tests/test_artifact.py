"""Artifacts: written whole or not at all, refused when a byte, a link or a format is wrong."""

import hashlib
import json
import stat
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from morlaif_hub.errors import ArtifactError, ManifestError, WorkspaceError
from morlaif_hub.hub.artifact import (
    cache_folder,
    figure_names,
    is_pointer,
    open_artifact,
    seal,
    stage,
    weights_sha256,
)
from morlaif_hub.hub.manifest import (
    BankManifest,
    FeedbackManifest,
    Manifest,
    PreferenceModelManifest,
    read_manifest,
)
from tests.manifests import base_manifest, every_kind, feedback_manifest, preference_model_manifest

WEIGHTS = "adapter_model.safetensors"

Tensors = dict[str, tuple[str, list[int], bytes]]


def write_safetensors(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> None:
    """Write tensors in the given order, which the format leaves open."""
    header: dict[str, object] = {} if metadata is None else {"__metadata__": metadata}
    data = b""
    for name, (dtype, shape, content) in tensors.items():
        offsets = [len(data), len(data) + len(content)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        data += content
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def write_shards(folder: Path, shards: list[Tensors]) -> None:
    weight_map = {}
    for i, tensors in enumerate(shards):
        name = f"model-{i}.safetensors"
        write_safetensors(folder / name, tensors, {"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, name))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A sealed preference model with a figure."""
    folder = tmp_path / "pms" / "conciseness"
    with stage(folder) as staged:
        (staged / "figures").mkdir()
        (staged / "figures" / "scores.png").write_bytes(b"\x89PNG")
        (staged / WEIGHTS).write_bytes(b"weights")
        (staged / "LICENSE").write_text("text of the licence\n")
        seal(staged, preference_model_manifest())
    return folder


def replace_folder(folder: Path, *, fail: bool = False) -> None:
    """Write a version in which all that is there is the file `new`; stop half-way on demand."""
    with stage(folder) as staged:
        (staged / "new").write_text("x")
        if fail:
            raise KeyboardInterrupt


def test_stage_replaces_the_old_version(model: Path) -> None:
    replace_folder(model)
    assert [path.name for path in model.iterdir()] == ["new"]
    assert list(model.parent.iterdir()) == [model]


def test_stage_leaves_the_old_version_when_the_block_fails(model: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        replace_folder(model, fail=True)
    open_artifact(model, PreferenceModelManifest)
    assert list(model.parent.iterdir()) == [model]


def test_stage_leaves_nothing_behind_when_a_first_version_fails(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        replace_folder(tmp_path / "pms" / "first", fail=True)
    assert list((tmp_path / "pms").iterdir()) == []


def test_the_old_version_is_there_until_the_block_ends(model: Path) -> None:
    with stage(model) as staged:
        assert staged.parent == model.parent
        open_artifact(model, PreferenceModelManifest)
        (staged / "new").write_text("x")


def test_stage_puts_the_old_version_back_when_the_new_one_cannot_take_its_place(
    model: Path,
) -> None:
    def lose_the_new_version() -> None:
        with stage(model) as staged:
            staged.rmdir()

    with pytest.raises(WorkspaceError, match=r"cannot be written: No such file"):
        lose_the_new_version()
    open_artifact(model, PreferenceModelManifest)
    assert list(model.parent.iterdir()) == [model]


KILLED_IN_STAGE = """
import os, sys
from pathlib import Path
from morlaif_hub.hub.artifact import stage

def die(*_):
    os._exit(9)

with stage(Path(sys.argv[1])) as staged:
    (staged / "half").write_text("x")
    if sys.argv[2] == "in the block":
        die()
    rename = Path.rename
    Path.rename = lambda path, to: die() if path == staged else rename(path, to)
"""


def be_killed(folder: Path, moment: str) -> None:
    """Let another process end in the middle of writing a folder, without its clean-up."""
    command = [sys.executable, "-c", KILLED_IN_STAGE, str(folder), moment]
    assert subprocess.run(command, check=False, timeout=60).returncode == 9


def test_what_a_killed_process_staged_is_removed_by_the_next(model: Path) -> None:
    be_killed(model, "in the block")
    assert len(list(model.parent.iterdir())) == 2
    with pytest.raises(KeyboardInterrupt):
        replace_folder(model, fail=True)
    assert list(model.parent.iterdir()) == [model]
    open_artifact(model, PreferenceModelManifest)


def test_a_version_that_a_killed_process_moved_away_is_put_back(model: Path) -> None:
    be_killed(model, "between the renames")
    assert not model.exists()
    with pytest.raises(KeyboardInterrupt):
        replace_folder(model, fail=True)
    open_artifact(model, PreferenceModelManifest)
    assert list(model.parent.iterdir()) == [model]


def test_stage_leaves_alone_what_others_use(model: Path) -> None:
    be_killed(model.with_name("other"), "in the block")
    others = set(model.parent.iterdir())
    with stage(model) as mine:
        replace_folder(model)  # within one process, and so alive
        assert mine.is_dir()
    assert set(model.parent.iterdir()) == others


def test_stage_writes_where_a_link_leads(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    replace_folder(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "new").is_file()


def test_a_staged_folder_has_the_permissions_of_any_new_folder(tmp_path: Path) -> None:
    replace_folder(tmp_path / "staged")
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "staged").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("place", ["file", "file/below", "file/further/below"])
def test_a_place_that_cannot_be_written_is_named(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WorkspaceError, match=str(tmp_path / place)):
        replace_folder(tmp_path / place)
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize("manifest", every_kind(), ids=lambda manifest: manifest.kind)
def test_what_was_sealed_opens_as_it_was(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "README.md").write_text("a file like others")
    sealed = seal(tmp_path, manifest)
    assert [entry.path for entry in sealed.files] == ["sub/README.md"]
    assert open_artifact(tmp_path, type(manifest)) == sealed
    assert seal(tmp_path, sealed) == sealed


def test_seal_lists_size_and_hash_of_every_other_file(model: Path) -> None:
    files = read_manifest(model, PreferenceModelManifest).files
    assert [entry.path for entry in files] == ["LICENSE", WEIGHTS, "figures/scores.png"]
    assert (files[1].size, files[1].sha256) == (7, hashlib.sha256(b"weights").hexdigest())


def test_seal_shows_the_figures_on_the_card(model: Path) -> None:
    card = (model / "README.md").read_text()
    assert "![histogram of raw scores](figures/scores.png)" in card
    assert figure_names(read_manifest(model, PreferenceModelManifest).files) == ["scores.png"]


def test_seal_writes_nothing_that_could_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"made_from: control character '\\x1b'"):
        seal(tmp_path, base_manifest(made_from="\x1b[31m"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_opened_as_its_own_kind_only(model: Path) -> None:
    with pytest.raises(ManifestError, match=r"kind is 'preference-model', but a bank is wanted"):
        open_artifact(model, BankManifest)


def test_a_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"no readable morlaif\.json"):
        open_artifact(tmp_path, BankManifest)


@settings(max_examples=30, deadline=None)
@given(position=st.integers(0, 6), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found(
    position: int, bit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("flipped")
    (folder / WEIGHTS).write_bytes(b"weights")
    seal(folder, preference_model_manifest())
    damaged = bytearray(b"weights")
    damaged[position] ^= 1 << bit
    (folder / WEIGHTS).write_bytes(damaged)
    with pytest.raises(ArtifactError, match=rf"{folder}: {WEIGHTS}: its bytes are not"):
        open_artifact(folder, PreferenceModelManifest)


def test_a_file_of_another_size_is_found(model: Path) -> None:
    (model / WEIGHTS).write_bytes(b"weights and more")
    with pytest.raises(ArtifactError, match=rf"{model}: {WEIGHTS}: has 16 bytes, where .* says 7"):
        open_artifact(model, PreferenceModelManifest)


@pytest.mark.parametrize("path", [WEIGHTS, "LICENSE", "figures/scores.png"])
def test_a_missing_file_is_found(path: str, model: Path) -> None:
    (model / path).unlink()
    with pytest.raises(ArtifactError, match=rf"{model}: {path}: listed in morlaif.json, but not"):
        open_artifact(model, PreferenceModelManifest)


def test_a_folder_in_the_place_of_a_file_is_found(model: Path) -> None:
    (model / WEIGHTS).unlink()
    (model / WEIGHTS).mkdir()
    with pytest.raises(ArtifactError, match=rf"{WEIGHTS}: listed in morlaif.json, but not there"):
        open_artifact(model, PreferenceModelManifest)


@pytest.mark.parametrize("name", ["model.safetensors", "sub/MODEL.SAFETENSORS"])
def test_weights_that_are_not_listed_are_refused(name: str, model: Path) -> None:
    (model / "sub").mkdir()
    (model / name).write_bytes(b"")
    with pytest.raises(ArtifactError, match=rf"{model}: {name}: weights that .* does not list"):
        open_artifact(model, PreferenceModelManifest)


def test_other_files_may_be_there_without_being_listed(model: Path) -> None:
    (model / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    open_artifact(model, PreferenceModelManifest)


@pytest.mark.parametrize("ending", ["bin", "pt", "pkl", "pth", "ckpt", "BIN"])
def test_pickles_are_refused_listed_or_not(ending: str, model: Path) -> None:
    (model / f"weights.{ending}").write_bytes(b"")
    with pytest.raises(ArtifactError, match=rf"weights\.{ending}: may run code"):
        open_artifact(model, PreferenceModelManifest)
    with pytest.raises(ArtifactError, match=rf"weights\.{ending}: may run code"):
        seal(model, preference_model_manifest())


@pytest.mark.parametrize(
    "target", ["/etc/hostname", "../secret", "../../secret", "loop", "nowhere"]
)
def test_a_link_that_leads_out_of_the_folder_is_refused(target: str, model: Path) -> None:
    for folder in (model.parent, model.parent.parent):
        (folder / "secret").write_text("not yours")
    (model / "loop").symlink_to(target)
    with pytest.raises(ArtifactError, match=rf"{model}: loop: (a link that leads|not a plain)"):
        open_artifact(model, PreferenceModelManifest)
    with pytest.raises(ArtifactError, match=rf"{model}: loop: (a link that leads|not a plain)"):
        seal(model, preference_model_manifest())


def test_a_listed_file_behind_a_linked_folder_is_refused(model: Path) -> None:
    (model / "figures").rename(model.parent / "figures")
    (model / "figures").symlink_to(model.parent / "figures")
    with pytest.raises(ArtifactError, match=rf"{model}: figures: a link that leads"):
        open_artifact(model, PreferenceModelManifest)


def test_a_link_within_the_folder_is_a_file(model: Path) -> None:
    (model / "licence").symlink_to("LICENSE")
    sealed = seal(model, preference_model_manifest())
    assert "licence" in [entry.path for entry in sealed.files]
    open_artifact(model, PreferenceModelManifest)


def test_only_the_hub_cache_may_link_to_its_own_blobs(model: Path, tmp_path: Path) -> None:
    def cached(repo: Path, blobs: str) -> Path:
        snapshot = repo / "snapshots" / "abc"
        snapshot.parent.mkdir(parents=True)
        model.rename(snapshot)
        (repo / blobs).mkdir()
        (snapshot / WEIGHTS).rename(repo / blobs / "f00")
        (snapshot / WEIGHTS).symlink_to(f"../../{blobs}/f00")
        return snapshot

    snapshot = cached(tmp_path / "models--ann--pm", "blobs")
    open_artifact(snapshot, PreferenceModelManifest)
    (snapshot / "licence").symlink_to("../../snapshots")
    with pytest.raises(ArtifactError, match=r"licence: a link that leads"):
        open_artifact(snapshot, PreferenceModelManifest)
    (snapshot / "licence").unlink()
    snapshot.rename(model)  # the same links, but not in a place that looks like the Hub's cache
    with pytest.raises(ArtifactError, match=rf"{WEIGHTS}: (a link that leads|not a plain)"):
        open_artifact(model, PreferenceModelManifest)


def cached_over_xet(model: Path, cache: Path) -> tuple[Path, Path]:
    """Lay a model out as the Hub's cache keeps it after Xet; return the snapshot and the weights.

    There a repository's large blobs are links into a store that all repositories share.
    """
    repository, name = cache / "models--ann--pm", "ab" + "0" * 62
    snapshot, shared = repository / "snapshots" / "abc", cache / "blobs" / "ab" / name
    for folder in (snapshot.parent, repository / "blobs", shared.parent):
        folder.mkdir(parents=True)
    model.rename(snapshot)
    (snapshot / WEIGHTS).rename(shared)
    (repository / "blobs" / "f00").symlink_to(f"../../blobs/ab/{name}")
    (snapshot / WEIGHTS).symlink_to("../../blobs/f00")
    return snapshot, shared


def test_the_hub_cache_may_link_to_what_its_repositories_share(model: Path, tmp_path: Path) -> None:
    snapshot, _ = cached_over_xet(model, tmp_path / "cache")
    open_artifact(snapshot, PreferenceModelManifest)
    (tmp_path / "cache" / "secret").write_text("not yours")
    (snapshot / "licence").symlink_to("../../../secret")
    with pytest.raises(ArtifactError, match=r"licence: a link that leads"):
        open_artifact(snapshot, PreferenceModelManifest)
    (snapshot / "licence").unlink()
    elsewhere = tmp_path / "cache" / "a-folder-of-mine"
    snapshot.parent.parent.rename(elsewhere)
    with pytest.raises(ArtifactError, match=rf"{WEIGHTS}: a link that leads"):
        open_artifact(elsewhere / "snapshots" / "abc", PreferenceModelManifest)


def test_a_damaged_file_that_came_over_xet_is_removed_for_good(model: Path, tmp_path: Path) -> None:
    """Every place is cleared: the Hub's client takes what is left, if its size is right."""
    snapshot, shared = cached_over_xet(model, tmp_path / "cache")
    shared.write_bytes(bytes(reversed(shared.read_bytes())))
    with pytest.raises(ArtifactError, match=rf"{WEIGHTS}: .*try again to download it anew"):
        open_artifact(snapshot, PreferenceModelManifest)
    left = [*snapshot.rglob(WEIGHTS), *(snapshot.parent.parent / "blobs").iterdir()]
    assert [path for path in (shared, *left) if path.exists() or path.is_symlink()] == []


def test_a_data_set_says_where_its_splits_are(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("train-00000.parquet", "test-00000.parquet"):
        (tmp_path / "data" / name).write_bytes(b"PAR1")
    seal(tmp_path, feedback_manifest())
    card = (tmp_path / "README.md").read_text()
    assert "- split: train\n    path:\n    - data/train-00000.parquet\n" in card
    open_artifact(tmp_path, FeedbackManifest)


tensors_strategy = st.dictionaries(
    st.text(st.characters(codec="utf-8"), max_size=8).filter(lambda name: name != "__metadata__"),
    st.binary(max_size=24).map(lambda data: ("U8", [len(data)], data)),
    max_size=6,
)


@settings(max_examples=50, deadline=None)
@given(tensors=tensors_strategy, data=st.data())
def test_one_file_and_any_shards_of_the_same_tensors_have_one_hash(
    tensors: Tensors, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    single, sharded = tmp_path_factory.mktemp("single"), tmp_path_factory.mktemp("sharded")
    write_safetensors(single / "model.safetensors", tensors)
    shards: list[Tensors] = [{}, {}, {}]
    for name in data.draw(st.permutations(list(tensors))):
        shards[data.draw(st.integers(0, 2))][name] = tensors[name]
    write_shards(sharded, shards)
    assert weights_sha256(single) == weights_sha256(sharded)


BASE: Tensors = {"a": ("F32", [2, 1], bytes(range(8))), "b": ("F16", [2], b"wxyz")}


@pytest.mark.parametrize(
    "other",
    [
        {**BASE, "a": ("F32", [2, 1], bytes(range(1, 9)))},
        {**BASE, "a": ("F32", [1, 2], bytes(range(8)))},
        {**BASE, "b": ("BF16", [2], b"wxyz")},
        {"a": BASE["a"]},
        {"a": BASE["a"], "c": BASE["b"]},
        {"a": ("F16", [4], BASE["a"][2]), "b": ("F16", [2], b"wxyz")},
    ],
    ids=["bytes", "shape", "type", "fewer", "name", "type and shape"],
)
def test_other_tensors_have_another_hash(other: Tensors, tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", BASE)
    before = weights_sha256(tmp_path)
    write_safetensors(tmp_path / "model.safetensors", other)
    assert weights_sha256(tmp_path) != before


def test_metadata_order_and_adapters_do_not_change_the_hash(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", BASE)
    before = weights_sha256(tmp_path)
    backwards = dict(reversed(BASE.items()))
    write_safetensors(tmp_path / "model.safetensors", backwards, {"format": "pt"})
    write_safetensors(tmp_path / WEIGHTS, BASE)
    assert weights_sha256(tmp_path) == before


def test_the_hash_is_the_documented_one(tmp_path: Path) -> None:
    """It is in manifests on the Hub, so it may never change."""
    write_safetensors(tmp_path / "model.safetensors", BASE)
    rows = [
        [name, [d, shape, hashlib.sha256(b).hexdigest()]] for name, (d, shape, b) in BASE.items()
    ]
    text = json.dumps(rows, separators=(",", ":"))
    assert weights_sha256(tmp_path) == hashlib.sha256(text.encode()).hexdigest()


def test_the_hash_reads_what_the_safetensors_library_writes(tmp_path: Path) -> None:
    weight = torch.arange(3_000_000, dtype=torch.float32)  # more than one chunk
    save_file({"weight": weight, "empty": torch.empty(0, 4)}, tmp_path / "model.safetensors")
    before = weights_sha256(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    content = weight.numpy().tobytes()
    write_shards(
        tmp_path, [{"weight": ("F32", [3_000_000], content)}, {"empty": ("F32", [0, 4], b"")}]
    )
    assert weights_sha256(tmp_path) == before


@settings(max_examples=200, deadline=None)
@given(
    content=st.binary(max_size=64)
    | st.binary(max_size=64).map(lambda text: struct.pack("<Q", len(text)) + text)
)
def test_bytes_that_are_no_safetensors_file_are_said_to_be_so(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    (folder / "model.safetensors").write_bytes(content)
    if content[8:].strip() == b"{}" or is_pointer(folder / "model.safetensors"):
        return
    with pytest.raises(ArtifactError, match=r"model\.safetensors: not a safetensors file"):
        weights_sha256(folder)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 4000]},
        {"dtype": "F32", "shape": [1], "data_offsets": [-8, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**70]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0.0, 4.0]},
        {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1]},
        "F32",
    ],
)
def test_a_header_that_does_not_fit_the_file_is_refused(entry: object, tmp_path: Path) -> None:
    text = json.dumps({"a": entry}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    with pytest.raises(ArtifactError, match=r"not a safetensors file"):
        weights_sha256(tmp_path)


def test_a_deeply_nested_header_is_refused(tmp_path: Path) -> None:
    text = b"[" * 1_000_000
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(ArtifactError, match=r"not a safetensors file"):
        weights_sha256(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    write_safetensors(tmp_path / WEIGHTS, BASE)
    with pytest.raises(ArtifactError, match=r"has neither model\.safetensors nor"):
        weights_sha256(tmp_path)


@pytest.mark.parametrize("name", ["../model-0.safetensors", "missing.safetensors", 3, None])
def test_a_shard_that_is_not_a_file_of_the_folder_is_refused(name: object, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    write_safetensors(tmp_path / "model-0.safetensors", BASE)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ArtifactError, match=r"shard .* is not a file beside it"):
        weights_sha256(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": []}'])
def test_an_index_of_another_make_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"not an index of shards"):
        weights_sha256(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, [BASE, BASE])
    index = {"weight_map": {"a": "model-0.safetensors", "b": "model-1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ArtifactError, match=r"tensor 'a' is in another shard as well"):
        weights_sha256(tmp_path)


def test_the_cache_is_made_for_its_owner_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MORLAIF_CACHE", str(tmp_path / "far" / "cache"))
    assert cache_folder() == tmp_path / "far" / "cache"
    assert stat.S_IMODE(cache_folder().stat().st_mode) == 0o700
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MORLAIF_CACHE", "")
    assert cache_folder() == tmp_path / ".cache" / "morlaif"


def test_a_cache_that_cannot_be_made_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MORLAIF_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(WorkspaceError, match=r"set MORLAIF_CACHE to a folder"):
        cache_folder()
