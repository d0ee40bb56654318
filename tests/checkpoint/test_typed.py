"""A file cannot make compiled code touch memory that is not its own: what loops rely on is proved on loading.

Each case is a file whose checksum is right, and whose graph or tensors are not what ``convert`` wrote.
"""

import inspect

import pytest
import torch
from torch_geometric.nn import GAT, GCN, GIN, GraphSAGE, GraphUNet

import dqconvert
from dqconvert import CheckpointError
from dqconvert.checkpoint.functions import INTEGER_ONLY, function_name
from dqconvert.checkpoint.operands import FINISH, MESSAGE_WEIGHT, SIGNATURES
from dqconvert.errors import InputIndexError
from dqconvert.kernels.integer.finish import Finish
from dqconvert.kernels.integer.propagate import MessageWeight
from mutations import graphs_of, opened, references, resign

WIDTH = 6
MODELS = {
    "GCN": lambda: GCN(WIDTH, 8, 2, 4),
    "GIN": lambda: GIN(WIDTH, 8, 2, 4),
    "GAT": lambda: GAT(WIDTH, 8, 2, 4, heads=2),
    "GATv2": lambda: GAT(WIDTH, 8, 2, 4, v2=True),
    "SAGE": lambda: GraphSAGE(WIDTH, 8, 2, 4),
    "UNet": lambda: GraphUNet(WIDTH, 8, 4, depth=2),
}


def a_graph():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(20, WIDTH, generator=generator), torch.randint(0, 20, (2, 60), generator=generator)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for name, model in MODELS.items():
        torch.manual_seed(0)
        module = dqconvert.prepare(model(), "int8-dq", a_graph()).module.train()
        module(*a_graph())
        dqconvert.save(module, folder / f"{name}.dq")
        dqconvert.save(dqconvert.convert(module), folder / f"{name}.int")
    return folder


@pytest.mark.parametrize(("kinds", "tuples"), [(FINISH, Finish), (MESSAGE_WEIGHT, MessageWeight)])
def test_every_member_of_a_tuple_is_looked_at(kinds, tuples):
    assert kinds.keys() == {*tuples._fields}


def last(target):
    return target.rpartition(".")[2]


def find(document, name, number=0):
    """A graph and the node in it that calls something."""
    found = [(graph, node) for graph in graphs_of(document) for node in graph if last(node["target"]) == name]
    return found[number]


def add_before(graph, node, **data):
    new = {"op": "call_function", "args": [], "kwargs": {}, "note": {}, **data}
    graph.insert(graph.index(node), new)
    return {"node": new["name"]}


def check_refused(files, tmp_path, name, change, words):
    tensors, document = opened(files / name)
    change(tensors, document)
    resign(tmp_path / name, tensors, document)
    model = {"model": MODELS[name[:-3]]()} if name.endswith(".dq") else {}
    with pytest.raises(CheckpointError, match=words):
        dqconvert.load(tmp_path / name, **model)


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", MODELS)
def test_what_nobody_changed_is_loaded_and_computes(name, files, tmp_path):
    tensors, document = opened(files / f"{name}.int")
    resign(tmp_path / "a.int", tensors, document)
    assert (tmp_path / "a.int").read_bytes() == (files / f"{name}.int").read_bytes()
    assert dqconvert.load(tmp_path / "a.int")(*a_graph()).shape == (20, 4)


def test_every_operation_has_a_signature_with_all_its_parameters():
    assert set(INTEGER_ONLY) == set(SIGNATURES)
    for function, kinds in SIGNATURES.items():
        assert set(kinds) == set(inspect.signature(function).parameters), function


# -- orders of edges -----------------------------------------------------------------------------------------------


def senders_of_checked_edges(tensors, document):
    """An operation on orders gets what `check_edges` returns."""
    node = find(document, "gcn_codes")[1]
    node["args"][1] = {"node": find(document, "check_edges")[1]["name"]}


