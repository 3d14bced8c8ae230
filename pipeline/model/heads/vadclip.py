"""Frame features -> windows, graphs over all frames -> texts that see them: of VadCLIP."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from pipeline.config import ATTENTION_HEADS
from pipeline.kernels.head import cosine, frame_logits, weighted_sum
from pipeline.model.layers import Linear, Product, TransformerLayer, normal, per_run, quick_gelu
from pipeline.model.network import NetworkSpec, Output, TextNetwork, projected, prompts_of

POSITIONS_STD = 0.01
SIMILAR = 0.7  # cosines up to this count as 0 between frames of a graph
TAPS = 5  # of the convolution beside a graph's first layer
POOLED = 16  # the mean of the best frame, and of one more for every so many frames


class VadCLIP(TextNetwork):
    """Local and global temporal adapter (LGT), texts with a visual prompt, the best frames' logits.

    Frame logits are cos(x_t, label_k) / tau with label = y + MLP(y), y = text_k + V, where V is the
    normalised sum of the frames, weighted by what one unit on x_t + MLP(x_t) says of each.
    """

    near_TT: Tensor

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec)
        generators, size, head = spec.generators, spec.text_tower.size, spec.head
        used, self.window, hidden = len(self.chosen_T), head.instance, head.width(size)
        self.positions_RTD = per_run(generators, normal(used, size, std=POSITIONS_STD))
        self.local = nn.Sequential(
            *(
                TransformerLayer(
                    generators,
                    size,
                    ATTENTION_HEADS["vadclip"],
                    hidden / size,
                    dropout=spec.dropout,
                    activation=quick_gelu,
                )
                for _ in range(head.depth)
            )
        )
        self.similar, self.near = (_Graph(generators, size) for _ in range(2))
        self.register_buffer("near_TT", nearness(used), persistent=False)
        self.join = Linear(generators, 2 * (size // 2), size)
        self.score_mlp, self.text_mlp = (_MLP(generators, size, hidden) for _ in range(2))
        self.score = Linear(generators, size, 1)
        self.fine = prompts_of(spec, spec.texts.of(spec.method.prompts.fine_text))

    def _predict(self, x_RBTD: Tensor) -> Output:
        x_RBTD = self._adapted(projected(self.project, x_RBTD))
        score_RBT1 = self.score(x_RBTD + self.score_mlp(x_RBTD)).to(x_RBTD.dtype)
        labels_RBKD = self.fine()[:, None] + weighted_sum(x_RBTD, score_RBT1)
        labels_RBKD = labels_RBKD + self.text_mlp(labels_RBKD).to(x_RBTD.dtype)
        logits_RBTK = frame_logits(x_RBTD, labels_RBKD, self.temperature_R)
        best = logits_RBTK.topk(x_RBTD.shape[2] // POOLED + 1, dim=2).values
        return Output(best.mean(2), logits_RBTK)

    def _adapted(self, x_RBTD: Tensor) -> Tensor:
        shape = x_RBTD.shape
        x_RBTD = x_RBTD + self.positions_RTD[:, None]
        windows = x_RBTD.unflatten(2, (-1, self.window)).flatten(1, 2)
        x_RBTD = self.local(windows).view(shape)
        similar = self.similar(x_RBTD, similarity(x_RBTD).to(x_RBTD.dtype))
        near = self.near(x_RBTD, self.near_TT.to(x_RBTD.dtype))
        return self.join(torch.cat([similar, near], 3)).to(x_RBTD.dtype)


def similarity(x: Tensor) -> Tensor:
    """Edges of frames [..., T, D]: softmax_j of cosines above SIMILAR, else of 0, [..., T, T]."""
    return F.threshold(cosine(x, x), SIMILAR, 0).softmax(-1)


def nearness(frames: int) -> Tensor:
    """Edges exp(-|i - j| / e) of frames i and j, [T, T]."""
    place = torch.arange(frames, dtype=torch.float64)
    return (-(place[:, None] - place).abs() / math.e).exp()


class _Graph(nn.Module):
    """Two graph convolutions over frames with edges A: [R, B, T, D] -> [R, B, T, D // 2].

    y = s(A x W + conv(x)), then s(A y W' + y), s being QuickGELU.
    """

    def __init__(self, generators: Sequence[Generator], size: int) -> None:
        super().__init__()
        self.first = Product(generators, size, size // 2)
        self.beside = Linear(generators, TAPS * size, size // 2)
        self.second = Product(generators, size // 2, size // 2)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        around = F.pad(x, (0, 0, TAPS // 2, TAPS // 2)).unfold(2, TAPS, 1).flatten(3)
        y = quick_gelu(edges @ self.first(x) + self.beside(around))
        return quick_gelu(edges @ self.second(y) + y)


class _MLP(nn.Module):
    def __init__(self, generators: Sequence[Generator], size: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = Linear(generators, size, hidden), Linear(generators, hidden, size)

    def forward(self, x: Tensor) -> Tensor:
        mapped: Tensor = self.down(quick_gelu(self.up(x)))
        return mapped
