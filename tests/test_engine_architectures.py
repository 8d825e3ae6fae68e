"""The engine is exact: it scores as plain PEFT does one text at a time, whatever the architecture.

The full matrix is slow; the default run has one architecture of each sort.
"""

import copy
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from morlaif_hub.bank.adapters import AdapterFiles
from morlaif_hub.bank.engine import Engine, EngineSettings
from morlaif_hub.bank.trunk import layer_list
from tests.architectures import (
    ARCHITECTURES,
    LAYERS,
    LONGEST,
    PITFALLS,
    RECIPES,
    Ids,
    adapters,
    plain,
    random_texts,
    scores_alone,
    some_texts,
    tiny_classifier,
)

EXACT = 1e-4

QUICK = ("llama", "gpt2", "gemma2", "qwen2", "bert", "bloom")
"""One of each sort: plain, transposed matrices, capped, windows, encoder, not packed."""
SORTS = ("llama", "gpt2", "bert", "bloom")
"""Those whose modules or layers are called in a different way."""
COMPANY = ("gemma3", "gpt_oss", "mixtral", "modernbert", "phi3, long", "jamba")
"""Those that have more than others to get wrong about a batch."""
QUICK_CASES = {
    *((name, "mixed") for name in QUICK),
    ("llama", "no adapter"),
    ("llama", "dora"),
    ("llama", "trained norm"),
}


@dataclass(frozen=True)
class Case:
    """An engine, and what it has to say.

    Attributes:
        base: Without adapters.
        files: The adapters.
        engine: To be tested.
        plain: The same adapters by PEFT alone, each on a model of its own.
        texts: Token ids.
        expected: The scores of the texts by these, shape (texts, adapters).
        implementations: Of attention, before the engine was there.
    """

    base: PreTrainedModel
    files: dict[str, AdapterFiles]
    engine: Engine
    plain: list[Any]
    texts: list[Ids]
    expected: Tensor
    implementations: list[str | None]

    def alone(self, texts: list[Ids]) -> Tensor:
        """Return scores without the engine, shape (texts, adapters)."""
        return torch.stack([scores_alone(model, texts) for model in self.plain], dim=1)


CaseOf = Callable[[str, str], Case]


@pytest.fixture(scope="module")
def case_of(tmp_path_factory: pytest.TempPathFactory) -> CaseOf:
    """Return a function that gives the case of an architecture and a recipe, built once."""
    base_of = functools.cache(tiny_classifier)

    @functools.cache
    def case(name: str, recipe: str) -> Case:
        base, pad = base_of(name), ARCHITECTURES[name].pad
        made = adapters(base, tmp_path_factory.mktemp("pms"), {**RECIPES, **PITFALLS}[recipe])
        alone = [plain(base, files) for files in made.values()] or [plain(base)]
        texts = some_texts(pad)
        expected = torch.stack([scores_alone(model, texts) for model in alone], dim=1)
        model = copy.deepcopy(base)
        before = implementations(model)
        engine = Engine(model, pad_token_id=pad, adapters=made)
        return Case(base, made, engine, alone, texts, expected, before)

    return case


def implementations(model: torch.nn.Module) -> list[str | None]:
    """Return which attention each of a model's modules is configured to use."""
    configs = [module.config for module in model.modules() if hasattr(module, "config")]
    return [config._attn_implementation for config in configs if config is not None]


def traces(model: torch.nn.Module) -> list[str]:
    """Return what an engine may leave on modules: a forward of their own, and hooks."""
    return [
        f"{name}: {kind}"
        for name, module in model.named_modules()
        for kind, left in {
            "forward": "forward" in vars(module),
            "hooks": module._forward_hooks or module._forward_pre_hooks,
        }.items()
        if left
    ]


def quick_or_slow(cases: Iterable[Any], quick: Iterable[Any]) -> list[Any]:
    """Return test parameters, those that are not quick marked as slow."""
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            marks=() if case in quick else pytest.mark.slow,
        )
        for case in cases
    ]


def every_case() -> list[tuple[str, str]]:
    """Return pairs of an architecture and a recipe that make sense together."""
    adaptable = [name for name, kind in ARCHITECTURES.items() if kind.adaptable]
    bare = [name for name in ARCHITECTURES if name not in adaptable or name in (*QUICK, *COMPANY)]
    cases = [(name, "no adapter") for name in bare]
    widely = ("everywhere", "top quarter", "mixed")
    cases += [(name, recipe) for name in adaptable for recipe in widely]
    more = [
        "all linear",
        "from the first layer",
        *(p for p in PITFALLS if p != "pooler"),
    ]
    cases += [(name, recipe) for name in SORTS for recipe in more]
    return [*cases, ("bert", "pooler"), ("gemma2", "all kinds"), ("qwen2", "all kinds")]


def close(scores: Tensor, expected: Tensor) -> None:
    """Assert that scores are the expected ones."""
    torch.testing.assert_close(scores, expected, atol=EXACT, rtol=0)


@pytest.mark.parametrize(("name", "recipe"), quick_or_slow(every_case(), QUICK_CASES))
def test_scores_are_those_of_plain_peft_one_text_at_a_time(
    name: str, recipe: str, case_of: CaseOf
) -> None:
    case = case_of(name, recipe)
    close(case.engine.score(case.texts), case.expected)
    assert case.engine.method == method_of(name), case.engine.why


