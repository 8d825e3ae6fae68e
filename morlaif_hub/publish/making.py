"""Making what can be published of what is at hand: a base of any model, a bank of any members."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from morlaif_hub.bank.artifact import write_bank
from morlaif_hub.bank.bank import PMBank
from morlaif_hub.bank.golden import golden_sequences
from morlaif_hub.errors import HubError, OptionError
from morlaif_hub.hub.artifact import seal
from morlaif_hub.hub.client import Progress
from morlaif_hub.hub.manifest import MANIFEST_NAME, BankManifest, BaseManifest
from morlaif_hub.judges.validation import probe_comparisons
from morlaif_hub.models.language_model import ModelFolder
from morlaif_hub.principles import load_constitution
from morlaif_hub.rewards import bind_scalarizer

BASE_FILES = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer*.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.*",
    "merges.txt",
    "LICENSE*",
)
"""What a model consists of: not what training left beside it."""
_PLACES = ("_name_or_path", "name_or_path")  # where transformers notes what a model was loaded from


@contextmanager
def base_artifact(base: ModelFolder, *, license: str | None) -> Iterator[Path]:
    """Yield a base model's artifact: the embedded model's own, or one made of a local model.

    Args:
        base: A local model.
        license: Of its weights; needed where nothing says it.

    Raises:
        OptionError: If no licence is known.
        HubError: If the base is a repository on the Hub already.
    """
    if (base.path / MANIFEST_NAME).is_file():
        yield base.path
        return
    if base.base.source == "hub":
        raise HubError(
            f"{base.name} is on the Hub already, and what is made on it names it; there is nothing "
            "to publish"
        )
    if license is None:
        raise OptionError(
            f"{base.name}: nothing here says under which licence its weights may be passed on; "
            "name it with --license, as apache-2.0"
        )
    with TemporaryDirectory(prefix="morlaif-base-") as scratch:
        folder = Path(scratch, base.path.name)
        folder.mkdir()
        for path in sorted(base.path.iterdir()):
            if path.is_file() and any(fnmatch(path.name, pattern) for pattern in BASE_FILES):
                _copy_without_places(path, folder / path.name)
        manifest = BaseManifest(
            license=license,
            base=base.base,
            made_from=f"a local folder named {base.path.name}",
            versions={name: version(name) for name in ("morlaif-hub", "transformers")},
        )
        seal(folder, manifest)
        yield folder


def make_bank(
    bank: PMBank,
    folder: Path,
    *,
    name: str | None = None,
    weights: dict[str, float] | None = None,
    scalarizer: str = "linear",
    progress: Progress | None = None,
) -> BankManifest:
    """Write a bank's artifact, with the correlations of its scores on probes.

    The texts are the probes' responses of its own principles, or the golden texts where none of
    them has probes that are installed.

    Args:
        bank: Its preference models have manifests.
        folder: Replaced if it exists.
        name: The bank's; by default the folder's.
        weights: One per objective; by default all the same.
        scalarizer: A name in `SCALARIZERS`.
        progress: Told how many texts are scored.

    Raises:
        ObjectiveMismatchError, OptionError, UnknownNameError: If the scores cannot be combined so.
    """
    named = weights or dict.fromkeys(bank.objectives, 1 / len(bank.objectives))
    bind_scalarizer(scalarizer, bank.objectives, weights=named)
    known = {principle.name: principle for principle in load_constitution().principles}
    own = [m.manifest.principle.name for m in bank.members if m.manifest is not None]
    pairs = [pair for name in own if name in known for pair in probe_comparisons(known[name])]
    if pairs:
        prompts = [list(pair.prompt) for pair in pairs for _ in range(2)]
        texts = [text for pair in pairs for text in (pair.response_a, pair.response_b)]
    else:
        prompts, texts = golden_sequences()
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        if progress:
            progress("scoring probes with the bank", done, len(texts))

    scores = bank.score(prompts, texts, progress=count).double().numpy()
    return write_bank(bank, folder, scores=scores, weights=named, scalarizer=scalarizer, name=name)


def _copy_without_places(source: Path, target: Path) -> None:
    """Copy a model's file; of its configurations, without the folder that it was loaded from."""
    if source.suffix != ".json" or "config" not in source.name:
        shutil.copyfile(source, target)
        return
    config = json.loads(source.read_text(encoding="utf-8"))
    kept = {k: v for k, v in config.items() if k not in _PLACES}
    target.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
