"""Frame features -> class token -> group of emotions, then emotion, guided by frames: of AEN."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.model.heads.encoder import ClassTokenEncoder
from pipeline.model.layers import Linear, divergence
from pipeline.model.network import Network, NetworkSpec, Output

GROUPS = {
    "positive": ("happiness", "surprise"),
    "neutral": ("neutral", "calm"),
    "negative": (
        "sadness",
        "anger",
        "disgust",
        "fear",
        "contempt",
        "anxiety",
        "helplessness",
        "disappointment",
    ),
}


class AEN(Network):
    """log p_k = log p(group of k) + log p(k | its group), both from the class token of T-Former.

    A linear layer gives the logits of every frame. The penalty is the divergence of the mean of
    their probabilities and those of the video, so that the frames keep what the video shows.
    """

    group_K: Tensor

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec)
        generators, size, frames = spec.generators, spec.size, len(self.chosen_T)
        group_K = torch.tensor(groups_of(spec.texts.classes))
        self.register_buffer("group_K", group_K, persistent=False)
        self.encoder = ClassTokenEncoder(generators, frames, size, spec.head)
        self.groups = Linear(generators, size, int(group_K.max()) + 1)
        self.classifier = Linear(generators, size, spec.classes)
        self.frame = Linear(generators, size, spec.classes)

    def _predict(self, x_RBTD: Tensor) -> Output:
        token_RBD = self.encoder(x_RBTD)[:, :, 0]
        log_p_RBG = self.groups(token_RBD).to(x_RBTD.dtype).log_softmax(-1)
        within_RBK = self._within(self.classifier(token_RBD).to(x_RBTD.dtype))
        logits_RBK = log_p_RBG.index_select(-1, self.group_K) + within_RBK
        frame_logits_RBTK = self.frame(x_RBTD).to(x_RBTD.dtype)
        mean_RBK = frame_logits_RBTK.log_softmax(-1).logsumexp(2)  # of probabilities, times T
        penalty_RB = divergence(logits_RBK, mean_RBK)
        return Output(logits_RBK, frame_logits_RBTK, penalty_RB=penalty_RB)

    def _within(self, scores_RBK: Tensor) -> Tensor:
        """log p(k | its group)."""
        others_KK = self.group_K[:, None] != self.group_K
        of_group_RBKK = scores_RBK[:, :, None].masked_fill(others_KK, -torch.inf)
        return scores_RBK - of_group_RBKK.logsumexp(-1)


def groups_of(classes: Sequence[str]) -> list[int]:
    """The group of each class, numbered in the order in which they appear.

    A class of another name is a group of its own.
    """
    named = {name: group for group, members in GROUPS.items() for name in members}
    groups = [named.get(name, f"only {name}") for name in classes]
    order = list(dict.fromkeys(groups))
    return [order.index(group) for group in groups]
