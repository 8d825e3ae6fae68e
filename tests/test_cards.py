"""Cards: complete, honest about what is not known, and safe to show whatever a manifest says."""

import ast
import copy
import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import is_dataclass, replace
from typing import Any, get_args, get_type_hints

import pytest
import yaml
from huggingface_hub import DatasetCard, ModelCard
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import UndefinedError
from pydantic import TypeAdapter

from morlaif_hub.hub.cards import card_context, escape_markdown, render_card, render_context
from morlaif_hub.hub.front_matter import front_matter
from morlaif_hub.hub.manifest import (
    MANIFESTS,
    BankManifest,
    BaseIdentity,
    ChoiceRecord,
    DatasetReference,
    FeedbackManifest,
    FileEntry,
    HeldOutRecord,
    InputFormat,
    Manifest,
    PolicyManifest,
    PreferenceModelManifest,
    ProbeRecord,
    SourceRecord,
    UnansweredRecord,
    to_plain,
)
from tests.manifests import (
    COMMIT,
    bank_manifest,
    base_identity,
    base_manifest,
    every_kind,
    feedback_manifest,
    judge_record,
    objective_records,
    policy_manifest,
    preference_model_manifest,
    principle_record,
    probe_manifest,
    sha256,
    validation_record,
    weight_records,
    weights_fit_record,
)

Keys = tuple[str | int, ...]

FIGURES = ["scores.png", "calibration.png", "length_by_step.svg"]
CLOSED = InputFormat(kind="chat", append_eos=True, max_length=16)
OPEN = replace(CLOSED, append_eos=False)
LOCAL = {"repo_id": None, "revision": None}
UNPROVEN = validation_record(verdict="unproven", accuracy=0.583, interval=(0.388, 0.755))
AGAINST = ChoiceRecord(verdict="wrong way", accuracy=0.25, interval=(0.16, 0.37), n=64)
UNMEASURED = {
    "first_share": None,
    "consistency": None,
    "tie_interval": None,
    "entropy_interval": None,
}
WRONG_WAY = validation_record(verdict="wrong way", accuracy=0.25, interval=(0.12, 0.449))

EVERY_KIND = pytest.mark.parametrize("manifest", every_kind(), ids=lambda manifest: manifest.kind)


def variants() -> list[Manifest]:
    """Return manifests that take every branch of the templates between them."""
    local = base_identity(**LOCAL, source="local")
    unknown_judge = judge_record(base=local, validation=None, validated=False)
    doubtful = tuple(
        replace(record, verdict=verdict, revision=None, repo_id="../pms/x")
        for record, verdict in zip(objective_records(), (None, "unproven"), strict=True)
    )
    return [
        *every_kind(),
        probe_manifest(
            repo_id=None,
            base=local,
            dataset=DatasetReference(**LOCAL, sha256=sha256("f")),
            judge=unknown_judge,
            validation=None,
            evaluations=(),
            length_correlation=None,
        ),
        probe_manifest(probe=ProbeRecord(layer=30, pooling="mean")),
        preference_model_manifest(
            form="full",
            base=base_identity(source="hub", revision=None),
            judge=None,
            validation=UNPROVEN,
            principle=principle_record(length="none"),
        ),
        preference_model_manifest(base=local, judge=None, validation=WRONG_WAY),
        preference_model_manifest(repo_id=None, input_format=OPEN),
        preference_model_manifest(input_format=replace(OPEN, kind="text")),
        preference_model_manifest(input_format=replace(CLOSED, kind="text")),
        feedback_manifest(
            orders=1,
            repo_id=None,
            judge=unknown_judge,
            source=SourceRecord(name="pairs.jsonl", revision=None, sha256=sha256("1")),
            bias=replace(feedback_manifest().bias, human_agreement=None, **UNMEASURED),
        ),
        feedback_manifest(judge=judge_record(base=None, validation=WRONG_WAY, choices=AGAINST)),
        bank_manifest(
            repo_id=None, objectives=doubtful, golden=(), correlations=(), weights_fit=None
        ),
        bank_manifest(
            weights_fit=replace(
                weights_fit_record(),
                labels="feedback",
                sources=(SourceRecord(name="pairs.jsonl", revision=None, sha256=sha256("1")),) * 2,
            )
        ),
        policy_manifest(
            form="full",
            repo_id=None,
            base=local,
            max_kl=None,
            curve=(),
            stopped_by="max_steps",
            kl=0.0,
        ),
        policy_manifest(base=local, objectives=doubtful, delta_interval=(-0.1, 0.2)),
        base_manifest(repo_id=None, base=local),
    ]


