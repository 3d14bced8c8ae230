"""Features of videos and trained networks -> each network's predictions for its videos."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.model.network import Network

EVALUATION_VIDEOS = 256  # videos per run in an evaluation batch; only limits memory


@dataclass(frozen=True)
class Predictions:
    """A network's output for N videos; attention is NaN without a visual prompt."""

    logits_NK: NDArray[np.float32]
    frame_logits_NTK: NDArray[np.float32]
    attention_NTK: NDArray[np.float32]

    @property
    def labels_N(self) -> NDArray[np.int64]:
        """The predicted class of each video."""
        return self.logits_NK.argmax(1)

    def first(self, count: int) -> "Predictions":
        """The first ``count`` videos."""
        return Predictions(
            self.logits_NK[:count], self.frame_logits_NTK[:count], self.attention_NTK[:count]
        )


def predict(
    model: Network,
    features: Callable[[Tensor, Tensor], Tensor],
    rows: Sequence[NDArray[np.int64]],
) -> list[Predictions]:
    """Predictions of each run of a stack for its own ``rows``, from the test view.

    ``features`` returns the features [R, B, T, D] of rows [R, B] and views [R, B].
    """
    longest = max(len(own) for own in rows)
    padded_RN = np.stack([np.resize(own, longest) for own in rows])
    parts = []
    with torch.no_grad():
        for start in range(0, longest, EVALUATION_VIDEOS):
            row_RB = torch.from_numpy(padded_RN[:, start : start + EVALUATION_VIDEOS])
            row_RB = row_RB.to(model.device)
            out = model(features(row_RB, torch.zeros_like(row_RB)))
            attention_RBTK = out.attention_RBTK
            if attention_RBTK is None:
                attention_RBTK = torch.full_like(out.frame_logits_RBTK, float("nan"))
            parts.append((out.logits_RBK, out.frame_logits_RBTK, attention_RBTK))
    arrays = [torch.cat(same, dim=1).cpu().numpy() for same in zip(*parts, strict=True)]
    return [Predictions(*(array[r, : len(own)] for array in arrays)) for r, own in enumerate(rows)]
