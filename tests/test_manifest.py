"""Manifests: plain fields that come back as they were, and name the key when they are wrong."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from morlaif_hub.errors import ManifestError
from morlaif_hub.hub.manifest import (
    MANIFESTS,
    BankManifest,
    BaseManifest,
    FileEntry,
    Manifest,
    PolicyManifest,
    PreferenceModelManifest,
    dump_manifest,
    manifest_kind,
    parse_manifest,
    read_manifest,
)
from tests.manifests import (
    bank_manifest,
    base_manifest,
    every_kind,
    policy_manifest,
    preference_model_manifest,
    sha256,
)

Keys = tuple[str | int, ...]

FILES = (FileEntry(path="figures/a b.png", size=3, sha256=sha256("9")),)

EVERY_KIND = pytest.mark.parametrize("manifest", every_kind(), ids=lambda manifest: manifest.kind)


def plain(manifest: Manifest) -> dict[str, Any]:
    """Return a manifest with a file, as JSON would be read."""
    fields: dict[str, Any] = json.loads(dump_manifest(manifest))
    fields["files"] = [{"path": "figures/a b.png", "size": 3, "sha256": sha256("9")}]
    return fields


def walk(value: Any, path: Keys = ()) -> Iterator[Keys]:
    """Yield the path of everything below a plain value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        yield (*path, key)
        if isinstance(item, dict | list):
            yield from walk(item, (*path, key))


def is_free(path: Keys) -> bool:
    """Whether the last key of a path is the writer's own, and not one that the format names."""
    parents = [key for key in path[:-1] if isinstance(key, str)]
    return parents in (["versions"], ["settings"], ["curve", "objectives"])


def fields_of(manifest: Manifest) -> list[Keys]:
    """Return the paths of all fields that the format names, at any depth."""
    return [p for p in walk(plain(manifest)) if isinstance(p[-1], str) and not is_free(p)]


def at(fields: Any, path: Keys) -> Any:
    for key in path:
        fields = fields[key]
    return fields


def changed(manifest: Manifest, path: Keys, value: object) -> str:
    fields = plain(manifest)
    at(fields, path[:-1])[path[-1]] = value
    return json.dumps(fields)


def parse(text: str, manifest: Manifest) -> Manifest:
    return parse_manifest(text, type(manifest), "here")


CASES = [
    pytest.param(manifest, path, id=f"{manifest.kind}-{'.'.join(map(str, path))}")
    for manifest in every_kind()
    for path in fields_of(manifest)
]


def test_the_examples_have_every_kind() -> None:
    assert {manifest.kind for manifest in every_kind()} == set(MANIFESTS)


@EVERY_KIND
def test_a_manifest_comes_back_as_it_was(manifest: Manifest, tmp_path: Path) -> None:
    text = json.dumps(plain(manifest))
    parsed = parse(text, manifest)
    assert parsed.files == FILES
    (tmp_path / "morlaif.json").write_text(dump_manifest(parsed))
    assert read_manifest(tmp_path, type(manifest)) == parsed
    assert manifest_kind(tmp_path) == manifest.kind


@EVERY_KIND
def test_a_manifest_that_names_no_repository_is_not_published(manifest: Manifest) -> None:
    fields = plain(manifest)
    del fields["repo_id"]
    assert parse(json.dumps(fields), manifest).repo_id is None


LATER = {
    # What the format has gained since artifacts were published: those of before lack it.
    *("sft", "watched", "distinct", "judged", "unanswered", "choices", "consistency"),
    "judge_tokens",
    *("bias.first_share", "tie_interval", "entropy_interval"),
}


def came_later(path: Keys) -> bool:
    return f".{'.'.join(map(str, path))}".endswith(tuple(f".{name}" for name in LATER))


