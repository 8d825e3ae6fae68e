"""How numbers and lists are written in sentences, tables and pages."""

from collections.abc import Sequence


def number(value: float, digits: int = 2, *, sign: bool = False) -> str:
    """Return a number of so many digits after the point; zero has no sign.

    Example:
        >>> number(-0.001, sign=True), number(0.5, 1, sign=True)
        ('0.00', '+0.5')
    """
    rounded = round(float(value), digits) + 0.0  # adding zero takes the minus off a negative one
    return f"{rounded:{'+' if sign and rounded else ''}.{digits}f}"


def bounds(interval: Sequence[float], digits: int = 2, *, sign: bool = False) -> str:
    """Return the ends of an interval.

    Example:
        >>> bounds((0.25, 1), sign=True)
        '+0.25 to +1.00'
    """
    low, high = interval
    return f"{number(low, digits, sign=sign)} to {number(high, digits, sign=sign)}"


def percent(share: float) -> str:
    """Return a share as a percentage.

    Example:
        >>> percent(0.985)
        '98 %'
    """
    return f"{100 * share:.0f} %"


def duration(seconds: float) -> str:
    """Return a time in seconds, minutes and seconds, or hours and minutes.

    Example:
        >>> duration(7.26), duration(91.2), duration(7325)
        ('7.3 s', '1 min 31 s', '2 h 2 min')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left} min" if hours else f"{minutes} min {rest} s"


def listed(items: Sequence[str]) -> str:
    """Return a list in words.

    Example:
        >>> listed(["a", "b", "c"])
        'a, b and c'
    """
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} and {items[-1]}"
