"""The engine: what is done once, what happens when memory runs out, and what it says."""

import logging
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import nn
from transformers import BloomConfig, BloomForSequenceClassification
from transformers.masking_utils import causal_mask_function, sliding_window_causal_mask_function

from morlaif_hub.bank.adapters import AdapterFiles, check_adapter
from morlaif_hub.bank.attention import Call, Rule, SegmentAttention
from morlaif_hub.bank.classifier import load_classifier
from morlaif_hub.bank.engine import Engine, EngineSettings
from morlaif_hub.bank.flex import FlexAttention
from morlaif_hub.bank.kernels import ONEDNN, TORCH, choose_kernel
from morlaif_hub.bank.layout import Ids, lay_out
from morlaif_hub.bank.trunk import layer_list
from morlaif_hub.errors import ArtifactError, BaseMismatchError, OptionError, ScoreError
from tests.tiny import save_tiny, tiny_tokenizer

PAD = tiny_tokenizer().pad_token_id
TEXTS: list[Ids] = [
    tuple(range(30)),
    (*range(12), 40, 41, 42),
    tuple(range(50, 55)),
    tuple(range(30)),
    (3,),
    (*range(12), *range(60, 90)),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("base"), "llama", layers=4)


def classifier(folder: Path) -> Any:
    return load_classifier(folder, dtype=torch.float32, pad_token_id=PAD)


@pytest.fixture(scope="module")
def adapters(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, AdapterFiles]:
    """Four adapters: three that begin with layer 2, one that begins with layer 3."""
    root = tmp_path_factory.mktemp("adapters")
    for i, layers in enumerate(([2, 3], [2], [2, 3], [3])):
        torch.manual_seed(i)
        config = LoraConfig(
            task_type=TaskType.SEQ_CLS, r=2, layers_to_transform=layers, init_lora_weights=False
        )
        model = get_peft_model(classifier(folder), config)
        model.peft_config["default"].base_model_name_or_path = None
        model.save_pretrained(root / f"{i}")
    return {f"{i}": check_adapter(root / f"{i}", f"{i}") for i in range(4)}


def engine(folder: Path, adapters: dict[str, AdapterFiles], **settings: Any) -> Engine:
    return Engine(
        classifier(folder),
        pad_token_id=PAD,
        adapters=adapters,
        settings=EngineSettings(**settings),
    )


@pytest.fixture(scope="module")
def expected(folder: Path, adapters: dict[str, AdapterFiles]) -> torch.Tensor:
    return engine(folder, adapters, method="padded").score(TEXTS)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"kernel": "torch"},
        {"kernel": "onednn"},
        {"share_prefixes": False},
        {"row_tokens": 1},
        {"row_tokens": 40},
        {"method": "packed"},
    ],
)
def test_settings_change_the_way_and_not_the_scores(
    settings: dict[str, Any],
    folder: Path,
    adapters: dict[str, AdapterFiles],
    expected: torch.Tensor,
) -> None:
    made = engine(folder, adapters, **settings)
    assert made.method == "packed"
    torch.testing.assert_close(made.score(TEXTS), expected, atol=1e-4, rtol=0)


def test_each_token_passes_each_layer_as_often_as_adapters_need(
    folder: Path, adapters: dict[str, AdapterFiles]
) -> None:
    made = engine(folder, adapters, kernel="torch")
    layers = layer_list(made.model)
    assert layers is not None
    tokens: Counter[int] = Counter()

    def counting(index: int) -> Any:
        return lambda _module, given, _result: tokens.update({index: given[0].shape[1]})

    for i, layer in enumerate(layers):
        layer.mlp.register_forward_hook(counting(i))
    made.score(TEXTS)
    different = len(lay_out(sorted(set(TEXTS))).ids)
    assert different == 30 + 3 + 5 + 1 + 30
    # Layer 2 runs for the trunk of the fourth adapter and for three adapters; the last layer, after
    # its attention, only where the five different texts are read.
    assert tokens == {0: different, 1: different, 2: 4 * different, 3: 4 * 5}


def test_progress_counts_different_texts(folder: Path, adapters: dict[str, AdapterFiles]) -> None:
    told: list[int] = []
    engine(folder, adapters, row_tokens=32).score(TEXTS, progress=told.append)
    assert sum(told) == len(set(TEXTS))
    assert len(told) > 1


def test_no_texts_have_no_scores(folder: Path, adapters: dict[str, AdapterFiles]) -> None:
    assert engine(folder, adapters).score([]).shape == (0, 4)


