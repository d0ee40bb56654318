"""Other tools applied to our modules: they work, or one sentence names what serves the purpose."""

from __future__ import annotations

import copy
import io
import multiprocessing
import os
import textwrap
import warnings
from html.parser import HTMLParser

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch_geometric.explain import Explainer, GNNExplainer
from torch_geometric.nn import GCN, to_hetero

import dqconvert
from dqconvert import ConfigError, ExportError, GuardError, ObserverError, TraceError


def graph(nodes=12):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(nodes, 6, generator=generator), torch.randint(nodes, (2, 3 * nodes), generator=generator)


@pytest.fixture(scope="module")
def made():
    torch.manual_seed(0)
    model = GCN(6, 8, 2, 3)
    module, report = dqconvert.prepare(model)
    module.train()(*graph())
    module.eval()
    return {"float": model, "prepared": module, "integer": dqconvert.convert(module), "report": report}


# -- tools that record a model -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["prepared", "integer"])
@pytest.mark.parametrize("tool", ["torch.jit.script", "torch.jit.trace", "torch.onnx.export"])
def test_torchscript_names_what_serves_the_purpose(stage, tool, made):
    calls = {
        "torch.jit.script": lambda: torch.jit.script(made[stage]),
        "torch.jit.trace": lambda: torch.jit.trace(made[stage], graph()),
        "torch.onnx.export": lambda: torch.onnx.export(made[stage], graph(), io.BytesIO(), dynamo=False),
    }
    with pytest.raises(ExportError, match=rf"{tool} cannot take an? {stage}.*dqconvert\.export.*dqconvert\.save"):
        calls[tool]()


def test_a_module_inside_another_that_is_scripted_or_traced(made):
    for tool in (torch.jit.script, lambda outer: torch.jit.trace(outer, graph())):
        with pytest.raises(ExportError, match="cannot take a prepared module"):
            tool(Outer(made["prepared"]))


def test_preparing_within_a_trace_of_torchs_is_refused():
    """Two recorders at once: torch's crashed."""

    class Prepares(nn.Module):
        def forward(self, x, edge_index):
            return dqconvert.prepare(GCN(6, 8, 2, 3), "int8-dq", (x, edge_index)).module(x, edge_index)

    with pytest.raises(TraceError, match=r"^prepare was called within torch\.jit\.trace: prepare the model before"):
        torch.jit.trace(Prepares(), graph())


class Outer(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, edge_index):
        return self.inner(x, edge_index)


def test_symbolic_tracing_says_that_it_is_a_graph_already(made):
    for tool in (torch.fx.symbolic_trace, lambda m: to_hetero(m, (["a"], [("a", "to", "a")]))):
        with pytest.raises(TraceError, match=r"a graph already: module\.graph"):
            tool(made["prepared"])


def test_torch_s_own_quantization(made):
    with pytest.raises(ConfigError, match=r"torch\.ao\.quantization cannot quantize a prepared module.*convert"):
        torch.ao.quantization.quantize_dynamic(made["prepared"], {nn.Linear})


# -- explainers ----------------------------------------------------------------------------------------------------


def explainer(model, **masks):
    config = {"mode": "multiclass_classification", "task_level": "node", "return_type": "raw"}
    return Explainer(model, algorithm=GNNExplainer(epochs=2), explanation_type="model", model_config=config, **masks)


def test_an_explainer_s_edge_mask_is_refused_and_taken_off_again(made):
    module = copy.deepcopy(made["prepared"])
    with pytest.raises(GuardError, match=r"mask for edges on GCNConv.*explain the float model.*edge_mask_type out"):
        explainer(module, node_mask_type="attributes", edge_mask_type="object")(*graph(), index=3)
    assert torch.equal(module(*graph()), made["prepared"](*graph()))
    assert explainer(module, node_mask_type="attributes")(*graph(), index=3).node_mask.shape == (12, 6)


def test_masks_set_by_hand_are_refused_in_each_mode(made):
    module = copy.deepcopy(made["prepared"])
    for mode in (True, False):
        module.convs[1]._edge_mask = torch.ones(36)
        with pytest.raises(GuardError, match="mask for edges"):
            module.train(mode)(*graph())
        module(*graph())


def test_what_the_message_says_to_do_works(made):
    model = GCN(6, 8, 2, 3)
    model.load_state_dict(made["prepared"].state_dict(), strict=False)
    assert explainer(model, edge_mask_type="object")(*graph(), index=3).edge_mask.shape == (36,)


# -- tools that wrap or change a module ----------------------------------------------------------------------------


def test_what_works(made):
    module = copy.deepcopy(made["prepared"])
    x, edge_index = graph()
    expected = module(x, edge_index)
    state = {name: value for name, value in module.state_dict().items() if value.is_floating_point()}
    assert torch.equal(torch.func.functional_call(module, state, (x, edge_index)), expected)
    assert torch.equal(module.share_memory()(x, edge_index), expected)
    assert torch.equal(nn.DataParallel(module)(x, edge_index), expected)
    assert torch.equal(torch.export.export(module, (x, edge_index)).module()(x, edge_index), expected)
    prune.l1_unstructured(module.convs[0].lin, "weight", 0.5)
    prune.remove(module.convs[0].lin, "weight")
    assert not torch.equal(module(x, edge_index), expected)


# -- evaluation before training ------------------------------------------------------------------------------------


