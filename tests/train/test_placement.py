"""How a grid is cut into stacks."""

from collections.abc import Sequence
from itertools import chain

import pytest

from benchmarks.placement import KINDS, simulate
from pipeline.config import Run, load_method, runs_of
from pipeline.report.tables import TABLE3
from pipeline.train.cost import Rates, read_rates
from pipeline.train.placement import makespan, stacks_of, what_is_left


def cost(stack: Sequence[Run]) -> float:
    method = stack[0].method
    return len(stack) * method.temporal.tokens(len(method.input.chosen(16))) + 1


def runs(*settings: str, folds: str = "12") -> list[Run]:
    return runs_of(load_method("paper", ["optimiser.epochs=2", *settings]), folds, [0])


def sizes(stacks: Sequence[Sequence[Run]]) -> list[int]:
    return sorted(map(len, stacks))


def test_runs_of_a_stack_have_equal_shapes() -> None:
    wanted = runs(folds="123") + runs("temporal.coarse_depth=7", folds="12")
    stacks = stacks_of(wanted, 2, 1, cost)
    assert sizes(stacks) == [1, 2, 2]
    assert all(len({run.method for run in stack}) == 1 for stack in stacks)
    same = runs("optimiser.lr=0.1") + runs("label.scope=shared") + runs("optimiser.views=2")
    assert sizes(stacks_of(same, 10, 1, cost)) == [2, 4]


def test_one_process_trains_the_fewest_stacks_and_several_share_evenly() -> None:
    wanted = runs_of(load_method(), "12345", range(3))
    for at_once, expected in ((1, [15]), (2, [7, 8]), (8, [1, *[2] * 7]), (20, [1] * 15)):
        assert sizes(stacks_of(wanted, 99, at_once, cost)) == expected
    assert sizes(stacks_of(wanted, 5, 1, cost)) == [5, 5, 5]
    assert sizes(stacks_of(wanted, 5, 2, cost)) == [3, 4, 4, 4]


def test_table_3_on_eight_devices_becomes_stacks_of_near_equal_cost() -> None:
    base = load_method()
    wanted = [run for row in TABLE3.rows for run in runs_of(row.method(base), "12345", [0])]
    stacks = stacks_of(wanted, 60, 8, cost)
    assert len(stacks) >= 8
    assert sorted(map(str, chain(*stacks))) == sorted(map(str, wanted))
    # The longest run alone takes more than an eighth of all.
    longest = max(cost([run]) for run in wanted)
    assert makespan(map(cost, stacks), 8) <= 1.15 * max(longest, sum(map(cost, stacks)) / 8)


def test_what_is_left_of_stacks_begins_with_the_costliest_and_nothing_is_joined() -> None:
    few, many = (runs(f"input.frames={frames}", folds="1234") for frames in (8, 16))
    stacks = stacks_of(few + many, 4, 1, cost)
    assert what_is_left(stacks, dict.fromkeys(few + many, 0), cost) == [tuple(many), tuple(few)]
    done = {few[0]: 0, few[3]: 0, many[0]: 1, many[1]: 0, many[2]: 1}
    left = [(many[1],), (many[0], many[2]), (few[0], few[3])]
    assert what_is_left(stacks, done, cost) == left


RATES = {kind: (kind, read_rates(kind)) for kind in KINDS} | {
    "steps": ("cuda", Rates(1, 0, 0, 0)),
    "products": ("cuda", Rates(0, 0, 1, 0)),
}


@pytest.mark.parametrize("name", RATES)
def test_tables_3_to_6_are_done_within_15_per_cent_of_what_no_cut_goes_below(name: str) -> None:
    for shared in simulate(*RATES[name]):
        assert shared["runs"] == 15 * 31
        assert 1 - 1e-9 < shared["ratio"] <= 1.15, shared
        assert shared["stacks"] >= shared["devices"]
