"""Plugins: a real package that pip installed, and broken ones made of the same files."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from plugin_site import DISTRIBUTION, PACKAGE, install_example_plugin, use_example_plugin

from morlaif_hub.comparisons import Comparison
from morlaif_hub.errors import MorlaifHubError, OptionError, PluginError, UnknownNameError
from morlaif_hub.judges.base import JUDGES, Question, load_judge
from morlaif_hub.plugins import Registry
from morlaif_hub.principles import CONSTITUTIONS, load_constitution
from morlaif_hub.scalarizers import SCALARIZERS

SCALARIZER = f"{DISTRIBUTION}/certainty_equivalent"
JUDGE = f"{DISTRIBUTION}/short_words"
PRINCIPLES = f"{DISTRIBUTION}/plain_speaking"


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install_example_plugin(tmp_path_factory)


@pytest.fixture
def example_plugin(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    use_example_plugin(site, monkeypatch)
    yield site
    for name in imported():
        del sys.modules[name]


def imported() -> list[str]:
    """Modules of the plugin that have been imported."""
    return [name for name in sys.modules if name.split(".")[0] == PACKAGE]


def install_broken(site: Path, monkeypatch: pytest.MonkeyPatch, *, name: str, source: str) -> None:
    """Install a package `name` 2.1 with one scalarizer, `worst`, in a module of this source."""
    (site / f"{name}.py").write_text(source)
    information = site / f"{name}-2.1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.1\n")
    (information / "entry_points.txt").write_text(
        f"[morlaif_hub.scalarizers]\nworst = {name}:worst\n"
    )
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delenv("MORLAIF_HUB_PLUGINS", raising=False)


# Listing


@pytest.mark.usefixtures("example_plugin")
def test_listing_imports_nothing_of_a_plugin() -> None:
    assert SCALARIZER in SCALARIZERS.names()
    assert JUDGE in JUDGES.names()
    assert PRINCIPLES in CONSTITUTIONS.names()
    assert SCALARIZERS.package(SCALARIZER) == f"{DISTRIBUTION} 1.0.0"
    assert imported() == []
    SCALARIZERS.get(SCALARIZER)
    assert PACKAGE in imported()


@pytest.mark.usefixtures("example_plugin")
def test_ours_come_first_and_belong_to_us() -> None:
    names = SCALARIZERS.names()
    assert names[0] == "linear"
    assert names.index(SCALARIZER) >= len([name for name in names if "/" not in name])
    assert SCALARIZERS.package("linear") == SCALARIZERS.package("minimax") == "morlaif-hub"


def test_listing_in_a_fresh_interpreter_imports_no_plugin(site: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from morlaif_hub.principles import CONSTITUTIONS\n"
        "assert sys.argv[2] in CONSTITUTIONS.names()\n"
        "assert not [n for n in sys.modules if n.startswith('morlaif_example')]\n"
        "assert 'torch' not in sys.modules\n"
        "print(CONSTITUTIONS.get(sys.argv[2]).name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(site), PRINCIPLES],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    assert (done.returncode, done.stdout) == (0, "plain_speaking.toml\n"), done.stderr


# Using


@pytest.mark.usefixtures("example_plugin")
def test_a_plugins_scalarizer_works() -> None:
    rewards = SCALARIZERS.get(SCALARIZER)(torch.tensor([[2.0, 2.0]]), torch.ones(2))
    torch.testing.assert_close(rewards, torch.tensor([2.0]))


def test_a_plugins_principles_are_read_from_its_package(example_plugin: Path) -> None:
    path = CONSTITUTIONS.get(PRINCIPLES)
    assert Path(path).parent == example_plugin / PACKAGE
    principles = load_constitution(PRINCIPLES)
    assert (principles.name, principles.names) == ("plain-speaking", ("plain_words", "directness"))
    assert all(len(principle.probes) >= 3 for principle in principles.principles)


@pytest.mark.usefixtures("example_plugin")
def test_a_plugins_judge_is_loaded_by_its_spec() -> None:
    principle = load_constitution(PRINCIPLES).get("plain_words")
    judge = load_judge(f"{JUDGE}:?scale=0.5")
    assert load_judge(judge.spec) == judge
    questions = [
        Question(Comparison(({"role": "user", "content": p.prompt},), p.better, p.worse), principle)
        for p in principle.probes
    ]
    told: list[int] = []
    verdicts = judge.verdicts(questions, progress=told.append)
    assert all(verdict.probability_a > 0.9 for verdict in verdicts)
    assert sum(told) == len(verdicts) == len(questions)
    with pytest.raises(OptionError, match=r"takes no option 'size'; it takes: scale"):
        load_judge(f"{JUDGE}:?size=2")


# Turned off


@pytest.mark.usefixtures("example_plugin")
@pytest.mark.parametrize("value", ["off", "OFF"])
def test_off_hides_plugins_and_keeps_ours(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MORLAIF_HUB_PLUGINS", value)
    for registry in (SCALARIZERS, JUDGES, CONSTITUTIONS):
        assert registry.names()
        assert not [name for name in registry.names() if "/" in name]
    assert SCALARIZERS.get("linear") is not None
    with pytest.raises(UnknownNameError, match="unknown scalarizer"):
        SCALARIZERS.get(SCALARIZER)
    assert imported() == []


@pytest.mark.usefixtures("example_plugin")
def test_any_other_value_leaves_plugins_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MORLAIF_HUB_PLUGINS", "on")
    assert SCALARIZER in SCALARIZERS.names()


# Broken


@pytest.mark.parametrize(
    ("name", "source", "reason"),
    [
        ("acme_raises", "raise RuntimeError('no licence')", "RuntimeError: no licence"),
        ("acme_imports", "import acme_is_missing", "ModuleNotFoundError: .*acme_is_missing"),
        ("acme_syntax", "def worst(:", "SyntaxError"),
        ("acme_empty", "", "AttributeError: .*worst"),
    ],
)
def test_a_broken_plugin_fails_only_when_asked_for(
    name: str, source: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_broken(tmp_path, monkeypatch, name=name, source=source)
    assert f"{name}/worst" in SCALARIZERS.names()
    assert SCALARIZERS.get("linear") is not None
    with pytest.raises(PluginError, match=rf"'{name}/worst' of {name} 2\.1 .*{reason}") as caught:
        SCALARIZERS.get(f"{name}/worst")
    assert "MORLAIF_HUB_PLUGINS=off" in str(caught.value)
    assert isinstance(caught.value, MorlaifHubError)
    assert caught.value.__cause__ is not None


@pytest.mark.usefixtures("example_plugin")
def test_a_broken_plugin_does_not_hinder_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_broken(tmp_path, monkeypatch, name="acme_hinders", source="raise SystemError")
    assert callable(SCALARIZERS.get(SCALARIZER))


# Unknown names


@pytest.mark.usefixtures("example_plugin")
@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("linaer", "linear"),
        ("worst_cas", "worst_case"),
        (f"{DISTRIBUTION}/certainty", SCALARIZER),
    ],
)
def test_an_unknown_name_suggests_the_nearest(wrong: str, nearest: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        SCALARIZERS.get(wrong)
    assert str(caught.value).endswith(f"Did you mean {nearest!r}?")
    assert f"unknown scalarizer {wrong!r}; known: " in str(caught.value)
    assert imported() == []


def test_a_name_like_no_other_gets_no_suggestion() -> None:
    with pytest.raises(UnknownNameError) as caught:
        SCALARIZERS.get("zzzzzz")
    assert "Did you mean" not in str(caught.value)


# The decorator


def test_a_name_is_taken_once() -> None:
    registry: Registry[object] = Registry("scalarizer")
    registry.register("first", "other")(object())
    for taken in ("first", "other"):
        with pytest.raises(ValueError, match=f"two scalarizers are named '{taken}'"):
            registry.register(taken)(object())
        with pytest.raises(ValueError, match=f"two scalarizers are named '{taken}'"):
            registry.register("second", taken)(object())


def test_register_returns_what_it_was_given() -> None:
    registry: Registry[object] = Registry("scalarizer")
    thing = object()
    assert registry.register("thing", "same")(thing) is thing
    assert registry.get("thing") is registry.get("same") is thing