@pytest.fixture
def short_of_memory(folder: Path, adapters: dict[str, AdapterFiles]) -> Iterator[Engine]:
    """An engine whose base has room for 45 tokens at once."""
    made = engine(folder, adapters)

    def limit(_module: nn.Module, given: tuple[Any, ...]) -> None:
        if given[0].shape[1] > 45:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    made.model.get_input_embeddings().register_forward_pre_hook(limit)
    return made


def test_when_memory_runs_out_smaller_batches_go_on(
    short_of_memory: Engine, expected: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "morlaif_hub"):
        scores = short_of_memory.score(TEXTS)
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=0)
    assert caplog.messages == ["memory ran out: going on with batches of 46 tokens"]


def test_a_text_that_does_not_fit_is_named(short_of_memory: Engine) -> None:
    with pytest.raises(ScoreError, match="a text of 46 tokens does not fit into memory"):
        short_of_memory.score([tuple(range(46))])


STARVED = """
import resource, sys, torch
from tests.test_engine import *
made = engine(Path(sys.argv[1]), {})
texts = [tuple((7 * i + j) % 200 for j in range(400)) for i in range(400)]
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]), -1))
object.__setattr__(made.settings, "row_tokens", 10**6)
print(made.score(texts).shape[0])
"""


@pytest.mark.slow  # another process
@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_a_real_lack_of_memory_is_survived(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STARVED, str(folder), str(60 << 20)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == "400", done.stderr
    assert "memory ran out: going on with batches of" in done.stderr


def test_other_errors_are_not_taken_for_a_lack_of_memory(
    folder: Path, adapters: dict[str, AdapterFiles]
) -> None:
    made = engine(folder, adapters)

    def fail(*_given: Any) -> None:
        raise RuntimeError("another error")

    made.model.get_input_embeddings().register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="another error"):
        made.score(TEXTS)


def test_what_cannot_be_packed_says_so(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=100, hidden_size=32, n_layer=2, n_head=2, num_labels=1)
    config.pad_token_id = 99
    with caplog.at_level(logging.WARNING, "morlaif_hub"):
        made = Engine(BloomForSequenceClassification(config), pad_token_id=99, adapters={})
    assert made.method == "padded"
    (said,) = caplog.messages
    assert said.endswith(f"is scored in padded batches, which takes longer: {made.why}")
    assert made.why.startswith("BloomForSequenceClassification has attention of its own kind")


