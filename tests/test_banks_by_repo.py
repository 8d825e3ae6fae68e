"""Banks by repo id: from whatever names their parts, with as few requests as can be, or offline.

Everything is put on one Hub once; each test is another machine, with empty caches. Whatever cannot
be had is told in one line, with its next step, before a person loses patience.
"""

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
import torch
from huggingface_hub import HfApi, constants
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import AutoModelForSequenceClassification

from morlaif_hub import PMBank
from morlaif_hub.bank.artifact import write_bank
from morlaif_hub.bank.bases import find_base
from morlaif_hub.bank.classifier import quiet_loading
from morlaif_hub.errors import HubError, ModelNotFoundError, MorlaifHubError, OptionError
from morlaif_hub.hub.manifest import manifest_sha256
from morlaif_hub.models.language_model import base_identity, load_tokenizer
from tests.hub_server import LoopbackHub
from tests.hub_server.online import online
from tests.pm_files import CONFIG, MANIFEST, Files, plain, read_files, resealed, write_files
from tests.test_bank import PROMPTS, RESPONSES, alone, make_pm
from tests.tiny import AnyKind, save_tiny

BASES: dict[str, AnyKind] = {"llama": "llama", "gpt2": "gpt2", "bert": "bert"}
PARTS = {"toxicity": "llama", "detail": "llama", "empathy": "gpt2", "conciseness": "bert"}
LAYERS = {"toxicity": [3], "detail": [2, 3], "empathy": [2, 3], "conciseness": [3]}
BANK = ("toxicity", "detail", "conciseness")
WEIGHTS = {"toxicity": 0.5, "detail": 0.25, "conciseness": 0.25}


class Shelf(NamedTuple):
    """A Hub with preference models on three bases, a bank of some of them, and what they score."""

    hub: LoopbackHub
    token: str
    bases: dict[str, Path]
    commits: dict[str, str]
    slug: str
    expected: dict[str, torch.Tensor]
    spare: Files
    reward_model: torch.Tensor

    def scores(self, *names: str) -> torch.Tensor:
        return torch.stack([self.expected[name] for name in names], dim=1)


def put(hub: LoopbackHub, repo_id: str, files: Files) -> str:
    return hub.commit("model", repo_id, files, author="ann")


def identity(base: Path, kind: str, commit: str) -> dict[str, Any]:
    """Return how a manifest names a base that is on the Hub."""
    sha256 = base_identity(base).weights_sha256
    return {
        "repo_id": f"ann/{kind}",
        "revision": commit,
        "weights_sha256": sha256,
        "source": "hub",
    }


def each_alone(folder: Path, base: Path) -> torch.Tensor:
    """Return what the plain model scores, each text by itself."""
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    adapted = PeftModel.from_pretrained(model, folder)
    pairs = zip(PROMPTS, RESPONSES, strict=True)
    return torch.tensor([alone(adapted, base, prompt, response) for prompt, response in pairs])


