"""`Protection`, `gather_protected` and `DegreeProtection`."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torch_geometric.data import Batch, Data, HeteroData

from dqconvert.errors import ConfigError, DQConvertError, InputIndexError, InputShapeError, InputTypeError
from dqconvert.kernels import protection_probability
from dqconvert.kernels.degree import probability_in_parts
from dqconvert.qconfig import Protect
from dqconvert.quant import DegreeProtection, Protection, gather_protected

TARGETS = [torch.tensor([0, 0, 0, 1, 1, 3, 4]), torch.tensor([0, 2])]


def assert_frequencies(draw, probability: torch.Tensor) -> None:
    draws = 2000
    torch.manual_seed(0)
    frequency = sum(draw().float() for _ in range(draws)) / draws
    error = (probability * (1 - probability) / draws).sqrt()
    assert ((frequency - probability).abs() <= 4 * error).all()


def test_frequencies_are_the_probabilities_of_the_degrees():
    batch = torch.tensor([0, 1, 0, 1, 0, 1])
    protection = Protection(Protect(p_min=0.2, p_max=0.9))
    probability = protection_probability(TARGETS, 6, 0.2, 0.9, batch)
    assert len(probability.unique()) > 2
    assert_frequencies(lambda: protection(TARGETS, 6, batch), probability)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_frequencies_are_the_given_probabilities_and_0_and_1_are_certain(dtype):
    given = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=dtype)
    protection = Protection(Protect())
    assert_frequencies(lambda: protection(TARGETS, 5, given=given), given.float())


def test_a_draw_is_a_bool_per_node_and_follows_the_seed():
    protection = Protection(Protect(p_min=0.5, p_max=0.5))
    targets = [torch.randint(100, (300,))]
    torch.manual_seed(3)
    first, second = protection(targets, 100), protection(targets, 100)
    torch.manual_seed(3)
    assert torch.equal(protection(targets, 100), first)
    assert first.dtype == torch.bool
    assert first.shape == (100,)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("given", [None, torch.ones(6)])
def test_evaluation_protects_nothing_and_draws_nothing(given):
    protection = Protection(Protect(p_max=1.0)).eval()
    state = torch.get_rng_state()
    assert protection(TARGETS, 6, given=given) is None
    assert torch.equal(torch.get_rng_state(), state)


def test_no_edges_and_no_nodes():
    protection = Protection(Protect(p_min=0.0, p_max=1.0))
    assert not protection([], 4).any()
    assert protection([], 0).shape == (0,)
    assert protection([], 0, given=torch.empty(0)).shape == (0,)
    assert protection([], 4, device=torch.device("meta")).device.type == "meta"


def test_given_probabilities_that_do_not_fit():
    protection = Protection(Protect())
    with pytest.raises(ConfigError, match=r"one probability per node: got shape \(5,\) for 6 nodes"):
        protection(TARGETS, 6, given=torch.rand(5))
    with pytest.raises(DQConvertError, match=r"got shape \(6, 1\) for 6 nodes"):
        protection(TARGETS, 6, given=torch.rand(6, 1))
    with pytest.raises(ConfigError, match=r"must be a tensor of one probability per node, got 0\.5"):
        Protection(Protect())([torch.tensor([0])], 6, given=0.5)
    with pytest.raises(ConfigError, match=r"floating-point probabilities, got torch\.bool"):
        protection(TARGETS, 6, given=torch.ones(6, dtype=torch.bool))


def test_it_has_no_state_and_copies():
    protection = Protection(Protect(p_max=0.3))
    assert protection.state_dict() == {}
    for twin in (copy.deepcopy(protection), pickle.loads(pickle.dumps(protection))):
        assert twin.protect == protection.protect
    assert repr(protection) == "Protection(p_min=0.0, p_max=0.3)"


def test_probabilities_follow_whatever_changes():
    """The same graph is not counted twice, but one that was changed in place, or anything else, is."""
    targets, batch = torch.tensor([0, 0, 0, 1, 1, 3]), torch.tensor([0, 1, 0, 1])
    protection = Protection(Protect(p_min=0.0, p_max=1.0))

    def drawn(*args):
        torch.manual_seed(3)
        got = protection(*args)
        torch.manual_seed(3)
        assert torch.equal(got, Protection(protection.protect)(*args))
        return protection.memory.computed

    assert drawn([targets], 4) == 1
    assert drawn([targets.clone()], 4) == 1
    targets[-1] = 2
    assert drawn([targets], 4) == 2
    for args in (([targets], 5), ([targets, targets], 5), ([targets], 4, batch), ([targets], 4, 1 - batch)):
        drawn(*args)
    before = drawn([targets], 4)
    protection.protect = Protect(p_min=0.5, p_max=1.0)
    assert drawn([targets], 4) == before + 1
    assert len(pickle.loads(pickle.dumps(protection)).memory) == 0


def test_it_compiles_as_one_graph():
    torch._dynamo.reset()
    protection = Protection(Protect(p_min=0.0, p_max=1.0))
    run = torch.compile(protection, fullgraph=True, backend="aot_eager")
    mask = run([torch.tensor([0, 0, 1])], 3)
    assert mask.dtype == torch.bool
    assert mask[0]


def test_an_edge_is_protected_if_its_sender_is():
    mask, index = torch.tensor([True, False, False]), torch.tensor([2, 0, 0, 1])
    assert gather_protected(mask, index).tolist() == [False, True, True, False]
    assert gather_protected(mask, index[:0]).shape == (0,)
    assert gather_protected(None, index) is None


class TestDegreeProtection:
    EDGES = torch.tensor([[0, 1, 2, 3, 3, 3], [1, 2, 2, 2, 0, 2]])

    def expected(self, num_nodes=5, p_min=0.1, p_max=0.6):
        return protection_probability([self.EDGES[1]], num_nodes, p_min, p_max)

    def test_of_one_graph(self):
        data = Data(edge_index=self.EDGES, num_nodes=5)
        out = DegreeProtection(0.1, 0.6)(data)
        assert torch.equal(out.protect_prob, self.expected())
        assert out.protect_prob.dtype == torch.float32
        assert "protect_prob" not in data, "a transform leaves its input alone"
        assert out.is_node_attr("protect_prob")

    @pytest.mark.parametrize("layout", ["csr", "coo"])
    def test_of_a_transposed_adjacency(self, layout):
        # No parallel edges in csr: building it from coordinates may merge them.
        edges = self.EDGES[:, :5] if layout == "csr" else self.EDGES
        adj_t = torch.sparse_coo_tensor(edges.flip(0), torch.ones(edges.size(1)), (5, 5))
        adj_t = adj_t.to_sparse_csr() if layout == "csr" else adj_t
        out = DegreeProtection(0.1, 0.6)(Data(adj_t=adj_t, num_nodes=5))
        assert torch.equal(out.protect_prob, protection_probability([edges[1]], 5, 0.1, 0.6))

    def test_of_a_torch_sparse_adjacency(self):
        torch_sparse = pytest.importorskip("torch_sparse")
        adj_t = torch_sparse.SparseTensor(row=self.EDGES[1], col=self.EDGES[0], sparse_sizes=(5, 5))
        out = DegreeProtection(0.1, 0.6)(Data(adj_t=adj_t, num_nodes=5))
        assert torch.equal(out.protect_prob, self.expected())

    def test_of_a_batch_compares_within_each_graph(self):
        one = Data(edge_index=self.EDGES, num_nodes=5)
        other = Data(edge_index=torch.tensor([[0, 1], [1, 1]]), num_nodes=3)
        transform = DegreeProtection(0.1, 0.6)
        together = transform(Batch.from_data_list([one, other])).protect_prob
        assert torch.equal(together, torch.cat([transform(one).protect_prob, transform(other).protect_prob]))

    def test_of_several_node_types_sums_over_edge_types(self):
        data = HeteroData()
        data["paper"].num_nodes, data["author"].num_nodes = 5, 3
        data["paper", "cites", "paper"].edge_index = self.EDGES
        data["author", "writes", "paper"].edge_index = torch.tensor([[0, 1], [4, 4]])
        out = DegreeProtection(0.1, 0.6)(data)
        want = protection_probability([torch.cat([self.EDGES[1], torch.tensor([4, 4])])], 5, 0.1, 0.6)
        assert torch.equal(out["paper"].protect_prob, want)
        assert torch.equal(out["author"].protect_prob, torch.full((3,), 0.1))

    def test_of_edges_in_mapped_files_and_parts(self, tmp_path):
        torch.manual_seed(0)
        edges = torch.randint(50, (2, 400))
        want = DegreeProtection(0.1, 0.6)(Data(edge_index=edges, num_nodes=51)).protect_prob
        np.save(tmp_path / "edges.npy", edges.numpy())
        mapped = np.load(tmp_path / "edges.npy", mmap_mode="r")
        whole = torch.from_numpy(np.load(tmp_path / "edges.npy", mmap_mode="c"))
        assert torch.equal(DegreeProtection(0.1, 0.6)(Data(edge_index=whole, num_nodes=51)).protect_prob, want)
        for parts in ([mapped], [edges.int()], [mapped[:, :150], edges[:, 150:150], edges[:, 150:]]):
            assert torch.equal(DegreeProtection(0.1, 0.6).of_parts(parts, 51), want)
        assert torch.equal(probability_in_parts([mapped[1], edges[1, :0]], 51, 0.1, 0.6, size=7), want)
        assert DegreeProtection(0.1, 0.6).of_parts([], 3).tolist() == pytest.approx([0.1] * 3)
        at = edges[1].tolist().index(49)
        with pytest.raises(InputIndexError, match=f"part 1, edge {at}: it ends at node 49 of 49"):
            DegreeProtection().of_parts([edges[:, :0], mapped], 49)
        with pytest.raises(InputTypeError, match=r"part 1 holds torch\.float32"):
            DegreeProtection().of_parts([edges, edges.float()], 51)
        with pytest.raises(InputShapeError, match=r"\[2, edges\]"):
            DegreeProtection().of_parts([edges.t()], 51)

    def test_of_a_graph_without_edges(self):
        assert DegreeProtection()(Data(num_nodes=3)).protect_prob.tolist() == [0, 0, 0]

    def test_in_forked_workers(self):
        graphs = [Data(edge_index=self.EDGES, num_nodes=5)] * 4
        loader = DataLoader(
            [0, 1, 2, 3],
            num_workers=2,
            multiprocessing_context="fork",
            collate_fn=lambda indices: DegreeProtection(0.1, 0.6)(graphs[indices[0]]).protect_prob,
        )
        for probability in loader:
            assert torch.equal(probability, self.expected())

    def test_bounds_are_checked_and_printed(self):
        with pytest.raises(ConfigError, match="p_max"):
            DegreeProtection(0.5, 0.2)
        assert repr(DegreeProtection(0.1, 0.6)) == "DegreeProtection(p_min=0.1, p_max=0.6)"


def test_one_that_was_pickled_before_it_could_be_scaled():
    protection = Protection(Protect(p_min=1.0, p_max=1.0))
    vars(protection).pop("_share", None)
    assert protection(TARGETS, num_nodes=5).all()
