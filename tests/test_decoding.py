"""The decoding loop: what `generate` draws, with less work."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    MistralConfig,
    MistralForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
    TopPLogitsWarper,
)

from morlaif_hub.models import decoding
from morlaif_hub.models.decoding import decode, drawn
from tests.tiny import tiny_causal_lm

SIZES = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0}


def windowed() -> Any:
    """Return a model whose attention sees eight tokens at most."""
    torch.manual_seed(0)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}
    config = MistralConfig(sliding_window=8, initializer_range=0.2, **heads, **SIZES)
    return MistralForCausalLM(config).eval()


def recurrent() -> Any:
    """Return a model without keys and values."""
    torch.manual_seed(0)
    return RwkvForCausalLM(RwkvConfig(context_length=64, **SIZES)).eval()


MODELS: dict[str, Callable[[], Any]] = {
    "llama": tiny_causal_lm,
    "gpt2": lambda: tiny_causal_lm("gpt2"),
    "window": windowed,
}


def prompts() -> dict[str, torch.Tensor]:
    """Return three prompts of other lengths, two of them more than once."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 200, (3, 12), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, :7] = 0
    mask[2, :3] = 0
    rows = [0, 0, 0, 1, 2, 2]
    return {"input_ids": (ids * mask)[rows], "attention_mask": mask[rows]}


@pytest.mark.parametrize("kind", MODELS)
def test_greedy_tokens_are_those_of_generate(kind: str) -> None:
    model = MODELS[kind]()
    settings = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
    free = model.generate(**prompts(), **settings)
    ends = [int(free[0, 15]), int(free[3, 22])]  # so that rows end at different places
    for end in (None, ends):
        expected = model.generate(**prompts(), eos_token_id=end, **settings)
        found = model.generate(**prompts(), eos_token_id=end, custom_generate=decode, **settings)
        assert torch.equal(found, expected)
    assert (expected[0, 16:] == 0).all()


def test_each_prompt_is_run_once_and_rows_that_ended_no_more() -> None:
    model = tiny_causal_lm()
    settings = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
    end = int(model.generate(**prompts(), **settings)[0, 15])
    seen: list[tuple[int, ...]] = []
    model.base_model.register_forward_hook(
        lambda _module, _args, kwargs, _output: seen.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    model.generate(**prompts(), eos_token_id=end, custom_generate=decode, **settings)
    assert seen[0] == (3, 12)
    assert seen[1] == (6, 1)
    assert seen[-1][0] < 6


def test_a_model_of_another_state_goes_through_generates_own_loop() -> None:
    model = recurrent()
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    ids = prompts()["input_ids"][:2]
    expected = model.generate(ids, **settings)
    assert torch.equal(model.generate(ids, custom_generate=decode, **settings), expected)


@pytest.mark.parametrize("likeliest", [4, 512])
@pytest.mark.parametrize("top_p", [0.3, 0.9, 1.0])
def test_draws_have_the_probabilities_of_the_nucleus(
    top_p: float, likeliest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "LIKELIEST", likeliest)
    logits = torch.randn(1, 30, generator=torch.Generator().manual_seed(2)) * 1.5
    kept = logits if top_p == 1.0 else TopPLogitsWarper(top_p)(torch.empty(1, 0), logits)
    expected = kept.softmax(-1)[0]
    chances = torch.linspace(0, 1, 20001)[:-1]
    tokens = drawn(logits.softmax(-1).expand(len(chances), -1), chances, top_p)
    shares = torch.bincount(tokens, minlength=30) / len(chances)
    torch.testing.assert_close(shares, expected, atol=2e-4, rtol=0)


def test_what_cannot_be_is_never_drawn() -> None:
    probabilities = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]])
    for chance in (0.0, 0.5, 1 - 2**-24):
        for top_p in (0.4, 1.0):
            token = int(drawn(probabilities, torch.tensor([chance]), top_p))
            assert probabilities[0, token] > 0


def test_sampling_repeats_with_the_generators_seed_alone() -> None:
    model = tiny_causal_lm()
    settings = {"max_new_tokens": 8, "do_sample": True, "top_p": 0.9, "pad_token_id": 0}

    def sample(seed: int) -> torch.Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            found: torch.Tensor = model.generate(**prompts(), custom_generate=decode, **settings)
            return found

    assert torch.equal(sample(1), sample(1))
    assert not torch.equal(sample(1), sample(2))
    assert len({tuple(row.tolist()) for row in sample(1)[:3]}) == 3  # rows of one prompt
