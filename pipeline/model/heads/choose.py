"""``head.kind`` -> the network of R runs."""

from pipeline.model.heads.aen import AEN
from pipeline.model.heads.cliper import CLIPER
from pipeline.model.heads.dpcnet import DPCNet
from pipeline.model.heads.encoder import DFERCLIP, EmoCLIP, TransformerHead
from pipeline.model.heads.grace import GRACE
from pipeline.model.heads.logo_former import LOGOFormer
from pipeline.model.heads.m3dfel import M3DFEL
from pipeline.model.heads.mlp import MeanLinear, MeanMLP
from pipeline.model.heads.nr_dfernet import NRDFERNet
from pipeline.model.heads.recurrent import LSTMHead
from pipeline.model.heads.s2d import S2D
from pipeline.model.heads.snippets import EST
from pipeline.model.heads.vadclip import VadCLIP
from pipeline.model.network import Network, NetworkSpec
from pipeline.model.tgdfer import TGDFER

NETWORKS = {
    "tgdfer": TGDFER,
    "linear": MeanLinear,
    "mlp": MeanMLP,
    "bilstm": LSTMHead,
    "transformer": TransformerHead,
    "dfer_clip": DFERCLIP,
    "emoclip": EmoCLIP,
    "cliper": CLIPER,
    "m3dfel": M3DFEL,
    "est": EST,
    "s2d": S2D,
    "vadclip": VadCLIP,
    "grace": GRACE,
    "nr_dfernet": NRDFERNet,
    "dpcnet": DPCNet,
    "aen": AEN,
    "logo_former": LOGOFormer,
}


def build_network(spec: NetworkSpec) -> Network:
    """Networks of one kind, each drawn from its own generator."""
    return NETWORKS[spec.head.kind](spec)
