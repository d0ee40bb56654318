"""ONNX files: in ONNX Runtime they compute what the prepared module computes, on graphs of other sizes, too."""

from __future__ import annotations

import functools
import inspect
import json
import math

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch_geometric.nn import GCN, GCNConv, GPSConv
from torch_geometric.utils import (
    cumsum,
    dropout_edge,
    scatter,
    select,
    to_dense_adj,
    to_dense_batch,
    to_torch_coo_tensor,
    to_torch_csr_tensor,
)

import dqconvert
import zoo
from doc_models import LARGE, MODELS, SMALL
from dqconvert.errors import ExportError
from dqconvert.lower.evaluation import evaluation_graph
from dqconvert.lower.replay import ShownRun, by_name
from dqconvert.onnx.file import model_of, model_of_graph
from dqconvert.onnx.run import Session
from dqconvert.quant import FakeQuantize
from dqconvert.trace.note import annotate, note_of

SIZES = (zoo.TRACED, zoo.OTHER, (17, 40))
LAYERS = ("ChebConv", "NNConv")
QUICK = ("GCN", "GIN", "GAT_attr", "DataClassifier")


@functools.cache
def calibrated(name, qconfig="int8-dq"):
    case = zoo.CASES[name]
    module = dqconvert.prepare(case.model(), qconfig, case.inputs()).module
    for size in SIZES[:2]:
        dqconvert.calibrate(module, case.inputs(size))
    return module.eval()


def leaves(value):
    if isinstance(value, torch.Tensor):
        return [value.detach().numpy()]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [leaf for part in parts for leaf in leaves(part)]


def near(module, session, inputs, step):
    """Returns the shares of outputs that are equal but for float sums, and that are within a step."""
    expected, found = leaves(module(*inputs)), leaves(session(*inputs))
    assert [one.shape for one in found] == [one.shape for one in expected]
    apart = np.concatenate([np.abs(a - b).ravel() for a, b in zip(expected, found, strict=True)])
    return (apart < 1e-5).mean(), (apart < 1.01 * step).mean()


def last_step(module):
    """Returns the step of the last quantizer."""
    return float(list(module.quantizers())[-1][1].scale.max())


@pytest.mark.sample(99, keep=(*LAYERS, *QUICK))
@pytest.mark.parametrize("name", list(zoo.CASES))
def test_a_file_computes_what_the_module_computes(name):
    module = calibrated(name)
    for exact in (False, True):
        session = Session(model_of(module, exact=exact))
        for size in SIZES:
            equal, within = near(module, session, zoo.CASES[name].inputs(size), last_step(module))
            assert within >= 0.999
            assert not exact or equal >= 0.999


def taught(module, inputs):
    """The graph of a module in evaluation, with each rounded value as an output, and again as an input: what follows it
    is given that.

    Returns:
        The graph; by the name of an input, the value that the module has there; the steps of these.
    """
    weights = {entry.path for entry in module.report.entries if entry.role == "weight"}
    graph, given, steps = evaluation_graph(module), {}, []
    rounded = []

    def show(path, quantizer, x, groups):
        if path not in weights:
            given[f"given_{len(given)}"] = quantizer(x, None, groups)
            steps.append(quantizer.scale.max())

    ShownRun(module, show).start(by_name(inspect.signature(module.forward).bind(*inputs)))
    places = [
        node
        for node in graph.nodes
        if node.op == "call_module"
        and isinstance(module.get_submodule(node.target), FakeQuantize)
        and node.target not in weights
    ]
    for name, node in zip(given, places, strict=True):
        with graph.inserting_before(next(iter(graph.nodes))):
            value = annotate(graph.placeholder(name), note_of(node))
        with graph.inserting_after(node):
            again = annotate(graph.call_module(node.target, (value, *node.args[1:])), note_of(node))
        node.replace_all_uses_with(again)
        rounded.append(node)
    graph.output_node().args = (rounded,)
    return graph, given, steps


@pytest.mark.study
@pytest.mark.parametrize(
    ("name", "qconfig"),
    [*((name, "int8-dq") for name in zoo.CASES), *((name, "int4-dq") for name in list(zoo.CASES)[::4])],
)
def test_each_operation_given_the_inputs_of_the_prepared_one(name, qconfig):
    """Codes are within a step on 99.9 % of values; ``exact``: equal but for float sums."""
    module, inputs = calibrated(name, qconfig), zoo.CASES[name].inputs(SIZES[2])
    graph, given, steps = taught(module, inputs)
    for exact in (False, True):
        session = Session(model_of_graph(graph, module, exact=exact))
        found = session(**inspect.signature(module.forward).bind(*inputs).arguments, **given)
        pairs = zip(leaves(found), given.values(), steps, strict=True)
        apart = np.concatenate([np.abs((one - other.numpy()) / float(step)).ravel() for one, other, step in pairs])
        assert (apart < 1.01).mean() >= 0.999
        assert not exact or (apart < 1e-3).mean() >= 0.999


