"""Frame logits [N, T, K] -> influence of each frame, predictions from a few, localisation."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Influence = Literal["logit", "margin", "probability", "attention", "attention_value"]


def influence(frame_logits_NTK: NDArray[np.float32], predicted_N: NDArray[np.int64]) -> Array:
    """cos(x_t, label_k) / tau of the predicted class k, [N, T], as in Fig. 4 of the paper."""
    index = predicted_N[:, None, None]
    chosen = np.take_along_axis(frame_logits_NTK, index, axis=2)[:, :, 0]
    return chosen.astype(np.float64)


def influence_by(
    kind: Influence,
    frame_logits_NTK: NDArray[np.float32],
    attention_NTK: NDArray[np.float32],
    predicted_N: NDArray[np.int64],
) -> Array:
    """How much each frame speaks for the predicted class k, [N, T]; f_tk are the frame logits.

    - logit: f_tk, the paper's
    - margin: f_tk minus the highest f_tj of another class j
    - probability: softmax over classes of f_t, at k
    - attention: a_tk, the weight of the frame in the visual prompt of k
    - attention_value: a_tk (f_tk - mean_t f_tk)

    NaN for the last two if the method has no visual prompt.
    """
    logits_NTK, index = frame_logits_NTK.astype(np.float64), predicted_N[:, None, None]
    own_NT = influence(frame_logits_NTK, predicted_N)
    if kind == "logit":
        return own_NT
    if kind == "margin":
        others_NTK = logits_NTK.copy()
        np.put_along_axis(others_NTK, index, -np.inf, axis=2)
        margin: Array = own_NT - others_NTK.max(2)
        return margin
    if kind == "probability":
        most_NT1 = logits_NTK.max(2, keepdims=True)
        total_NT = np.exp(logits_NTK - most_NT1).sum(2)
        probability: Array = np.exp(own_NT - most_NT1[:, :, 0]) / total_NT
        return probability
    attention_NT = influence(attention_NTK, predicted_N)
    if kind == "attention":
        return attention_NT
    return attention_NT * (own_NT - own_NT.mean(1, keepdims=True))


def repool(
    frame_logits_NTK: NDArray[np.float32],
    scores_NT: Array,
    order: Literal["highest", "lowest"],
    count: int,
) -> NDArray[np.int64]:
    """Predictions [N] from the ``count`` frames of highest or lowest influence (Table 6).

    The network is not run again; the chosen frames' logits are averaged. Ties go to the earlier
    frame.
    """
    ranked_NT = np.argsort(-scores_NT if order == "highest" else scores_NT, axis=1, kind="stable")
    chosen_NCK = np.take_along_axis(frame_logits_NTK, ranked_NT[:, :count, None], axis=1)
    return chosen_NCK.astype(np.float64).mean(1).argmax(1)


def average_precision(scores_NT: Array, shows_NT: NDArray[np.bool_]) -> Array:
    """Average precision of each video's frame ranking, [N]; NaN if none or all frames show it.

    The mean over the frames t that show it of: the share of such frames among those that score at
    least as high as t. Tied scores share one precision, so a constant ranking scores the share of
    frames that show it.
    """
    above_NTU = scores_NT[:, None, :] >= scores_NT[:, :, None]
    precision_NT = (above_NTU & shows_NT[:, None, :]).sum(2) / above_NTU.sum(2)
    shown_N = shows_NT.sum(1)
    ranked_N = (shown_N > 0) & (shown_N < shows_NT.shape[1])
    total_N = (precision_NT * shows_NT).sum(1)
    return np.divide(total_N, shown_N, out=np.full(len(shown_N), np.nan), where=ranked_N)
