"""Packed prompts against open_clip's own text path over all 77 positions."""

from typing import Literal

import open_clip
import pytest
import torch
from open_clip.transformer import text_global_pool

from cache.errors import RefusedError
from pipeline.config import PromptConfig
from pipeline.datasets.texts import class_texts
from pipeline.model.packing import context_slot, pack
from pipeline.model.prompts import Prompts
from pipeline.model.text_tower import TextTower, load_text_tower
from support.commands import python
from support.stores import CLASSES, text_config, text_weights


def test_prompts_with_a_common_start_share_its_positions() -> None:
    c = [context_slot(0), context_slot(1)]
    packing = pack([[1, *c, 7, 9], [1, *c, 8, 9]], 77)
    assert packing.token_L.tolist() == [1, 0, 0, 7, 9, 8, 9]
    assert packing.position_L.tolist() == [0, 1, 2, 3, 4, 3, 4]
    assert packing.end_K.tolist() == [4, 6]
    assert packing.place_C.tolist() == [1, 2]
    assert packing.slot_C.tolist() == [0, 1]
    seen = (packing.mask_LL == 0).int().tolist()
    assert seen[4] == [1, 1, 1, 1, 1, 0, 0]
    assert seen[6] == [1, 1, 1, 0, 0, 1, 1]


def test_seven_class_prompts_with_a_shared_context_of_16_need_39_positions() -> None:
    context = [context_slot(m) for m in range(16)]
    prompts = [[0, *context, *range(100 + 10 * k, 102 + 10 * k), 5] for k in range(7)]
    packing = pack(prompts, 77)
    assert len(packing.token_L) == 1 + 16 + 7 * 3


def test_prompt_that_does_not_fit_the_tower_is_refused() -> None:
    with pytest.raises(RefusedError, match=r"80 tokens does not fit the text tower's 77"):
        pack([list(range(80))], 77)


def full_text_features(
    model: open_clip.CLIP, context_KMW: torch.Tensor, texts: tuple[str, ...]
) -> torch.Tensor:
    """CoOp's way through open_clip: 77 embeddings a prompt, then what ``encode_text`` does."""
    M = context_KMW.shape[1]
    tokens = open_clip.tokenize([" ".join(["x"] * M) + " " + text for text in texts])
    embedded = model.token_embedding(tokens)
    embedded = torch.cat([embedded[:, :1], context_KMW, embedded[:, 1 + M :]], dim=1)
    x = embedded + model.positional_embedding
    x = model.transformer(x, attn_mask=model.attn_mask)
    x = text_global_pool(model.ln_final(x), tokens, model.text_pool_type)
    return x @ model.text_projection


Pair = tuple[open_clip.CLIP, TextTower]
TEXTS = class_texts(CLASSES[:3])


@pytest.fixture(scope="module", params=[24, pytest.param(512, marks=pytest.mark.slow)])
def pair(request: pytest.FixtureRequest) -> Pair:
    """The same text tower as a whole open_clip CLIP and as stage two loads it."""
    width = request.param
    config = text_config(width, layers=2 if width < 512 else 12)
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    clip = open_clip.CLIP(width, vision, config["text_cfg"], quick_gelu=True).eval()
    tower = load_text_tower(text_weights(config), config)
    result = clip.load_state_dict(tower.tower.state_dict(), strict=False)
    assert not result.unexpected_keys
    return clip, tower


@pytest.mark.parametrize("kind", ["class", "descriptors"])
def test_plain_texts_equal_encode_text(pair: Pair, kind: Literal["class", "descriptors"]) -> None:
    clip, tower = pair
    texts = TEXTS.of(kind)
    with torch.no_grad():
        expected = clip.encode_text(open_clip.tokenize(list(texts)))
    torch.testing.assert_close(tower.encode_texts(texts), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["class", "descriptors"])