def test_a_wanted_way_that_is_not_exact_is_an_error() -> None:
    config = BloomConfig(vocab_size=100, hidden_size=32, n_layer=2, n_head=2, num_labels=1)
    config.pad_token_id = 99
    model = BloomForSequenceClassification(config)
    with pytest.raises(ScoreError, match="no way to score several texts at once is exact"):
        Engine(model, pad_token_id=99, adapters={}, settings=EngineSettings(method="packed"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head", [1.0, 1e-3])
def test_a_model_whose_layers_do_more_than_their_attention_says_is_found_out(
    head: float, dtype: torch.dtype, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One that mixes the tokens of a row, as recurrence does: no rule of attention shows it."""
    model = load_classifier(folder, dtype=dtype, pad_token_id=PAD)
    torch.manual_seed(0)
    model.score.weight.data = head * torch.randn(1, 32, dtype=dtype)
    layers = layer_list(model)
    assert layers is not None

    def mix(_module: nn.Module, _given: Any, result: torch.Tensor) -> torch.Tensor:
        count = torch.arange(1, result.shape[1] + 1)[:, None]
        return result + (result.float().cumsum(1) / count).to(result.dtype)

    layers[1].register_forward_hook(mix)
    with caplog.at_level(logging.WARNING, "morlaif_hub"):
        made = Engine(model, pad_token_id=PAD, adapters={})
    assert made.method == "padded"
    assert "scores of packed texts would be off by" in made.why


def test_an_adapter_that_is_merged_wrongly_is_found_out(
    folder: Path, adapters: dict[str, AdapterFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probes are short, and adapters are merged for many tokens only: both ways are tried."""
    right = torch.addmm

    def wrong(*given: Any, alpha: float = 1.0, **named: Any) -> torch.Tensor:
        return right(*given, alpha=2 * alpha, **named)

    monkeypatch.setattr(torch, "addmm", wrong)
    made = engine(folder, adapters)
    assert made.method == "padded"
    assert "scores of packed texts would be off by" in made.why


def test_a_model_that_has_adapters_is_not_given_others(
    folder: Path, adapters: dict[str, AdapterFiles]
) -> None:
    model = classifier(folder)
    Engine(model, pad_token_id=PAD, adapters=adapters)
    with pytest.raises(OptionError, match="the model has adapters already"):
        Engine(model, pad_token_id=PAD, adapters=adapters)


def test_a_model_that_reads_no_single_text_is_named(folder: Path) -> None:
    model = classifier(folder)
    model.forward = lambda **_given: 1 / 0
    with pytest.raises(ArtifactError, match="cannot score a text: ZeroDivisionError"):
        Engine(model, pad_token_id=PAD, adapters={})


def test_damaged_weights_of_the_base_are_found_at_load(folder: Path) -> None:
    model = classifier(folder)
    model.model.norm.weight.data[0] = float("nan")
    with pytest.raises(ArtifactError, match="scores probe texts as NaN"):
        Engine(model, pad_token_id=PAD, adapters={})


def test_a_token_of_another_vocabulary_is_refused(
    folder: Path, adapters: dict[str, AdapterFiles]
) -> None:
    with pytest.raises(OptionError, match="token 99999 is not one of the model's"):
        engine(folder, adapters).score([(1, 99999)])


def test_an_adapter_made_with_another_vocabulary_is_refused(folder: Path, tmp_path: Path) -> None:
    model = classifier(folder)
    model.resize_token_embeddings(400)
    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=2, modules_to_save=["embed_tokens"])
    adapted = get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = None
    adapted.save_pretrained(tmp_path)
    files = {"a": check_adapter(tmp_path, "a")}
    with pytest.raises(BaseMismatchError, match="does not fit its base"):
        Engine(classifier(folder), pad_token_id=PAD, adapters=files)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close(
    dtype: torch.dtype, folder: Path, adapters: dict[str, AdapterFiles], expected: torch.Tensor
) -> None:
    model = load_classifier(folder, dtype=dtype, pad_token_id=PAD)
    made = Engine(model, pad_token_id=PAD, adapters=adapters)
    assert made.method == "packed"
    assert made.kernel == "torch"
    off = (made.score(TEXTS) - expected).abs().max() / expected.std()
    assert 0 < off < 0.2


@pytest.mark.parametrize("rows", ["0", "-1"])
def test_a_row_has_at_least_one_token(rows: str) -> None:
    with pytest.raises(OptionError, match="row_tokens must be at least 1"):
        EngineSettings(row_tokens=int(rows))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("cap", [None, 2.0])
def test_attention_in_one_call_is_that_of_one_text_after_the_other(
    window: int | None, cap: float | None
) -> None:
    layout = lay_out(sorted(set(TEXTS)))
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, len(layout.ids), 16, generator=generator) for heads in (6, 2, 2)
    )
    function = sliding_window_causal_mask_function(window) if window else causal_mask_function
    rule, cpu = Rule(function), torch.device("cpu")
    module = Capped()
    call = Call(module, None, {"softcap": cap} if cap else {})
    one_by_one = SegmentAttention(layout, cpu)
    at_once = FlexAttention(layout, cpu, compiled=False)
    states = (query, key, value)
    torch.testing.assert_close(
        at_once.of_row(rule, states, call), one_by_one.of_row(rule, states, call)
    )
    reads = query[:, :, [read.place for read in layout.reads]]
    torch.testing.assert_close(
        at_once.of_reads(rule, reads, (key, value), call),
        one_by_one.of_reads(rule, reads, (key, value), call),
    )


class Capped(nn.Module):
    """Asks for attention like Gemma 2, whose plain attention is in this module's name space."""

    num_key_value_groups = 3


def eager_attention_forward(
    module: Capped,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **told: Any,
) -> tuple[torch.Tensor, None]:
    key, value = (t.repeat_interleave(module.num_key_value_groups, 1) for t in (key, value))
    scores = query @ key.mT * query.shape[-1] ** -0.5
    scores = told["softcap"] * torch.tanh(scores / told["softcap"])
    if attention_mask is not None:
        scores = scores + attention_mask
    return (scores.softmax(-1) @ value).transpose(1, 2), None


def test_the_kernel_is_torchs_own_where_onednn_is_of_no_use() -> None:
    small = torch.zeros(64, 64)
    assert choose_kernel(small, "torch") == TORCH
    assert choose_kernel(small.bfloat16(), "onednn") == TORCH
    assert choose_kernel(None, "onednn") == TORCH


def test_what_onednn_does_not_take_goes_to_torch() -> None:
    states, weight = torch.randn(3, 8, dtype=torch.float64), torch.randn(4, 8, dtype=torch.float64)
    torch.testing.assert_close(ONEDNN.product(states, weight, None), states @ weight.t())
