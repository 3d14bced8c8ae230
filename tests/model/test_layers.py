"""Layers with a run axis equal torch's own layers, run by run."""

from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.model.layers import (
    Dropout,
    LayerNorm,
    Linear,
    TransformerLayer,
    hashed,
    segment_means,
)
from support import oracle


def generators(runs: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(runs)]


@pytest.mark.parametrize("runs", [1, 3])
def test_linear_and_norm_equal_torch_for_every_run(runs: int) -> None:
    x = torch.randn(runs, 2, 5, 6)
    linear, norm = Linear(generators(runs), 6, 4), LayerNorm(generators(runs), 6)
    torch.nn.init.normal_(norm.weight_RD)
    torch.nn.init.normal_(norm.bias_RD)
    for r in range(runs):
        expected = F.linear(x[r], linear.weight_RIO[r].T, linear.bias_RO[r])
        torch.testing.assert_close(linear(x)[r], expected)
        expected = F.layer_norm(x[r], (6,), norm.weight_RD[r], norm.bias_RD[r])
        torch.testing.assert_close(norm(x)[r], expected)


def test_linear_starts_within_torch_s_bounds() -> None:
    weight = Linear(generators(1), 16, 4000).weight_RIO
    assert weight.abs().max() <= 0.25
    assert weight.abs().max() > 0.2499
    assert abs(float(weight.detach().mean())) < 0.003


@pytest.mark.parametrize(("length", "heads"), [(1, 1), (4, 2), (15, 3), (17, 1)])
def test_transformer_layer_equals_torch_s_pre_norm_encoder_layer(length: int, heads: int) -> None:
    runs, size = 2, 6
    layer = TransformerLayer(generators(runs), size, heads, mlp_ratio=2.0)
    x = torch.randn(runs, 3, length, size)
    for r in range(runs):
        torch_layer = torch.nn.TransformerEncoderLayer(
            size, heads, 2 * size, 0.0, F.gelu, batch_first=True, norm_first=True
        )
        state = {
            "self_attn.in_proj_weight": layer.qkv.weight_RIO[r].T,
            "self_attn.in_proj_bias": layer.qkv.bias_RO[r],
            "self_attn.out_proj.weight": layer.out.weight_RIO[r].T,
            "self_attn.out_proj.bias": layer.out.bias_RO[r],
            "linear1.weight": layer.up.weight_RIO[r].T,
            "linear1.bias": layer.up.bias_RO[r],
            "linear2.weight": layer.down.weight_RIO[r].T,
            "linear2.bias": layer.down.bias_RO[r],
        }
        torch_layer.load_state_dict(state, strict=False)
        torch.testing.assert_close(layer(x)[r], torch_layer(x[r]), atol=1e-5, rtol=1e-5)


def test_as_many_keys_as_frames_are_attention_to_every_frame() -> None:
    full, keyed = (TransformerLayer(generators(2), 6, 2, mlp_ratio=2.0, keys=n) for n in (0, 7))
    x = torch.randn(2, 3, 7, 6)
    torch.testing.assert_close(keyed(x), full(x))
    keyed.keys = 3
    assert (keyed(x) - full(x)).abs().max() > 1e-3


def test_segments_are_as_equal_as_whole_frames_can_be() -> None:
    x = torch.arange(7.0)[:, None]
    assert segment_means(x, 3)[:, 0].tolist() == [1, 3.5, 5.5]  # frames 0-2, 3-4, 5-6
    assert segment_means(x, 1)[:, 0].tolist() == [3]


def test_dropout_zeroes_its_share_by_hashes_of_key_site_and_place() -> None:
    def hashed_in_plain_integers(key: int, site: int, place: int) -> float:
        x = (place * 0x9E3779B1 + (key ^ (site * 0x85EBCA77 % 2**32))) % 2**32
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            x = ((x ^ (x >> shift)) * factor) % 2**32
        return (x ^ (x >> 16)) / 2**32

    shares = [0.3, 0.6]  # of two runs
    drop, x = Dropout(shares), torch.randn(2, 5, 7, 11, dtype=torch.float64)
    drop.site = 3
    assert torch.equal(drop(x), x)  # in evaluation
    keys = [4_000_000_000, 17]
    drop.keys_R = torch.tensor(keys)
    out = drop(x)
    for r, (key, share) in enumerate(zip(keys, shares, strict=True)):
        flat = x[r].flatten().tolist()
        numbers = [hashed_in_plain_integers(key, 3, place) for place in range(len(flat))]
        pairs = zip(flat, numbers, strict=True)
        kept = [v / (1 - share) if number >= share else 0.0 for v, number in pairs]
        torch.testing.assert_close(out[r].flatten(), torch.tensor(kept, dtype=torch.float64))


def test_dropped_shares_are_independent_of_key_site_and_neighbour() -> None:
    def dropped(key: int, site: int) -> torch.Tensor:
        return hashed(torch.tensor([key]), site, 100_000)[0] < 0.3

    one = dropped(5, 0)
    for other in (dropped(6, 0), dropped(5, 1), one.roll(1), one.roll(64)):
        assert float(other.double().mean()) == pytest.approx(0.3, abs=0.01)
        assert float((one & other).double().mean()) == pytest.approx(0.09, abs=0.006)


def test_gradients_flow_through_what_was_kept() -> None:
    drop, x = Dropout([0.5]), torch.ones(1, 2, 3, 4, requires_grad=True)
    drop.keys_R = torch.tensor([1])
    out = drop(x)
    out.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, out.detach())  # twice what is kept, nothing of what is not


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_layer_drops_from_the_outputs_of_attention_and_mlp(norm: Literal["pre", "post"]) -> None:
    layer = TransformerLayer(generators(2), 6, 2, 2.0, norm, [0.3, 0.6]).double()
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    kept = []
    for site, drop in enumerate((layer.drop_attention, layer.drop_mlp)):
        drop.site, drop.keys_R = site, torch.tensor([7, 4_000_000_000])
        kept.append(drop(torch.ones_like(x)).numpy())
    assert 0.4 < (kept[0] == 0).mean() < 0.55
    out = layer(x).detach()
    for r in range(2):
        weights = {name: p.detach()[r].numpy() for name, p in layer.named_parameters()}
        for s in range(3):
            own = tuple(mask[r, s] for mask in kept)
            expected = oracle.encoder_layer(x[r, s].numpy(), weights, 2, norm, kept=own)
            np.testing.assert_allclose(out[r, s], expected, atol=1e-9)