@pytest.mark.parametrize("context", ["shared", "class_specific"])
def test_learnable_prompts_equal_the_full_path_in_outputs_and_context_gradients(
    pair: Pair, context: Literal["shared", "class_specific"], kind: Literal["class", "descriptors"]
) -> None:
    clip, tower = pair
    texts = TEXTS.of(kind)
    K, M, runs = len(texts), 5, 2
    config = PromptConfig(context_length=M, context=context)
    generators = [torch.Generator().manual_seed(seed) for seed in range(runs)]
    prompts = Prompts(generators, tower, texts, True, config)
    packed_RKD = prompts()
    direction = torch.randn(packed_RKD.shape, generator=torch.Generator().manual_seed(9))
    (packed_RKD * direction).sum().backward()
    for r in range(runs):
        assert prompts.context_RCW is not None
        learned = prompts.context_RCW.detach()[r].clone().requires_grad_()
        per_class = (
            learned.view(K, M, -1) if context == "class_specific" else learned.expand(K, -1, -1)
        )
        full_KD = full_text_features(clip, per_class, texts)
        torch.testing.assert_close(packed_RKD[r], full_KD, atol=1e-5, rtol=1e-5)
        (gradient,) = torch.autograd.grad((full_KD * direction[r]).sum(), learned)
        assert prompts.context_RCW.grad is not None
        error = (prompts.context_RCW.grad[r] - gradient).norm() / gradient.norm()
        assert error < 1e-5


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_text_is_placed_where_position_says(
    pair: Pair, position: Literal["end", "middle", "front"]
) -> None:
    _, tower = pair
    config = PromptConfig(context_length=3, position=position, context="shared")
    prompts = Prompts([torch.Generator()], tower, ["fear"], True, config)
    start, text, end = tower.tokenize("fear")
    expected = {
        "end": [start, 0, 0, 0, text, end],
        "middle": [start, 0, text, 0, 0, end],
        "front": [start, text, 0, 0, 0, end],
    }
    assert prompts.packing.token_L.tolist() == expected[position]


@pytest.mark.parametrize("learnable", [True, False])
def test_visual_token_before_the_context_equals_the_full_path(pair: Pair, learnable: bool) -> None:
    clip, tower = pair
    texts = TEXTS.of("class")
    config = PromptConfig(context_length=4)
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    prompts = Prompts(generators, tower, texts, learnable, config, visual=True)
    visual_RBKD = torch.randn(2, 3, len(texts), tower.width).requires_grad_()
    out_RBKD = prompts.with_visual(visual_RBKD)
    direction = torch.randn_like(out_RBKD)
    (gradient,) = torch.autograd.grad((out_RBKD * direction).sum(), visual_RBKD)
    for r, b in ((0, 0), (1, 2)):
        token_K1W = visual_RBKD[r, b].detach().unsqueeze(1).requires_grad_()
        inserted = token_K1W
        if learnable:
            assert prompts.context_RCW is not None
            context_KMW = prompts.context_RCW.detach()[r].view(len(texts), 4, -1)
            inserted = torch.cat([token_K1W, context_KMW], dim=1)
        full_KD = full_text_features(clip, inserted, texts)
        torch.testing.assert_close(out_RBKD[r, b], full_KD, atol=1e-5, rtol=1e-5)
        (expected,) = torch.autograd.grad((full_KD * direction[r, b]).sum(), token_K1W)
        error = (gradient[r, b] - expected[:, 0]).norm() / expected.norm()
        assert error < 1e-5


NO_ROOM = """
import resource
import numpy as np
from safetensors.numpy import save
from pipeline.device import is_out_of_memory
from pipeline.model.text_tower import load_text_tower

weights = save({"x": np.zeros(1 << 25, np.float16)})  # 128 MiB in float32
used = 1024 * int(open("/proc/self/status").read().partition("VmData:")[2].split()[0])
resource.setrlimit(resource.RLIMIT_DATA, (used + (100 << 20),) * 2)
try:
    load_text_tower(weights, {"text_cfg": {"layers": 1}})
except RuntimeError as error:
    print(is_out_of_memory(error))
"""


def test_memory_that_is_too_small_is_not_called_a_damaged_tower() -> None:
    done = python("-c", NO_ROOM)
    assert done.stdout == "True\n", done.stderr
