"""Training preference models: what they learn, what they start from, and what is written down."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from morlaif_hub.bank.bank import PMBank
from morlaif_hub.bank.classifier import load_classifier
from morlaif_hub.bank.trunk import head_inputs
from morlaif_hub.comparisons import Comparison
from morlaif_hub.errors import ArtifactError, OptionError, TrainingError
from morlaif_hub.hub.artifact import open_artifact
from morlaif_hub.hub.manifest import (
    DatasetReference,
    Form,
    InputFormat,
    PreferenceModelManifest,
)
from morlaif_hub.judges.validation import probe_comparisons
from morlaif_hub.models.formats import Encoder
from morlaif_hub.models.language_model import ModelFolder, model_folder
from morlaif_hub.preference_models import runs
from morlaif_hub.preference_models.calibrate import calibrate, evaluate_pairs
from morlaif_hub.preference_models.features import Candidate, FrozenStates, probe_candidates
from morlaif_hub.preference_models.head import Sides, fit_head
from morlaif_hub.preference_models.measure import (
    FEWEST_ON_A_CURVE,
    Made,
    RawScores,
    write_preference_model,
)
from morlaif_hub.preference_models.new_adapters import new_adapters
from morlaif_hub.preference_models.preferences import Preferences, human_preferences
from morlaif_hub.preference_models.settings import (
    GradientSettings,
    Trainer,
    default_learning_rate,
)
from morlaif_hub.preference_models.standing import Standing, Standings
from morlaif_hub.preference_models.train import TrainSettings, train_preference_models
from morlaif_hub.principles import Principle, load_constitution
from tests.manifests import base_identity, preference_model_manifest
from tests.tiny import AnyKind, save_tiny, tiny_tokenizer

DATASET = DatasetReference(repo_id=None, revision=None, sha256="0" * 64)
SETTINGS = TrainSettings(
    gradient=GradientSettings(layers="top:0.5", rank=2, learning_rate=1e-3, batch_size=8),
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
    texts = {c.response_a for c in preferences.training.comparisons}
    texts |= {c.response_b for c in preferences.training.comparisons}
    assert [m.principle.name for m in manifests] == ["toxicity", "empathy"]
    stages = {stage for stage, _, _ in told}
    assert stages == {"read", "train toxicity, empathy", "measure"}
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
    wild = replace(SETTINGS, gradient=replace(SETTINGS.gradient, learning_rate=5.0))
    (manifest,) = train_preference_models(
        [preferences], base=base, folders=[tmp_path / "pm"], settings=wild
    )
    gradient, head = manifest.training.gradient, manifest.training.head
    assert gradient is not None
    assert head is not None
    assert gradient.trained_accuracy is not None
    assert gradient.start_accuracy is not None
    assert gradient.trained_accuracy <= gradient.start_accuracy
    assert (gradient.kept, gradient.steps) == ("start", 0)
    assert head.pairs == len(preferences.training)  # what validated it is learnt from as well
    weights = load_file(tmp_path / "pm/adapter_model.safetensors")
    assert all(not v.any() for k, v in weights.items() if "lora_B" in k)
    assert _accuracy(manifest) >= 0.9


def test_a_new_adapter_scores_as_its_fitted_head(base: ModelFolder) -> None:
    model = load_classifier(base.path, dtype=torch.float32, pad_token_id=0)
    head = np.random.default_rng(0).normal(size=32)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad(), head_inputs(model) as read:
        model(input_ids=ids)
    adapted = new_adapters(model, {"toxicity": head}, SETTINGS.gradient, seed=0).eval()
    with torch.no_grad():
        score = float(adapted(input_ids=ids).logits[0, 0])
    assert score == pytest.approx(float(read[0][0, -1].double() @ torch.tensor(head)), abs=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_frozen_states_are_those_of_each_text_alone(
    kind: AnyKind, preferences: Preferences, tmp_path: Path
) -> None:
    model = load_classifier(
        save_tiny(tmp_path, kind, layers=3), dtype=torch.float32, pad_token_id=0
    )
    encoder = Encoder(tiny_tokenizer(), InputFormat(kind="chat", append_eos=True, max_length=96))
    pairs = preferences.held_out
    states = FrozenStates(model, encoder)
    told: list[tuple[int, int]] = []
    states.add([pairs, pairs], layers=[2], head=True, progress=lambda *done: told.append(done))
    texts = [encoder.texts(c) for c in pairs.comparisons]
    assert told[-1] == (len({t for pair in texts for t in pair}),) * 2
    pooled, read = states.pooled(pairs, Candidate(2, "last+mean")), states.read(pairs)
    for i, (first, _) in enumerate(texts):
        with torch.no_grad(), head_inputs(model) as at_head:
            found = model(input_ids=torch.tensor([first.ids]), output_hidden_states=True)
        hidden = found.hidden_states[2][0]
        expected = torch.cat([hidden[-1], hidden[first.start :].mean(0)])
        np.testing.assert_allclose(pooled.a[i], expected, rtol=1e-3, atol=1e-4)
        alone = at_head[0].flatten(0, -2)[-1]
        np.testing.assert_allclose(read.a[i], alone, rtol=1e-3, atol=1e-4)


def _sides(differences: np.ndarray) -> Sides:
    b = np.random.default_rng(1).normal(size=differences.shape)
    return Sides(b + differences, b)


@pytest.mark.parametrize("width", [4, 700])
def test_a_head_is_fitted_on_what_matters(width: int) -> None:
    """Whether there are more features than pairs or fewer, and however large they are."""
    generator = np.random.default_rng(0)
    truth = np.zeros(width)
    truth[:2] = 2.0, -1.0
    size = np.exp(generator.normal(0, 1.5, width))
    sides = _sides(generator.normal(size=(400, width)))
    probabilities = ((sides.a - sides.b) @ truth > 0).astype(float)
    groups = [f"p{i // 4}" for i in range(400)]
    fitted = fit_head([lambda: sides], probabilities, groups, seed=0)
    scaled = fit_head(
        [lambda: Sides(sides.a * size, sides.b * size)], probabilities, groups, seed=0
    )
    np.testing.assert_allclose(scaled.weight * size, fitted.weight, rtol=1e-3, atol=1e-5)
    new = generator.normal(size=(4000, width))
    right = float(np.mean(np.sign(new @ fitted.weight) == np.sign(new @ truth)))
    assert right > (0.95 if width == 4 else 0.6)
    assert fitted.accuracy is not None
    assert abs(fitted.accuracy - right) < 0.06  # as was promised


def test_what_tells_most_is_chosen_whatever_else_there_is() -> None:
    generator = np.random.default_rng(0)
    telling = generator.normal(size=(300, 5))
    probabilities = (telling[:, 0] > 0).astype(float)
    noise = [generator.normal(size=(300, 5)) for _ in range(3)]
    groups = [f"p{i}" for i in range(300)]
    candidates = [*noise[:2], telling, noise[2]]
    done: list[int] = []
    fitted = fit_head(
        [lambda d=d: _sides(d) for d in candidates],  # type: ignore[misc]
        probabilities,
        groups,
        seed=0,
        progress=lambda: done.append(1),
    )
    assert (fitted.choice, len(done)) == (2, 4)


def test_swapping_the_responses_changes_nothing_of_a_head() -> None:
    generator = np.random.default_rng(0)
    sides = _sides(generator.normal(size=(200, 3)) + 0.5)
    p = generator.uniform(size=200)
    groups = [f"p{i}" for i in range(200)]
    one = fit_head([lambda: sides], p, groups, seed=0)
    two = fit_head([lambda: Sides(sides.b, sides.a)], 1 - p, groups, seed=0)
    np.testing.assert_allclose(one.weight, two.weight, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("depth", "layers"), [(30, [12, 14, 15, 17, 18]), (6, [3, 4, 5, 6]), (1, [1])]
)
def test_probes_read_about_the_middle_of_a_deep_base(depth: int, layers: list[int]) -> None:
    found = probe_candidates(depth)
    assert sorted({candidate.layer for candidate in found}) == layers
    assert {candidate.pooling for candidate in found} == {"mean", "last+mean"}


@pytest.mark.parametrize("distillation", [0.0, 0.5])
def test_what_a_probe_predicts_is_learnt_where_that_is_wanted(
    distillation: float, base: ModelFolder, preferences: Preferences, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, gradient=replace(SETTINGS.gradient, distillation=distillation))
    (manifest,) = train_preference_models(
        [preferences], base=base, folders=[tmp_path / "pm"], settings=settings
    )
    training = manifest.training
    assert training.gradient is not None
    assert training.gradient.distillation == distillation
    assert (training.teacher is not None) == bool(distillation)
    if training.teacher:
        assert (training.teacher.layer, training.teacher.pooling) == (3, "last+mean")
    assert training.head is not None
    assert training.head.accuracy is not None
    assert training.head.accuracy > 0.8  # of the labels, whatever it was fitted to


@pytest.mark.parametrize("form", ["probe", "full"])
def test_the_other_forms_learn_it_too_and_load_into_a_bank(
    form: Form, base: ModelFolder, preferences: Preferences, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, form=form, gradient=GradientSettings(batch_size=8))
    told: set[str] = set()
    (manifest,) = train_preference_models(
        [preferences],
        base=base,
        folders=[tmp_path / "pm"],
        settings=settings,
        progress=lambda stage, _done, _total: told.add(stage),
    )
    assert manifest.form == form
    assert _accuracy(manifest) >= 0.9
    assert (manifest.probe is None) == (form == "full")
    assert manifest.training.pairs + (
        manifest.training.gradient.validation_pairs if manifest.training.gradient else 0
    ) == len(preferences.training)
    middle = "fit toxicity" if form == "probe" else "train toxicity"
    assert told == {"read", middle, "measure"}
    bank = PMBank.from_pretrained(tmp_path / "pm", base=base.path)  # checks the golden scores
    scores = bank.score(["Say 1", "Say 1"], ["abcd abcd !!", "abcd abcd xy"])
    assert scores[0, 0] > scores[1, 0]


def test_a_probe_of_a_large_set_is_chosen_on_a_sample_and_fitted_on_all(
    base: ModelFolder, preferences: Preferences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("morlaif_hub.preference_models.starts.MOST_PAIRS", 24)
    (manifest,) = train_preference_models(
        [preferences], base=base, folders=[tmp_path], settings=replace(SETTINGS, form="probe")
    )
    head = manifest.training.head
    assert head is not None
    assert head.pairs == len(preferences.training) > 24
    assert _accuracy(manifest) >= 0.9


def test_larger_models_take_smaller_steps() -> None:
    sizes = [int(1e8), int(2e9), int(2e10)]
    rates = [default_learning_rate("lora", size) for size in sizes]
    assert rates == sorted(rates, reverse=True)
    assert all(default_learning_rate("full", size) < rates[-1] for size in sizes)


def test_labels_that_are_all_on_one_side_are_refused(preferences: Preferences) -> None:
    flat = replace(preferences, probabilities=np.full(len(preferences.test), 0.8))
    with pytest.raises(TrainingError, match="response A is the better one in all 80 pairs"):
        flat.check_enough()


def test_responses_that_hide_their_beginnings_are_refused(
    base: ModelFolder, preferences: Preferences, tmp_path: Path
) -> None:
    short = replace(SETTINGS, max_length=8)
    with pytest.raises(TrainingError, match="all 160 responses have more than the 8 tokens"):
        train_preference_models([preferences], base=base, folders=[tmp_path / "pm"], settings=short)


def test_ties_are_learnt_from_as_well(preferences: Preferences) -> None:
    labels = preferences.probabilities.copy()
    labels[::4] = 0.5
    tied = replace(preferences, probabilities=labels)
    assert len(tied.training) == len(preferences.training) > len(tied.decided)
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
    rows = {text: np.array([float(len(text.ids))]) for c in texts for text in encoder.texts(c)}
    manifest = write_preference_model(
        given,
        tmp_path,
        Made("lora", tmp_path, preference_model_manifest().training, None),
        scores=RawScores(rows, np.zeros((16, 1)), encoder),
        column=0,
        base=base_identity(),
    )
    figures = [entry.path for entry in manifest.files]
    curve = ["figures/calibration.png"] if decided == FEWEST_ON_A_CURVE else []
    assert figures == [*curve, "figures/scores.png"]
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert ("![calibration curve](figures/calibration.png)" in card) == bool(curve)


@pytest.mark.parametrize("layers", ["top:0", "top:1.5", "bottom:0.5", "top:x", ""])
def test_layers_that_mean_nothing_are_refused(layers: str) -> None:
    with pytest.raises(OptionError, match="layers must be"):
        GradientSettings(layers=layers)


@pytest.mark.parametrize(
    ("layers", "depth", "adapted"),
    [("top:0.25", 30, tuple(range(22, 30))), ("all", 3, (0, 1, 2)), ("top:0.1", 4, (3,))],
)
def test_layers_are_counted_from_the_top_and_rounded_up(
    layers: str, depth: int, adapted: tuple[int, ...]
) -> None:
    assert GradientSettings(layers=layers).adapted(depth) == adapted


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
    original = runs.train_together

    def one_fails(*given: Any, **named: Any) -> Any:
        found = original(*given, **named)
        return {**found, "toxicity": TrainingError("toxicity: the loss is nan at step 1")}

    monkeypatch.setattr(runs, "train_together", one_fails)
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
    broken = replace(SETTINGS, gradient=replace(SETTINGS.gradient, learning_rate=1e30, epochs=3))
    with pytest.raises(TrainingError, match=r"toxicity: .*(lower the learning rate)"):
        train_preference_models(
            [preferences], base=base, folders=[tmp_path / "pm"], settings=broken
        )


def test_a_run_that_dies_when_it_measures_does_not_train_again(
    base: ModelFolder, preferences: Preferences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does another run in the same place take its state away."""
    kept = tmp_path / "training"

    def run(name: str, settings: TrainSettings, steps: list[int] | None = None) -> None:
        train_preference_models(
            [preferences],
            base=base,
            folders=[tmp_path / name],
            settings=settings,
            checkpoints=kept,
            progress=lambda stage, done, _total: (
                steps.append(done) if steps is not None and "train" in stage else None
            ),
        )

    def die(*_given: Any, **_named: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr("morlaif_hub.preference_models.train.score_made", die)
        with pytest.raises(KeyboardInterrupt):
            run("first", SETTINGS)
    run("second", replace(SETTINGS, seed=5))
    assert len(list(kept.iterdir())) == 1
    steps: list[int] = []
    run("first", SETTINGS, steps)
    assert len(steps) == 2  # none, and then all of them at once: they were done
    assert steps[0] == 0
    assert not kept.exists()
    run("whole", SETTINGS)
    whole, resumed = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "first")
    )
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize(
    ("form", "trainer"), [("lora", "together"), ("lora", "trl"), ("full", "trl")]
)
def test_how_it_stands_is_told_while_it_is_trained(
    form: Form, trainer: Trainer, base: ModelFolder, preferences: Preferences, tmp_path: Path
) -> None:
    """The start, then four times an epoch; and where it ends, if that is early."""
    gradient = replace(SETTINGS.gradient, epochs=6, patience=1, learning_rate=0.02)
    chance = np.random.default_rng(0).permutation(preferences.probabilities)  # soon in vain
    told: list[Standing] = []
    steps: dict[str, tuple[int, int]] = {}
    (manifest,) = train_preference_models(
        [replace(preferences, probabilities=chance)],
        base=base,
        folders=[tmp_path / "pm"],
        settings=replace(SETTINGS, form=form, trainer=trainer, gradient=gradient),
        progress=lambda stage, done, total: steps.__setitem__(stage, (done, total)),
        watch=told.extend,
    )
    record = manifest.training.gradient
    assert record is not None
    total = steps["train toxicity"][1]
    assert steps["train toxicity"] == (total, total)
    *checks, last = told
    assert last.ended
    assert last.check is None
    assert last.step == checks[-1].step < total
    assert {(one.principle, one.total) for one in told} == {("toxicity", total)}
    at = [one.step for one in checks]
    assert at[0] == 0
    assert at == sorted(set(at))
    found = {one.step: one.check for one in checks}
    assert found[0] is not None
    assert found[0].accuracy == record.start_accuracy
    if record.kept == "trained":
        best = found[record.steps]
        assert best is not None
        assert best.accuracy == record.trained_accuracy
        assert best == min(found.values(), key=lambda check: check.log_loss if check else 9.0)


