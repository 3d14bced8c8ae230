"""Columns of a plan as arrays: the same videos as in JSON, whatever they are called."""

import gc
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from cache.columns import Texts
from cache.errors import DamagedError
from cache.files import sha256
from cache.plan import (
    Plan,
    PlanFold,
    VideoTable,
    contradiction,
    encode_plan,
    encode_plan_file,
    parse_array_plan,
)
from support.tiny import make_plan, plan_of

NAMES = st.text(st.characters(codec="utf-8"), max_size=70)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.none() | NAMES, max_size=12), st.slices(12))
def test_texts_are_those_they_were_made_of(texts: list[str | None], part: slice) -> None:
    found = Texts.of(texts)
    assert list(found) == texts
    assert found == texts
    assert found[part] == tuple(texts[part])
    assert [found[n] for n in range(-len(texts), len(texts))] == texts * 2
    with pytest.raises(IndexError):
        _ = found[len(texts)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text("ab\0é", max_size=20), max_size=30), st.sampled_from(["", "x" * 70]))
def test_equal_texts_are_always_suspected(texts: list[str], end: str) -> None:
    texts = [text + end for text in texts]
    assert Texts.of(texts).may_repeat() or len(set(texts)) == len(texts)


def test_different_texts_are_seldom_suspected() -> None:
    texts = [f"{a}/take {b:03d}/{c:05d}.mp4" for a in "ab" for b in range(100) for c in range(100)]
    assert not Texts.of(texts).may_repeat()
    assert Texts.of([*texts, texts[7]]).may_repeat()


@st.composite
def tables(draw: st.DrawFn) -> VideoTable:
    """Videos with names of every kind, and rows in any order."""
    ids = draw(st.lists(NAMES, min_size=2, max_size=12, unique=True))
    rows = st.integers(0, len(ids) - 1)
    every = st.lists(st.permutations(range(len(ids))), max_size=3)
    votes = st.none() | st.tuples(*[st.floats(0.25, 9)] * 3)
    known = draw(st.none() | st.lists(votes, min_size=len(ids), max_size=len(ids)))
    files = draw(st.none() | st.just([f"Clip/é{n}.mp4" for n in range(len(ids))]))
    return VideoTable(
        name=draw(NAMES),
        ids=ids,
        labels=draw(st.lists(st.integers(0, 2), min_size=len(ids), max_size=len(ids))),
        classes=("happy", "sad", "ängstlich"),
        subjects=draw(st.lists(st.none() | NAMES, min_size=len(ids), max_size=len(ids))),
        folds=[
            PlanFold(name=str(n), train=order[1:], test=order[:1])
            for n, order in enumerate(draw(every))
        ],
        subsets=draw(st.dictionaries(NAMES, st.lists(rows, unique=True), max_size=3)),
        votes=known if known and any(known) else None,
        sources=files,
        resplit=draw(st.none() | NAMES),
    )


def read_back(plan: Plan) -> Plan:
    kept, columns = plan.in_arrays()
    return parse_array_plan(encode_plan_file(kept), columns, "plan.json", "")


@settings(max_examples=40, deadline=None)
@given(tables())
def test_plan_in_two_files_is_the_plan_in_one(table: VideoTable) -> None:
    plan = plan_of(table)
    again = read_back(plan)
    assert encode_plan(again) == encode_plan(plan)
    assert contradiction(again) == ""
    assert (again.source, again.blocks) == (plan.source, plan.blocks)
    assert (again.videos.ids, again.videos.subjects) == (table.ids, table.subjects)


def test_videos_of_a_plan_in_two_files_become_no_objects() -> None:
    kept, columns = make_plan(videos=20_000).in_arrays()
    data = encode_plan_file(kept)
    read_back(make_plan())  # whatever is made once
    gc.collect()
    before = sys.getallocatedblocks()
    plan = parse_array_plan(data, columns, "plan.json", "")
    assert sys.getallocatedblocks() - before < 2000
    assert len(plan.videos.ids) == 20_000


def changed(name: str, values: Any, dtype: Any = np.int32) -> dict[str, np.ndarray]:
    return {name: np.array(values, dtype)}


def begun(name: str, *first: int) -> dict[str, np.ndarray]:
    """A column whose first numbers are others."""
    column = load(COLUMNS)[name].copy()
    column[: len(first)] = first
    return {name: column}