EVERY_VARIANT = pytest.mark.parametrize("manifest", variants(), ids=lambda manifest: manifest.kind)


def render(manifest: Manifest) -> str:
    return render_card(manifest, figures=FIGURES)


def parsed(manifest: Manifest) -> ModelCard | DatasetCard:
    """Return the card as the Hub's client reads it."""
    kind = DatasetCard if manifest.kind == "feedback-dataset" else ModelCard
    return kind(render(manifest))


def body(manifest: Manifest) -> str:
    return str(parsed(manifest).text)


def flat(text: str) -> str:
    """Return a text without line breaks and quote marks, to look for sentences in it."""
    return " ".join(text.replace("\n> ", "\n").split())


@EVERY_VARIANT
def test_the_front_matter_comes_back_through_the_hub_client(manifest: Manifest) -> None:
    card = parsed(manifest)
    assert card.data.to_dict() == front_matter(manifest)
    assert yaml.safe_load(card.data.to_yaml()) == front_matter(manifest)


@EVERY_VARIANT
def test_a_card_is_whole(manifest: Manifest) -> None:
    text = render(manifest)
    assert text.startswith("---\n")
    assert text.endswith("\n")
    assert "\n\n\n" not in text
    assert text.count("```") % 2 == 0
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    assert not re.search(r"\bNone\b|\bTrue\b|\bFalse\b|\{\{|\}\}|\{%|Undefined", prose)
    assert body(manifest).lstrip().startswith("# ")


@EVERY_VARIANT
def test_every_row_of_a_table_has_as_many_cells_as_its_head(manifest: Manifest) -> None:
    for table in tables(body(manifest)):
        assert len(table) > 2, table
        assert set(table[1]) <= set("|- ")
        assert len({cells(row) for row in table}) == 1, table


def tables(text: str) -> Iterator[list[str]]:
    for block in text.split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        if rows:
            yield rows


def cells(row: str) -> int:
    return len(re.findall(r"(?<!\\)\|", row))


@EVERY_VARIANT
def test_the_code_of_a_card_is_python(manifest: Manifest) -> None:
    blocks = code_blocks(render(manifest))
    assert blocks
    for block in blocks:
        ast.parse(block)


def code_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def leaves(value: Any, path: Keys = ()) -> Iterator[Keys]:
    if isinstance(value, dict | list) and path:
        yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from leaves(item, (*path, i))
    elif path:
        yield path


def field_names(kind: Any, path: Keys = ()) -> Iterator[Keys]:
    """Yield the path of every field that a manifest's class declares, at any depth."""
    if is_dataclass(kind):
        for name, inner in get_type_hints(kind).items():
            if path or name not in ("files", "kind", "schema_version"):
                yield (*path, name)
                yield from field_names(inner, (*path, name))
    else:
        for inner in get_args(kind):
            yield from field_names(inner, path)


@pytest.mark.parametrize("kind", MANIFESTS)
def test_the_examples_leave_no_field_out(kind: str) -> None:
    """So that the next test is about every field, new ones included."""
    declared = set(field_names(MANIFESTS[kind]))
    named = {
        tuple(key for key in path if isinstance(key, str))
        for manifest in every_kind()
        if manifest.kind == kind
        for path in leaves(card_context(manifest, figures=FIGURES))
    }
    assert declared <= named
    assert ("repo_id",) in declared


@pytest.mark.parametrize(
    "manifest",
    [*every_kind(), *(replace(m, repo_id=None) for m in every_kind())],
    ids=lambda manifest: f"{manifest.kind}-{manifest.repo_id}",
)
def test_a_field_that_is_missing_is_an_error_and_not_a_gap(manifest: Manifest) -> None:
    """Each field is printed or decides what is; without it, no card is rendered."""
    context = card_context(manifest, figures=FIGURES)
    silent = []
    for path in leaves(context):
        if not isinstance(path[-1], str) or path[0] in ("versions", "settings"):
            continue
        less = copy.deepcopy(context)
        parent = less
        for key in path[:-1]:
            parent = parent[key]
        del parent[path[-1]]
        try:
            render_context(manifest.kind, less)
        except UndefinedError:
            continue
        silent.append(path)
    assert silent == []


