"""A preference model goes onto the weights that it was made for, by their hash, and onto no others.

The golden scores hold the same line where the hash cannot: their tolerance lets pass what the same
weights do, and refuses rounded ones.
"""

import shutil
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from benchmarks.golden import Bench, Row, bounds, other_weights, same_weights
from morlaif_hub.bank.bank import PMBank
from morlaif_hub.bank.engine import Engine
from morlaif_hub.bank.packed import PackedScorer
from morlaif_hub.errors import ArtifactError, BaseMismatchError, MorlaifHubError
from morlaif_hub.hub.artifact import seal
from morlaif_hub.hub.client import Resolved, fetch
from morlaif_hub.hub.manifest import (
    BaseManifest,
    GoldenScores,
    PreferenceModelManifest,
    read_manifest,
)
from morlaif_hub.models.language_model import base_identity, load_tokenizer, model_folder
from morlaif_hub.preference_models.measure import GOLDEN_TOLERANCE
from morlaif_hub.workspace import Workspace
from tests.manifests import COMMIT, VERSIONS, sha256
from tests.test_bank import make_pm
from tests.tiny import save_tiny, tiny_causal_lm, tiny_tokenizer

REPO = "ann/morlaif-base-tiny"


def weights_of(folder: Path) -> str:
    return base_identity(folder).weights_sha256  # model_folder would remember it


def declare(pm: Path, **changes: Any) -> Path:
    """Let a preference model say something else of its base, and so forge it."""
    manifest = read_manifest(pm, PreferenceModelManifest)
    seal(pm, replace(manifest, base=replace(manifest.base, **changes)))
    return pm


def save_copy(base: Path, folder: Path, *, dtype: str = "float32", **options: Any) -> Path:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    model.save_pretrained(folder, **options)
    load_tokenizer(base).save_pretrained(folder)
    return folder


def save_wide(folder: Path) -> Path:
    config = tiny_causal_lm(layers=4).config.to_dict()
    with torch.random.fork_rng(devices=[]):
        wide = LlamaConfig(**{**config, "hidden_size": 64, "head_dim": 16})
        LlamaForCausalLM(wide).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("base"), layers=4)


