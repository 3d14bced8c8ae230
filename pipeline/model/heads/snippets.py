"""Frame features -> snippets -> transformer whose decoder asks one question -> logits: of EST."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from pipeline.config import ATTENTION_HEADS, HeadConfig
from pipeline.kernels.head import cosine
from pipeline.model.layers import (
    Dropout,
    LayerNorm,
    Linear,
    TransformerLayer,
    attend,
    normal,
    per_run,
)
from pipeline.model.network import Network, NetworkSpec, Output

HEADS = ATTENTION_HEADS["est"]
CLASSIFIER = (128, 64)  # hidden layers of the classifier


class EST(Network):
    """Expression Snippet Transformer: snippets are weighted means of attended frames.

    They pass an encoder; a decoder takes one learned query to the video's feature, which is
    classified. A frame's logits are those of the classifier on the encoder's output for its
    snippet; training looks at the query alone. There is no dropout but ``head.dropout``.
    """

    positions_ND: Tensor

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec)
        generators, size, head = spec.generators, spec.size, spec.head
        self.instance, count = head.instance, len(self.chosen_T) // head.instance
        self.register_buffer("positions_ND", sinusoids(count, size), persistent=False)
        self.snippets = _Snippets(generators, size, spec.dropout)
        ratio = head.width(size) / size
        encoder = (
            TransformerLayer(
                generators, size, HEADS, ratio, "post", spec.dropout, activation=F.relu
            )
            for _ in range(head.depth)
        )
        self.encoder = nn.Sequential(*encoder, LayerNorm(generators, size))
        self.query_RD = per_run(generators, normal(size, std=1))
        self.decoder = nn.ModuleList(_Decoder(generators, size, head) for _ in range(head.depth))
        self.norm = LayerNorm(generators, size)
        first, second = CLASSIFIER
        self.first = Linear(generators, size, first)
        self.second = Linear(generators, first, second)
        self.classifier = Linear(generators, second, spec.classes)

    def _predict(self, x_RBTD: Tensor) -> Output:
        snippets_RBND = self.snippets(x_RBTD.unflatten(2, (-1, self.instance)))
        memory_RBND = self.encoder(snippets_RBND + self.positions_ND.to(x_RBTD.dtype))
        query_RBD = self.query_RD[:, None].expand(-1, x_RBTD.shape[1], -1)
        for layer in self.decoder:
            query_RBD = layer(query_RBD, memory_RBND)
        tokens = torch.cat([self.norm(query_RBD)[:, :, None], memory_RBND], 2)
        hidden = F.relu(self.second(F.relu(self.first(tokens))))
        logits = self.classifier(hidden).to(x_RBTD.dtype)
        return Output(logits[:, :, 0], logits[:, :, 1:].repeat_interleave(self.instance, 2))


class _Snippets(nn.Module):
    """Frames of snippets [R, B, N, f, D] -> [R, B, N, D].

    y = LN(x + Attention(x)); the mean of the y_t, weighted by their cosines with max_t y_t.
    """

    def __init__(self, generators: Sequence[Generator], size: int, shares: list[float]) -> None:
        super().__init__()
        self.qkv = Linear(generators, size, 3 * size)
        self.out = Linear(generators, size, size)
        self.norm, self.drop = LayerNorm(generators, size), Dropout(shares)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1, 2)
        y = self.norm(flat + self.drop(self.out(attend(self.qkv(flat), HEADS)))).to(x.dtype)
        weights = cosine(y, y.max(2, keepdim=True).values).clamp(min=1e-8)
        return ((weights * y).sum(2) / weights.sum(2)).unflatten(1, x.shape[1:3])


class _Decoder(nn.Module):
    """One query [R, B, D] asks the encoder's output [R, B, N, D]; post-norm, ReLU.

    q = LN(q + out(value(q))), as attention to itself alone; LN(q + Attention(q, memory));
    LN(q + MLP(q)).
    """

    def __init__(self, generators: Sequence[Generator], size: int, head: HeadConfig) -> None:
        super().__init__()
        hidden, shares = head.width(size), [head.dropout] * len(generators)
        self.value, self.value_out = (Linear(generators, size, size) for _ in range(2))
        self.query, self.out = (Linear(generators, size, size) for _ in range(2))
        self.memory = Linear(generators, size, 2 * size)  # keys and values
        self.up, self.down = Linear(generators, size, hidden), Linear(generators, hidden, size)
        self.norms = nn.ModuleList(LayerNorm(generators, size) for _ in range(3))
        self.drops = nn.ModuleList(Dropout(shares) for _ in range(3))

    def forward(self, query_RBD: Tensor, memory_RBND: Tensor) -> Tensor:
        q = self._added(0, query_RBD, self.value_out(self.value(query_RBD)))
        q = self._added(1, q, self.out(self._asked(q, memory_RBND)))
        return self._added(2, q, self.down(F.relu(self.up(q))))

    def _added(self, n: int, q: Tensor, more: Tensor) -> Tensor:
        added: Tensor = self.norms[n](q + self.drops[n](more))
        return added

    def _asked(self, q_RBD: Tensor, memory_RBND: Tensor) -> Tensor:
        query = self.query(q_RBD)[:, :, None].unflatten(-1, (HEADS, -1)).transpose(2, 3)
        both = self.memory(memory_RBND).unflatten(-1, (2, HEADS, -1))
        key, value = both.permute(3, 0, 1, 4, 2, 5)  # each [R, B, H, N, D / H]
        mixed = F.scaled_dot_product_attention(query.to(key.dtype), key, value)
        return mixed.flatten(2)


def sinusoids(count: int, size: int) -> Tensor:
    """sin(n / 10000^(2i / D)) in the even and cos in the odd places 2i and 2i + 1, [N, D]."""
    place = torch.arange(size, dtype=torch.float64)
    angle_ND = torch.arange(count)[:, None] / 10_000 ** (place // 2 * 2 / size)
    return torch.where(place % 2 == 0, angle_ND.sin(), angle_ND.cos())
