"""Supervised fine-tuning: what exactly is learnt, from which templates, and what comes of it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from morlaif_hub.bank.adapters import ADAPTER_WEIGHTS
from morlaif_hub.errors import DataError, OptionError, TrainingError
from morlaif_hub.hub.manifest import PolicyManifest, SourceRecord, read_manifest
from morlaif_hub.messages import Message
from morlaif_hub.models.formats import prompt_text
from morlaif_hub.models.generation import SamplingSettings, sample_responses
from morlaif_hub.models.language_model import LanguageModel, ModelFolder, model_folder
from morlaif_hub.policies.artifact import load_policy, policy_folder
from morlaif_hub.policies.sft import SftSettings, TrainedSft, train_sft
from morlaif_hub.policies.sft_data import Dialogues, check_end, fit_dialogues
from morlaif_hub.policies.turns import (
    IGNORED,
    PLAIN_TEMPLATE,
    Row,
    dialogue_rows,
    use_template,
)
from tests.test_cli import passed, printed
from tests.tiny import END, PAD, save_tiny, tiny_causal_lm, tiny_tokenizer

ROOT = Path(__file__).parent.parent
SOURCE = SourceRecord(name="dialogues.jsonl", revision=None, sha256="0" * 64)

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_2 = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %} {{ m['content'] }} <|im_end|>"
    "{% elif m['role'] == 'system' %}{{ raise_exception('no system turns') }}"
    "{% else %}[INST] {{ m['content'] }} [/INST]{% endif %}{% endfor %}"
)
GEMMA = (
    "{% for m in messages %}<|im_start|>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
# Shows its thoughts in the last turn alone, as Qwen 3 does.
QWEN_3 = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}(none){% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def talk(*contents: str, system: str | None = None) -> list[Message]:
    """Return a dialogue whose turns are the user's and the assistant's by turns."""
    told = [{"role": "system", "content": system}] if system else []
    roles = ("user", "assistant")
    return told + [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


def learnt(tokenizer: Any, row: Row) -> list[str]:
    """Return the text of every unbroken run of learnt tokens."""
    runs: list[list[int]] = [[]]
    for token, label in zip(row.ids, row.labels, strict=True):
        if label == IGNORED:
            runs.append([])
        else:
            assert label == token
            runs[-1].append(token)
    return [tokenizer.decode(run) for run in runs if run]


def with_template(template: str) -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


MULTI = talk("Hi you", "the answer\n\nis this", "Go on", "And a lead", system="Be brief")


# What is learnt, token by token.


@pytest.mark.parametrize("template", [CHATML, GEMMA, None], ids=["chatml", "gemma", "marked"])
def test_every_turn_of_the_assistants_is_learnt_to_its_end_and_nothing_else(
    template: str | None,
) -> None:
    tokenizer = with_template(template) if template else tiny_tokenizer()
    (row,) = dialogue_rows(tokenizer, MULTI)
    assert learnt(tokenizer, row) == [f"the answer\n\nis this{END}", f"And a lead{END}"]
    whole = tokenizer.apply_chat_template(MULTI, tokenize=False)
    assert tokenizer.decode(row.ids) == whole


def test_the_mask_is_that_of_trl_where_a_template_is_marked() -> None:
    """Token by token: TRL's assistant-only loss learns by the marks of the template."""
    tokenizer = tiny_tokenizer()
    (row,) = dialogue_rows(tokenizer, MULTI)
    marked = tokenizer.apply_chat_template(
        MULTI, return_assistant_tokens_mask=True, return_dict=True
    )
    assert row.ids == marked["input_ids"]
    assert [int(label != IGNORED) for label in row.labels] == marked["assistant_masks"]


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_the_first_learnt_token_is_what_the_policy_has_to_say_next(turns: int) -> None:
    """What comes before it are the very tokens that a policy is given when it is asked."""
    tokenizer = tiny_tokenizer()
    dialogue = MULTI[: 1 + 2 * turns]
    (row,) = dialogue_rows(tokenizer, dialogue)
    for i, message in enumerate(dialogue):
        if message["role"] != "assistant":
            continue
        before = prompt_text(tokenizer, dialogue[:i])
        ids = tokenizer(before, add_special_tokens=False)["input_ids"]
        assert row.ids[: len(ids)] == ids
        assert row.labels[len(ids) - 1] == IGNORED
        assert row.labels[len(ids)] != IGNORED


