"""Every door is prepared: what methods and parts of a prepared module compute is the prepared computation."""

import copy
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch_geometric.data import Data
from torch_geometric.nn import GAE, GCN, RECT_L, VGAE, GCNConv, GraphSAGE, LightGCN, SAGEConv, Sequential

import dqconvert
from dqconvert import ConfigError, LoweringError, ObserverError, TraceError
from dqconvert.errors import ArgumentError

NODES, EDGES = 24, 90


def graph(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(NODES, 8, generator=generator), torch.randint(NODES, (2, EDGES), generator=generator)


X, EI = graph()


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = GCNConv(8, 16), GCNConv(16, 4)

    def forward(self, x, edge_index):
        return self.conv2(self.conv1(x, edge_index).relu(), edge_index)


class Pairs(nn.Module):
    """A link predictor as PyG's examples write it, without a forward; the decoder has weights."""

    def __init__(self):
        super().__init__()
        self.encoder = Encoder()
        self.lin1, self.lin2 = nn.Linear(8, 8), nn.Linear(8, 1)

    def encode(self, x, edge_index):
        return self.encoder(x, edge_index)

    def decode(self, z, edge_label_index):
        h = torch.cat([z[edge_label_index[0]], z[edge_label_index[1]]], dim=-1)
        return self.lin2(self.lin1(h).relu()).view(-1)

    def decode_all(self, z):
        return (z @ z.t() > 0).nonzero().t()


class Net(GraphSAGE):
    """A model with an inference of its own, layer by layer over batches, and code that a graph cannot hold."""

    def inference(self, loader):
        x = X
        for index, conv in enumerate(self.convs):
            parts = [conv(x[nodes], edges)[:size] for nodes, edges, size in loader]
            x = torch.cat(parts)
            if index < len(self.convs) - 1:
                x = x.relu()
        return x

    def by_hand(self, x):
        if x.sum() > 1e9:  # a branch on values
            return x
        return F.linear(x, self.convs[0].lin_l.weight)

    def penalty(self):
        return sum((p**2).sum() for p in self.parameters()) + self.convs[0].lin_l.weight.norm()


def trained(model, *methods, inputs=(X, EI), preset="int8-dq", **options):
    module, _ = dqconvert.prepare(model, preset, inputs, **options)
    module.train()
    for _ in range(2):
        (module(*inputs) if not methods else getattr(module, methods[0])(*inputs))
    return module.eval()


@pytest.fixture(scope="module")
def pairs():
    torch.manual_seed(0)
    model = Pairs()
    module, _ = dqconvert.prepare(model, "int8-dq", (X, EI), method="encode")
    parameters = list(module.parameters())
    module.train()
    for _ in range(2):
        module.decode(module.encode(X, EI), EI[:, :40]).sum().backward()
    assert list(module.parameters()) == parameters or len(list(module.parameters())) == len(parameters)
    return model.eval(), module.eval()


def test_a_named_method_is_the_prepared_computation_under_its_name(pairs):
    model, module = pairs
    assert torch.equal(module.encode(X, EI), module(X, EI))
    assert not torch.equal(module.encode(X, EI), model.encode(X, EI))


def test_a_part_called_from_outside_computes_as_inside(pairs):
    _, module = pairs
    assert torch.equal(module.encoder(X, EI), module.encode(X, EI))
    hidden = module.encoder.conv1(X, EI).relu()
    assert torch.equal(module.encoder.conv2(hidden, EI), module.encode(X, EI))
    assert not torch.equal(module.lin1(X), F.linear(X, module.lin1.weight, module.lin1.bias))


def test_a_method_that_was_not_named_is_trained_and_reported(pairs):
    model, module = pairs
    z = module.encode(X, EI)
    assert not torch.equal(module.decode(z, EI), model.decode(z, EI))
    assert module.lin1.weight.grad is not None
    assert {"lin1.quant.weight", "lin2.quant.input"} <= {path for path, _ in module.quantizers()}
    assert ("decode", "first call") in {(method.name, method.how) for method in module.report.methods}
    assert "decode" in str(module.report)
    assert module.report.to_dict()["methods"]


def test_what_has_nothing_to_quantize_runs_as_it_is(pairs):
    model, module = pairs
    z = module.encode(X, EI)
    assert torch.equal(module.decode_all(z), model.decode_all(z))


@pytest.mark.parametrize("again", [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_and_pickles_keep_the_methods(pairs, again):
    _, module = pairs
    z = module.encode(X, EI)
    module.decode(z, EI), module.encoder(X, EI)  # each traced at its first call
    other = again(module)
    assert torch.equal(other.decode(z, EI), module.decode(z, EI))
    assert torch.equal(other.encoder(X, EI), z)
    assert len(other.more_methods) == len(module.more_methods)


def test_a_part_copied_alone_works_and_pickled_alone_says_why_not(pairs):
    _, module = pairs
    assert torch.equal(copy.deepcopy(module.encoder)(X, EI), module.encode(X, EI))
    with pytest.raises(TraceError, match="pickle the whole module"):
        pickle.loads(pickle.dumps(module.encoder))(X, EI)


def test_a_file_keeps_the_methods(pairs, tmp_path):
    _, module = pairs
    dqconvert.save(module, tmp_path / "pairs.dq")
    other = dqconvert.load(tmp_path / "pairs.dq", model=Pairs())
    z = module.encode(X, EI)
    assert torch.equal(other.decode(z, EI), module.decode(z, EI))
    assert len(other.more_methods) == len(module.more_methods)
    assert other.report.methods == module.report.methods


def test_integer_modules_have_the_methods_and_parts(pairs, tmp_path):
    _, module = pairs
    module.encoder(X, EI)
    module.decode_all(module.encode(X, EI))
    integer = dqconvert.convert(module)
    z = integer.encode(X, EI)
    assert (z - module.encode(X, EI)).abs().max() < 1e-5
    assert (integer.decode(z, EI) - module.decode(z, EI)).abs().max() < 1e-2
    assert torch.equal(integer.decode_all(z), module.decode_all(z))  # the user's code, in memory
    dqconvert.save(integer, tmp_path / "pairs.int")
    for other in (copy.deepcopy(integer), pickle.loads(pickle.dumps(integer)), dqconvert.load(tmp_path / "pairs.int")):
        assert torch.equal(other(X, EI), z)
        assert torch.equal(other.encode(X, EI), z)
        assert torch.equal(other.encoder(X, EI), z)
        assert torch.equal(other.decode(z, EI), integer.decode(z, EI))
        assert torch.equal(other.decode_all(z), integer.decode_all(z))


class Dots(Encoder):
    """A link predictor whose decoder has nothing to quantize, and code that a file cannot hold."""

    power = 1.0
    mode = "twice"

    def encode(self, x, edge_index):
        return self(x, edge_index)

    def decode(self, z, edge_label_index):
        return (z[edge_label_index[0]] * z[edge_label_index[1]]).sum(dim=-1) ** self.power

    def best(self, z):
        return z if z.sum() > 1e9 else z.relu()

    def norm(self, z):
        return z * self.conv1.lin.weight.norm()

    def scaled(self, z):
        return z * 2 if self.mode == "twice" else z


def saved_integer(module, path):
    dqconvert.save(dqconvert.convert(module), path)
    return dqconvert.load(path)


@pytest.mark.parametrize("named", ["encode", ("encode", "decode"), {"encode": (X, EI), "decode": (X[:, :4], EI)}])
def test_a_file_of_integers_keeps_methods_that_have_nothing_to_quantize(named, tmp_path):
    torch.manual_seed(0)
    model = Dots()
    module, _ = dqconvert.prepare(model, "int8-dq", None if isinstance(named, dict) else (X, EI), method=named)
    module.train().encode(X, EI)
    z = module.eval().encode(X, EI)
    wanted = model.decode(z, EI[:, :40])
    assert torch.equal(module.decode(z, EI[:, :40]), wanted)
    dqconvert.save(module, tmp_path / "dots.dq")
    again, _ = dqconvert.prepare(module, "int8-dq")
    for one in (module, again, dqconvert.load(tmp_path / "dots.dq", model=Dots())):
        integer = saved_integer(one, tmp_path / "dots.int")
        assert torch.equal(integer.decode(z, EI[:, :40]), wanted)
        assert ("decode", "has nothing to quantize") in {(method.name, method.how) for method in integer.report.methods}


def test_a_file_of_integers_says_which_methods_it_does_not_keep(tmp_path):
    module = trained(Dots(), "encode", method="encode")
    z = module.encode(X, EI)
    for name in ("best", "norm", "scaled"):
        assert torch.equal(getattr(module, name)(z), getattr(Dots, name)(module, z))
    module.decode(z, EI)
    module.power, module.mode = 2.0, "once"
    assert torch.equal(module.decode(z, EI), Dots.decode(module, z, EI))
    assert torch.equal(module.scaled(z), z)
    integer = saved_integer(module, tmp_path / "dots.int")
    assert torch.equal(integer.decode(z, EI), Dots.decode(module, z, EI))
    reasons = {"best": "branches on the value", "norm": r"reads the weight 'conv1\.lin\.weight'", "scaled": "'once'"}
    for name, why in reasons.items():
        with pytest.raises(AttributeError, match=rf"{why}.*; Dots\.{name}\(module, …\) runs it"):
            getattr(integer, name)
    assert torch.equal(Dots.best(integer, z), Dots.best(module, z))
    with pytest.raises(AttributeError):
        Dots.norm(integer, z)
    with pytest.raises(AttributeError, match=r"no 'worst'.* runs as Dots\.worst\(module, …\)"):
        integer.worst()


def test_an_autoencoder_decodes_from_a_file(tmp_path):
    module = trained(GAE(Encoder()), "encode", method="encode")
    z = module.encode(X, EI)
    wanted = module.decode(z, EI, sigmoid=True)
    integer = saved_integer(module, tmp_path / "gae.int")
    assert torch.equal(integer.decode(z, EI, sigmoid=True), wanted)


def test_what_an_integer_module_was_not_prepared_for_is_an_error():
    module = trained(Pairs(), "encode", method="encode")
    integer = dqconvert.convert(module)
    with pytest.raises(LoweringError, match=r"lin1\.forward.*before convert, or name it"):
        integer.decode(integer.encode(X, EI), EI)
    with pytest.raises(LoweringError, match=r"encoder\.conv1\.forward"):
        integer.encoder.conv1(X, EI)
    with pytest.raises(AttributeError, match="no 'embed'"):
        integer.embed(X)


def test_preparing_again_keeps_the_methods(pairs):
    _, module = pairs
    again, _ = dqconvert.prepare(module, "int4-dq")
    assert [method.name for method in again.more_methods] == [method.name for method in module.more_methods]
    assert again.train().decode(again.encode(X, EI), EI).isfinite().all()


@pytest.mark.parametrize("fuse", [True, False])
def test_several_names_and_inputs_by_name(fuse):
    torch.manual_seed(0)
    model = Pairs()
    named = {"encode": (X, EI), "decode": (torch.randn(NODES, 4), EI)}
    module, report = dqconvert.prepare(model, "int8-dq", method=named, fuse=fuse)
    assert [(method.name, method.how) for method in report.methods] == [("encode", "named"), ("decode", "named")]
    torch.manual_seed(1)
    module.train()
    out = module.decode(module.encode(X, EI), EI)
    assert out.isfinite().all()


def test_fused_or_not_the_same():
    results = []
    for fuse in (True, False):
        torch.manual_seed(0)
        module, _ = dqconvert.prepare(Pairs(), "int8-dq", (X, EI), method=("encode", "decode"), fuse=fuse)
        module.train()
        torch.manual_seed(1)
        results.append([module.decode(module.encode(X, EI), EI), module.eval().encode(X, EI)])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*results, strict=True))


def test_the_forward_of_a_model_stays_what_calling_it_runs_where_names_are_several():
    model = GAE(Encoder())
    module, report = dqconvert.prepare(model, "int8-dq", (X, EI), method=("encode",))
    assert module.train()(X, EI).shape == (NODES, 4)
    assert {"encode", "forward"} <= {method.name for method in module.report.methods}
    _, report = dqconvert.prepare(model, "int8-dq", (X, EI), method="encode")
    assert any("own forward" in remark for remark in report.remarks)


@pytest.mark.parametrize("method", [3, (), ("encode", 3), {"encode": (X, EI), "nothing": None}])
def test_wrong_names(method):
    with pytest.raises((ConfigError, TraceError)):
        dqconvert.prepare(Pairs(), None, None, method=method)


# -- PyG's models ------------------------------------------------------------------------------------------------


def test_an_autoencoder_trains_and_scores():
    torch.manual_seed(0)
    module, _ = dqconvert.prepare(GAE(Encoder()), "int4-dq", (X, EI))
    module.train()
    z = module.encode(X, EI)
    module.recon_loss(z, EI).backward()
    assert module.encoder.conv1.lin.weight.grad.abs().sum() > 0
    module.eval()
    assert torch.equal(module.encode(X, EI), module(X, EI))
    integer = dqconvert.convert(module)
    assert integer.recon_loss(integer.encode(X, EI), EI, EI.flip(0)).isfinite()


class Variational(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.mu, self.logstd = GCNConv(8, 16), GCNConv(16, 4), GCNConv(16, 4)

    def forward(self, x, edge_index):
        h = self.conv(x, edge_index).relu()
        return self.mu(h, edge_index), self.logstd(h, edge_index)


@pytest.mark.parametrize("method", ["forward", "encode"])
def test_a_method_that_keeps_something_for_later_keeps_it(method):
    module, _ = dqconvert.prepare(VGAE(Variational()), "int8-dq", (X, EI), method=method)
    module.train()
    z = module.encode(X, EI)
    (module.recon_loss(z, EI) + module.kl_loss() / NODES).backward()
    assert module.encoder.mu.lin.weight.grad.abs().sum() > 0
    assert torch.equal(module.eval().encode(X, EI), module.encoder(X, EI)[0])


def test_a_recommender():
    torch.manual_seed(0)
    model = LightGCN(NODES, 8, 2)
    module = trained(model, inputs=(EI, EI[:, :30]))
    embedding = module.get_embedding(EI)
    assert not torch.equal(embedding, model.get_embedding(EI))
    out = (embedding[EI[0, :30]] * embedding[EI[1, :30]]).sum(-1)
    assert torch.allclose(out, module(EI, EI[:, :30]))
    assert torch.equal(module.predict_link(EI, EI[:, :30], prob=True), module(EI, EI[:, :30]).sigmoid())
    assert module.recommend(EI, src_index=torch.arange(3), dst_index=torch.arange(5, NODES), k=2).shape == (3, 2)
    assert module.recommendation_loss(torch.randn(4), torch.randn(4), torch.arange(6)).isfinite()
    integer = dqconvert.convert(module)
    assert (integer.get_embedding(EI) - embedding).abs().max() < 0.05
    fresh = dqconvert.convert(trained(LightGCN(NODES, 8, 2), inputs=(EI, EI[:, :30])))
    with pytest.raises(LoweringError, match="has no get_embedding: the prepared module was never called that way"):
        fresh.get_embedding(EI)


def test_an_embedding_without_gradient():
    model = RECT_L(8, 16)
    module = trained(model)
    embedded = module.embed(X, EI)
    assert not embedded.requires_grad
    assert not torch.equal(embedded, model.embed(X, EI))
    assert torch.equal(embedded, module.conv(X, EI))


def test_a_forward_on_the_instance_does_not_come_first():
    model = Sequential("x, edge_index", [(GCNConv(8, 8), "x, edge_index -> x"), nn.Linear(8, 2)])
    module = trained(model, preset="int4-dq")
    assert not torch.equal(module(X, EI), model.eval()(X, EI))


# -- code that no graph can hold ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return trained(Net(8, 16, 2, 4))


LOADER = [(torch.arange(NODES), EI, NODES)]


def test_an_inference_over_batches_computes_what_forward_computes(net):
    assert torch.equal(net.inference(LOADER), net(X, EI))
    integer = dqconvert.convert(net)
    assert (integer.inference(LOADER) - net(X, EI)).abs().max() < 0.05


def test_a_weight_that_code_multiplies_by_itself_is_an_error(net):
    with pytest.raises(TraceError, match=r"by_hand.*linear\(\) on the weight 'convs\.0\.lin_l\.weight'"):
        net.by_hand(X)


def test_a_penalty_on_weights_is_none(net):
    assert net.penalty() > 0


# -- other forms of arguments ------------------------------------------------------------------------------------


def test_an_optional_tensor_that_comes_later_and_goes_again():
    torch.manual_seed(0)
    module = trained(GCN(8, 16, 2, 4))
    plain, weight = module(X, EI), torch.rand(EDGES)
    weighed = module(X, EI, weight)
    assert not torch.equal(plain, weighed)
    assert torch.equal(module(X, EI, edge_weight=weight), weighed)
    assert torch.equal(module(X, EI), plain)
    assert torch.equal(module(X, EI, torch.ones(EDGES)), plain)
    assert len(module.more_methods) == 1
    integer = dqconvert.convert(module)
    assert (integer(X, EI, weight) - weighed).abs().max() < 0.1
    with pytest.raises(ArgumentError, match="before convert"):
        dqconvert.convert(trained(GCN(8, 16, 2, 4)))(X, EI, weight)


class Either(nn.Module):
    """Trains as an MLP, and is evaluated as a graph network."""

    def __init__(self):
        super().__init__()
        self.lin, self.conv = nn.Linear(8, 8), SAGEConv(8, 4)

    def forward(self, x, edge_index=None, scale="one"):
        x = self.lin(x).relu() * (2.0 if scale == "two" else 1.0)
        if edge_index is None:
            edge_index = torch.stack([torch.arange(x.size(0))] * 2)
        return self.conv(x, edge_index)


def test_two_signatures_of_one_forward():
    torch.manual_seed(0)
    module = trained(Either(), inputs=(X,))
    assert module(X, EI).shape == (NODES, 4)
    loops = torch.stack([torch.arange(NODES)] * 2)
    assert torch.equal(module(X, loops), module(X))
    assert torch.allclose(module(X, EI, scale="two"), module.eval()(X, EI, "two"))
    assert [method.name for method in module.report.methods] == ["forward"] * 3


def test_words_without_end_are_an_error():
    module = trained(Either(), inputs=(X,))
    for number in range(15):
        module(X, EI, f"word {number}")
    with pytest.raises(ArgumentError, match="more than 16 forms"):
        module(X, EI, "one word more")


def test_extra_keywords_are_not_left_out():
    class Passes(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = GCNConv(8, 4)

        def forward(self, *args, **kwargs):
            return self.conv(*args, **kwargs)

    module = trained(Passes())
    assert not torch.equal(module(X, EI), module(X, EI, edge_weight=torch.rand(EDGES)))


def test_a_pair_where_a_tensor_was():
    module = trained(SAGEConv(8, 4))
    assert torch.equal(module((X, X), EI), module(X, EI))
    assert module((X, X[:5]), torch.stack([EI[0], EI[1] % 5])).shape == (5, 4)


# -- ranges, errors, threads -------------------------------------------------------------------------------------


def test_evaluating_what_was_never_trained_names_the_quantizer():
    module = trained(Pairs(), "encode", method="encode")
    with pytest.raises(ObserverError, match=r"lin1\.quant\.\w+.*decode"):
        module.decode(module.encode(X, EI), EI)
    dqconvert.calibrate(module, (module.encode(X, EI), EI), method="decode")
    assert module.decode(module.encode(X, EI), EI).isfinite().all()
    with pytest.raises(ConfigError, match="has no graph yet"):
        dqconvert.calibrate(module, X, method="lin1.forward")


def test_the_float_models_own_error():
    module = trained(Pairs(), "encode", method="encode")
    with pytest.raises(TypeError, match="edge_label_index"):
        module.decode(X)


def test_two_threads_make_one_graph():
    module = trained(GAE(Encoder()))
    found, errors = [], []

    def call():
        try:
            found.append(module.encoder(X, EI))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(module.more_methods) == 1
    assert all(torch.equal(out, module(X, EI)) for out in found)


# -- what chooses ------------------------------------------------------------------------------------------------


def test_a_number_that_chooses_a_layer_chooses_it_in_every_call():
    module = trained(GraphSAGE(8, 16, 2, 4))
    hidden = module.inference_per_layer(0, X, EI, NODES)
    assert torch.equal(module.inference_per_layer(1, hidden, EI, NODES), module(X, EI))


class Chosen(nn.Module):
    def __init__(self):
        super().__init__()
        self.lins = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        return self.upto(x, 3)

    def at(self, x, number):
        return self.lins[number](x)

    def upto(self, x, number):
        for lin in self.lins[:number]:
            x = lin(x).relu()
        return x


def test_a_number_that_indexes_a_list():
    module = trained(Chosen(), inputs=(X,))
    assert all(torch.equal(module.at(X, k), module.lins[k](X)) for k in range(3))
    assert torch.equal(module.upto(X, 1), module.lins[0](X).relu())
    assert torch.equal(module.upto(X, 3), module(X))


def test_an_attribute_of_data_that_comes_later():
    class OnData(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = GCNConv(8, 4)

        def forward(self, data):
            return self.conv(data.x, data.edge_index, data.edge_attr)

    plain, weighed = Data(x=X, edge_index=EI), Data(x=X, edge_index=EI, edge_attr=torch.rand(EDGES))
    module = trained(OnData(), inputs=(plain,))
    assert not torch.equal(module(plain), module(weighed))
    assert torch.equal(module(plain), module(Data(x=X, edge_index=EI, y=torch.ones(3))))
    assert len(module.more_methods) == 1


class Embedding(Pairs):
    @torch.no_grad()
    def embed(self, x, edge_index):
        self.eval()
        return self.encode(x, edge_index)


@pytest.mark.parametrize("method", ["encode", ("encode", "embed")])
def test_a_method_that_changes_the_mode_does(method):
    module, _ = dqconvert.prepare(Embedding(), "int4-dq", (X, EI), method=method)
    for _ in range(2):
        module.train().encode(X, EI)
    embedded = module.embed(X, EI)
    assert not any(part.training for part in module.modules())
    assert torch.equal(embedded, module.encode(X, EI))
    assert "training" in next(one.how for one in module.report.methods if one.name == "embed")


class Discriminator(nn.Module):
    """Has a weight of its own, and a method that does without it."""

    def __init__(self):
        super().__init__()
        self.encoder = GCNConv(8, 8)
        self.weight = nn.Parameter(torch.eye(8))

    def forward(self, x, edge_index):
        return self.encoder(x, edge_index) @ self.weight

    def share(self, one, other):
        return float((one.argmax(1) == other.argmax(1)).float().mean())

    def scores(self, x):
        return x @ self.weight


def test_an_integer_module_runs_what_needs_no_weight_and_refuses_the_rest():
    integer = dqconvert.convert(trained(Discriminator()))
    assert integer.share(X, X) == 1.0
    with pytest.raises(LoweringError, match=r"has no scores: .* Call it once on the prepared module before convert"):
        integer.scores(X)
