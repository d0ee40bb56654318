"""The page of ``inspect --html``: what is in it, and how it works under hands, in a real browser."""

import json
import math
import re

import pytest
import torch
from torch import nn
from torch_geometric.nn import GCN, GCNConv
from typer.testing import CliRunner

import dqconvert
import zoo
from browser import CHROMIUM, Browser
from dqconvert.cli import app
from dqconvert.prepared.module import view_module
from dqconvert.show.page import page_of

X, EDGES = torch.randn(20, 8), torch.randint(20, (2, 60))


class Skips(nn.Module):
    """Two layers with a skip connection around the second, a shared activation and a layer called twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.act = GCNConv(8, 8), GCNConv(8, 8), nn.ReLU()

    def forward(self, x, edge_index):
        x = self.act(self.first(x, edge_index))
        x = x + self.act(self.second(x, edge_index))
        return self.second(x, edge_index)


def trained(model, qconfig="int8-dq"):
    module = dqconvert.prepare(model, qconfig, (X, EDGES)).module
    module.train()(X, EDGES).sum().backward()
    return module.eval()


def picture(text, graph=0):
    """What a page says, and what it says of one of its graphs."""
    found = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL)[1])
    return found | found["graphs"][graph]


def dq(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args], prog_name="dqconvert")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Prepared and integer files of a GCN, what ``compare`` says of them, and their pages."""
    torch.manual_seed(0)
    folder, model = tmp_path_factory.mktemp("pages"), GCN(8, 8, 3, 4, norm="batch_norm")
    module = trained(model)
    dqconvert.save(module, folder / "gcn.dq")
    dqconvert.save(dqconvert.convert(module), folder / "gcn.int")
    (folder / "compared.json").write_text(json.dumps(dqconvert.compare(module, module, (X, EDGES)).to_dict()))
    for kind in ("dq", "int"):
        known = ["--html", folder / f"{kind}.html", "--comparison", folder / "compared.json"]
        assert dq("inspect", folder / f"gcn.{kind}", *known).exit_code == 0
    return folder


# -- what is in it -----------------------------------------------------------------------------------------------------


def test_the_page_needs_nothing_else(files):
    for kind in ("dq", "int"):
        text = (files / f"{kind}.html").read_text()
        assert not re.search(
            r"https?://(?!www\.w3\.org/2000/svg)|@import|url\((?!#)|fetch\(|XMLHttpRequest| src=", text
        )
        assert "default-src 'none'" in text
        assert not re.search(r"@[A-Z]+@", text)


def test_every_quantizer_has_a_box_in_its_layer(files):
    found = picture((files / "dq.html").read_text())
    layers = {layer["id"]: layer for layer in found["layers"]}
    assert [layer["path"] for layer in found["layers"]] == ["convs.0", "convs.1", "convs.2"]
    assert all(
        layer["kind"] == "GCNConv" and layer["facts"].startswith("7 quantizers (s8") for layer in layers.values()
    )
    quantizers = [node for node in found["nodes"] if node["kind"] == "quantizer"]
    assert len(quantizers) == 21
    for node in quantizers:
        assert layers[node["layer"]]["path"] == ".".join(node["module"].split(".")[:2])
        assert {"code", "range", "sqnr"} <= node.keys()
    assert [name for name, _ in found["legend"]][:2] == ["weight", "input"]
    assert "s8" in dict(found["signs"])


def test_edges_are_values_and_pills_are_indices(files):
    nodes = {node["id"]: node for node in picture((files / "dq.html").read_text())["nodes"]}
    assert nodes["linear"]["inputs"] == ["convs_0_lin_quant_weight", "convs_0_lin_quant_input"] or nodes["linear"][
        "inputs"
    ] == ["convs_0_lin_quant_input", "convs_0_lin_quant_weight"]
    assert nodes["gcn_norm"]["inputs"] == []
    assert nodes["gcn_norm"]["refs"] == ["edge_index"]
    assert nodes["convs_0_quant_message"]["refs"] == ["quant_protect", "gcn_norm"]
    everything = {name for node in nodes.values() for name in (*node["inputs"], *node["refs"])}
    assert everything <= nodes.keys()


def test_layers_make_no_circle_where_modules_are_shared_or_called_twice():
    found = picture(page_of(view_module(trained(Skips()))))
    assert [layer["path"] for layer in found["layers"]] == ["first", "second", "second"]
    home = {node["id"]: node["layer"] or node["id"] for node in found["nodes"]}
    after = {(home[source], home[node["id"]]) for node in found["nodes"] for source in node["inputs"]}
    left = {pair for pair in after if pair[0] != pair[1]}
    while left:
        free = {b for _, b in left} | {a for a, _ in left}
        free -= {b for _, b in left}
        assert free, f"a circle: {left}"
        left = {pair for pair in left if pair[0] not in free}


