"""Frame features and their changes -> snippets -> those that are not neutral: of NR-DFERNet."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.model.heads.encoder import ClassTokenEncoder
from pipeline.model.layers import Linear
from pipeline.model.network import Network, NetworkSpec, Output


class NRDFERNet(Network):
    """Changes between neighbouring frames join the frames and the class tokens of their snippets.

    d_t = ReLU(W (x_t - x_(t-1)) + b), with x_0 = x_1; a snippet is the frames x_t + d_t after a
    learned class token to which the mean of its d_t is added, and passes T-Former. The logits of a
    video are the mean of those of its snippets; but outside of training, snippets predicted as
    neutral have no say unless all are. A frame's logits are its snippet's.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec)
        generators, size, classes = spec.generators, spec.size, spec.texts.classes
        self.instance = spec.head.instance
        self.change = Linear(generators, size, size)
        self.encoder = ClassTokenEncoder(generators, self.instance, size, spec.head)
        self.classifier = Linear(generators, size, spec.classes)
        self.neutral = classes.index("neutral") if "neutral" in classes else None

    def _predict(self, x_RBTD: Tensor) -> Output:
        before_RBTD = torch.cat([x_RBTD[:, :, :1], x_RBTD[:, :, :-1]], 2)
        changes = F.relu(self.change(x_RBTD - before_RBTD)).to(x_RBTD.dtype)
        tokens = self.encoder(self._snippets(x_RBTD + changes), self._snippets(changes).mean(2))
        logits = self.classifier(tokens[:, :, 0]).to(x_RBTD.dtype)
        logits_RBNK = logits.unflatten(1, (-1, x_RBTD.shape[2] // self.instance))
        return Output(self._decided(logits_RBNK), logits_RBNK.repeat_interleave(self.instance, 2))

    def _snippets(self, x_RBTD: Tensor) -> Tensor:
        """[R, B N, frames of a snippet, D]."""
        return x_RBTD.unflatten(2, (-1, self.instance)).flatten(1, 2)

    def _decided(self, logits_RBNK: Tensor) -> Tensor:
        if self.is_learning or self.neutral is None:
            return logits_RBNK.mean(2)
        heard_RBN1 = logits_RBNK.argmax(3, keepdim=True) != self.neutral
        heard_RBN1 = heard_RBN1 | ~heard_RBN1.any(2, keepdim=True)
        return (heard_RBN1 * logits_RBNK).sum(2) / heard_RBN1.sum(2)
