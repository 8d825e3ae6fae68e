"""Principles and the sets that hold them: plain text, never code.

A principle's name is its topic; its criterion always states the good direction, so a high
`toxicity` score means *less* toxic. Surfaces that show a score print `high_score`, since names
mislead.

Source:
    arXiv:2406.07295 (MORLAIF), where one preference model stands for one principle.
"""

import hashlib
import json
import re
import tomllib
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from morlaif_hub.errors import DataError, UnknownNameError
from morlaif_hub.hub.manifest import PrincipleRecord
from morlaif_hub.plugins import Registry

NAME = re.compile(r"[a-z][a-z0-9_-]{0,39}")
DEFAULT_CONSTITUTION = "morlaif-12"

Part = Literal["longer", "shorter", "equal"]
LengthSubject = Literal["none", "shorter", "longer"]


@dataclass(frozen=True)
class Probe:
    """A prompt with two responses of which one is clearly better on a principle.

    A principle's probes are the unit tests of its judges and preference models.
    """

    prompt: str
    better: str
    worse: str

    @property
    def part(self) -> Part:
        """Whether the better response is the longer, the shorter or equally long, in words."""
        better, worse = len(self.better.split()), len(self.worse.split())
        if better == worse:
            return "equal"
        return "longer" if better > worse else "shorter"


@dataclass(frozen=True)
class Principle:
    """One direction along which responses are judged.

    Attributes:
        name: Its topic: a lower-case letter, then letters, digits, `_` or `-`; at most 40.
        criterion: A sentence that states the good direction.
        opposite: A sentence that states the bad one.
        high_score: What a high score means, in words.
        length: Whether length is the subject itself: `shorter` is better, `longer` is better, or
            `none` when length should not matter.
        probes: Pairs with a known better side; may be empty in a user's own set.
    """

    name: str
    criterion: str
    opposite: str
    high_score: str
    length: LengthSubject = "none"
    probes: tuple[Probe, ...] = ()

    def sha256(self) -> str:
        """Return the hash of what defines the principle: name, criterion and opposite."""
        return _sha256([self.name, self.criterion, self.opposite])

    def probes_sha256(self) -> str:
        """Return the hash of the probes, in their order."""
        return _sha256([asdict(probe) for probe in self.probes])

    def record(self) -> PrincipleRecord:
        """Return what a manifest keeps of the principle."""
        return PrincipleRecord(
            name=self.name,
            criterion=self.criterion,
            opposite=self.opposite,
            high_score=self.high_score,
            length=self.length,
            sha256=self.sha256(),
            probes=len(self.probes),
            probes_sha256=self.probes_sha256(),
        )


