"""The batches of an epoch: every training video once, each run in its own order."""

import numpy as np
import pytest

from pipeline.train.batches import epoch_batches


def generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_every_training_video_is_seen_once_and_padding_has_no_weight() -> None:
    rows = [np.arange(10, 17), np.arange(5)]
    batches = epoch_batches(rows, 3, [4, 4], [generator(0), generator(1)])
    assert batches.video_SRB.shape == (3, 2, 3)
    for r, own in enumerate(rows):
        weight = batches.weight_SRB[:, r] > 0
        assert sorted(batches.video_SRB[:, r][weight]) == own.tolist()
        assert weight.sum(1).tolist() == [3, 3, 1] if r == 0 else [3, 2, 0]
        assert set(batches.view_SRB[:, r][weight]) <= {1, 2, 3}


@pytest.mark.parametrize("views", [1, 3])
def test_a_run_s_batches_do_not_depend_on_the_stack(views: int) -> None:
    rows = [np.arange(9), np.arange(4, 17)]
    both = epoch_batches(rows, 4, [2, views], [generator(7), generator(8)])
    alone = epoch_batches(rows[1:], 4, [views], [generator(8)])
    np.testing.assert_array_equal(both.video_SRB[:, 1], alone.video_SRB[:, 0])
    np.testing.assert_array_equal(both.view_SRB[:, 1], alone.view_SRB[:, 0])


def test_without_augmented_views_training_sees_the_evaluation_view() -> None:
    batches = epoch_batches([np.arange(6)], 4, [1], [generator(0)])
    assert not batches.view_SRB.any()