def test_a_template_without_marks_for_the_start_of_a_turn() -> None:
    tokenizer = with_template(LLAMA_2)
    (row,) = dialogue_rows(tokenizer, talk("Hi", "the lead", "So", "a ring"))
    assert learnt(tokenizer, row) == [f" the lead {END}", f" a ring {END}"]


def test_what_a_user_says_is_never_learnt_even_if_it_reads_like_an_answer() -> None:
    tokenizer = with_template(CHATML)
    tricky = talk(f"say the{END}\n<|im_start|>assistant\nthe", "the", "the", f"a{END} b")
    (row,) = dialogue_rows(tokenizer, tricky)
    assert learnt(tokenizer, row) == [f"the{END}", f"a{END} b{END}"]


def test_a_template_that_changes_earlier_turns_gives_a_text_for_each() -> None:
    tokenizer = with_template(QWEN_3)
    rows = dialogue_rows(tokenizer, MULTI)
    assert [learnt(tokenizer, row) for row in rows] == [
        [f"(none)the answer\n\nis this{END}"],
        [f"(none)And a lead{END}"],
    ]
    assert "(none)the answer" not in tokenizer.decode(rows[1].ids)


def test_white_space_around_an_answer_is_not_learnt() -> None:
    tokenizer = with_template(CHATML)
    (row,) = dialogue_rows(tokenizer, talk("Hi", "\n\n the lead \n"))
    assert learnt(tokenizer, row) == [f"the lead{END}"]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (CHATML.replace("<|im_end|>", "."), "without a special token"),
        (CHATML.replace("assistant\n{% endif", "assistant\n(thought){% endif"), "in another way"),
    ],
)
def test_a_template_that_cannot_be_learnt_is_refused(template: str, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        dialogue_rows(with_template(template), MULTI)


def test_a_dialogue_that_cannot_be_learnt_is_named() -> None:
    with pytest.raises(DataError, match="no turn of the dialogue is the assistant's"):
        dialogue_rows(tiny_tokenizer(), talk("Hi"))
    with pytest.raises(DataError, match="does not take the dialogue: no system turns"):
        dialogue_rows(with_template(LLAMA_2), MULTI)


# Models without a template.


def test_the_plain_template_is_a_line_for_each_turn() -> None:
    tokenizer = with_template("")
    assert use_template(tokenizer, None) == "plain"
    (row,) = dialogue_rows(tokenizer, MULTI)
    assert tokenizer.decode(row.ids) == (
        "System: Be brief\nUser: Hi you\n"
        f"Assistant: the answer\n\nis this{END}\nUser: Go on\nAssistant: And a lead{END}\n"
    )
    assert learnt(tokenizer, row) == [f" the answer\n\nis this{END}", f" And a lead{END}"]
    assert prompt_text(tokenizer, MULTI[:2]) == "System: Be brief\nUser: Hi you\nAssistant:"


def test_which_template_is_used() -> None:
    own = with_template(CHATML)
    assert use_template(own, None) == "own"
    assert own.chat_template == CHATML
    assert use_template(own, "plain") == "plain"
    assert own.chat_template == PLAIN_TEMPLATE
    with pytest.raises(OptionError, match="no chat template of its own"):
        use_template(with_template(""), "own")
    endless = with_template("")
    endless.eos_token = None
    with pytest.raises(OptionError, match="no end-of-sequence token"):
        use_template(endless, None)


def test_a_model_that_does_not_stop_where_turns_end_is_refused() -> None:
    model, tokenizer = tiny_causal_lm(), tiny_tokenizer()
    dialogues = [talk(f"Say {i}", "the") for i in range(4)]
    fitted = fit_dialogues(tokenizer, dialogues, max_length=64, held_out=0.3, seed=0)
    check_end(model, tokenizer, fitted)
    tokenizer.eos_token = PAD
    model.generation_config.eos_token_id = tokenizer.pad_token_id
    with pytest.raises(OptionError, match=r"ends an assistant's turn with '<\|im_end\|>'"):
        check_end(model, tokenizer, fitted)


# Which dialogues.


def test_prompts_are_on_one_side_and_what_is_left_out_is_counted() -> None:
    tokenizer = tiny_tokenizer()
    twice = [talk(f"Say {i}", f"the {n}") for i in range(10) for n in range(2)]
    long = [talk("x" * 200, "the")] * 3
    fitted = fit_dialogues(
        tokenizer, [*twice, *long, talk("Hi")], max_length=64, held_out=0.2, seed=1
    )
    assert (len(fitted.learnt), len(fitted.held_out)) == (16, 4)
    begun = {tuple(rows[0].ids[:20]) for rows in fitted.learnt}
    assert not begun & {tuple(rows[0].ids[:20]) for rows in fitted.held_out}
    assert sorted(fitted.left_out.values()) == [1, 3]
    assert max(len(row.ids) for row in fitted.rows) <= 64


def test_a_long_dialogue_is_cut_at_its_end() -> None:
    (row,) = dialogue_rows(tiny_tokenizer(), MULTI)
    short = row.cut(45)
    assert (short.ids, short.labels, short.ends) == (row.ids[:45], row.labels[:45], False)
    assert row.cut(len(row.ids) - 1).ends  # only the line break after the last turn is gone


def test_sets_that_cannot_be_split_are_refused() -> None:
    options: dict[str, Any] = {"max_length": 64, "held_out": 0.2, "seed": 0}
    with pytest.raises(DataError, match="begin with the same prompt"):
        fit_dialogues(tiny_tokenizer(), [talk("Hi", "a"), talk("Hi", "the")], **options)
    with pytest.raises(DataError, match=r"none of the 2 dialogues .* no turn of the dialogue"):
        fit_dialogues(tiny_tokenizer(), [talk("Hi"), talk("So")], **options)


# Training.

DIALOGUES = [talk(f"Say {i}", f"the {i}", "more", "a ring") for i in range(40)]
SETTINGS = SftSettings(epochs=8, batch_size=6, learning_rate=2e-2, rank=8, dtype="float32")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return model_folder(save_tiny(tmp_path_factory.mktemp("base")))


def tuned(
    base: ModelFolder, folder: Path, settings: SftSettings = SETTINGS, **others: Any
) -> TrainedSft:
    found = train_sft(
        base, Dialogues(DIALOGUES, SOURCE), folder=folder, settings=settings, **others
    )
    assert found is not None
    return found


@pytest.fixture(scope="module")
def trained(base: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainedSft]:
    folder = tmp_path_factory.mktemp("policies") / "mine"
    return folder, tuned(base, folder, checkpoints=folder.parent / "training")


def nll(policy: LanguageModel, dialogue: Sequence[Message]) -> list[float]:
    """Return the cross-entropy of every learnt token by plain forward passes of the whole text."""
    (row,) = dialogue_rows(policy.tokenizer, dialogue)
    with torch.no_grad():
        logits = policy.model(torch.tensor([row.ids])).logits[0].double()
    found = torch.log_softmax(logits, -1)
    return [-float(found[i - 1, label]) for i, label in enumerate(row.labels) if label != IGNORED]


def test_the_loss_falls_and_is_that_of_whole_texts(
    base: ModelFolder, trained: tuple[Path, TrainedSft]
) -> None:
    folder, found = trained
    record = found.record
    assert record.change[1] < 0
    assert record.loss_after.value < record.loss_before.value
    tokenizer = tiny_tokenizer()
    settings = {"max_length": 512, "held_out": 0.1, "seed": 0}
    fitted = fit_dialogues(tokenizer, DIALOGUES, **settings)  # type: ignore[arg-type]
    held_out = [tokenizer.decode(rows[0].ids) for rows in fitted.held_out]
    apart = [d for d in DIALOGUES if tokenizer.apply_chat_template(d, tokenize=False) in held_out]
    assert len(apart) == record.loss_before.n == 4
    for where, loss in ((base.path, record.loss_before), (folder, record.loss_after)):
        policy = load_policy(where, dtype="float32")
        losses = [value for dialogue in apart for value in nll(policy, dialogue)]
        assert loss.value == pytest.approx(np.mean(losses), abs=1e-4)
        assert loss.interval[0] <= loss.value <= loss.interval[1]


def test_the_policy_says_what_it_learnt_and_stops(trained: tuple[Path, TrainedSft]) -> None:
    policy = load_policy(trained[0], dtype="float32")
    asked = [talk("Say 3", "the 3", "more"), talk("Say 8", "the 8", "more")]
    settings = SamplingSettings(responses=1, temperature=0, max_new_tokens=20)
    answers = [found[0] for found in sample_responses(policy, asked, settings)]
    assert [(answer.text, answer.finished) for answer in answers] == [("a ring", True)] * 2


def test_it_is_an_artifact_that_says_what_it_was_made_from(
    base: ModelFolder, trained: tuple[Path, TrainedSft]
) -> None:
    folder, found = trained
    manifest = read_manifest(folder, PolicyManifest)
    assert manifest == found.manifest
    assert (manifest.algorithm, manifest.form, manifest.base) == ("sft", "lora", base.base)
    assert (manifest.sft, manifest.curve, manifest.kl) == (found.record, (), None)
    assert (found.record.dialogues, found.record.template) == (36, "own")
    assert manifest.steps == 48
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "fine-tuned on dialogues" in card
    assert not list((folder.parent / "training").iterdir())  # the checkpoints, once it is safe


def test_the_same_seed_gives_the_same_policy(
    base: ModelFolder, trained: tuple[Path, TrainedSft], tmp_path: Path
) -> None:
    again = tuned(base, tmp_path / "again")
    changed = {**vars(SETTINGS), "seed": 1, "epochs": 1}
    other = tuned(base, tmp_path / "other", SftSettings(**changed))
    first, second, third = (
        load_file(folder / ADAPTER_WEIGHTS)
        for folder in (trained[0], tmp_path / "again", tmp_path / "other")
    )
    assert again.record == trained[1].record
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert other.record != again.record
    assert not all(torch.equal(first[name], third[name]) for name in first)


class _Stop(Exception):
    pass


def test_a_run_that_stopped_goes_on_to_the_same_end(
    base: ModelFolder, trained: tuple[Path, TrainedSft], tmp_path: Path
) -> None:
    told: list[int] = []

    def stop(stage: str, done: int, _total: int) -> None:
        if stage == "training":
            told.append(done)
            if done == 33 and len(told) == 33:
                raise _Stop

    where: dict[str, Any] = {"checkpoints": tmp_path / "training", "progress": stop}
    with pytest.raises(_Stop):
        tuned(base, tmp_path / "mine", **where)
    assert not (tmp_path / "mine").exists()
    found = tuned(base, tmp_path / "mine", **where)
    assert told == [*range(1, 34), *range(31, 49)]  # checkpoints are five steps apart
    assert found.record == trained[1].record
    first, second = (load_file(f / ADAPTER_WEIGHTS) for f in (trained[0], tmp_path / "mine"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_base_without_a_template_becomes_a_policy_that_chats(tmp_path: Path) -> None:
    """GPT-2, all its weights or a LoRA; what it learnt is loaded with its template."""
    folder = save_tiny(tmp_path / "gpt2", "gpt2")
    bare = tiny_tokenizer()
    bare.chat_template = None
    (folder / "chat_template.jinja").unlink()
    bare.save_pretrained(folder)
    base = model_folder(folder)
    settings = SamplingSettings(responses=1, temperature=0, max_new_tokens=20)
    for form in ("lora", "full"):
        changed = {**vars(SETTINGS), "form": form}
        found = tuned(base, tmp_path / form, SftSettings(**changed))
        assert found.record.template == "plain"
        assert found.record.change[1] < 0
        policy = load_policy(tmp_path / form, dtype="float32")
        assert prompt_text(policy.tokenizer, talk("Hi")) == "User: Hi\nAssistant:"
        asked = talk("Say 3", "the 3", "more")
        ((answer,),) = sample_responses(policy, [asked], settings)
        assert (answer.text, answer.finished) == ("a ring", True)


@pytest.mark.parametrize("form", ["lora", "full"])
def test_a_policy_can_be_trained_further(form: str, base: ModelFolder, tmp_path: Path) -> None:
    """Its weights, merged with those of its base, are the base of the next policy."""
    first = tuned(base, tmp_path / "first", SftSettings(**{**vars(SETTINGS), "form": form}))
    whole = policy_folder(tmp_path / "first")
    policy = load_policy(tmp_path / "first", dtype="float32")
    merged = LanguageModel.load(whole.path, dtype="float32")
    ids = torch.tensor([dialogue_rows(policy.tokenizer, MULTI)[0].ids])
    with torch.no_grad():
        torch.testing.assert_close(
            merged.model(ids).logits, policy.model(ids).logits, atol=1e-3, rtol=1e-3
        )
    second = tuned(whole, tmp_path / "second", SftSettings(**{**vars(SETTINGS), "epochs": 1}))
    assert second.manifest.base == whole.base
    # It begins where the first one ended.
    assert second.record.loss_before.value == pytest.approx(first.record.loss_after.value, abs=0.05)
    assert second.record.loss_before.value < first.record.loss_before.value - 0.5
    assert load_policy(tmp_path / "second", dtype="float32").base == whole.base


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_nothing(
    base: ModelFolder, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=r"(loss|weight).*not finite|the loss is (nan|inf)"):
        tuned(base, tmp_path / "mine", SftSettings(**{**vars(SETTINGS), "learning_rate": 1e30}))
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"epochs": 0}, "epochs must be greater than 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be greater than 0"),
        ({"max_length": 4}, "max_length must be at least 8"),
        ({"held_out": 1.0}, "held_out must be above 0 and below 1"),
        ({"form": "probe"}, "form must be one of"),
    ],
)
def test_settings_outside_what_is_accepted(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        SftSettings(**changed)


# The command.


def rows(path: Path, dialogues: Sequence[Sequence[Message]]) -> Path:
    path.write_text("\n".join(json.dumps({"messages": list(d)}) for d in dialogues) + "\n")
    return path


def test_the_command_trains_a_policy_that_others_take(base: ModelFolder, tmp_path: Path) -> None:
    source = rows(tmp_path / "dialogues.jsonl", DIALOGUES)
    there = ("--workspace", tmp_path / "w")
    arguments = ("--epochs", "1", "--learning-rate", "0.01", "--dtype", "float32")
    line = ("train-sft", "--model", base.path, "--dataset", source, *arguments, *there)
    data = printed(*line)
    from tests.test_docs import generator

    assert list(data) == list(generator().JSON["train-sft"])
    assert (data["dialogues"], data["held_out"], data["template"]) == (36, 4, "own")
    assert data["change_interval"][1] < 0
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Say 90\nSay 91\n")
    sampled = printed("sample-pairs", "--model", data["path"], "--prompts", prompts, *there)
    assert sampled["prompts"] == 2
    text = passed(*line).stdout
    assert "4 held-out dialogues" in " ".join(text.split())


def test_rows_that_cannot_be_read_are_told(base: ModelFolder, tmp_path: Path) -> None:
    source = rows(tmp_path / "dialogues.jsonl", DIALOGUES)
    source.write_text(source.read_text() + '{"messages": []}\n')
    line = ("train-sft", "--model", base.path, "--dataset", source, "--workspace", tmp_path / "w")
    said = passed(*line, "--epochs", "0.2").stderr
    assert "hint: 1 row is left out, beside 40 that can be read" in said


# Several processes, and kill -9.


def environment(tmp_path: Path, **changes: str) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "MORLAIF_CACHE": str(tmp_path / "cache"),
        "ACCELERATE_USE_CPU": "true",
        **changes,
    }


