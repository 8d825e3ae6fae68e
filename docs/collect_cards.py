"""Fill model_cards/ and dataset_cards/ with what a workspace's artifacts say about themselves.

`make cards` copies manifest and figures of every preference model, feedback dataset and bank of
`morlaif/` (`make cards WORKSPACE=folder` of another), never weights or data. Then it renders every
card that is there, so that it also serves, with no workspace, after a change to a template.
tests/test_published_cards.py checks what is there.
"""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from morlaif_hub.hub.artifact import (
    CARD_NAME,
    FIGURES_FOLDER,
    figure_names,
    open_artifact,
    stage,
)
from morlaif_hub.hub.cards import render_card
from morlaif_hub.hub.manifest import (
    MANIFEST_NAME,
    MANIFESTS,
    BankManifest,
    FeedbackManifest,
    PreferenceModelManifest,
    manifest_kind,
    read_manifest,
)
from morlaif_hub.workspace import Workspace

ROOT = Path(__file__).parent.parent
HOMES = ("model_cards", "dataset_cards")


class Found(NamedTuple):
    """An artifact of a workspace, and where its card goes."""

    folder: Path
    kind: type[PreferenceModelManifest | FeedbackManifest | BankManifest]
    home: str
    name: str


def artifacts(workspace: Workspace) -> Iterator[Found]:
    """Yield the artifacts of a workspace whose cards are kept here."""
    for folder in sorted(workspace.root.glob("pms/*/")):
        yield Found(folder, PreferenceModelManifest, "model_cards", f"pm-{folder.name}")
    for folder in sorted(workspace.all_feedback.glob("*/")):
        yield Found(folder, FeedbackManifest, "dataset_cards", f"feedback-{folder.name}")
    if (workspace.bank / MANIFEST_NAME).is_file():
        yield Found(workspace.bank, BankManifest, "model_cards", "bank")


def collect(workspace: Workspace, root: Path = ROOT) -> list[Path]:
    """Copy manifests and figures, each in place of what was there; return the folders."""
    written = []
    for found in artifacts(workspace):
        manifest = open_artifact(found.folder, found.kind)
        target = root / found.home / found.name
        with stage(target) as staging:
            for path in (MANIFEST_NAME, *figure_paths(manifest)):
                (staging / path).parent.mkdir(exist_ok=True)
                shutil.copyfile(found.folder / path, staging / path)
        written.append(target)
    return written


def figure_paths(manifest: PreferenceModelManifest | FeedbackManifest | BankManifest) -> list[str]:
    """Return the paths of the figures that an artifact's card shows."""
    return [f"{FIGURES_FOLDER}/{name}" for name in figure_names(manifest.files)]


def render_all(root: Path = ROOT) -> list[Path]:
    """Render the card of every manifest that is there; return the cards."""
    cards = []
    for home in HOMES:
        for folder in sorted(path.parent for path in (root / home).glob(f"*/{MANIFEST_NAME}")):
            manifest = read_manifest(folder, MANIFESTS[manifest_kind(folder) or ""])
            card = render_card(manifest, figures=figure_names(manifest.files))
            (folder / CARD_NAME).write_text(card, encoding="utf-8", newline="\n")
            cards.append(folder / CARD_NAME)
    return cards


if __name__ == "__main__":
    source = Workspace(Path(sys.argv[1] if len(sys.argv) > 1 else "morlaif"))
    copied, rendered = collect(source), render_all()
    sys.stderr.write(f"{len(copied)} artifacts of {source.root}, {len(rendered)} cards rendered\n")
