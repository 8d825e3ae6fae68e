"""The processes that share one run, as `accelerate launch` or torchrun start them."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env

from morlaif_hub.errors import MorlaifHubError, OptionError

LONGEST_WAIT = timedelta(days=7)
"""For the others. They need not be as fast, and whoever launched them ends them all if one dies."""

T = TypeVar("T")


class Processes:
    """This process and the others of the same run; alone, where nothing was launched.

    Attributes:
        index: This process's number, from 0.
        count: How many there are.
        main: Whether this is the one that reports.
        device: Where it computes: its own GPU if there is one, else the CPU.

    Raises:
        OptionError: If several were launched, and accelerate was told before that there is one.
    """

    def __init__(self) -> None:
        # Not told that it is for the CPU, accelerate takes each of several processes for the only
        # one. A Mac's GPU is left alone: no scores were compared on one.
        cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available()
        self._state = PartialState(cpu=cpu, timeout=LONGEST_WAIT)
        self.index: int = self._state.process_index
        self.count: int = self._state.num_processes
        self.main: bool = self._state.is_main_process
        self.device: str = str(self._state.device)
        launched = int(os.environ.get("WORLD_SIZE", "1"))
        if self.count == 1 < launched:
            raise OptionError(
                f"{launched} processes were launched, but accelerate's state here is that of one; "
                "on CPUs make it with PartialState(cpu=True)"
            )

    def together(self, work: Callable[[], T]) -> list[T]:
        """Do work in every process, and return what came of it, in order, when all have done it.

        Args:
            work: Each process's own. What it returns has to be small.

        Raises:
            MorlaifHubError: In every process the same, if the work of one of them raised it.
        """
        outcome: T | MorlaifHubError
        try:
            outcome = work()
        except MorlaifHubError as error:
            if self.count == 1:
                raise
            outcome = error
        outcomes: list[T | MorlaifHubError] = gather_object([outcome])
        for found in outcomes:
            if isinstance(found, MorlaifHubError):
                raise found
        return [found for found in outcomes if not isinstance(found, MorlaifHubError)]

    def close(self) -> None:
        """Take leave of the others; nothing can be done together any more."""
        self._state.destroy_process_group()
