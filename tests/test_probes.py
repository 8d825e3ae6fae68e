"""Probes: they score as transformers' hidden states say, beside adapters, and are loaded safely."""

import copy
import functools
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from torch import Tensor
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedModel

from morlaif_hub import PMBank
from morlaif_hub.bank.artifact import write_bank
from morlaif_hub.bank.classifier import load_base
from morlaif_hub.bank.engine import Engine, EngineSettings
from morlaif_hub.bank.layout import first_places, later_places
from morlaif_hub.bank.pooling import backbone
from morlaif_hub.bank.probes import PROBE_WEIGHTS, ProbeFiles, check_probe, write_probe
from morlaif_hub.bank.trunk import layer_list
from morlaif_hub.errors import (
    ArtifactError,
    BaseMismatchError,
    ManifestError,
    OptionError,
    ScoreError,
)
from morlaif_hub.hub.artifact import seal
from morlaif_hub.hub.manifest import Pooling, PreferenceModelManifest, ProbeRecord, read_manifest
from morlaif_hub.models.formats import Text, encode, encode_whole_pair, prompt_text
from morlaif_hub.models.language_model import model_folder
from morlaif_hub.publish.push import push_to_hub
from morlaif_hub.publish.verify import verify
from tests.architectures import (
    ARCHITECTURES,
    LAYERS,
    LONGEST,
    RECIPES,
    Ids,
    adapters,
    plain,
    random_texts,
    scores_alone,
    some_texts,
    tiny_classifier,
)
from tests.hub_server import LoopbackHub
from tests.hub_workspace import make_base
from tests.probe_pms import (
    CHAT,
    end_of,
    hidden_states,
    make_probe,
    probed_alone,
    random_probe,
)
from tests.test_bank import make_pm
from tests.test_card_code import ANSWER, QUESTION, run_card
from tests.test_engine_architectures import COMPANY, QUICK, quick_or_slow, traces
from tests.test_publish import forget_this_machine
from tests.tiny import save_tiny, tiny_tokenizer

PROMPTS, RESPONSES = ["What is it?", "And you?"], ["A tree.", "The sea is wide and deep."]
READ: list[tuple[int, Pooling]] = [
    (1, "last"),
    (2, "mean"),
    (3, "last+mean"),
    (LAYERS, "mean"),
    (LAYERS, "last"),
]
EXACT = 2e-4


@dataclass(frozen=True)
class Case:
    """Probes of an architecture, and what they score.

    Attributes:
        base: A classifier.
        probes: On it.
        texts: Token ids.
        starts: Of each, the first token of its means.
        expected: By transformers alone, shape (texts, probes).
    """

    base: PreTrainedModel
    probes: dict[str, ProbeFiles]
    texts: list[Ids]
    starts: list[int]
    expected: Tensor

    def engine(self, pad: int, **options: Any) -> Engine:
        """Return an engine on a copy of the base, with these probes."""
        model = copy.deepcopy(self.base)
        return Engine(model, pad_token_id=pad, **{"adapters": {}, "probes": self.probes} | options)


CaseOf = Callable[[str], Case]


@functools.cache
def case_of(name: str) -> Case:
    base, pad = tiny_classifier(name), ARCHITECTURES[name].pad
    probes = {
        f"{i}": random_probe(base, layer, pooling, seed=i)
        for i, (layer, pooling) in enumerate(READ)
    }
    texts = some_texts(pad)
    starts = some_starts(texts, seed=0)
    expected = probed_alone(base, probes.values(), texts, starts=starts, pad=pad)
    return Case(base, probes, texts, starts, expected)


def some_starts(texts: list[Ids], *, seed: int) -> list[int]:
    """Return a start for each text, in any of its tokens, padding too, or behind all of them."""
    generator = torch.Generator().manual_seed(seed)
    return [int(torch.randint(len(text) + 1, (), generator=generator)) for text in texts]