def test_ratios_color_nodes_and_their_absence_is_said(files):
    module = trained(GCN(8, 8, 1, 4))
    paths = [path for path, _ in module.quantizers()]
    ratios = {paths[0]: 12.5, paths[1]: math.inf, paths[2]: -math.inf}
    found = {node["details"][0][1]: node for node in picture(page_of(view_module(module), ratios))["nodes"]}
    assert [found[path].get("sqnr") for path in paths[:4]] == [12.5, "exact", "lost", None]


def test_an_integer_page_names_what_a_node_holds_and_what_stays_float(files, tmp_path):
    found = picture((files / "int.html").read_text())
    linear = next(node for node in found["nodes"] if node["id"] == "integer_linear")
    assert linear["kind"] == "integer"
    assert dict(linear["details"])["holds"].startswith("convs.0.lin.quant.feature: (code - ")
    assert linear["sqnr"] > 5
    assert [layer["path"] for layer in found["layers"]][:2] == ["convs.0", "convs.1"]

    dqconvert.save(dqconvert.convert(trained(GCN(8, 8, 2, 4, norm="graph_norm"))), tmp_path / "norm.int")
    assert dq("inspect", tmp_path / "norm.int", "--html", tmp_path / "norm.html").exit_code == 0
    nodes = picture((tmp_path / "norm.html").read_text())["nodes"]
    report = dqconvert.load(tmp_path / "norm.int").report
    assert {node["id"]: node["in_float"] for node in nodes if "in_float" in node} == {
        one.node: one.reason for one in report.floats if one.node in {node["id"] for node in nodes}
    }
    assert any("in_float" in node for node in nodes)


def test_names_do_not_become_markup():
    view = view_module(trained(GCN(8, 8, 1, 4)))
    view.modules["x"] = "</script><script>alert(1)</script>"
    object.__setattr__(view.report, "model", "<img src=x onerror=alert(1)>@DATA@")
    for node in view.nodes["train"]:
        object.__setattr__(node, "source", "</script><script>alert(2)</script>")
    text = page_of(view)
    assert "<img" not in text
    assert text.count("</script>") == 2


def test_mistakes_are_one_line(files, tmp_path):
    (tmp_path / "other.json").write_text("[]")
    alone = dq("inspect", files / "gcn.dq", "--comparison", files / "compared.json")
    assert (alone.exit_code, alone.stderr.count("\n")) == (2, 1)
    other = dq("inspect", files / "gcn.dq", "--html", tmp_path / "a.html", "--comparison", tmp_path / "other.json")
    assert (other.exit_code, other.stderr.count("\n")) == (1, 1)
    assert "is not what `dqconvert compare --json` prints" in other.stderr
    assert not (tmp_path / "a.html").exists()


# -- under hands -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    one = Browser(tmp_path_factory.mktemp("profile"))
    yield one
    one.close()
    assert not one.errors
    assert not [url for url in one.requests if not url.startswith(("file:", "about:", "data:"))]


CHOSEN = "document.querySelector('#world .node.chosen, #world .layer.open.chosen')?.dataset.id"
HEADING = "document.getElementById('heading').textContent"


def count(browser, selector):
    return browser.run(f"document.querySelectorAll({json.dumps(selector)}).length")


def test_layers_open_and_close(files, browser):
    browser.open(files / "dq.html")
    assert count(browser, ".layer[tabindex].open") == 3
    browser.press("c")
    assert (count(browser, ".layer[tabindex].closed"), count(browser, ".node.quantizer")) == (3, 0)
    browser.click('.layer.closed[data-id="layer-1"]')  # opens it and tells of it
    assert count(browser, ".layer[tabindex].open") == 1
    assert browser.run(HEADING) == "convs.1"
    assert count(browser, ".node.quantizer") == 7
    browser.run("document.querySelector('.layer[tabindex][data-id=layer-0]').focus()")
    browser.press("Enter")
    assert count(browser, ".layer[tabindex].open") == 2
    browser.press("e")
    assert count(browser, ".node.quantizer") == 21