@dataclass(frozen=True)
class Constitution:
    """A named set of principles with different names."""

    name: str
    principles: tuple[Principle, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The principles' names, in order."""
        return tuple(principle.name for principle in self.principles)

    def get(self, name: str) -> Principle:
        """Return the principle of that name.

        Raises:
            UnknownNameError: If the set has none; the message has the nearest name.
        """
        for principle in self.principles:
            if principle.name == name:
                return principle
        raise UnknownNameError("principle", name, self.names)


CONSTITUTIONS: Registry[Path] = Registry("principle")
"""Paths of constitution files. A plugin's entry point in `morlaif_hub.principles` is a path too."""

for _name in ("morlaif-12", "morlaif-5", "single-objective", "constitutional"):
    CONSTITUTIONS.register(_name)(Path(str(files("morlaif_hub") / f"constitutions/{_name}.toml")))


def load_constitution(source: str | Path = DEFAULT_CONSTITUTION) -> Constitution:
    """Return a set of principles: a built-in name, a plugin's `package/name`, or a TOML file.

    Raises:
        UnknownNameError: If no set has that name and no such file exists.
        DataError: If the file is not a valid set; the message names file and key.

    Example:
        >>> load_constitution("morlaif-5").names
        ('ethicality', 'factuality', 'helpfulness', 'sycophancy', 'toxicity')
    """
    path = Path(source)
    if path.suffix != ".toml":
        path = Path(CONSTITUTIONS.get(str(source)))
    return read_constitution(path)


def read_constitution(path: Path) -> Constitution:
    """Read a set of principles from a TOML file.

    The file has a `name` and a list of `[[principles]]`, each with `name`, `criterion`,
    `opposite`, `high_score` and, optionally, `length` and `[[principles.probes]]` of `prompt`,
    `better` and `worse`. `include` takes principles from a built-in set by name.

    Raises:
        DataError: If the file cannot be read or a key is missing, unknown or of the wrong type.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"{path}: not a readable TOML file: {error}") from error
    _check_keys(table, str(path), required={"name": str}, optional=_SET_KEYS)
    principles = [_included(table["include"], str(path))] if "include" in table else []
    own = [_principle(row, f"{path}: principles[{i}]") for i, row in enumerate(_rows(table, path))]
    together = tuple(p for group in [*principles, own] for p in group)
    if not together:
        raise DataError(f"{path}: the set has no principles; add at least one [[principles]]")
    twice = {p.name for p in together if [q.name for q in together].count(p.name) > 1}
    if twice:
        raise DataError(f"{path}: principle named twice: {', '.join(sorted(twice))}")
    return Constitution(name=table["name"], principles=together)


_TYPE_NAMES: dict[type, str] = {str: "a string", list: "a list", dict: "a table"}
_SET_KEYS: dict[str, type] = {"principles": list, "include": dict}
_PRINCIPLE_KEYS: dict[str, type] = {
    "name": str,
    "criterion": str,
    "opposite": str,
    "high_score": str,
}


def _rows(table: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    rows = table.get("principles", [])
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f"{path}: principles[{i}] must be a table, got {row!r}")
    return list(rows)


def _included(include: dict[str, Any], where: str) -> list[Principle]:
    _check_keys(include, f"{where}: include", required={"from": str, "principles": list})
    try:  # a name only, never a file: a set cannot include itself
        source = read_constitution(Path(CONSTITUTIONS.get(include["from"])))
        return [source.get(str(name)) for name in include["principles"]]
    except UnknownNameError as error:
        raise DataError(f"{where}: include: {error}") from error


def _principle(row: dict[str, Any], where: str) -> Principle:
    _check_keys(row, where, required=_PRINCIPLE_KEYS, optional={"length": str, "probes": list})
    if not NAME.fullmatch(row["name"]):
        raise DataError(
            f"{where}: name {row['name']!r} must match {NAME.pattern} (it becomes a repo name)"
        )
    length = row.get("length", "none")
    if length not in ("none", "shorter", "longer"):
        raise DataError(f"{where}: length {length!r} must be 'none', 'shorter' or 'longer'")
    probes = []
    for i, probe in enumerate(row.get("probes", [])):
        at = f"{where}: probes[{i}]"
        if not isinstance(probe, dict):
            raise DataError(f"{at} must be a table, got {probe!r}")
        _check_keys(probe, at, required={"prompt": str, "better": str, "worse": str})
        if probe["better"] == probe["worse"]:
            raise DataError(f"{at}: better and worse are the same text")
        probes.append(Probe(**probe))
    return Principle(
        **{key: row[key] for key in _PRINCIPLE_KEYS}, length=length, probes=tuple(probes)
    )


def _check_keys(
    table: dict[str, Any],
    where: str,
    *,
    required: dict[str, type],
    optional: dict[str, type] | None = None,
) -> None:
    known = {**required, **(optional or {})}
    for key in required:
        if key not in table:
            raise DataError(f"{where}: key {key!r} is missing; needed: {', '.join(required)}")
    for key, value in table.items():
        if key not in known:
            raise DataError(f"{where}: unknown key {key!r}; known: {', '.join(known)}")
        if not isinstance(value, known[key]):
            raise DataError(f"{where}: {key} must be {_TYPE_NAMES[known[key]]}, got {value!r}")
        if isinstance(value, str) and not value.strip():
            raise DataError(f"{where}: {key} must not be empty")


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest()
