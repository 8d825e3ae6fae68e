"""The demo: what it draws, through its API in a process of its own, and in a real browser."""

import html
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from torch import Tensor

from morlaif_hub import PMBank, Steered, load_constitution
from morlaif_hub.bank.artifact import write_bank
from morlaif_hub.errors import OptionError
from morlaif_hub.models.language_model import model_folder
from morlaif_hub.preference_models.preferences import human_preferences
from morlaif_hub.preference_models.train import train_preference_models
from morlaif_hub.steering import Candidate
from tests.test_preference_models import DATASET, SETTINGS, marked_pairs
from tests.tiny import save_tiny

gradio = pytest.importorskip("gradio")

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "spaces/demo"
# Each preference model learns to like its own mark.
MARKS = {"toxicity": "!!", "empathy": "??"}
PROMPT, POLITE, WARM = "Say 5", "abcd efgh !!", "abcd efgh ??"
# The page has to stay on its machine without these, which the tests set.
OFFLINE = ("GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_OFFLINE")
HOSTILE = """<img src=x onerror="alert(1)"> '{{value}}' ${value} &amp;"""


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo_app", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


app: Any = _load(DEMO / "app.py")


class Text(HTMLParser):
    """The text of some HTML, with single spaces."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.feed(source)

    def handle_data(self, data: str) -> None:
        self.parts.append(data)

    def __str__(self) -> str:
        return " ".join(" ".join(self.parts).split())


class FixedBank:
    """Gives these scores, one row after another, whatever it is asked."""

    def __init__(
        self,
        rows: Sequence[Sequence[float]],
        *,
        verdicts: Sequence[str | None] = ("fit", "fit"),
        high_score: str = "A high score means less of it.",
    ) -> None:
        self.objectives = ("toxicity", "empathy")
        self.high_scores = dict.fromkeys(self.objectives, high_score)
        self.members = [
            SimpleNamespace(objective=name, source="./bank", manifest=_manifest(verdict))
            for name, verdict in zip(self.objectives, verdicts, strict=True)
        ]
        self.rows, self.asked = rows, list[tuple[list[str], list[str]]]()

    def score(self, prompts: list[str], responses: list[str]) -> Tensor:
        self.asked.append((prompts, responses))
        return torch.tensor(self.rows[: len(responses)])


def _manifest(verdict: str | None) -> Any:
    if verdict is None:
        return None
    record = SimpleNamespace(verdict=verdict, accuracy=0.625, n=24, interval=(0.43, 0.79))
    return SimpleNamespace(validation=record)


def drawn(bank: FixedBank, *asked: Any) -> str:
    """Return what the first tab shows for a prompt, responses, a scalarizer and weights."""
    _, shown = app.Demo(bank, None).score(*asked)
    return str(Text(shown))


# What is drawn


def test_the_winner_and_what_it_is_ahead_on() -> None:
    bank = FixedBank([[1.0, -0.5], [-1.0, 0.5]])
    text = drawn(bank, "Hi", " one ", "two", "linear", 2.0, 1.0)
    assert bank.asked == [(["Hi", "Hi"], ["one", "two"])]
    assert "Response A wins : reward +0.50 against \N{MINUS SIGN}0.50" in text  # 2/3 and 1/3
    assert "A is ahead on toxicity. B is ahead on empathy. Scalarizer: linear." in text
    assert text.count("A high score means less of it.") == 2
    text = drawn(bank, "Hi", "one", "two", "linear", 0.0, 1.0)
    assert "Response B wins : reward +0.50 against \N{MINUS SIGN}0.50" in text


def test_weights_sum_to_one_as_the_librarys_default_does() -> None:
    demo = app.Demo(FixedBank([[1.0, 2.0]]), None)
    scored, _ = demo.score("Hi", "one", "", "linear", 1.0, 1.0)
    combine = app.bind_scalarizer("linear", demo.bank.objectives)
    default = combine(scored.scores).item()
    assert f"{default:+.2f}" in demo.compare(scored, "linear", 0.3, 0.3)


def test_one_response_keeps_its_letter() -> None:
    text = drawn(FixedBank([[1.0, 0.0]]), "Hi", " ", "two", "linear", 1.0, 1.0)
    assert "Reward +0.50" in text
    assert "average better +2 B toxicity" in text
    assert "wins" not in text
    assert "ahead" not in text


def test_no_weight_at_all_is_a_draw() -> None:
    text = drawn(FixedBank([[1.0, 0.0], [3.0, 0.0]]), "Hi", "a", "b", "linear", 0.0, 0.0)
    assert "A draw : both rewards are +0.00" in text


def test_bars_reach_from_the_average_to_the_score() -> None:
    _, shown = app.Demo(FixedBank([[1.0, -2.5]]), None).score("Hi", "a", "", "linear", 1.0, 1.0)
    assert "\N{MINUS SIGN}3 worse" in html.unescape(shown)  # the axis is as long as it has to be
    places = re.findall(r"width: ([\d.]+)%; left: ([\d.]+)%", shown)
    assert [(float(w), float(left)) for w, left in places] == [(16.67, 50.0), (41.67, 8.33)]


def test_what_is_not_known_to_be_fit_says_so() -> None:
    scored = [[1.0, 0.0]]
    text = drawn(FixedBank(scored), "Hi", "one", "", "linear", 1.0, 1.0)
    assert not re.search("unproven|wrong way|not validated", text)
    bank = FixedBank(scored, verdicts=("unproven", None))
    text = drawn(bank, "Hi", "one", "", "linear", 1.0, 1.0)
    assert "toxicity unproven A high score" in text
    assert "empathy not validated A high score" in text
    bank = FixedBank(scored, verdicts=("fit", "wrong way"))
    _, shown = app.Demo(bank, None).score("Hi", "one", "", "linear", 1.0, 1.0)
    assert "Right on 62% of 24 probes (95 % interval 43% to 79%)." in shown
    assert "empathy wrong way A high score" in str(Text(shown))


def test_candidates_are_numbered_once_and_ordered_by_the_weights() -> None:
    candidates = (
        Candidate("first", True, {"toxicity": 2.0, "empathy": 0.0}, 1.0),
        Candidate("second", False, {"toxicity": 0.0, "empathy": 1.0}, 0.5),
    )
    steered = Steered(({"role": "user", "content": "Hi"},), candidates, "linear", {})
    demo = app.Demo(FixedBank([]), None)
    one = str(Text(demo.candidates(steered, "linear", 1.0, 0.0)))
    assert one.index("Best: candidate 1") < one.index("Candidate 2")
    other = str(Text(demo.candidates(steered, "max_min", 0.0, 0.0)))
    assert "Best: candidate 1" in other  # equal rewards keep their order
    two = str(Text(demo.candidates(steered, "linear", 0.0, 2.0)))
    assert two.index("Best: candidate 2 reward +1.00 second") < two.index("Candidate 1")
    assert "second (cut off at the length limit)" in two


def test_a_strangers_text_stays_text() -> None:
    bank = FixedBank([[1.0, 0.0]], high_score=HOSTILE, verdicts=("unproven", "fit"))
    demo = app.Demo(bank, None)
    candidate = Candidate(HOSTILE, True, {"toxicity": 1.0, "empathy": 0.0}, 0.5)
    steered = Steered(({"role": "user", "content": "Hi"},), (candidate,), "linear", {})
    objective = demo.objectives[0]
    for shown in (
        demo.score("Hi", "one", "", "linear", 1.0, 1.0)[1],
        demo.candidates(steered, "linear", 1.0, 1.0),
        app.DRAW.direction(objective=objective),
        app.DRAW.heading(bank=HOSTILE, size=2, policy=HOSTILE),
    ):
        assert "<img" not in shown
        assert html.escape(HOSTILE, quote=False).split()[1] in html.unescape(shown)


# What goes wrong


@pytest.mark.parametrize("written", [("", "a", "b"), ("  ", "a", ""), ("Hi", "", " \n")])
def test_nothing_to_score(written: tuple[str, str, str]) -> None:
    bank = FixedBank([[0.0, 0.0]])
    with pytest.raises(gradio.Error, match="Write a prompt and at least one response"):
        app.Demo(bank, None).score(*written, "linear", 1.0, 1.0)
    with pytest.raises(gradio.Error, match="Write a prompt"):
        app.Demo(bank, None).steer(" ", 2, 16, 0, "linear", 1.0, 1.0)
    assert bank.asked == []


def test_an_error_of_ours_is_one_line_and_a_bug_is_none() -> None:
    def refuse(_text: str) -> None:
        raise OptionError(HOSTILE)

    with pytest.raises(gradio.Error) as raised:
        app._shown(refuse)("Hi")
    assert raised.value.message == html.escape(HOSTILE)
    assert not raised.value.print_exception
    with pytest.raises(ZeroDivisionError):
        app._shown(lambda: 1 / 0)()


def test_where_bank_and_model_come_from(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def arguments(*given: str) -> tuple[list[str], str | None]:
        monkeypatch.setattr(sys, "argv", ["app.py", *given])
        found: tuple[list[str], str | None] = app._arguments()
        return found

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MORLAIF_BANK", raising=False)
    monkeypatch.delenv("MORLAIF_MODEL", raising=False)
    with pytest.raises(SystemExit, match="2"):
        arguments()
    assert "name a bank with --bank or MORLAIF_BANK" in capsys.readouterr().err
    (tmp_path / "morlaif/bank").mkdir(parents=True)
    assert arguments() == (["./morlaif/bank"], None)
    monkeypatch.setenv("MORLAIF_BANK", "ann/one, ./two,")
    monkeypatch.setenv("MORLAIF_MODEL", "ann/policy")
    assert arguments() == (["ann/one", "./two"], "ann/policy")
    assert arguments("--bank", "./a", "--bank", "./b", "--model", "./m") == (["./a", "./b"], "./m")


# What a Space needs


def test_requirements_are_the_packages_own_and_nothing_else() -> None:
    lines = (DEMO / "requirements.txt").read_text().splitlines()
    named = [line for line in lines if line and not line.startswith(("#", "--"))]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert named == project["dependencies"]


def test_the_header_names_what_is_tested() -> None:
    _, header, text = (DEMO / "README.md").read_text().split("---\n", 2)
    metadata = yaml.safe_load(header)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert metadata["sdk"] == "gradio"
    assert f"gradio=={metadata['sdk_version']}" in (ROOT / "constraints.txt").read_text()
    assert project["requires-python"] == f">={metadata['python_version']}"
    assert metadata["license"] == project["license"].lower()
    assert len(metadata["short_description"]) <= 60
    assert (DEMO / metadata["app_file"]).is_file()
    ours = {path.name for path in DEMO.iterdir() if path.is_file()}
    for name in ("MORLAIF_BANK", "MORLAIF_MODEL", *ours - {"README.md"}):
        assert f"`{name}`" in text


# With real, tiny preference models


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny base, two preference models trained on it, and their bank."""
    root = tmp_path_factory.mktemp("space")
    base = model_folder(save_tiny(root / "base"))
    principles = [load_constitution().get(name) for name in MARKS]
    train_preference_models(
        [
            human_preferences(p, marked_pairs(40, MARKS[p.name]), dataset=DATASET)
            for p in principles
        ],
        base=base,
        folders=[root / "pms" / p.name for p in principles],
        settings=SETTINGS,
    )
    bank = PMBank.from_pretrained([root / "pms" / name for name in MARKS])
    scores = bank.score([PROMPT] * 3, [POLITE, WARM, "abcd"])
    write_bank(bank, root / "bank", scores=scores.numpy(), weights=dict.fromkeys(MARKS, 0.5))
    return root


