"""Frame features, phrases of each class -> optimal transport between them -> logits: of GRACE."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.config import ATTENTION_HEADS
from pipeline.datasets.texts import padded_phrases
from pipeline.kernels.head import cosine
from pipeline.model.layers import TransformerLayer, normal, per_run
from pipeline.model.network import NetworkSpec, Output, TextNetwork, projected, prompts_of

POSITIONS_STD = 0.02
ENTROPY = 0.1  # epsilon, which the entropy of the transport is multiplied by
ITERATIONS = 5


class GRACE(TextNetwork):
    """sum_tm P_tm cos(x_t, phrase_km) / tau, P being the transport of frames to phrases of class k.

    Frames weigh a_t = softmax_t(g m_t): m_t is the distance of the features of t and of the frame
    before, divided by the mean of these, and g begins as 0. Phrases of a class weigh the same. A
    frame's logits are sum_m P_tm cos(x_t, phrase_km) / (a_t tau); their mean weighted by a is the
    prediction.
    """

    log_share_KM: Tensor

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec)
        generators, size, head = spec.generators, spec.text_tower.size, spec.head
        draw = normal(len(self.chosen_T), size, std=POSITIONS_STD)
        self.positions_RTD = per_run(generators, draw)
        self.motion_R = nn.Parameter(torch.zeros(len(generators)))
        ratio, heads = head.width(size) / size, ATTENTION_HEADS["grace"]
        self.layers = nn.Sequential(
            *(
                TransformerLayer(generators, size, heads, ratio, dropout=spec.dropout)
                for _ in range(head.depth)
            )
        )
        prompts = spec.method.prompts
        texts = spec.texts.of(prompts.fine_text)
        if prompts.texts == "permuted":  # texts of classes, not of phrases
            texts, prompts = (*texts[1:], texts[0]), prompts.model_copy(update={"texts": "real"})
        phrases, counts = padded_phrases(texts)
        self.register_buffer("log_share_KM", log_shares(counts), persistent=False)
        self.fine = prompts_of(spec, phrases, prompts)

    def _predict(self, x_RBTD: Tensor) -> Output:
        log_share_RBT = log_motion_shares(x_RBTD, self.motion_R)
        x_RBTD = projected(self.project, x_RBTD) + self.positions_RTD[:, None]
        x_RBTD = self.layers(x_RBTD).to(x_RBTD.dtype)
        cosines = cosine(x_RBTD, self.fine()[:, None])
        cosines_RBKTM = cosines.unflatten(3, self.log_share_KM.shape).transpose(2, 3)
        temperature = self.temperature_R.to(cosines.dtype)[:, None, None, None]
        shares = transported(cosines_RBKTM, log_share_RBT, self.log_share_KM.to(cosines.dtype))
        frame_logits_RBTK = (shares * cosines_RBKTM).sum(4).transpose(2, 3) / temperature
        logits_RBK = (log_share_RBT.exp()[..., None] * frame_logits_RBTK).sum(2)
        return Output(logits_RBK, frame_logits_RBTK)


def log_shares(counts: list[int]) -> Tensor:
    """log 1 / n of the first n of M phrases of a class, -inf of those that only pad, [K, M]."""
    count_K1 = torch.tensor(counts, dtype=torch.float64)[:, None]
    return ((torch.arange(max(counts)) < count_K1) / count_K1).log()


def log_motion_shares(x_RBTD: Tensor, gain_R: Tensor) -> Tensor:
    """log softmax_t(g m_t) of frames, [R, B, T]; the first one does not move."""
    moved_RBT = F.pad((x_RBTD[:, :, 1:] - x_RBTD[:, :, :-1]).norm(dim=3), (1, 0))
    motion_RBT = moved_RBT / moved_RBT.mean(2, keepdim=True).clamp(min=1e-8)
    return (gain_R[:, None, None] * motion_RBT).log_softmax(2)


def transported(cosines: Tensor, log_share_RBT: Tensor, log_share_KM: Tensor) -> Tensor:
    """Which share of every frame goes to which phrase, [R, B, K, T, M]; they sum to 1 over M.

    These are the rows, divided by their sums, of the plan that Sinkhorn's iterations reach (Cuturi
    2013) for costs 1 - cos and an entropy weighted by ENTROPY, in logarithms. The last half step
    makes the sums of the rows exact; those of the columns are about the phrases' shares.
    """
    scores = cosines / ENTROPY
    log_row = log_share_RBT[:, :, None, :, None]  # [R, B, 1, T, 1]
    log_column = log_share_KM[:, None]  # [K, 1, M]
    u = log_row
    for _ in range(ITERATIONS):
        v = log_column - (scores + u).logsumexp(3, keepdim=True)
        u = log_row - (scores + v).logsumexp(4, keepdim=True)
    return (scores + u + v - log_row).exp()