@EVERY_KIND
def test_a_null_where_a_value_is_printed_is_an_error(manifest: Manifest) -> None:
    context = card_context(manifest, figures=FIGURES)
    with pytest.raises(TypeError, match=r"a card cannot print None"):
        render_context(manifest.kind, {**context, "license": None})


YAML_TRICKS = (
    "!!python/object/apply:os.system ['x'] *alias &anchor {a: b} ... %TAG\n--- yes: no # \t'\""
)
TERMINAL = (
    "\x1b[2J\x1b]0;owned\x07 \x9b31m \x7f \u202egnp.exe \u2066 \ufeff \U000e0041 \u2028--- \r# x"
)
HOSTILE = (
    "<script>alert(1)</script> <img src=x onerror=alert(1)> </code> &lt; **bold** _it_ `code` ``` "
    "[a](http://evil) | cell | ~~no~~ $$x$$ \\ {{ 7 * 7 }} {% raw %}\n---\n# title\n- item\n```"
)


def hostile(manifest: Manifest) -> Manifest:
    """Return the manifest with the hostile text in every field that takes any text."""
    manifest = replace(manifest, repo_id=HOSTILE)
    match manifest:
        case PreferenceModelManifest():
            return replace(
                manifest,
                license=HOSTILE,
                principle=hostile_principle(),
                base=hostile_base(),
                dataset=DatasetReference(repo_id=HOSTILE, revision=HOSTILE, sha256=sha256("f")),
                judge=judge_record(spec=HOSTILE, base=hostile_base()),
                evaluations=tuple(replace(e, metric=HOSTILE) for e in manifest.evaluations),
                versions={HOSTILE: HOSTILE},
            )
        case FeedbackManifest():
            return replace(
                manifest,
                license=HOSTILE,
                principle=hostile_principle(),
                source=SourceRecord(name=HOSTILE, revision=HOSTILE, sha256=sha256("1")),
                judge=judge_record(spec=HOSTILE, base=hostile_base()),
                unanswered=(UnansweredRecord(reason=HOSTILE, n=1),),
                versions={HOSTILE: HOSTILE},
            )
        case BankManifest():
            source = SourceRecord(name=HOSTILE, revision=HOSTILE, sha256=sha256("1"))
            fit = replace(weights_fit_record(), sources=(source,))
            return replace(manifest, **hostile_reward(), weights_fit=fit)
        case PolicyManifest():
            objectives = {"conciseness": 0.0, HOSTILE: 1.0}
            return replace(
                manifest,
                **hostile_reward(),
                base=hostile_base(),
                algorithm=HOSTILE,
                settings={HOSTILE: HOSTILE},
                curve=tuple(replace(point, objectives=objectives) for point in manifest.curve),
                sft=manifest.sft and replace(manifest.sft, source=hostile_source()),
                watched=manifest.watched and hostile_watched(manifest.watched),
            )
    return replace(
        manifest,
        license=HOSTILE,
        base=hostile_base(),
        made_from=HOSTILE,
        versions={HOSTILE: HOSTILE},
    )


def hostile_watched(watched: HeldOutRecord) -> HeldOutRecord:
    changes = tuple(replace(change, objective=HOSTILE) for change in watched.changes)
    judge = watched.judge and replace(watched.judge, spec=HOSTILE, principle=HOSTILE)
    return replace(watched, changes=changes, judge=judge)


def hostile_principle() -> Any:
    return principle_record(criterion=HOSTILE, opposite=HOSTILE, high_score=HOSTILE)


def hostile_source() -> SourceRecord:
    return SourceRecord(name=HOSTILE, revision=HOSTILE, sha256=sha256("1"))


def hostile_base() -> BaseIdentity:
    return base_identity(repo_id=HOSTILE, revision=HOSTILE)


def hostile_reward() -> dict[str, Any]:
    first, second = objective_records()
    return {
        "license": HOSTILE,
        "name": HOSTILE,
        "objectives": (
            first,
            replace(
                second,
                name=HOSTILE,
                repo_id=HOSTILE,
                revision=HOSTILE,
                high_score=HOSTILE,
                verdict="unproven",
            ),
        ),
        "scalarizer": HOSTILE,
        "weights": tuple(replace(weight, objective=HOSTILE) for weight in weight_records()),
        "versions": {HOSTILE: HOSTILE},
    }


