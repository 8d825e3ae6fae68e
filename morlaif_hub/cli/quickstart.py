"""The command that runs the whole loop."""

from morlaif_hub.cli.command import Report, command, local, seed_option
from morlaif_hub.cli.progress import Progress
from morlaif_hub.cli.tables import paragraphs, wrapped
from morlaif_hub.workspace import Workspace


@command("quickstart", with_models=True)
@seed_option
def quickstart(workspace: Workspace, *, seed: int) -> Report:
    """Run the whole loop on the embedded model, offline.

    Sample responses, let the model judge them, train three preference models, steer with them and
    align a policy. The results say with intervals what is there and what is not. A run that was
    stopped goes on where it was; see reports/quickstart.html in the workspace.
    """
    from morlaif_hub.evaluation.report import closing_table
    from morlaif_hub.quickstart import QuickstartSettings, run_quickstart

    with Progress() as progress:
        result = run_quickstart(workspace, QuickstartSettings(seed=seed), progress=progress)
    # First in words: they begin with who is not known to be fit.
    findings = [wrapped(f"- {sentence}", indent="  ") for sentence in result["details"]["findings"]]
    page = workspace.reports / "quickstart.html"
    text = paragraphs(findings, closing_table(result), local(page))
    return Report(result, text, "morlaif-hub demo")
