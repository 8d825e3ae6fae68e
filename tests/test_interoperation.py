"""What is published is used by its repo id in transformers, PEFT, TRL and datasets, as by a bank.

Everything is published once; each test is another machine, whose caches are empty, so that nothing
local stands in for a repository. No connection may go anywhere but to the Hub on loopback.
"""

import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
import torch
from datasets import Dataset, DatasetDict, load_dataset
from datasets.exceptions import DatasetNotFoundError
from peft import AutoPeftModelForSequenceClassification, PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RewardConfig, RewardTrainer

from morlaif_hub import FeedbackDataset, PMBank
from morlaif_hub.errors import DataError, ModelNotFoundError
from morlaif_hub.policies.artifact import load_policy
from morlaif_hub.publish.push import Published
from morlaif_hub.workspace import Workspace
from tests.hub_server import LoopbackHub
from tests.hub_server.child import ROOT, run_child
from tests.hub_server.online import online
from tests.hub_workspace import PRINCIPLES, Made, push_all
from tests.test_cards import code_blocks

TOLERANCE = 1e-4  # of raw scores, as the issue asks; they spread by about 1 here
COLUMNS = [
    "id",
    "prompt",
    "response_a",
    "response_b",
    "probability_a",
    "probability_a_first",
    "probability_a_second",
    "flipped",
    "tie",
    "chosen",
    "rejected",
    "margin",
    "human_choice",
]
CPU = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "seed": 0}
SHORT = {**CPU, "max_steps": 2, "logging_steps": 1, "save_strategy": "no"}


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


PROMPTS = [
    [user("How do I boil an egg?")],
    [user("Hi"), assistant("Hello. What is it?"), user("Why is the sea wide?\n\nIs it?")],
    [{"role": "system", "content": "Be brief."}, user("Zwölf Äpfel, 🍏?")],
    [user("How do I boil an egg?")],
]
RESPONSES = ["Seven minutes in boiling water.", "It is.", " Ja, und 🍎 auch!\n", ""]


class Shelf(NamedTuple):
    """A Hub on which ann has published one artifact of each kind."""

    hub: LoopbackHub
    token: str
    made: Made
    done: dict[str, Published]

    def repo(self, what: str) -> str:
        return self.done[what].repo_id

    def files(self, what: str) -> dict[str, bytes]:
        done = self.done[what]
        kind = "dataset" if what.startswith("feedback") else "model"
        return self.hub.files(kind, done.repo_id, revision=done.commit)