def method_of(name: str) -> str:
    """Return the method that an architecture is to be scored by, whatever the adapters."""
    return "packed" if ARCHITECTURES[name].packed else "padded"


def recipe_for(name: str) -> str:
    """Return the recipe with the most to go wrong that an architecture takes."""
    return "mixed" if ARCHITECTURES[name].adaptable else "no adapter"


@pytest.mark.parametrize("name", quick_or_slow(ARCHITECTURES, QUICK))
def test_an_engine_that_does_not_pack_says_why(name: str, case_of: CaseOf) -> None:
    engine = case_of(name, recipe_for(name)).engine
    assert bool(engine.why) == (method_of(name) == "padded")


WAYS = {
    "padded": EngineSettings(method="padded"),
    "nothing shared": EngineSettings(share_prefixes=False),
    "short rows": EngineSettings(row_tokens=LONGEST + 4),
}


@pytest.mark.parametrize(
    ("name", "way"), quick_or_slow(product((*QUICK, *COMPANY), WAYS), [("llama", "padded")])
)
def test_every_way_to_score_is_exact(name: str, way: str, case_of: CaseOf) -> None:
    case = case_of(name, "mixed")
    model, pad = copy.deepcopy(case.base), ARCHITECTURES[name].pad
    engine = Engine(model, pad_token_id=pad, adapters=case.files, settings=WAYS[way])
    close(engine.score(case.texts), case.expected)


@pytest.mark.parametrize("name", quick_or_slow(ARCHITECTURES, QUICK))
def test_a_wrong_mask_or_adapter_would_show(name: str, case_of: CaseOf) -> None:
    case = case_of(name, recipe_for(name))
    assert case.expected.std(dim=0).min() > 100 * EXACT
    turned, straight = case.alone([case.texts[0][::-1], case.texts[0]])
    assert (turned - straight).abs().min() > 5 * EXACT
    for first, second in combinations(case.expected.T, 2):
        assert (first - second).abs().max() > 100 * EXACT


@pytest.mark.parametrize(
    ("name", "seed"),
    quick_or_slow(
        [(name, seed) for name in (*QUICK, *COMPANY) for seed in range(2)],
        [("llama", 0)],
    ),
)
def test_random_texts_score_as_by_plain_peft(name: str, seed: int, case_of: CaseOf) -> None:
    case = case_of(name, recipe_for(name))
    texts = random_texts(ARCHITECTURES[name].pad, seed=seed)
    close(case.engine.score(texts), case.alone(texts))


@pytest.mark.parametrize("name", quick_or_slow([*QUICK, *COMPANY], ["llama", "bert"]))
def test_order_and_company_do_not_matter(name: str, case_of: CaseOf) -> None:
    case = case_of(name, "mixed")
    each = torch.cat([case.engine.score([text]) for text in case.texts])
    close(each, case.expected)
    backwards = case.engine.score(case.texts[::-1])
    close(backwards.flip(0), case.expected)
    equal = case.engine.score([case.texts[2]] * 3)
    assert torch.equal(equal, equal[:1].expand(3, -1))


class BreakError(Exception):
    """Comes from the middle of a model."""


@pytest.mark.parametrize("name", quick_or_slow([*QUICK, *COMPANY], ["gpt2", "bloom"]))
def test_the_model_is_left_as_it_was(name: str, case_of: CaseOf) -> None:
    case = case_of(name, "mixed")
    model, texts = case.engine.model, case.texts[:4]
    before = by_peft(model, texts)
    modes = [(p.requires_grad, p.data_ptr()) for p in model.parameters()]
    case.engine.score(case.texts)
    assert traces(model) == []
    assert implementations(model.get_base_model()) == case.implementations
    assert [(p.requires_grad, p.data_ptr()) for p in model.parameters()] == modes
    assert not any(module.training for module in model.modules())
    assert torch.equal(by_peft(model, texts), before)
    close(before, case.expected[:4])


@pytest.mark.parametrize("name", quick_or_slow([*QUICK, *COMPANY], ["llama", "bloom"]))
@pytest.mark.parametrize("layer", [0, LAYERS - 1, "progress"])
def test_nothing_is_left_of_a_pass_that_failed(
    layer: int | str, name: str, case_of: CaseOf
) -> None:
    case = case_of(name, "mixed")
    model, texts = case.engine.model, case.texts

    def fail(*_: Any) -> None:
        raise BreakError

    layers = layer_list(model)
    assert layers is not None
    if layer == "progress":
        with pytest.raises(BreakError):
            case.engine.score(texts, progress=fail)
    else:
        broken = layers[int(layer)].register_forward_hook(fail)
        with broken, pytest.raises(BreakError):
            case.engine.score(texts)
    assert traces(model) == []
    assert implementations(model.get_base_model()) == case.implementations
    close(case.engine.score(texts), case.expected)


def by_peft(model: Any, texts: list[Ids]) -> Tensor:
    """Return the scores of a PEFT model's adapters, in order, shape (texts, adapters)."""
    columns = []
    for slot in model.peft_config:
        model.set_adapter(slot, inference_mode=True)
        columns.append(scores_alone(model, texts))
    return torch.stack(columns, dim=1)
