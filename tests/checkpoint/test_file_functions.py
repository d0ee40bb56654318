"""What can be traced can be saved: the functions and methods that files name, against all that a graph can hold."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Graph
from torch.overrides import get_testing_overrides, resolve_name
from torch_geometric.data import Data

import dqconvert
import zoo
from dqconvert.checkpoint.functions import allowed_functions, allowed_methods, function_name
from dqconvert.checkpoint.graph_data import decode_graph, encode_graph
from dqconvert.errors import CheckpointError
from dqconvert.ops import ALIASES, OPS
from dqconvert.trace.calls import normal_call
from dqconvert.trace.in_place import becomes_a_view, written
from dqconvert.trace.note import Note, annotate
from dqconvert.trace.runtime import store

# These believe what they are told of memory, or are the insides of others, which models call.
UNSAFE = re.compile(
    r"as_strided|batch_norm_|quantize|fbgemm|miopen|native_|(gru|lstm|rnn_tanh|rnn_relu)(_cell)?$|ctc_loss|fused_|sparse_resize"
    r"|resize_as_sparse|data_ptr|record_stream|retain_grad|storage_offset|to_mkldnn"
)
# These read values, run other code, move between processes, or change what a tensor is: no graph holds them.
REFUSED = re.compile(
    r"__(float|complex|array|bool|array_wrap|deepcopy|int|long|index|len|format|reduce_ex|repr|setstate|div|nonzero"
    r"|dlpack|dlpack_device|get|set|delete)__$|\.(apply_|map_|map2_|numpy|backward|register_\w*hook|resize_|resize_as_|set_"
    r"|share_memory_|module_load|storage|untyped_storage|data_ptr|_\w+)$|distributed|functional_collectives|nn\.init\.|^<"
)


def names(call):
    return call.target in allowed_methods() if isinstance(call.target, str) else function_name(call.target) is not None


def test_every_function_that_torch_lets_one_see_has_a_name_in_files():
    missing = []
    for function in get_testing_overrides():
        name = resolve_name(function) or repr(function)
        if not REFUSED.search(name) and not UNSAFE.search(name) and not names(normal_call(function, (), {})):
            missing.append(name)
    assert missing == []


def test_every_activation_of_the_table_has_a_name_in_files():
    functions = {getattr(F, name) for op in OPS for name in op.names if callable(getattr(F, name, None))}
    functions -= {F.sigmoid, F.tanh}  # which call a tensor's methods: these are recorded
    assert {F.hardswish, F.relu} < functions
    assert not [function for function in functions if function_name(function) is None]


def test_every_name_that_an_alias_stands_for_is_in_files():
    for alias, name in ALIASES.items():
        assert name in allowed_methods() or f"torch.{name}" in allowed_functions(), alias


def test_no_file_names_what_opens_files_runs_code_or_writes():
    every = {*allowed_functions(), *(f"torch.Tensor.{name}" for name in allowed_methods())}
    words = ("load", "save", "from_file", "tofile", "pickle", "exec", "eval", "open", "import", "set_", "hook", "numpy")
    assert not [name for name in every if any(re.search(rf"(^|[._]){word}$", name) for word in words if word != "set_")]
    assert "set_" not in allowed_methods()


def adjacency(h, e):
    return torch.sparse_coo_tensor(e, torch.ones(e.size(1)), (h.size(0), h.size(0)))


FUNCTIONS = {
    "torch.sparse.mm": lambda h, e: torch.sparse.mm(adjacency(h, e), h),
    "torch.sparse.sum": lambda h, e: h + torch.sparse.sum(adjacency(h, e), dim=1).to_dense()[:, None],
    "torch.sparse.softmax": lambda h, e: torch.sparse.softmax(adjacency(h, e), dim=1).to_dense() @ h,
    "torch.clamp_": lambda h, e: torch.clamp_(h * 1, min=0),
    "torch.relu_": lambda h, e: torch.relu_(h * 1) + F.relu_(h * 1) + F.leaky_relu_(h * 1),
    "torch.nn.functional.elu_": lambda h, e: F.elu_(h * 1) + torch.celu_(h * 1) + F.selu(h * 1, inplace=True),
    "torch.segment_reduce": lambda h, e: h + torch.segment_reduce(h, "sum", lengths=torch.ones_like(h[:, 0]).long()),
    "pad_sequence": lambda h, e: nn.utils.rnn.pad_sequence([h, h], batch_first=True)[0],
    "torch.ops.aten": lambda h, e: torch.ops.aten.relu(h) + torch.ops.aten._softmax(h, 1, False),
    "reversed": lambda h, e: h.__reversed__(),
    "parts of a sparse matrix": lambda h, e: h + adjacency(h, e).coalesce().values().sum(),
    "in place, without a namesake": lambda h, e: torch.zeros_like(h).fill_diagonal_(1) + torch.empty_like(h).copy_(h),
}


class Model(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.lin, self.out, self.function = nn.Linear(6, 8), nn.Linear(8, 4), function

    def forward(self, x, edge_index):
        return self.out(self.function(self.lin(x), edge_index))


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_module_that_calls_it_is_saved_and_loaded(name, tmp_path):
    model = Model(FUNCTIONS[name])
    module = dqconvert.prepare(model, "int8-dq", zoo.graph()).module
    zoo.train_step(module, zoo.graph(), 0)
    dqconvert.save(module.eval(), tmp_path / "file")
    inputs = zoo.graph(zoo.OTHER)
    zoo.assert_same(dqconvert.load(tmp_path / "file", model)(*inputs), module(*inputs))


def unnamed(h, e):
    return torch._adaptive_avg_pool2d(h[None], (h.size(0), 8))[0]


def test_what_files_have_no_name_for_is_refused_where_it_is_saved(tmp_path):
    module = dqconvert.prepare(Model(unnamed), "int8-dq", zoo.graph()).module
    with pytest.raises(CheckpointError, match=r"test_file_functions\.py:\d+: the graph holds the function torch\._ad"):
        dqconvert.save(module, tmp_path / "file")
    assert not (tmp_path / "file").exists()


def test_a_method_that_no_reader_takes_is_not_written():
    graph = torch.fx.Graph()
    graph.output(graph.call_method("apply_", (graph.placeholder("x"),)))
    with pytest.raises(CheckpointError, match=r"the graph holds the method apply_\(\) of a tensor"):
        encode_graph(graph)


def test_a_file_does_not_write_into_a_result_that_is_given():
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(torch.add, (x, 1), {"out": x}))
    with pytest.raises(CheckpointError, match=r"has 'add' write into its out=, which is not allowed"):
        decode_graph(encode_graph(graph))


def test_what_writes_has_a_twin_that_does_not():
    """Of every function and method that ends with an underscore, or the graph calls it on a copy."""
    x = torch.ones(2)
    missing = [
        name
        for name in dir(torch.Tensor)
        if re.fullmatch(r"[a-z]\w*[a-z0-9]_", name)
        and not REFUSED.search(f".{name}")
        and not becomes_a_view(name)
        and name not in ("requires_grad_", "rename_", "resize_as_sparse_")
        and not name.startswith("sparse_resize")
        and written(getattr(torch.Tensor, name), name, (x,), {}) is None
    ]
    assert missing == []


def test_an_integer_graph_in_a_file_stores_nothing():
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    graph.call_function(store, (x, x))
    graph.output(x)
    with pytest.raises(CheckpointError, match="integer graphs keep no state"):
        decode_graph(encode_graph(graph), integer=True)


def test_a_function_is_read_back_under_the_name_that_passes_know():
    """Some of torch's functions are equal and have several names: `torch.mm` came back as `torch.dsmm`."""
    for name in ("mm", "bmm", "matmul", "cat", "relu", "sum", "mul", "stack"):
        function = getattr(torch, name)
        assert allowed_functions()[function_name(function)].__name__ == name


