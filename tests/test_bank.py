"""The bank: exact scores from one shared trunk, and refusal of what is not what it says."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from morlaif_hub.bank.adapters import check_adapter, check_fits
from morlaif_hub.bank.artifact import write_bank
from morlaif_hub.bank.bank import PMBank
from morlaif_hub.bank.golden import golden_sequences
from morlaif_hub.bank.trunk import layer_list
from morlaif_hub.errors import (
    ArtifactError,
    BaseMismatchError,
    HeadError,
    ModelNotFoundError,
    OptionError,
    ScoreError,
)
from morlaif_hub.hub.artifact import seal
from morlaif_hub.hub.client import Resolved, fetch
from morlaif_hub.hub.manifest import (
    BankManifest,
    GoldenScores,
    InputFormat,
    PreferenceModelManifest,
    read_manifest,
)
from morlaif_hub.models.formats import encode_pair
from morlaif_hub.models.language_model import load_tokenizer, model_folder
from morlaif_hub.principles import load_constitution
from tests.manifests import preference_model_manifest
from tests.tiny import Kind, save_tiny

PROMPTS = ["What is it?", "Tell me of the sea.", "And you?", "What is it?"]
RESPONSES = ["A tree.", "The sea is wide and deep and cold and blue.", "", "A tree."]
CHAT = InputFormat(kind="chat", append_eos=False, max_length=128)


def make_pm(
    folder: Path, base: Path, name: str, *, layers: list[int] | None = None, seed: int = 0
) -> Path:
    """Write a preference model with random LoRA weights and its true golden scores."""
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=2,
        layers_to_transform=layers,
        init_lora_weights=False,
        fan_in_fan_out=model.config.model_type == "gpt2",
    )
    adapted = get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = None
    adapted.save_pretrained(folder)
    prompts, responses = golden_sequences()
    manifest = replace(
        preference_model_manifest(),
        form="lora",
        principle=load_constitution().get(name).record(),
        base=model_folder(base).base,
        input_format=CHAT,
        files=(),
    )
    scores = [alone(adapted, base, p, r) for p, r in zip(prompts, responses, strict=True)]
    golden = GoldenScores(scores=tuple(scores), tolerance=1e-3)
    seal(folder, replace(manifest, golden=golden))
    return folder


@torch.no_grad()
def alone(model: Any, base: Path, prompt: Any, response: str) -> float:
    """Score one text by the plain model, without padding: what the bank has to equal."""
    tokenizer = load_tokenizer(base)
    model.config.pad_token_id = tokenizer.pad_token_id
    ids = torch.tensor([encode_pair(tokenizer, prompt, response, CHAT)])
    return float(model.eval()(input_ids=ids).logits[0, 0])


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind: Kind = request.param
    return save_tiny(tmp_path_factory.mktemp("base"), kind, layers=4)


@pytest.fixture(scope="module")
def pms(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pms")
    return [
        make_pm(folder / "toxicity", base, "toxicity", layers=[3], seed=1),
        make_pm(folder / "empathy", base, "empathy", layers=[2, 3], seed=2),
        make_pm(folder / "detail", base, "detail", layers=None, seed=3),
    ]


def test_scores_equal_each_model_alone_without_padding(base: Path, pms: list[Path]) -> None:
    bank = PMBank.from_pretrained(pms, base=base)
    assert bank.objectives == ("toxicity", "empathy", "detail")
    scores = bank.score(PROMPTS, RESPONSES, calibrated=False)
    assert scores.shape == (4, 3)
    assert scores.dtype == torch.float32
    for column, folder in enumerate(pms):
        plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
        model = PeftModel.from_pretrained(plain, folder)
        expected = [alone(model, base, p, r) for p, r in zip(PROMPTS, RESPONSES, strict=True)]
        torch.testing.assert_close(scores[:, column], torch.tensor(expected), atol=1e-4, rtol=0)


def test_the_trunk_below_the_first_adapter_runs_once(base: Path, pms: list[Path]) -> None:
    bank = PMBank.from_pretrained(pms[:2], base=base)  # adapters from layer 2 on
    layers = layer_list(bank._groups[0].engine.model)
    assert layers is not None
    calls: Counter[int] = Counter()

    def counting(index: int) -> Callable[..., None]:
        return lambda *_arguments: calls.update([index])

    # A skipped layer is still called, as an identity, so what it would run is counted.
    attentions = [getattr(layer, "self_attn", None) or layer.attn for layer in layers]
    for i, attention in enumerate(attentions):
        attention.register_forward_hook(counting(i))
    bank.score(PROMPTS, RESPONSES)
    assert calls == {0: 1, 1: 1, 2: 2, 3: 2}  # one batch, two preference models
    assert all("forward" not in vars(layer) for layer in layers)  # everything is put back


def test_a_score_does_not_depend_on_its_batch(base: Path, pms: list[Path]) -> None:
    bank = PMBank.from_pretrained(pms, base=base)
    together = bank.score(PROMPTS, RESPONSES)
    for i, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        torch.testing.assert_close(
            bank.score([prompt], [response])[0], together[i], atol=1e-4, rtol=0
        )


def test_what_is_too_long_is_cut_on_the_left_and_counted(
    base: Path, pms: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    bank = PMBank.from_pretrained(pms, base=base)
    response = "The end."
    long, longer = "word " * 200 + "x?", "other words " * 300 + "word " * 200 + "x?"
    with caplog.at_level("WARNING", "morlaif_hub"):
        scores = bank.score([long, longer, "x?"], [response] * 3)
        assert bank.texts_cut == 2
        bank.score([long], [response])
    assert bank.texts_cut == 3
    assert caplog.messages == [
        "2 of 3 texts are longer than 128 tokens and were cut on the left; PMBank.texts_cut goes "
        "on counting"
    ]
    assert torch.equal(scores[0], scores[1])  # what is left of them is the same
    assert not torch.equal(scores[0], scores[2])


def test_golden_texts_do_not_count_as_cut(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pm = make_pm(tmp_path / "pm", base, "detail")
    manifest = read_manifest(pm, PreferenceModelManifest)
    _reseal(pm, input_format=replace(CHAT, max_length=40))
    with caplog.at_level("WARNING", "morlaif_hub"), suppress(ArtifactError):
        assert PMBank.from_pretrained(pm, base=base).texts_cut == 0
    assert manifest.golden.scores
    assert not [said for said in caplog.messages if "cut" in said]


def test_progress_sums_up_to_the_responses(pms: list[Path], base: Path, tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "other", "llama", layers=2, seed=3)
    pm = make_pm(tmp_path / "pm", other, "factuality")
    model_folder(base)
    bank = PMBank.from_pretrained([*pms, pm])
    told: list[int] = []
    bank.score(PROMPTS * 3, RESPONSES * 3, progress=told.append)
    assert sum(told) == 12
    assert len(told) >= 2  # one for each base
    assert all(count > 0 for count in told)


def test_only_a_text_without_any_token_cannot_be_scored(base: Path, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    model.save_pretrained(tmp_path)
    load_tokenizer(base).save_pretrained(tmp_path)
    bank = PMBank.from_pretrained({"plain": tmp_path})
    assert bool(bank.score(["What?", ""], ["", "Yes."]).isfinite().all())
    with pytest.raises(ScoreError, match="response 1 and its prompt are both empty"):
        bank.score(["What?", ""], ["Yes.", ""])


@pytest.mark.slow
def test_48_preference_models_on_two_bases(tmp_path: Path) -> None:
    """One copy of each base, and every column is that of its own preference model."""
    names = [f"principle-{i}" for i in range(48)]
    bases = [save_tiny(tmp_path / kind, kind, layers=4) for kind in ("llama", "gpt2")]
    made = [make_pm(tmp_path / "pms" / f"{i}", bases[i % 2], "detail", layers=[i % 4], seed=i)
            for i in range(48)]  # fmt: skip
    bank = PMBank.from_pretrained(dict(zip(names, made, strict=True)))
    assert len(bank._groups) == 2
    scores = bank.score(PROMPTS, RESPONSES)
    assert scores.shape == (4, 48)
    for column in (0, 1, 22, 47):
        alone = PMBank.from_pretrained(made[column]).score(PROMPTS, RESPONSES)
        torch.testing.assert_close(scores[:, column : column + 1], alone, atol=1e-4, rtol=0)


def test_strings_and_messages_score_the_same(base: Path, pms: list[Path]) -> None:
    bank = PMBank.from_pretrained(pms[:1], base=base)
    messages = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    answers = [[{"role": "assistant", "content": response}] for response in RESPONSES]
    assert torch.equal(bank.score(PROMPTS, RESPONSES), bank.score(messages, answers))


def test_calibration_shifts_and_scales_each_column(base: Path, pms: list[Path]) -> None:
    bank = PMBank.from_pretrained(pms, base=base)
    raw = bank.score(PROMPTS, RESPONSES, calibrated=False)
    calibrated = bank.score(PROMPTS, RESPONSES)
    for column, calibration in enumerate(bank.calibrations):
        expected = (raw[:, column] - calibration.mean) / calibration.std
        torch.testing.assert_close(calibrated[:, column], expected)


def test_an_empty_batch_has_the_banks_columns(base: Path, pms: list[Path]) -> None:
    assert PMBank.from_pretrained(pms, base=base).score([], []).shape == (0, 3)


def test_bases_of_different_kinds_share_a_bank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bases = {
        "toxicity": save_tiny(tmp_path / "a", "llama", seed=5),
        "detail": save_tiny(tmp_path / "b", "gpt2"),
    }
    folders = [make_pm(tmp_path / n, b, n, layers=[1]) for n, b in bases.items()]
    alone = [
        PMBank.from_pretrained([f], base=b).score(PROMPTS, RESPONSES)
        for f, b in zip(folders, bases.values(), strict=True)
    ]
    by_hash = {model_folder(b).base.weights_sha256: model_folder(b) for b in bases.values()}
    monkeypatch.setattr(
        "morlaif_hub.bank.bases.find_base",
        lambda declared, _where: by_hash[declared.weights_sha256],
    )
    together = PMBank.from_pretrained(folders).score(PROMPTS, RESPONSES)
    torch.testing.assert_close(together, torch.cat(alone, dim=1), atol=1e-5, rtol=0)


def test_a_bank_artifact_loads_the_same_members(
    base: Path, pms: list[Path], tmp_path: Path
) -> None:
    root = tmp_path / "workspace"
    moved = [Path(shutil.copytree(pm, root / "pms" / pm.name)) for pm in pms]
    bank = PMBank.from_pretrained(moved, base=base)
    scores = bank.score(PROMPTS, RESPONSES)
    weights = dict.fromkeys(bank.objectives, 1 / 3)
    write_bank(bank, root / "bank", scores=scores, weights=weights)
    again = PMBank.from_pretrained(Path(shutil.move(root, tmp_path / "moved")) / "bank", base=base)
    assert again.objectives == bank.objectives
    assert torch.equal(again.score(PROMPTS, RESPONSES), scores)
    other = tmp_path / "moved/pms/toxicity"
    manifest = read_manifest(other, PreferenceModelManifest)
    seal(other, replace(manifest, license="mit"))
    with pytest.raises(ArtifactError, match=r"toxicity.*is not the preference model"):
        PMBank.from_pretrained(tmp_path / "moved/bank", base=base)


@pytest.fixture
def workspace(pms: list[Path], base: Path, tmp_path: Path) -> Path:
    """A workspace with two preference models and their bank, weighted 0.25 and -0.75."""
    root = tmp_path / "workspace"
    moved = [Path(shutil.copytree(pm, root / "pms" / pm.name)) for pm in pms[:2]]
    bank = PMBank.from_pretrained(moved, base=base)
    weights = {"toxicity": 0.25, "empathy": -0.75}
    scores = bank.score(PROMPTS, RESPONSES)
    write_bank(bank, root / "bank", scores=scores, weights=weights, scalarizer="soft_max_min")
    return root


def _rename_member(bank: Path, repo_id: str, revision: str | None = None) -> None:
    """Let a bank name its first member in another way."""
    manifest = read_manifest(bank, BankManifest)
    first, *others = manifest.objectives
    changed = replace(first, repo_id=repo_id, revision=revision)
    seal(bank, replace(manifest, objectives=(changed, *others)))


def test_a_bank_artifact_brings_its_scalarizer_and_weights(workspace: Path, base: Path) -> None:
    bank = PMBank.from_pretrained(workspace / "bank", base=base)
    assert bank.scalarizer == "soft_max_min"
    assert bank.weights == {"toxicity": 0.25, "empathy": -0.75}
    apart = PMBank.from_pretrained(workspace / "pms/empathy", base=base)
    assert (apart.scalarizer, apart.weights) == (None, None)


def test_a_bank_without_a_weight_for_each_objective_is_refused(workspace: Path) -> None:
    manifest = read_manifest(workspace / "bank", BankManifest)
    seal(workspace / "bank", replace(manifest, weights=manifest.weights[:1]))
    with pytest.raises(ArtifactError, match="each needs one weight"):
        PMBank.from_pretrained(workspace / "bank")


def test_a_bank_names_nothing_outside_its_workspace(workspace: Path, base: Path) -> None:
    shutil.copytree(workspace / "pms/toxicity", workspace.parent / "toxicity")
    (workspace / "pms/link").symlink_to(workspace.parent / "toxicity")
    for name in ("../../toxicity", "../pms/../../toxicity", "../pms/link", "../../workspace"):
        _rename_member(workspace / "bank", name)
        with pytest.raises(ArtifactError, match="outside the bank's workspace"):
            PMBank.from_pretrained(workspace / "bank", base=base)
    _rename_member(workspace / "bank", "../pms/toxicity")
    PMBank.from_pretrained(workspace / "bank", base=base)


@pytest.mark.parametrize("revision", [None, "main", "1" * 39, "1" * 40])
def test_a_bank_names_a_repository_by_its_commit(
    workspace: Path, base: Path, revision: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def hub(sources: list[str | Path], **_options: Any) -> list[Resolved]:
        asked.extend(source for source in sources if isinstance(source, str))
        there = Resolved(workspace / "pms/toxicity", "ann/toxicity", revision)
        return [fetch(s) if isinstance(s, Path) else there for s in sources]

    monkeypatch.setattr("morlaif_hub.bank.members.fetch_all", hub)
    _rename_member(workspace / "bank", "ann/toxicity", revision)
    if revision == "1" * 40:
        PMBank.from_pretrained(workspace / "bank", base=base)
        assert asked == [f"ann/toxicity@{revision}"]
    else:
        with pytest.raises(ArtifactError, match="no repo id with a commit"):
            PMBank.from_pretrained(workspace / "bank", base=base)
        assert asked == []


@pytest.mark.parametrize("name", ["../pms/toxicity", "./x", "{root}/pms/toxicity", "~", "a@b"])
@pytest.mark.parametrize("revision", [None, "1" * 40])
def test_a_bank_from_the_hub_names_nothing_on_this_machine(
    workspace: Path, name: str, revision: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hub(sources: list[str | Path], **_options: Any) -> list[Resolved]:
        assert sources == ["ann/bank"], "a path of this machine was followed"
        return [Resolved(workspace / "bank", "ann/bank", "1" * 40)]

    monkeypatch.setattr("morlaif_hub.bank.members.fetch_all", hub)
    _rename_member(workspace / "bank", name.format(root=workspace), revision)
    with pytest.raises(ArtifactError, match=r"ann/bank: toxicity: .* is no repo id with a commit"):
        PMBank.from_pretrained("ann/bank")


def test_a_banks_member_without_a_manifest_is_refused(workspace: Path) -> None:
    (workspace / "pms/toxicity/morlaif.json").unlink()
    with pytest.raises(ArtifactError, match=r"toxicity .* has no morlaif\.json"):
        PMBank.from_pretrained(workspace / "bank")


def test_a_bank_is_not_written_where_it_could_not_be_read(
    pms: list[Path], base: Path, tmp_path: Path
) -> None:
    bank = PMBank.from_pretrained(pms[:1], base=base)
    with pytest.raises(OptionError, match="is not below"):
        write_bank(bank, tmp_path / "bank", scores=[[0.0]], weights={"toxicity": 1.0})
    assert not (tmp_path / "bank").exists()


def test_an_undefined_correlation_is_not_written_as_zero(workspace: Path, base: Path) -> None:
    bank = PMBank.from_pretrained(workspace / "bank", base=base)
    scores = [[0.3, 1.0], [0.1, 1.0], [0.5, 1.0]]  # the second objective is constant
    weights = {"toxicity": 0.5, "empathy": 0.5}
    manifest = write_bank(bank, workspace / "bank", scores=scores, weights=weights)
    assert manifest.correlations == ((1.0, None), (None, None))
    assert read_manifest(workspace / "bank", BankManifest) == manifest
    card = (workspace / "bank/README.md").read_text()
    assert "| toxicity | +1.00 | undefined |" in card
    assert "| empathy | undefined | undefined |" in card


@pytest.mark.parametrize(
    ("licenses", "expected"), [(("MIT", "mit"), "mit"), (("mit", "gemma"), "other")]
)
def test_a_bank_has_the_license_that_its_members_share(
    licenses: tuple[str, str], expected: str, workspace: Path, base: Path
) -> None:
    folders = [workspace / "pms" / name for name in ("toxicity", "empathy")]
    for folder, license_name in zip(folders, licenses, strict=True):
        _reseal(folder, license=license_name)
    bank = PMBank.from_pretrained(folders, base=base)
    weights = {"toxicity": 0.5, "empathy": 0.5}
    scores = bank.score(PROMPTS, RESPONSES)
    manifest = write_bank(bank, workspace / "bank", scores=scores, weights=weights)
    assert manifest.license.lower() == expected


def test_a_model_without_validation_pairs_says_so_on_its_card(pm: Path) -> None:
    training = read_manifest(pm, PreferenceModelManifest).training
    measured = "0.604 at the start, 0.646 after training; the weights after 18 steps were kept"
    assert f"| validation accuracy | {measured} |" in (pm / "README.md").read_text()
    assert training.gradient is not None
    unknown = replace(training.gradient, start_accuracy=None, trained_accuracy=None, kept="start")
    _reseal(pm, training=replace(training, gradient=unknown))
    card = (pm / "README.md").read_text()
    assert "| validation accuracy | not measured; the start was kept |" in card


def test_a_plain_adapter_takes_its_name_from_a_mapping(
    base: Path, pms: list[Path], tmp_path: Path
) -> None:
    plain = Path(shutil.copytree(pms[0], tmp_path / "plain"))
    (plain / "morlaif.json").unlink()
    with pytest.raises(OptionError, match="pass a mapping"):
        PMBank.from_pretrained([plain], base=base)
    bank = PMBank.from_pretrained({"mine": plain, "ours": pms[1]}, base=base)
    assert bank.objectives == ("mine", "ours")
    assert bank.score(["Is it"], [" so?"]).shape == (1, 2)


def test_a_full_reward_model_fills_a_slot(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1).eval()
    model.save_pretrained(tmp_path / "full")
    tokenizer = load_tokenizer(base)
    tokenizer.save_pretrained(tmp_path / "full")
    bank = PMBank.from_pretrained({"helpful": tmp_path / "full"})
    ids = torch.tensor([tokenizer("Is it so?", add_special_tokens=False)["input_ids"]])
    expected = model(input_ids=ids).logits[0, 0]
    torch.testing.assert_close(bank.score(["Is it"], [" so?"])[0, 0], expected, atol=1e-4, rtol=0)


def test_one_base_in_memory_whatever_the_number_of_adapters(base: Path, pms: list[Path]) -> None:
    bank = PMBank.from_pretrained(pms, base=base)
    assert len(bank._groups) == 1


@pytest.fixture
def pm(pms: list[Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(pms[0], tmp_path / "pm"))


def _reseal(folder: Path, **changes: object) -> None:
    seal(folder, replace(read_manifest(folder, PreferenceModelManifest), **changes))


def test_an_adapter_without_a_head_is_refused(base: Path, pm: Path) -> None:
    weights = load_file(pm / "adapter_model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if "score" not in k}, pm / "adapter_model.safetensors"
    )
    _reseal(pm)
    with pytest.raises(HeadError, match="no score head"):
        PMBank.from_pretrained(pm, base=base)


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 64, b"\x02" + bytes(7) + b"[]"])
def test_weights_that_are_not_safetensors_are_named(base: Path, pm: Path, content: bytes) -> None:
    (pm / "adapter_model.safetensors").write_bytes(content)
    _reseal(pm)
    with pytest.raises(ArtifactError, match=r"adapter_model\.safetensors is not a safetensors"):
        PMBank.from_pretrained(pm, base=base)


def test_a_policys_adapter_needs_no_head_and_a_preference_model_is_none(
    base: Path, pm: Path, tmp_path: Path
) -> None:
    plain = AutoModelForCausalLM.from_pretrained(base)
    swapped = plain.config.model_type == "gpt2"
    config = LoraConfig(task_type=TaskType.CAUSAL_LM, r=2, fan_in_fan_out=swapped)
    get_peft_model(plain, config).save_pretrained(tmp_path / "policy")
    files = check_adapter(tmp_path / "policy", "mine", task="CAUSAL_LM")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), files.folder)
    check_fits(model, "default", files)
    first = sorted(files.shapes)[0]
    shapes = {name: shape for name, shape in files.shapes.items() if name != first}
    with pytest.raises(BaseMismatchError, match=f"mine: .* tensor {first} is on one side only"):
        check_fits(model, "default", replace(files, shapes=shapes))
    with pytest.raises(ArtifactError, match="'CAUSAL_LM', but 'SEQ_CLS' is wanted"):
        check_adapter(tmp_path / "policy", "mine")
    with pytest.raises(ArtifactError, match="'SEQ_CLS', but 'CAUSAL_LM' is wanted"):
        check_adapter(pm, "mine", task="CAUSAL_LM")


def test_a_head_with_two_outputs_is_refused(base: Path, pm: Path) -> None:
    weights = load_file(pm / "adapter_model.safetensors")
    head = next(k for k in weights if k.endswith("score.weight"))
    weights[head] = torch.cat([weights[head]] * 2)
    save_file(weights, pm / "adapter_model.safetensors")
    _reseal(pm)
    with pytest.raises(HeadError, match="has 2 outputs"):
        PMBank.from_pretrained(pm, base=base)


def test_another_base_than_the_declared_one_is_refused(pm: Path, tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "other", layers=4, seed=9)
    with pytest.raises(BaseMismatchError, match=r"made for the base.*but put on"):
        PMBank.from_pretrained(pm, base=other)


def test_a_shallower_base_is_refused_even_without_a_manifest(pm: Path, tmp_path: Path) -> None:
    (pm / "morlaif.json").unlink()
    kind = (
        "gpt2" if "c_attn" in str(load_file(pm / "adapter_model.safetensors").keys()) else "llama"
    )
    shallow = save_tiny(tmp_path / "shallow", kind, layers=2)
    with pytest.raises(BaseMismatchError, match="does not fit its base"):
        PMBank.from_pretrained({"toxicity": pm}, base=shallow)


def test_a_flipped_byte_is_refused(base: Path, pm: Path) -> None:
    path = pm / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"adapter_model\.safetensors.*SHA-256"):
        PMBank.from_pretrained(pm, base=base)


def test_golden_scores_that_do_not_match_are_refused(base: Path, pm: Path) -> None:
    manifest = read_manifest(pm, PreferenceModelManifest)
    shifted = tuple(score + 1.0 for score in manifest.golden.scores)
    _reseal(pm, golden=replace(manifest.golden, scores=shifted))
    with pytest.raises(ArtifactError, match="golden scores are off by 1"):
        PMBank.from_pretrained(pm, base=base)


def test_an_adapter_that_asks_for_code_is_refused(base: Path, pm: Path) -> None:
    path = pm / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"auto_mapping": {"parent_library": "os"}}))
    _reseal(pm)
    with pytest.raises(ArtifactError, match="asks for code"):
        PMBank.from_pretrained(pm, base=base)


def test_a_pickle_is_refused(base: Path, pm: Path) -> None:
    (pm / "adapter_model.safetensors").rename(pm / "adapter_model.bin")
    (pm / "morlaif.json").unlink()
    with pytest.raises(ArtifactError, match="pickle"):
        PMBank.from_pretrained({"toxicity": pm}, base=base)


def test_weights_that_are_not_finite_are_named(base: Path, pm: Path) -> None:
    weights = load_file(pm / "adapter_model.safetensors")
    head = next(k for k in weights if k.endswith("score.weight"))
    weights[head][0, 0] = float("nan")
    save_file(weights, pm / "adapter_model.safetensors")
    _reseal(pm)
    with pytest.raises(ArtifactError, match=r"pm: adapter_model\.safetensors: .*score.* has NaN"):
        PMBank.from_pretrained(pm, base=base)


def test_two_objectives_of_one_name_are_refused(base: Path, pms: list[Path]) -> None:
    with pytest.raises(OptionError, match="named toxicity"):
        PMBank.from_pretrained([pms[0], pms[0]], base=base)


def test_a_base_that_was_used_here_before_is_found_again(pms: list[Path], base: Path) -> None:
    model_folder(base)
    assert PMBank.from_pretrained(pms).objectives == ("toxicity", "empathy", "detail")


def test_a_base_that_is_not_to_be_had_says_what_to_pass(
    pms: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MORLAIF_CACHE", str(tmp_path))  # nothing was used there before
    with pytest.raises(ModelNotFoundError, match="pass base="):
        PMBank.from_pretrained(pms)


def test_prompts_and_responses_must_be_as_many(base: Path, pms: list[Path]) -> None:
    bank = PMBank.from_pretrained(pms[:1], base=base)
    with pytest.raises(OptionError, match="2 and 1"):
        bank.score(["a", "b"], ["c"])
