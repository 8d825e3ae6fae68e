"""What it costs to put a bank together from the Hub: seconds, requests and bytes.

Preference models on one base are put on a Hub on this machine, and a bank of all of them is loaded
by their repo ids, each time in a new process: with empty caches, with full ones, without a network.
Adapters and heads are random, of the size that `train-pm` makes; their golden scores are true, so
that everything is checked as it always is.

    python -m benchmarks.assembly
    python -m benchmarks.assembly --embedded
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import click
import torch
from peft import LoraConfig, TaskType, get_peft_model

from morlaif_hub.bank.bank import load_bank
from morlaif_hub.bank.classifier import load_classifier
from morlaif_hub.bank.golden import golden_sequences
from morlaif_hub.bank.trunk import layer_list
from morlaif_hub.cli.command import Report, command
from morlaif_hub.cli.tables import paragraphs, table, wrapped
from morlaif_hub.hub.artifact import seal
from morlaif_hub.hub.manifest import (
    BaseIdentity,
    GoldenScores,
    InputFormat,
    PreferenceModelManifest,
    read_manifest,
)
from morlaif_hub.models.embedded import embedded_model
from morlaif_hub.models.language_model import base_identity, load_tokenizer
from morlaif_hub.preference_models.settings import GradientSettings
from morlaif_hub.principles import load_constitution
from morlaif_hub.workspace import Workspace
from tests.hub_server import LoopbackHub
from tests.manifests import preference_model_manifest
from tests.tiny import save_tiny

PARTS = 12
TOLERANCE = 1e-3
MEGABYTE = 1e6

# Loads the sources as often as a line comes in, and says after each time how long it took.
CHILD = """
import json, sys, time
start = time.perf_counter()
from morlaif_hub.bank.bank import PMBank
imports = time.perf_counter() - start
for line in sys.stdin:
    start = time.perf_counter()
    bank = PMBank.from_pretrained(json.loads(line), progress=lambda *_: None)
    seconds = time.perf_counter() - start
    print(json.dumps({"imports": imports, "seconds": seconds, "parts": len(bank.members)}))
    sys.stdout.flush()
