"""Models written the way PyG's documentation and examples write them, and nothing changed for this project.

Where the original makes its edges with an extension (k nearest neighbours), they are an input here.
"""

# The code is the originals', not ours.
# ruff: noqa: RET504, B905

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import GRU, BatchNorm1d, Embedding, Linear, ModuleList, Parameter, ReLU, Sequential
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.nn import (
    APPNP,
    GAE,
    GIN,
    MLP,
    VGAE,
    AGNNConv,
    ARMAConv,
    AttentiveFP,
    BatchNorm,
    DeepGCNLayer,
    DeepGraphInfomax,
    DenseSAGEConv,
    DNAConv,
    GATConv,
    GCN2Conv,
    GCNConv,
    GENConv,
    GINConv,
    GINEConv,
    GPSConv,
    GraphConv,
    GraphUNet,
    HeteroConv,
    HGTConv,
    JumpingKnowledge,
    MessagePassing,
    NNConv,
    PNAConv,
    RGCNConv,
    SAGEConv,
    Set2Set,
    SGConv,
    SuperGATConv,
    TopKPooling,
    TransformerConv,
    dense_diff_pool,
    global_add_pool,
    global_max_pool,
    global_mean_pool,
    to_hetero,
)
from torch_geometric.nn import global_max_pool as gmp
from torch_geometric.nn import global_mean_pool as gap
from torch_geometric.utils import (
    add_self_loops,
    degree,
    dropout_edge,
    to_dense_adj,
    to_dense_batch,
    to_torch_csr_tensor,
    to_undirected,
)

FEATURES, CLASSES, NODES, RELATIONS = 10, 4, 25, 3

# -- graphs --------------------------------------------------------------------------------------------------------

