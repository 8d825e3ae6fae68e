"""The code of a card is run as it stands, on artifacts that lie in folders, with real libraries.

Only the placeholders are filled in: the repository by the artifact's folder, a base and a language
model by a tiny one.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from trl import apply_chat_template

from morlaif_hub.bank.adapters import save_adapter
from morlaif_hub.bank.artifact import write_bank
from morlaif_hub.bank.bank import PMBank
from morlaif_hub.bank.golden import golden_sequences
from morlaif_hub.comparisons import Comparison
from morlaif_hub.feedback.collect import CollectSettings, collect_feedback
from morlaif_hub.hub.artifact import seal
from morlaif_hub.hub.cards import render_card
from morlaif_hub.hub.manifest import (
    GoldenScores,
    InputFormat,
    Manifest,
    PreferenceModelManifest,
    SourceRecord,
)
from morlaif_hub.models.formats import Encoder
from morlaif_hub.models.language_model import ModelFolder, load_tokenizer, model_folder
from morlaif_hub.principles import load_constitution
from tests.fake_judges import RuleJudge, shorter
from tests.manifests import base_manifest, policy_manifest, preference_model_manifest, sha256
from tests.test_cards import code_blocks
from tests.tiny import save_tiny

CHAT = InputFormat(kind="chat", append_eos=True, max_length=128)
OPEN = replace(CHAT, append_eos=False)
TEXT = replace(CHAT, kind="text")
QUESTION, ANSWER = "How do I boil an egg?", "Seven minutes in boiling water."  # as on the cards


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return model_folder(save_tiny(tmp_path_factory.mktemp("base")))


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run where a trainer may leave its folder of outputs."""
    monkeypatch.chdir(tmp_path)


def run_card(manifest: Manifest, folder: Path, base: ModelFolder) -> dict[str, Any]:
    """Run all code of a card in a row, as a reader would in a notebook; return its names."""
    names: dict[str, Any] = {}
    for code in code_blocks(render_card(replace(manifest, repo_id=None), figures=[])):
        exec(filled(code.replace('repo = "..."', f"repo = {str(folder)!r}"), base), names)
    return names


def filled(code: str, base: ModelFolder) -> str:
    """Return code with a model in place of what is open, for a machine without a GPU."""
    return code.replace('"..."', repr(str(base.path))).replace("Config(", "Config(use_cpu=True, ")


def write_model(
    folder: Path, base: ModelFolder, *, form: Literal["lora", "full"], input_format: InputFormat
) -> PreferenceModelManifest:
    """Write a preference model with random weights and the golden scores that they give."""
    model = AutoModelForSequenceClassification.from_pretrained(base.path, num_labels=1)
    tokenizer = load_tokenizer(base.path)
    if form == "lora":
        config = LoraConfig(task_type=TaskType.SEQ_CLS, r=2, init_lora_weights=False)
        model = get_peft_model(model, config)
        save_adapter(model, folder, base.base)
    else:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    encoder = Encoder(tokenizer, input_format)
    texts = [encoder.ids(p, r) for p, r in zip(*golden_sequences(), strict=True)]
    with torch.inference_mode():
        scores = [float(model.eval()(torch.tensor([ids])).logits[0, 0]) for ids in texts]
    manifest = preference_model_manifest(
        form=form,
        base=base.base,
        input_format=input_format,
        golden=GoldenScores(scores=tuple(scores), tolerance=1e-4),
    )
    return seal(folder, manifest)


def trl_score(trainer: Any, prompt: Any, response: str) -> float:
    """Return what a trainer's own reward model says, read as its documentation describes."""
    (model,), (tokenizer,) = trainer.reward_funcs, trainer.reward_processing_classes
    if isinstance(prompt, str):
        text = prompt + response
    else:
        messages = [*prompt, {"role": "assistant", "content": response}]
        text = apply_chat_template({"messages": messages}, tokenizer)["text"]
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    with torch.inference_mode():
        return float(model.eval()(ids).logits[0, 0])


@pytest.mark.parametrize(
    ("form", "input_format"),
    [("lora", CHAT), ("lora", OPEN), ("full", CHAT), ("full", replace(TEXT, append_eos=False))],
)
def test_every_way_of_loading_a_preference_model_gives_the_score_of_the_bank(
    form: Literal["lora", "full"], input_format: InputFormat, base: ModelFolder, tmp_path: Path
) -> None:
    folder = tmp_path / "pm"
    manifest = write_model(folder, base, form=form, input_format=input_format)
    names = run_card(manifest, folder, base)
    expected = float(names["bank"].score([QUESTION], [ANSWER], calibrated=False)[0, 0])
    assert names["raw"] == pytest.approx(expected, abs=1e-5)
    calibration = manifest.calibration
    assert names["scores"][0, 0] == pytest.approx(
        (expected - calibration.mean) / calibration.std, abs=1e-5
    )
    (row,) = names["prompts"]
    if form == "full" and input_format != OPEN:  # TRL by itself, the last trainer of the card
        assert trl_score(names["trainer"], row["prompt"], ANSWER) == pytest.approx(
            expected, abs=1e-5
        )
    else:
        (reward,) = names["trainer"].reward_funcs
        assert reward.__name__ == "conciseness"


