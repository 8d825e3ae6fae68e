"""The cards in model_cards/ and dataset_cards/ are what their manifests say.

If one of these fails: `make cards`, after `make quickstart` where the folders are empty.
"""

import hashlib
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from morlaif_hub.hub.artifact import figure_names, seal
from morlaif_hub.hub.cards import render_card
from morlaif_hub.hub.manifest import (
    MANIFESTS,
    Manifest,
    manifest_kind,
    read_manifest,
)
from morlaif_hub.workspace import Workspace
from tests.manifests import bank_manifest, feedback_manifest, preference_model_manifest

ROOT = Path(__file__).parent.parent
KINDS = {"model_cards": {"preference-model", "bank"}, "dataset_cards": {"feedback-dataset"}}


def published(root: Path) -> list[Path]:
    """Return every folder in the two homes of cards, with a manifest or not."""
    return sorted(folder for home in KINDS for folder in (root / home).glob("*/"))


def faults(folder: Path) -> list[str]:
    """Return what is wrong with the folder of a card."""
    kind = manifest_kind(folder)
    if kind not in KINDS[folder.parent.name]:
        return [f"{folder}: holds a {kind}"]
    manifest: Manifest = read_manifest(folder, MANIFESTS[kind])
    figures = figure_names(manifest.files)
    expected = {"morlaif.json", "README.md", *(f"figures/{name}" for name in figures)}
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    if there != expected:
        return [f"{folder}: {', '.join(sorted(there ^ expected))} missing or too much"]
    hashes = {entry.path: entry.sha256 for entry in manifest.files}
    found = [
        f"{folder}: {path} is not the one of the manifest"
        for path in sorted(expected & set(hashes))
        if hashlib.sha256((folder / path).read_bytes()).hexdigest() != hashes[path]
    ]
    card = (folder / "README.md").read_text(encoding="utf-8")
    if card != render_card(manifest, figures=figures):
        found.append(f"{folder}: README.md is not what the manifest says now")
    return found


def script() -> ModuleType:
    spec = spec_from_file_location("collect_cards", ROOT / "docs/collect_cards.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_cards_of_the_quickstart_are_here() -> None:
    kinds = [manifest_kind(folder) for folder in published(ROOT)]
    for kind, least in (("preference-model", 3), ("feedback-dataset", 3), ("bank", 1)):
        assert kinds.count(kind) >= least, (
            f"{kinds.count(kind)} cards of the kind {kind}, expected {least}: run "
            "`make quickstart`, then `make cards`"
        )


def test_every_card_is_what_its_manifest_says() -> None:
    found = [fault for folder in published(ROOT) for fault in faults(folder)]
    assert found == [], "run `make cards`"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace(tmp_path / "morlaif")
    for folder, manifest, figure in (
        (made.preference_model("conciseness"), preference_model_manifest(repo_id=None), "scores"),
        (made.feedback("conciseness"), feedback_manifest(), "position_bias"),
        (made.bank, bank_manifest(repo_id=None), "correlations"),
    ):
        (folder / "figures").mkdir(parents=True)
        (folder / f"figures/{figure}.png").write_bytes(b"png")
        (folder / "adapter_model.safetensors").write_bytes(b"weights")
        seal(folder, manifest)
    return made


def test_cards_are_collected_without_weights_or_data(workspace: Workspace, tmp_path: Path) -> None:
    collect_cards = script()
    assert len(collect_cards.collect(workspace, tmp_path)) == 3
    assert len(collect_cards.render_all(tmp_path)) == 3
    folders = published(tmp_path)
    assert [folder.relative_to(tmp_path).as_posix() for folder in folders] == [
        "dataset_cards/feedback-conciseness",
        "model_cards/bank",
        "model_cards/pm-conciseness",
    ]
    assert [faults(folder) for folder in folders] == [[], [], []]
    card = (tmp_path / "model_cards/pm-conciseness/README.md").read_text(encoding="utf-8")
    assert "(figures/scores.png)" in card
    assert len(collect_cards.collect(workspace, tmp_path)) == 3  # in place of what was there


def test_a_card_that_is_out_of_date_is_found(workspace: Workspace, tmp_path: Path) -> None:
    collect_cards = script()
    collect_cards.collect(workspace, tmp_path)
    folder = tmp_path / "model_cards/pm-conciseness"
    assert "README.md missing or too much" in faults(folder)[0]
    collect_cards.render_all(tmp_path)
    (folder / "figures/scores.png").write_bytes(b"another")
    (folder / "README.md").write_text("# Another", encoding="utf-8")
    assert len(faults(folder)) == 2
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    assert "adapter_model.safetensors missing or too much" in faults(folder)[0]
    changed = replace(preference_model_manifest(), license="MIT")
    (tmp_path / "dataset_cards/x").mkdir()
    seal(tmp_path / "dataset_cards/x", changed)
    assert "holds a preference-model" in faults(tmp_path / "dataset_cards/x")[0]
