"""The commands that publish on the Hub, and the one that checks what is published."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from morlaif_hub.cli.banks import (
    bank_is_current,
    bank_option,
    choose_reward,
    load_bank,
    member_sources,
    reward_options,
)
from morlaif_hub.cli.command import Report, command, hint
from morlaif_hub.cli.progress import Progress
from morlaif_hub.cli.tables import Cell, paragraphs, printable, table, wrapped
from morlaif_hub.workspace import Workspace

if TYPE_CHECKING:
    from morlaif_hub.publish.checks import Check
    from morlaif_hub.publish.plan import Published, PushPlan
    from morlaif_hub.publish.verify import Verification

NOTHING_SENT = "This was a dry run: nothing was sent."


class Push(NamedTuple):
    """How to push, as the options say."""

    repo_id: str | None
    public: bool
    dry_run: bool
    create_pr: bool
    yes: bool


def push_options(function: Callable[..., Report]) -> Callable[..., Report]:
    """Add the options that all push commands have; the function gets them as `push`."""

    def gathered(
        workspace: Workspace,
        *,
        repo_id: str | None,
        public: bool,
        dry_run: bool,
        create_pr: bool,
        yes: bool,
        **options: Any,
    ) -> Report:
        push = Push(repo_id, public, dry_run, create_pr, yes)
        return function(workspace, push=push, **options)

    gathered.__name__, gathered.__doc__ = function.__name__, function.__doc__
    options = [
        click.option(
            "--repo-id",
            metavar="ID",
            help="The repository. [default: a name of ours in your account]",
        ),
        click.option("--public", is_flag=True, help="Let everybody read it; else it is private."),
        click.option(
            "--dry-run", is_flag=True, help="Show files, sizes and the card; send nothing."
        ),
        click.option("--create-pr", is_flag=True, help="Open a pull request instead."),
        click.option("--yes", is_flag=True, help="Do not ask on a terminal."),
    ]
    # Options that were put on the function below, in click's own place for them.
    gathered.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
    for option in reversed(options):
        option(gathered)
    return gathered


@command("push-base", with_models=True)
@click.option("--base", metavar="MODEL", help="A local model. [default: the embedded model]")
@click.option("--license", metavar="SPDX", help="Of its weights, where nothing else says it.")
@push_options
def push_base(
    _workspace: Workspace, *, base: str | None, license: str | None, push: Push
) -> Report:
    """Publish the base that preference models need.

    Once for a base: preference models of all principles name the same repository. The embedded
    model's weights are not those of the repository that it was made from, so it needs its own.
    """
    _check_token(push)
    from morlaif_hub.models.language_model import model_folder
    from morlaif_hub.publish.making import base_artifact

    with base_artifact(model_folder(base), license=license) as folder:
        return _push(folder, push, "morlaif-hub push-pm PRINCIPLE")


@command("push-feedback")
@click.argument("principle")
@push_options
def push_feedback(workspace: Workspace, *, principle: str, push: Push) -> Report:
    """Publish the feedback dataset of a PRINCIPLE.

    With it on the Hub, others can measure the accuracy of your preference model again.
    """
    folder = workspace.feedback(principle)
    _check_there(folder, f"feedback on {principle!r}", f"morlaif-hub collect-feedback {principle}")
    return _push(folder, push, f"morlaif-hub push-pm {principle}")


@command("push-pm", with_models=True)
@click.argument("principle")
@click.option("--base-repo", metavar="ID", help="Holds its base. [default: as push-base names it]")
@push_options
def push_pm(workspace: Workspace, *, principle: str, base_repo: str | None, push: Push) -> Report:
    """Publish the preference model of a PRINCIPLE.

    It is reported when it was downloaded again, every file compared, and its golden texts scored.
    One that prefers the worse side of its probes is refused.
    """
    folder = workspace.preference_model(principle)
    _check_there(folder, f"preference model of {principle!r}", f"morlaif-hub train-pm {principle}")
    return _push(folder, push, "morlaif-hub verify {repo_id}", base_repo=base_repo)


@command("push-bank", with_models=True)
@bank_option
@reward_options
@push_options
def push_bank(
    workspace: Workspace,
    *,
    banks: tuple[str, ...],
    scalarizer: str | None,
    weights: dict[str, float] | None,
    push: Push,
) -> Report:
    """Publish a bank, its parts pinned to their commits.

    The workspace's bank is made again when it is out of date, or when preference models, weights
    or a scalarizer are given. Its parts are gathered in a Collection.
    """
    _check_token(push)
    anew = bool(banks or weights or scalarizer) or not bank_is_current(workspace)
    with _bank_folder(workspace, push, anew=anew) as folder:
        if anew:
            _make_bank(workspace, folder, banks, weights=weights, scalarizer=scalarizer)
        return _push(
            folder, push, "morlaif-hub score --bank {repo_id} --prompt '...' --response '...'"
        )


@command("push-policy", with_models=True)
@click.argument("name")
@click.option("--base-repo", metavar="ID", help="Holds its base. [default: as push-base names it]")
@push_options
def push_policy(workspace: Workspace, *, name: str, base_repo: str | None, push: Push) -> Report:
    """Publish the policy NAME."""
    folder = workspace.policy(name)
    _check_there(folder, f"policy {name!r}", f"morlaif-hub train-policy --name {name}")
    return _push(folder, push, "morlaif-hub steer --model {repo_id}", base_repo=base_repo)


@command("verify", with_models=True)
@click.argument("repo")
def verify(_workspace: Workspace, *, repo: str) -> Report:
    """Measure again what an artifact claims.

    Hashes, base, golden scores and probes are always measured; accuracy where its data can be
    loaded. The exit code is 1 if a claim fails.
    """
    from morlaif_hub.publish import verify as verifying

    with Progress() as progress:
        found = verifying.verify(repo, progress=progress.reach)
    report = Report(_verification_data(found), _verification_text(found))
    return report if found.holds else report._replace(exit_code=1)


class _Terminal:
    """Follows a push on stderr, and asks before it sends anything if somebody can answer."""

    def __init__(self, push: Push) -> None:
        self._ask = not push.yes and sys.stdin.isatty() and sys.stderr.isatty()

    def planned(self, plan: "PushPlan") -> bool:
        if not self._ask:
            return True
        click.echo(_plan_text(plan), err=True)
        who = "EVERYBODY will be able to read it" if plan.public else "it will be private"
        return click.confirm(f"Push to {plan.repo_id}? ({who})", err=True)

    def step(self, text: str) -> None:
        click.echo(f"{text} ...", err=True)


def _push(folder: Path, push: Push, next_step: str, *, base_repo: str | None = None) -> Report:
    from morlaif_hub.publish.push import plan_push, push_to_hub

    if push.dry_run:
        plan = plan_push(
            folder,
            push.repo_id,
            public=push.public,
            base_repo=base_repo,
            create_pr=push.create_pr,
        )
        text = paragraphs(_plan_text(plan), printable(plan.card), NOTHING_SENT)
        return Report(_plan_data(plan), text)
    done = push_to_hub(
        folder,
        push.repo_id,
        public=push.public,
        base_repo=base_repo,
        create_pr=push.create_pr,
        watch=_Terminal(push),
    )
    for need in done.needs:
        hint(f"{need.what}: {need.command}")
    return Report(_done_data(done), _done_text(done), next_step.format(repo_id=done.repo_id))


def _check_there(folder: Path, what: str, command_to_make_it: str) -> None:
    from morlaif_hub.errors import ModelNotFoundError
    from morlaif_hub.hub.manifest import MANIFEST_NAME

    if not (folder / MANIFEST_NAME).is_file():
        raise ModelNotFoundError(
            f"there is no {what} in the workspace ({folder}); make it with {command_to_make_it}"
        )


def _check_token(push: Push) -> None:
    """Check that something can be published, before work that a push needs but a look does not."""
    from morlaif_hub.hub.upload import account

    if not push.dry_run:
        account()


@contextmanager
def _bank_folder(workspace: Workspace, push: Push, *, anew: bool) -> Iterator[Path]:
    """Yield where the bank is, or is to be made: a dry run leaves the workspace's own as it is."""
    if not (anew and push.dry_run):
        yield workspace.bank
        return
    workspace.check_writable()
    # Beside the bank, from where it names its members.
    with TemporaryDirectory(prefix=".bank-", dir=workspace.root) as folder:
        yield Path(folder)


