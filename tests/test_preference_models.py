"""Training preference models: what they learn, what they start from, and what is written down."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from morlaif_hub.bank.bank import PMBank
from morlaif_hub.bank.classifier import load_classifier
from morlaif_hub.bank.trunk import head_inputs, layer_list
from morlaif_hub.comparisons import Comparison
from morlaif_hub.errors import OptionError, TrainingError
from morlaif_hub.hub.artifact import open_artifact
from morlaif_hub.hub.manifest import DatasetReference, InputFormat, PreferenceModelManifest
from morlaif_hub.judges.validation import probe_comparisons
from morlaif_hub.models.formats import Encoder
from morlaif_hub.models.language_model import ModelFolder, model_folder
from morlaif_hub.preference_models import lora
from morlaif_hub.preference_models.calibrate import calibrate, evaluate_pairs
from morlaif_hub.preference_models.features import FrozenFeatures
from morlaif_hub.preference_models.head import fit_head
from morlaif_hub.preference_models.lora import LoraSettings, new_adapter
from morlaif_hub.preference_models.measure import (
    FEWEST_ON_A_CURVE,
    RawScores,
    write_preference_model,
)
from morlaif_hub.preference_models.preferences import Preferences, human_preferences
from morlaif_hub.preference_models.train import TrainSettings, train_preference_models
from morlaif_hub.principles import Principle, load_constitution
from tests.manifests import base_identity, preference_model_manifest
from tests.tiny import AnyKind, save_tiny, tiny_tokenizer

DATASET = DatasetReference(repo_id=None, revision=None, sha256="0" * 64)
SETTINGS = TrainSettings(
    lora=LoraSettings(layers="top:0.5", rank=2, learning_rate=1e-3, batch_size=8),
    max_length=96,
    dtype="float32",
)


def marked_pairs(prompts: int, mark: str) -> list[Comparison]:
    """Return pairs of which the better one has a mark in it; easy to learn, even when tiny."""
    generator = np.random.default_rng(0)
    pairs = []
    for i in range(prompts):
        for _ in range(2):
            words = ["".join(generator.choice(list("abcdefgh"), 4)) for _ in range(4)]
            plain = " ".join(words)
            prompt = ({"role": "user", "content": f"Say {i}"},)
            pairs.append(Comparison.from_choice(prompt, f"{plain} {mark}", rejected=f"{plain} xy"))
    return pairs


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return model_folder(save_tiny(tmp_path_factory.mktemp("base"), request.param, layers=4))


@pytest.fixture(scope="module")
def principle() -> Principle:
    return load_constitution().get("toxicity")


@pytest.fixture(scope="module")
def preferences(principle: Principle) -> Preferences:
    return human_preferences(principle, marked_pairs(40, "!!"), dataset=DATASET)


@pytest.fixture(scope="module")
def trained(
    base: ModelFolder, preferences: Preferences, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, PreferenceModelManifest]:
    folder = tmp_path_factory.mktemp("pms") / "toxicity"
    (manifest,) = train_preference_models(
        [preferences], base=base, folders=[folder], settings=SETTINGS
    )
    return folder, manifest


def _accuracy(manifest: PreferenceModelManifest) -> float:
    return next(e.value for e in manifest.evaluations if e.metric == "accuracy")


def test_it_learns_what_the_labels_say(trained: tuple[Path, PreferenceModelManifest]) -> None:
    assert _accuracy(trained[1]) >= 0.9


def test_the_bank_scores_what_was_measured(
    trained: tuple[Path, PreferenceModelManifest], base: ModelFolder, preferences: Preferences
) -> None:
    folder, manifest = trained
    bank = PMBank.from_pretrained(folder, base=base.path)  # checks the golden scores
    test = preferences.held_out.comparisons
    a = bank.score([list(c.prompt) for c in test], [c.response_a for c in test])
    b = bank.score([list(c.prompt) for c in test], [c.response_b for c in test])
    both = torch.cat([a, b]).double()
    assert both.mean().abs() < 1e-4  # calibrated on these very texts
    assert abs(float(both.std(unbiased=False)) - 1) < 1e-4
    right = ((a - b)[:, 0] > 0).numpy() == (preferences.held_out.probabilities > 0.5)
    assert right.mean() == pytest.approx(_accuracy(manifest))


def test_the_artifact_holds_the_adapter_with_its_head_and_nothing_else(
    trained: tuple[Path, PreferenceModelManifest],
) -> None:
    folder, _ = trained
    manifest = open_artifact(folder, PreferenceModelManifest)
    assert {entry.path for entry in manifest.files} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "figures/scores.png",
    }
    weights = load_file(folder / "adapter_model.safetensors")
    assert [tuple(v.shape) for k, v in weights.items() if k.endswith("score.weight")] == [(1, 32)]
    adapted = {k.split(".lora_")[0] for k in weights if "lora_" in k}
    assert all(".2." in name or ".3." in name for name in adapted)  # the top half of four layers
    assert str(folder.parent) not in (folder / "adapter_config.json").read_text()


def test_the_same_seed_gives_the_same_weights(
    trained: tuple[Path, PreferenceModelManifest],
    base: ModelFolder,
    preferences: Preferences,
    tmp_path: Path,
) -> None:
    torch.manual_seed(12345)  # whatever the caller did before
    train_preference_models(
        [preferences], base=base, folders=[tmp_path / "again"], settings=SETTINGS
    )
    one = load_file(trained[0] / "adapter_model.safetensors")
    two = load_file(tmp_path / "again/adapter_model.safetensors")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_step_of_long_texts_is_taken_in_parts_with_the_same_result(
    trained: tuple[Path, PreferenceModelManifest],
    base: ModelFolder,
    preferences: Preferences,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """People's choices all weigh the same, so that the parts of a step add up exactly."""
    steps: list[int] = []
    monkeypatch.setattr(lora, "STEP_TOKENS", 2 * 96 * 2)
    train_preference_models(
        [preferences],
        base=base,
        folders=[tmp_path / "pm"],
        settings=SETTINGS,
        progress=lambda stage, _done, total: steps.append(total) if "train" in stage else None,
    )
    whole, parts = (
        load_file(f / "adapter_model.safetensors") for f in (trained[0], tmp_path / "pm")
    )
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, atol=1e-5, rtol=1e-3)
    assert len(steps) == steps[0]  # as many steps as before, however many parts