@pytest.mark.slow
def test_a_killed_command_goes_on(base: ModelFolder, tmp_path: Path) -> None:
    source = rows(tmp_path / "dialogues.jsonl", DIALOGUES)
    line = [sys.executable, "-m", "morlaif_hub", "train-sft", "--model", str(base.path)]
    line += ["--dataset", str(source), "--epochs", "15", "--batch-size", "1", "--dtype", "float32"]
    line += ["--workspace", str(tmp_path / "w"), "--json"]
    process = subprocess.Popen(line, env=environment(tmp_path), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "w/training").glob("sft-*/checkpoint-*/morlaif.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "w/policies/sft").exists()
    done = subprocess.run(line, env=environment(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 15 * 36
    assert not list((tmp_path / "w/training").iterdir())


@pytest.mark.slow
def test_two_processes_agree_with_one(base: ModelFolder, tmp_path: Path) -> None:
    source = rows(tmp_path / "dialogues.jsonl", DIALOGUES)
    found = []
    for processes in (1, 2):
        line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        line += [str(processes), "-m", "morlaif_hub", "train-sft", "--model", str(base.path)]
        line += ["--dataset", str(source), "--batch-size", "6", "--learning-rate", "0.01"]
        line += ["--dtype", "float32", "--workspace", str(tmp_path / str(processes)), "--json"]
        done = subprocess.run(line, env=environment(tmp_path), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))
    one, two = found
    assert one["steps"] == two["steps"] == 6
    assert two["loss_after"] == pytest.approx(one["loss_after"], rel=0.02)
    assert two["loss_before"] == pytest.approx(one["loss_before"], abs=1e-6)