def a_constant_as(position):
    def change(tensors, document):
        graph, node = find(document, "integer_propagate")
        node["args"][position] = {"node": next(n["name"] for n in graph if n["op"] == "get_attr")}

    return change


def an_argument_as(position):
    def change(tensors, document):
        graph, node = find(document, "integer_propagate")
        node["args"][position] = {"node": graph[1]["name"]}

    return change


def ptr_and_senders_swapped(tensors, document):
    args = find(document, "integer_propagate")[1]["args"]
    args[2], args[3] = args[3], args[2]


def codes_as_ptr(tensors, document):
    node = find(document, "integer_propagate", 1)[1]
    node["args"][2] = node["args"][0]


def parts_of_two_levels(tensors, document):
    one, two = (find(document, "integer_propagate", number)[1]["args"] for number in (0, 1))
    two[3] = one[3]


def parts_of_two_orders(tensors, document):
    graph, order = find(document, "receiver_order")
    again = {**order, "name": "again"}
    graph.insert(graph.index(order) + 1, again)
    part = next(n for n in graph if last(n["target"]) == "getitem" and n["args"] == [{"node": order["name"]}, 1])
    part["args"] = [{"node": "again"}, 1]
    graph.remove(part)
    graph.insert(graph.index(again) + 1, part)


def a_memo_returns_another(tensors, document):
    graph, *_ = document["memos"].values()
    found = graph[-1]["args"][0]["tuple"]
    orders = [item for item in found if isinstance(item, dict)]
    orders[0]["node"], orders[1]["node"] = orders[1]["node"], orders[0]["node"]


def a_memo_returns_what_it_is_given(tensors, document):
    graph, *_ = document["memos"].values()
    for item in graph[-1]["args"][0]["tuple"]:
        if isinstance(item, dict):
            item["node"] = graph[0]["name"]


def roots_of_a_constant(tensors, document):
    node = find(document, "gcn_codes")[1]
    node["args"][2] = node["args"][3]


def positions_that_were_not_wanted(tensors, document):
    order = find(document, "receiver_order")[1]
    order["kwargs"]["positions"] = False


def a_part_by_a_computed_number(tensors, document):
    graph, node = find(document, "fold_nodes")
    part = next(n for n in graph if n["args"][:1] == [{"node": node["name"]}])
    size = next(n for n in graph if last(n["target"]) == "size")
    part["args"][1] = {"node": size["name"]}


def a_level_that_is_not_there(tensors, document):
    node = find(document, "fold_nodes")[1]
    node["args"][3] = 0


def arithmetic_on_senders(tensors, document):
    graph, node = find(document, "integer_propagate")
    node["args"][3] = add_before(graph, node, name="more", target="operator.mul", args=[node["args"][3], 1000])


def a_view_of_senders(tensors, document):
    graph, node = find(document, "integer_propagate")
    args = [node["args"][3], 0, 0, 5]
    node["args"][3] = add_before(graph, node, op="call_method", name="less", target="narrow", args=args)


ORDERS = {
    senders_of_checked_edges: ("GCN", "gcn_codes.* takes the senders of an order of edges as its senders"),
    a_constant_as(2): ("GCN", "takes the ptr of an order of edges as its ptr, and is given a constant"),
    a_constant_as(3): ("GIN", "takes the senders of an order of edges as its senders, and is given a constant"),
    an_argument_as(2): ("SAGE", "takes the ptr of an order of edges as its ptr, and is given a plain value"),
    an_argument_as(3): ("GCN", "as its senders, and is given a plain value"),
    ptr_and_senders_swapped: ("GCN", "as its ptr, and is given the senders of an order"),
    codes_as_ptr: ("GIN", "as its ptr, and is given a plain value"),
    parts_of_two_levels: ("GCN", "parts of several orders"),
    parts_of_two_orders: ("UNet", "parts of several orders|no value"),
    a_memo_returns_another: ("GCN", "as its (ptr|senders), and is given the (ptr|senders) of an order"),
    a_memo_returns_what_it_is_given: ("GIN", "as its (ptr|senders), and is given a plain value"),
    roots_of_a_constant: ("GCN", "takes the roots of an order of edges as its roots, and is given a"),
    positions_that_were_not_wanted: ("GATv2", "takes a number below 2 as its index"),
    a_part_by_a_computed_number: ("GCN", "takes a number below 3 as its index"),
    a_level_that_is_not_there: ("GCN", "takes a number below 1 as its index"),
    arithmetic_on_senders: ("GCN", "more in the file .* takes a plain value"),
    a_view_of_senders: ("GIN", "less in the file .* takes a plain value"),
}


