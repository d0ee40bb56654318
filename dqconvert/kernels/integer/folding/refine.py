"""Color refinement: nodes of one color have the same value, whatever a layer computes.

The Weisfeiler-Leman test in one dimension: behind each layer those nodes share a color that shared one before and
received as many messages of each color. No layer that passes messages can tell them apart.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dqconvert.kernels._operator import Operator
from dqconvert.kernels._takes import Takes
from dqconvert.kernels.cpu.arrays import array
from dqconvert.kernels.cpu.integer import colors as loops
from dqconvert.kernels.cpu.threads import balanced, run


def plain_refine_colors(colors: Tensor, sent: Tensor, ptr: Tensor, senders: Tensor) -> Tensor:
    """Defines what every implementation is held to; the arguments are those of :func:`refine_colors`."""
    known: dict[tuple[int, ...], int] = {}
    received = sent[senders.long()]
    found = []
    for i, own in enumerate(colors.tolist()):
        messages = sorted(received[ptr[i] : ptr[i + 1]].tolist())
        found.append(known.setdefault((own, *messages), i))
    return torch.tensor(found, dtype=torch.int32, device=colors.device)


def _refine_on_cpu(colors: Tensor, sent: Tensor, ptr: Tensor, senders: Tensor) -> Tensor:
    args = tuple(map(array, (colors, sent, ptr, senders)))
    nodes, cuts = len(args[0]), balanced(args[2], 4)
    hashes, found = np.empty(nodes, np.uint64), torch.empty(nodes, dtype=torch.int32)
    run(lambda _, start, stop: loops.hash_messages(*args, hashes, start, stop), cuts)
    loops.match_hashes(hashes, loops.hash_table(nodes), array(found))
    if not all(run(lambda _, start, stop: loops.have_messages(*args, array(found), start, stop), cuts)):
        loops.match_messages(*args, hashes, loops.hash_table(nodes), array(found))  # two that differ have one hash
    return found


refine_colors_operator = Operator(
    "refine_colors",
    plain_refine_colors,
    fake=lambda colors, sent, ptr, senders: torch.empty_like(colors),
    cpu=_refine_on_cpu,
    takes=Takes(
        "refine_colors",
        colors="int32 [nodes]",
        sent="int32 [rows]",
        ptr="int64 [nodes + 1]",
        senders="index [edges]",
        orders=(("ptr", "senders", "rows"),),
    ),
)


def refine_colors(colors: Tensor, sent: Tensor, ptr: Tensor, senders: Tensor) -> Tensor:
    """Returns for each node the first one of its color that receives as many messages of each color.

    Args:
        colors: int32 `[num_nodes]`, of the nodes.
        sent: int32 `[num_senders]`, the color of what each node sends: mostly its own.
        ptr, senders: See :func:`dqconvert.kernels.integer.propagate.integer_propagate`.

    Returns:
        int32 `[num_nodes]`.

    Example:
        >>> colors = torch.zeros(4, dtype=torch.int32)
        >>> ptr, senders = torch.tensor([0, 3, 4, 5, 6]), torch.tensor([1, 2, 3, 0, 0, 0])
        >>> refine_colors(colors, colors, ptr, senders)
        tensor([0, 1, 1, 1], dtype=torch.int32)
    """
    return refine_colors_operator(colors, sent, ptr, senders)