@pytest.mark.parametrize(
    ("longest", "batch_size", "expected"),
    [(100, 16, 16), (300, 16, 4), (1024, 16, 2), (4096, 16, 1), (200, 9, 9), (300, 9, 3)],
)
def test_how_many_pairs_are_trained_on_at_once(
    longest: int, batch_size: int, expected: int
) -> None:
    assert lora._pairs_at_once(longest, batch_size) == expected


def test_several_principles_share_one_pass_of_the_base(
    base: ModelFolder, preferences: Preferences, tmp_path: Path
) -> None:
    other = replace(
        preferences,
        principle=load_constitution().get("empathy"),
        probabilities=1.0 - preferences.probabilities,
    )
    told: list[tuple[str, int, int]] = []
    manifests = train_preference_models(
        [preferences, other],
        base=base,
        folders=[tmp_path / "a", tmp_path / "b"],
        settings=SETTINGS,
        progress=lambda *args: told.append(args),
    )
    texts = {c.response_a for c in preferences.decided.comparisons}
    texts |= {c.response_b for c in preferences.decided.comparisons}
    assert [m.principle.name for m in manifests] == ["toxicity", "empathy"]
    stages = {stage for stage, _, _ in told}
    assert stages == {"read", "train toxicity", "train empathy", "measure"}
    last = {stage: (done, total) for stage, done, total in told}
    assert all(done == total for done, total in last.values()), last
    assert last["read"] == (len(texts), len(texts))  # once for both
    bank = PMBank.from_pretrained([tmp_path / "a", tmp_path / "b"], base=base.path)
    scores = bank.score(["Say 1", "Say 1"], ["abcd abcd !!", "abcd abcd xy"], calibrated=False)
    assert scores[0, 0] > scores[1, 0]
    assert scores[0, 1] < scores[1, 1]


def test_training_that_ends_worse_is_undone(
    base: ModelFolder, preferences: Preferences, tmp_path: Path
) -> None:
    wild = replace(SETTINGS, lora=replace(SETTINGS.lora, learning_rate=50.0))
    (manifest,) = train_preference_models(
        [preferences], base=base, folders=[tmp_path / "pm"], settings=wild
    )
    assert manifest.training.trained_accuracy < manifest.training.start_accuracy
    assert manifest.training.kept == "start"
    weights = load_file(tmp_path / "pm/adapter_model.safetensors")
    assert all(not v.any() for k, v in weights.items() if "lora_B" in k)
    assert _accuracy(manifest) >= 0.9


def test_a_new_adapter_scores_as_its_fitted_head(base: ModelFolder) -> None:
    model = load_classifier(base.path, dtype=torch.float32, pad_token_id=0)
    features = FrozenFeatures(model, depth=2, pad_token_id=0)
    texts = [(5, 6, 7), (8, 9), (10, 11, 12, 13)]
    features.add(texts)
    head = np.random.default_rng(0).normal(size=32)
    adapted = new_adapter(model, head, SETTINGS.lora).eval()
    with torch.no_grad():
        scores = [float(adapted(input_ids=torch.tensor([t])).logits[0, 0]) for t in texts]
    expected = features.read_out(texts).double().numpy() @ head
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)