class Timed(nn.Module):
    """Reads fields whose names tensors have as methods."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(3, 2)

    def forward(self, data):
        return self.lin(data.x) * data.t + data.norm


def test_a_field_of_an_argument_may_be_called_as_a_method(tmp_path):
    data = Data(x=torch.randn(6, 3), t=torch.rand(6, 1), norm=torch.rand(6, 1))
    module = dqconvert.prepare(Timed(), "int8-dq", data).module.train()
    module(data)
    for one, given in ((module.eval(), {"model": Timed()}), (dqconvert.convert(module), {})):
        dqconvert.save(one, tmp_path / "file")
        assert torch.equal(dqconvert.load(tmp_path / "file", **given)(data), one(data))


@pytest.mark.parametrize("name", ["t", "fill_", "data", "set_", "grad"])
@pytest.mark.parametrize("of_argument", [True, False])
def test_a_method_of_a_tensor_is_no_field(name, of_argument):
    graph = Graph()
    x = graph.placeholder("x")
    read = graph.call_function(getattr, (x if of_argument else graph.call_method("relu", (x,)), name))
    graph.output(read)
    for node in graph.nodes:
        annotate(node, Note())
    if name == "t" and of_argument:
        encode_graph(graph)
        return
    with pytest.raises(CheckpointError, match=f"attribute '{name}'"):
        encode_graph(graph)