@pytest.fixture(scope="module")
def published(made_once: Made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    if os.environ["HF_HUB_OFFLINE"] == "0":
        pytest.skip("HF_HUB_OFFLINE=0 asks for the real Hub")
    root = tmp_path_factory.mktemp("published")
    workspace = Workspace(shutil.copytree(made_once.workspace.root, root / "workspace"))
    made = Made(workspace, made_once.base)
    with LoopbackHub(root / "hub", port=urlsplit(os.environ["HF_ENDPOINT"]).port or 0) as hub:
        token = hub.add_user("ann")
        with online(root / "client"), pytest.MonkeyPatch.context() as patch:
            patch.setenv("HF_TOKEN", token)
            patch.setenv("MORLAIF_CACHE", str(root / "cache"))
            done = push_all(made)
        yield Shelf(hub, token, made, done)
        assert hub.leaks == []


@pytest.fixture
def shelf(published: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    """Let a test use the Hub from a machine that has nothing yet."""
    asked: list[Any] = []
    look_up = socket.getaddrinfo

    def watched(host: Any, *arguments: Any, **options: Any) -> Any:
        asked.append(host)
        return look_up(host, *arguments, **options)

    monkeypatch.chdir(tmp_path)  # where a trainer may leave its folder of outputs
    monkeypatch.setattr(socket, "getaddrinfo", watched)
    with online(tmp_path / "client"):
        monkeypatch.setenv("HF_TOKEN", published.token)
        monkeypatch.setenv("MORLAIF_CACHE", str(tmp_path / "cache"))
        yield published
    assert set(asked) <= {"127.0.0.1"}


def raw_scores(repo: str, prompts: Any, responses: Any) -> torch.Tensor:
    """Return the bank's raw scores, which everything else is compared with; shape (texts,)."""
    return PMBank.from_pretrained([repo]).score(prompts, responses, calibrated=False)[:, 0]


def trl_scores(model: Any, tokenizer: Any, prompts: Any, responses: Any) -> torch.Tensor:
    """Return what a model gives for a padded batch of texts, made as TRL's trainers make them."""
    texts = [
        tokenizer.apply_chat_template([*prompt, assistant(response)], tokenize=False)
        for prompt, response in zip(prompts, responses, strict=True)
    ]
    batch = tokenizer(
        texts, padding=True, padding_side="right", add_special_tokens=False, return_tensors="pt"
    )
    with torch.inference_mode():
        return model.eval()(**batch).logits[:, 0]  # type: ignore[no-any-return]


# Scores


def test_the_base_comes_from_the_hub_and_nothing_else_is_made(shelf: Shelf, tmp_path: Path) -> None:
    base, commit = shelf.repo("base"), shelf.done["base"].commit
    weights = hashlib.sha256(shelf.files("base")["model.safetensors"]).hexdigest()
    shelf.hub.clear_log()
    raw_scores(shelf.repo("conciseness"), PROMPTS, RESPONSES)
    assert shelf.hub.requests("GET", f"/lfs/{weights}")
    asked = [record.path for record in shelf.hub.requests(path=base)]
    assert [path for path in asked if commit not in path] == []  # its newest commit is not it
    # The embedded model, of 600 MB, is another one: to convert it would be in vain.
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["bases.json"]


@pytest.mark.parametrize("principle", PRINCIPLES)
def test_transformers_and_peft_give_the_raw_scores_of_the_bank(
    principle: str, shelf: Shelf
) -> None:
    repo, base = shelf.repo(principle), shelf.repo("base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    empty = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    empty.config.pad_token_id = tokenizer.pad_token_id
    ways = {
        "transformers": AutoModelForSequenceClassification.from_pretrained(repo, num_labels=1),
        "auto peft": AutoPeftModelForSequenceClassification.from_pretrained(repo, num_labels=1),
        "peft": PeftModel.from_pretrained(empty, repo),
    }
    expected = raw_scores(repo, PROMPTS, RESPONSES)
    assert expected.std() > 1000 * TOLERANCE  # so that being close means something
    for way, model in ways.items():
        found = trl_scores(model, tokenizer, PROMPTS, RESPONSES)
        torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0, msg=way)
    for name, weight in ways["peft"].named_parameters():
        if "lora_B" in name:
            weight.data.zero_()
    headed = trl_scores(ways["peft"], tokenizer, PROMPTS, RESPONSES)
    assert (headed - expected).abs().max() > 100 * TOLERANCE  # the LoRA counts, not only its head


def test_a_trainer_takes_a_repository_as_its_reward(shelf: Shelf, tmp_path: Path) -> None:
    """TRL's own record of what it rewarded, completion by completion, against the bank."""
    seen: list[tuple[Any, str]] = []

    def watch(prompts: Any, completions: Any, **_trl_extras: Any) -> list[float]:
        seen.extend(zip(prompts, completions, strict=True))
        return [0.0] * len(prompts)

    trainer = GRPOTrainer(
        model=shelf.repo("base"),
        reward_funcs=[shelf.repo("conciseness"), watch],
        args=GRPOConfig(
            str(tmp_path),
            per_device_train_batch_size=4,
            num_generations=2,
            max_completion_length=12,
            log_completions=True,
            model_init_kwargs={"dtype": "float32"},
            **SHORT,
        ),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS[1:]}),
    )
    trainer.train()
    column = shelf.repo("base").rpartition("/")[2]  # as the card says
    noted = load_dataset("parquet", data_files=str(tmp_path / "completions/*.parquet"))["train"]
    assert len(noted) == len(seen) == 8
    assert noted["watch"][:] == [0.0] * 8
    rewards = torch.tensor(noted[column][:])
    expected = raw_scores(shelf.repo("conciseness"), *zip(*seen, strict=True))
    torch.testing.assert_close(rewards, expected, atol=TOLERANCE, rtol=0)
    assert expected.std() > 1000 * TOLERANCE
    means = [row[f"rewards/{column}/mean"] for row in trainer.state.log_history if "reward" in row]
    assert means == pytest.approx([float(part.mean()) for part in expected.split(4)], abs=TOLERANCE)


# Data


def test_the_rows_are_those_of_the_feedback_dataset(shelf: Shelf) -> None:
    repo = shelf.repo("feedback conciseness")
    rows = load_dataset(repo)
    ours = FeedbackDataset.load(repo).to_datasets()
    assert set(rows) == set(ours) == {"train", "test"}
    for split, part in rows.items():
        assert part.column_names == COLUMNS
        assert part.features == ours[split].features
        assert part.to_list() == ours[split].to_list()
    assert all(len(part) for part in rows.values())


