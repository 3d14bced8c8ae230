"""What all networks on frame features have: input, texts, dropout, output."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Generator, Tensor, nn

from cache.errors import RefusedError
from cache.store import NO_TEXTS
from pipeline.config import HeadConfig, MethodConfig, PromptConfig
from pipeline.datasets.texts import ClassTexts
from pipeline.model.layers import Dropout, Linear
from pipeline.model.prompts import Prompts
from pipeline.model.scaling import InputScale
from pipeline.model.text_tower import NoTexts, TextTower


@dataclass(frozen=True)
class Output:
    """A network's output for B videos in R runs."""

    logits_RBK: Tensor  # bag logits; softmax over K is the prediction (eq. 11)
    frame_logits_RBTK: Tensor  # the influence of a frame; TG-DFER's are cos(X^I_t, label_k) / tau
    attention_RBTK: Tensor | None = None  # frame weights of the visual prompts, if any
    penalty_RB: Tensor | None = None  # what training adds to each video's loss, if anything


@dataclass(frozen=True)
class NetworkSpec:
    """What the networks of R runs are built from."""

    generators: Sequence[Generator]  # one per run
    tower: TextTower | NoTexts  # frozen
    texts: ClassTexts
    frames: int  # T of the features, of which input.frames may choose some
    methods: Sequence[MethodConfig]  # one per run; of one kind

    @property
    def text_tower(self) -> TextTower:
        """The tower, for networks that read texts; raises RefusedError if there is none."""
        if isinstance(self.tower, NoTexts):
            raise RefusedError(f"head.kind={self.head.kind} without a text tower: {NO_TEXTS}")
        return self.tower

    @property
    def size(self) -> int:
        """D of a frame's features."""
        return self.tower.features

    @property
    def classes(self) -> int:
        """K."""
        return len(self.texts.classes)

    @property
    def method(self) -> MethodConfig:
        """What all runs share, among other settings."""
        return self.methods[0]

    @property
    def head(self) -> HeadConfig:
        """The same for all runs."""
        return self.method.head

    @property
    def dropout(self) -> list[float]:
        """The head's, of each run."""
        return [self.head.dropout] * len(self.methods)


class Network(nn.Module):
    """R stacked networks of one kind, whose parameters have a leading run axis.

    ``frames`` and ``size`` are those of the features. A frozen text tower may be part of the
    module, but is never trained.
    """

    chosen_T: Tensor
    is_learning = False  # in a step of training

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.frames, self.size = spec.frames, spec.size
        chosen = spec.method.input.chosen(spec.frames)
        self.register_buffer("chosen_T", torch.tensor(chosen), persistent=False)
        self.input = InputScale(len(spec.methods), spec.size, spec.method.input.scale)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.chosen_T.device

    def choose(self, features_RBTD: Tensor) -> Tensor:
        """Those of the features' frames that the network uses."""
        if len(self.chosen_T) == self.frames:
            return features_RBTD
        return features_RBTD.index_select(2, self.chosen_T)

    @contextmanager
    def dropping(self, keys_R: Tensor) -> Iterator[None]:
        """Within the context, a step of training, dropout is applied, by a key of each run."""
        self.is_learning = True
        for module in self._dropouts:
            module.keys_R = keys_R
        yield
        self.is_learning = False
        for module in self._dropouts:
            module.keys_R = None

    def prompts(self) -> dict[str, Prompts]:
        """The class texts that it reads, by their names in it."""
        return {name: own for name, own in self.named_children() if isinstance(own, Prompts)}

    def kept(self) -> dict[str, Tensor]:
        """What tells a run's network from another's, with the run axis.

        The trained parameters, the statistics of the input, and where orthogonal texts began.
        """
        learned = {name: p for name, p in self.named_parameters() if p.requires_grad}
        fixed = {f"input.{name}": b for name, b in self.input.named_buffers()}
        offsets = {f"{name}.offset_RKD": own.offset_RKD for name, own in self.prompts().items()}
        return learned | fixed | {name: b for name, b in offsets.items() if b is not None}

    def forward(self, features_RBTD: Tensor) -> Output:
        """Features as the image encoder gives them (not normalised) -> Output."""
        return self._predict(self.input(self.choose(features_RBTD)))

    def _predict(self, x_RBTD: Tensor) -> Output:
        """Scaled features of the chosen frames -> Output."""
        raise NotImplementedError

    @cached_property
    def _dropouts(self) -> list[Dropout]:
        """All of them, each with its number as its site."""
        found = [module for module in self.modules() if isinstance(module, Dropout)]
        for site, module in enumerate(found):
            module.site = site
        return found


class TextNetwork(Network):
    """A network whose logits are cosines of frames and texts, divided by tau.

    Frames of another encoder than the texts' are first projected to the texts' D. The runs may
    differ in tau and in whether texts are centred.
    """

    temperature_R: Tensor

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec)
        self.project = projection(spec)
        taus = [method.label.temperature for method in spec.methods]
        temperature_R = torch.tensor(taus, dtype=torch.float64)
        self.register_buffer("temperature_R", temperature_R, persistent=False)


def prompts_of(
    spec: NetworkSpec, texts: Sequence[str], config: PromptConfig | None = None
) -> Prompts:
    """The prompts of these texts, as the runs or ``config`` want them."""
    config = config or spec.method.prompts
    tower = spec.text_tower
    if config.tower == "random":
        tower = tower.redrawn()
    centre = [method.input.centre_text for method in spec.methods]
    return Prompts(spec.generators, tower, texts, config.fine_learnable, config, centre=centre)


def projection(spec: NetworkSpec) -> Linear | None:
    """What brings frames of another encoder than the text tower's own to the texts' D: x W + b."""
    tower = spec.text_tower
    return None if tower.is_own else Linear(spec.generators, tower.features, tower.size)


def projected(project: Linear | None, x_RBTD: Tensor) -> Tensor:
    """Features of frames in the space of the texts."""
    return x_RBTD if project is None else project(x_RBTD).to(x_RBTD.dtype)