def make_bank(root: Path, commits: dict[str, str], pms: dict[str, Files]) -> Files:
    """Return the files of a bank that names its parts by commit, as a push makes it."""
    folders = [write_files(pms[name], root / f"pms/{name}") for name in BANK]
    bank = PMBank.from_pretrained(folders)
    scores = bank.score(PROMPTS, RESPONSES)
    write_bank(bank, root / "bank", scores=scores, weights=WEIGHTS, scalarizer="soft_max_min")
    files = read_files(root / "bank")
    pinned = [
        part
        | {"repo_id": f"ann/{part['name']}", "revision": commits[part["name"]]}
        | {"sha256": manifest_sha256(root / "pms" / part["name"])}
        for part in json.loads(files[MANIFEST])["objectives"]
    ]
    return resealed(files, objectives=pinned)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    if os.environ["HF_HUB_OFFLINE"] == "0":
        pytest.skip("HF_HUB_OFFLINE=0 asks for the real Hub")
    root = tmp_path_factory.mktemp("published")
    port = urlsplit(os.environ["HF_ENDPOINT"]).port or 0
    with (
        LoopbackHub(root / "hub", port=port) as hub,
        pytest.MonkeyPatch.context() as patch,
        online(root / "client"),
    ):
        patch.setenv("MORLAIF_CACHE", str(root / "cache"))
        token = hub.add_user("ann")
        bases = {name: save_tiny(root / name, kind, layers=4) for name, kind in BASES.items()}
        commits = {name: put(hub, f"ann/{name}", read_files(base)) for name, base in bases.items()}
        pms, expected = {}, {}
        for seed, (name, kind) in enumerate(PARTS.items()):
            base = bases[kind]
            folder = make_pm(root / "pms" / name, base, name, layers=LAYERS[name], seed=seed)
            named = identity(base, kind, commits[kind])
            pms[name] = resealed(read_files(folder), base=named)
            expected[name] = each_alone(folder, base)
            commits[name] = put(hub, f"ann/{name}", pms[name])
        commits["bank"] = put(hub, "ann/bank", make_bank(root / "workspace", commits, pms))
        full = reward_model(root / "full", bases["llama"])
        put(hub, "org/reward", read_files(root / "full"))
        put(hub, "org/adapter", plain_adapter(pms["detail"]))
        slug = gather(hub, token)
        yield Shelf(hub, token, bases, commits, slug, expected, pms["toxicity"], full)
        assert hub.leaks == []


def gather(hub: LoopbackHub, token: str) -> str:
    """Give one preference model versions, put the bank's parts into a Collection, return its slug.

    The newest commit of ann/detail is no longer the one that the bank was made of.
    """
    api = HfApi(token=token)
    api.create_tag("ann/detail", tag="v1")
    api.create_branch("ann/detail", branch="old/one")
    newer = {"LICENSE": b"changed"}
    put(hub, "ann/detail", newer)
    made = api.create_collection("Parts", namespace="ann", private=False)
    for name in ("toxicity", "detail", "conciseness", "llama"):
        api.add_collection_item(made.slug, f"ann/{name}", "model")
    return made.slug


def reward_model(folder: Path, base: Path) -> torch.Tensor:
    """Save a plain reward model, and return what it scores, prompt and response joined."""
    torch.manual_seed(9)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1).eval()
    tokenizer = load_tokenizer(base)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    scores = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        ids = tokenizer(prompt + response, add_special_tokens=False, return_tensors="pt")
        with torch.no_grad():
            scores.append(float(model(**ids).logits[0, 0]))
    return torch.tensor(scores)


def plain_adapter(files: Files) -> Files:
    """Return an adapter as other trainers push it: without a manifest, its base by repo id."""
    config = json.loads(files[CONFIG]) | {"base_model_name_or_path": "ann/llama"}
    return plain(files) | {CONFIG: json.dumps(config).encode()}


