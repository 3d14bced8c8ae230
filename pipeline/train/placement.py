"""Runs -> stacks of about equal cost, so that all devices are done at about the same time.

A stack is trained by one process as one program. The more stacks, the evener their shares, but
every stack has steps of its own to begin.
"""

import heapq
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby

from pipeline.config import Run, stack_key

Cost = Callable[[Sequence[Run]], float]  # of runs with equal shapes as one stack, in seconds

FINEST = 8  # parts of a device's share below which no stack is cut
NEAR = 1.05  # times the shortest time that was found: as good, if it takes fewer stacks
ROUNDING = 1e-9  # of a number of parts


def stacks_of(
    runs: Sequence[Run], size_max: int, at_once: int, cost: Cost
) -> list[tuple[Run, ...]]:
    """Group runs that can train as one program, at most ``size_max`` in a stack.

    Of several cuts, ever finer ones, the first by which ``at_once`` processes would be done about
    as early as by any.
    """
    groups = programs(runs)
    seconds = list(map(cost, groups))
    share = (sum(seconds) or 1) / at_once
    limits = [math.inf, *(share / parts for parts in range(1, FINEST + 1))]
    cuts = [_cut_all(groups, seconds, limit, size_max) for limit in limits]
    ends = [makespan(map(cost, stacks), at_once) for stacks in cuts]
    return next(stacks for stacks, end in zip(cuts, ends, strict=True) if end <= NEAR * min(ends))


def _cut_all(
    groups: Sequence[Sequence[Run]], seconds: Sequence[float], limit: float, size_max: int
) -> list[tuple[Run, ...]]:
    """The groups, cut into equal parts that take about ``limit`` or less."""
    stacks = []
    for group, spent in zip(groups, seconds, strict=True):
        parts = max(1, math.ceil(spent / limit - ROUNDING))
        stacks += cut(group, min(size_max, math.ceil(len(group) / parts)))
    return stacks


def programs(runs: Iterable[Run]) -> list[tuple[Run, ...]]:
    """All those that can train as one program, together."""
    alike: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        alike[stack_key(run.method)].append(run)
    return [tuple(alike[key]) for key in sorted(alike)]


def cut(runs: Sequence[Run], size: int) -> list[tuple[Run, ...]]:
    """Consecutive parts of ``size`` runs; the last may be smaller."""
    return [tuple(runs[start : start + size]) for start in range(0, len(runs), size)]


def what_is_left(
    stacks: Iterable[Sequence[Run]], epochs_done: Mapping[Run, int], cost: Cost
) -> list[tuple[Run, ...]]:
    """Those runs of the stacks that are in ``epochs_done``, the costliest first.

    The runs of a stack that have different numbers of epochs done become several.
    """

    def seconds(stack: Sequence[Run]) -> float:
        return cost(stack) * (1 - epochs_done[stack[0]] / stack[0].method.optimiser.epochs)

    left = []
    for stack in stacks:
        own = sorted((run for run in stack if run in epochs_done), key=epochs_done.__getitem__)
        left += [tuple(same) for _, same in groupby(own, key=epochs_done.__getitem__)]
    return sorted(left, key=seconds, reverse=True)


def makespan(seconds: Iterable[float], at_once: int) -> float:
    """When the last of so many processes is done, if each next takes the longest that is left."""
    ends = [0.0] * at_once
    for spent in sorted(seconds, reverse=True):
        heapq.heapreplace(ends, ends[0] + spent)
    return max(ends)