@pytest.mark.parametrize(
    ("manifest", "path"), [case for case in CASES if came_later(case.values[1])]
)
def test_what_came_later_may_be_missing(manifest: Manifest, path: Keys) -> None:
    fields = plain(manifest)
    del at(fields, path[:-1])[path[-1]]
    found = json.loads(dump_manifest(parse(json.dumps(fields), manifest)))
    assert at(found, path) in (None, [])


@pytest.mark.parametrize(
    ("manifest", "path"),
    [case for case in CASES if case.values[1] != ("repo_id",) and not came_later(case.values[1])],
)
def test_each_missing_field_is_named(manifest: Manifest, path: Keys) -> None:
    fields = plain(manifest)
    del at(fields, path[:-1])[path[-1]]
    with pytest.raises(ManifestError) as caught:
        parse(json.dumps(fields), manifest)
    assert str(caught.value).startswith("here: ")
    assert ".".join(map(str, path)) in str(caught.value)


@pytest.mark.parametrize(("manifest", "path"), CASES)
def test_each_field_refuses_another_type(manifest: Manifest, path: Keys) -> None:
    """Neither an object nor what other readers would take for the right thing will do."""
    value = at(plain(manifest), path)
    lookalikes: list[object] = [{"an": ["object"]}]
    if isinstance(value, bool):
        lookalikes += [int(value), str(value)]
    elif isinstance(value, int | float):
        lookalikes += [str(value)]
        if path[-1] != "orders":  # one of two numbers, of which `true` is read as the 1
            lookalikes += [True]
    elif isinstance(value, str):
        lookalikes += [1, [value]]
    for lookalike in lookalikes:
        with pytest.raises(ManifestError) as caught:
            parse(changed(manifest, path, lookalike), manifest)
        assert ".".join(map(str, path)) in str(caught.value)


@EVERY_KIND
def test_an_unknown_key_is_named_at_any_depth(manifest: Manifest) -> None:
    fields = plain(manifest)
    objects = [p for p in walk(fields) if isinstance(at(fields, p), dict)]
    for parent in [(), *(p for p in objects if not is_free((*p, "surprise")))]:
        with pytest.raises(ManifestError, match=r"surprise"):
            parse(changed(manifest, (*parent, "surprise"), 1), manifest)


@pytest.mark.parametrize(
    "character", ["\x00", "\x1b", "\r", "\u202e", "\u200b", "\ufeff", "\u007f"]
)
@EVERY_KIND
def test_control_characters_are_refused_in_every_text(manifest: Manifest, character: str) -> None:
    texts = [p for p in fields_of(manifest) if isinstance(at(plain(manifest), p), str)]
    assert texts
    for path in texts:
        if path[-1] in ("kind", "schema_version"):
            continue
        with pytest.raises(ManifestError, match=r"control character") as caught:
            parse(changed(manifest, path, f"a{character}b"), manifest)
        assert str(path[-1]) in str(caught.value)


def test_control_characters_are_refused_in_keys() -> None:
    with pytest.raises(ManifestError, match=r"versions.*control character"):
        parse(changed(base_manifest(), ("versions", "a\x1b"), "1"), base_manifest())


def test_line_breaks_and_the_joiners_of_scripts_are_text() -> None:
    manifest = base_manifest(
        made_from="two\nlines\tand a tab, \u0645\u06cc\u200c\u0634\u0648\u062f"
    )
    assert parse(dump_manifest(manifest), manifest) == manifest


