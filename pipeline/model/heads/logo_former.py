"""Frame features -> attention in windows and to windows -> logits: of LOGO-Former."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Generator, Tensor, nn

from pipeline.config import ATTENTION_HEADS, HeadConfig
from pipeline.model.layers import (
    Dropout,
    LayerNorm,
    Linear,
    Product,
    attend,
    normal,
    per_run,
    uniform,
)
from pipeline.model.network import Network, NetworkSpec, Output

HEADS = ATTENTION_HEADS["logo_former"]


class LOGOFormer(Network):
    """Local-global transformer over the frames; windows are ``head.instance`` neighbouring frames.

    After the last layer and a norm, a linear layer gives the logits of every frame; those of the
    video are their mean.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec)
        generators, size, head = spec.generators, spec.size, spec.head
        self.positions_RTD = per_run(generators, normal(len(self.chosen_T), size, std=0.02))
        self.layers = nn.Sequential(*(_Layer(generators, size, head) for _ in range(head.depth)))
        self.norm = LayerNorm(generators, size)
        self.classifier = Linear(generators, size, spec.classes)

    def _predict(self, x_RBTD: Tensor) -> Output:
        encoded = self.norm(self.layers(x_RBTD + self.positions_RTD[:, None]))
        frame_logits_RBTK = self.classifier(encoded).to(x_RBTD.dtype)
        return Output(frame_logits_RBTK.mean(2), frame_logits_RBTK)


class _Layer(nn.Module):
    """x + Local(LN(x)), then x + Global(LN(x)), then x + MLP(LN(x)): [R, B, T, D] -> the same.

    Local is attention within every window. In Global, each frame asks one feature of every window:
    a convolution of its frames, for each feature alone, and a norm. Queries, keys and values have
    no biases.
    """

    def __init__(self, generators: Sequence[Generator], size: int, head: HeadConfig) -> None:
        super().__init__()
        hidden, self.window = head.width(size), head.instance
        shares, bound = [head.dropout] * len(generators), self.window**-0.5
        self.norms = nn.ModuleList(LayerNorm(generators, size) for _ in range(3))
        self.drops = nn.ModuleList(Dropout(shares) for _ in range(3))
        self.qkv = Product(generators, size, 3 * size)
        self.local_out = Linear(generators, size, size)
        self.pool_RwD = per_run(generators, uniform(self.window, size, bound=bound))
        self.pool_bias_RD = per_run(generators, uniform(size, bound=bound))
        self.pool_norm = LayerNorm(generators, size)
        self.query, self.memory = (Product(generators, size, n * size) for n in (1, 2))
        self.global_out = Linear(generators, size, size)
        self.up, self.down = Linear(generators, size, hidden), Linear(generators, hidden, size)

    def forward(self, x: Tensor) -> Tensor:
        for part, norm, drop in zip(
            (self._local, self._global, self._mlp), self.norms, self.drops, strict=True
        ):
            x = x + drop(part(norm(x)))
        return x

    def _windows(self, x_RBTD: Tensor) -> Tensor:
        return x_RBTD.unflatten(2, (-1, self.window))

    def _local(self, x_RBTD: Tensor) -> Tensor:
        qkv = self._windows(self.qkv(x_RBTD)).flatten(1, 2)
        mixed: Tensor = self.local_out(attend(qkv, HEADS).view(x_RBTD.shape))
        return mixed

    def _global(self, x_RBTD: Tensor) -> Tensor:
        pooled_RBND = (self._windows(x_RBTD) * self.pool_RwD[:, None, None]).sum(3)
        memory = self.memory(self.pool_norm(pooled_RBND + self.pool_bias_RD[:, None, None]))
        query = self.query(x_RBTD).flatten(0, 1).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        key, value = memory.flatten(0, 1).unflatten(-1, (2, HEADS, -1)).permute(2, 0, 3, 1, 4)
        asked = F.scaled_dot_product_attention(query, key, value)  # [R B, H, T, D / H]
        mixed: Tensor = self.global_out(asked.transpose(1, 2).reshape(x_RBTD.shape))
        return mixed

    def _mlp(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.down(F.gelu(self.up(x)))
        return hidden
