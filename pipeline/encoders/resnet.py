"""The ResNet of a CLIP, frozen: the same features in three quarters of the time.

Each batch normalisation becomes part of the convolution before it, convolutions of single pixels
are products of matrices, the last of which adds to the residual stream, and of the attention that
ends the network only what its one used query needs is computed.
"""

from typing import cast

import torch
from open_clip.modified_resnet import AttentionPool2d, Bottleneck, ModifiedResNet
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval


class FrozenResNet(nn.Module):
    """What ``ModifiedResNet`` computes in evaluation; a copy of its weights."""

    def __init__(self, resnet: ModifiedResNet) -> None:
        super().__init__()
        pairs = [(resnet.conv1, resnet.bn1), (resnet.conv2, resnet.bn2), (resnet.conv3, resnet.bn3)]
        self.stem = nn.Sequential()
        for conv, norm in pairs:
            self.stem.extend([fuse_conv_bn_eval(conv, norm), nn.ReLU(inplace=True)])
        self.stem.append(resnet.avgpool)
        layers = (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4)
        self.blocks = nn.Sequential(*(_Block(block) for layer in layers for block in layer))
        self.pool = _Pool(resnet.attnpool)
        self.requires_grad_(False)

    def forward(self, frames_NCHW: Tensor) -> Tensor:
        """Normalised frames -> features [N, D]."""
        features_NHWC = self.blocks(self.stem(frames_NCHW).permute(0, 2, 3, 1))
        return cast(Tensor, self.pool(features_NHWC.flatten(1, 2)))


class _Block(nn.Module):
    """A bottleneck, of frames with their channels last."""

    def __init__(self, block: Bottleneck) -> None:
        super().__init__()
        self.narrow = _product(block.conv1, block.bn1)
        self.conv = fuse_conv_bn_eval(block.conv2, block.bn2)
        self.pool = block.avgpool
        self.widen = _product(block.conv3, block.bn3)
        self.skip: nn.Linear | None = None
        if block.downsample is not None:
            _, conv, norm = block.downsample
            self.skip = _product(conv, norm)
            self.skip.bias.data += self.widen.bias.data  # once for both

    def forward(self, x_NHWC: Tensor) -> Tensor:
        inner_NCHW = self.narrow(x_NHWC).relu_().permute(0, 3, 1, 2)
        inner_NCHW = self.pool(self.conv(inner_NCHW).relu_())
        if self.skip is None:
            out_NHWC = x_NHWC + self.widen.bias
        else:
            out_NHWC = self.skip(self.pool(x_NHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        rows = out_NHWC.flatten(0, 2)
        rows.addmm_(inner_NCHW.permute(0, 2, 3, 1).flatten(0, 2), self.widen.weight.t())
        return out_NHWC.relu_()


class _Pool(nn.Module):
    """The attention of the frame's mean to itself and to all places; always in float32.

    The query is projected back to the inputs, which are then averaged and projected once, so that
    no place needs a key or a value. The keys' bias adds the same to all scores of a head.
    """

    positional_embedding: Tensor
    q_proj_weight: Tensor
    q_proj_bias: Tensor
    k_proj_weight: Tensor
    v_proj_weight: Tensor
    v_proj_bias: Tensor
    c_proj_weight: Tensor
    c_proj_bias: Tensor

    def __init__(self, pool: AttentionPool2d) -> None:
        super().__init__()
        self.heads = pool.num_heads
        for name, weight in pool.state_dict().items():
            self.register_buffer(name.replace(".", "_"), weight.to(torch.float32, copy=True))

    def forward(self, x_NSC: Tensor) -> Tensor:
        with torch.autocast(x_NSC.device.type, enabled=False):
            x_NSC = x_NSC.float()
            x_NSC = torch.cat([x_NSC.mean(1, keepdim=True), x_NSC], 1) + self.positional_embedding
            query_NC = F.linear(x_NSC[:, 0], self.q_proj_weight, self.q_proj_bias)
            query_NHE = query_NC.unflatten(1, (self.heads, -1))
            asked_NHC = torch.einsum("nhe,hec->nhc", query_NHE, self._by_head(self.k_proj_weight))
            scores_NHS = asked_NHC @ x_NSC.mT / query_NHE.shape[2] ** 0.5
            mean_NHC = scores_NHS.softmax(2) @ x_NSC
            value_NHE = torch.einsum("nhc,hec->nhe", mean_NHC, self._by_head(self.v_proj_weight))
            value_NC = value_NHE.flatten(1) + self.v_proj_bias
            return F.linear(value_NC, self.c_proj_weight, self.c_proj_bias)

    def _by_head(self, weight: Tensor) -> Tensor:
        return weight.unflatten(0, (self.heads, -1))


def _product(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Linear:
    """A convolution of single pixels and its normalisation, of frames with their channels last."""
    fused = fuse_conv_bn_eval(conv, norm)
    weight = fused.weight.flatten(1)
    outputs, inputs = weight.shape
    linear = nn.Linear(inputs, outputs, device=weight.device, dtype=weight.dtype)
    linear.load_state_dict({"weight": weight, "bias": fused.bias})
    return linear