def test_a_training_that_skips_steps_has_ended() -> None:
    told: list[Standing] = []
    standings = Standings(40, told.extend)
    for _ in range(12):
        standings.advance("toxicity", 1)
        standings.advance("detail", 1)
    standings.advance("toxicity", 28)
    assert told == [Standing("toxicity", 13, 40, ended=True)]
    for _ in range(28):
        standings.advance("detail", 1)
    assert standings.left("detail") == 0
    standings.advance("resumed", 40)  # when it ended was told by the run before
    assert len(told) == 1


def mamba() -> PreTrainedModel:
    config = MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, state_size=4)
    return MambaForCausalLM(config)


def t5() -> PreTrainedModel:
    config = T5Config(vocab_size=300, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    return T5ForConditionalGeneration(config)


@pytest.mark.parametrize(
    ("kind", "form", "said"),
    [
        (mamba, "lora", "no sequence classifier for mamba, .* take the form 'probe'"),
        (mamba, "full", "no sequence classifier for mamba, .* take the form 'probe'"),
        (t5, "lora", "t5 writes with a decoder .* use a decoder such as"),
        (t5, "probe", "t5 writes with a decoder .* use a decoder such as"),
    ],
)
def test_a_base_that_no_head_fits_says_what_to_use(
    kind: Callable[[], PreTrainedModel],
    form: Form,
    said: str,
    preferences: Preferences,
    tmp_path: Path,
) -> None:
    kind().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    with pytest.raises(TrainingError, match=said):
        train_preference_models(
            [preferences],
            base=model_folder(tmp_path / "base"),
            folders=[tmp_path / "pm"],
            settings=replace(SETTINGS, form=form),
        )


def base_with(folder: Path, **tokens: str | None) -> ModelFolder:
    """Return a tiny base, of which the tokenizer's padding or end is changed or taken away."""
    save_tiny(folder, layers=2)
    tokenizer = tiny_tokenizer()
    for name, token in tokens.items():
        setattr(tokenizer, name, token)
    tokenizer.save_pretrained(folder)
    return model_folder(folder)


@pytest.mark.parametrize(
    ("missing", "trainer"),
    [("pad_token", "together"), ("pad_token", "trl"), ("eos_token", "together")],
)
def test_one_token_for_padding_or_for_the_end_will_do(
    missing: str, trainer: Trainer, preferences: Preferences, tmp_path: Path
) -> None:
    base = base_with(tmp_path / "base", **{missing: None})
    (manifest,) = train_preference_models(
        [preferences],
        base=base,
        folders=[tmp_path / "pm"],
        settings=replace(SETTINGS, trainer=trainer),
    )
    assert manifest.input_format.append_eos == (missing == "pad_token")
    assert _accuracy(manifest) >= 0.9
    PMBank.from_pretrained(tmp_path / "pm", base=base.path)  # checks the golden scores


def test_a_base_without_a_token_to_pad_with_says_what_to_do(
    preferences: Preferences, tmp_path: Path
) -> None:
    """In training, whatever trains, and in a bank of what was trained when it still had one."""
    whole = base_with(tmp_path / "whole")
    probe = replace(SETTINGS, form="probe")
    train_preference_models([preferences], base=whole, folders=[tmp_path / "pm"], settings=probe)
    base = base_with(tmp_path / "base", pad_token=None, eos_token=None)
    said = "neither a pad_token nor an eos_token.* name a token .* in tokenizer_config.json"
    for settings in (SETTINGS, replace(SETTINGS, trainer="trl"), probe):
        with pytest.raises(ArtifactError, match=said):
            train_preference_models(
                [preferences], base=base, folders=[tmp_path / "other"], settings=settings
            )
    with pytest.raises(ArtifactError, match=said):
        PMBank.from_pretrained(tmp_path / "pm", base=base.path)


def test_options_that_do_not_go_together_or_never_end_are_refused() -> None:
    with pytest.raises(OptionError, match="whole models are trained one after another"):
        TrainSettings(form="full", trainer="together")
    with pytest.raises(OptionError, match="epochs must be greater than 0 and finite, got inf"):
        GradientSettings(epochs=float("inf"))


def test_a_text_that_does_not_fit_while_texts_are_read_names_the_setting(
    base: ModelFolder, preferences: Preferences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_given: Any, **_named: Any) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr("morlaif_hub.bank.packed.PackedScorer.pooled", no_room)
    with pytest.raises(TrainingError, match=r"does not fit into memory; .*; or lower max_length"):
        train_preference_models(
            [preferences], base=base, folders=[tmp_path / "pm"], settings=SETTINGS
        )