@pytest.mark.parametrize("change", ORDERS, ids=lambda change: f"{change.__qualname__}".split(".")[0])
def test_an_order_is_made_by_an_operator_that_orders_and_by_nothing_else(change, files, tmp_path):
    name, words = ORDERS[change]
    check_refused(files, tmp_path, f"{name}.int", change, words)


# -- what changes things in place ----------------------------------------------------------------------------------


def fill(graph, node, what):
    return add_before(graph, node, op="call_method", name="filled", target="fill_", args=[what, 1 << 40])


def fill_senders(tensors, document):
    graph, node = find(document, "integer_propagate")
    fill(graph, node, node["args"][3])


def fill_the_data_of_senders(tensors, document):
    """As reported: `getattr(senders, "data")`, then a write that raises no version counter."""
    graph, node = find(document, "integer_propagate")
    fill(graph, node, add_before(graph, node, name="bare", target="builtins.getattr", args=[node["args"][3], "data"]))


def fill_the_data_of_an_argument(tensors, document):
    graph, node = find(document, "integer_propagate")
    fill(graph, node, add_before(graph, node, name="bare", target="builtins.getattr", args=[{"node": "x"}, "data"]))


def fill_a_table(tensors, document):
    graph, node = find(document, "integer_propagate")
    fill(graph, node, node["args"][1])


def fill_a_view_of_a_weight(tensors, document):
    graph, node = find(document, "integer_linear")
    view = add_before(graph, node, op="call_method", name="seen", target="flatten", args=[node["args"][2]])
    fill(graph, node, view)


def write_out(tensors, document):
    graph, node = find(document, "integer_propagate")
    args, kwargs = [{"node": "x"}, {"node": "x"}], {"out": {"node": "x"}}
    add_before(graph, node, name="out", target="torch.add", args=args, kwargs=kwargs)


WRITES = {
    fill_senders: "filled in the file .* takes a plain value",
    fill_the_data_of_senders: "reads the attribute .*data",
    fill_the_data_of_an_argument: "reads the attribute .*data",
    fill_a_table: "uses the constant .*, which only loops may read",
    fill_a_view_of_a_weight: "uses the constant .*, which only loops may read",
    write_out: "write into its out=",
}


