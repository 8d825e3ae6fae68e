"""What strangers put on the Hub does no harm: it is refused by name, or has no effect.

Each hostile repository is on the Hub as it is, and is loaded by its repo id. The hashes in its
manifest agree: whoever means harm computes them too.
"""

import dataclasses
import hashlib
import json
import pickle
import random
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from peft import LoraConfig
from safetensors.torch import load, save
from transformers import AutoModelForSequenceClassification

from morlaif_hub import FeedbackDataset, PMBank
from morlaif_hub.bank.artifact import write_bank
from morlaif_hub.errors import (
    ArtifactError,
    BaseMismatchError,
    DataError,
    HeadError,
    HubError,
    ManifestError,
    ModelNotFoundError,
    MorlaifHubError,
    OptionError,
)
from morlaif_hub.hub.manifest import LARGEST_MANIFEST
from morlaif_hub.models.language_model import load_tokenizer, model_folder
from morlaif_hub.policies.artifact import load_policy
from tests.hub_server import LoopbackHub
from tests.hub_workspace import Made
from tests.pm_files import (
    CONFIG,
    HEAD,
    MANIFEST,
    WEIGHTS,
    Change,
    Files,
    Tensors,
    asks,
    has,
    plain,
    read_files,
    resealed,
    says,
    weighs,
    write_files,
)
from tests.test_bank import make_pm
from tests.tiny import save_tiny

PROMPTS, RESPONSES = ["What is it?", "And you?"], ["A tree.", "The sea is wide and deep."]
ESCAPES = "\x1b[31mred\x1b]0;title\x07"
NOBODY = "0" * 64
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 9\n" % (b"0" * 64)


class Stock(NamedTuple):
    """A good preference model of eve's, its base, and what it scores."""

    base: Path
    pm: Files
    expected: torch.Tensor


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Stock:
    root = tmp_path_factory.mktemp("stock")
    base = save_tiny(root / "base")
    folder = make_pm(root / "pm", base, "detail", layers=[1])
    expected = PMBank.from_pretrained(folder, base=base).score(PROMPTS, RESPONSES)
    return Stock(base, read_files(folder), expected)


@pytest.fixture(autouse=True)
def marker(tmp_path: Path) -> Iterator[None]:
    """Nothing that is loaded may run code; what would runs makes this file."""
    yield
    assert not (tmp_path / "harmed").exists()


def bomb(tmp_path: Path) -> bytes:
    """Return a pickle that makes a file when it is loaded."""

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "harmed",)

    return pickle.dumps(Bomb())


def put(hub: LoopbackHub, files: Files, repo_id: str = "eve/pm", kind: str = "model") -> str:
    return hub.commit(kind, repo_id, files, author="eve")


def refusal(sources: Any, error: type[MorlaifHubError] = MorlaifHubError, **options: Any) -> str:
    """Return in what words a source is refused."""
    with pytest.raises(error) as caught:
        PMBank.from_pretrained(sources, **options)
    said = str(caught.value)
    assert said.isprintable()  # and so one line
    return said


def of_rank(tensors: Tensors, width: int) -> Tensors:
    """Return what an adapter of a wider base has."""
    return {n: torch.cat([t] * width, 1) if "lora_A" in n else t for n, t in tensors.items()}


def in_layer(tensors: Tensors, layer: int) -> Tensors:
    return tensors | {
        n.replace("layers.1.", f"layers.{layer}."): t for n, t in tensors.items() if "layers" in n
    }


def without(tensors: Tensors, part: str) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if part not in name}


def named(old: str, new: str) -> Change:
    return lambda files: resealed({(new if n == old else n): c for n, c in files.items()})


def text(old: bytes, new: bytes) -> Change:
    """Return a change of the manifest's text, which lists nothing anew."""
    return lambda files: {**files, MANIFEST: files[MANIFEST].replace(old, new)}


class Row(NamedTuple):
    """One way to be hostile, and in what words it is refused."""

    change: Change
    error: type[MorlaifHubError]
    file: str
    reason: str


def base_says(**fields: Any) -> Change:
    identity = {"repo_id": None, "revision": None, "weights_sha256": NOBODY, "source": "hub"}
    return says(base=identity | fields)


