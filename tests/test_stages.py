"""Stages: done once, done again when what they depend on changed."""

import json
from pathlib import Path

import pytest

from morlaif_hub.errors import WorkspaceError
from morlaif_hub.stages import Stages
from morlaif_hub.workspace import Workspace, write_text


class Run:
    """Two stages that count how often they are worked on; the second depends on the first."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.worked = folder, []

    def __call__(self, *, start: object = 0, first: object = 0, second: object = 0) -> dict:
        stages = Stages(self.folder / "stages.json", start)
        stages.run("first", first, [self.folder / "out.txt"], self.work)
        result = stages.run("second", second, [], lambda: self.worked.append("second") or {"n": 2})
        assert set(stages.seconds) == {"first", "second"}
        return result

    def work(self) -> dict:
        self.worked.append("first")
        write_text(self.folder / "out.txt", "done")
        return {"n": 1}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path)
    assert run() == {"n": 2}
    assert run.worked == ["first", "second"]
    run.worked.clear()
    return run


def test_finished_stages_are_reused(run: Run) -> None:
    assert run() == {"n": 2}
    assert run.worked == []


@pytest.mark.parametrize("change", [{"start": 1}, {"first": [1]}])
def test_what_depends_on_a_change_is_done_again(run: Run, change: dict) -> None:
    run(**change)
    assert run.worked == ["first", "second"]


def test_a_later_change_leaves_earlier_stages(run: Run) -> None:
    run(second="other")
    assert run.worked == ["second"]


def test_an_output_that_was_changed_is_made_again(run: Run) -> None:
    (run.folder / "out.txt").write_text("touched")
    run()
    assert run.worked == ["first"]
    (run.folder / "out.txt").unlink()
    run()
    assert run.worked == ["first", "first"]


def test_a_stage_that_failed_is_not_kept(run: Run) -> None:
    def fail() -> dict:
        raise RuntimeError("stopped")

    stages = Stages(run.folder / "stages.json", 0)
    stages.run("first", 0, [run.folder / "out.txt"], run.work)
    with pytest.raises(RuntimeError, match="stopped"):
        stages.run("second", "new", [], fail)
    assert json.loads((run.folder / "stages.json").read_text()).keys() == {"first", "second"}
    run(second="new")
    assert run.worked == ["second"]


@pytest.mark.parametrize("content", ["", "[]", "{broken"])
def test_an_unreadable_record_means_that_nothing_is_done(run: Run, content: str) -> None:
    (run.folder / "stages.json").write_text(content)
    run()
    assert run.worked == ["first", "second"]


def test_a_workspace_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceError, match="--workspace or MORLAIF_WORKSPACE"):
        Workspace.at(tmp_path / "file/inside").check_writable()
    with pytest.raises(WorkspaceError, match="cannot be written"):
        write_text(tmp_path / "file/inside.txt", "")


def test_the_workspace_is_chosen_by_argument_then_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Workspace.at().root == Path("morlaif")
    monkeypatch.setenv("MORLAIF_WORKSPACE", str(tmp_path / "env"))
    assert Workspace.at().root == tmp_path / "env"
    assert Workspace.at(tmp_path / "own").root == tmp_path / "own"
