"""A generated graph with hubs, whose labels show in its edges and, faintly, in its features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.utils import coalesce, remove_self_loops, to_undirected


@dataclass(frozen=True, kw_only=True)
class GraphSpec:
    """The size and the probabilities of the graph that :func:`make_graph` generates.

    Attributes:
        num_nodes: Number of nodes.
        num_classes: Number of classes, all of about the same size.
        num_words: Number of features, which are word counts over their sum.
        mean_degree: Edges drawn per node, in either direction; a few coincide and count once.
        exponent: Tail exponent of the degrees: the share of nodes with more than d neighbors falls like
            ``d ** -exponent``. Citation and social networks have 1 to 2.
        homophily: Share of edges drawn within a class; the others are drawn without regard to class.
        words_per_node: Length of each node's text.
        on_topic: Share of a text's words drawn from its class's vocabulary; the others are any words.
        num_train: Training nodes per class.
        num_val: Validation nodes per class. All other nodes are test nodes.
    """

    num_nodes: int = 2500
    num_classes: int = 6
    num_words: int = 120
    mean_degree: float = 6.0
    exponent: float = 1.5
    homophily: float = 0.75
    words_per_node: int = 12
    on_topic: float = 0.3
    num_train: int = 30
    num_val: int = 50


def make_graph(seed: int = 0, spec: GraphSpec | None = None) -> Data:
    """Generates a graph with hubs, whose labels show in its edges and, faintly, in its features.

    A degree-corrected stochastic block model (Karrer and Newman, 2011): the ends of an edge are drawn in
    proportion to the nodes' weights, which are Pareto distributed. Features are a text's word frequencies.

    Args:
        seed: Seed of the graph; the global random state is left alone.
        spec: Sizes and probabilities; ``None``: the defaults.

    Returns:
        ``x`` float ``[num_nodes, num_words]``, rows summing to 1; ``edge_index`` ``[2, num_edges]``,
        undirected, without self-loops; ``y`` ``[num_nodes]``; ``train_mask``, ``val_mask`` and ``test_mask``
        bool ``[num_nodes]``.

    Example:
        >>> data = make_graph(seed=0)
        >>> data.x.shape, int(data.train_mask.sum())
        (torch.Size([2500, 120]), 180)
    """
    spec = spec or GraphSpec()
    rng = torch.Generator().manual_seed(seed)
    n, k = spec.num_nodes, spec.num_classes
    y = torch.arange(n) % k
    return Data(x=_texts(y, spec, rng), edge_index=_edges(y, spec, rng), y=y, **_split(y, spec, rng))


def _edges(y: Tensor, spec: GraphSpec, rng: torch.Generator) -> Tensor:
    """Draws undirected edges; no node is drawn more often than every 20th time, so that none is linked to all."""
    n = y.numel()
    weight = (1 - torch.rand(n, generator=rng)).pow(-1 / spec.exponent)
    weight = weight.clamp(max=0.05 * float(weight.sum()))
    source = torch.multinomial(weight, round(n * spec.mean_degree / 2), replacement=True, generator=rng)
    target = torch.multinomial(weight, source.numel(), replacement=True, generator=rng)
    within = torch.rand(source.numel(), generator=rng) < spec.homophily
    for label in range(spec.num_classes):
        here = within & (y[source] == label)
        own = weight * (y == label)
        target[here] = torch.multinomial(own, int(here.sum()), replacement=True, generator=rng)
    edge_index, _ = remove_self_loops(to_undirected(torch.stack([source, target]), num_nodes=n))
    return coalesce(edge_index, num_nodes=n)


def _texts(y: Tensor, spec: GraphSpec, rng: torch.Generator) -> Tensor:
    """Draws word frequencies; word w belongs to the vocabulary of class ``w % num_classes``."""
    shape = (y.numel(), spec.words_per_node)
    any_word = torch.randint(spec.num_words, shape, generator=rng)
    own_word = torch.randint(spec.num_words // spec.num_classes, shape, generator=rng)
    own_word = own_word * spec.num_classes + y[:, None]
    word = torch.where(torch.rand(shape, generator=rng) < spec.on_topic, own_word, any_word)
    counts = torch.zeros(y.numel(), spec.num_words).scatter_add_(1, word, torch.ones(shape))
    return counts / spec.words_per_node


def _split(y: Tensor, spec: GraphSpec, rng: torch.Generator) -> dict[str, Tensor]:
    masks = {name: torch.zeros_like(y, dtype=torch.bool) for name in ("train_mask", "val_mask", "test_mask")}
    for label in range(spec.num_classes):
        nodes = (y == label).nonzero().flatten()
        nodes = nodes[torch.randperm(nodes.numel(), generator=rng)]
        ends = (spec.num_train, spec.num_train + spec.num_val)
        for mask, part in zip(masks.values(), nodes.tensor_split(ends), strict=True):
            mask[part] = True
    return masks
