"""``head.kind`` -> the network of R runs."""

from collections.abc import Sequence

from torch import Generator

from pipeline.config import MethodConfig
from pipeline.datasets.texts import ClassTexts
from pipeline.model.heads.encoder import DFERCLIP, TransformerHead
from pipeline.model.heads.m3dfel import M3DFEL
from pipeline.model.heads.mlp import MeanMLP
from pipeline.model.heads.recurrent import LSTMHead
from pipeline.model.heads.snippets import EST
from pipeline.model.network import Network
from pipeline.model.text_tower import TextTower
from pipeline.model.tgdfer import TGDFER

NETWORKS = {
    "tgdfer": TGDFER,
    "mlp": MeanMLP,
    "bilstm": LSTMHead,
    "transformer": TransformerHead,
    "dfer_clip": DFERCLIP,
    "m3dfel": M3DFEL,
    "est": EST,
}


def build_network(
    generators: Sequence[Generator],
    tower: TextTower,
    texts: ClassTexts,
    frames: int,
    methods: Sequence[MethodConfig],
) -> Network:
    """Networks of one kind on T frames, each drawn from its own generator."""
    return NETWORKS[methods[0].head.kind](generators, tower, texts, frames, methods)