def close(scores: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(scores, expected, atol=EXACT, rtol=1e-5)


def bare_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Return the base of a classifier by itself, as it is loaded where there are only probes."""
    return copy.deepcopy(backbone(model))


@pytest.mark.parametrize("name", quick_or_slow(ARCHITECTURES, QUICK))
def test_scores_are_those_of_plain_hidden_states(name: str) -> None:
    case, pad = case_of(name), ARCHITECTURES[name].pad
    assert case.expected.std(0).min() > 100 * EXACT
    in_classifier = case.engine(pad)
    close(in_classifier.score(case.texts, case.starts), case.expected)
    bare = Engine(bare_copy(case.base), pad_token_id=pad, adapters={}, probes=case.probes)
    before = traces(bare.model)  # transformers itself leaves hooks once it is asked for states
    close(bare.score(case.texts, case.starts), case.expected)
    assert bare.method == in_classifier.method
    assert traces(bare.model) == before


ADAPTABLE = [name for name, kind in ARCHITECTURES.items() if kind.adaptable]


@pytest.mark.parametrize("name", quick_or_slow(ADAPTABLE, QUICK))
@pytest.mark.parametrize("recipe", ["mixed", "from the first layer"])
def test_probes_and_adapters_score_together_as_they_do_apart(
    name: str, recipe: str, tmp_path: Path
) -> None:
    case, pad = case_of(name), ARCHITECTURES[name].pad
    files = adapters(case.base, tmp_path, RECIPES[recipe])
    alone = [scores_alone(plain(case.base, made), case.texts) for made in files.values()]
    engine = case.engine(pad, adapters=files)
    before = traces(engine.model)
    scores = engine.score(case.texts, case.starts)
    close(scores, torch.cat([torch.stack(alone, dim=1), case.expected], dim=1))
    assert (engine.method == "packed") == ARCHITECTURES[name].packed
    assert traces(engine.model) == before


WAYS = {
    "padded": EngineSettings(method="padded"),
    "nothing shared": EngineSettings(share_prefixes=False),
    "short rows": EngineSettings(row_tokens=LONGEST + 4),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", quick_or_slow([*QUICK, *COMPANY], ["llama", "bert"]))
def test_every_way_to_score_is_exact(name: str, way: str) -> None:
    if name == "bloom" and way == "nothing shared":
        pytest.skip("is not packed")
    case, pad = case_of(name), ARCHITECTURES[name].pad
    close(case.engine(pad, settings=WAYS[way]).score(case.texts, case.starts), case.expected)
    texts = random_texts(pad, seed=1)
    starts = some_starts(texts, seed=1)
    expected = probed_alone(case.base, case.probes.values(), texts, starts=starts, pad=pad)
    close(case.engine(pad, settings=WAYS[way]).score(texts, starts), expected)


@pytest.mark.parametrize("way", ["packed", *WAYS])
@pytest.mark.parametrize("name", quick_or_slow(["llama", "bert"], ["llama", "bert"]))
def test_equal_texts_may_start_in_different_places(name: str, way: str) -> None:
    """As where the first of two messages is asked for, or answered: the ids are the same."""
    case, pad = case_of(name), ARCHITECTURES[name].pad
    first = case.texts[2]
    texts = [first, case.texts[0], first, first, first, first[:30]]
    starts = [25, 20, 0, len(first) - 1, 25, 25]
    engine = case.engine(pad, settings=WAYS.get(way))
    told: list[int] = []
    scores = engine.score(texts, starts, progress=told.append)
    close(scores, probed_alone(case.base, case.probes.values(), texts, starts=starts, pad=pad))
    assert torch.equal(scores[0], scores[4])
    assert (scores[[0, 2, 3], 1].diff().abs() > 100 * EXACT).all()  # a mean
    assert sum(told) == 5
    close(scores[[0, 2, 3], 0], scores[0, 0].expand(3))  # the last token
    given = [tuple(text) for text in texts]
    found = dict(engine.pooled(given, [2], starts))
    assert set(found) == set(zip(given, starts, strict=True))
    for text, start in found:
        mean = hidden_states(case.base, text)[2][start:].mean(0)
        torch.testing.assert_close(found[Text(text, start)].mean[0], mean, atol=1e-4, rtol=1e-4)


def test_without_probes_no_score_depends_on_where_a_text_starts(tmp_path: Path) -> None:
    case = case_of("llama")
    engine = case.engine(3, probes={}, adapters=adapters(case.base, tmp_path, RECIPES["mixed"]))
    assert not engine.takes_starts
    assert case.engine(3).takes_starts
    text = case.texts[2]
    told: list[int] = []
    scores = engine.score([text] * 3, [0, 5, 9], progress=told.append)
    assert torch.equal(scores, engine.score([text])[[0, 0, 0]])
    assert told == [1]
    engine = case.engine(3, probes={})
    tokens = counted(engine.model)
    found = dict(engine.pooled([tuple(text)] * 2, [], [0, 5], head=True))
    assert {start for _, start in found} == {0, 5}
    assert tokens[0] == len(text)  # what the head reads is the same


@pytest.mark.parametrize(
    ("starts", "reason"),
    [([0], "got 1 starts for 2 sequences"), ([3, -1], "a start must be at least 0, got -1")],
)
def test_starts_that_cannot_be_are_refused(starts: list[int], reason: str) -> None:
    engine = case_of("llama").engine(3)
    with pytest.raises(OptionError, match=reason):
        engine.score([[5, 6], [7]], starts)
    with pytest.raises(OptionError, match=reason):
        list(engine.pooled([(5, 6), (7,)], [1], starts))


def counted(model: Any) -> Counter[int]:
    """Return a counter of the tokens that each layer will be given."""
    tokens: Counter[int] = Counter()
    for i, layer in enumerate(layer_list(model) or ()):
        layer.mlp.register_forward_hook(
            lambda _module, given, _result, i=i: tokens.update({i: given[0].shape[1]})
        )
    return tokens


@pytest.mark.parametrize("method", ["packed", "padded"])
def test_probes_alone_run_no_layer_above_the_deepest(method: Any) -> None:
    case = case_of("llama")
    middle = {"a": case.probes["0"], "b": case.probes["1"]}  # of the first and the second layer
    engine = case.engine(3, probes=middle, settings=EngineSettings(method=method))
    tokens = counted(engine.model)
    engine.score(case.texts, case.starts)
    assert set(tokens) == {0, 1}
    assert tokens[0] == tokens[1]


def test_the_layers_below_are_run_once_for_probes_and_adapters(tmp_path: Path) -> None:
    case = case_of("llama")
    top = adapters(case.base, tmp_path, RECIPES["top quarter"])  # two, on the last layer
    engine = case.engine(3, adapters=top, probes={"a": case.probes["2"], "b": case.probes["3"]})
    tokens = counted(engine.model)
    engine.score(case.texts, case.starts)
    row = tokens[0]
    different = len(set(zip(map(tuple, case.texts), case.starts, strict=True)))
    assert tokens[1] == tokens[2] == row
    # Once in full, for the mean of the last layer, and where texts are read for each adapter.
    assert row < tokens[3] <= row + 2 * different


@pytest.mark.parametrize("method", ["packed", "padded"])
@pytest.mark.parametrize("name", quick_or_slow(ARCHITECTURES, ["llama", "bert"]))
def test_pooled_states_are_those_of_transformers(name: str, method: Any) -> None:
    if method == "packed" and not ARCHITECTURES[name].packed:
        pytest.skip("is not packed")
    case, pad = case_of(name), ARCHITECTURES[name].pad
    engine = case.engine(pad, probes={}, settings=EngineSettings(method=method))
    layers = (2, 1) if name == "opt, projected" else (LAYERS, 2, 1)
    whole = ARCHITECTURES[name].adaptable  # else its head is of no known kind
    texts = [tuple(text) for text in case.texts]
    told: list[int] = []
    entering = 1 if layer_list(case.base) is not None else 0
    found = dict(
        engine.pooled(
            texts, layers, case.starts, head=whole, entering=entering, progress=told.append
        )
    )
    given = set(zip(texts, case.starts, strict=True))
    assert set(found) == given
    assert sum(told) == len(given)
    for (text, start), pooled in found.items():
        states = hidden_states(case.base, text)
        count = end_of(text, pad)
        first = min(start, count - 1)
        for i, layer in enumerate(layers):
            torch.testing.assert_close(
                pooled.last[i], states[layer][count - 1], atol=1e-4, rtol=1e-4
            )
            torch.testing.assert_close(
                pooled.mean[i], states[layer][first:count].mean(0), atol=1e-4, rtol=1e-4
            )
        assert (pooled.read is not None) == whole
        assert pooled.entering is not None
        if whole and layer_list(case.base) is not None:
            kept = pooled.entering.shape[0]
            torch.testing.assert_close(pooled.entering, states[1][:kept], atol=1e-4, rtol=1e-4)


def test_a_bare_base_serves_pooled_states_and_no_scores() -> None:
    case = case_of("gpt2")
    engine = Engine(bare_copy(case.base), pad_token_id=3, adapters={})
    assert engine.method == "packed"
    ((text, pooled),) = engine.pooled([(5, 6, 7)], [2])
    assert text == ((5, 6, 7), 0)
    assert pooled.read is None
    assert pooled.entering is None
    torch.testing.assert_close(pooled.last[0], hidden_states(case.base, text.ids)[2][-1])
    with pytest.raises(OptionError, match="nothing to score with"):
        engine.score([(5, 6, 7)])
    for layer in (0, LAYERS + 1):
        with pytest.raises(OptionError, match=rf"layer {layer} is not one of the model's, 1 to 4"):
            list(engine.pooled([(5, 6, 7)], [layer]))


@pytest.mark.parametrize("method", ["packed", "padded"])
def test_layers_of_different_widths_are_asked_for_one_by_one(method: Any) -> None:
    case = case_of("opt, projected")
    engine = case.engine(3, settings=EngineSettings(method=method))
    with pytest.raises(OptionError, match="layers 4 and 1 have states of different widths"):
        list(engine.pooled([(5, 6, 7)], [4, 1]))
    ((_, pooled),) = engine.pooled([(5, 6, 7)], [4])
    assert pooled.last.shape == (1, 16)


def test_when_memory_runs_out_probes_go_on_in_smaller_batches() -> None:
    case = case_of("llama")
    engine = case.engine(3)

    def limit(_module: Any, given: tuple[Any, ...]) -> None:
        if given[0].shape[1] > LONGEST:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    engine.model.get_input_embeddings().register_forward_pre_hook(limit)
    close(engine.score(case.texts, case.starts), case.expected)
    with pytest.raises(ScoreError, match="does not fit into memory"):
        engine.score([list(range(5, 66))])


def test_one_text_does_not_reach_into_the_mean_of_another() -> None:
    """Values that are not finite stay where they are, so that the right response is named."""
    case = case_of("llama")
    engine = case.engine(3, probes={"a": case.probes["1"]})
    embedding = engine.model.get_input_embeddings()
    embedding.weight[150] = float("nan")
    scores = engine.score([[150, 5], [7, 8, 9], [7, 8, 9, 10]])
    assert scores[:, 0].isnan().tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("first_places", lambda path, count: first_places(path, count - 1)),
        ("later_places", lambda path, count: later_places(path, count - 1)),
        ("later_places", lambda path, _count: path),
    ],
)
def test_a_packed_row_that_is_not_exact_is_found_out_for_probes(
    name: str, wrong: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is wrong only about a mean is no error of the states at the last tokens."""
    case = case_of("llama")
    monkeypatch.setattr(f"morlaif_hub.bank.packed.{name}", wrong)
    engine = case.engine(3, probes={"a": case.probes["1"]})
    assert engine.method == "padded"
    assert "scores of packed texts would be off by" in engine.why
    close(engine.score(case.texts, case.starts), case.expected[:, 1:2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close(dtype: torch.dtype) -> None:
    case = case_of("llama")
    model = bare_copy(case.base).to(dtype)
    engine = Engine(model, pad_token_id=3, adapters={}, probes=case.probes)
    assert engine.method == "packed"
    off = (engine.score(case.texts, case.starts) - case.expected).abs().amax(0) / case.expected.std(
        0
    )
    assert float(off.max()) < 0.3


# Files.


def test_a_probe_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = write_probe(tmp_path / "pm", [1.0, 2.5])
    assert path == tmp_path / "pm" / PROBE_WEIGHTS
    assert {k: v.tolist() for k, v in load_file(path).items()} == {"weight": [1.0, 2.5]}
    found = check_probe(tmp_path / "pm", "it", ProbeRecord(layer=1, pooling="mean"))
    assert found.weight.tolist() == [1.0, 2.5]
    assert (found.layer, found.pooling, found.where) == (1, "mean", "it")
    for bad in ([[1.0]], [], [float("nan")], 1.0):
        with pytest.raises(OptionError, match="must be one vector of finite numbers"):
            write_probe(tmp_path, bad)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("base"), "llama", layers=4)


@pytest.fixture
def pm(base: Path, tmp_path: Path) -> Path:
    return make_probe(tmp_path / "pms/detail", base, "detail", layer=2, pooling="last+mean")


GOOD = torch.ones(64)
BAD = {
    "two tensors": (
        save({"weight": GOOD, "bias": torch.ones(1)}),
        "one tensor, weight; it has bias",
    ),
    "another name": (save({"score.weight": GOOD}), "it has score.weight"),
    "no tensor": (save({}), "it has none"),
    "a matrix": (save({"weight": GOOD[None]}), r"one vector of float32 .* got F32 of shape \(1,"),
    "no number": (save({"weight": GOOD[:0]}), r"got F32 of shape \(0,\)"),
    "doubles": (save({"weight": GOOD.double()}), "got F64 of shape"),
    "not finite": (save({"weight": GOOD / 0}), "has NaN or infinite values"),
    "endless": (save({"weight": torch.zeros((1 << 20) + 1)}), "got F32 of shape"),
    "a pickle": (b"\x80\x04N.", "is not a safetensors file"),
    "an endless header": (struct.pack("<Q", 2**62), "is not a safetensors file"),
    "an LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 9\n" % (b"0" * 64),
        "Git LFS pointer",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_by_name(name: str, base: Path, pm: Path) -> None:
    content, reason = BAD[name]
    (pm / PROBE_WEIGHTS).write_bytes(content)
    reseal(pm)
    with pytest.raises(ArtifactError, match=reason) as caught:
        PMBank.from_pretrained(pm, base=base)
    assert str(caught.value).startswith(f"{pm}: {PROBE_WEIGHTS}")
    assert str(caught.value).isprintable()


def reseal(pm: Path, **fields: Any) -> None:
    """Let a probe's manifest list its files as they are now, and say something else."""
    manifest = read_manifest(pm, PreferenceModelManifest)
    seal(pm, replace(manifest, files=(), **fields))


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"layer": 5, "pooling": "last+mean"}, "probe.layer is 5, but its base has 4 layers"),
        ({"layer": 2, "pooling": "last"}, "weight has 64 numbers, but last of layer 2 has 32"),
        ({"layer": 2, "pooling": "mean"}, "weight has 64 numbers, but mean of layer 2 has 32"),
    ],
)
def test_a_probe_that_does_not_fit_its_base_is_refused(
    record: dict[str, Any], reason: str, base: Path, pm: Path
) -> None:
    reseal(pm, probe=ProbeRecord(**record))
    with pytest.raises(BaseMismatchError, match=reason):
        PMBank.from_pretrained(pm, base=base)