@EVERY_KIND
def test_every_text_of_a_manifest_is_made_hostile_by_the_test_below(manifest: Manifest) -> None:
    tame = {p: v for p, v in texts(to_plain(hostile(manifest))) if HOSTILE not in v}
    fixed = r"(^[0-9a-f]{64}$)|(^gguf:)"
    allowed = ("name", "kind", "form", "length", "verdict", "part", "split", "labels", "kept")
    allowed += ("trainer", "loss", "pooling", "template")
    left = {
        path: value
        for path, value in tame.items()
        if not re.search(fixed, value)
        and path[-1] not in (*allowed, "stopped_by")
        and path[:2] != ("objectives", 0)
    }
    assert left == {}


def texts(value: Any, path: Keys = ()) -> Iterator[tuple[Keys, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from texts(item, (*path, key))


@EVERY_KIND
def test_hostile_text_is_shown_and_never_obeyed(manifest: Manifest) -> None:
    bad = hostile(manifest)
    text = render_card(bad, figures=["a b](http://evil) <script>.png"])
    card = (DatasetCard if bad.kind == "feedback-dataset" else ModelCard)(text)
    assert card.data.to_dict() == front_matter(bad)
    prose = re.sub(r"^```python$.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    prose = prose.partition("\n---\n")[2]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in prose
    assert not re.search(r"<(?!/?code>)", prose)
    assert "](http://evil" not in prose.replace(r"\](http://evil", "")
    assert not re.search(r"(?<!\\)(\*\*bold|~~no|\$\$x)", prose)
    assert "7 * 7" in prose.replace("\\*", "*")
    assert not re.search(r"^(---|# title|- item|```)", prose, flags=re.MULTILINE)
    for table in tables(prose):
        assert len({cells(row) for row in table}) == 1, table
    for block in code_blocks(text):
        ast.parse(block)
    assert HOSTILE in strings(text)  # the repo id, as it is, in quotes


def strings(text: str) -> set[str]:
    """Return all text constants of a card's code."""
    trees = [ast.parse(block) for block in code_blocks(text)]
    constants = (n for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Constant))
    return {n.value for n in constants if isinstance(n.value, str)}


@EVERY_KIND
@pytest.mark.parametrize("trick", [YAML_TRICKS, TERMINAL], ids=["yaml", "terminal"])
def test_text_that_acts_elsewhere_is_neutral(manifest: Manifest, trick: str) -> None:
    """On a terminal, in YAML or in a page that turns with the direction of its text."""
    plain = to_plain(hostile(manifest))
    bad = TypeAdapter(type(manifest)).validate_json(json.dumps(swapped(plain, HOSTILE, trick)))
    text = render_card(bad, figures=FIGURES)
    assert all(c.isprintable() or c == "\n" for c in text)
    card = (DatasetCard if bad.kind == "feedback-dataset" else ModelCard)(text)
    assert card.data.to_dict() == front_matter(bad)
    assert trick in strings(text)
    assert not re.search(r"^(---|# x)", text.partition("\n---\n")[2], flags=re.MULTILINE)


def swapped(value: Any, old: str, new: str) -> Any:
    if isinstance(value, dict):
        return {swapped(k, old, new): swapped(v, old, new) for k, v in value.items()}
    if isinstance(value, list):
        return [swapped(item, old, new) for item in value]
    return new if value == old else value


@given(st.text())
def test_escaped_text_is_one_line_without_markup(text: str) -> None:
    escaped = str(escape_markdown(text))
    assert len(escaped.splitlines()) <= 1
    assert "<" not in escaped
    assert not re.search(r"(?<!\\)(?:\\\\)*[`*_\[\]|~$]", escaped)
    assert not re.match(r"[#+=>-]|\d+[.)](\s|$)", escaped)
    unescaped = re.sub(r"\\([\\`*_\[\]|~$#+=.)-])", r"\1", escaped)
    for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")):
        unescaped = unescaped.replace(entity, character)
    assert unescaped == "".join("\ufffd" if acts(c) else c for c in " ".join(text.split()))


def acts(character: str) -> bool:
    """Whether a character acts rather than shows; the joiners are part of how words are written."""
    return unicodedata.category(character) in ("Cc", "Cf", "Cs") and character not in "\u200c\u200d"


def test_numbers_and_versions_stay_readable() -> None:
    assert str(escape_markdown("0.1.0 on 3.11, x-y (a) v2.")) == "0.1.0 on 3.11, x-y (a) v2."


@pytest.mark.parametrize(
    ("validation", "first"),
    [
        (None, "> **Not validated.**"),
        (UNPROVEN, "> **Unproven.**"),
        (WRONG_WAY, "> **Wrong way.**"),
    ],
)
def test_what_is_not_fit_is_said_first(validation: Any, first: str) -> None:
    labelled = judge_record(validation=validation)
    for manifest in (
        preference_model_manifest(validation=validation),
        preference_model_manifest(judge=labelled),
        feedback_manifest(judge=labelled),
    ):
        assert body(manifest).lstrip().split("\n\n")[1].startswith(first)
    skipped = feedback_manifest(judge=judge_record(validated=False))
    assert "> **Not validated.** The judge" in body(skipped)


@pytest.mark.parametrize("manifest", [preference_model_manifest(), feedback_manifest()])
def test_what_is_fit_has_no_warning(manifest: Manifest) -> None:
    assert not re.search(r"Unproven|Not validated|Wrong way", body(manifest))


@pytest.mark.parametrize("make", [bank_manifest, policy_manifest])
def test_doubtful_objectives_are_said_first(make: Any) -> None:
    objectives = tuple(
        replace(record, verdict=verdict)
        for record, verdict in zip(objective_records(), ("wrong way", None), strict=True)
    )
    first = flat(body(make(objectives=objectives)).lstrip().split("\n\n")[1])
    assert "conciseness is wrong way, toxicity is not validated." in first
    assert "Not every objective" not in body(make())


def test_a_set_judged_in_one_order_says_so() -> None:
    assert "**Judged in one order only.**" in body(feedback_manifest(orders=1))
    assert "one order only" not in body(feedback_manifest())


def test_disagreement_with_people_is_said_first_and_explained() -> None:
    text = flat(body(feedback_manifest(judge=judge_record(choices=AGAINST))))
    assert "**Against people's choices.** Of 64 pairs" in text
    assert "0.250 only (95 % interval 0.160 to 0.370)" in text
    assert text.index("Against people") < text.index("What a label means")
    assert "Against people" not in body(feedback_manifest())
    assert "had chosen in 64 % of 64 pairs" in flat(body(feedback_manifest()))


def test_every_figure_of_the_bias_has_its_interval() -> None:
    text = body(feedback_manifest())
    for row in (
        "| answers that prefer the response shown first | 0.417 | 0.380 to 0.450 | 959 |",
        "| preferred response is the same in both orders | 0.810 | 0.780 to 0.840 | 959 |",
        "| ties, once both orders are taken together | 0.010 | 0.000 to 0.020 | 959 |",
        "| mean entropy of the probabilities, in bits | 0.720 | 0.700 to 0.740 | 959 |",
    ):
        assert row in text
    before = body(feedback_manifest(bias=replace(feedback_manifest().bias, **UNMEASURED)))
    assert "Ties: 1 % of pairs. Mean entropy of the probabilities: 0.720 bits" in flat(before)


def test_a_preference_model_says_what_a_high_score_means_and_its_results() -> None:
    text = body(preference_model_manifest())
    assert "A high score means a shorter answer with the same content." in text
    assert "| test | accuracy | 0.622 | 0.571 to 0.673 | 672 | 0.588 |" in text
    assert "| train | calibration error | 0.031 | 0.020 to 0.050 | 287 | none |" in text
    assert "the difference in score correlates -0.380 with the difference in words" in flat(text)
    assert "Length is part of this principle" in text
    assert "arXiv:2312.09244" in text
    assert "estimates the probability that the judge prefers `a`" in flat(text)


def test_a_figure_has_words_for_who_cannot_see_it() -> None:
    text = body(preference_model_manifest())
    assert "![histogram of raw scores](figures/scores.png)\n\nHow the raw scores" in text
    assert "![calibration curve](figures/calibration.png)\n\nHow likely the response" in text
    assert "![length by step](figures/length_by_step.svg)\n\n#" in text


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        ((0.6, 0.7), ""),
        ((0.55, 0.7), "**On the test split it is not shown to be better than length alone.**"),
        ((0.5, 0.7), "better than length alone, nor than chance, which is 0.5.**"),
    ],
)
def test_an_accuracy_that_length_could_reach_is_said(
    interval: tuple[float, float], said: str
) -> None:
    first, second = preference_model_manifest().evaluations
    evaluations = (replace(first, interval=interval, length_baseline=0.588), second)
    text = body(preference_model_manifest(evaluations=evaluations))
    assert said in text
    assert ("not shown to be better" in text) == bool(said)