VIDEOS = 70
GIVEN = make_plan(VIDEOS).videos.model_copy(
    update={"sources": tuple(f"{n:04d}.avi" for n in range(VIDEOS))}
)
PLAN, COLUMNS = plan_of(GIVEN.model_copy(update={"votes": np.ones((VIDEOS, 3))})).in_arrays()
FORGED = {
    "id twice": (begun("ids.utf8", *b"video 1"), "video video 1 is listed twice"),
    "id absent": (begun("ids.lengths", -1, 14), "column ids lacks a text"),
    "lengths": (begun("ids.lengths", 8), "the lengths of texts do not fit their bytes"),
    "great lengths": (begun("ids.lengths", 2**31 - 1, 2**31 - 1), "the lengths of texts do not"),
    "no text": (begun("ids.utf8", 255), "invalid start byte"),
    "half a character": (begun("ids.utf8", *b"video \xc3\xa9"), "begins inside a character"),
    "label": (begun("labels", 3), "label 3, but there are 3 classes"),
    "negative label": (begun("labels", -1), "label -1, but there are 3 classes"),
    "labels": (changed("labels", [0, 1, 2]), "3 labels of 70 videos"),
    "numbers of another type": (changed("labels", [0] * 70, np.int64), "column labels is missing"),
    "shape": (changed("labels", [[0]] * 70), "column labels is missing, or of another type"),
    "row": (begun("folds.0.train", 70), "row 70 of a fold or a subset, but there are 70 videos"),
    "negative row": (begun("folds.0.train", -1), "row -1 of a fold or a subset"),
    "row twice": (begun("folds.0.train", 2), "row 2 is listed twice for training in fold 1"),
    "overlap": (begun("folds.0.train", 0), "row 0 is in both training and test of fold 1"),
    "no test": (changed("folds.0.test", []), "fold 1 has no test videos"),
    "subset": (changed("subsets.0", [5, 5]), "row 5 is listed twice in subset dark"),
    "votes": (changed("votes", [[1, np.nan, 1]] * 70, np.float64), r"votes \[1.0, 1.0\]"),
    "negative votes": (changed("votes", [[2, -1, 1]] * 70, np.float64), "not all 0"),
    "endless votes": (changed("votes", [[np.inf, 1, 1]] * 70, np.float64), "not all 0"),
    "source": (begun("sources.utf8", *b"/000.avi"), "source '/000.avi' does not start from"),
    "source above": (begun("sources.utf8", *b"../0.avi"), "source '../0.avi' does not start from"),
    "source absent": (begun("sources.lengths", 0, 16), "source '' does not start from"),
    "unknown column": (changed("folds.1.train", [1]), "column folds.1.train is unknown"),
}


@pytest.mark.parametrize("name", FORGED)
def test_columns_that_fit_no_store_are_refused_in_one_sentence(name: str) -> None:
    columns, message = FORGED[name]
    refuse(save(load(COLUMNS) | columns), message)


@pytest.mark.parametrize("cut", [0, 7, 100, 1000, len(COLUMNS) - 1])
def test_columns_cut_short_are_refused(cut: int) -> None:
    refuse(COLUMNS[:cut], "no safetensors file of columns")


def refuse(columns: bytes, message: str) -> None:
    assert PLAN.arrays
    declared = {"columns": (len(columns), sha256(columns))}
    arrays = PLAN.arrays.model_copy(update=declared)
    data = encode_plan_file(PLAN.model_copy(update={"arrays": arrays}))
    with pytest.raises(DamagedError, match=message) as refused:
        parse_array_plan(data, columns, "plan.json is damaged", "copy it again")
    assert "\n" not in str(refused.value)
    assert str(refused.value).endswith(": copy it again")


@pytest.mark.parametrize(
    "change",
    [
        (b'"folds":["1"]', b'"folds":[]'),
        (b'"folds":["1"]', b'"folds":["1","2"]'),
        (b'"name":"test"', b'"name":"tent"'),
        (b'"views":2', b'"views":3'),
        (b'"views":2', b'"views":"2"'),
        (b'"views":2', b'"rows":2'),
        (b'"schema_version":2', b'"schema_version":9'),
        (b'"source":"', b'"source":"x'),
        (b'{"arrays"', b'{ "arrays"'),
        (b"\n", b""),
    ],
)
def test_plan_that_was_not_written_so_is_refused(change: tuple[bytes, bytes]) -> None:
    plan, columns = make_plan(VIDEOS).in_arrays()
    data = encode_plan_file(plan)
    assert parse_array_plan(data, columns, "", "").arrays == plan.arrays
    assert change[0] in data
    with pytest.raises(DamagedError):
        parse_array_plan(data.replace(*change, 1), columns, "plan.json is damaged", "")


def test_columns_of_other_videos_contradict_the_plan() -> None:
    plan, _ = make_plan(VIDEOS).in_arrays()
    other = make_plan(VIDEOS).videos.model_copy(update={"labels": np.zeros(VIDEOS, np.int32)})
    forged = plan.model_copy(update={"videos": other})
    assert contradiction(forged) == "the videos have another digest than the identity says"
    assert contradiction(plan.model_copy(update={"views": 3})).startswith("the whole plan has")
    assert contradiction(plan) == ""