@pytest.mark.parametrize(
    ("record", "error"),
    [
        ({"layer": 1, "pooling": "last+mean"}, "golden scores are off by"),
        ({"layer": 4, "pooling": "last+mean"}, "golden scores are off by"),
    ],
)
def test_a_probe_of_another_layer_is_not_the_one_that_was_published(
    record: dict[str, Any], error: str, base: Path, pm: Path
) -> None:
    reseal(pm, probe=ProbeRecord(**record))
    with pytest.raises(ArtifactError, match=error):
        PMBank.from_pretrained(pm, base=base)


def test_a_file_that_is_not_there_or_not_the_one_of_the_manifest_is_refused(
    base: Path, pm: Path
) -> None:
    weight = load_file(pm / PROBE_WEIGHTS)["weight"]
    write_probe(pm, weight + 1)
    with pytest.raises(ArtifactError, match=PROBE_WEIGHTS):
        PMBank.from_pretrained(pm, base=base)
    (pm / PROBE_WEIGHTS).unlink()
    reseal(pm)
    with pytest.raises(ArtifactError, match=rf"no {PROBE_WEIGHTS}, which a probe needs"):
        PMBank.from_pretrained(pm, base=base)


@pytest.mark.parametrize("change", [{"form": "lora"}, {"probe": None}])
def test_what_a_probe_reads_is_said_of_probes_alone(change: dict[str, Any], pm: Path) -> None:
    text = (pm / "morlaif.json").read_text()
    if "form" in change:
        text = text.replace('"form": "probe"', '"form": "lora"')
    else:
        start = text.index('"probe": {')
        text = text[:start] + '"probe": null' + text[text.index("}", start) + 1 :]
    (pm / "morlaif.json").write_text(text)
    with pytest.raises(ManifestError, match=r"probe is (not )?wanted for a preference model"):
        read_manifest(pm, PreferenceModelManifest)