def test_training_from_kept_states_equals_the_whole_model(base: ModelFolder) -> None:
    model = load_classifier(base.path, dtype=torch.float32, pad_token_id=0)
    features = FrozenFeatures(model, depth=2, pad_token_id=0)
    texts = [(5, 6, 7), (8, 9, 10, 11, 12)]
    features.add(texts)
    adapted = new_adapter(model, np.ones(32), SETTINGS.lora)
    ids = torch.tensor([[5, 6, 7, 0, 0], [8, 9, 10, 11, 12]])
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    gradients = []
    for kept in (False, True):
        adapted.zero_grad()
        if kept:
            with features.trained_on(adapted) as announce:
                announce(ids, mask)
                adapted(input_ids=ids, attention_mask=mask).logits.sum().backward()
        else:
            adapted(input_ids=ids, attention_mask=mask).logits.sum().backward()
        gradients.append(
            {n: p.grad.clone() for n, p in adapted.named_parameters() if p.grad is not None}
        )
    assert gradients[0].keys() == gradients[1].keys()
    assert any("lora_B" in name for name in gradients[0])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_what_the_head_reads_and_what_enters_a_layer_is_that_of_each_text_alone(
    kind: AnyKind, tmp_path: Path
) -> None:
    model = load_classifier(
        save_tiny(tmp_path, kind, layers=3), dtype=torch.float32, pad_token_id=0
    )
    texts = [tuple(range(5, 35)), (*range(5, 25), 60, 61), (7, 8, 9), tuple(range(5, 25))]
    made = FrozenFeatures(model, depth=2, pad_token_id=0)
    told: list[int] = []
    made.add([*texts, *texts], progress=told.append)
    assert sum(told) == len(texts)
    layers = layer_list(model)
    assert layers is not None
    for text in texts:
        entering: list[torch.Tensor] = []
        hook = layers[2].register_forward_pre_hook(
            lambda _module, given, kept=entering: kept.append(given[0])
        )
        with torch.no_grad(), head_inputs(model) as read:
            model(input_ids=torch.tensor([text]))
        hook.remove()
        torch.testing.assert_close(made._entering[text], entering[0][0], atol=1e-5, rtol=1e-4)
        alone = read[0].flatten(0, -2)[-1]
        torch.testing.assert_close(made.read_out([text])[0], alone, atol=1e-5, rtol=1e-4)


def test_a_head_is_fitted_on_what_matters() -> None:
    generator = np.random.default_rng(0)
    truth = np.array([2.0, -1.0, 0.0, 0.0])
    differences = generator.normal(size=(400, 4))
    probabilities = (differences @ truth > 0).astype(float)
    groups = [f"p{i // 4}" for i in range(400)]
    head = fit_head(differences, probabilities, np.ones(400), groups, seed=0)
    cosine = head @ truth / np.linalg.norm(head) / np.linalg.norm(truth)
    assert cosine > 0.98


def test_weights_follow_the_size_of_the_verdicts(preferences: Preferences) -> None:
    sure = replace(preferences, probabilities=np.linspace(0.55, 0.95, len(preferences.test)))
    weights = sure.decided.weights
    assert (np.diff(weights) > 0).all()
    assert weights.max() <= 3.0
    np.testing.assert_allclose(preferences.decided.weights, 1.0)  # equally sure: equal weights


def test_ties_are_not_trained_on_but_calibrate(preferences: Preferences) -> None:
    tied = replace(preferences, probabilities=np.where(preferences.test, 0.5, 1.0))
    assert (tied.held_out.probabilities == 0.5).all()
    assert len(tied.held_out.decided()) == 0
    flat = replace(preferences, probabilities=np.full(len(preferences.test), 0.5))
    with pytest.raises(TrainingError, match="toxicity: 0 training pairs"):
        flat.check_enough()


def test_no_prompt_is_on_both_sides_of_a_split(preferences: Preferences) -> None:
    train, validation = preferences.decided.split(0.25, seed=3)
    assert not set(train.prompts) & set(validation.prompts)
    assert not set(preferences.held_out.prompts) & set(preferences.decided.prompts)
    assert len(set(validation.prompts)) == round(0.25 * len(set(preferences.decided.prompts)))


def test_pairs_without_a_human_choice_are_refused(principle: Principle) -> None:
    pairs = [Comparison(({"role": "user", "content": "Hi"},), "a", "b")]
    with pytest.raises(TrainingError, match="human choice"):
        human_preferences(principle, pairs, dataset=DATASET)


def test_the_length_only_rule_is_measured_beside_the_accuracy() -> None:
    pairs = [
        Comparison(({"role": "user", "content": f"{i}"},), "one two three four", "one", "a")
        for i in range(10)
    ] + [Comparison(({"role": "user", "content": f"x{i}"},), "a b", "c d", "a") for i in range(6)]
    ones = np.ones(len(pairs))
    everything, equal = evaluate_pairs(pairs, -ones, ones, split="test", longer_is_better=True)
    assert (everything.value, everything.length_baseline, everything.n) == (0.0, 13 / 16, 16)
    assert (equal.metric, equal.length_baseline, equal.n) == ("accuracy_equal_length", 0.5, 6)