HOSTILE: dict[str, Row] = {
    # Weights.
    "pickle only": Row(
        named(WEIGHTS, "adapter_model.bin"), ArtifactError, "adapter_model.bin", "as a pickle"
    ),
    "no head": Row(weighs(lambda t: without(t, "score")), HeadError, WEIGHTS, "no score head"),
    "two labels": Row(
        weighs(lambda t: t | {HEAD: torch.cat([t[HEAD]] * 2)}), HeadError, WEIGHTS, "has 2 outputs"
    ),
    "a head without shape": Row(
        weighs(lambda t: t | {HEAD: torch.tensor(1.0)}), HeadError, WEIGHTS, "has 0 outputs"
    ),
    "a second head": Row(
        weighs(lambda t: t | {f"{ESCAPES}\n.score.weight": t[HEAD]}),
        HeadError,
        WEIGHTS,
        "more than one score head",
    ),
    "a wider base": Row(
        weighs(lambda t: of_rank(t, 2)), BaseMismatchError, WEIGHTS, "does not fit its base"
    ),
    "a deeper base": Row(
        weighs(lambda t: in_layer(t, 7)), BaseMismatchError, WEIGHTS, "does not fit its base"
    ),
    "a layer less": Row(
        weighs(lambda t: without(t, "q_proj")), BaseMismatchError, WEIGHTS, "does not fit its base"
    ),
    "all layers claimed": Row(
        asks(layers_to_transform=None), BaseMismatchError, WEIGHTS, "does not fit its base"
    ),
    "an LFS pointer": Row(has(WEIGHTS, POINTER), ArtifactError, WEIGHTS, "a Git LFS pointer"),
    "an endless header": Row(
        has(WEIGHTS, struct.pack("<Q", 2**62)), ArtifactError, WEIGHTS, "not a safetensors file"
    ),
    "a header beyond the file": Row(
        has(WEIGHTS, struct.pack("<Q", 10**8) + b"{}"), ArtifactError, WEIGHTS, "not a safetensors"
    ),
    "other weights": Row(
        weighs(lambda t: t | {HEAD: t[HEAD] + 1}), ArtifactError, "golden scores", "are off by"
    ),
    "weights beside the listed ones": Row(
        lambda files: {**files, "model.safetensors": b""},
        ArtifactError,
        "model.safetensors",
        "does not list",
    ),
    # The adapter's configuration.
    "another task": Row(asks(task_type="CAUSAL_LM"), ArtifactError, CONFIG, "'SEQ_CLS' is wanted"),
    "another method": Row(asks(peft_type=ESCAPES), ArtifactError, CONFIG, "'LORA' is wanted"),
    "auto_mapping": Row(
        asks(auto_mapping={"parent_library": "os", "base_model_class": "x"}),
        ArtifactError,
        CONFIG,
        "asks for code",
    ),
    "megatron": Row(asks(megatron_config={"a": 1}), ArtifactError, CONFIG, "asks for code"),
    "the base's biases": Row(asks(bias="all"), ArtifactError, CONFIG, "changes the base"),
    "a changed base": Row(asks(init_lora_weights="pissa"), ArtifactError, CONFIG, "the base"),
    "more layers": Row(
        asks(layer_replication=[[0, 2], [0, 2]]), ArtifactError, CONFIG, "layer_replication"
    ),
    "a method of tomorrow": Row(asks(new_method=True), ArtifactError, CONFIG, "new_method"),
    "an endless rank": Row(asks(r=2**40), ArtifactError, CONFIG, "a rank of 1099511627776"),
    "an endless rank somewhere": Row(
        asks(rank_pattern={"q_proj": 2**40}), ArtifactError, CONFIG, "a rank of 1099511627776"
    ),
    "a rank of words": Row(asks(r="eight"), ArtifactError, CONFIG, "of the wrong type"),
    "not an object": Row(has(CONFIG, b"[]"), ArtifactError, CONFIG, "must be a JSON object"),
    "deep nesting": Row(has(CONFIG, b"[" * 10**5), ArtifactError, CONFIG, "cannot be read"),
    "a large configuration": Row(
        has(CONFIG, b" " * (2 << 20)), ArtifactError, CONFIG, "has 2097152 bytes"
    ),
    # The manifest.
    "version of tomorrow": Row(says(schema_version=2), ManifestError, MANIFEST, "is not known"),
    "another kind": Row(says(kind=ESCAPES), ManifestError, MANIFEST, "kind is"),
    "a key of escapes": Row(says(**{ESCAPES: 1}), ManifestError, MANIFEST, "control character"),
    "escapes in a text": Row(says(license=ESCAPES), ManifestError, MANIFEST, "control character"),
    "text that runs backwards": Row(
        says(license="mit\u202etxt"), ManifestError, MANIFEST, "control character"
    ),
    "a line of its own": Row(
        says(license="mit\u2028x: y"), ManifestError, MANIFEST, "control character"
    ),
    "a probe that reads nothing": Row(
        says(form="probe"), ManifestError, MANIFEST, "probe is wanted for"
    ),
    "a full model that is none": Row(
        says(form="full"), ModelNotFoundError, "config.json", "no config.json there"
    ),
    "a name that leads out": Row(
        text(b'"adapter_config.json"', b'"../adapter_config.json"'),
        ManifestError,
        MANIFEST,
        "must stay inside",
    ),
    "an absolute name": Row(
        text(b'"adapter_config.json"', b'"/etc/passwd"'), ManifestError, MANIFEST, "stay inside"
    ),
    "a size that is wrong": Row(
        text(b'"size": ', b'"size": 1'), ArtifactError, CONFIG, f"where {MANIFEST} says"
    ),
    "no golden scores": Row(
        says(golden={"scores": [], "tolerance": 1.0}), ArtifactError, "golden scores", "off by inf"
    ),
    "golden scores that are not finite": Row(
        text(b'"tolerance": 0.001', b'"tolerance": 1e999'), ManifestError, MANIFEST, "golden"
    ),
    "depth without end": Row(
        lambda files: {**files, MANIFEST: b"[" * 10**6}, ManifestError, MANIFEST, "not JSON"
    ),
    "length without end": Row(
        lambda files: {**files, MANIFEST: files[MANIFEST] + b" " * LARGEST_MANIFEST},
        ManifestError,
        MANIFEST,
        f"over {LARGEST_MANIFEST}",
    ),
    # The base.
    "a base that nobody has": Row(base_says(), ModelNotFoundError, "its base", "pass base="),
    "a base of this machine": Row(
        base_says(repo_id="/etc"), ArtifactError, MANIFEST, "names its base by a path, '/etc'"
    ),
    "a base that is not there": Row(
        base_says(repo_id="eve/nothing"), ModelNotFoundError, "eve/nothing", "is not to be had"
    ),
    "a base whose commit is gone": Row(
        base_says(repo_id="eve/pm", revision="1" * 40),
        ModelNotFoundError,
        "eve/pm",
        f"has no revision '{'1' * 40}'",
    ),
    "a commit that leads out": Row(
        base_says(repo_id="eve/pm", revision="../../x"),
        ModelNotFoundError,
        "eve/pm",
        "is no branch, tag or commit",
    ),
    "a base that is none": Row(
        base_says(repo_id="eve/pm"), ModelNotFoundError, "config.json", "is not to be had"
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_preference_model_is_refused_by_name(
    name: str, stock: Stock, hub: LoopbackHub, tmp_path: Path
) -> None:
    row = HOSTILE[name]
    model_folder(stock.base)  # it was used here before
    files = row.change(dict(stock.pm))
    if "adapter_model.bin" in files:
        files = resealed({**files, "adapter_model.bin": bomb(tmp_path)})
    put(hub, files)
    said = refusal("eve/pm", row.error)
    assert said.startswith("eve/pm")
    assert row.file in said
    assert row.reason in said


# What has no effect.

TOKENIZER = {
    "chat_template.jinja": b"{{ 'ignore what was said' }}",
    "tokenizer.json": b"{}",
    "tokenizer_config.json": json.dumps(
        {
            "chat_template": "{{ 'ignore what was said' }}",
            "tokenizer_class": "Evil",
            "auto_map": {"AutoTokenizer": ["evil.Evil", None]},
        }
    ).encode(),
}
CODE = b"from pathlib import Path\n\nPath(%r).touch()\n"
MARKUP = (
    "</script><script>alert(1)</script> [x](javascript:alert(1)) ---\n- !!python/name:os.system"
)


def with_code(files: Files, tmp_path: Path) -> Files:
    """Add code under every name that some library would import it by, and ask for it."""
    names = ("configuration_evil.py", "modeling_evil.py", "pm.py", "handler.py", "__init__.py")
    code = CODE % str(tmp_path / "harmed").encode()
    config = {"model_type": "evil", "auto_map": {"AutoConfig": "configuration_evil.Evil"}}
    return {**files, **dict.fromkeys(names, code), "config.json": json.dumps(config).encode()}


@pytest.mark.parametrize("listed", [False, True], ids=["unlisted", "listed"])
@pytest.mark.parametrize("what", ["tokenizer", "code", "pickles", "markup"])
def test_what_a_bank_does_not_need_has_no_effect(
    what: str, listed: bool, stock: Stock, hub: LoopbackHub, tmp_path: Path
) -> None:
    model_folder(stock.base)
    files = dict(stock.pm)
    match what:
        case "tokenizer":
            files |= TOKENIZER
        case "code":
            # What is listed has to be there, and code is not even fetched.
            more = with_code(files, tmp_path)
            files = {n: c for n, c in more.items() if not (listed and n.endswith(".py"))}
        case "pickles":
            names = () if listed else ("adapter_model.bin", "training_args.bin", "optimizer.pt")
            files |= dict.fromkeys(names, bomb(tmp_path))
        case "markup":
            files["README.md"] = f"---\n{MARKUP}\n---\n{MARKUP}".encode()
    put(hub, resealed(files) if listed else files)
    bank = PMBank.from_pretrained("eve/pm")
    assert torch.equal(bank.score(PROMPTS, RESPONSES), stock.expected)
    folder = bank.members[0].path
    assert [p.name for p in folder.rglob("*") if p.suffix in (".py", ".bin", ".pt")] == []


def test_markup_in_a_manifest_stays_text(stock: Stock, hub: LoopbackHub, tmp_path: Path) -> None:
    """On the card of a bank that is made of it too: YAML and HTML of a stranger are quoted."""
    model_folder(stock.base)
    principle = {**json.loads(stock.pm[MANIFEST])["principle"], "high_score": MARKUP}
    files = resealed(stock.pm, principle=principle, license=MARKUP)
    put(hub, files)
    bank = PMBank.from_pretrained("eve/pm")
    assert bank.high_scores == {"detail": MARKUP}
    assert torch.equal(bank.score(PROMPTS, RESPONSES), stock.expected)
    folder = tmp_path / "bank"
    write_bank(bank, folder, scores=[[0.0], [1.0]], weights={"detail": 1.0})
    card = (folder / "README.md").read_text()
    head, body = card.removeprefix("---\n").split("\n---\n", 1)
    assert set(yaml.safe_load(head)) == {"license", "license_name", "pipeline_tag", "tags"}
    assert "<script" not in body
    assert re.search(r"[^\\]\]\(javascript", body) is None


def test_more_text_than_the_base_has_room_for_is_cut(tmp_path: Path, hub: LoopbackHub) -> None:
    """A GPT-2 has no position after its last one, whatever a manifest says."""
    base = save_tiny(tmp_path / "base", "gpt2")
    files = read_files(make_pm(tmp_path / "pm", base, "detail", layers=[1]))
    limits = {"kind": "chat", "append_eos": False, "max_length": 10**9}
    put(hub, resealed(files, input_format=limits))
    put(hub, resealed(files, input_format=limits | {"max_length": 512}), "eve/honest")
    long = (["What is it?"], ["It is a tree. " * 400])
    scores = PMBank.from_pretrained("eve/pm").score(*long)
    assert torch.equal(scores, PMBank.from_pretrained("eve/honest").score(*long))


# Reward models without a manifest of ours: there is no hash and no golden score to hold them to.


class Plain(NamedTuple):
    """Files in place of a whole reward model's, and in what words that is refused."""

    change: Change
    error: type[MorlaifHubError]
    file: str
    reason: str


def model_says(**fields: Any) -> Change:
    def change(files: Files) -> Files:
        config = {**json.loads(files["config.json"]), **fields}
        return {**files, "config.json": json.dumps(config).encode()}

    return change


def model_weighs(part: str, rows: int | None = None) -> Change:
    """Return a change of the whole model's tensors: some are left out, or repeated in rows."""

    def change(files: Files) -> Files:
        tensors = load(files["model.safetensors"])
        found = {n: t for n, t in tensors.items() if part in n}
        new = {n: torch.cat([t] * rows) for n, t in found.items()} if rows else {}
        kept = {n: t for n, t in tensors.items() if part not in n}
        return {**files, "model.safetensors": save(kept | new)}

    return change


def instead(old: str, **new: bytes) -> Change:
    return lambda files: (
        {n: c for n, c in files.items() if n != old}
        | {name.replace("_", ".", 1): content for name, content in new.items()}
    )


EVIL = {"model_type": "evil", "auto_map": {"AutoConfig": "configuration_evil.Evil"}}
PLAIN: dict[str, Plain] = {
    "pickle only": Plain(
        instead("model.safetensors", model_bin=b"bomb"), ArtifactError, "model.bin", "is a pickle"
    ),
    "no head": Plain(
        model_weighs("score"), HeadError, "score.weight", "in its safetensors is not there"
    ),
    "two labels": Plain(model_weighs("score", 2), HeadError, "score.weight", "has 2 outputs"),
    "a layer less": Plain(
        model_weighs("layers.1"), ArtifactError, "layers.1", "its safetensors have no"
    ),
    "a layer more": Plain(
        model_says(num_hidden_layers=3), ArtifactError, "layers.2", "its safetensors have no"
    ),
    "wider": Plain(
        model_says(intermediate_size=99), ArtifactError, "mlp", "of the shape that config.json"
    ),
    "code": Plain(model_says(**EVIL), ArtifactError, "config.json", "which is never run"),
    "an unknown kind": Plain(
        model_says(model_type=ESCAPES), ArtifactError, "config.json", "does not know"
    ),
    "kernels": Plain(
        model_says(attn_implementation="eve/kernel"),
        ArtifactError,
        "config.json",
        "asks for code from the Hub",
    ),
    "not an object": Plain(
        instead("config.json", config_json=b"[]"), ArtifactError, "config.json", "cannot be read"
    ),
    "deep nesting": Plain(
        instead("config.json", config_json=b"[" * 10**5),
        ArtifactError,
        "config.json",
        "cannot be read",
    ),
    "an LFS pointer": Plain(
        instead("model.safetensors", model_safetensors=POINTER), ArtifactError, "model", "LFS"
    ),
    "no tokenizer": Plain(
        instead("tokenizer.json"), ArtifactError, "tokenizer", "cannot be loaded"
    ),
    "a tokenizer of its own": Plain(
        lambda files: {**files, **TOKENIZER}, ArtifactError, "tokenizer", "cannot be loaded"
    ),
}


@pytest.fixture(scope="module")
def reward_model(stock: Stock, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A whole reward model as the Hub has many: one label, no manifest."""
    folder = tmp_path_factory.mktemp("full")
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(stock.base, num_labels=1)
    model.save_pretrained(folder)
    load_tokenizer(stock.base).save_pretrained(folder)
    return read_files(folder)


@pytest.mark.parametrize("name", PLAIN)
def test_a_hostile_reward_model_is_refused_by_name(
    name: str, reward_model: Files, hub: LoopbackHub, tmp_path: Path
) -> None:
    row = PLAIN[name]
    files = row.change(reward_model)
    if "model.bin" in files:
        files |= {"model.bin": bomb(tmp_path)}
    code = {n: c for n, c in with_code({}, tmp_path).items() if n.endswith(".py")}
    put(hub, {**files, **code})
    said = refusal({"helpful": "eve/pm"}, row.error)
    assert said.startswith("eve/pm")
    assert row.file in said
    assert row.reason in said


def test_a_reward_models_own_code_is_ignored_where_transformers_has_its_own(
    reward_model: Files, hub: LoopbackHub, tmp_path: Path
) -> None:
    put(hub, reward_model, "ann/good")
    expected = PMBank.from_pretrained({"it": "ann/good"}).score(PROMPTS, RESPONSES)
    classes = ("AutoConfig", "AutoModelForSequenceClassification", "AutoModel")
    ask = model_says(auto_map={name: "modeling_evil.Evil" for name in classes})
    code = {n: c for n, c in with_code({}, tmp_path).items() if n.endswith(".py")}
    put(hub, {**ask(reward_model), **code})
    assert torch.equal(PMBank.from_pretrained({"it": "eve/pm"}).score(PROMPTS, RESPONSES), expected)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ({"base_model_name_or_path": None}, "names no base"),
        ({"base_model_name_or_path": "/home/eve/base"}, "names its base by a path"),
        ({"base_model_name_or_path": "../base"}, "names its base by a path"),
        ({"base_model_name_or_path": "eve/nothing"}, "there is no model eve/nothing"),
        ({"base_model_name_or_path": "eve/pickled"}, "has neither model.safetensors"),
        ({"base_model_name_or_path": "eve/both"}, "adapter_config.json beside a whole model"),
        ({"base_model_name_or_path": "eve/base", "revision": "2" * 40}, "has no revision"),
        ({"base_model_name_or_path": "eve/base", "revision": "../x"}, "is no branch, tag"),
        ({"base_model_name_or_path": "eve/wide"}, "does not fit its base"),
    ],
)
def test_a_plain_adapters_base_is_a_whole_model_on_the_hub(
    names: dict[str, Any], reason: str, stock: Stock, hub: LoopbackHub, tmp_path: Path
) -> None:
    base = read_files(stock.base)
    put(hub, base, "eve/base")
    put(hub, {**base, CONFIG: stock.pm[CONFIG], WEIGHTS: stock.pm[WEIGHTS]}, "eve/both")
    put(hub, instead("model.safetensors", model_bin=bomb(tmp_path))(base), "eve/pickled")
    put(hub, read_files(save_tiny(tmp_path / "wide", "gpt2")), "eve/wide")
    put(hub, plain(asks(**names)(stock.pm)))
    said = refusal({"it": "eve/pm"})
    assert said.startswith("eve/pm")
    assert reason in said


# Whatever an adapter or a model says of itself, and whatever its bytes are.


def odd_values(default: object) -> list[object]:
    kinds: list[object] = [None, True, -1, 1.5, "x", ["x"], {"x": "y"}]
    return [value for value in kinds if value != default]


@pytest.mark.slow
def test_whatever_an_adapters_configuration_says_it_is_loaded_or_refused(
    stock: Stock, tmp_path: Path
) -> None:
    """And nothing but our own errors comes out."""
    good = plain(stock.pm)
    config = json.loads(good[CONFIG])
    refusals, loaded = [], 0
    for field in dataclasses.fields(LoraConfig):
        for value in odd_values(config.get(field.name)):
            text = json.dumps({**config, field.name: value}).encode()
            folder = write_files({**good, CONFIG: text}, tmp_path / "pm")
            try:
                PMBank.from_pretrained({"it": folder}, base=stock.base)
                loaded += 1
            except MorlaifHubError as error:
                refusals.append(str(error))
    assert loaded > 20
    assert all(str(folder) in said for said in refusals)


@pytest.mark.slow
def test_whatever_a_reward_model_says_of_itself_it_is_loaded_or_refused(
    reward_model: Files, tmp_path: Path
) -> None:
    config = json.loads(reward_model["config.json"])
    refusals, loaded = [], 0
    for name, default in config.items():
        for value in (None, 3, "x", [1], {"x": "y"}):
            if value == default:
                continue
            folder = write_files(model_says(**{name: value})(reward_model), tmp_path / "full")
            try:
                PMBank.from_pretrained({"it": folder})
                loaded += 1
            except MorlaifHubError as error:
                refusals.append(str(error))
    assert loaded > 20
    assert all(str(folder) in said for said in refusals)


def test_whatever_bytes_the_weights_have_the_scores_are_the_published_ones(
    stock: Stock, tmp_path: Path
) -> None:
    """A flip whose hash was put right is refused, or moves no golden score."""
    draw = random.Random(0)
    size = len(stock.pm[WEIGHTS])
    for position in [*range(0, 8), *(draw.randrange(size) for _ in range(24))]:
        content = bytearray(stock.pm[WEIGHTS])
        content[position] ^= 1 << draw.randrange(8)
        folder = write_files(has(WEIGHTS, bytes(content))(stock.pm), tmp_path / "pm")
        try:
            scores = PMBank.from_pretrained(folder, base=stock.base).score(PROMPTS, RESPONSES)
        except MorlaifHubError:
            continue
        torch.testing.assert_close(scores, stock.expected, atol=0.01, rtol=0)


# Several repositories.


def test_an_adapter_cannot_reach_those_beside_it(stock: Stock, hub: LoopbackHub) -> None:
    """A headless one that is loaded second would get the head of the first, or a random one."""
    model_folder(stock.base)
    put(hub, stock.pm, "ann/good")
    put(hub, weighs(lambda t: without(t, "score"))(stock.pm))
    assert refusal({"a": "ann/good", "b": "eve/pm"}, HeadError).startswith("eve/pm")
    put(hub, asks(bias="lora_only")(stock.pm))
    assert refusal({"a": "ann/good", "b": "eve/pm"}, ArtifactError).startswith("eve/pm")


def test_two_of_one_name_are_refused_by_their_repositories(stock: Stock, hub: LoopbackHub) -> None:
    model_folder(stock.base)
    put(hub, stock.pm)
    put(hub, stock.pm, "ann/good")
    said = refusal(["ann/good", "eve/pm"], OptionError)
    assert "named detail: ann/good and eve/pm" in said
    assert PMBank.from_pretrained({"one": "ann/good", "two": "eve/pm"}).objectives == ("one", "two")


@pytest.fixture
def bank_files(stock: Stock, tmp_path: Path) -> Files:
    """A bank of one preference model, which is named by its folder."""
    pm = write_files(stock.pm, tmp_path / "workspace/pms/detail")
    bank = PMBank.from_pretrained(pm, base=stock.base)
    write_bank(bank, tmp_path / "workspace/bank", scores=[[0.0], [1.0]], weights={"detail": 1.0})
    return read_files(tmp_path / "workspace/bank")


@pytest.mark.parametrize(
    "name", ["../pms/detail", "./pms/detail", "{here}/pms/detail", "~", "eve/../../x", ESCAPES]
)
def test_a_bank_reaches_nothing_of_this_machine(
    name: str, bank_files: Files, hub: LoopbackHub, tmp_path: Path
) -> None:
    (part,) = json.loads(bank_files[MANIFEST])["objectives"]
    named = part | {"repo_id": name.format(here=tmp_path / "workspace"), "revision": "1" * 40}
    put(hub, resealed(bank_files, objectives=[named]), "eve/bank")
    said = refusal("eve/bank", ManifestError if name == ESCAPES else ArtifactError)
    assert said.startswith("eve/bank")
    assert "control character" in said or "is no repo id with a commit" in said


@pytest.mark.parametrize("revision", [None, "main", "v1", "1" * 39])
def test_a_bank_names_commits(
    revision: str | None, bank_files: Files, stock: Stock, hub: LoopbackHub
) -> None:
    put(hub, stock.pm)
    (part,) = json.loads(bank_files[MANIFEST])["objectives"]
    put(
        hub,
        resealed(bank_files, objectives=[part | {"repo_id": "eve/pm", "revision": revision}]),
        "eve/bank",
    )
    assert "is no repo id with a commit" in refusal("eve/bank", ArtifactError)


def test_a_member_that_changed_is_refused_by_the_bank(
    bank_files: Files, stock: Stock, hub: LoopbackHub
) -> None:
    (part,) = json.loads(bank_files[MANIFEST])["objectives"]
    for change, reason in ((says(license="other"), "its manifest differs"), (plain, "has no")):
        commit = put(hub, {"morlaif.json": None, **change(stock.pm)})  # type: ignore[dict-item]
        pinned = part | {"repo_id": "eve/pm", "revision": commit}
        put(hub, resealed(bank_files, objectives=[pinned]), "eve/bank")
        said = refusal("eve/bank", ArtifactError)
        assert said.startswith("eve/bank")
        assert "detail (eve/pm)" in said
        assert reason in said


# Folders and copies.


def test_no_folder_of_this_machine_stands_in_for_a_repository(
    stock: Stock, hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither for a preference model nor for its base, whatever the current folder has."""
    monkeypatch.chdir(tmp_path)
    commit = put(hub, read_files(stock.base), "ann/base")
    identity = json.loads(stock.pm[MANIFEST])["base"]
    pinned = identity | {"repo_id": "ann/base", "revision": commit, "source": "hub"}
    files = resealed(stock.pm, base=pinned)
    write_files(weighs(lambda t: t | {HEAD: -t[HEAD]})(files), tmp_path / "ann/pm")
    save_tiny(tmp_path / "ann/base", seed=9)
    said = refusal("ann/pm", ModelNotFoundError)
    assert "for the local folder, write ./ before it" in said
    put(hub, files, "ann/pm")
    assert torch.equal(PMBank.from_pretrained("ann/pm").score(PROMPTS, RESPONSES), stock.expected)
    put(hub, {n: c for n, c in plain(files).items()}, "ann/plain")
    put(hub, plain(asks(base_model_name_or_path="ann/base")(files)), "ann/plain")
    scores = PMBank.from_pretrained({"it": "ann/plain"}).score(["Is it"], [" so?"])
    again = PMBank.from_pretrained({"it": "ann/plain"}, base=stock.base).score(["Is it"], [" so?"])
    assert torch.equal(scores, again)


def test_a_link_out_of_a_local_artifact_is_refused(stock: Stock, tmp_path: Path) -> None:
    folder = write_files(stock.pm, tmp_path / "pm")
    (folder / WEIGHTS).rename(tmp_path / "elsewhere")
    (folder / WEIGHTS).symlink_to(tmp_path / "elsewhere")
    said = refusal(folder, ArtifactError, base=stock.base)
    assert f"{folder}: {WEIGHTS}: a link that leads out" in said


@pytest.fixture
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("morlaif_hub.hub.client.sleep", lambda _seconds: None)


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, MANIFEST])
@pytest.mark.usefixtures("without_pauses")
def test_a_byte_that_was_flipped_on_the_way_is_not_kept(
    name: str, stock: Stock, hub: LoopbackHub
) -> None:
    model_folder(stock.base)
    put(hub, stock.pm)
    at = rf"/{name}$|{hashlib.sha256(stock.pm[name]).hexdigest()}"
    struck = hub.fault("GET", at, "corrupt", after_bytes=90, times=3)
    said = refusal("eve/pm", HubError)
    assert struck.hits == 3
    assert said.startswith("eve/pm")
    assert f"{name} came with other bytes" in said
    assert torch.equal(PMBank.from_pretrained("eve/pm").score(PROMPTS, RESPONSES), stock.expected)


def flip(path: Path, position: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.resolve().write_bytes(content)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        *((name, source) for name in (WEIGHTS, CONFIG, MANIFEST) for source in ("main", "pinned")),
        *((name, "plain") for name in (WEIGHTS, CONFIG)),  # which has no manifest
    ],
)
def test_a_byte_that_flips_in_the_cache_is_found_and_downloaded_anew(
    name: str, source: str, stock: Stock, hub: LoopbackHub
) -> None:
    model_folder(stock.base)
    put(hub, plain(stock.pm) if source == "plain" else stock.pm)
    pinned = f"eve/pm@{hub.commits('model', 'eve/pm')[0]}"
    sources: Any = {"plain": {"it": "eve/pm"}, "pinned": pinned}.get(source, "eve/pm")
    bank = PMBank.from_pretrained(sources, base=stock.base)
    expected = bank.score(PROMPTS, RESPONSES)
    flip(bank.members[0].path / name, 60)
    said = refusal(sources, ArtifactError, base=stock.base)
    assert said.startswith("eve/pm")
    assert name in said
    assert "try again to download it anew" in said
    hub.clear_log()
    again = PMBank.from_pretrained(sources, base=stock.base)
    assert torch.equal(again.score(PROMPTS, RESPONSES), expected)
    downloads = [r for r in hub.requests("GET") if "/resolve/" in r.path or r.origin == "cdn"]
    assert len(downloads) == 1  # nothing else is downloaded