def test_an_adapter_that_names_its_base_loads_in_one_call_and_in_trl(
    base: ModelFolder, tmp_path: Path
) -> None:
    """As it is once both are on the Hub; the base's folder stands in for its id here."""
    folder = tmp_path / "pm"
    manifest = write_model(folder, base, form="lora", input_format=CHAT)
    bank = PMBank.from_pretrained(folder)
    expected = float(bank.score([QUESTION], [ANSWER], calibrated=False)[0, 0])
    config = folder / "adapter_config.json"
    fields = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps(fields | {"base_model_name_or_path": str(base.path)}))
    known = replace(manifest, repo_id=None, base=replace(base.base, repo_id=str(base.path)))
    blocks = code_blocks(render_card(known, figures=[]))
    (code,) = [block for block in blocks if "reward_funcs=repo" in block]
    names: dict[str, Any] = {"repo": str(folder)}
    exec(
        next(block for block in blocks if "reward_functions" in block).split("trainer =")[0], names
    )
    exec(filled(code, base), names)
    prompt = [{"role": "user", "content": QUESTION}]
    assert trl_score(names["trainer"], prompt, ANSWER) == pytest.approx(expected, abs=1e-5)
    assert names["trainer"].reward_func_names == [base.path.name]  # as the card says


def test_the_code_of_a_bank_runs(base: ModelFolder, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_model(tmp_path / "pms" / name, base, form="lora", input_format=CHAT)
    sources = {name: tmp_path / "pms" / name for name in ("one", "two")}
    bank = PMBank.from_pretrained(sources)
    weights = {"one": 0.75, "two": -0.25}
    manifest = write_bank(bank, tmp_path / "bank", scores=[[0.0, 1.0], [1.0, 3.0]], weights=weights)
    names = run_card(manifest, tmp_path / "bank", base)
    assert names["scores"].shape == (1, 2)
    assert names["steered"].weights == weights
    assert names["trainer"].reward_funcs[0].__name__ == "linear"


def test_the_code_of_a_feedback_dataset_runs(base: ModelFolder, tmp_path: Path) -> None:
    pairs = [
        Comparison(({"role": "user", "content": f"Say {i}"},), "a b", "a b c" if i else "b a")
        for i in range(12)
    ]
    manifest = collect_feedback(
        [load_constitution().get("conciseness")],
        pairs,
        RuleJudge(shorter),
        folder=tmp_path / "feedback",
        source=SourceRecord(name="pairs.jsonl", revision=None, sha256=sha256("1")),
        settings=CollectSettings(unvalidated=True),
    )["conciseness"]
    names = run_card(manifest, tmp_path / "feedback/conciseness", base)
    rows = names["pairs"]
    assert (len(rows["train"]), len(rows["test"])) == (manifest.train_pairs, manifest.test_pairs)
    assert [len(names[split]) for split in ("train", "test")] == [len(s) for s in rows.values()]
    assert sum(len(split) for split in names["decided"].values()) == 11  # one pair is a tie
    assert "margin" in names["trainer"].train_dataset.column_names


@pytest.mark.parametrize("form", ["lora", "full"])
def test_the_code_of_a_policy_loads_it_both_ways(
    form: Literal["lora", "full"], base: ModelFolder, tmp_path: Path
) -> None:
    folder = tmp_path / "policy"
    model = AutoModelForCausalLM.from_pretrained(base.path)
    if form == "lora":
        config = LoraConfig(task_type=TaskType.CAUSAL_LM, r=2, init_lora_weights=False)
        model = get_peft_model(model, config)
        save_adapter(model, folder, base.base)
    else:
        model.save_pretrained(folder)
        load_tokenizer(base.path).save_pretrained(folder)
    manifest = seal(folder, policy_manifest(form=form, base=base.base))
    names = run_card(manifest, folder, base)
    assert isinstance(names["responses"][0].text, str)
    ids = names["tokenizer"](QUESTION, return_tensors="pt").input_ids
    with torch.inference_mode():
        plain, ours = (m(ids).logits.float() for m in (names["model"], names["policy"].model))
    torch.testing.assert_close(plain, ours, atol=0.3, rtol=0.05)  # ours is in bfloat16


def test_the_code_of_a_base_loads_it(base: ModelFolder, tmp_path: Path) -> None:
    manifest = base_manifest(base=base.base)
    first, second = code_blocks(render_card(replace(manifest, repo_id=None), figures=[]))
    write_model(tmp_path / "pm", base, form="lora", input_format=CHAT)
    names: dict[str, Any] = {}
    exec(filled(first, base), names)
    exec(second.replace('"..."', repr(str(tmp_path / "pm"))), names)
    assert names["bank"].objectives == ("conciseness",)
    assert names["model"].num_parameters() > 0
