"""K prompts -> one packed sequence that a causal text tower reads in a single pass.

CLIP's text tower is causal: a token's state depends only on the tokens before it, so nothing after
the end token matters and equal prefixes have equal states. The prompts become a prefix tree; every
tree node is one position of the packed sequence, keeps the position number it has in its prompt,
and attends to its ancestors and itself:

    start ctx ctx happy end            start ctx ctx happy end sad end
    start ctx ctx sad   end     ->       0    1   2    3    4   3   4    (7 positions, not 2 x 77)
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cache.errors import RefusedError


class Packing(nn.Module):
    """Layout of a packed sequence of L positions, K prompts and C context slots."""

    token_L: Tensor  # vocabulary id; 0 at context slots
    position_L: Tensor  # position number within the prompt
    mask_LL: Tensor  # additive attention mask, 0 or -inf
    end_K: Tensor  # packed position of each prompt's end token
    place_C: Tensor  # packed positions that hold context slots
    slot_C: Tensor  # context slot at each of these positions

    def __init__(self, **tensors: Tensor) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor, persistent=False)


def context_slot(index: int) -> int:
    """The placeholder for learnable context vector ``index`` among a prompt's token ids."""
    return -1 - index


def pack(prompts: Sequence[Sequence[int]], length_max: int) -> Packing:
    """Prompts, as lists of token ids and context slots -> their packing.

    Raises RefusedError for a prompt of more than ``length_max`` positions.
    """
    nodes: dict[tuple[int, int], int] = {}  # (parent node, item) -> node
    items: list[int] = []
    ancestors: list[list[int]] = []
    ends = []
    for prompt in prompts:
        if len(prompt) > length_max:
            raise RefusedError(
                f"a prompt of {len(prompt)} tokens does not fit the text tower's {length_max}; "
                "shorten its text or prompts.context_length"
            )
        node = -1
        for item in prompt:
            parent, key = node, (node, item)
            node = nodes.setdefault(key, len(items))
            if node == len(items):
                items.append(item)
                ancestors.append([*(ancestors[parent] if parent >= 0 else []), node])
        ends.append(node)
    return _tensors(items, ancestors, ends)


def _tensors(items: list[int], ancestors: list[list[int]], ends: list[int]) -> Packing:
    mask_LL = torch.full((len(items), len(items)), float("-inf"))
    for node, seen in enumerate(ancestors):
        mask_LL[node, seen] = 0.0
    item_L = torch.tensor(items)
    place_C = (item_L < 0).nonzero()[:, 0]
    return Packing(
        token_L=item_L.clamp(min=0),
        position_L=torch.tensor([len(seen) - 1 for seen in ancestors]),
        mask_LL=mask_LL,
        end_K=torch.tensor(ends),
        slot_C=-1 - item_L[place_C],
        place_C=place_C,
    )