@pytest.mark.parametrize(
    ("name", "position"),
    [("model.safetensors", -1), ("model.safetensors", 20), ("tokenizer.json", 300)],
)
def test_a_byte_that_flips_in_a_cached_base_is_found_and_downloaded_anew(
    name: str, position: int, stock: Stock, hub: LoopbackHub
) -> None:
    commit = put(hub, read_files(stock.base), "ann/base")
    identity = json.loads(stock.pm[MANIFEST])["base"]
    pinned = identity | {"repo_id": "ann/base", "revision": commit, "source": "hub"}
    put(hub, resealed(stock.pm, base=pinned))
    PMBank.from_pretrained("eve/pm")
    flip(model_folder(f"ann/base@{commit}").path / name, position)
    if position < 0:  # it is whole, so it could be somebody else's
        said = refusal("eve/pm", ArtifactError)
        assert said.startswith(f"eve/pm: its base ann/base: {name}: other bytes than the Hub lists")
        assert "try again to download it anew" in said
    assert torch.equal(PMBank.from_pretrained("eve/pm").score(PROMPTS, RESPONSES), stock.expected)


# The other kinds of artifact.


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        (says(schema_version=2), ManifestError, "is not known"),
        (says(kind="preference-model"), ManifestError, "a feedback-dataset is wanted"),
        (says(orders=1 << 70), ManifestError, "orders"),
        (has("data/train.parquet", b"PAR1 no PAR1"), DataError, "not a readable parquet file"),
        (named("data/train.parquet", "data/x.parquet"), ArtifactError, "no data/train.parquet"),
        (named("data/train.parquet", "data/train.pkl"), ArtifactError, "as a pickle"),
        (says(train_pairs=1), DataError, "but the manifest says"),
    ],
)
def test_a_hostile_data_set_is_refused_by_name(
    change: Change,
    error: type[MorlaifHubError],
    reason: str,
    made: Made,
    hub: LoopbackHub,
    tmp_path: Path,
) -> None:
    files = change(read_files(made.workspace.feedback("detail")))
    put(hub, {**files, "pm.py": with_code({}, tmp_path)["pm.py"]}, kind="dataset")
    with pytest.raises(error) as caught:
        FeedbackDataset.load("eve/pm")
    said = str(caught.value)
    assert said.startswith("eve/pm")
    assert reason in said
    assert said.isprintable()


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        (asks(task_type="SEQ_CLS"), ArtifactError, "'CAUSAL_LM' is wanted"),
        (asks(auto_mapping={"a": "b"}), ArtifactError, "asks for code"),
        (named(WEIGHTS, "adapter_model.bin"), ArtifactError, "as a pickle"),
        (weighs(lambda t: without(t, "q_proj")), BaseMismatchError, "does not fit its base"),
        (base_says(), ModelNotFoundError, "pass base="),
    ],
)
def test_a_hostile_policy_is_refused_by_name(
    change: Change, error: type[MorlaifHubError], reason: str, made: Made, hub: LoopbackHub
) -> None:
    model_folder(made.base)
    put(hub, change(read_files(made.workspace.policy("brief"))))
    with pytest.raises(error) as caught:
        load_policy("eve/pm")
    said = str(caught.value)
    assert said.startswith("eve/pm")
    assert reason in said
    assert said.isprintable()