@pytest.fixture(scope="module")
def expected(folders: Path) -> list[list[float]]:
    """Return the scores of the two responses; the first wins on one principle, then the second."""
    scores = PMBank.from_pretrained(folders / "bank").score([PROMPT] * 2, [POLITE, WARM])
    rows: list[list[float]] = scores.tolist()
    assert rows[0][0] > rows[1][0]
    assert rows[0][1] < rows[1][1]
    return rows


def signed(score: float) -> str:
    return f"{score:+.2f}".replace("-", "\N{MINUS SIGN}")


class Served(NamedTuple):
    """A program that serves the page, and what it has logged."""

    address: str
    log: Path

    def work(self) -> Counter[str]:
        """Return how often the models did what since they were loaded."""
        lines = self.log.read_text().splitlines()
        since = lines[lines.index("ready") + 1 :]
        return Counter(line for line in since if not line.startswith("looked up "))

    def looked_up(self) -> set[str]:
        """Return the hosts that the program asked for."""
        lines = self.log.read_text().splitlines()
        return {line.removeprefix("looked up ") for line in lines if line.startswith("looked up ")}


@contextmanager
def serving(folder: Path, program: Sequence[str | Path], **variables: str) -> Iterator[str]:
    """Start a program that serves the page, in an empty folder, and give its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GRADIO_SERVER_PORT": str(port)}
    for name in (*OFFLINE, "MORLAIF_BANK", "MORLAIF_MODEL"):
        environment.pop(name, None)
    output = folder / "output.txt"
    with output.open("w") as file:
        started = subprocess.Popen(
            [sys.executable, *program],
            cwd=folder,
            env={**environment, **variables},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait_for(port, started, output)
            yield f"http://127.0.0.1:{port}"
        finally:
            started.terminate()
            started.wait(timeout=30)


def _wait_for(port: int, started: "subprocess.Popen[bytes]", output: Path) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        with socket.socket() as attempt:
            if attempt.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert started.poll() is None, output.read_text()
        time.sleep(0.2)
    raise AssertionError(f"no answer after two minutes:\n{output.read_text()}")


@pytest.fixture
def address(folders: Path, tmp_path: Path) -> Iterator[str]:
    """Start the program as a Space does, with variables alone."""
    banks = ",".join(str(folders / "pms" / name) for name in MARKS)
    variables = {"MORLAIF_BANK": banks, "MORLAIF_EMBEDDED_MODEL": str(folders / "base")}
    with serving(tmp_path, [DEMO / "app.py"], **variables) as address:
        yield address


@pytest.fixture
def served(folders: Path, tmp_path: Path) -> Iterator[Served]:
    """Start the page with a log of every call of its models."""
    log = tmp_path / "log.txt"
    program = [Path(__file__).parent / "watched_space.py", DEMO / "app.py"]
    with serving(tmp_path, [*program, folders / "bank", folders / "base", log]) as address:
        yield Served(address, log)


def test_the_program_answers_its_api(address: str, expected: list[list[float]]) -> None:
    from gradio_client import Client
    from gradio_client.exceptions import AppError

    client = Client(address, verbose=False)
    try:
        score = (PROMPT, POLITE, WARM, "linear")
        text = str(Text(client.predict(*score, 1.0, 0.0, api_name="/score")))
        for row in expected:
            assert all(signed(value) in text for value in row)
        assert "Response A wins" in text
        shown, _ = client.predict("linear", 0.0, 1.0, api_name="/rank")
        assert "Response B wins" in str(Text(shown))
        steer = ("Say 7", 3, 16, 0, "linear", 1.0, 1.0)
        assert "3 different responses" in str(Text(client.predict(*steer, api_name="/steer")))
        with pytest.raises(AppError, match="Write a prompt"):
            client.predict("", "a", "b", "linear", 1.0, 1.0, api_name="/score")
        with pytest.raises(AppError, match="one of them positive"):
            client.predict("bernoulli_nash", 0.0, 0.0, api_name="/rank")
    finally:
        client.close()


def test_a_bank_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, DEMO / "app.py", "--bank", "./nowhere"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == "Error: nowhere: no such file or folder\n"


# In a browser


@pytest.fixture
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        if "MORLAIF_REQUIRE_BROWSER" in os.environ:
            pytest.fail("no Chromium here, where .ci/run says that there has to be one")
        pytest.skip("no Chromium here; .ci/run installs Debian's where it may")
    sync_api = pytest.importorskip("playwright.sync_api")
    quiet = ("--disable-background-networking", "--disable-component-update", "--disable-sync")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", *quiet],
        )
        yield started
        started.close()


def _move(page: Any, label: str, value: float) -> None:
    slider = page.get_by_label(f"range slider for {label}")
    slider.evaluate(
        """(slider, value) => {
            slider.value = value;
            for (const kind of ["input", "change"])
                slider.dispatchEvent(new Event(kind, { bubbles: true }));
        }""",
        value,
    )


def _column(page: Any, name: str) -> list[float]:
    """Return the candidates' scores on one principle, in the order in which they are shown."""
    shown = page.locator("#candidates dl > div", has_text=name).locator(".number").all_inner_texts()
    return [float(text.replace("\N{MINUS SIGN}", "-")) for text in shown]


