"""Frame logits [N, T, K] -> influence of each frame, predictions from a few, localisation."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def influence(frame_logits_NTK: NDArray[np.float32], predicted_N: NDArray[np.int64]) -> Array:
    """cos(x_t, label_k) / tau of the predicted class k, [N, T], as in Fig. 4 of the paper."""
    index = predicted_N[:, None, None]
    chosen = np.take_along_axis(frame_logits_NTK, index, axis=2)[:, :, 0]
    return chosen.astype(np.float64)


def repool(
    frame_logits_NTK: NDArray[np.float32],
    predicted_N: NDArray[np.int64],
    order: Literal["highest", "lowest"],
    count: int,
) -> NDArray[np.int64]:
    """Predictions [N] from the ``count`` frames of highest or lowest influence (Table 6).

    The network is not run again; the chosen frames' logits are averaged. Ties go to the earlier
    frame.
    """
    scores_NT = influence(frame_logits_NTK, predicted_N)
    ranked_NT = np.argsort(-scores_NT if order == "highest" else scores_NT, axis=1, kind="stable")
    chosen_NCK = np.take_along_axis(frame_logits_NTK, ranked_NT[:, :count, None], axis=1)
    return chosen_NCK.astype(np.float64).mean(1).argmax(1)


def average_precision(scores_NT: Array, shows_NT: NDArray[np.bool_]) -> Array:
    """Average precision of each video's frame ranking, [N]; NaN if none or all frames show it.

    Tied scores share one precision, so a constant ranking scores the share of frames that show it.
    """
    from sklearn.metrics import average_precision_score

    result = np.full(len(scores_NT), np.nan)
    for n, (scores, shows) in enumerate(zip(scores_NT, shows_NT, strict=True)):
        if shows.any() and not shows.all():
            result[n] = average_precision_score(shows, scores)
    return result