def _make_bank(
    workspace: Workspace,
    folder: Path,
    banks: tuple[str, ...],
    *,
    weights: dict[str, float] | None,
    scalarizer: str | None,
) -> None:
    sources = member_sources(workspace, banks)
    workspace.check_writable()
    from morlaif_hub.publish.making import make_bank

    bank = load_bank(sources)
    reward = choose_reward(bank, weights=weights, scalarizer=scalarizer)
    with Progress() as progress:
        make_bank(
            bank,
            folder,
            name=workspace.bank.name,
            weights=reward.weights,
            scalarizer=reward.scalarizer,
            progress=progress.reach,
        )
    if folder == workspace.bank:
        hint(f"the bank {workspace.bank} was made anew")


def _plan_text(plan: "PushPlan") -> str:
    where = {True: "there already", False: "to be created", None: "not looked for without a token"}
    rows: list[list[Cell]] = [
        [file.path, f"{file.size:,}" if file.change != "removed" else None, file.change]
        for file in plan.files
    ]
    visible = "public" if plan.public else "private"
    head = f"{plan.kind} -> {plan.repo_id} ({visible}; {where[plan.exists]})"
    needs = [
        wrapped(
            f"{'NEEDED FIRST' if need.required else 'better first'}: {need.what}: {need.command}"
        )
        for need in plan.needs
    ]
    refused = wrapped(f"WOULD BE REFUSED: {plan.refused}") if plan.refused else ""
    return paragraphs(printable(head), refused, table(("file", "bytes", "on the Hub"), rows), needs)