def test_in_a_browser(
    served: Served, browser: Any, expected: list[list[float]], tmp_path: Path
) -> None:
    from playwright.sync_api import expect

    page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.goto(served.address, wait_until="domcontentloaded")

    # An example fills the boxes.
    page.get_by_role("button", name="Score").wait_for()
    page.get_by_text("How do I boil an egg?").click()
    expect(page.get_by_role("textbox", name="Response B")).to_have_value(re.compile("^Eggs have"))

    # Score two responses: bars, numbers, directions and the winner.
    page.get_by_role("textbox", name="Prompt").fill(PROMPT)
    page.get_by_role("textbox", name="Response A").fill(POLITE)
    page.get_by_role("textbox", name="Response B").fill(WARM)
    _move(page, "empathy", 0)
    page.get_by_role("button", name="Score").click()
    verdict = page.locator("#comparison .verdict")
    expect(verdict).to_contain_text("Response A wins")
    table = page.get_by_role("table", name="Calibrated scores")
    for column, name in enumerate(MARKS):
        row = table.get_by_role("row", name=name)
        expect(row).to_contain_text(load_constitution().get(name).record().high_score)
        for cell, scores in zip(row.get_by_role("cell").all()[1:], expected, strict=True):
            expect(cell).to_have_text(signed(scores[column]))
    assert page.locator("#comparison .bar").count() == 4
    page.screenshot(path=tmp_path / "scores.png", full_page=True)

    # Move the weights: another winner, and no model runs.
    assert served.work() == {"scored 2": 1}
    _move(page, "empathy", 2)
    _move(page, "toxicity", 0)
    expect(verdict).to_contain_text("Response B wins")
    page.get_by_label("Scalarizer").click()
    page.get_by_role("option", name="max_min", exact=True).click()
    expect(page.locator("#comparison")).to_contain_text("Scalarizer: max_min")
    assert served.work() == {"scored 2": 1}

    # Steer: every candidate, the best first; its order follows the weights.
    page.get_by_role("tab", name="Steered generation").click()
    page.get_by_role("textbox", name="Prompt").fill("Say 7")
    _move(page, "Candidates", 4)
    page.get_by_label("Token limit").fill("16")
    page.get_by_label("Scalarizer").click()
    page.get_by_role("option", name="linear", exact=True).click()
    page.get_by_role("button", name="Generate").click()
    cards = page.locator("#candidates li")
    expect(cards).to_have_count(4, timeout=60_000)
    expect(cards.first).to_contain_text("Best")
    work = served.work()
    assert work["scored 4"] == 1
    assert work["passed"] > 0
    by_empathy = _column(page, "empathy")
    assert by_empathy == sorted(by_empathy, reverse=True)
    by_toxicity = _column(page, "toxicity")
    order = sorted(range(1, 5), key=lambda number: -by_toxicity[number - 1])
    assert order != [1, 2, 3, 4]
    _move(page, "toxicity", 2)
    _move(page, "empathy", 0)
    expect(page.locator("#candidates .candidate-name")).to_have_text(
        [f"Best: candidate {order[0]}", *(f"Candidate {number}" for number in order[1:])]
    )
    assert _column(page, "toxicity") == sorted(by_toxicity, reverse=True)
    assert served.work() == work
    page.screenshot(path=tmp_path / "steering.png", full_page=True)

    # An error is one line; narrow windows need no scrolling to the side; nothing left the machine.
    page.get_by_role("textbox", name="Prompt").fill("")
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_text("Write a prompt.")).to_be_visible()
    for width in (800, 400):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert {url.split("://")[1].split(":")[0] for url in requested} == {"127.0.0.1"}
    assert served.looked_up() <= {"127.0.0.1", "localhost"}