def test_a_click_shows_sources_and_consumers_which_are_links(files, browser):
    browser.open(files / "dq.html")
    browser.click('.node[data-id="linear"]')
    assert browser.run(CHOSEN) == "linear"
    links = "[...document.querySelectorAll('#text li a')].map(a => a.dataset.id)"
    assert browser.run(links) == [
        *("convs_0_lin_quant_input", "convs_0_lin_quant_weight"),
        "convs_0_lin_quant_feature",
    ]
    assert count(browser, ".node.source") == 2
    assert count(browser, ".node.consumer") == 1
    assert count(browser, ".edge.to-source") == 2
    assert count(browser, ".edge.to-consumer") == 1
    browser.click('#text a[data-id="convs_0_lin_quant_feature"]')
    assert browser.run(CHOSEN) == "convs_0_lin_quant_feature"
    assert browser.run(HEADING) == "feature s8"
    assert browser.run("location.hash") == "#convs_0_lin_quant_feature"
    browser.press("ArrowUp")
    assert browser.run(CHOSEN) == "linear"
    browser.press("Escape")
    assert browser.run(CHOSEN) is None
    assert browser.run(HEADING) == "How to read this"


def test_find_dims_scrolls_and_goes_on(files, browser):
    browser.open(files / "dq.html")
    browser.press("c", "/", *"message")
    assert browser.run("document.getElementById('found').textContent") == "1 of 3"
    assert count(browser, ".layer[tabindex].open") == 1  # that of the match
    browser.press("Enter", "Enter")
    assert browser.run("document.getElementById('found').textContent") == "3 of 3"
    current = browser.run("document.querySelector('.match.current').dataset.id")
    assert current == "convs_2_quant_message"
    x, y = browser.middle(".match.current")
    assert 0 < x < 1090
    assert 60 < y < 900
    dim = "getComputedStyle(document.querySelector('.node.op')).opacity"
    assert float(browser.run(dim)) < 0.5
    browser.press("Escape")
    assert float(browser.run(dim)) == 1


def test_edges_end_in_arrows_at_boxes_and_cross_none(tmp_path, browser):
    """Each edge is drawn from its source to its target; on its way it goes through no other box."""
    page = tmp_path / "skips.html"
    page.write_text(page_of(view_module(trained(Skips()))))
    browser.open(page)
    found = browser.run("""(() => {
      const {places, segments} = state.drawn, hits = [];
      const inside = (at, start, size) => at > start + 1 && at < start + size - 1;
      const within = (box, {x, y}) => inside(x, box.x, box.width) && inside(y, box.y, box.height);
      for (const {element, from, to} of segments) for (let at = 0; at <= 1; at += 0.02) {
        const point = element.getPointAtLength(at * element.getTotalLength()), ends = [from, ...to];
        for (const [id, box] of places)
          if (nodes.has(id) && !ends.includes(id) && within(box, point)) hits.push([from, id]);
      }
      const arrows = segments.filter(one => one.arrow).length;
      return {hits, arrows, marked: document.querySelectorAll(".edge[marker-end]").length};
    })()""")
    assert found["hits"] == []
    assert found["arrows"] == found["marked"] > 20


