"""The error of rounding to bfloat16 itself, whatever instructions this CPU has for it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

aten = torch.ops.aten
PRODUCTS = {
    aten.mm,
    aten.bmm,
    aten.addmm,
    aten.baddbmm,
    aten._scaled_dot_product_flash_attention_for_cpu,
    aten._scaled_dot_product_flash_attention_for_cpu_backward,
}


class ProductsAsDefined(TorchDispatchMode):
    """Products of bfloat16 numbers are summed in float32 and rounded once."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        given = (args, kwargs or {})
        tensors = [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]
        low = any(tensor.dtype == torch.bfloat16 for tensor in tensors)
        if not low or function.overloadpacket not in PRODUCTS:
            return function(*given[0], **given[1])
        args, kwargs = tree_map_only(Tensor, Tensor.float, given)
        return tree_map_only(Tensor, Tensor.bfloat16, function(*args, **kwargs))


def check_rounding(
    low: Mapping[str, Tensor], defined: Mapping[str, Tensor], whole: Mapping[str, Tensor]
) -> None:
    """``low`` is as far from ``whole``, in float32, as products rounded by definition are."""
    for name, exact in whole.items():
        error, expected = (float((kind[name] - exact).norm()) for kind in (low, defined))
        assert expected / 3 < error < 3 * expected, name
