"""Time alternatives in turns, so that all of them see the same machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping


def seconds(run: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    """Seconds of one call; by default the processor time of this process."""
    began = clock()
    run()
    return clock() - began


def interleaved(
    runs: Mapping[str, Callable[[], object]],
    turns: int,
    *,
    warm_up: int = 1,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, list[float]]:
    """Seconds of each of `runs`, called one after the other in every turn; `warm_up` turns before that do not count."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(-warm_up, turns):
        for name, run in runs.items():
            spent = seconds(run, clock)
            if turn >= 0:
                times[name].append(spent)
    return times