@pytest.mark.parametrize("change", WRITES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("name", ["GCN", "GIN"])
def test_nothing_is_written_into_what_loops_rely_on(change, name, files, tmp_path):
    check_refused(files, tmp_path, f"{name}.int", change, WRITES[change])


# -- what a graph may call -----------------------------------------------------------------------------------------


@pytest.mark.sample(3)
@pytest.mark.parametrize("kind", ["int", "dq"])
@pytest.mark.parametrize(
    ("op", "target"),
    [
        *(("call_function", f"torch.{name}") for name in ("sparse_compressed_tensor", "as_strided", "frombuffer")),
        *(("call_function", f"torch.{name}") for name in ("fbgemm_pack_quantized_matrix", "lstm", "from_file", "save")),
        *(("call_function", f"torch.{name}") for name in ("_C._nn.linear", "ctc_loss", "_segment_reduce")),
        *(("call_method", name) for name in ("set_", "resize_", "as_strided", "data_ptr", "const_data_ptr", "numpy")),
        *(
            ("call_method", name)
            for name in ("sparse_resize_", "resize_as_sparse_", "apply_", "_indices", "__reduce__")
        ),
    ],
)
def test_what_believes_sizes_and_pointers_is_on_no_list(op, target, kind, files, tmp_path):
    def change(tensors, document):
        graph = document["graph"] if kind == "int" else document["graphs"]["train"]
        add_before(graph, graph[-1], op=op, name="harm", target=target, args=[{"node": "x"}])

    check_refused(files, tmp_path, f"GCN.{kind}", change, "not allowed|only integer graphs")


@pytest.mark.sample(3)
@pytest.mark.parametrize("function", INTEGER_ONLY, ids=lambda function: function.__name__)
def test_prepared_files_call_no_operation_of_integer_files(function, files, tmp_path):
    """Their operands would not be looked at."""

    def change(tensors, document):
        node = find(document, "gcn_norm")[1]
        node["target"] = function_name(function)

    check_refused(files, tmp_path, "GCN.dq", change, "only integer graphs")


def test_sparse_matrices_of_files_are_looked_at_and_have_memory_of_their_own(files, tmp_path):
    """Of a model that makes them: with edges that end at no node, an error and no read past the end."""
    module = dqconvert.load(files / "UNet.int")
    x, edge_index = a_graph()
    assert module(x, edge_index).isfinite().all()

    def wrong_columns(tensors, document):
        graph, node = find(document, "to_torch_csr_tensor")
        node["args"][0] = add_before(graph, node, name="far", target="operator.add", args=[node["args"][0], 10**6])

    tensors, document = opened(files / "UNet.int")
    wrong_columns(tensors, document)
    resign(tmp_path / "a.int", tensors, document)
    with pytest.raises(InputIndexError, match="edge_index names 10000"):
        dqconvert.load(tmp_path / "a.int")(x, edge_index)


def test_the_columns_of_a_sparse_matrix_are_looked_at_before_it_is_multiplied(files, tmp_path):
    """As reported: `torch.sparse_csr_tensor` with columns past the end, then a product."""
    tensors, document = opened(files / "GCN.int")
    graph = document["graph"]
    ends, far = [{"node": "edge_index"}, 0], [{"node": "sender"}, 10**9]
    sender = add_before(graph, graph[-1], name="sender", target="operator.getitem", args=ends)
    columns = add_before(graph, graph[-1], name="far", target="operator.add", args=far)
    weights = add_before(graph, graph[-1], op="call_method", name="weights", target="float", args=[sender])
    rows = add_before(graph, graph[-1], name="rows", target="torch.arange", args=[61])
    args = [rows, columns, weights, {"tuple": [60, 20]}]
    sparse = add_before(graph, graph[-1], name="sparse", target="torch.sparse_csr_tensor", args=args)
    product = [sparse, {"node": "x"}]
    graph[-1]["args"] = [add_before(graph, graph[-1], name="product", target="operator.matmul", args=product)]
    resign(tmp_path / "a.int", tensors, document)
    with pytest.raises(CheckpointError, match=r"sparse: .*col_indices"):
        dqconvert.load(tmp_path / "a.int")(*a_graph())
    fill(graph, graph[-1], columns)
    resign(tmp_path / "a.int", tensors, document)
    with pytest.raises(CheckpointError, match="makes a sparse matrix, and writes"):
        dqconvert.load(tmp_path / "a.int")


def test_nothing_is_written_into_the_indices_of_a_sparse_matrix(files, tmp_path):
    def change(tensors, document):
        graph, node = find(document, "to_torch_csr_tensor")
        after = graph[graph.index(node) + 1]
        made = {"node": node["name"]}
        columns = add_before(graph, after, op="call_method", name="columns", target="col_indices", args=[made])
        fill(graph, after, add_before(graph, after, op="call_method", name="seen", target="view", args=[columns, -1]))

    check_refused(files, tmp_path, "UNet.int", change, "writes into the indices of a sparse matrix")


# -- constants -----------------------------------------------------------------------------------------------------


def constant(document, tensors, function, position):
    graph, node = find(document, function)
    (found,) = references(node["args"][position])
    name = next(n["target"] for n in graph if n["name"] == found["node"])
    document["tables"].pop(name, None)
    document["weights"].pop(name, None)
    return name


@pytest.mark.parametrize(
    ("name", "function", "position", "changed"),
    [
        ("GCN", "integer_linear", 1, torch.tensor([1.0, 0.0, 256.0, 0.0])),
        ("GCN", "integer_linear", 1, torch.tensor([1.0, 0.0, 255.0])),
        ("GCN", "integer_linear", 2, torch.zeros(1, 2, 16, 2, dtype=torch.int32)),
        ("GCN", "integer_linear", 2, torch.zeros(9, 2, 16, 2, dtype=torch.int16)),
        ("GCN", "integer_linear", 2, torch.zeros(1, 2, 15, 2, dtype=torch.int16)),
        ("GAT", "attention_codes", 2, torch.zeros(256, 255, dtype=torch.uint8)),
        ("GAT", "attention_codes", 2, torch.zeros(256, 256)),
        ("GAT", "attention_codes", 3, torch.zeros(255)),
        ("GAT", "attention_codes", 3, torch.full((256,), torch.inf)),
    ],
)
def test_constants_are_what_the_loops_take_them_for(name, function, position, changed, files, tmp_path):
    def change(tensors, document):
        tensors[constant(document, tensors, function, position)] = changed

    check_refused(files, tmp_path, f"{name}.int", change, "damaged")


@pytest.mark.parametrize("columns", [7, 9, 1 << 20, -8, 2.5, True, None])
def test_numbers_of_columns_are_those_of_the_constants(columns, files, tmp_path):
    def change(tensors, document):
        find(document, "integer_linear")[1]["args"][3] = columns
        document["weights"].clear()

    check_refused(files, tmp_path, "GCN.int", change, "damaged|a number of columns")


def test_sums_without_a_grid_end_in_no_table(files, tmp_path):
    """A table is looked up by codes, and these sums have none."""

    def change(tensors, document):
        args = [arg for graph in graphs_of(document) for node in graph for arg in node["args"] if isinstance(arg, dict)]
        finishes = [arg["namedtuple"] for arg in args if arg.get("namedtuple", [""])[0].endswith(":Finish")]
        next(fields for fields in finishes if fields[4] is not None)[2] = None  # its table, and its grid

    check_refused(files, tmp_path, "GCN.int", change, "table that is damaged")


@pytest.mark.parametrize("training", [True, False])
def test_a_prepared_graph_that_never_computes_is_the_file_s_fault(files, tmp_path, training):
    """What plain operations are given is seen where they are called: the first failure speaks of the file."""
    tensors, document = opened(files / "GCN.dq")
    for graph in graphs_of(document):
        for node in graph:
            node["target"] = "torch.bmm" if last(node["target"]) == "add" else node["target"]
    resign(tmp_path / "a.dq", tensors, document)
    module = dqconvert.load(tmp_path / "a.dq", model=MODELS["GCN"]()).train(training)
    with pytest.raises(CheckpointError, match=r"gcn_conv.py:\d+, add.*the file was changed after it was saved"):
        module(*a_graph())


def test_a_graph_that_computed_once_is_sound(files):
    """Then what fails is for the inputs, and says so as it would without a file."""
    module = dqconvert.load(files / "GCN.dq", model=MODELS["GCN"]()).eval()
    x, edge_index = a_graph()
    module(x, edge_index)
    with pytest.raises(dqconvert.DQConvertError) as failure:
        module(x[:, :3], edge_index)
    assert not isinstance(failure.value, CheckpointError)