"""


@dataclass(frozen=True)
class Row:
    """One way to load the bank.

    Attributes:
        name: The way.
        seconds: That `PMBank.from_pretrained` took.
        requests: Made to the Hub and to where its large files are.
        megabytes: Received, of files and answers.
        goal: How many requests it may be; None for any number.
    """

    name: str
    seconds: float
    requests: int
    megabytes: float
    goal: int | None

    @property
    def holds(self) -> bool:
        """Whether the goal holds."""
        return self.goal is None or self.requests == self.goal


class Machine:
    """A machine with caches of its own, on which processes load banks.

    Args:
        hub: What they talk to.
        home: Where its caches are.
    """

    def __init__(self, hub: LoopbackHub, home: Path) -> None:
        self.hub = hub
        self.imports = 0.0
        self._variables = {
            **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(home / "huggingface"),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "MORLAIF_CACHE": str(home / "morlaif"),
            "TRANSFORMERS_VERBOSITY": "error",
        }

    def rows(
        self, sources: list[str], *names: str, goals: list[int | None], offline: bool = False
    ) -> Iterator[Row]:
        """Yield what it takes to load a bank in a new process, once for each name."""
        with self._process(offline=offline) as (say, hear):
            for name, goal in zip(names, goals, strict=True):
                self.hub.clear_log()
                say.write(json.dumps(sources) + "\n")
                say.flush()
                answer = json.loads(hear.readline())
                self.imports = answer["imports"]
                received = sum(record.bytes_out for record in self.hub.log) / MEGABYTE
                yield Row(name, answer["seconds"], len(self.hub.log), received, goal)

    @contextmanager
    def _process(self, *, offline: bool) -> Iterator[tuple[IO[str], IO[str]]]:
        variables = self._variables | {"HF_HUB_OFFLINE": str(int(offline))}
        with subprocess.Popen(
            [sys.executable, "-c", CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=variables,
            text=True,
        ) as process:
            if process.stdin is None or process.stdout is None:
                raise RuntimeError("the process has no pipes")
            yield process.stdin, process.stdout


def put_base(hub: LoopbackHub, folder: Path) -> BaseIdentity:
    """Put a base on the Hub, and return how a preference model on it names it."""
    files = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    kept = {name: data for name, data in files.items() if name not in ("morlaif.json", "README.md")}
    commit = hub.commit("model", "ann/base", kept, author="ann")
    sha256 = base_identity(folder).weights_sha256
    return BaseIdentity(repo_id="ann/base", revision=commit, weights_sha256=sha256, source="hub")


def make_adapters(folder: Path, base: Path, identity: BaseIdentity) -> list[Path]:
    """Write preference models with random adapters on the top quarter of the layers.

    Their golden scores are measured, by the bank of all of them.
    """
    names = [principle.name for principle in load_constitution().principles][:PARTS]
    folders = [folder / name for name in names]
    pad = load_tokenizer(base).pad_token_id
    for seed, (name, place) in enumerate(zip(names, folders, strict=True)):
        _save_adapter(place, base, pad_token_id=pad, seed=seed)
        manifest = replace(
            preference_model_manifest(),
            principle=load_constitution().get(name).record(),
            base=identity,
            input_format=InputFormat(kind="chat", append_eos=True, max_length=1024),
        )
        seal(place, manifest)
    golden = load_bank(folders, base=base).score(*golden_sequences(), calibrated=False)
    for column, place in enumerate(folders):
        _note_golden(place, tuple(golden[:, column].tolist()))
    return folders


def _save_adapter(folder: Path, base: Path, *, pad_token_id: int, seed: int) -> None:
    torch.manual_seed(seed)
    model = load_classifier(base, dtype=torch.float32, pad_token_id=pad_token_id)
    settings, layers = GradientSettings(), layer_list(model)
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        layers_to_transform=list(settings.adapted(len(layers or ()))),
        init_lora_weights=False,
    )
    adapted = get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = "ann/base"
    adapted.save_pretrained(folder, save_embedding_layers=False)


def _note_golden(folder: Path, scores: tuple[float, ...]) -> None:
    manifest = read_manifest(folder, PreferenceModelManifest)
    seal(folder, replace(manifest, golden=GoldenScores(scores=scores, tolerance=TOLERANCE)))


def measure(hub: LoopbackHub, root: Path, base: Path) -> tuple[list[Row], float]:
    """Return what each way to load the bank takes, and the seconds of a process's imports."""
    identity = put_base(hub, base)
    ids, pinned = [], []
    for folder in make_adapters(root / "pms", base, identity):
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}
        commit = hub.commit("model", f"ann/{folder.name}", files, author="ann")
        ids.append(f"ann/{folder.name}")
        pinned.append(f"ann/{folder.name}@{commit}")
    machine = Machine(hub, root / "machine")
    once = ["empty caches", "again in the same process"]
    rows = [
        *machine.rows(ids, *once, goals=[None, PARTS]),
        *machine.rows(ids, "in a new process", goals=[PARTS]),
        *machine.rows(pinned, "in a new process, pinned commits", goals=[0]),
        *machine.rows(ids, "in a new process, offline", goals=[0], offline=True),
    ]
    return rows, machine.imports


def shown(rows: list[Row], *, imports: float, base: str) -> str:
    """Return the rows as a table, and whether the goals hold."""
    written = table(
        ("a bank of 12 preference models", "seconds", "requests", "goal", "MB received"),
        (
            (r.name, r.seconds, r.requests, "-" if r.goal is None else f"{r.goal}", r.megabytes)
            for r in rows
        ),
    )
    wrong = [row.name for row in rows if not row.holds]
    verdict = f"the goals do NOT hold: {', '.join(wrong)}" if wrong else "the goals hold"
    said = f"Base: {base}. A new process takes {imports:.1f} seconds more for its imports."
    return paragraphs(
        written,
        wrapped(said),
        wrapped(
            f"{verdict}: one request per repository with "
            "a full cache, none for pinned commits or offline"
        ),
    )


@command("assembly", with_models=True)
@click.option("--embedded", is_flag=True, help="On the embedded model; else on a tiny one.")
def main(workspace: Workspace, *, embedded: bool) -> Report:
    """Show what it costs to put a bank of 12 preference models together from the Hub."""
    del workspace  # nothing of it is used
    with TemporaryDirectory(prefix="morlaif-assembly-") as scratch:
        root = Path(scratch)
        base = embedded_model() if embedded else save_tiny(root / "base", layers=8)
        os.environ["MORLAIF_CACHE"] = str(root / "cache")  # it notes which bases were used
        with LoopbackHub(root / "hub", xet=False) as hub:
            rows, imports = measure(hub, root, base)
    name = "the embedded model" if embedded else "a tiny model"
    data: dict[str, Any] = {
        "parts": PARTS,
        "base": name,
        "imports": imports,
        "rows": [asdict(row) | {"holds": row.holds} for row in rows],
        "holds": all(row.holds for row in rows),
    }
    return Report(data, shown(rows, imports=imports, base=name), exit_code=int(not data["holds"]))


if __name__ == "__main__":
    main()