class Parts(nn.Module):
    """Has a method beside forward, and another graph in evaluation."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = GCNConv(8, 8), nn.Linear(8, 3)

    def encode(self, x, edge_index):
        return self.conv(x, edge_index).relu()

    def forward(self, x, edge_index):
        h = self.encode(x, edge_index)
        return self.head(h) if self.training else self.head(h).softmax(-1)


@pytest.fixture(scope="module")
def methods(tmp_path_factory):
    """The pages of a prepared and of an integer file of several graphs."""
    folder = tmp_path_factory.mktemp("methods")
    module = dqconvert.prepare(Parts(), "int8-dq", (X, EDGES), method=["forward", "encode"]).module
    dqconvert.calibrate(module, (X, EDGES))
    for kind, one in (("dq", module), ("int", dqconvert.convert(module))):
        dqconvert.save(one, folder / f"parts.{kind}")
        assert dq("inspect", folder / f"parts.{kind}", "--html", folder / f"{kind}.html").exit_code == 0
    return folder


def test_other_methods_and_evaluation_have_graphs_of_their_own(methods):
    text = (methods / "dq.html").read_text()
    titles = ["forward", "forward in evaluation", "encode"]
    assert [graph["title"] for graph in picture(text)["graphs"]] == titles
    labels = [[node["label"] for node in picture(text, number)["nodes"]] for number in range(3)]
    assert [("softmax" in one, one.count("linear")) for one in labels] == [(False, 2), (True, 2), (False, 1)]
    assert [len(picture(text, number)["layers"]) for number in range(3)] == [2, 2, 1]
    text = (methods / "int.html").read_text()
    assert [graph["title"] for graph in picture(text)["graphs"]] == ["forward", "encode"]
    assert [sum(n["kind"] == "integer" for n in picture(text, number)["nodes"]) > 1 for number in (0, 1)] == [
        True,
        True,
    ]


@pytest.mark.parametrize("width", [390, 1440])
def test_one_chooses_which_graph_to_see(methods, files, browser, width):
    browser.open(methods / "dq.html", width, 844)
    options = "[...document.getElementById('graph').options].map(o => o.text)"
    assert browser.run(options) == ["forward", "forward in evaluation", "encode"]
    browser.run("choose('linear_1')")
    assert browser.run(CHOSEN) == "linear_1"
    turn = "const g = document.getElementById('graph'); g.selectedIndex = 2; g.dispatchEvent(new Event('change'))"
    browser.run(f"{{ {turn} }}")
    assert browser.run("data.nodes.filter(n => n.label === 'linear').length") == 1
    assert browser.run(CHOSEN) is None
    assert browser.run("location.hash") == "#encode~"
    browser.run("choose('linear')")
    assert browser.run("location.hash") == "#encode~linear"
    browser.run("location.hash = '#forward%20in%20evaluation~softmax'")
    browser.wait("document.getElementById('graph').selectedIndex === 1")
    assert browser.run("[state.chosen, data.nodes.some(n => n.label === 'softmax')]") == ["softmax", True]
    browser.run("location.hash = '#linear_1'")
    browser.wait("document.getElementById('graph').selectedIndex === 0")
    assert browser.run("state.chosen") == "linear_1"
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    assert browser.run("document.getElementById('graph').offsetHeight") >= (44 if width == 390 else 32)
    browser.open(files / "dq.html", width, 844)  # which has one graph
    assert browser.run("getComputedStyle(document.getElementById('graph')).display") == "none"


def test_zoom_fit_and_map(files, browser):
    browser.open(files / "dq.html")
    scale = "state.view.k"
    assert browser.run("!document.getElementById('map').hasAttribute('hidden')")  # larger than a screen
    before = browser.run(scale)
    browser.press("+")
    assert browser.run(scale) == pytest.approx(1.25 * before)
    browser.press("0")
    x, y = browser.middle("[data-id=output]")
    assert 0 < y < 900
    assert browser.run("document.getElementById('map').hasAttribute('hidden')")
    browser.press("+", "+", "+", "+", "+", "+")
    left = browser.run("state.view.y")
    x, y = browser.middle("#map")
    browser.send("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y + 60, button="left", clickCount=1)
    browser.send("Input.dispatchMouseEvent", type="mouseReleased", x=x, y=y + 60, button="left", clickCount=1)
    assert browser.run("state.view.y") < left


@pytest.mark.parametrize("width", [390, 768])
def test_on_a_small_screen_details_are_a_sheet(files, browser, width):
    browser.open(files / "dq.html", width, 844)
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    assert browser.run("getComputedStyle(document.getElementById('details')).visibility") == "hidden"
    browser.tap('.node[data-id="linear"]')
    sheet = "document.getElementById('details').getBoundingClientRect()"
    browser.wait(f"{sheet}.bottom <= innerHeight + 1")
    assert browser.run(f"{sheet}.top") > 300
    x, y = browser.middle('.node[data-id="linear"]')
    assert 0 < x < width
    assert y < browser.run(f"{sheet}.top")  # not under it
    small = "[...document.querySelectorAll('button, #find')].filter(b => b.offsetParent && b.id !== 'grip')"
    assert browser.run(f"{small}.every(b => b.offsetHeight >= 44 && b.offsetWidth >= 32)")
    assert browser.run("[...document.querySelectorAll('#text li a')].every(a => a.offsetHeight >= 40)")
    browser.tap("#close")
    browser.wait("getComputedStyle(document.getElementById('details')).visibility === 'hidden'")


def test_it_is_dark_where_the_reader_is(files, browser):
    ground = "getComputedStyle(document.body).backgroundColor"
    browser.open(files / "int.html", scheme="dark")
    dark = browser.run(ground)
    browser.press("d")
    light = browser.run(ground)
    browser.open(files / "int.html", scheme="light")
    assert browser.run(ground) == light != dark


@pytest.mark.sample(16)
@pytest.mark.parametrize("name", zoo.CASES)
def test_every_model_has_a_page(name, prepared, browser, tmp_path):
    """Open and closed, without an error, with a box for each quantizer that its graph calls."""
    module, _ = prepared(name)
    page = tmp_path / "page.html"
    view = view_module(module)
    page.write_text(page_of(view))
    browser.open(page)
    browser.press("e")
    called = [node.name for node in view.nodes["train"] if node.kind == "quantizer"]
    assert browser.run("[...document.querySelectorAll('.node.quantizer')].map(n => n.dataset.id)") == called
    browser.press("c", "0")
    assert not browser.errors
