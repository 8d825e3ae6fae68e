"""Publishing: one commit, downloaded again and proved before it counts.

The order is fixed. The token is checked before any work; what the artifact needs on the Hub is
looked for; its claims are checked here; the repository gets one commit; the commit is downloaded
into an empty folder, compared byte for byte and checked again; only then is it tagged, made public
if that is wanted, and reported.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from morlaif_hub.errors import ArtifactError, HubError, MorlaifHubError
from morlaif_hub.hub.access import Asked, endpoint, has_token
from morlaif_hub.hub.artifact import CARD_NAME
from morlaif_hub.hub.client import Resolved, fetch
from morlaif_hub.hub.collections import Listed, gather
from morlaif_hub.hub.manifest import (
    MANIFEST_NAME,
    BankManifest,
    BaseManifest,
    Manifest,
    read_manifest,
)
from morlaif_hub.hub.remote_files import file_sha256
from morlaif_hub.hub.upload import (
    Account,
    Remote,
    account,
    commit_folder,
    create_repository,
    folder_files,
    make_public,
    open_pull_request,
    remote,
    tag_version,
)
from morlaif_hub.publish.checks import Check
from morlaif_hub.publish.links import Need
from morlaif_hub.publish.names import subject
from morlaif_hub.publish.plan import Change, PlannedFile, Published, PushPlan, Unwatched, Watch
from morlaif_hub.publish.published import remember, repo_type
from morlaif_hub.publish.release import Release, staged_release
from morlaif_hub.publish.verify import verify_fetched


def plan_push(
    folder: str | Path,
    repo_id: str | None = None,
    *,
    public: bool = False,
    base_repo: str | None = None,
    create_pr: bool = False,
) -> PushPlan:
    """Return what a push would do, without changing anything; it needs no token.

    Args:
        folder: The artifact.
        repo_id: The repository; by default one in the account's name, or `<user>/...` without a
            token, when the Hub is not asked for anything.
        public: As for `push_to_hub`.
        base_repo: As for `push_to_hub`.
        create_pr: As for `push_to_hub`.

    Raises:
        MorlaifHubError: As `push_to_hub`, but for what the plan tells: what is needed first, and
            why the push would be refused.
    """
    me, refused = None, None
    try:
        me = account() if has_token() else None
    except HubError as error:
        refused = str(error)
    owner = me.name if me else None
    with staged_release(Path(folder), repo_id, owner=owner, base_repo=base_repo) as release:
        there = None
        if me is not None:
            asked = _asked(release)
            there = remote(asked)
            try:
                _refuse(release, there, me, public=public, create_pr=create_pr)
            except HubError as error:
                refused = str(error)
        plan = _plan(release, there, public=public, known=me is not None)
        return replace(plan, refused=refused)


def push_to_hub(
    folder: str | Path,
    repo_id: str | None = None,
    *,
    public: bool = False,
    base_repo: str | None = None,
    create_pr: bool = False,
    watch: Watch | None = None,
) -> Published:
    """Publish an artifact: a preference model, feedback dataset, bank, policy or base.

    The repository then holds exactly the artifact's files, in one commit. It is reported only
    after the commit was downloaded again, every file compared, and the golden texts scored. If
    anything fails before the commit, nothing of it is on the Hub; pushing again is always safe:
    what is there is compared first, so that nothing is committed twice.

    Args:
        folder: The artifact.
        repo_id: The repository; by default `<user>/morlaif-pm-<principle>-<base>` and the like.
        public: Whether everybody may read it. It is made private, and opened at the very end.
        base_repo: A repository that holds exactly the base's weights, if it is not found by
            itself.
        create_pr: Whether to open a pull request on a repository that is there.
        watch: Told what is planned, which it can stop, and what is being done.

    Raises:
        HubError: If there is no token, the Hub refuses or cannot be reached, something that is
            needed is not there yet, or the push was stopped.
        WrongWayError: If it is a preference model that prefers the worse side of its probes.
        ArtifactError: If the files are damaged or unsafe, or what came back from the Hub is not
            what was sent.
    """
    watch = watch or Unwatched()
    me, source = account(), Path(folder)
    with staged_release(source, repo_id, owner=me.name, base_repo=base_repo) as release:
        there = remote(_asked(release))
        _refuse(release, there, me, public=public, create_pr=create_pr)
        plan = _plan(release, there, public=public, known=True)
        _refuse_without(plan.needs)
        watch.step("checking it here first")
        checks = _prove(Resolved(release.folder, None, None), str(folder))
        if create_pr and there is not None and there.differs(release.folder) == ([], []):
            return _unchanged(release, there, plan, checks)
        if not watch.planned(plan):
            raise HubError(f"{release.repo_id}: stopped; nothing was published")
        return _publish(release, there, plan, create_pr=create_pr, watch=watch)


def _publish(
    release: Release, there: Remote | None, plan: PushPlan, *, create_pr: bool, watch: Watch
) -> Published:
    asked, title = _asked(release), _title(release.manifest)
    if there is None:
        there = _created(release, public=plan.public)
    target = _again(open_pull_request(asked, title=title)) if create_pr else there
    watch.step(f"sending {plan.bytes / 1e6:,.1f} MB" if plan.bytes else "comparing what is there")
    commit = commit_folder(release.folder, target, message=title)
    watch.step("downloading it again, to compare and score it")
    checks = _prove_commit(release, asked._replace(revision=commit))
    tag = collection = None
    if not create_pr:
        tag, collection = _finish(release, there, commit, public=plan.public, watch=watch)
    remember(release.manifest, release.repo_id)
    request = str(target.asked.revision).rpartition("/")[2]
    return Published(
        repo_id=release.repo_id,
        commit=commit,
        tag=tag,
        url=_address(asked) + (f"/discussions/{request}" if create_pr else ""),
        public=plan.public if not create_pr else not there.private,
        new=commit != target.commit,
        checks=checks,
        collection=collection,
        needs=plan.needs,
    )


def _finish(
    release: Release, there: Remote, commit: str, *, public: bool, watch: Watch
) -> tuple[str, str | None]:
    """Tag a proved commit, open it if that is wanted, and gather a bank's parts.

    Returns:
        The version, and the address of the Collection of a bank.
    """
    asked, collection = _asked(release), None
    with _proved(release, "has no version tag"):
        tag = tag_version(asked, commit)
    if public and there.private:
        with _proved(release, "is still private"):
            make_public(asked)
    if isinstance(release.manifest, BankManifest):
        watch.step("gathering its parts in a Collection")
        with _proved(release, "its Collection is not complete"):
            collection = _gather(release.manifest, release.repo_id, public=public)
    return tag, collection


def _unchanged(
    release: Release, there: Remote, plan: PushPlan, checks: tuple[Check, ...]
) -> Published:
    """Return what there is to say of a pull request that would change nothing."""
    return Published(
        repo_id=release.repo_id,
        commit=there.commit,
        tag=None,
        url=_address(there.asked),
        public=not there.private,
        new=False,
        checks=checks,
        collection=None,
        needs=plan.needs,
    )


def _asked(release: Release) -> Asked:
    return Asked(release.repo_id, None, repo_type(release.manifest.kind))


def _refuse(
    release: Release, there: Remote | None, me: Account, *, public: bool, create_pr: bool
) -> None:
    """Refuse, before anything is sent, what must not be published to a repository as it is."""
    owner = release.repo_id.partition("/")[0]
    if there is None and create_pr:
        raise HubError(
            f"{release.repo_id} is not on the Hub, so there is nothing to open a pull request on; "
            "leave out --create-pr"
        )
    if there is None:
        if owner not in (me.name, *me.organizations):
            raise HubError(
                f"nothing was published: {owner} is neither your account ({me.name}) nor an "
                "organization that you are in; choose another --repo-id"
            )
        return
    _refuse_other_content(there, release.manifest)
    _refuse_public(there, public=public or create_pr)


def _refuse_public(there: Remote, *, public: bool) -> None:
    if not there.private and not public:
        raise HubError(
            f"{there.asked.repo_id} is public, and a push is private unless you say otherwise: add "
            "--public, or choose another --repo-id"
        )


def _created(release: Release, *, public: bool) -> Remote:
    """Create the repository and return it, looked at again: somebody else may have been faster."""
    asked = _asked(release)
    create_repository(asked)
    there = _again(asked)
    _refuse_other_content(there, release.manifest)
    _refuse_public(there, public=public)
    return there


def _refuse_other_content(there: Remote, manifest: Manifest) -> None:
    """Refuse to write over a repository that holds something else."""
    asked, files = there.asked, set(there.files) - {".gitattributes", CARD_NAME, "LICENSE"}
    if not files:
        return
    try:
        found = fetch(
            f"{asked.repo_id}@{there.commit}",
            repo_type=asked.repo_type,
            allow_patterns=[MANIFEST_NAME],
            quiet=True,
        )
        kept = read_manifest(found.path, type(manifest), where=asked.repo_id)
    except HubError:  # what it holds is not known
        raise
    except MorlaifHubError as error:
        raise HubError(
            f"{asked.repo_id} holds something else than a {manifest.kind} of ours ({error}), "
            "which is not written over; choose another --repo-id"
        ) from error
    if subject(kept) != subject(manifest):
        raise HubError(
            f"{asked.repo_id} holds the {manifest.kind} of {subject(kept)!r}, which is not written "
            f"over with that of {subject(manifest)!r}; choose another --repo-id"
        )


def _refuse_without(needs: Sequence[Need]) -> None:
    missing = [need for need in needs if need.required]
    if missing:
        said = "; ".join(f"{need.what}: publish it first, with {need.command}" for need in missing)
        base = any(need.command.startswith("morlaif-hub push-base") for need in missing)
        other = ", or name a repository that holds its weights with --base-repo" if base else ""
        raise HubError(f"nothing was published: {said}{other}")


def _hidden(release: Release) -> list[Need]:
    """Return what others could not read of that which a public artifact names."""
    hidden = []
    for part in release.parts:
        there = remote(part.asked)
        if there is None or there.private:
            why = f"{part.what}, {part.asked.repo_id}, is private, so nobody else can load it"
            hidden.append(Need(why, part.command, part.required))
    return hidden


def _plan(release: Release, there: Remote | None, *, public: bool, known: bool) -> PushPlan:
    written, deleted = there.differs(release.folder) if there else ([], [])
    files = []
    for path in folder_files(release.folder):
        change: Change = "new"
        if there is not None and path in there.files:
            change = "changed" if path in written else "same"
        files.append(PlannedFile(path, (release.folder / path).stat().st_size, change))
    return PushPlan(
        kind=release.manifest.kind,
        repo_id=release.repo_id,
        exists=there is not None if known else None,
        public=public,
        files=(*files, *(PlannedFile(path, 0, "removed") for path in deleted)),
        needs=(*release.needs, *(_hidden(release) if public and known else ())),
        card=(release.folder / CARD_NAME).read_text(encoding="utf-8"),
    )


def _prove(found: Resolved, label: str) -> tuple[Check, ...]:
    """Check an artifact's claims, but for those that take its data; refuse one that fails."""
    verification = verify_fetched(found, deep=False, label=label)
    failed = [check for check in verification.checks if check.verdict == "fails"]
    if failed:
        raise ArtifactError(
            f"{label}: {failed[0].claim}: claimed {failed[0].stated}, measured {failed[0].measured}"
        )
    return verification.checks


