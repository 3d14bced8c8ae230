"""K prompts -> one sequence that a text tower reads in a single pass.

CLIP's text tower is causal: a token's state depends only on the tokens before it, so nothing after
the end token matters and equal prefixes have equal states. The prompts become a prefix tree; every
tree node is one position of the packed sequence, keeps the position number it has in its prompt,
and attends to its ancestors and itself:

    start ctx ctx happy end            start ctx ctx happy end sad end
    start ctx ctx sad   end     ->       0    1   2    3    4   3   4    (7 positions, not 2 x 77)

Other towers see what follows, or read the feature elsewhere. For them every prompt is padded to the
tower's full length, as the tower itself does it, and sees nothing of the other prompts.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cache.errors import RefusedError

PADDING = 0  # as CLIP's tokenizer pads


class Packing(nn.Module):
    """Layout of a sequence of L positions, K prompts and C context slots."""

    token_L: Tensor  # vocabulary id; 0 at context slots
    position_L: Tensor  # position number within the prompt
    mask_LL: Tensor  # additive attention mask, 0 or -inf
    end_K: Tensor  # position at which each prompt's feature is read
    place_C: Tensor  # positions that hold context slots
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
    _refuse_long(prompts, length_max)
    nodes: dict[tuple[int, int], int] = {}  # (parent node, item) -> node
    items: list[int] = []
    ancestors: list[list[int]] = []
    ends = []
    for prompt in prompts:
        node = -1
        for item in prompt:
            parent, key = node, (node, item)
            node = nodes.setdefault(key, len(items))
            if node == len(items):
                items.append(item)
                ancestors.append([*(ancestors[parent] if parent >= 0 else []), node])
        ends.append(node)
    mask_LL = torch.full((len(items), len(items)), float("-inf"))
    for node, seen in enumerate(ancestors):
        mask_LL[node, seen] = 0.0
    return _packing(items, [len(seen) - 1 for seen in ancestors], mask_LL, ends)


def pad(prompts: Sequence[Sequence[int]], mask_NN: Tensor, reads_last: bool) -> Packing:
    """Prompts one after the other, each padded to N positions and seeing itself through ``mask``.

    Its feature is read at its end token, or at its last position. Errors as in ``pack``.
    """
    length = len(mask_NN)
    _refuse_long(prompts, length)
    return _packing(
        [item for prompt in prompts for item in (*prompt, *[PADDING] * (length - len(prompt)))],
        [*range(length)] * len(prompts),
        _apart(mask_NN, len(prompts)),
        [n * length + (length if reads_last else len(own)) - 1 for n, own in enumerate(prompts)],
    )


def _apart(mask_NN: Tensor, count: int) -> Tensor:
    """The mask of ``count`` sequences of N positions that do not see each other."""
    same_KK = torch.eye(count, dtype=torch.bool)
    mask_KNKN = torch.where(same_KK[:, None, :, None], mask_NN[:, None], float("-inf"))
    return mask_KNKN.flatten(2).flatten(0, 1)


def _refuse_long(prompts: Sequence[Sequence[int]], length_max: int) -> None:
    longest = max(map(len, prompts))
    if longest > length_max:
        raise RefusedError(
            f"a prompt of {longest} tokens does not fit the text tower's {length_max}; "
            "shorten its text or prompts.context_length"
        )


def _packing(
    items: Sequence[int], positions: Sequence[int], mask_LL: Tensor, ends: Sequence[int]
) -> Packing:
    item_L = torch.tensor(items)
    place_C = (item_L < 0).nonzero()[:, 0]
    return Packing(
        token_L=item_L.clamp(min=0),
        position_L=torch.tensor(positions),
        mask_LL=mask_LL,
        end_K=torch.tensor(ends),
        slot_C=-1 - item_L[place_C],
        place_C=place_C,
    )
