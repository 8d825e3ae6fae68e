"""Our metrics as folders that `evaluate.load` loads; `morlaif_hub.statistics` has the functions.

`evaluate` copies a metric's script into its cache and runs it from there. Such a script imports
this package, so both give the same numbers.
"""

from pathlib import Path

from morlaif_hub.errors import OptionError

METRICS = ("calibration_error", "pairwise_accuracy", "position_bias")


def metric_folder(name: str) -> str:
    """Return the folder of a metric, for `evaluate.load`.

    Args:
        name: One of `METRICS`.

    Raises:
        OptionError: If there is no metric of that name.

    Example:
        >>> metric_folder("position_bias").endswith("morlaif_hub/metrics/position_bias")
        True
    """
    if name not in METRICS:
        raise OptionError(f"unknown metric {name!r}; known: {', '.join(METRICS)}")
    return str(Path(__file__).parent / name)