def test_a_calibration_error_is_explained() -> None:
    first, second = preference_model_manifest().evaluations
    error = replace(second, split="test", metric="calibration_error")
    text = body(preference_model_manifest(evaluations=(first, error)))
    assert "| test | calibration error | 0.031 | 0.020 to 0.050 | 287 | none |" in text
    assert "No temperature was judged on a prompt that it was fitted on." in flat(text)
    assert "No temperature" not in body(preference_model_manifest())


def test_results_for_the_hub_are_those_of_held_out_pairs() -> None:
    card = ModelCard(render(preference_model_manifest()))
    (result,) = card.data.eval_results
    assert (result.dataset_split, result.metric_type, result.metric_value) == (
        "test",
        "accuracy",
        0.622,
    )
    assert result.metric_name == "accuracy (95 % interval 0.571 to 0.673, n = 672)"
    assert result.dataset_revision == COMMIT


def test_the_fields_that_the_hub_searches_by() -> None:
    fields = front_matter(preference_model_manifest())
    assert fields["license"] == "apache-2.0"
    assert fields["library_name"] == "peft"
    assert fields["pipeline_tag"] == "text-classification"
    assert fields["base_model"] == "ann/morlaif-base-smollm2"
    assert fields["base_model_relation"] == "adapter"
    assert fields["datasets"] == ["ann/morlaif-feedback-conciseness-everyday"]
    assert fields["tags"] == ["morlaif", "morlaif-pm", "principle:conciseness"]
    tags = {manifest.kind: front_matter(manifest)["tags"] for manifest in every_kind()}
    assert "morlaif-feedback" in tags["feedback-dataset"]
    assert "morlaif-bank" in tags["bank"]
    assert "morlaif-policy" in tags["policy"]
    assert "principle:toxicity" in tags["bank"]
    assert "morlaif-base" in tags["base"]


