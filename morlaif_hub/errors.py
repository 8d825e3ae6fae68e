"""Every exception that this package raises on purpose.

Each class also inherits the standard error that it refines, so `except ValueError` keeps working.
A message says what is wrong, the value, what is accepted and what to do next. The command line
prints it as one line and exits with 1; any other exception is a bug and keeps its traceback.

    MorlaifHubError
    ├── UnknownNameError (LookupError)           no principle, scalarizer, judge ... of that name
    ├── PluginError (ImportError)                a third party's plugin cannot be loaded
    ├── OptionError (ValueError)                 an argument outside what is accepted
    │   └── ObjectiveMismatchError               weights and bank name different objectives
    ├── DataError (ValueError)                   rows that cannot be read: file, line, reason
    │   └── MissingColumnError                   a column that has to be there is not
    ├── ManifestError (ValueError)               a manifest with a missing, unknown or wrong field
    ├── ArtifactError (ValueError)               files that are not what their manifest says
    │   ├── HeadError                            a preference model without exactly one score head
    │   └── BaseMismatchError                    an adapter put on a base that it was not made for
    ├── ScoreError (ArithmeticError)             a score that is NaN or infinite
    ├── JudgeError (RuntimeError)                a judge that gave no usable verdict
    ├── WrongWayError (ValueError)               a judge or PM that prefers the worse side of probes
    ├── TrainingError (RuntimeError)             training that cannot start or went wrong
    ├── ModelNotFoundError (FileNotFoundError)   no model to be had under that name
    ├── HubError (RuntimeError)                  the Hub refused, or could not be reached
    └── WorkspaceError (OSError)                 a workspace that cannot be read or written
"""

from collections.abc import Iterable
from difflib import get_close_matches


class MorlaifHubError(Exception):
    """Base of every error that this package raises on purpose.

    Its text is one line of printable characters, whatever it quotes from a stranger's file.
    """

    def __str__(self) -> str:
        text = " ".join(super().__str__().split())
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class UnknownNameError(MorlaifHubError, LookupError):
    """No principle, scalarizer, judge or other named thing of that name."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, sorted(known)
        nearest = get_close_matches(name, self.known, n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        listed = ", ".join(self.known) or "none"
        super().__init__(f"unknown {kind} {name!r}; known: {listed}.{hint}")

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.kind, self.name, self.known)


class PluginError(MorlaifHubError, ImportError):
    """A third party's plugin cannot be loaded; the message names its package."""


class OptionError(MorlaifHubError, ValueError):
    """An argument is outside what is accepted."""


class ObjectiveMismatchError(OptionError):
    """The weights and the bank name different objectives."""

    def __init__(self, given: Iterable[str], objectives: Iterable[str]) -> None:
        self.given, self.objectives = tuple(given), tuple(objectives)
        missing = ", ".join(sorted(set(self.objectives) - set(self.given))) or "none"
        extra = ", ".join(sorted(set(self.given) - set(self.objectives))) or "none"
        super().__init__(
            "weights must name exactly the bank's objectives "
            f"({', '.join(self.objectives)}); missing: {missing}; extra: {extra}."
        )

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.given, self.objectives)


class DataError(MorlaifHubError, ValueError):
    """Rows cannot be read as what they should be; the message names file, line and reason."""


class MissingColumnError(DataError):
    """A column that has to be there is not."""


class ManifestError(MorlaifHubError, ValueError):
    """A manifest has a missing, unknown or wrong field; the message names the key."""


class ArtifactError(MorlaifHubError, ValueError):
    """An artifact's files are not what its manifest says, or are not safe to load."""


class HeadError(ArtifactError):
    """A preference model does not hold exactly one score head with one output."""


class BaseMismatchError(ArtifactError):
    """An adapter is put on a base model that it was not made for."""


class ScoreError(MorlaifHubError, ArithmeticError):
    """A score is NaN or infinite."""


class JudgeError(MorlaifHubError, RuntimeError):
    """A judge gave no usable verdict."""


class WrongWayError(MorlaifHubError, ValueError):
    """A judge or preference model prefers the worse side of its principle's probes."""


class TrainingError(MorlaifHubError, RuntimeError):
    """Training cannot start, or went wrong."""


class ModelNotFoundError(MorlaifHubError, FileNotFoundError):
    """No model is to be had under that name."""


class HubError(MorlaifHubError, RuntimeError):
    """The Hub refused a request, or could not be reached."""


class WorkspaceError(MorlaifHubError, OSError):
    """A workspace cannot be read or written."""
