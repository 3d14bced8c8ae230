"""Frame features -> transformer with a class token -> logits, as in three publications.

They are Former-DFER, DFER-CLIP and EmoCLIP.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from pipeline.config import ATTENTION_HEADS, HeadConfig
from pipeline.kernels.head import frame_logits
from pipeline.model.layers import Dropout, LayerNorm, Linear, Product, attend, normal, per_run
from pipeline.model.network import (
    Network,
    NetworkSpec,
    Output,
    TextNetwork,
    projected,
    prompts_of,
)


class ClassTokenEncoder(nn.Module):
    """Frames [R, B, T, D] -> class token and frames [R, B, 1 + T, D], as all of them have it.

    Class token and positions are drawn from N(0, 1); there is no norm after the last layer. What
    is ``added_RBD`` to the class token may differ from video to video.
    """

    def __init__(
        self, generators: Sequence[Generator], frames: int, size: int, head: HeadConfig
    ) -> None:
        super().__init__()
        self.token_RD = per_run(generators, normal(size, std=1))
        self.positions_RLD = per_run(generators, normal(1 + frames, size, std=1))
        layers = (_Layer(generators, size, head) for _ in range(head.depth))
        self.layers = nn.Sequential(*layers)

    def forward(self, x_RBTD: Tensor, added_RBD: Tensor | None = None) -> Tensor:
        token = self.token_RD[:, None, None].expand(-1, x_RBTD.shape[1], -1, -1)
        if added_RBD is not None:
            token = token + added_RBD[:, :, None]
        tokens = torch.cat([token, x_RBTD], 2) + self.positions_RLD[:, None]
        encoded: Tensor = self.layers(tokens)
        return encoded.to(x_RBTD.dtype)


class _Layer(nn.Module):
    """x + Attention(LN(x)), then x + MLP(LN(x)), with 8 heads.

    Queries, keys and values have no biases; GELU is approximated by its tanh.
    """

    def __init__(self, generators: Sequence[Generator], size: int, head: HeadConfig) -> None:
        super().__init__()
        hidden, shares = head.width(size), [head.dropout] * len(generators)
        self.heads = ATTENTION_HEADS[head.kind]
        self.norm_attention = LayerNorm(generators, size)
        self.qkv = Product(generators, size, 3 * size)
        self.out = Linear(generators, size, size)
        self.norm_mlp = LayerNorm(generators, size)
        self.up = Linear(generators, size, hidden)
        self.down = Linear(generators, hidden, size)
        self.drop_attention, self.drop_mlp = Dropout(shares), Dropout(shares)

    def forward(self, x: Tensor) -> Tensor:
        mixed = attend(self.qkv(self.norm_attention(x)), self.heads)
        x = x + self.drop_attention(self.out(mixed))
        hidden = F.gelu(self.up(self.norm_mlp(x)), approximate="tanh")
        encoded: Tensor = x + self.drop_mlp(self.down(hidden))
        return encoded


class TransformerHead(Network):
    """A linear layer on the class token, as in Former-DFER; a frame's logits are its on the frame.

    Training looks at the class token alone.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec)
        used = len(self.chosen_T)
        self.encoder = ClassTokenEncoder(spec.generators, used, spec.size, spec.head)
        self.classifier = Linear(spec.generators, spec.size, spec.classes)

    def _predict(self, x_RBTD: Tensor) -> Output:
        logits = self.classifier(self.encoder(x_RBTD)).to(x_RBTD.dtype)
        return Output(logits[:, :, 0], logits[:, :, 1:])


class DFERCLIP(TextNetwork):
    """cos(class token, text_k) / tau, as in DFER-CLIP; a frame's logits are its with the frame.

    The texts are the prompts' fine ones, DFER-CLIP's own being learnable descriptors. Training
    looks at the class token alone.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec)
        used = len(self.chosen_T)
        self.encoder = ClassTokenEncoder(spec.generators, used, spec.text_tower.size, spec.head)
        self.fine = prompts_of(spec, spec.texts.of(spec.method.prompts.fine_text))

    def _predict(self, x_RBTD: Tensor) -> Output:
        tokens = self.encoder(projected(self.project, x_RBTD))
        texts_RKD = self.fine().expand(len(tokens), -1, -1)
        logits = frame_logits(tokens, texts_RKD[:, None], self.temperature_R)
        return Output(logits[:, :, 0], logits[:, :, 1:])


class EmoCLIP(DFERCLIP):
    """exp(s) cos(class token, text_k), as in EmoCLIP: s is learned and begins as -log tau.

    A frame's logits are cosines divided by tau, as in DFER-CLIP.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec)
        self.scale_R = nn.Parameter(-self.temperature_R.log().float())

    def _predict(self, x_RBTD: Tensor) -> Output:
        out = super()._predict(x_RBTD)
        factor_R = (self.scale_R.exp() * self.temperature_R).to(x_RBTD.dtype)
        return Output(factor_R[:, None, None] * out.logits_RBK, out.frame_logits_RBTK)
