"""The command that lists what can be named: sets of principles, judges and scalarizers."""

import inspect
import re
from typing import Any

import click

from morlaif_hub.cli.command import Report, command
from morlaif_hub.cli.tables import Cell, table
from morlaif_hub.errors import MorlaifHubError
from morlaif_hub.plugins import Registry
from morlaif_hub.workspace import Workspace

_URL = re.compile(r"https?://\S+")


@command("plugins")
@click.option(
    "--check", is_flag=True, help="Load each; show its source, or why it cannot be loaded."
)
def plugins(_workspace: Workspace, *, check: bool) -> Report:
    """List sets of principles, judges and scalarizers.

    Those of other packages are called package/name. With MORLAIF_HUB_PLUGINS=off in the environment
    they are left out.
    """
    from morlaif_hub.judges.base import JUDGES
    from morlaif_hub.principles import CONSTITUTIONS
    from morlaif_hub.scalarizers import SCALARIZERS

    registries: list[Registry[Any]] = [CONSTITUTIONS, JUDGES, SCALARIZERS]
    found = [
        _described(registry, name, check=check)
        for registry in registries
        for name in registry.names()
    ]
    header, columns = ["kind", "name", "package", "also called"], ["kind", "name", "package"]
    if check:
        header.append("source, or why it cannot be loaded")
    rows: list[list[Cell]] = [
        [
            *(plugin[column] for column in columns),
            ", ".join(plugin["aliases"]),
            *([plugin["error"] or plugin["source"] or "loads"] if check else []),
        ]
        for plugin in found
    ]
    return Report({"plugins": found}, table(header, rows))


def _described(registry: Registry[Any], name: str, *, check: bool) -> dict[str, Any]:
    described: dict[str, Any] = {
        "kind": registry.kind,
        "name": name,
        "package": registry.package(name),
        "aliases": [alias for alias, of in registry.aliases().items() if of == name],
    }
    return {**described, **_checked(registry, name)} if check else described


def _checked(registry: Registry[Any], name: str) -> dict[str, str | None]:
    from morlaif_hub.principles import load_constitution

    try:
        thing = registry.get(name)
        if registry.kind == "principle":  # a path, and its file has to be a set as well
            load_constitution(name)
    except MorlaifHubError as error:
        return {"source": None, "error": str(error)}
    url = _URL.search(inspect.getdoc(thing) or "") if inspect.isfunction(thing) else None
    return {"source": url[0] if url else None, "error": None}