def _prove_commit(release: Release, asked: Asked) -> tuple[Check, ...]:
    """Download a commit into an empty folder, compare it with what was sent, and check it."""
    there = f"the commit {(asked.revision or '')[:12]} is on the Hub, but without a version tag"
    with TemporaryDirectory(prefix="morlaif-proof-") as scratch:
        try:
            found = fetch(asked.name, repo_type=asked.repo_type, cache=Path(scratch), quiet=True)
            _compare(release.folder, found)
            return _prove(found, found.label)
        except MorlaifHubError as error:
            kind = ArtifactError if isinstance(error, ArtifactError) else HubError
            raise kind(
                f"{release.repo_id}: what was published could not be proved: {error}; {there}; "
                "push again, which compares what is there and sends nothing twice"
            ) from error


def _compare(sent: Path, found: Resolved) -> None:
    for path in folder_files(sent):
        back = found.path / path
        if not back.is_file() or file_sha256(back) != file_sha256(sent / path):
            raise ArtifactError(f"{path} came back from the Hub with other bytes, or not at all")


def _again(asked: Asked) -> Remote:
    there = remote(asked)
    if there is None:
        raise HubError(f"{asked.name} was made, but cannot be read; push again")
    return there


def _gather(manifest: BankManifest, repo_id: str, *, public: bool) -> str:
    parts = [Listed(part.repo_id, "model") for part in manifest.objectives]
    names = ", ".join(part.name for part in manifest.objectives)
    return gather(
        f"MORLAIF bank: {repo_id.rpartition('/')[2].removeprefix('morlaif-bank-')}",
        [Listed(repo_id, "model"), *parts],
        namespace=repo_id.partition("/")[0],
        private=not public,
        description=f"Preference models of {names}, and the bank that combines them.",
    )


@contextmanager
def _proved(release: Release, missing: str) -> Iterator[None]:
    """Say of an error in this context that all but one thing is done."""
    try:
        yield
    except MorlaifHubError as error:
        raise HubError(
            f"{release.repo_id} is published and proved, but {missing}: {error}; push again to "
            "complete it"
        ) from error


def _title(manifest: Manifest) -> str:
    """Return the commit's title."""
    about = "" if isinstance(manifest, BaseManifest) else f": {subject(manifest)}"
    return f"Publish a {manifest.kind}{about}"


def _address(asked: Asked) -> str:
    folder = "datasets/" if asked.repo_type == "dataset" else ""
    return f"{endpoint()}/{folder}{asked.repo_id}"