@pytest.mark.parametrize("source", ["one", {"detail": "one"}])
def test_a_probe_without_a_manifest_is_refused(source: Any, base: Path, pm: Path) -> None:
    (pm / "morlaif.json").unlink()
    named = pm if source == "one" else dict.fromkeys(source, pm)
    with pytest.raises(ArtifactError, match=rf"{PROBE_WEIGHTS} without a morlaif.json"):
        PMBank.from_pretrained(named, base=base)


def test_another_base_is_refused(pm: Path, tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "other", "llama", layers=4, seed=1)
    with pytest.raises(BaseMismatchError, match="made for the base"):
        PMBank.from_pretrained(pm, base=other)


def test_a_base_that_lacks_what_a_probe_reads_is_refused(tmp_path: Path) -> None:
    """Nothing else would bring it, and transformers fills it with random numbers."""
    whole = save_tiny(tmp_path / "base", "llama", layers=4)
    tensors = load_file(whole / "model.safetensors")
    kept = {n: t for n, t in tensors.items() if "layers.1.mlp.up_proj" not in n}
    save_file(kept, whole / "model.safetensors", metadata={"format": "pt"})
    probe = make_probe(tmp_path / "pm", whole, "detail", layer=2, pooling="mean")
    beside = make_pm(tmp_path / "lora", whole, "empathy", layers=[3])
    for sources in ([probe], [probe, beside]):
        with pytest.raises(ArtifactError, match=r"layers\.1\.mlp\.up_proj\.weight.*random"):
            PMBank.from_pretrained(sources, base=whole)


