"""Degree-Quant's stochastic protection: which nodes pass in full precision in a training step.

Tailor, Fernandez-Marques and Lane, *Degree-Quant: Quantization-Aware Training for Graph Neural Networks*,
ICLR 2021, section 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data, HeteroData
from torch_geometric.data.data import BaseData
from torch_geometric.transforms import BaseTransform

from dqconvert.errors import ConfigError, InputShapeError, InputTypeError
from dqconvert.kernels import protection_probability
from dqconvert.kernels.degree import probability_in_parts
from dqconvert.kernels.derived import Derived
from dqconvert.qconfig import Protect
from dqconvert.quant.memo import Memo, plain_integers
from dqconvert.words import kind_of


class Protection(Memo):
    """Draws, in training, the nodes of one row space that are protected in this step. It has no state that is saved.

    Probabilities are computed again only where the graph has changed.

    A node is protected with a probability between ``protect.p_min`` and ``protect.p_max`` that grows with its
    in-degree, or with a given one. Draws follow ``torch.manual_seed``. In evaluation nothing is protected and
    no random number is drawn.

    Example:
        >>> from dqconvert.qconfig import Protect
        >>> protection = Protection(Protect(p_min=0.0, p_max=1.0))
        >>> targets = torch.tensor([0, 0, 0, 1])
        >>> protection([targets], num_nodes=2)[0]  # of the highest in-degree: always protected
        tensor(True)
        >>> protection.eval()([targets], num_nodes=2) is None
        True
    """

    _share: Tensor | None = None

    def __init__(self, protect: Protect) -> None:
        super().__init__()
        self.protect = protect

    def scale(self, share: float) -> None:
        """Multiplies all probabilities by a number from now on, 0 to 1; it is not saved."""
        if self._share is not None:
            self._share.fill_(share)
        elif share != 1:
            self._share = torch.tensor(share)  # a tensor: compiled code follows it; no buffer: files leave it out

    def forward(
        self,
        targets: Sequence[Tensor],
        num_nodes: int,
        batch: Tensor | None = None,
        given: Tensor | None = None,
        device: torch.device | None = None,
    ) -> Tensor | None:
        """Draws for all nodes.

        Args:
            targets: Per edge type that reaches these nodes, the target node of every edge, int64 ``[num_edges]``.
            num_nodes: The number of nodes.
            batch: int64 ``[num_nodes]``, the graph of each node, as in-degrees compare within a graph.
            given: Floating ``[num_nodes]``, probabilities to use instead of those from in-degrees: 0 is never, 1
                always.
            device: Where to draw; ``None``: where ``targets``, ``batch`` or ``given`` are.

        Returns:
            bool ``[num_nodes]``, True where protected; ``None`` in evaluation.

        Raises:
            ConfigError: If ``given`` does not have one floating-point probability per node, from 0 to 1 (checked once
                for each tensor, and on the CPU alone: reading it elsewhere would wait for the device).
        """
        if given is not None:
            _check_given(given, num_nodes)
        if not self.training:
            return None
        if given is not None:
            if device is None:
                device = targets[0].device if targets else given.device
            probability = given.to(device)
        else:
            probability = self._probability(targets, num_nodes, batch, device)
        if self._share is not None:
            if self._share.device != probability.device:
                self._share = self._share.to(probability.device)
            probability = probability * self._share.to(probability.dtype)
        # Uniform numbers lie in [0, 1): a probability of 0 is never reached and one of 1 always.
        return torch.rand(num_nodes, dtype=torch.float32, device=probability.device) < probability

    def _probability(
        self, targets: Sequence[Tensor], num_nodes: int, batch: Tensor | None, device: torch.device | None
    ) -> Tensor:
        bounds = (self.protect.p_min, self.protect.p_max)
        tensors = [*targets, *([] if batch is None else [batch])]
        ordinary = device is None or device.type == "cpu"
        if torch.compiler.is_compiling() or not ordinary or not all(map(plain_integers, tensors)):
            return protection_probability(targets, num_nodes, *bounds, batch, device)
        many = len(targets)

        def compute(*given: Any) -> Tensor:
            batch, num_nodes, (p_min, p_max), device = given[many:]
            return protection_probability(given[:many], num_nodes, p_min, p_max, batch, device)

        return self.recall(compute, *targets, batch, num_nodes, bounds, device)

    def extra_repr(self) -> str:
        return f"p_min={self.protect.p_min}, p_max={self.protect.p_max}"


def _check_given(given: object, num_nodes: int) -> None:
    if not isinstance(given, Tensor):
        raise ConfigError(f"protect_prob must be a tensor of one probability per node, got {given!r}")
    if not given.is_floating_point():
        raise ConfigError(f"protect_prob must hold floating-point probabilities, got {given.dtype}")
    if given.shape != (num_nodes,):
        raise ConfigError(
            f"protect_prob must have one probability per node: got shape {tuple(given.shape)} for {num_nodes} nodes"
        )

    if given.device.type == "cpu" and type(given) is Tensor and torch._C._len_torch_dispatch_stack() == 0:
        _check_probabilities((given,))


def _look_at(given: Tensor) -> bool:
    """Returns True for probabilities, and raises `ConfigError` for other values."""
    if given.numel() == 0:
        return True
    low, high = (end.item() for end in given.aminmax())
    if not 0 <= low <= high <= 1:
        wrong = "NaN" if low != low else low if low < 0 else high
        raise ConfigError(f"protect_prob must hold probabilities, from 0 to 1, got {wrong}")
    return True


_check_probabilities = Derived(_look_at)


def gather_protected(mask: Tensor | None, index: Tensor) -> Tensor | None:
    """Returns the mask of protected edges: an edge is protected if the node that sends its message is.

    Args:
        mask: bool ``[num_nodes]``, or ``None`` where nothing is protected.
        index: int64 ``[num_edges]``, the sending node of each edge.

    Returns:
        bool ``[num_edges]``, or ``None``.

    Example:
        >>> gather_protected(torch.tensor([True, False]), torch.tensor([1, 0, 0]))
        tensor([False,  True,  True])
    """
    return None if mask is None else mask.index_select(0, index)


class DegreeProtection(BaseTransform):
    """A PyG transform that computes protection probabilities from the in-degrees of the whole graph.

    It sets ``protect_prob`` (float32 ``[num_nodes]``), which loaders cut along with the other node features: a
    model trained on sampled neighbourhoods, in which in-degrees are cut short, so protects by the true ones.

    In-degrees are counted on ``edge_index``, which may be a file mapped into memory, or, where that is missing, on
    ``adj_t``; on several files by :meth:`of_parts`. In a ``HeteroData`` each node
    type has its own ``protect_prob``, from in-degrees summed over the edge types that reach it. In a batch
    in-degrees compare within each graph.

    Args:
        p_min: The probability of the nodes of the lowest in-degree.
        p_max: The probability of those of the highest: ``0 <= p_min <= p_max <= 1``.

    Raises:
        ConfigError: For other bounds.

    Source:
        Tailor, Fernandez-Marques and Lane, *Degree-Quant*, ICLR 2021, section 3.

    Example:
        >>> data = Data(edge_index=torch.tensor([[0, 1, 3], [1, 2, 2]]), num_nodes=4)
        >>> [round(p, 3) for p in DegreeProtection(p_max=0.2)(data).protect_prob.tolist()]
        [0.1, 0.15, 0.2, 0.1]
    """

    def __init__(self, p_min: float = 0.0, p_max: float = 0.1) -> None:
        self.protect = Protect(p_min=p_min, p_max=p_max)

    def __call__(self, data: Any) -> Any:
        if not isinstance(data, BaseData):
            raise ConfigError(
                f"DegreeProtection takes a Data, a HeteroData or a Batch of such, got {kind_of(data)}: it is a "
                f"transform, as in Planetoid(…, transform=DegreeProtection())."
            )
        return super().__call__(data)

    def forward(self, data: Data | HeteroData) -> Data | HeteroData:
        if isinstance(data, HeteroData):
            for node_type in data.node_types:
                edges = [data[edge_type] for edge_type in data.edge_types if edge_type[2] == node_type]
                self._set(data[node_type], edges)
        else:
            self._set(data, [data])
        return data

    def of_parts(self, edges: Iterable[Any], num_nodes: int) -> Tensor:
        """Returns the probabilities of a graph whose edges come in parts: files, or partitions, one after the other.

        Of these a piece at a time is in memory, whatever is mapped into it. Set the result as ``data.protect_prob``.

        Args:
            edges: Parts of an ``edge_index``, integers ``[2, edges]`` each: tensors, or arrays as ``numpy.load(file,
                mmap_mode="r")`` returns them.
            num_nodes: Of the whole graph.

        Returns:
            float32 ``[num_nodes]``.

        Raises:
            InputIndexError: For an edge that ends at no node; it names the part and the edge, from 0.
            InputShapeError: For a part of another shape.
            InputTypeError: For a part that holds no integers.

        Example:
            >>> parts = torch.tensor([[0, 1], [1, 2]]), torch.tensor([[3], [2]])
            >>> [round(p, 3) for p in DegreeProtection(p_max=0.2).of_parts(parts, num_nodes=4).tolist()]
            [0.1, 0.15, 0.2, 0.1]
        """
        targets = (_second_row(part, number) for number, part in enumerate(edges))
        return probability_in_parts(targets, num_nodes, self.protect.p_min, self.protect.p_max)

    def _set(self, nodes: Any, edges: Sequence[Any]) -> None:
        targets = [index for store in edges if (index := _targets(store)) is not None]
        batch = nodes.batch if "batch" in nodes else None
        protect = self.protect
        nodes.protect_prob = protection_probability(targets, nodes.num_nodes, protect.p_min, protect.p_max, batch)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(p_min={self.protect.p_min}, p_max={self.protect.p_max})"


def _second_row(edges: Any, number: int) -> Any:
    if edges.ndim != 2 or edges.shape[0] != 2:
        raise InputShapeError(f"a part of an edge_index has shape [2, edges], part {number} has {list(edges.shape)}")
    if "int" not in str(edges.dtype):
        raise InputTypeError(f"a part of an edge_index holds integers, part {number} holds {edges.dtype}")
    return edges[1]


def _targets(store: Any) -> Tensor | None:
    """Returns the target node of every edge in a store; ``None`` if it has no edges."""
    if "edge_index" in store:
        return store.edge_index[1]
    if "adj_t" not in store:
        return None
    adj_t = store.adj_t  # transposed: a row is a target
    if isinstance(adj_t, Tensor):
        # Not the public indices(), which would first merge parallel edges.
        return adj_t.to_sparse_coo()._indices()[0]
    return adj_t.coo()[0]  # torch_sparse.SparseTensor
