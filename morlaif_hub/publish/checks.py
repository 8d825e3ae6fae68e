"""Claims beside what was measured, and when the one is the other."""

from typing import Literal, NamedTuple

Verdict = Literal["holds", "fails", "not checked"]


class Check(NamedTuple):
    """One claim: what was said, what was measured, and whether the one is the other."""

    claim: str
    stated: str
    measured: str
    verdict: Verdict


def same_weights(stated: str, measured: str, claim: str = "weights") -> Check:
    """Return whether two hashes of weights are the same."""
    verdict: Verdict = "holds" if stated == measured else "fails"
    return Check(claim, f"SHA-256 {stated[:12]}", f"SHA-256 {measured[:12]}", verdict)


def within(claim: str, tolerance: float, worst: float) -> Check:
    """Return whether what is off at most is off by no more than a claimed tolerance."""
    verdict: Verdict = "holds" if worst <= tolerance else "fails"
    return Check(claim, f"off by at most {tolerance:.2g}", f"off by {worst:.2g}", verdict)


def near(claim: str, stated: float, measured: float, tolerance: float) -> Check:
    """Return whether two numbers are the same up to a tolerance."""
    verdict: Verdict = "holds" if abs(stated - measured) <= tolerance else "fails"
    return Check(claim, f"{stated:+.3f}", f"{measured:+.3f}", verdict)