def test_trainers_train_on_a_repository_as_it_is(shelf: Shelf, tmp_path: Path) -> None:
    rows, base = load_dataset(shelf.repo("feedback detail")), shelf.repo("base")
    given = {"output_dir": str(tmp_path), "per_device_train_batch_size": 4, **SHORT}
    reward = RewardTrainer(
        base, RewardConfig(**given), train_dataset=rows["train"], eval_dataset=rows["test"]
    )
    dpo = DPOTrainer(
        base, args=DPOConfig(**given), train_dataset=rows["train"], eval_dataset=rows["test"]
    )
    for trainer in (reward, dpo):
        trainer.train()
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        assert len(losses) == 2
        assert all(0 < loss < 10 for loss in losses)
        assert 0 < trainer.evaluate()["eval_loss"] < 10


def test_what_is_private_says_that_it_needs_a_token(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    feedback, pm = shelf.repo("feedback conciseness"), shelf.repo("conciseness")
    with pytest.raises(DatasetNotFoundError, match=f"{feedback}.*cannot be accessed"):
        load_dataset(feedback)
    with pytest.raises(DataError, match=f"{feedback} .*private, log in .* or set HF_TOKEN"):
        FeedbackDataset.load(feedback)
    with pytest.raises(ModelNotFoundError, match=f"{pm} .*private, log in .* or set HF_TOKEN"):
        PMBank.from_pretrained([pm])
    with pytest.raises(OSError, match=f"(?s){pm} .*token"):
        AutoModelForSequenceClassification.from_pretrained(pm, num_labels=1)


# Cards


def run_card(shelf: Shelf, what: str, **fill: str) -> dict[str, Any]:
    """Run all code of a published card in a row, as a reader would; return its names.

    Args:
        shelf: The Hub.
        what: Which artifact.
        fill: A repository in place of `...`, where the card has that after a word such as `model=`.
    """
    names: dict[str, Any] = {}
    blocks = code_blocks(shelf.files(what)["README.md"].decode())
    assert shelf.repo(what) in blocks[0]
    for code in blocks:
        for word, repo in fill.items():
            code = re.sub(rf'({word}\W*)"\.\.\."', rf'\1"{repo}"', code)
        assert '"..."' not in code
        exec(code.replace("Config(", "Config(use_cpu=True, "), names)
    return names


def test_the_code_of_a_preference_models_card_gives_the_raw_score_three_times(
    shelf: Shelf,
) -> None:
    names = run_card(shelf, "conciseness", model=shelf.repo("base"))
    prompt, response = names["prompt"], names["response"]
    expected = float(raw_scores(shelf.repo("conciseness"), [prompt], [response])[0])
    assert names["raw"] == pytest.approx(expected, abs=TOLERANCE)
    (calibration,) = names["bank"].calibrations
    calibrated = float(names["scores"][0, 0])
    assert calibrated * calibration.std + calibration.mean == pytest.approx(expected, abs=TOLERANCE)
    (model,), (tokenizer,) = (
        names["trainer"].reward_funcs,
        names["trainer"].reward_processing_classes,
    )
    found = trl_scores(model, tokenizer, [[user(prompt)]], [response])
    assert float(found[0]) == pytest.approx(expected, abs=TOLERANCE)


def test_the_code_of_a_feedback_datasets_card_runs(shelf: Shelf) -> None:
    names = run_card(shelf, "feedback conciseness", model=shelf.repo("base"))
    assert isinstance(names["pairs"], DatasetDict)
    assert [len(names["pairs"][split]) for split in ("train", "test")] == [
        len(names["train"]),
        len(names["test"]),
    ]
    assert len(names["trainer"].train_dataset) > 0


def test_the_code_of_a_banks_card_runs(shelf: Shelf) -> None:
    base = shelf.repo("base")
    names = run_card(shelf, "bank", model=base, load_policy=base)
    assert names["bank"].objectives == PRINCIPLES
    for column, name in enumerate(PRINCIPLES):
        raw = names["bank"].score([PROMPTS[0]], [RESPONSES[0]], calibrated=False)[:, column]
        alone = raw_scores(shelf.repo(name), [PROMPTS[0]], [RESPONSES[0]])
        torch.testing.assert_close(raw, alone, atol=TOLERANCE, rtol=0)
    (reward,) = names["trainer"].reward_funcs
    assert reward.__name__ == "soft_max_min"


def test_the_code_of_a_policys_card_loads_it_both_ways(shelf: Shelf) -> None:
    names = run_card(shelf, "policy")
    ids = names["tokenizer"]("How do I boil an egg?", return_tensors="pt").input_ids
    ours = load_policy(shelf.repo("policy"), dtype="float32")
    with torch.inference_mode():
        plain = names["model"](ids).logits
        torch.testing.assert_close(plain, ours.model(ids).logits, atol=TOLERANCE, rtol=0)


def test_the_code_of_a_bases_card_loads_it(shelf: Shelf) -> None:
    names = run_card(shelf, "base", from_pretrained=shelf.repo("detail"))
    assert names["bank"].objectives == ("detail",)
    assert names["model"].num_parameters() > 0


# Files


def test_an_adapter_names_its_base_by_repository_and_commit(published: Shelf) -> None:
    base = published.done["base"]
    for what in (*PRINCIPLES, "policy"):
        config = json.loads(published.files(what)["adapter_config.json"])
        assert config["base_model_name_or_path"] == base.repo_id
        assert config["revision"] == base.commit


def test_no_published_file_knows_the_machine_that_it_was_made_on(published: Shelf) -> None:
    places = {published.made.workspace.root, published.made.base, ROOT, Path.home()}
    traces = {*map(str, places), tempfile.gettempdir() + "/", socket.gethostname()}
    for what in published.done:
        files = published.files(what)
        assert {"README.md", "morlaif.json"} <= set(files)
        for path, content in files.items():
            for trace in traces:
                if len(trace) > 3:  # a host called vm is in any file of some size
                    assert trace.encode() not in content, f"{what}: {path} has {trace}"
    rows = load_rows(published)
    assert not [trace for trace in traces if len(trace) > 3 and trace in rows]


def load_rows(published: Shelf) -> str:
    """Return all published rows as text: parquet files are compressed."""
    return json.dumps(
        [
            part.to_list()
            for name in PRINCIPLES
            for part in FeedbackDataset.load(published.made.workspace.feedback(name))
            .to_datasets()
            .values()
        ]
    )


# Xet

XET = """
import json, os, shutil
from pathlib import Path
from datasets import config, load_dataset
from huggingface_hub import constants
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from morlaif_hub import PMBank
from morlaif_hub.models.language_model import model_folder
from morlaif_hub.publish.push import push_to_hub

config.USE_PARQUET_EXPORT = False  # asks a host that there is not
base, feedback, pm, prompts, responses = json.loads(os.environ["GIVEN"])
model_folder(Path(base))
base, feedback, pm = (push_to_hub(folder) for folder in (base, feedback, pm))
for cache in (constants.HF_HUB_CACHE, os.environ["MORLAIF_CACHE"]):
    shutil.rmtree(cache)
tokenizer = AutoTokenizer.from_pretrained(base.repo_id)
model = AutoModelForSequenceClassification.from_pretrained(pm.repo_id, num_labels=1).eval()
texts = [
    tokenizer.apply_chat_template(
        [*prompt, {"role": "assistant", "content": response}], tokenize=False
    )
    for prompt, response in zip(prompts, responses, strict=True)
]
plain = [
    model(tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids).logits.item()
    for text in texts
]
bank = PMBank.from_pretrained([pm.repo_id]).score(prompts, responses, calibrated=False)
rows = {split: part.to_list() for split, part in load_dataset(feedback.repo_id).items()}
repos = [base.repo_id, feedback.repo_id, pm.repo_id]
print(json.dumps({"repos": repos, "plain": plain, "bank": bank[:, 0].tolist(), "rows": rows}))
"""


@pytest.mark.slow
def test_all_of_it_goes_over_xet_too(shelf: Shelf, tmp_path: Path) -> None:
    """In a process of its own, since Xet's library keeps state for the whole process."""
    workspace, hub = shelf.made.workspace, shelf.hub
    folders = (
        shelf.made.base,
        workspace.feedback("conciseness"),
        workspace.preference_model("conciseness"),
    )
    given = json.dumps([*map(str, folders), PROMPTS, RESPONSES])
    hub.clear_log()
    ended = run_child(
        XET, hub=hub, home=tmp_path / "home", token=hub.add_user("bob"), env={"GIVEN": given}
    )
    assert ended.returncode == 0, ended.stderr
    # Large files went up and came down over Xet, all of them.
    assert hub.requests("POST", "/shards")
    assert hub.requests("GET", "/reconstructions/")
    assert not hub.requests(path="^/lfs/")
    found = json.loads(ended.stdout.splitlines()[-1])
    expected = raw_scores(shelf.repo("conciseness"), PROMPTS, RESPONSES)
    for way in ("plain", "bank"):
        torch.testing.assert_close(torch.tensor(found[way]), expected, atol=TOLERANCE, rtol=0)
    ours = FeedbackDataset.load(folders[1]).to_datasets()
    assert found["rows"] == {split: part.to_list() for split, part in ours.items()}
    assert [repo.partition("/")[0] for repo in found["repos"]] == ["bob"] * 3
    for kind, repo, folder in zip(
        ("model", "dataset", "model"), found["repos"], folders, strict=True
    ):
        assert len(hub.commits(kind, repo)) == 2  # the first is the Hub's own
        for path, content in hub.files(kind, repo).items():
            if path.endswith((".safetensors", ".parquet")):
                assert content == (folder / path).read_bytes()