# Banks.


def test_a_bank_of_adapters_and_probes_keeps_its_order(
    base: Path, pm: Path, tmp_path: Path
) -> None:
    lora = make_pm(tmp_path / "pms/empathy", base, "empathy", layers=[3])
    other = make_probe(tmp_path / "pms/toxicity", base, "toxicity", layer=4, pooling="last")
    bank = PMBank.from_pretrained([pm, lora, other], base=base)
    assert bank.objectives == ("detail", "empathy", "toxicity")
    assert len(bank._groups) == 1
    scores = bank.score(PROMPTS, RESPONSES)
    for column, folder in enumerate((pm, lora, other)):
        alone = PMBank.from_pretrained(folder, base=base).score(PROMPTS, RESPONSES)
        torch.testing.assert_close(scores[:, column], alone[:, 0], atol=1e-4, rtol=0)
    weights = dict.fromkeys(bank.objectives, 1.0)
    write_bank(bank, tmp_path / "bank", scores=scores, weights=weights)
    again = PMBank.from_pretrained(tmp_path / "bank", base=base)
    assert torch.equal(again.score(PROMPTS, RESPONSES), scores)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_probes_need_no_classifier(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_tiny(tmp_path / "base", kind, layers=4)
    folder = make_probe(tmp_path / "pm", base, "detail", layer=2, pooling="last+mean")

    def none(*_given: Any, **_named: Any) -> None:
        raise AssertionError("a classifier was loaded")

    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", none)
    bank = PMBank.from_pretrained(folder, base=base)
    expected = read_manifest(folder, PreferenceModelManifest).golden.scores
    assert len(expected) == 16
    assert bank.score(PROMPTS, RESPONSES).shape == (2, 1)
    assert not hasattr(bank._groups[0].engine.model, "lm_head")


def test_a_bank_reads_the_response_of_each_text(base: Path, pm: Path) -> None:
    """Cut or not, as `golden.scores` are, which were checked when the bank was loaded."""
    long, longest = "And then? " * 20, "the end of it " * 20
    pairs = [
        ("What is it?", "A tree."),
        ("What is it?", ""),
        (long, "A tree."),
        ("What is it?", longest),
        ([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hm"}], "Yes."),
    ]
    prompts, responses = zip(*pairs, strict=True)
    bank = PMBank.from_pretrained(pm, base=base)
    scores = bank.score(prompts, responses, calibrated=False)
    assert bank.texts_cut == 2
    tokenizer, texts, starts = tiny_tokenizer(), [], []
    for prompt, response in pairs:
        whole = encode_whole_pair(tokenizer, prompt, response, CHAT)
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        before = len(tokenizer(prompt_text(tokenizer, messages))["input_ids"])
        dropped = max(0, len(whole) - CHAT.max_length)
        texts.append(whole[dropped:])
        starts.append(min(max(before - dropped, 0), len(texts[-1]) - 1))
    assert [start > 0 for start in starts] == [True, True, True, False, True]
    probe = check_probe(pm, "it", ProbeRecord(layer=2, pooling="last+mean"))
    model = AutoModel.from_pretrained(base).eval()
    pad = tokenizer.pad_token_id
    close(scores, probed_alone(model, [probe], texts, starts=starts, pad=pad))


def test_prompts_are_read_alone_for_probes_only(
    base: Path, pm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = make_pm(tmp_path / "lora", base, "empathy", layers=[3])
    read: list[str] = []

    def reading(tokenizer: Any, text: str) -> list[int]:
        read.append(text)
        return encode(tokenizer, text)

    # Three texts, and two different prompts.
    for sources, count in (([lora], 3), ([pm], 3 + 2)):
        bank = PMBank.from_pretrained(sources, base=base)
        read.clear()
        with monkeypatch.context() as patched:
            patched.setattr("morlaif_hub.models.formats.encode", reading)
            bank.score(["What?", "What?", "Who?"], ["A tree.", "Yes.", "Me."])
        assert len(read) == count


def test_a_loaded_base_is_without_a_head(base: Path) -> None:
    model = load_base(base, dtype=torch.float32, pad_token_id=tiny_tokenizer().pad_token_id)
    assert type(model) is type(AutoModel.from_pretrained(base))
    assert not model.training


# Publishing.


def test_the_code_of_a_probes_card_runs(
    base: Path, pm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a trainer leaves its folder of outputs
    names = run_card(read_manifest(pm, PreferenceModelManifest), pm, model_folder(base))
    expected = PMBank.from_pretrained(pm, base=base).score([QUESTION], [ANSWER])
    assert torch.equal(names["scores"], expected)
    assert [reward.__name__ for reward in names["trainer"].reward_funcs] == ["detail"]


def test_a_published_probe_scores_the_same_on_another_machine(
    ann: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    base = make_base(tmp_path / "base")
    model_folder(base)
    folder = make_probe(tmp_path / "pms/detail", base, "detail", layer=1, pooling="last+mean")
    expected = PMBank.from_pretrained(folder).score(PROMPTS, RESPONSES)
    assert push_to_hub(base).new
    done = push_to_hub(folder)
    assert done.repo_id == "ann/morlaif-pm-detail-0892fb8e"
    there = ann.files("model", done.repo_id)
    assert set(there) - {".gitattributes"} == {"README.md", "morlaif.json", PROBE_WEIGHTS}
    card = there["README.md"].decode()
    assert "hidden_states[1]" in card
    assert "base_model: ann/morlaif-base-" in card
    forget_this_machine(monkeypatch, tmp_path)
    found = PMBank.from_pretrained(done.repo_id)
    assert torch.equal(found.score(PROMPTS, RESPONSES), expected)
    verified = verify(done.repo_id)
    assert {"base weights", "golden scores"} <= {
        check.claim for check in verified.checks if check.verdict == "holds"
    }