def test_the_fields_that_a_dataset_is_found_and_read_by() -> None:
    files = tuple(
        FileEntry(path=f"data/{split}.parquet", size=1, sha256=sha256("9"))
        for split in ("test", "train")
    )
    assert front_matter(feedback_manifest(files=files)) == {
        "license": "mit",
        "pretty_name": "Feedback on conciseness",
        "task_categories": ["text-classification"],
        "task_ids": ["text-scoring"],
        "annotations_creators": ["machine-generated"],
        "size_categories": ["n<1K"],
        "source_datasets": ["Anthropic/hh-rlhf"],
        "tags": ["morlaif", "morlaif-feedback", "principle:conciseness"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": "train", "path": ["data/train.parquet"]},
                    {"split": "test", "path": ["data/test.parquet"]},
                ],
            }
        ],
    }


@pytest.mark.parametrize(
    ("rows", "size"),
    [
        (0, "n<1K"),
        (999, "n<1K"),
        (1000, "1K<n<10K"),
        (123_456, "100K<n<1M"),
        (10**9 - 1, "100M<n<1B"),
        (10**9, "n>1B"),
    ],
)
def test_the_size_of_a_dataset_as_the_hub_names_it(rows: int, size: str) -> None:
    fields = front_matter(feedback_manifest(train_pairs=rows, test_pairs=0))
    assert fields["size_categories"] == [size]


@pytest.mark.parametrize("name", ["/home/ann/x", "a/b/c", "ann/x y", "-x", "", "https://evil/x"])
def test_what_is_no_repo_id_is_not_passed_to_the_hub_as_one(name: str) -> None:
    dataset = DatasetReference(repo_id=name, revision=COMMIT, sha256=sha256("f"))
    source = SourceRecord(name=name, revision=COMMIT, sha256=sha256("1"))
    fields = front_matter(
        preference_model_manifest(base=base_identity(repo_id=name), dataset=dataset)
    )
    assert not {"base_model", "base_model_relation", "datasets"} & set(fields)
    assert fields["model-index"][0]["results"][0]["dataset"]["type"] == "unknown"
    assert "source_datasets" not in front_matter(feedback_manifest(source=source))
    local = replace(source, name="pairs.jsonl", revision=None)
    assert "source_datasets" not in front_matter(feedback_manifest(source=local))