@pytest.mark.study
@pytest.mark.parametrize("qconfig", ["int4-dq", "int8-dq+", "int4-dq+", "int8-qat", "int8-lsq", "int8-dq-symmetric"])
@pytest.mark.parametrize("name", ["GCN", "GIN", "GraphSAGE", "GAT", "GCN_jk_cat", "PNA"])
def test_other_presets(name, qconfig):
    module = calibrated(name, qconfig)
    session = Session(model_of(module))
    for size in SIZES:
        assert near(module, session, zoo.CASES[name].inputs(size), last_step(module))[1] >= 0.99


@pytest.mark.sample(36, keep=("None-int4-dq-GIN", "None-int8-dq-GAT_attr"))
@pytest.mark.parametrize("name", ["GCN", "GIN", "GraphSAGE", "GAT_attr", "GATv2Conv", "TransformerConv"])
@pytest.mark.parametrize("qconfig", ["int4-dq", "int4-dq+", "int8-dq"])
@pytest.mark.parametrize("target", [None, "onnxruntime"])
def test_predictions_are_those_of_the_module_where_they_are_decided(name, qconfig, target):
    """99.5 % of the nodes whose two highest scores are more than a step apart; targets round what they fuse anew."""
    module = calibrated(name, qconfig)
    try:
        session = Session(model_of(module, target=target))
    except ExportError:
        assert target is not None
        assert qconfig != "int8-dq"
        return
    equal = []
    for size in ((300, 1200), (500, 900), (700, 4000)):
        inputs = zoo.CASES[name].inputs(size)
        expected, found = module(*inputs), session(*inputs)
        if (qconfig, target) == ("int8-dq", None):
            assert ((expected - found).abs() < 1.01 * last_step(module)).float().mean() >= 0.999
        first, second = expected.topk(2, dim=1)[0].T
        decided = first - second > last_step(module)
        equal.append((expected.argmax(1) == found.argmax(1))[decided])
    assert torch.cat(equal).float().mean() >= 0.995
    assert len(torch.cat(equal)) >= 40


UNWRITTEN = {"citation GCNII": "input 'adj_t' is a sparse matrix", "infomax": "no writer of randperm"}


@pytest.mark.study
@pytest.mark.parametrize(
    "name", [name for name, case in MODELS.items() if case.method == "forward" and case.has_messages]
)
def test_models_of_the_documentation(name):
    case = MODELS[name]
    module = dqconvert.prepare(case.build(), "int8-dq", case.inputs(SMALL)).module
    for size in (SMALL, LARGE):
        dqconvert.calibrate(module, case.inputs(size))
    if name in UNWRITTEN:
        with pytest.raises(ExportError, match=UNWRITTEN[name]):
            model_of(module.eval())
        return
    session = Session(model_of(module.eval()))
    for size in (SMALL, LARGE, (20, 50)):
        inputs = case.inputs(size)
        for expected, found in zip(leaves(module(*inputs)), leaves(session(*inputs)), strict=True):
            apart = np.abs(expected - found)[np.isfinite(expected)]
            assert (apart < 1e-5).mean() >= 0.95


def test_the_file_says_what_it_is(tmp_path):
    module, path = calibrated("GCN"), tmp_path / "gcn.onnx"
    dqconvert.export(module, path)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert about["dqconvert.version"] == dqconvert.__version__
    assert dqconvert.QConfig.from_dict(json.loads(about["dqconvert.config"])) == module.qconfig
    assert json.loads(about["dqconvert.classes"])["convs.0"] == "GCNConv"
    assert [one.name for one in model.graph.input] == ["x", "edge_index"]
    assert [one.name for one in model.graph.output] == ["output"]
    assert max(entry.version for entry in model.opset_import) >= 18
    weights = {one.name: one for one in model.graph.initializer}
    assert weights["convs.0.lin.quant.weight.transposed.codes"].data_type == onnx.TensorProto.INT8
    assert not [one.name for one in weights.values() if one.data_type == 1 and np.prod(one.dims) > zoo.WIDTH * 2]