@pytest.mark.parametrize(
    "path",
    ["../x", "a/../../x", "..", ".", "./x", "a/./b", "/etc/x", "", "a\\..\\x", "a/..", "/"],
)
def test_a_file_name_must_stay_inside_the_artifact(path: str) -> None:
    manifest = base_manifest()
    with pytest.raises(ManifestError, match=r"files\.0\.path: .*must stay inside"):
        parse(changed(manifest, ("files", 0, "path"), path), manifest)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("files", 0, "sha256"), "9" * 63),
        (("files", 0, "sha256"), "G" * 64),
        (("files", 0, "size"), -1),
        (("base", "source"), "http://elsewhere"),
        (("license",), ""),
    ],
)
def test_a_value_outside_its_range_is_named(path: Keys, value: object) -> None:
    with pytest.raises(ManifestError) as caught:
        parse(changed(base_manifest(), path, value), base_manifest())
    assert ".".join(map(str, path)) in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("calibration", "std"), 0.0),
        (("calibration", "temperature"), -1.0),
        (("golden", "tolerance"), 0.0),
        (("training", "start_accuracy"), 1.01),
        (("input_format", "max_length"), 0),
        (("principle", "name"), "Not A Name"),
        (("form",), "pickle"),
        (("validation", "verdict"), "fine"),
        (("evaluations", 0, "interval"), [0.1, 0.2, 0.3]),
    ],
)
def test_a_preference_model_field_outside_its_range_is_named(path: Keys, value: object) -> None:
    manifest = preference_model_manifest()
    with pytest.raises(ManifestError) as caught:
        parse(changed(manifest, path, value), manifest)
    assert ".".join(map(str, path)) in str(caught.value)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_not_finite_are_refused(number: str) -> None:
    manifest = policy_manifest()
    text = json.dumps(plain(manifest)).replace('"kl": 0.11', f'"kl": {number}')
    assert number in text
    with pytest.raises(ManifestError, match=r"not JSON|kl: .*finite"):
        parse(text, manifest)


@pytest.mark.parametrize("version", [0, 2, True, 1.0, "1", None])
def test_another_schema_version_is_named(version: object) -> None:
    with pytest.raises(ManifestError, match=r"schema_version .* is not known here"):
        parse(changed(base_manifest(), ("schema_version",), version), base_manifest())


@pytest.mark.parametrize("kind", ["base", "", None, 3, ["bank"]])
def test_another_kind_is_named(kind: object) -> None:
    with pytest.raises(ManifestError, match=r"kind is .*, but a bank is wanted"):
        parse(changed(bank_manifest(), ("kind",), kind), bank_manifest())


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", '"x"', "\ufeff{}", "[" * 100_000, '{"a":NaN}']
)
def test_what_is_not_a_json_object_is_said_to_be_so(text: str) -> None:
    with pytest.raises(ManifestError, match=r"^here: (not JSON|must be a JSON object)"):
        parse_manifest(text, BankManifest, "here")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(value=json_values, position=st.integers(min_value=0))
def test_whatever_stands_in_a_field_it_is_read_or_refused(value: Any, position: int) -> None:
    manifest = preference_model_manifest()
    paths = fields_of(manifest)
    text = changed(manifest, paths[position % len(paths)], value)
    try:
        parsed = parse(text, manifest)
    except ManifestError:
        return
    assert parse(dump_manifest(parsed), manifest) == parsed


@given(text=st.text())
def test_text_that_is_no_manifest_is_refused(text: str) -> None:
    with pytest.raises(ManifestError):
        parse_manifest(text, PreferenceModelManifest, "here")


@pytest.mark.parametrize("content", [b"\xff\xfe", b""])
def test_a_file_that_cannot_be_read_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "morlaif.json").write_bytes(content)
    with pytest.raises(ManifestError, match=rf"{tmp_path}"):
        read_manifest(tmp_path, BaseManifest)
    assert manifest_kind(tmp_path) is None
    with pytest.raises(ManifestError, match=r"nowhere: no readable morlaif\.json"):
        read_manifest(tmp_path / "nowhere", BaseManifest)
    assert manifest_kind(tmp_path / "nowhere") is None


def test_manifests_cannot_be_changed_in_place() -> None:
    manifest = policy_manifest()
    with pytest.raises(AttributeError):
        manifest.kl = 0.0  # type: ignore[misc]
    assert copy.deepcopy(manifest) == manifest
    assert isinstance(manifest, PolicyManifest)