@pytest.fixture(scope="module")
def workspace(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Two preference models whose tolerance is that of real ones: a fraction of their spread."""
    workspace = Workspace(tmp_path_factory.mktemp("workspace"))
    for seed, name in enumerate(("conciseness", "detail")):
        folder = make_pm(workspace.preference_model(name), base, name, layers=[2, 3], seed=seed)
        manifest = read_manifest(folder, PreferenceModelManifest)
        scores = manifest.golden.scores
        std = statistics.pstdev(scores)
        changed = replace(
            manifest,
            calibration=replace(manifest.calibration, std=std),
            golden=GoldenScores(scores=scores, tolerance=GOLDEN_TOLERANCE * std),
        )
        seal(folder, changed)
    return workspace


@pytest.fixture
def pm(workspace: Workspace, tmp_path: Path) -> Path:
    return Path(shutil.copytree(workspace.preference_model("conciseness"), tmp_path / "pm"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Path | None], None]:
    """Give a test an empty cache, and a Hub that has one folder under every name, or must rest."""
    monkeypatch.setenv("MORLAIF_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MORLAIF_EMBEDDED_MODEL", raising=False)

    def has(folder: Path | None) -> None:
        def fetched(source: str | Path, **options: Any) -> Resolved:
            if Path(source).is_absolute():
                return fetch(source, **options)
            assert folder is not None, f"{source} was asked for on the Hub"
            return Resolved(folder, REPO, COMMIT)

        monkeypatch.setattr("morlaif_hub.models.language_model.fetch", fetched)

    return has


def sharded(base: Path, folder: Path) -> Path:
    save_copy(base, folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def cached(base: Path, folder: Path) -> Path:
    """Lay a copy out as the Hub's cache does, where the files of a commit are links."""
    snapshot, blobs = folder / "snapshots" / COMMIT, folder / "blobs"
    snapshot.mkdir(parents=True)
    shutil.copytree(base, blobs)
    for blob in blobs.iterdir():
        (snapshot / blob.name).symlink_to(f"../../blobs/{blob.name}")
    return snapshot


def described(base: Path, folder: Path) -> Path:
    """Copy a base with a manifest of its own, as one that was published has it."""
    shutil.copytree(base, folder)
    identity = replace(base_identity(base), repo_id="bob/another-name", source="hub")
    manifest = BaseManifest(license="mit", base=identity, made_from="a test", versions=VERSIONS)
    seal(folder, manifest)
    return folder


@pytest.mark.parametrize("layout", [shutil.copytree, sharded, cached, described])
def test_a_base_is_matched_by_its_tensors_whatever_its_folder_looks_like(
    layout: Callable[[Path, Path], Any], base: Path, pm: Path, tmp_path: Path
) -> None:
    copy = Path(layout(base, tmp_path / "somewhere else"))
    assert weights_of(copy) == weights_of(base)
    expected = PMBank.from_pretrained(pm, base=base).score(["Is it?"], ["It is."])
    assert torch.equal(
        PMBank.from_pretrained(pm, base=copy).score(["Is it?"], ["It is."]), expected
    )


@pytest.mark.parametrize("source", ["hub", f"gguf:{sha256('b')}"])
def test_a_copy_that_was_used_here_stands_in_without_a_download(
    source: str, base: Path, pm: Path, tmp_path: Path, hub: Callable[[Path | None], None]
) -> None:
    copy = Path(shutil.copytree(base, tmp_path / "copy"))
    declare(pm, repo_id=REPO, revision=COMMIT, source=source)
    hub(None)
    model_folder(copy)  # it is used once
    assert PMBank.from_pretrained(pm).objectives == ("conciseness",)


def test_the_embedded_model_stands_in_for_the_repo_that_has_its_weights(
    base: Path, pm: Path, hub: Callable[[Path | None], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(pm, repo_id=REPO, revision=COMMIT, source=f"gguf:{sha256('b')}")
    hub(None)
    monkeypatch.setenv("MORLAIF_EMBEDDED_MODEL", str(base))
    assert PMBank.from_pretrained(pm).objectives == ("conciseness",)


def test_a_base_that_is_not_here_is_asked_for_by_its_commit_and_compared(
    base: Path, pm: Path, tmp_path: Path, hub: Callable[[Path | None], None]
) -> None:
    declare(pm, repo_id=REPO, revision=COMMIT, source="hub")
    declared = weights_of(base)[:12]
    other = save_tiny(tmp_path / "other", layers=4, seed=9)
    hub(other)
    with pytest.raises(BaseMismatchError) as caught:
        PMBank.from_pretrained(pm)
    made_for, put_on = str(caught.value).split(", but put on ")
    assert made_for == f"{pm}: made for the base {REPO} (weights {declared})"
    assert put_on.startswith(f"{REPO} (weights {weights_of(other)[:12]})")
    hub(base)
    assert PMBank.from_pretrained(pm).objectives == ("conciseness",)


def test_a_copy_that_was_changed_since_no_longer_stands_in(
    base: Path, pm: Path, tmp_path: Path, hub: Callable[[Path | None], None]
) -> None:
    declare(pm, repo_id=REPO, revision=COMMIT, source="hub")
    copy = Path(shutil.copytree(base, tmp_path / "copy"))
    hub(None)
    model_folder(copy)
    save_tiny(copy, layers=4, seed=9)
    hub(base)  # so it is fetched
    assert PMBank.from_pretrained(pm).objectives == ("conciseness",)


def rounded(base: Path, folder: Path) -> Path:
    """Save a base in bfloat16: half the size, and other weights."""
    return save_copy(base, folder, dtype="bfloat16")


def one_byte(base: Path, folder: Path) -> Path:
    """Change the least that can be changed."""
    shutil.copytree(base, folder)
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    return folder


OTHERS: dict[str, Callable[[Path, Path], Path]] = {
    "other numbers": lambda _base, folder: save_tiny(folder, layers=4, seed=9),
    "one byte": one_byte,
    "bfloat16": rounded,
    "wide": lambda _base, folder: save_wide(folder),
    "shallow": lambda _base, folder: save_tiny(folder, layers=3),
    "deep": lambda _base, folder: save_tiny(folder, layers=6),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_base_is_refused_by_name(other: str, base: Path, pm: Path, tmp_path: Path) -> None:
    """The message names the preference model, its base and the one that it was put on."""
    declare(pm, repo_id=REPO)
    offered = OTHERS[other](base, tmp_path / "offered")
    with pytest.raises(BaseMismatchError) as caught:
        PMBank.from_pretrained(pm, base=offered)
    for named in (str(pm), REPO, weights_of(base)[:12], weights_of(offered)[:12]):
        assert named in str(caught.value)


def test_another_published_base_is_refused_by_the_names_of_both(pm: Path, tmp_path: Path) -> None:
    declare(pm, repo_id=REPO)
    other = described(save_tiny(tmp_path / "plain", layers=4, seed=9), tmp_path / "offered")
    with pytest.raises(BaseMismatchError, match=rf"{REPO} .*but put on bob/another-name "):
        PMBank.from_pretrained(pm, base=other)


@pytest.mark.parametrize(
    ("other", "error", "said"),
    [
        ("other numbers", ArtifactError, "golden scores are off by"),
        ("bfloat16", ArtifactError, "golden scores are off by"),
        ("deep", ArtifactError, "golden scores are off by"),
        ("wide", BaseMismatchError, "does not fit its base"),
        ("shallow", BaseMismatchError, "does not fit its base"),
    ],
)
def test_another_base_is_refused_though_its_hash_was_forged(
    other: str, error: type[MorlaifHubError], said: str, base: Path, pm: Path, tmp_path: Path
) -> None:
    offered = OTHERS[other](base, tmp_path / "offered")
    declare(pm, weights_sha256=weights_of(offered))
    with pytest.raises(error, match=said):
        PMBank.from_pretrained(pm, base=offered)


@pytest.mark.parametrize("text", [0, 7, 15])
@pytest.mark.parametrize("share", [0.5, -0.5, 2.0, -2.0])
def test_golden_scores_are_compared_to_within_the_tolerance(
    text: int, share: float, base: Path, pm: Path
) -> None:
    """A single text beyond it is enough, in either direction."""
    manifest = read_manifest(pm, PreferenceModelManifest)
    golden = manifest.golden
    scores = list(golden.scores)
    scores[text] += share * golden.tolerance
    seal(pm, replace(manifest, golden=replace(golden, scores=tuple(scores))))
    if abs(share) < 1:
        assert PMBank.from_pretrained(pm, base=base).objectives == ("conciseness",)
    else:
        with pytest.raises(ArtifactError, match=f"{pm}: its golden scores are off by"):
            PMBank.from_pretrained(pm, base=base)


@pytest.mark.slow
def test_the_tolerance_lies_far_from_the_same_weights_and_below_others(
    base: Path, workspace: Workspace
) -> None:
    """What benchmarks/golden.py shows on the embedded model, on a tiny one."""
    model_folder(base)
    bench = Bench([workspace.preference_model(name) for name in ("conciseness", "detail")])
    same = list(same_weights(bench))
    other = list(other_weights(bench))
    assert {"the same again", "threads: 4", "each text alone"} <= {row.name for row in same}
    assert {"base rounded to bfloat16", "base quantised to Q8_0"} <= {row.name for row in other}
    assert row_of(same, "the same again").largest == (0.0, 0.0)
    low, high = bounds([*same, *other])
    assert 10 * low < GOLDEN_TOLERANCE < high


def row_of(rows: list[Row], name: str) -> Row:
    return next(row for row in rows if row.name == name)


def test_a_program_that_chose_fast_products_still_loads_what_is_right(
    pm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`medium` moves scores by far more than the tolerance on processors with bfloat16 units."""
    seen: list[str] = []
    score, trials = Engine.score, PackedScorer.trials

    def watched(self: Engine, *given: Any, **named: Any) -> torch.Tensor:
        seen.append(torch.get_float32_matmul_precision())
        return score(self, *given, **named)

    def tried(self: PackedScorer, *given: Any) -> list[torch.Tensor]:
        seen.append(torch.get_float32_matmul_precision())
        return trials(self, *given)

    monkeypatch.setattr(Engine, "score", watched)
    monkeypatch.setattr(PackedScorer, "trials", tried)
    torch.set_float32_matmul_precision("medium")
    try:
        PMBank.from_pretrained(pm)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen == ["highest", "highest"]  # the probes, then the golden texts
