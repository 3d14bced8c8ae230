"""Layers with a run axis equal torch's own layers, run by run."""

import pytest
import torch
import torch.nn.functional as F

from pipeline.model.layers import LayerNorm, Linear, TransformerLayer


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
