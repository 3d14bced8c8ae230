"""Frame features -> instances -> BiLSTM -> gated by attention -> logits: the head of M3DFEL."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.config import ATTENTION_HEADS
from pipeline.model.heads.recurrent import BiLSTM
from pipeline.model.layers import Linear, Product, attend, per_run, uniform
from pipeline.model.network import Network, NetworkSpec, Output

TAPS = 3  # of the convolution over features that joins the instances
EPS = 1e-5


class MultiInstanceNorm(nn.Module):
    """M3DFEL's dynamic multi-instance normalisation (DMIN) of N instances, [R, B, N, E].

    (x - m) / sqrt(v + eps), scaled and shifted per feature. m and v are mixtures, by two learned
    softmax weights each, of mean and variance of a feature over the instances and of those of the
    whole bag; the first variance is divided by N - 1.
    """

    def __init__(self, runs: int, size: int) -> None:
        super().__init__()
        self.mean_R2 = nn.Parameter(torch.ones(runs, 2))
        self.variance_R2 = nn.Parameter(torch.ones(runs, 2))
        self.weight_RE = nn.Parameter(torch.ones(runs, size))
        self.bias_RE = nn.Parameter(torch.zeros(runs, size))

    def forward(self, x_RBNE: Tensor) -> Tensor:
        mean, variance = x_RBNE.mean(2, keepdim=True), x_RBNE.var(2, keepdim=True)
        bag_mean = mean.mean(3, keepdim=True)
        bag_variance = (variance + mean**2).mean(3, keepdim=True) - bag_mean**2
        mean = _mixed(self.mean_R2, mean, bag_mean)
        variance = _mixed(self.variance_R2, variance, bag_variance)
        normed = (x_RBNE - mean) / (variance + EPS).sqrt()
        return normed * self.weight_RE[:, None, None] + self.bias_RE[:, None, None]


def _mixed(weight_R2: Tensor, instance: Tensor, bag: Tensor) -> Tensor:
    own, whole = weight_R2.softmax(1)[:, :, None, None, None].unbind(1)
    return own * instance + whole * bag


class M3DFEL(Network):
    """Instances are means of neighbouring frames, in place of the features of a 3-D network.

    Their BiLSTM states are multiplied by the logistic function of their normalised self-attention,
    joined by a convolution over the features and classified. That is linear in the gated states, so
    that the logits are the mean of what each instance contributes: the logits of its frames.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec)
        generators, head = spec.generators, spec.head
        states = 2 * head.width(spec.size)
        self.instance, count = head.instance, len(self.chosen_T) // head.instance
        self.lstm = BiLSTM(generators, spec.size, head)
        self.qkv = Product(generators, states, 3 * states)
        self.norm = MultiInstanceNorm(len(generators), states)
        bound = (TAPS * count) ** -0.5
        self.join_RNJ = per_run(generators, uniform(count, TAPS, bound=bound))
        self.join_bias_R = per_run(generators, uniform(bound=bound))
        self.classifier = Linear(generators, states, spec.classes)

    def _predict(self, x_RBTD: Tensor) -> Output:
        instances = x_RBTD.unflatten(2, (-1, self.instance)).mean(3)
        states_RBNE = self.lstm(instances)
        mixed = attend(self.qkv(states_RBNE), ATTENTION_HEADS["m3dfel"]).to(x_RBTD.dtype)
        logits_RBNK = self.classifier(self._joined(states_RBNE * self.norm(mixed).sigmoid()))
        logits_RBNK = logits_RBNK.to(x_RBTD.dtype)
        return Output(logits_RBNK.mean(2), logits_RBNK.repeat_interleave(self.instance, 2))

    def _joined(self, gated_RBNE: Tensor) -> Tensor:
        """What each instance adds to the convolution, times N: their mean is its output."""
        count, size = gated_RBNE.shape[2:]
        padded = F.pad(gated_RBNE, (1, 1))
        taps_RN11 = self.join_RNJ[:, None, :, :, None].unbind(3)
        parts = [tap * padded[..., j : j + size] for j, tap in enumerate(taps_RN11)]
        return count * torch.stack(parts).sum(0) + self.join_bias_R.view(-1, 1, 1, 1)