class Attends(nn.Module):
    """Attention within sequences as torch has it: masks, keys of another width, the shares returned."""

    def __init__(self, first, **options):
        super().__init__()
        self.lin, self.first = nn.Linear(zoo.WIDTH, 8), first
        self.attn, self.other = nn.MultiheadAttention(8, 2, **options), nn.MultiheadAttention(8, 2, kdim=6, vdim=3)

    def forward(self, x, edge_index):
        h = self.lin(x)[: x.size(0) // 2 * 2].view(2, -1, 8)
        mask = None
        if self.first:  # [2, rows, 8]: batches first
            mask = torch.arange(h.size(1))[None] > torch.arange(h.size(1))[:, None]
        out, shares = self.attn(h, h + 1, h * 2, attn_mask=mask)
        rows = x[:, None]
        away = (x[:, 0] > 1).float()[None] * -1e9
        return out, shares, self.other(self.lin(rows), rows, rows[..., :3], away, average_attn_weights=False)


class Global(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.lin, self.conv = nn.Linear(zoo.WIDTH, 8), GPSConv(8, GCNConv(8, 8), heads=2, norm=norm)

    def forward(self, x, edge_index, batch):
        return self.conv(self.lin(x), edge_index, batch)


ATTENTION = {
    "steps first": lambda: Attends(False),
    "batches first": lambda: Attends(True, batch_first=True, bias=False),
    "GPS": lambda: Global("batch_norm"),
    "GPS layer norm": lambda: Global("layer_norm"),
}


@pytest.mark.sample(8, keep=("int4-dq+-GPS",))
@pytest.mark.parametrize("name", ATTENTION)
@pytest.mark.parametrize("qconfig", ["int8-dq", "int4-dq+"])
def test_attention_of_torch(name, qconfig):
    given = zoo.with_batch if name.startswith("GPS") else zoo.graph
    module = dqconvert.prepare(ATTENTION[name](), qconfig, given(zoo.TRACED)).module
    dqconvert.calibrate(module, [given(size) for size in SIZES[:2]])
    for exact in (False, True):
        session = Session(model_of(module.eval(), exact=exact))
        for size in SIZES:
            inputs = given(size)
            assert near(module, session, inputs, last_step(module))[0 if exact else 1] >= 0.999
    if name.startswith("GPS"):  # a graph without nodes between others
        assert near(module, session, (*inputs[:2], inputs[2] * 2), last_step(module))[0] == 1


def test_no_rows_are_added_up_by_an_operator_whose_threads_do_not_wait():
    for name in QUICK:
        nodes = model_of(calibrated(name)).graph.node
        kinds = [(n.op_type, [a.s for a in n.attribute if a.name == "reduction"]) for n in nodes]
        assert ("ScatterND", [b"add"]) not in kinds


def test_many_threads_compute_the_same():
    torch.manual_seed(0)
    module = dqconvert.prepare(GCN(4, 256, num_layers=1)).module
    x, edge_index = torch.randn(40, 4), torch.stack([torch.randint(40, (9000,)), torch.randint(3, (9000,))])
    dqconvert.calibrate(module, (x, edge_index))
    model = model_of(module)
    one, many = (Session(model, threads=threads) for threads in (1, 8))
    expected = one(x, edge_index)
    assert all(torch.equal(expected, many(x, edge_index)) for _ in range(5))


@pytest.mark.parametrize("exact", [False, True])
def test_graphs_without_edges_and_without_nodes(exact):
    for name in ("GraphSAGE", "GAT"):
        module = calibrated(name)
        session = Session(model_of(module, exact=exact))
        none = torch.zeros(2, 0, dtype=torch.long)
        for nodes in (1, 3):
            x = torch.randn(nodes, zoo.WIDTH)
            assert near(module, session, (x, none), last_step(module))[1] == 1


def test_weights_of_four_bits_are_stored_two_to_a_byte():
    model = model_of(calibrated("GCN", "int4-dq"))
    weights = [one for one in model.graph.initializer if one.name.endswith("weight.transposed.codes")]
    assert {one.data_type for one in weights} == {onnx.TensorProto.INT4}
    assert all(len(one.raw_data) == -(-np.prod(one.dims) // 2) for one in weights)
    assert max(entry.version for entry in model.opset_import) == 21


@pytest.mark.parametrize(("width", "share"), [(512, 0.30), (128, 0.40)])
def test_files_are_small(width, share, tmp_path):
    model = GCN(width, width, num_layers=2)
    module = dqconvert.prepare(model).module
    dqconvert.calibrate(module, (torch.randn(9, width), torch.randint(9, (2, 20))))
    dqconvert.export(module, tmp_path / "gcn.onnx")
    torch.save(model.state_dict(), tmp_path / "gcn.pt")
    assert (tmp_path / "gcn.onnx").stat().st_size <= share * (tmp_path / "gcn.pt").stat().st_size


class Accumulates(nn.Module):
    """Does something that ONNX files here have no writer for, in a layer of its own."""

    def __init__(self):
        super().__init__()
        self.conv = GCNConv(zoo.WIDTH, 4)
        self.most = Most()

    def forward(self, x, edge_index):
        return self.most(self.conv(x, edge_index))


class Most(nn.Module):
    def forward(self, x):
        return x.cummax(dim=0)[0]


FORMS = {
    "item": lambda x, e: x / x.abs().max().item(),
    "ceiling division": lambda x, e: x[: -(-x.size(0) // 2)],
    "integers rounded down": lambda x, e: (e[0] - 3) // 2 + x.sum().long(),
    "shift beyond the size": lambda x, e: torch.roll(x, 9, 0),
    "shift back": lambda x, e: torch.roll(x, -2, 1),
    "narrow from the end": lambda x, e: torch.narrow(x, 1, -2, 2),
    "narrow before the end": lambda x, e: torch.narrow(x, 1, -3, 2),
    "bounds of a column": lambda x, e: torch.clamp(x, min=x.mean(0), max=x.mean(0) + 1),
    "rows set by a row": lambda x, e: set_rows(x, torch.arange(4.0)),
    "rows set by a number": lambda x, e: set_rows(x, 0.5),
    "flattened": lambda x, e: torch.flatten(x.view(-1, 2, 2), 1),
    "columns repeated": lambda x, e: x.repeat_interleave(2, dim=1),
    "a share of the rows": lambda x, e: x[: int(x.size(0) * 0.5)],
    "a share that is no float32": lambda x, e: x[: int(x.size(0) * 100 * 0.29) // 100],
    "half the rows, rounded up": lambda x, e: x[: math.ceil(x.size(0) / 2)],
    "the larger number": lambda x, e: x[: max(x.size(0) - 3, 1)],
    "a whole logarithm": lambda x, e: x[: int(math.log2(x.size(0) + 1))] + (2.0 ** e[0]).log2().floor().sum(),
    "times True": lambda x, e: x * True + (x > 0) * False,
    "truths": lambda x, e: (((x > 0) + (x > 1)) * (x > -1)).float() + ((x > 0) < (x > -1)) + ((x > 0) == True),  # noqa: E712
    "a choice among truths": lambda x, e: (x > 0).where(x < 0.1, x > 5).float(),
    "tenths": lambda x, e: (e[0] / 10) // 0.1 + (e[0] / 10) % 0.1 + (e[0] - 3) % -4,
    "of a column, biased": lambda x, e: x + x[:, 0].var(False),
    "sums that begin with 0": lambda x, e: cumsum(e[0]),
    "a mask of one column": lambda x, e: x.masked_select(x[:, :1] > 0),
    "a mask of PyG's": lambda x, e: select(x, x[:, 0] > 0, 0),
    "a size everywhere": lambda x, e: torch.full_like(x, x.size(0)) + x.sum().item(),
    "entries by places": lambda x, e: x[e[0], e[1] % 4],
    "rows by places in rows": lambda x, e: x[e],
    "columns set": lambda x, e: set_part(x, (slice(None), 1), x[:, 2]),
    "entries written": lambda x, e: x.scatter(0, x.argmin(0, keepdim=True), 2.0) + x.scatter(1, x.argmax(1, True), x),
    "unequal parts": lambda x, e: torch.tensor_split(x, 3, dim=1)[0] + x.tensor_split(3, 1)[2],
    "rows set by places": lambda x, e: set_part(x, e[0], 0.5),
    "no gain": lambda x, e: functional.layer_norm(x, (4,)),
    "several dimensions": lambda x, e: torch.movedim(x.view(-1, 2, 2), (0, 1), (1, 2)),
    "sorted": lambda x, e: x.sort(0, descending=True)[0] + x.topk(3, dim=1, largest=False)[1][:, :1],
    "mean of nothing": lambda x, e: x.mean(0) + x.std((0, 1)),
    "types": lambda x, e: functional.embedding(e[0].clamp(max=3), torch.arange(8.0).view(4, 2)),
    "graphs as rows": lambda x, e: to_dense_batch(x, torch.arange(x.size(0)) // 3, max_num_nodes=2)[0],
    "a matrix of edges": lambda x, e: to_dense_adj(e, edge_attr=x[e[0]]),
    "a mask of two dimensions": lambda x, e: x.view(-1, 2, 2)[x[:, :2] > 0],
    "a product of sparse matrices": lambda x, e: two_steps(x, to_torch_csr_tensor(e, x[e[0], 0].relu(), (len(x),) * 2)),
    "edges twice": lambda x, e: two_steps(x, to_torch_coo_tensor(e, size=x.size(0))),
    "one or all": lambda x, e: (x > 1).any(1, keepdim=True) + x * (x > -1).all(0) + (e[0] > 5).any() + (e >= 0).all(),
    "classes": lambda x, e: functional.one_hot(e[0] % 3).sum(0) + functional.one_hot(e[1], 30).float().mean(),
    "edges dropped in training": lambda x, e: dropout_edge(e, training=x.size(0) < 0)[1].float(),
}
NOT_OF_NOTHING = ("item", "graphs as rows", "entries written", "classes")
REFUSED = {
    "other correction": (lambda x, e: torch.var(x, dim=1, correction=2), "correction=2"),
    "integers": (lambda x, e: scatter(e[0], e[1], 0, x.size(0), "max")[:, None] + x, "rows of torch.int64"),
    "bits": (lambda x, e: x + (e[0] & 1).sum(), "bits of integers"),
    "drops always": (lambda x, e: functional.dropout(x, 0.5), "drops in evaluation, too"),
    "a multiple": (lambda x, e: torch.add(x, x, alpha=2), "add with alpha"),
}


def two_steps(x, matrix):
    """What is two edges away, where an entry may be 0, and features times the matrix."""
    away = (matrix @ matrix).to_sparse_coo().coalesce()
    return matrix @ x + away.values().sum() + away.indices().float().mean()


def set_part(x, index, value):
    x = x.clone()
    x[index] = value
    return x


def set_rows(x, value):
    return set_part(x, x[:, 0] > 0, value)


class Form(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.form = form

    def forward(self, x, edge_index):
        return self.form(self.lin(x), edge_index)


def form_of(form):
    torch.manual_seed(0)
    x, edges = torch.randn(7, 4), torch.randint(7, (2, 20))
    module, _ = dqconvert.prepare(Form(form), "int8-ptq", (x, edges))
    dqconvert.calibrate(module, (x, edges))
    return module.eval(), x, edges


@pytest.mark.sample(8, keep=("item", "truths"))
@pytest.mark.parametrize("name", FORMS)
def test_calls_compute_what_torch_computes_on_other_sizes(name, tmp_path):
    module, x, edges = form_of(FORMS[name])
    dqconvert.export(module, tmp_path / "form.onnx", exact=True)
    session = Session(tmp_path / "form.onnx")
    for rows in (7, 5, *([] if name in NOT_OF_NOTHING else [0])):  # of no numbers there is no largest
        given = x[:rows], edges[:, (edges < rows).all(0)]
        expected = module(*given)
        found = session(*given)
        assert found.shape == expected.shape
        assert torch.allclose(found.to(expected.dtype), expected, atol=1e-5, equal_nan=True)


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", REFUSED)
def test_calls_without_a_form_in_onnx_are_refused(name, tmp_path):
    form, words = REFUSED[name]
    with pytest.raises(ExportError, match=words):
        dqconvert.export(form_of(form)[0], tmp_path / "form.onnx")
    assert not (tmp_path / "form.onnx").exists()


def test_what_has_no_writer_is_named_and_nothing_is_written(tmp_path):
    module = dqconvert.prepare(Accumulates(), example_inputs=zoo.graph()).module
    dqconvert.calibrate(module, zoo.graph())
    with pytest.raises(dqconvert.ExportError, match=r"test_export_onnx\.py:\d+: cummax, of most, .* no writer"):
        dqconvert.export(module, tmp_path / "most.onnx")
    assert not list(tmp_path.iterdir())


def test_a_module_without_ranges_is_refused(tmp_path):
    with pytest.raises(dqconvert.ExportError, match="never observed"):
        dqconvert.export(dqconvert.prepare(GCNConv(4, 2)).module, tmp_path / "gcn.onnx")


def test_negative_nodes_are_refused_as_the_module_refuses_them():
    session = Session(model_of(calibrated("GraphSAGE")))
    x, edge_index = zoo.graph()
    for wrong in (-1, len(x)):
        edge_index[0, 3] = wrong
        with pytest.raises(dqconvert.InputError, match="names a negative node" if wrong < 0 else "out of data bounds"):
            session(x, edge_index)


def test_inputs_of_other_types_are_refused():
    session = Session(model_of(calibrated("GraphSAGE")))
    x, edge_index = zoo.graph()
    with pytest.raises(dqconvert.InputError, match="'edge_index' is of int64, got float32"):
        session(x, edge_index.float())
    with pytest.raises(dqconvert.InputError, match="takes 'edge_index', which is missing"):
        session(x)
    assert torch.equal(session(x, edge_index, None, batch=None), session(edge_index=edge_index, x=x))
    with pytest.raises(dqconvert.InputError, match="takes no 'edge_weight'"):
        session(x, edge_index, edge_weight=torch.ones(30))


def test_what_changed_since_tracing_is_refused():
    module = dqconvert.prepare(zoo.CASES["GATConv"].model(), example_inputs=zoo.graph()).module
    dqconvert.calibrate(module, zoo.graph())
    module.register_forward_hook(lambda module, inputs, output: output * 2)
    with pytest.raises(dqconvert.ExportError, match="hooks"):
        model_of(module)
    module._forward_hooks.clear()
    module.add_self_loops = False
    with pytest.raises(dqconvert.ExportError, match="add_self_loops"):
        model_of(module)


class Branches(nn.Module):
    """Takes another way for large graphs."""

    def __init__(self):
        super().__init__()
        self.conv = GCNConv(zoo.WIDTH, 4)

    def forward(self, x, edge_index):
        h = self.conv(x, edge_index)
        return h if x.size(0) < 20 else -h


def test_another_branch_of_the_forward_is_refused():
    x, edge_index = zoo.graph((11, 30))
    module = dqconvert.prepare(Branches(), example_inputs=(x, edge_index)).module
    dqconvert.calibrate(module, (x, edge_index))
    session = Session(model_of(module))
    assert near(module.eval(), session, (x, edge_index), 1e-4)[0] == 1
    with pytest.raises(dqconvert.InputError, match="branch"):
        session(*zoo.graph((23, 71)))


def test_what_each_target_takes():
    module = calibrated("GCN")
    kinds = {node.op_type for node in model_of(module, target="onnxruntime").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear", "MatMul"} <= kinds
    assert "Div" not in kinds
    with pytest.raises(dqconvert.ExportError, match=r"zero point 0.*'int8-dq-symmetric'"):
        model_of(module, target="tensorrt")
    prepared = calibrated("GCN", "int8-dq-symmetric")
    symmetric = model_of(prepared, target="tensorrt")
    assert near(prepared, Session(symmetric), zoo.CASES["GCN"].inputs(SIZES[2]), last_step(prepared))[1] >= 0.99
    zeros = [onnx.numpy_helper.to_array(one) for one in symmetric.graph.initializer if one.name.endswith(".zero")]
    assert zeros
    assert all(zero.dtype == np.int8 and not zero.any() for zero in zeros)
    with pytest.raises(dqconvert.ExportError, match="4 bits"):
        model_of(calibrated("GCN", "int4-dq"), target="openvino")
    with pytest.raises(dqconvert.ExportError, match="target='tensorflow': is unknown"):
        model_of(module, target="tensorflow")


@pytest.mark.study
@pytest.mark.parametrize("target", [None, "openvino"])
@pytest.mark.parametrize("name", ["GCN", "GIN"])
def test_openvino(name, target):
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    module = calibrated(name)
    content = model_of(module, target=target).SerializeToString()
    options = {"INFERENCE_PRECISION_HINT": "f32"}  # bfloat16 otherwise, where the processor has it
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(content), "CPU", options)

    def session(x, edge_index):
        return torch.from_numpy(compiled([x.numpy(), edge_index.numpy()])[0])

    for size in SIZES:
        assert near(module, session, zoo.CASES[name].inputs(size), last_step(module))[1] >= 0.999


def test_runtimes_multiply_integers(tmp_path):
    for target, operator in ((None, "MatMulIntegerToFloat"), ("onnxruntime", "QGemm")):
        Session(model_of(calibrated("GIN"), target=target), optimized=tmp_path / "gin.onnx")
        assert operator in {node.op_type for node in onnx.load(tmp_path / "gin.onnx").graph.node}