@pytest.mark.study
def test_validation_before_training_says_how_to_go_on():
    module = dqconvert.prepare(GCN(6, 8, 2, 3)).module.eval()
    with pytest.raises(ObserverError, match=r"before the first training step.*num_sanity_val_steps=0.*calibrate"):
        module(*graph())
    with pytest.raises(Exception, match="never observed a value"):
        torch.compile(module, backend="eager")(*graph())
    with pytest.raises(Exception, match=r"never observed a value|ObserverError"):
        torch.export.export(module, graph())
    dqconvert.calibrate(module, graph())
    assert torch.equal(torch.compile(module, backend="eager")(*graph()), module(*graph()))


# -- optimizers ----------------------------------------------------------------------------------------------------


def step(module, optimizer):
    optimizer.zero_grad()
    module(*graph()).sum().backward()
    optimizer.step()


def warned(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(warning.message) for warning in caught if "it trains nothing" in str(warning.message)]


def test_an_optimizer_of_the_float_model_s_parameters_is_noticed_once():
    model = GCN(6, 8, 2, 3)
    optimizer = torch.optim.Adam(model.parameters())
    step(model, optimizer)
    module = dqconvert.prepare(model).module.train()
    [message] = warned(lambda: step(module, optimizer))
    assert "this Adam holds 4 parameters of the model that was prepared" in message
    assert "module.parameters()" in message
    assert not warned(lambda: step(module, optimizer))


def test_so_is_one_of_a_prepared_module_that_was_prepared_again_or_loaded(tmp_path):
    first = dqconvert.prepare(GCN(6, 8, 2, 3)).module.train()
    optimizer = torch.optim.SGD(first.parameters(), lr=0.1)
    step(first, optimizer)
    assert len(warned(lambda: step(dqconvert.prepare(first, "int4-dq").module.train(), optimizer))) == 1
    dqconvert.save(first, tmp_path / "a.dq")
    model = GCN(6, 8, 2, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert len(warned(lambda: step(dqconvert.load(tmp_path / "a.dq", model=model).train(), optimizer))) == 1


def test_nobody_else_is_warned():
    model = GCN(6, 8, 2, 3)
    module = dqconvert.prepare(model).module.train()
    assert not warned(lambda: step(module, torch.optim.SGD(module.parameters(), lr=0.1)))
    assert not warned(lambda: step(model, torch.optim.SGD(model.parameters(), lr=0.1)))  # both have gradients
    together = torch.optim.SGD([*model.parameters(), *module.parameters()], lr=0.1)
    assert not warned(lambda: step(module, together))
    other = nn.Linear(2, 1)
    other(torch.ones(1, 2)).sum().backward()
    assert not warned(torch.optim.SGD(other.parameters(), lr=0.1).step)
    accumulating = torch.optim.SGD(module.parameters(), lr=0.1)
    assert not warned(lambda: [module(*graph()).sum().backward() for _ in range(3)] and accumulating.step())


# -- forked children -----------------------------------------------------------------------------------------------

FORK = """
    import os, signal, sys, warnings
    import torch, dqconvert
    from torch_geometric.nn import GCN
    torch.set_num_threads(2)
    x, edge_index = torch.randn(20000, 64), torch.randint(20000, (2, 100000))
    module = dqconvert.prepare(GCN(64, 64, 2, 4)).module.train()
    module(x, edge_index).sum().backward()
    expected = module.eval()(x, edge_index).detach()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            same = torch.allclose(module(x, edge_index), expected, atol=1e-3)
            module.train()(x, edge_index).sum().backward()
        told = sum("forked" in str(warning.message) for warning in caught)
        os._exit(0 if same and told == 1 and torch.get_num_threads() == 1 else 1)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_of_a_parent_with_threads_goes_on_with_one(spare):
    """It waited forever for threads that it does not have."""
    done = spare.run(textwrap.dedent(FORK))
    assert done.returncode == 0, done.stderr


def _evaluate(module, queue):
    queue.put(float(module(*graph()).detach().sum()))


@pytest.mark.study
def test_a_spawned_child_takes_a_module(made):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=_evaluate, args=(made["prepared"], queue))
    child.start()
    found = queue.get(timeout=120)
    child.join()
    assert found == pytest.approx(float(made["prepared"](*graph()).detach().sum()), abs=1e-5)


# -- notebooks -----------------------------------------------------------------------------------------------------


class Balanced(HTMLParser):
    """Checks that every tag is closed where it should be."""

    def __init__(self):
        super().__init__()
        self.open, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        assert not attrs  # no colors and no styles: the notebook's own
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_what_a_notebook_shows_is_short_and_valid(made):
    comparison = dqconvert.compare(made["prepared"], made["integer"], graph())
    for value in (made["report"], made["integer"], made["integer"].report, comparison):
        assert len(repr(value)) < 200, repr(value)
        assert "\n" not in repr(value)
    assert "14 quantizers" in repr(made["report"])
    assert "IntegerModule of a GCN: 2 integer_linear" in repr(made["integer"])
    for value in (*made.values(), made["integer"].report, comparison):
        if hasattr(value, "_repr_html_"):
            page = Balanced()
            page.feed(value._repr_html_())
            page.close()
            assert not page.open
            assert page.text


def test_html_is_escaped():
    report = dqconvert.Report(model="<b>Evil & Co</b>", entries=(), remarks=("a < b",))
    page = Balanced()
    page.feed(report._repr_html_())
    assert "<b>Evil & Co</b>: 0 quantizers" in page.text
    assert "note: a < b" in page.text