def _plan_data(plan: "PushPlan") -> dict[str, Any]:
    return {
        "dry_run": True,
        "kind": plan.kind,
        "repo_id": plan.repo_id,
        "exists": plan.exists,
        "public": plan.public,
        "files": [file._asdict() for file in plan.files],
        "needs": [need._asdict() for need in plan.needs],
        "card": plan.card,
        "refused": plan.refused,
    }


def _done_text(done: "Published") -> str:
    what = "published" if done.new else "was there already, and proved again"
    request = " as a pull request" if done.new else ""
    version = f" as {done.tag}" if done.tag else request
    head = f"{done.repo_id}: {what}{version}, {'public' if done.public else 'private'}"
    more = f"\n{done.collection}" if done.collection else ""
    return paragraphs(f"{head}\n{done.url}{more}", _checks_table(done.checks))


def _done_data(done: "Published") -> dict[str, Any]:
    data = asdict(done)
    data["checks"] = [check._asdict() for check in done.checks]
    data["needs"] = [need._asdict() for need in done.needs]
    return data


def _verification_text(found: "Verification") -> str:
    failed = [check.claim for check in found.checks if check.verdict == "fails"]
    said = f"{found.kind} {found.source}: " + (
        f"FAILS: {', '.join(failed)}" if failed else "every claim that could be checked holds"
    )
    return paragraphs(wrapped(said), _checks_table(found.checks))


def _verification_data(found: "Verification") -> dict[str, Any]:
    return {
        "source": found.source,
        "kind": found.kind,
        "holds": found.holds,
        "checks": [check._asdict() for check in found.checks],
    }


def _checks_table(checks: "tuple[Check, ...]") -> str:
    rows: list[list[Cell]] = [[c.claim, c.stated, c.verdict, c.measured] for c in checks]
    return table(("claim", "stated", "verdict", "measured"), rows)