def test_calibration_gives_zero_mean_and_unit_deviation() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(3, 2, 500), generator.normal(2, 2, 500)
    calibration = calibrate(a, b, (a > b).astype(float))
    scores = (np.concatenate([a, b]) - calibration.mean) / calibration.std
    assert abs(scores.mean()) < 1e-9
    assert scores.std() == pytest.approx(1.0)
    assert calibration.n == 1000


@pytest.mark.parametrize("decided", [FEWEST_ON_A_CURVE - 1, FEWEST_ON_A_CURVE])
def test_a_calibration_curve_is_drawn_where_there_are_pairs_enough(
    decided: int, principle: Principle, tmp_path: Path
) -> None:
    pairs = tuple(marked_pairs(40, "!!"))
    labels = np.where(np.arange(80) < decided, np.linspace(0.6, 0.9, 80), 0.5)
    given = Preferences(principle, pairs, labels, np.ones(80, bool), DATASET, judge=None)
    encoder = Encoder(tiny_tokenizer(), InputFormat(kind="chat", append_eos=True, max_length=96))
    texts = [*pairs, *probe_comparisons(principle)]
    rows = {ids: np.array([float(len(ids))]) for c in texts for ids in encoder.both(c)}
    manifest = write_preference_model(
        given,
        tmp_path,
        scores=RawScores(rows, np.zeros((16, 1)), encoder),
        column=0,
        base=base_identity(),
        training=preference_model_manifest().training,
    )
    figures = [entry.path for entry in manifest.files]
    curve = ["figures/calibration.png"] if decided == FEWEST_ON_A_CURVE else []
    assert figures == [*curve, "figures/scores.png"]
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert ("![calibration curve](figures/calibration.png)" in card) == bool(curve)


@pytest.mark.parametrize("layers", ["top:0", "top:1.5", "bottom:0.5", "top:x", ""])
def test_layers_that_mean_nothing_are_refused(layers: str) -> None:
    with pytest.raises(OptionError, match="layers must be"):
        LoraSettings(layers=layers)


@pytest.mark.parametrize(
    ("layers", "depth", "adapted"),
    [("top:0.25", 30, tuple(range(22, 30))), ("all", 3, (0, 1, 2)), ("top:0.1", 4, (3,))],
)
def test_layers_are_counted_from_the_top_and_rounded_up(
    layers: str, depth: int, adapted: tuple[int, ...]
) -> None:
    assert LoraSettings(layers=layers).adapted(depth) == adapted


def test_a_prompt_that_the_source_has_on_both_sides_is_trained_on(principle: Principle) -> None:
    pairs = [replace(c, split="train") for c in marked_pairs(12, "!!")]
    doubled = replace(pairs[0], response_a=pairs[0].response_a + " x", split="test")
    alone = replace(marked_pairs(13, "!!")[-1], split="test")
    given = human_preferences(principle, [*pairs, doubled, alone], dataset=DATASET)
    assert not set(given.held_out.prompts) & set(given.decided.prompts)
    assert given.held_out.prompts == [alone.prompt_id]


def test_one_principle_that_fails_leaves_the_others_finished(
    base: ModelFolder, preferences: Preferences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from morlaif_hub.preference_models import train

    original = train.train_lora

    def fail_once(*_args: object, **_options: object) -> object:
        monkeypatch.setattr(train, "train_lora", original)
        raise TrainingError("the loss is nan at step 1")

    monkeypatch.setattr(train, "train_lora", fail_once)
    other = replace(preferences, principle=load_constitution().get("empathy"))
    with pytest.raises(TrainingError, match=r"toxicity: the loss is nan.*kept: empathy"):
        train_preference_models(
            [preferences, other],
            base=base,
            folders=[tmp_path / "toxicity", tmp_path / "empathy"],
            settings=SETTINGS,
        )
    assert not (tmp_path / "toxicity").exists()
    bank = PMBank.from_pretrained(tmp_path / "empathy", base=base.path)
    assert bank.objectives == ("empathy",)


def test_a_loss_that_is_not_finite_stops_with_its_step(
    base: ModelFolder, preferences: Preferences, tmp_path: Path
) -> None:
    broken = replace(SETTINGS, lora=replace(SETTINGS.lora, learning_rate=1e30, epochs=3))
    with pytest.raises(TrainingError, match=r"toxicity: the loss is .* at step \d+"):
        train_preference_models(
            [preferences], base=base, folders=[tmp_path / "pm"], settings=broken
        )
