"""The command that shows principles."""

from dataclasses import asdict
from typing import Any

import click

from morlaif_hub.cli.command import Report, command, constitution_option
from morlaif_hub.cli.tables import paragraphs, table, wrapped
from morlaif_hub.workspace import Workspace


@command("principles")
@click.argument("name", required=False)
@constitution_option
def principles(_workspace: Workspace, *, name: str | None, constitution: str) -> Report:
    """List a set's principles, or show the one called NAME.

    NAME is shown with its probes: short pairs with a known better side, the unit tests of judges
    and preference models.
    """
    from morlaif_hub.principles import Principle, load_constitution

    def plain(principle: Principle) -> dict[str, Any]:
        fields = asdict(principle)
        del fields["probes"]
        return {**fields, "probes": len(principle.probes), "sha256": principle.sha256()}

    chosen = load_constitution(constitution)
    if name is None:
        data = {"constitution": chosen.name, "principles": [plain(p) for p in chosen.principles]}
        rows = [(p.name, len(p.probes), p.high_score) for p in chosen.principles]
        return Report(data, table(("principle", "probes", "what a high score means"), rows))
    principle = chosen.get(name)
    described = [
        wrapped(f"{title}: {words}", indent="    ")
        for title, words in (
            ("criterion", principle.criterion),
            ("opposite", principle.opposite),
            ("direction", principle.high_score),
        )
    ]
    pairs = [
        "\n".join(
            [
                wrapped(probe.prompt),
                wrapped(f"  better: {probe.better}", indent=" " * 10),
                wrapped(f"  worse:  {probe.worse}", indent=" " * 10),
            ]
        )
        for probe in principle.probes
    ]
    probes = [asdict(probe) for probe in principle.probes]
    heading = f"{principle.name}\n{'-' * len(principle.name)}"
    return Report({**plain(principle), "probes": probes}, paragraphs(heading, described, *pairs))
