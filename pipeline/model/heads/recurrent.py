"""Frame features -> bidirectional LSTM -> logits, as ResNet18-LSTM does on its frame features."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from pipeline.config import HeadConfig
from pipeline.model.layers import Dropout, Linear, per_run, uniform
from pipeline.model.network import Network, NetworkSpec, Output


class BiLSTM(nn.Module):
    """Layers of bidirectional LSTMs (Hochreiter and Schmidhuber 1997): [R, B, T, I] -> [.., 2H].

    Both directions of a layer are given the outputs of both directions of the one before, with
    dropout between layers; weights and initial values are those of torch.nn.LSTM.
    """

    def __init__(self, generators: Sequence[Generator], size: int, head: HeadConfig) -> None:
        super().__init__()
        hidden = head.width(size)
        inputs = [size, *[2 * hidden] * (head.depth - 1)]
        self.layers = nn.ModuleList(_Layer(generators, own, hidden) for own in inputs)
        shares = [head.dropout] * len(generators)
        self.drop = nn.ModuleList(Dropout(shares) for _ in inputs[1:])

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.layers
        x = first(x)
        for drop, layer in zip(self.drop, others, strict=True):
            x = layer(drop(x))
        return x


class _Layer(nn.Module):
    """(i, f, g, o) = W x_t + U h_(t-1) + b, c_t = s(f) c_(t-1) + s(i) tanh g, h_t = s(o) tanh c_t.

    s is the logistic function; of the backward direction, t - 1 is the next frame.
    """

    def __init__(self, generators: Sequence[Generator], inputs: int, hidden: int) -> None:
        super().__init__()
        bound = hidden**-0.5
        self.given = Linear(generators, inputs, 2 * 4 * hidden, bound)
        self.weight_R2HG = per_run(generators, uniform(2, hidden, 4 * hidden, bound=bound))
        self.bias_R2G = per_run(generators, uniform(2, 4 * hidden, bound=bound))

    def forward(self, x_RBTI: Tensor) -> Tensor:
        R, B, T, _ = x_RBTI.shape
        given = self.given(x_RBTI).view(R, B, T, 2, -1)
        both = torch.stack([given[:, :, :, 0], given[:, :, :, 1].flip(2)], 1)  # [R, 2, B, T, 4H]
        both = (both + self.bias_R2G[:, :, None, None]).flatten(0, 1)
        weight = self.weight_R2HG.flatten(0, 1)
        h = c = x_RBTI.new_zeros(2 * R, B, weight.shape[1])
        states = []
        for own in both.unbind(2):  # slices would give a gradient of all frames each
            gates = torch.baddbmm(own, h, weight).to(c.dtype)
            i, f, g, o = gates.chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            states.append(h)
        forward, backward = torch.stack(states, 2).view(R, 2, B, T, -1).unbind(1)
        return torch.cat([forward, backward.flip(2)], -1)


class LSTMHead(Network):
    """A linear layer on the states of every frame; the video's logits are their mean."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec)
        self.lstm = BiLSTM(spec.generators, spec.size, spec.head)
        self.classifier = Linear(spec.generators, 2 * spec.head.width(spec.size), spec.classes)

    def _predict(self, x_RBTD: Tensor) -> Output:
        frame_logits_RBTK = self.classifier(self.lstm(x_RBTD)).to(x_RBTD.dtype)
        return Output(frame_logits_RBTK.mean(2), frame_logits_RBTK)