@pytest.fixture
def shelf(published: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    """Let a test use the Hub from a machine that has nothing yet, and no token."""
    monkeypatch.setenv("MORLAIF_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MORLAIF_EMBEDDED_MODEL", raising=False)
    with online(tmp_path / "client"):
        published.hub.clear_log()
        yield published


def raw(bank: PMBank) -> torch.Tensor:
    return bank.score(PROMPTS, RESPONSES, calibrated=False)


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


SOURCES: dict[str, tuple[Callable[[Shelf], Any], tuple[str, ...]]] = {
    "one id": (lambda _: "ann/toxicity", ("toxicity",)),
    "a list": (lambda _: ["ann/toxicity", "ann/empathy"], ("toxicity", "empathy")),
    "a branch": (lambda _: ["ann/detail@main"], ("detail",)),
    "a branch with a slash": (lambda _: ["ann/detail@old/one"], ("detail",)),
    "a tag": (lambda _: ["ann/detail@v1"], ("detail",)),
    "a commit": (lambda s: [f"ann/detail@{s.commits['detail']}"], ("detail",)),
    "a bank": (lambda _: "ann/bank", BANK),
    "a bank at a commit": (lambda s: f"ann/bank@{s.commits['bank']}", BANK),
    "a Collection": (lambda s: s.slug, ("toxicity", "detail", "conciseness")),
    "a list with a Collection in it": (  # as the command line gives it
        lambda s: ["ann/empathy", s.slug],
        ("empathy", "toxicity", "detail", "conciseness"),
    ),
    "a Collection's address": (
        lambda s: f"{s.hub.url}/collections/{s.slug}",
        ("toxicity", "detail", "conciseness"),
    ),
}


def test_a_folder_that_is_called_like_a_collection_is_a_folder(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = shelf.slug.rpartition("/")[2]
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    shelf.hub.clear_log()
    with pytest.raises(OptionError, match=rf"\./{name} has no morlaif\.json"):
        PMBank.from_pretrained(f"./{name}")
    assert shelf.hub.log == []


@pytest.mark.parametrize("name", SOURCES)
def test_whatever_names_the_parts_they_score_as_each_alone(name: str, shelf: Shelf) -> None:
    """And no branch or tag is asked for twice, so that it cannot move meanwhile."""
    source, names = SOURCES[name]
    bank = PMBank.from_pretrained(source(shelf))
    assert bank.objectives == names
    same(raw(bank), shelf.scores(*names))
    in_bank = (bank.scalarizer, bank.weights)
    assert in_bank == (("soft_max_min", WEIGHTS) if "bank" in name else (None, None))
    asked = Counter(r.path for r in shelf.hub.requests("GET", r"^/api/models/"))
    assert max(asked.values()) == 1, asked
    commits = {m.objective: m.revision for m in bank.members}
    if name in ("a tag", "a commit", "a branch with a slash") or "bank" in name:
        assert commits == {n: shelf.commits[n] for n in names}


def test_a_mapping_names_the_columns_and_takes_any_reward_model(shelf: Shelf) -> None:
    """Ours, a whole model and a plain adapter, whose base is the one of ours."""
    sources = {
        "calm": "ann/toxicity@main",
        "helpful": "org/reward",
        "plain": "org/adapter",
        "brief": "ann/conciseness",
    }
    bank = PMBank.from_pretrained(sources)
    assert bank.objectives == ("calm", "helpful", "plain", "brief")
    scores = raw(bank)
    same(scores[:, [0, 3]], shelf.scores("toxicity", "conciseness"))
    same(scores[:, 1], shelf.reward_model)
    messages = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    chat = bank.score(messages, RESPONSES, calibrated=False)
    same(chat[:, 2], shelf.expected["detail"])
    assert len(bank._groups) == 3
    assert len(shelf.hub.requests("GET", r"^/api/models/ann/llama/tree/")) == 1


def test_preference_models_of_four_kinds_share_a_bank_and_three_bases(shelf: Shelf) -> None:
    bank = PMBank.from_pretrained([f"ann/{name}" for name in PARTS])
    assert bank.objectives == tuple(PARTS)
    same(raw(bank), shelf.scores(*PARTS))
    assert sorted(group.columns for group in bank._groups) == [(0, 1), (2,), (3,)]
    depths = {group.columns: min(group.engine.entries) for group in bank._groups}
    assert depths == {(0, 1): 2, (2,): 2, (3,): 3}  # the layers below are computed once
    one_by_one = [
        bank.score([p], [r], calibrated=False) for p, r in zip(PROMPTS, RESPONSES, strict=True)
    ]
    same(torch.cat(one_by_one), shelf.scores(*PARTS))


def test_an_adapter_that_changes_embeddings_shares_no_layers(shelf: Shelf, tmp_path: Path) -> None:
    """It comes first, last and alone to the same scores, and so do those beside it."""
    base = shelf.bases["llama"]
    torch.manual_seed(4)
    with quiet_loading():
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    options: dict[str, Any] = {"r": 2, "layers_to_transform": [3], "init_lora_weights": False}
    config = LoraConfig(task_type=TaskType.SEQ_CLS, modules_to_save=["embed_tokens"], **options)
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "embed_tokens.modules_to_save" in name:
                parameter.add_(0.1)
    adapted.peft_config["default"].base_model_name_or_path = "ann/llama"
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    shelf.hub.commit("model", "org/wordy", read_files(tmp_path / "adapter"), author="org")
    here = [alone(adapted, base, p, r) for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    messages = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    for names in (("org/wordy", "ann/toxicity"), ("ann/toxicity", "org/wordy")):
        bank = PMBank.from_pretrained({name.partition("/")[2]: name for name in names})
        scores = bank.score(messages, RESPONSES, calibrated=False)
        same(scores[:, names.index("org/wordy")], torch.tensor(here))
        same(scores[:, names.index("ann/toxicity")], shelf.expected["toxicity"])


# How much is asked for.


def asked(hub: LoopbackHub) -> list[str]:
    """Return which repositories were asked for, sorted, and forget it."""
    found = sorted(f"{r.method} {r.path}" for r in hub.log)
    hub.clear_log()
    return found


def test_a_warm_cache_costs_one_request_for_what_may_have_moved(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None for what is pinned, which a base is; none offline, for branches and tags too."""
    ids = [f"ann/{name}" for name in PARTS]
    pinned = [f"ann/{name}@{shelf.commits[name]}" for name in PARTS]
    expected = raw(PMBank.from_pretrained(ids))
    PMBank.from_pretrained([*pinned])
    PMBank.from_pretrained("ann/bank")
    PMBank.from_pretrained("ann/detail@v1")
    shelf.hub.clear_log()
    again = PMBank.from_pretrained(ids)
    assert asked(shelf.hub) == sorted(f"GET /api/models/ann/{name}" for name in PARTS)
    assert torch.equal(raw(again), expected)
    PMBank.from_pretrained(pinned)
    assert asked(shelf.hub) == []
    PMBank.from_pretrained("ann/bank")
    assert asked(shelf.hub) == ["GET /api/models/ann/bank"]
    PMBank.from_pretrained(f"ann/bank@{shelf.commits['bank']}")
    assert asked(shelf.hub) == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for source in (ids, pinned, "ann/bank", "ann/detail@v1"):
        PMBank.from_pretrained(source)
    assert torch.equal(raw(PMBank.from_pretrained(ids)), expected)
    assert asked(shelf.hub) == []


def test_without_a_network_the_cache_serves_and_a_collection_is_told(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("morlaif_hub.hub.access.sleep", lambda _seconds: None)
    PMBank.from_pretrained(["ann/toxicity"])
    shelf.hub.fault("*", "", "drop", times=100)
    try:
        assert PMBank.from_pretrained(["ann/toxicity"]).objectives == ("toxicity",)
        with pytest.raises(HubError, match=r"the Hub cannot be reached .* one by one"):
            PMBank.from_pretrained(shelf.slug)
    finally:
        end_faults(shelf.hub)


def test_what_moved_on_the_hub_is_fetched_and_nothing_else(shelf: Shelf) -> None:
    put(shelf.hub, "ann/moving", shelf.spare)
    first = PMBank.from_pretrained("ann/moving")
    newer = put(shelf.hub, "ann/moving", resealed(shelf.spare, license="mit"))
    shelf.hub.clear_log()
    second = PMBank.from_pretrained("ann/moving")
    assert (first.members[0].revision, second.members[0].revision) != (newer, first)
    assert second.members[0].revision == newer
    loaded = [
        r.path for r in shelf.hub.requests("GET") if "/resolve/" in r.path or "/lfs/" in r.path
    ]
    assert [path.rpartition("/")[2] for path in loaded] == [MANIFEST]


def test_repositories_are_fetched_at_the_same_time_and_counted(shelf: Shelf) -> None:
    """Eight times 0.3 seconds, one after another, would be 2.4 and more than without them."""
    names = [f"eve/part-{n}" for n in range(8)]
    for name in names:
        put(shelf.hub, name, shelf.spare)
    find_base(PMBank.from_pretrained(names[0]).members[0].manifest.base, "")  # type: ignore[union-attr]
    seen: list[tuple[str, int, int]] = []
    slow = shelf.hub.fault("GET", r"^/api/models/eve/part-\d$", "delay", seconds=0.3, times=8)
    sources = {name.partition("/")[2]: name for name in names}
    bank = PMBank.from_pretrained(
        sources, progress=lambda stage, done, total: seen.append((stage, done, total))
    )
    assert slow.hits == 8
    assert len(bank.objectives) == 8
    assert [done for _, done, _ in seen] == list(range(9))
    assert {(stage, total) for stage, _, total in seen} == {("fetching from the Hub", 8)}
    seconds = []
    for delay in (0.0, 0.3):
        shelf.hub.fault("GET", r"^/api/models/eve/part-\d$", "delay", seconds=delay, times=8)
        start = time.monotonic()
        PMBank.from_pretrained(sources)
        seconds.append(time.monotonic() - start)
    assert seconds[1] - seconds[0] < 1.8


# What cannot be had.


def end_faults(hub: LoopbackHub) -> None:
    hub._plan._faults.clear()


class Refusal(NamedTuple):
    """A repository, what becomes of it, and in what words it is refused: without and with a token.

    Without the second, the token makes no difference.
    """

    source: str
    change: Callable[[Shelf], object]
    error: type[MorlaifHubError]
    anonymous: tuple[str, str]
    member: tuple[str, str] | None = None


def state(**fields: Any) -> Callable[[Shelf], object]:
    """Return a change of what the Hub knows of a repository of eve's."""

    def change(shelf: Shelf) -> None:
        put(shelf.hub, "eve/part", shelf.spare)
        repo = shelf.hub.repo("model", "eve/part")
        assert repo is not None
        for name, value in fields.items():
            setattr(repo, name, value)

    return change


def restore(shelf: Shelf) -> None:
    repo = shelf.hub.repo("model", "eve/part")
    if repo is not None:
        repo.private, repo.gated, repo.disabled = False, False, False


REFUSED = {
    "gated": Refusal(
        "eve/part",
        state(gated="auto"),
        HubError,
        ("eve/part is gated", "ask for access at {url}/eve/part, then log in with 'hf auth login'"),
        ("eve/part is gated", "ask for access at {url}/eve/part"),
    ),
    "private": Refusal(
        "eve/part",
        state(private=True),
        ModelNotFoundError,
        ("there is no model eve/part on the Hub that everybody may read", "log in with"),
        ("there is no model eve/part on the Hub that your account may read", "ask its owner"),
    ),
    "missing": Refusal(
        "eve/nothing",
        lambda _: None,
        ModelNotFoundError,
        ("there is no model eve/nothing on the Hub that everybody may read", "check the name"),
        ("there is no model eve/nothing on the Hub that your account may read", "check the name"),
    ),
    "disabled": Refusal(
        "eve/part",
        state(disabled=True),
        HubError,
        ("eve/part was disabled on the Hub", "use another"),
        ("eve/part was disabled on the Hub", "use another"),
    ),
    "no such revision": Refusal(
        "eve/part@v9",
        state(),
        ModelNotFoundError,
        ("eve/part is on the Hub, but has no revision 'v9'", "leave out @v9"),
        ("eve/part is on the Hub, but has no revision 'v9'", "{url}/eve/part/commits/main"),
    ),
    "no such commit": Refusal(
        f"eve/part@{'1' * 40}",
        state(),
        ModelNotFoundError,
        ("eve/part is on the Hub, but has no revision", "leave out @1111"),
        ("eve/part is on the Hub, but has no revision", "leave out @1111"),
    ),
    "silent": Refusal(
        "eve/part",
        lambda s: s.hub.fault("*", "", "delay", seconds=4.0, times=1),
        HubError,
        ("the Hub cannot be reached (no answer within 3 seconds)", "get online, or give a local"),
    ),
    "cut off": Refusal(
        "eve/part",
        lambda s: s.hub.fault("*", "", "drop", times=100),
        HubError,
        ("the Hub cannot be reached (RemoteProtocolError)", "get online, or give a local folder"),
    ),
    "in trouble": Refusal(
        "eve/part",
        lambda s: s.hub.fault("*", "", "status", status=503, times=100),
        HubError,
        ("the Hub cannot be reached (it answered 503)", "get online, or give a local folder"),
    ),
    "too busy": Refusal(
        "eve/part",
        lambda s: s.hub.fault("*", "", "status", status=429, times=100),
        HubError,
        ("the Hub cannot be reached (it answered 429)", "get online, or give a local folder"),
    ),
}


CASES = [
    (name, who)
    for name, row in REFUSED.items()
    for who in (("anonymous", "member") if row.member else ("anonymous",))
]


@pytest.mark.parametrize(("name", "who"), CASES)
def test_what_cannot_be_had_is_told_with_its_next_step_within_5_seconds(
    name: str, who: str, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = REFUSED[name]
    if who == "member":
        monkeypatch.setenv("HF_TOKEN", shelf.token)
    if name in ("in trouble", "too busy"):  # our pauses between tries are those of "cut off"
        monkeypatch.setattr("morlaif_hub.hub.access.sleep", lambda _seconds: None)
    row.change(shelf)
    start = time.monotonic()
    try:
        with pytest.raises(row.error) as caught:
            PMBank.from_pretrained({"toxicity": "ann/toxicity", "it": row.source})
    finally:
        end_faults(shelf.hub)
        restore(shelf)
    assert time.monotonic() - start < 5
    said = str(caught.value)
    what, step = row.member if who == "member" and row.member else row.anonymous
    assert what in said
    assert step.format(url=shelf.hub.url) in said
    assert said.isprintable()
    assert shelf.token not in said


@pytest.mark.parametrize("source", ["ann/toxicity", "eve/nothing", "eve/part"])
@pytest.mark.usefixtures("shelf")
def test_a_token_that_is_not_valid_is_told_so(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    token = "hf_" + "x" * 34
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ModelNotFoundError) as caught:
        PMBank.from_pretrained(source)
    said = str(caught.value)
    assert f"the Hub does not accept your token, so {source} cannot be read" in said
    assert "unset HF_TOKEN for what is public" in said
    assert token not in said


def test_what_is_gated_or_private_loads_for_whom_it_is_for(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", shelf.token)
    for fields in ({"gated": "auto", "grants": {"ann"}}, {"private": True}):
        put(shelf.hub, "ann/mine", shelf.spare)
        repo = shelf.hub.repo("model", "ann/mine")
        assert repo is not None
        for name, value in fields.items():
            setattr(repo, name, value)
        assert PMBank.from_pretrained("ann/mine").objectives == ("toxicity",)


def test_a_renamed_repository_loads_and_its_new_name_is_told_once(
    shelf: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    put(shelf.hub, "ann/before", shelf.spare)
    shelf.hub.rename("model", "ann/before", "ann/after")
    with caplog.at_level(logging.WARNING, logger="morlaif_hub"):
        bank = PMBank.from_pretrained("ann/before")
    told = [record.getMessage() for record in caplog.records if record.name.startswith("morlaif")]
    assert told == ["ann/before was renamed on the Hub; use its new name, ann/after"]
    same(raw(bank), shelf.scores("toxicity"))
    shelf.hub.clear_log()
    PMBank.from_pretrained("ann/before")  # what the cache has is found under the old name
    downloads = [r for r in shelf.hub.requests("GET") if r.status == 200]
    assert [r.path for r in downloads] == ["/api/models/ann/after"]


def test_nobody_waits_for_what_cannot_be_had(shelf: Shelf) -> None:
    """One that is missing among others that are slow: they are not waited for."""
    shelf.hub.fault("GET", r"^/api/models/ann/", "delay", seconds=2.0, times=3)
    start = time.monotonic()
    try:
        with pytest.raises(ModelNotFoundError, match="eve/nothing"):
            PMBank.from_pretrained(["eve/nothing", "ann/toxicity", "ann/detail", "ann/empathy"])
    finally:
        end_faults(shelf.hub)
    assert time.monotonic() - start < 1