SMALL, LARGE = (17, 44), (26, 81)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def integers(upper: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(upper, shape, generator=torch.Generator().manual_seed(seed))


def edges(size: tuple[int, int], seed: int = 0) -> Tensor:
    return integers(size[0], 2, size[1], seed=seed)


def graph(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    return normal(size[0], FEATURES), edges(size)


def citation(size: tuple[int, int]) -> tuple[Data]:
    x, edge_index = graph(size)
    mask = torch.arange(size[0]) % 2 == 0
    return (Data(x=x, edge_index=edge_index, y=integers(CLASSES, size[0]), train_mask=mask),)


def batch_vector(size: tuple[int, int]) -> Tensor:
    return torch.arange(size[0]) * 3 // size[0]


def graphs(size: tuple[int, int]) -> Batch:
    """Three graphs with node and edge features."""
    parts = []
    for number in range(3):
        part = (size[0] // 3 + number, size[1] // 3 + number)
        attributes = {"edge_attr": normal(part[1], 5, seed=number), "pos": normal(part[0], 3, seed=number)}
        x = normal(part[0], FEATURES, seed=number)
        parts.append(Data(x=x, edge_index=edges(part, number), y=torch.tensor([number]), **attributes))
    return Batch.from_data_list(parts)


def as_batch(size: tuple[int, int]) -> tuple[Batch]:
    return (graphs(size),)


def with_batch(size: tuple[int, int]) -> tuple[Tensor, ...]:
    data = graphs(size)
    return data.x, data.edge_index, data.batch


def atoms(size: tuple[int, int]) -> tuple[Tensor, ...]:
    """Atom and bond types, as integers."""
    data = graphs(size)
    return integers(21, data.num_nodes), data.edge_index, integers(4, data.num_edges), data.batch


# -- citation networks ---------------------------------------------------------------------------------------------


class GCN(torch.nn.Module):
    """Introduction by example."""

    def __init__(self):
        super().__init__()
        self.conv1 = GCNConv(FEATURES, 16)
        self.conv2 = GCNConv(16, CLASSES)

    def forward(self, data):
        x, edge_index = data.x, data.edge_index

        x = self.conv1(x, edge_index)
        x = F.relu(x)
        x = F.dropout(x, training=self.training)
        x = self.conv2(x, edge_index)

        return F.log_softmax(x, dim=1)


class GAT(torch.nn.Module):
    """examples/gat.py"""

    def __init__(self, in_channels, hidden_channels, out_channels, heads):
        super().__init__()
        self.conv1 = GATConv(in_channels, hidden_channels, heads, dropout=0.6)
        self.conv2 = GATConv(hidden_channels * heads, out_channels, heads=1, concat=False, dropout=0.6)

    def forward(self, x, edge_index):
        x = F.dropout(x, p=0.6, training=self.training)
        x = F.elu(self.conv1(x, edge_index))
        x = F.dropout(x, p=0.6, training=self.training)
        x = self.conv2(x, edge_index)
        return x


class SGC(torch.nn.Module):
    """examples/sgc.py"""

    def __init__(self):
        super().__init__()
        self.conv1 = SGConv(in_channels=FEATURES, out_channels=CLASSES, K=2, cached=False)

    def forward(self, data):
        x, edge_index = data.x, data.edge_index
        x = self.conv1(x, edge_index)
        return F.log_softmax(x, dim=1)


class APPNPNet(torch.nn.Module):
    """benchmark/citation/appnp.py"""

    def __init__(self):
        super().__init__()
        self.lin1 = Linear(FEATURES, 16)
        self.lin2 = Linear(16, CLASSES)
        self.prop1 = APPNP(3, 0.1)

    def reset_parameters(self):
        self.lin1.reset_parameters()
        self.lin2.reset_parameters()

    def forward(self, data):
        x, edge_index = data.x, data.edge_index
        x = F.dropout(x, p=0.5, training=self.training)
        x = F.relu(self.lin1(x))
        x = F.dropout(x, p=0.5, training=self.training)
        x = self.lin2(x)
        x = self.prop1(x, edge_index)
        return F.log_softmax(x, dim=1)


class AGNN(torch.nn.Module):
    """examples/agnn.py"""

    def __init__(self):
        super().__init__()
        self.lin1 = torch.nn.Linear(FEATURES, 16)
        self.prop1 = AGNNConv(requires_grad=False)
        self.prop2 = AGNNConv(requires_grad=True)
        self.lin2 = torch.nn.Linear(16, CLASSES)

    def forward(self, data):
        x = F.dropout(data.x, training=self.training)
        x = F.relu(self.lin1(x))
        x = self.prop1(x, data.edge_index)
        x = self.prop2(x, data.edge_index)
        x = F.dropout(x, training=self.training)
        x = self.lin2(x)
        return F.log_softmax(x, dim=1)


class ARMA(torch.nn.Module):
    """examples/arma.py"""

    def __init__(self):
        super().__init__()
        self.conv1 = ARMAConv(FEATURES, 16, num_stacks=3, num_layers=2, shared_weights=True, dropout=0.25)
        self.conv2 = ARMAConv(
            16, CLASSES, num_stacks=3, num_layers=2, shared_weights=True, dropout=0.25, act=lambda x: x
        )

    def forward(self, x, edge_index):
        x = F.dropout(x, training=self.training)
        x = F.relu(self.conv1(x, edge_index))
        x = F.dropout(x, training=self.training)
        x = self.conv2(x, edge_index)
        return F.log_softmax(x, dim=1)


class DNA(torch.nn.Module):
    """examples/dna.py"""

    def __init__(self, num_layers, heads, groups, hidden_channels=16):
        super().__init__()
        self.hidden_channels = hidden_channels
        self.lin1 = torch.nn.Linear(FEATURES, hidden_channels)
        self.convs = torch.nn.ModuleList()
        for _ in range(num_layers):
            self.convs.append(DNAConv(hidden_channels, heads, groups, dropout=0.8))
        self.lin2 = torch.nn.Linear(hidden_channels, CLASSES)

    def forward(self, x, edge_index):
        x = F.relu(self.lin1(x))
        x = F.dropout(x, p=0.5, training=self.training)
        x_all = x.view(-1, 1, self.hidden_channels)
        for conv in self.convs:
            x = F.relu(conv(x_all, edge_index))
            x = x.view(-1, 1, self.hidden_channels)
            x_all = torch.cat([x_all, x], dim=1)
        x = x_all[:, -1]
        x = F.dropout(x, p=0.5, training=self.training)
        x = self.lin2(x)
        return torch.log_softmax(x, dim=1)


class GCNII(torch.nn.Module):
    """examples/gcn2_cora.py, over a sparse adjacency"""

    def __init__(self, hidden_channels, num_layers, alpha, theta, shared_weights=True, dropout=0.0):
        super().__init__()
        self.lins = torch.nn.ModuleList()
        self.lins.append(Linear(FEATURES, hidden_channels))
        self.lins.append(Linear(hidden_channels, CLASSES))
        self.convs = torch.nn.ModuleList()
        for layer in range(num_layers):
            self.convs.append(
                GCN2Conv(hidden_channels, alpha, theta, layer + 1, shared_weights=shared_weights, normalize=False)
            )
        self.dropout = dropout

    def forward(self, x, adj_t):
        x = F.dropout(x, self.dropout, training=self.training)
        x = x_0 = self.lins[0](x).relu()
        for conv in self.convs:
            x = F.dropout(x, self.dropout, training=self.training)
            x = conv(x, x_0, adj_t)
            x = x.relu()
        x = F.dropout(x, self.dropout, training=self.training)
        x = self.lins[1](x)
        return x.log_softmax(dim=-1)


class SuperGAT(torch.nn.Module):
    """examples/super_gat.py"""

    def __init__(self):
        super().__init__()
        self.conv1 = SuperGATConv(
            FEATURES, 8, heads=2, dropout=0.6, attention_type="MX", edge_sample_ratio=0.8, is_undirected=True
        )
        self.conv2 = SuperGATConv(
            2 * 8, CLASSES, heads=2, concat=False, dropout=0.6, attention_type="MX", edge_sample_ratio=0.8,
            is_undirected=True,
        )  # fmt: skip

    def forward(self, x, edge_index):
        x = F.dropout(x, p=0.6, training=self.training)
        x = F.elu(self.conv1(x, edge_index))
        att_loss = self.conv1.get_attention_loss()
        x = F.dropout(x, p=0.6, training=self.training)
        x = self.conv2(x, edge_index)
        att_loss += self.conv2.get_attention_loss()
        return F.log_softmax(x, dim=-1), att_loss


class UNet(torch.nn.Module):
    """examples/graph_unet.py"""

    def __init__(self):
        super().__init__()
        self.unet = GraphUNet(FEATURES, 32, CLASSES, depth=3, pool_ratios=[0.8, 0.5, 0.5])

    def forward(self, data):
        edge_index, _ = dropout_edge(data.edge_index, p=0.2, force_undirected=True, training=self.training)
        x = F.dropout(data.x, p=0.92, training=self.training)
        x = self.unet(x, edge_index)
        return F.log_softmax(x, dim=1)


class DeeperGCN(torch.nn.Module):
    """examples/ogbn_proteins_deepgcn.py"""

    def __init__(self, hidden_channels, num_layers):
        super().__init__()
        self.node_encoder = Linear(FEATURES, hidden_channels)
        self.edge_encoder = Linear(5, hidden_channels)
        self.layers = torch.nn.ModuleList()
        for i in range(1, num_layers + 1):
            conv = GENConv(
                hidden_channels, hidden_channels, aggr="softmax", t=1.0, learn_t=True, num_layers=2, norm="layer"
            )
            norm = torch.nn.LayerNorm(hidden_channels, elementwise_affine=True)
            act = ReLU(inplace=True)
            layer = DeepGCNLayer(conv, norm, act, block="res+", dropout=0.1, ckpt_grad=i % 3)
            self.layers.append(layer)
        self.lin = Linear(hidden_channels, CLASSES)

    def forward(self, x, edge_index, edge_attr):
        x = self.node_encoder(x)
        edge_attr = self.edge_encoder(edge_attr)
        x = self.layers[0].conv(x, edge_index, edge_attr)
        for layer in self.layers[1:]:
            x = layer(x, edge_index, edge_attr)
        x = self.layers[0].act(self.layers[0].norm(x))
        x = F.dropout(x, p=0.1, training=self.training)
        return self.lin(x)


# -- graph classification ------------------------------------------------------------------------------------------


class GraphClassifier(torch.nn.Module):
    """Colab notebook 3: graph classification with GNNs."""

    def __init__(self, hidden_channels):
        super().__init__()
        self.conv1 = GraphConv(FEATURES, hidden_channels)
        self.conv2 = GraphConv(hidden_channels, hidden_channels)
        self.conv3 = GraphConv(hidden_channels, hidden_channels)
        self.lin = Linear(hidden_channels, CLASSES)

    def forward(self, x, edge_index, batch):
        # 1. Obtain node embeddings
        x = self.conv1(x, edge_index)
        x = x.relu()
        x = self.conv2(x, edge_index)
        x = x.relu()
        x = self.conv3(x, edge_index)

        # 2. Readout layer
        x = global_mean_pool(x, batch)  # [batch_size, hidden_channels]

        # 3. Apply a final classifier
        x = F.dropout(x, p=0.5, training=self.training)
        x = self.lin(x)
        return x


class GINClassifier(torch.nn.Module):
    """examples/mutag_gin.py"""

    def __init__(self, in_channels, hidden_channels, out_channels, num_layers):
        super().__init__()
        self.gnn = GIN(in_channels, hidden_channels, num_layers, dropout=0.05, jk="cat")
        self.classifier = MLP([hidden_channels, hidden_channels, out_channels], norm="batch_norm", dropout=0.5)

    def forward(self, x, edge_index, batch, batch_size):
        x = self.gnn(x, edge_index)
        x = global_add_pool(x, batch, size=batch_size)
        return self.classifier(x)


class TopKClassifier(torch.nn.Module):
    """examples/proteins_topk_pool.py"""

    def __init__(self):
        super().__init__()
        self.conv1 = GraphConv(FEATURES, 16)
        self.pool1 = TopKPooling(16, ratio=0.8)
        self.conv2 = GraphConv(16, 16)
        self.pool2 = TopKPooling(16, ratio=0.8)
        self.conv3 = GraphConv(16, 16)
        self.pool3 = TopKPooling(16, ratio=0.8)
        self.lin1 = torch.nn.Linear(32, 16)
        self.lin2 = torch.nn.Linear(16, 8)
        self.lin3 = torch.nn.Linear(8, CLASSES)

    def forward(self, data):
        x, edge_index, batch = data.x, data.edge_index, data.batch

        x = F.relu(self.conv1(x, edge_index))
        x, edge_index, _, batch, _, _ = self.pool1(x, edge_index, None, batch)
        x1 = torch.cat([gmp(x, batch), gap(x, batch)], dim=1)

        x = F.relu(self.conv2(x, edge_index))
        x, edge_index, _, batch, _, _ = self.pool2(x, edge_index, None, batch)
        x2 = torch.cat([gmp(x, batch), gap(x, batch)], dim=1)

        x = F.relu(self.conv3(x, edge_index))
        x, edge_index, _, batch, _, _ = self.pool3(x, edge_index, None, batch)
        x3 = torch.cat([gmp(x, batch), gap(x, batch)], dim=1)

        x = x1 + x2 + x3

        x = F.relu(self.lin1(x))
        x = F.dropout(x, p=0.5, training=self.training)
        x = F.relu(self.lin2(x))
        x = F.log_softmax(self.lin3(x), dim=-1)

        return x


class DenseGNN(torch.nn.Module):
    """A block of examples/proteins_diff_pool.py"""

    def __init__(self, in_channels, hidden_channels, out_channels, lin=True):
        super().__init__()
        self.conv1 = DenseSAGEConv(in_channels, hidden_channels)
        self.bn1 = torch.nn.BatchNorm1d(hidden_channels)
        self.conv2 = DenseSAGEConv(hidden_channels, out_channels)
        self.bn2 = torch.nn.BatchNorm1d(out_channels)
        self.lin = torch.nn.Linear(hidden_channels + out_channels, out_channels) if lin else None

    def bn(self, i, x):
        batch_size, num_nodes, num_channels = x.size()
        x = x.view(-1, num_channels)
        x = getattr(self, f"bn{i}")(x)
        x = x.view(batch_size, num_nodes, num_channels)
        return x

    def forward(self, x, adj, mask=None):
        x1 = self.bn(1, self.conv1(x, adj, mask).relu())
        x2 = self.bn(2, self.conv2(x1, adj, mask).relu())
        x = torch.cat([x1, x2], dim=-1)
        if self.lin is not None:
            x = self.lin(x).relu()
        return x


class DiffPool(torch.nn.Module):
    """examples/proteins_diff_pool.py, from sparse graphs"""

    def __init__(self):
        super().__init__()
        self.gnn1_pool = DenseGNN(FEATURES, 16, 4)
        self.gnn1_embed = DenseGNN(FEATURES, 16, 16, lin=False)
        self.gnn2_embed = DenseGNN(32, 16, 16, lin=False)
        self.lin1 = torch.nn.Linear(32, 16)
        self.lin2 = torch.nn.Linear(16, CLASSES)

    def forward(self, x, edge_index, batch):
        adj = to_dense_adj(edge_index, batch)
        x, mask = to_dense_batch(x, batch)
        s = self.gnn1_pool(x, adj, mask)
        x = self.gnn1_embed(x, adj, mask)
        x, adj, l1, e1 = dense_diff_pool(x, adj, s, mask)
        x = self.gnn2_embed(x, adj)
        x = x.mean(dim=1)
        x = self.lin1(x).relu()
        x = self.lin2(x)
        return F.log_softmax(x, dim=-1), l1, e1


class JKNet(torch.nn.Module):
    """benchmark/kernel/gin.py"""

    def __init__(self, num_layers, hidden, mode="cat"):
        super().__init__()
        self.conv1 = GINConv(
            Sequential(Linear(FEATURES, hidden), ReLU(), Linear(hidden, hidden), ReLU(), BatchNorm1d(hidden)),
            train_eps=True,
        )
        self.convs = torch.nn.ModuleList()
        for _ in range(num_layers - 1):
            self.convs.append(
                GINConv(
                    Sequential(Linear(hidden, hidden), ReLU(), Linear(hidden, hidden), ReLU(), BatchNorm1d(hidden)),
                    train_eps=True,
                )
            )
        self.jump = JumpingKnowledge(mode)
        self.lin1 = Linear(num_layers * hidden, hidden)
        self.lin2 = Linear(hidden, CLASSES)

    def forward(self, data):
        x, edge_index, batch = data.x, data.edge_index, data.batch
        x = self.conv1(x, edge_index)
        xs = [x]
        for conv in self.convs:
            x = conv(x, edge_index)
            xs += [x]
        x = self.jump(xs)
        x = global_mean_pool(x, batch)
        x = F.relu(self.lin1(x))
        x = F.dropout(x, p=0.5, training=self.training)
        x = self.lin2(x)
        return F.log_softmax(x, dim=-1)

    def __repr__(self):
        return self.__class__.__name__


# -- molecules -----------------------------------------------------------------------------------------------------


class QM9(torch.nn.Module):
    """examples/qm9_nn_conv.py"""

    def __init__(self, dim=16):
        super().__init__()
        self.lin0 = torch.nn.Linear(FEATURES, dim)

        nn = Sequential(Linear(5, 32), ReLU(), Linear(32, dim * dim))
        self.conv = NNConv(dim, dim, nn, aggr="mean")
        self.gru = GRU(dim, dim)

        self.set2set = Set2Set(dim, processing_steps=3)
        self.lin1 = torch.nn.Linear(2 * dim, dim)
        self.lin2 = torch.nn.Linear(dim, 1)

    def forward(self, data):
        out = F.relu(self.lin0(data.x))
        h = out.unsqueeze(0)

        for _ in range(3):
            m = F.relu(self.conv(out, data.edge_index, data.edge_attr))
            out, h = self.gru(m.unsqueeze(0), h)
            out = out.squeeze(0)

        out = self.set2set(out, data.batch)
        out = F.relu(self.lin1(out))
        out = self.lin2(out)
        return out.view(-1)


class PNAZinc(torch.nn.Module):
    """examples/pna.py"""

    def __init__(self, deg):
        super().__init__()
        self.node_emb = Embedding(21, 20)
        self.edge_emb = Embedding(4, 10)

        aggregators = ["mean", "min", "max", "std"]
        scalers = ["identity", "amplification", "attenuation"]

        self.convs = ModuleList()
        self.batch_norms = ModuleList()
        for _ in range(2):
            conv = PNAConv(
                in_channels=20, out_channels=20, aggregators=aggregators, scalers=scalers, deg=deg, edge_dim=10,
                towers=5, pre_layers=1, post_layers=1, divide_input=False,
            )  # fmt: skip
            self.convs.append(conv)
            self.batch_norms.append(BatchNorm(20))

        self.mlp = Sequential(Linear(20, 15), ReLU(), Linear(15, 10), ReLU(), Linear(10, 1))

    def forward(self, x, edge_index, edge_attr, batch):
        x = self.node_emb(x.squeeze())
        edge_attr = self.edge_emb(edge_attr)

        for conv, batch_norm in zip(self.convs, self.batch_norms):
            x = F.relu(batch_norm(conv(x, edge_index, edge_attr)))

        x = global_add_pool(x, batch)
        return self.mlp(x)


class GPS(torch.nn.Module):
    """examples/graph_gps.py"""

    def __init__(self, channels, pe_dim, num_layers, attn_type, attn_kwargs):
        super().__init__()
        self.node_emb = Embedding(28, channels - pe_dim)
        self.pe_lin = Linear(5, pe_dim)
        self.pe_norm = BatchNorm1d(5)
        self.edge_emb = Embedding(4, channels)

        self.convs = ModuleList()
        for _ in range(num_layers):
            nn = Sequential(Linear(channels, channels), ReLU(), Linear(channels, channels))
            conv = GPSConv(channels, GINEConv(nn), heads=4, attn_type=attn_type, attn_kwargs=attn_kwargs)
            self.convs.append(conv)

        self.mlp = Sequential(
            Linear(channels, channels // 2),
            ReLU(),
            Linear(channels // 2, channels // 4),
            ReLU(),
            Linear(channels // 4, 1),
        )

    def forward(self, x, pe, edge_index, edge_attr, batch):
        x_pe = self.pe_norm(pe)
        x = torch.cat((self.node_emb(x.squeeze(-1)), self.pe_lin(x_pe)), 1)
        edge_attr = self.edge_emb(edge_attr)

        for conv in self.convs:
            x = conv(x, edge_index, batch, edge_attr=edge_attr)
        x = global_add_pool(x, batch)
        return self.mlp(x)


# -- point clouds --------------------------------------------------------------------------------------------------


class PointNetLayer(MessagePassing):
    """Tutorial: point cloud processing."""

    def __init__(self, in_channels: int, out_channels: int):
        # Message passing with "max" aggregation.
        super().__init__(aggr="max")

        # Initialization of the MLP:
        # Here, the number of input features correspond to the hidden
        # node dimensionality plus point dimensionality (=3).
        self.mlp = Sequential(
            Linear(in_channels + 3, out_channels),
            ReLU(),
            Linear(out_channels, out_channels),
        )

    def forward(self, h: Tensor, pos: Tensor, edge_index: Tensor) -> Tensor:
        # Start propagating messages.
        return self.propagate(edge_index, h=h, pos=pos)

    def message(self, h_j: Tensor, pos_j: Tensor, pos_i: Tensor) -> Tensor:
        # h_j: The features of neighbors as a tensor with shape [num_edges, in_channels]
        edge_feat = torch.cat([h_j, pos_j - pos_i], dim=-1)
        return self.mlp(edge_feat)


class PointNet(torch.nn.Module):
    """Tutorial: point cloud processing."""

    def __init__(self):
        super().__init__()
        self.conv1 = PointNetLayer(3, 32)
        self.conv2 = PointNetLayer(32, 32)
        self.classifier = Linear(32, CLASSES)

    def forward(self, pos: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        # Perform two-layers of message passing:
        h = self.conv1(h=pos, pos=pos, edge_index=edge_index)
        h = h.relu()
        h = self.conv2(h=h, pos=pos, edge_index=edge_index)
        h = h.relu()

        # Global Pooling:
        h = global_max_pool(h, batch)  # [num_examples, hidden_channels]

        # Classifier:
        return self.classifier(h)


class OwnEdgeConv(MessagePassing):
    """Tutorial: creating message passing networks."""

    def __init__(self, in_channels, out_channels):
        super().__init__(aggr="max")  #  "Max" aggregation.
        self.mlp = Sequential(Linear(2 * in_channels, out_channels), ReLU(), Linear(out_channels, out_channels))

    def forward(self, x, edge_index):
        return self.propagate(edge_index, x=x)

    def message(self, x_i, x_j):
        tmp = torch.cat([x_i, x_j - x_i], dim=1)  # tmp has shape [E, 2 * in_channels]
        return self.mlp(tmp)


class DGCNN(torch.nn.Module):
    """examples/dgcnn_classification.py, with fixed edges"""

    def __init__(self, out_channels):
        super().__init__()
        self.conv1 = OwnEdgeConv(3, 16)
        self.conv2 = OwnEdgeConv(16, 32)
        self.lin1 = Linear(32 + 16, 24)
        self.mlp = MLP([24, 16, out_channels], dropout=0.5, norm=None)

    def forward(self, data):
        pos, edge_index, batch = data.pos, data.edge_index, data.batch
        x1 = self.conv1(pos, edge_index)
        x2 = self.conv2(x1, edge_index)
        out = self.lin1(torch.cat([x1, x2], dim=1))
        out = global_max_pool(out, batch)
        out = self.mlp(out)
        return F.log_softmax(out, dim=1)


class OwnGCNConv(MessagePassing):
    """Tutorial: creating message passing networks."""

    def __init__(self, in_channels, out_channels):
        super().__init__(aggr="add")  # "Add" aggregation (Step 5).
        self.lin = Linear(in_channels, out_channels, bias=False)
        self.bias = Parameter(torch.empty(out_channels))

        self.reset_parameters()

    def reset_parameters(self):
        self.lin.reset_parameters()
        self.bias.data.zero_()

    def forward(self, x, edge_index):
        # Step 1: Add self-loops to the adjacency matrix.
        edge_index, _ = add_self_loops(edge_index, num_nodes=x.size(0))

        # Step 2: Linearly transform node feature matrix.
        x = self.lin(x)

        # Step 3: Compute normalization.
        row, col = edge_index
        deg = degree(col, x.size(0), dtype=x.dtype)
        deg_inv_sqrt = deg.pow(-0.5)
        deg_inv_sqrt[deg_inv_sqrt == float("inf")] = 0
        norm = deg_inv_sqrt[row] * deg_inv_sqrt[col]

        # Step 4-5: Start propagating messages.
        out = self.propagate(edge_index, x=x, norm=norm)

        # Step 6: Apply a final bias vector.
        out = out + self.bias

        return out

    def message(self, x_j, norm):
        # Step 4: Normalize node features.
        return norm.view(-1, 1) * x_j


# -- links, autoencoders, unsupervised -----------------------------------------------------------------------------


class LinkNet(torch.nn.Module):
    """examples/link_pred.py"""

    def __init__(self, in_channels, hidden_channels, out_channels):
        super().__init__()
        self.conv1 = GCNConv(in_channels, hidden_channels)
        self.conv2 = GCNConv(hidden_channels, out_channels)

    def encode(self, x, edge_index):
        x = self.conv1(x, edge_index).relu()
        return self.conv2(x, edge_index)

    def decode(self, z, edge_label_index):
        return (z[edge_label_index[0]] * z[edge_label_index[1]]).sum(dim=-1)

    def decode_all(self, z):
        prob_adj = z @ z.t()
        return (prob_adj > 0).nonzero(as_tuple=False).t()


class LinkNetWithForward(LinkNet):
    """The same with a forward around both."""

    def forward(self, x, edge_index, edge_label_index):
        z = self.encode(x, edge_index)
        return self.decode(z, edge_label_index)


class GCNEncoder(torch.nn.Module):
    """examples/autoencoder.py"""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.conv1 = GCNConv(in_channels, 2 * out_channels)
        self.conv2 = GCNConv(2 * out_channels, out_channels)

    def forward(self, x, edge_index):
        x = self.conv1(x, edge_index).relu()
        return self.conv2(x, edge_index)


class VariationalGCNEncoder(torch.nn.Module):
    """examples/autoencoder.py"""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.conv1 = GCNConv(in_channels, 2 * out_channels)
        self.conv_mu = GCNConv(2 * out_channels, out_channels)
        self.conv_logstd = GCNConv(2 * out_channels, out_channels)

    def forward(self, x, edge_index):
        x = self.conv1(x, edge_index).relu()
        return self.conv_mu(x, edge_index), self.conv_logstd(x, edge_index)


class InfomaxEncoder(torch.nn.Module):
    """examples/infomax_transductive.py"""

    def __init__(self, in_channels, hidden_channels):
        super().__init__()
        self.conv = GCNConv(in_channels, hidden_channels)
        self.prelu = torch.nn.PReLU(hidden_channels)

    def forward(self, x, edge_index):
        x = self.conv(x, edge_index)
        x = self.prelu(x)
        return x


def corruption(x, edge_index):
    return x[torch.randperm(x.size(0), device=x.device)], edge_index


# -- relations, heterogeneous graphs -------------------------------------------------------------------------------


class RGCN(torch.nn.Module):
    """examples/rgcn.py: no node features, one embedding per node"""

    def __init__(self):
        super().__init__()
        self.conv1 = RGCNConv(NODES, 16, RELATIONS, num_bases=2)
        self.conv2 = RGCNConv(16, CLASSES, RELATIONS, num_bases=2)

    def forward(self, edge_index, edge_type):
        x = F.relu(self.conv1(None, edge_index, edge_type))
        x = self.conv2(x, edge_index, edge_type)
        return F.log_softmax(x, dim=1)


class RGCNEncoder(torch.nn.Module):
    """examples/rgcn_link_pred.py"""

    def __init__(self, num_nodes, hidden_channels, num_relations):
        super().__init__()
        self.node_emb = Parameter(torch.empty(num_nodes, hidden_channels))
        self.conv1 = RGCNConv(hidden_channels, hidden_channels, num_relations, num_blocks=5)
        self.conv2 = RGCNConv(hidden_channels, hidden_channels, num_relations, num_blocks=5)
        self.reset_parameters()

    def reset_parameters(self):
        torch.nn.init.xavier_uniform_(self.node_emb)
        self.conv1.reset_parameters()
        self.conv2.reset_parameters()

    def forward(self, edge_index, edge_type):
        x = self.node_emb
        x = self.conv1(x, edge_index, edge_type).relu_()
        x = F.dropout(x, p=0.2, training=self.training)
        x = self.conv2(x, edge_index, edge_type)
        return x


METADATA = (["author", "paper"], [("author", "to", "paper"), ("paper", "to", "author"), ("paper", "cites", "paper")])


def hetero(size: tuple[int, int]) -> HeteroData:
    data = HeteroData()
    numbers = {"author": size[0] - 4, "paper": size[0]}
    for node_type, number in numbers.items():
        data[node_type].x = normal(number, FEATURES, seed=number)
    for seed, edge_type in enumerate(METADATA[1]):
        row = integers(numbers[edge_type[0]], size[1] - 5 * seed, seed=seed)
        col = integers(numbers[edge_type[2]], size[1] - 5 * seed, seed=seed + 7)
        data[edge_type].edge_index = torch.stack([row, col])
    return data


def hetero_dicts(size: tuple[int, int]) -> tuple[dict, dict]:
    data = hetero(size)
    return data.x_dict, data.edge_index_dict


class HGT(torch.nn.Module):
    """examples/hetero/hgt_dblp.py"""

    def __init__(self, hidden_channels, out_channels, num_heads, num_layers):
        super().__init__()

        self.lin_dict = torch.nn.ModuleDict()
        for node_type in METADATA[0]:
            self.lin_dict[node_type] = Linear(FEATURES, hidden_channels)

        self.convs = torch.nn.ModuleList()
        for _ in range(num_layers):
            conv = HGTConv(hidden_channels, hidden_channels, METADATA, num_heads)
            self.convs.append(conv)

        self.lin = Linear(hidden_channels, out_channels)

    def forward(self, x_dict, edge_index_dict):
        x_dict = {node_type: self.lin_dict[node_type](x).relu_() for node_type, x in x_dict.items()}

        for conv in self.convs:
            x_dict = conv(x_dict, edge_index_dict)

        return self.lin(x_dict["author"])


class HeteroGNN(torch.nn.Module):
    """Tutorial: heterogeneous graph learning"""

    def __init__(self, hidden_channels, out_channels, num_layers):
        super().__init__()

        self.convs = torch.nn.ModuleList()
        for _ in range(num_layers):
            conv = HeteroConv(
                {
                    ("paper", "cites", "paper"): GCNConv(-1, hidden_channels),
                    ("author", "to", "paper"): SAGEConv((-1, -1), hidden_channels),
                    ("paper", "to", "author"): GATConv((-1, -1), hidden_channels, add_self_loops=False),
                },
                aggr="sum",
            )
            self.convs.append(conv)

        self.lin = Linear(hidden_channels, out_channels)

    def forward(self, x_dict, edge_index_dict):
        for conv in self.convs:
            x_dict = conv(x_dict, edge_index_dict)
            x_dict = {key: x.relu() for key, x in x_dict.items()}
        return self.lin(x_dict["author"])


class GNNEncoder(torch.nn.Module):
    """examples/hetero/hetero_link_pred.py"""

    def __init__(self, hidden_channels, out_channels):
        super().__init__()
        self.conv1 = SAGEConv((-1, -1), hidden_channels)
        self.conv2 = SAGEConv((-1, -1), out_channels)

    def forward(self, x, edge_index):
        x = self.conv1(x, edge_index).relu()
        x = self.conv2(x, edge_index)
        return x


class EdgeDecoder(torch.nn.Module):
    """examples/hetero/hetero_link_pred.py"""

    def __init__(self, hidden_channels):
        super().__init__()
        self.lin1 = Linear(2 * hidden_channels, hidden_channels)
        self.lin2 = Linear(hidden_channels, 1)

    def forward(self, z_dict, edge_label_index):
        row, col = edge_label_index
        z = torch.cat([z_dict["author"][row], z_dict["paper"][col]], dim=-1)

        z = self.lin1(z).relu()
        z = self.lin2(z)
        return z.view(-1)


class HeteroLinks(torch.nn.Module):
    """examples/hetero/hetero_link_pred.py"""

    def __init__(self, hidden_channels):
        super().__init__()
        self.encoder = GNNEncoder(hidden_channels, hidden_channels)
        self.encoder = to_hetero(self.encoder, METADATA, aggr="sum")
        self.decoder = EdgeDecoder(hidden_channels)

    def forward(self, x_dict, edge_index_dict, edge_label_index):
        z_dict = self.encoder(x_dict, edge_index_dict)
        return self.decoder(z_dict, edge_label_index)


def hetero_links(size: tuple[int, int]) -> tuple[dict, dict, Tensor]:
    pairs = torch.stack([integers(size[0] - 4, size[0] + 2, seed=3), integers(size[0], size[0] + 2, seed=4)])
    return *hetero_dicts(size), pairs


# -- sampling, time ------------------------------------------------------------------------------------------------


class SAGE(torch.nn.Module):
    """examples/reddit.py"""

    def __init__(self, in_channels, hidden_channels, out_channels):
        super().__init__()
        self.convs = torch.nn.ModuleList()
        self.convs.append(SAGEConv(in_channels, hidden_channels))
        self.convs.append(SAGEConv(hidden_channels, out_channels))

    def forward(self, x, edge_index):
        for i, conv in enumerate(self.convs):
            x = conv(x, edge_index)
            if i < len(self.convs) - 1:
                x = x.relu_()
                x = F.dropout(x, p=0.5, training=self.training)
        return x


class SeedNodes(SAGE):
    """The same, with the outputs of the seed nodes alone: batch.batch_size of a NeighborLoader."""

    def forward(self, data):
        return super().forward(data.x, data.edge_index)[: data.batch_size]


def seeds(size: tuple[int, int]) -> tuple[Data]:
    x, edge_index = graph(size)
    return (Data(x=x, edge_index=edge_index, batch_size=size[0] // 3),)


class TimeEncoder(torch.nn.Module):
    """As in torch_geometric.nn.models.tgn"""

    def __init__(self, out_channels):
        super().__init__()
        self.out_channels = out_channels
        self.lin = Linear(1, out_channels)

    def forward(self, t: Tensor) -> Tensor:
        return self.lin(t.view(-1, 1)).cos()


class GraphAttentionEmbedding(torch.nn.Module):
    """examples/tgn.py"""

    def __init__(self, in_channels, out_channels, msg_dim, time_enc):
        super().__init__()
        self.time_enc = time_enc
        edge_dim = msg_dim + time_enc.out_channels
        self.conv = TransformerConv(in_channels, out_channels // 2, heads=2, dropout=0.1, edge_dim=edge_dim)

    def forward(self, x, last_update, edge_index, t, msg):
        rel_t = last_update[edge_index[0]] - t
        rel_t_enc = self.time_enc(rel_t.to(x.dtype))
        edge_attr = torch.cat([rel_t_enc, msg], dim=-1)
        return self.conv(x, edge_index, edge_attr)


def events(size: tuple[int, int]) -> tuple[Tensor, ...]:
    return *graph_first(size), integers(100, size[1], seed=5), normal(size[1], 6)


def graph_first(size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    x, edge_index = graph(size)
    return x, integers(100, size[0], seed=6), edge_index


# -- the table -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """A model, the inputs that it is called with on a graph of a size, and the method that makes its outputs."""

    build: Any
    inputs: Any
    method: str = "forward"
    has_messages: bool = True


MODELS = {
    "citation GCN": Model(GCN, citation),
    "citation GAT": Model(lambda: GAT(FEATURES, 8, CLASSES, 8), graph),
    "citation SGC": Model(SGC, citation),
    "citation APPNP": Model(APPNPNet, citation),
    "citation AGNN": Model(AGNN, citation),
    "citation ARMA": Model(ARMA, graph),
    "citation DNA": Model(lambda: DNA(3, 4, 8), graph),
    "citation GCNII": Model(
        lambda: GCNII(16, 3, 0.1, 0.5, dropout=0.6),
        lambda size: (graph(size)[0], to_torch_csr_tensor(edges(size).unique(dim=1), size=(size[0], size[0]))),
    ),
    "citation SuperGAT": Model(SuperGAT, lambda size: (graph(size)[0], to_undirected(edges(size)))),
    "Graph U-Net": Model(UNet, citation),
    "own GCNConv": Model(lambda: OwnGCNConv(FEATURES, CLASSES), graph),
    "DeeperGCN": Model(lambda: DeeperGCN(16, 3), lambda size: (*graph(size), normal(size[1], 5))),
    "graph classification": Model(lambda: GraphClassifier(16), with_batch),
    "graph classification, GIN": Model(
        lambda: GINClassifier(FEATURES, 16, CLASSES, 3), lambda size: (*with_batch(size), 3)
    ),
    "graph classification, top-k": Model(TopKClassifier, as_batch),
    "graph classification, DiffPool": Model(DiffPool, with_batch, has_messages=False),
    "graph classification, jumping knowledge": Model(lambda: JKNet(3, 16), as_batch),
    "molecules, NNConv": Model(QM9, as_batch),
    "molecules, PNA": Model(lambda: PNAZinc(torch.tensor([1, 6, 8, 5, 2])), atoms),
    "molecules, AttentiveFP": Model(
        lambda: AttentiveFP(FEATURES, 16, 1, edge_dim=5, num_layers=2, num_timesteps=2, dropout=0.2),
        lambda size: (graphs(size).x, graphs(size).edge_index, graphs(size).edge_attr, graphs(size).batch),
    ),
    "molecules, GPS": Model(
        lambda: GPS(16, 4, 2, "multihead", {"dropout": 0.5}),
        lambda size: (atoms(size)[0].view(-1, 1), normal(graphs(size).num_nodes, 5), *atoms(size)[1:]),
    ),
    "point cloud, PointNet++": Model(
        PointNet, lambda size: (graphs(size).pos, graphs(size).edge_index, graphs(size).batch)
    ),
    "point cloud, DGCNN": Model(lambda: DGCNN(CLASSES), as_batch),
    "links, encode": Model(lambda: LinkNet(FEATURES, 16, 8), graph, "encode"),
    "links": Model(lambda: LinkNetWithForward(FEATURES, 16, 8), lambda size: (*graph(size), edges((size[0], 19)))),
    "autoencoder": Model(lambda: GAE(GCNEncoder(FEATURES, 8)), graph, "encode"),
    "variational autoencoder": Model(lambda: VGAE(VariationalGCNEncoder(FEATURES, 8)), graph, "encode"),
    "infomax": Model(
        lambda: DeepGraphInfomax(
            hidden_channels=16,
            encoder=InfomaxEncoder(FEATURES, 16),
            summary=lambda z, *args, **kwargs: z.mean(dim=0).sigmoid(),
            corruption=corruption,
        ),
        graph,
    ),
    "relations": Model(RGCN, lambda size: (edges((NODES, size[1])), integers(RELATIONS, size[1]))),
    "relations, link prediction": Model(
        lambda: RGCNEncoder(NODES, 20, RELATIONS), lambda size: (edges((NODES, size[1])), integers(RELATIONS, size[1]))
    ),
    "heterogeneous, HGT": Model(lambda: HGT(16, CLASSES, 2, 2), hetero_dicts),
    "heterogeneous, HeteroConv": Model(lambda: HeteroGNN(16, CLASSES, 2), hetero_dicts),
    "heterogeneous, links": Model(lambda: HeteroLinks(16), hetero_links),
    "sampled": Model(lambda: SAGE(FEATURES, 16, CLASSES), graph),
    "sampled, seed nodes": Model(lambda: SeedNodes(FEATURES, 16, CLASSES), seeds),
    "temporal": Model(lambda: GraphAttentionEmbedding(FEATURES, 16, 6, TimeEncoder(8)), events),
}