@EVERY_KIND
def test_the_code_names_the_repository_once_there_is_one(manifest: Manifest) -> None:
    assert f'repo = "{manifest.repo_id}"\n' in render(manifest)
    assert 'repo = "..."' not in render(manifest)
    unpublished = render(replace(manifest, repo_id=None))
    assert 'repo = "..."  # this repository\'s id, or the path of a local copy\n' in unpublished


def test_trl_alone_is_offered_only_where_it_gives_the_same_score() -> None:
    """TRL closes a turn as the chat template does, and adds nothing to plain text."""
    offer = "    reward_funcs=repo,\n"
    for kind, closed in (("chat", True), ("text", False)):
        same = InputFormat(kind=kind, append_eos=closed, max_length=16)
        differs = replace(same, append_eos=not closed)
        assert offer in body(preference_model_manifest(input_format=same))
        assert offer not in body(preference_model_manifest(input_format=differs))
    assert offer in body(preference_model_manifest(form="full", base=base_identity(**LOCAL)))
    assert offer not in body(preference_model_manifest(base=base_identity(**LOCAL)))
    assert offer not in body(probe_manifest())


def test_a_licence_that_the_hub_does_not_know_is_given_by_name() -> None:
    fields = front_matter(base_manifest(license="LicenseRef-My Own"))
    assert (fields["license"], fields["license_name"]) == ("other", "licenseref-my-own")
    assert "| licence | LicenseRef-My Own |" in body(base_manifest(license="LicenseRef-My Own"))


def test_what_is_not_on_the_hub_is_said_in_words() -> None:
    """A null repo id is never filled with a guess, and a local path is never shown."""
    local = base_identity(**LOCAL)
    manifest = preference_model_manifest(
        base=local,
        judge=judge_record(base=local),
        dataset=DatasetReference(**LOCAL, sha256=sha256("f")),
    )
    fields, text = front_matter(manifest), body(manifest)
    assert not {"base_model", "base_model_relation", "datasets"} & set(fields)
    assert fields["model-index"][0]["results"][0]["dataset"]["type"] == "unknown"
    assert "huggingface.co" not in text
    assert "| base | weights that are not on the Hub, weights `aaaaaaaaaaaa`" in text
    assert "| data | a set that is not on the Hub, SHA-256 `ffffffffffff` |" in text
    objectives = tuple(
        replace(o, repo_id="/home/ann/x", revision=None) for o in objective_records()
    )
    bank = body(bank_manifest(objectives=objectives))
    assert "a local folder, not on the Hub" in bank
    assert "/home/ann" not in bank


@pytest.mark.parametrize(
    "make", [preference_model_manifest, policy_manifest, base_manifest], ids=lambda m: m.__name__
)
def test_a_dequantised_base_is_not_passed_off_as_the_original(make: Any) -> None:
    note = "The base was dequantised from a GGUF file. Its weights are **not** those of the model"
    assert note in flat(body(make()))
    assert note not in flat(body(make(base=base_identity(source="hub"))))


def test_a_probe_says_that_transformers_cannot_load_it() -> None:
    manifest = probe_manifest()
    text = body(manifest)
    assert "`transformers` and PEFT alone cannot load that" in text
    assert "AutoModelForSequenceClassification" not in text
    assert "library_name" not in front_matter(manifest)


@pytest.mark.parametrize(("form", "loads"), [("lora", "PeftModel"), ("full", "repo, ")])
def test_a_preference_model_says_how_to_load_it_without_us(form: str, loads: str) -> None:
    text = body(preference_model_manifest(form=form))
    assert "AutoModelForSequenceClassification.from_pretrained(" in text
    assert loads in text
    assert ("PeftModel" in text) == (form == "lora")


@pytest.mark.parametrize(("interval", "shown"), [((0.1, 0.4), True), ((-0.1, 0.4), False)])
def test_a_policy_says_when_no_change_is_shown(interval: tuple[float, float], shown: bool) -> None:
    text = body(policy_manifest(delta_interval=interval))
    assert ("a change is not shown" not in text) == shown
