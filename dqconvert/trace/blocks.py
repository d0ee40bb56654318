"""Turns writes into shared memory into a graph of values that nothing changes.

A recorded in-place call becomes one that returns the new value, and everything that shares the memory has a new value,
too: what a written tensor is a view of gets the part put back in, and views of that are taken again when they are read
next. So no node of the graph changes another one's value, and no later pass has to know of memory at all. What the
forward writes into memory that is not its own (an argument, a buffer) is stored there by nodes of their own.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, TypeAlias

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from dqconvert.ops import Moves, Storage, op_name, op_of
from dqconvert.trace.note import Note, annotate, note_of
from dqconvert.trace.runtime import keep_gradient, private, setitem, store

_Geometry: TypeAlias = tuple[tuple[int, ...], tuple[int, ...], int, torch.dtype]


@dataclass(eq=False)
class Block:
    """A block of memory.

    Attributes:
        version: How often it was written.
        cells: The tensors in it, also those that nobody holds any more.
        origin: The node that reads it off an argument or an attribute; ``None``: the forward's own.
        attribute: Whether it is that of an attribute.
        pending: Of what was written and not stored yet: the note of the node that wrote it last.
        opaque: Why writes cannot be followed; ``""``: they can.
    """

    version: int = 0
    cells: list[Cell] = field(default_factory=list)
    origin: Node | None = None
    attribute: bool = False
    pending: Note | None = None
    opaque: str = ""


@dataclass(eq=False)
class Cell:
    """A tensor.

    Attributes:
        tensor: It, while somebody holds it.
        node: What has its value.
        block: Where it lies.
        version: Of the block, when the node had the value.
        geometry: Its form, its strides, where it begins, and its dtype.
        trained: Whether gradients flow to it.
        parent: What it is a view of.
        via: The node of that, as the next nodes take it.
        link: The nodes that take the view.
    """

    tensor: Callable[[], Tensor | None]
    node: Node
    block: Block
    version: int
    geometry: _Geometry | None
    trained: bool
    parent: Cell | None = None
    via: Node | None = None
    link: tuple[Node, ...] = ()


class Blocks:
    """The memory of one recording: which tensors are views of which, and which node has the value of each.

    Args:
        fail: Gives up, and says why.
    """

    def __init__(self, graph: Graph, note: Callable[[], Note], fail: Callable[[str], NoReturn]) -> None:
        self._graph = graph
        self._note = note
        self._fail = fail
        self._cells: dict[int, Cell] = {}
        self._blocks: dict[int, Block] = {}
        self._again: dict[tuple[Node, Node], Node] = {}
        self._made: list[Node] = []

    def find(self, tensor: Tensor) -> Cell | None:
        """Returns what is known of a tensor."""
        cell = self._cells.get(id(tensor))
        return cell if cell is not None and cell.tensor() is tensor else None

    def bind(self, tensor: Tensor, node: Node, *, origin: bool = False, attribute: bool = False) -> Tensor:
        """Says which node has the value of a tensor; returns the tensor that stands for it from now on.

        That is another one where a cast, say, returned its argument as it was: later readings are of one or the other.

        Args:
            origin: Whether the node reads it off an argument or an attribute.
            attribute: Whether it is an attribute.
        """
        known = self.find(tensor)
        if known is not None:
            if not _may_copy(node) or type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided:
                known.node = node
                return tensor
            with torch.enable_grad():  # as of the argument itself, gradients of later writes are followed
                tensor = torch.ops.aten.alias.default(tensor)
        block = self._block(tensor)
        cell = Cell(weakref.ref(tensor), node, block, block.version, _geometry(tensor), tensor.requires_grad)
        if block.cells:
            self._connect(cell, origin)
        elif origin:
            block.origin, block.attribute = node, attribute
        if tensor.layout != torch.strided or any(note_of(n).sparse for n in node.all_input_nodes):
            block.opaque = "writes into parts of a sparse matrix"
        block.cells.append(cell)
        self._cells[id(tensor)] = cell
        return tensor

    def current(self, cell: Cell) -> Node:
        """Returns the node that has the value of a tensor now."""
        if cell.version == cell.block.version or cell.parent is None:
            return cell.node
        source = self.current(cell.parent)
        link = [self._retake(node, cell.via, source) for node in cell.link[:1]]
        link += [self._retake(node, before, link[-1]) for before, node in zip(cell.link, cell.link[1:], strict=False)]
        cell.via, cell.link, cell.node = source, tuple(link), link[-1]
        cell.version = cell.block.version
        return cell.node

    def write(self, tensor: Tensor, node: Node) -> None:
        """Notes that a tensor, and all that shares its block, has the value of a node from now on."""
        cell = self.find(tensor)
        assert cell is not None
        block = cell.block
        if block.opaque:
            self._fail(block.opaque)
        chain = [cell]
        while chain[-1].parent is not None:
            chain.append(chain[-1].parent)
        before = [self.current(one) for one in chain]
        block.version += 1
        block.pending = None if block.origin is None else self._note()
        self._made.append(node)
        unseen = not torch.is_grad_enabled()  # by gradients, which go on to what was there before
        for place, one in enumerate(chain):
            if one.trained and unseen:
                node = self._call(keep_gradient, (before[place], node), note_of(before[place]))
            unseen = unseen or (not one.trained and chain[min(place + 1, len(chain) - 1)].trained)
            alive = one.tensor()
            one.trained = one.trained or cell.trained if alive is None else alive.requires_grad
            one.node, one.version = node, block.version
            if one.parent is not None:
                node = self._put_back(before[place + 1], one, node)

    def take_view(self, tensor: Tensor, node: Node) -> None:
        """Says that a tensor became, in place, a view of what it was (``x.t_()``)."""
        old = self.find(tensor)
        assert old is not None
        new = Cell(old.tensor, node, old.block, old.version, _geometry(tensor), tensor.requires_grad)
        new.parent, new.via, new.link = old, old.node, (node,)
        old.tensor = _gone
        old.block.cells.append(new)
        self._cells[id(tensor)] = new

    def written_by_others(self, tensor: Tensor) -> bool:
        """Says that an attribute was written, for real, by a call that the graph repeats; whether it could be."""
        cell = self.find(tensor)
        if cell is None or not cell.block.attribute or cell.node is not cell.block.origin or cell.block.opaque:
            return False
        cell.block.version += 1
        cell.version = cell.block.version
        return True

    def flush(self, attributes: Iterable[Tensor] | None = None) -> None:
        """Stores what was written into arguments and attributes.

        Args:
            attributes: These alone, which are read next by something that knows nothing of the graph's values, and may
                change them itself; ``None``: all, at the end.
        """
        wanted = None if attributes is None else {id(tensor) for tensor in attributes}
        for block in dict.fromkeys(cell.block for cell in self._cells.values() if cell.block.pending):
            root = block.cells[0]
            if block.origin is None or block.pending is None or (wanted is not None and not block.attribute):
                continue
            if wanted is not None and not any(id(cell.tensor()) in wanted for cell in block.cells):
                continue
            annotate(self._graph.call_function(store, (block.origin, root.node)), block.pending)
            block.pending = None
            if wanted is not None:
                root.node = annotate(self._graph.get_attr(str(block.origin.target)), note_of(block.origin))
                block.version += 1
                root.version = block.version

    def finish(self) -> None:
        """Takes out what was put back and taken again for nobody; keeps what is stored from being read afterwards."""
        for node in reversed(self._made):
            if not node.users:
                self._graph.erase_node(node)
        stored = dict.fromkeys(node.args[0] for node in self._graph.nodes if node.target is store)
        for origin in stored:
            assert isinstance(origin, Node)
            with self._graph.inserting_after(origin):
                own = annotate(self._graph.call_function(private, (origin,)), note_of(origin))
            for user in [user for user in origin.users if user is not own and user.target is not store]:
                user.replace_input_with(origin, own)

    # -- views ---------------------------------------------------------------------------------------------------

    def _block(self, tensor: Tensor) -> Block:
        key = _storage(tensor)
        if key is None:
            return Block()
        block = self._blocks.get(key)
        held = [] if block is None else [one for cell in block.cells if (one := cell.tensor()) is not None]
        if block is not None and any(_storage(one) == key for one in held):
            return block
        self._blocks[key] = Block()
        return self._blocks[key]

    def _connect(self, cell: Cell, origin: bool) -> None:
        """Finds out what a tensor is a view of, and how it was taken."""
        node = cell.node
        taken = [node]
        if op_name(node) == "getitem" and isinstance(node.args[0], Node) and not note_of(node.args[0]).is_tensor:
            taken.insert(0, node.args[0])  # one of several results
        for other in reversed(cell.block.cells):
            if not origin and other.node in taken[0].all_input_nodes:
                cell.parent, cell.via, cell.link = other, other.node, tuple(taken)
                return
        cell.block.opaque = "writes into memory that two of its arguments or attributes share"

    def _retake(self, node: Node, before: Node | None, source: Node) -> Node:
        """Takes the same view of another value."""
        if node.op == "call_module":
            self._fail(f"writes into memory that the module {node.target!r} handed through")
        if (node, source) not in self._again:
            args, kwargs = map_arg((node.args, node.kwargs), lambda n: source if n is before else n)
            new = self._graph.create_node(node.op, node.target, args, kwargs)
            self._again[node, source] = annotate(new, note_of(node))
            self._made.append(new)
        return self._again[node, source]

    def _put_back(self, whole: Node, view: Cell, part: Node) -> Node:
        """Returns the node of a whole with the new value of a view put back into it."""
        assert view.parent is not None
        if view.geometry == view.parent.geometry:
            return part
        node, note = view.link[-1], note_of(whole)
        if len(view.link) > 1:
            return self._part_back(whole, view, part)
        name, rest = op_name(node), node.args[1:]
        if view.geometry is None or view.parent.geometry is None or view.geometry[3] != view.parent.geometry[3]:
            self._fail(f"writes through a view of another type, made with {name}()")
        if name == "getitem":
            return self._call(setitem, (whole, rest[0], part), note)
        if op_of(node).moves is Moves.RESHAPE:
            return self._method("reshape_as", (part, whole), note)
        if name == "movedim" and not node.kwargs:
            return self._call(torch.movedim, (part, rest[1], rest[0]), note)
        if name == "permute":
            dims = [int(dim) % len(rest) for dim in rest]  # type: ignore[arg-type]
            return self._method("permute", (part, *(dims.index(dim) for dim in range(len(dims)))), note)
        if name in ("transpose", "t"):
            return self._method(name, (part, *rest), note)
        if name == "select":
            return self._call(torch.select_scatter, (whole, part, *rest), note)
        if name == "diagonal":
            return self._call(torch.diagonal_scatter, (whole, part, *rest), note, node.kwargs)
        if name == "narrow" and isinstance(rest[1], Node | int) and not (isinstance(rest[1], int) and rest[1] < 0):
            dim, start, length = rest
            plain = isinstance(start, int) and isinstance(length, int)
            end = start + length if plain else self._call(operator.add, (start, length), Note())  # type: ignore[operator]
            return self._call(torch.slice_scatter, (whole, part, dim, start, end), note)
        self._fail(f"writes through a view made with {name}()")

    def _part_back(self, whole: Node, view: Cell, part: Node) -> Node:
        """Returns the node of a whole with one of the parts put back that it was split into."""
        apart, item = view.link
        name, key = op_name(apart), item.args[1]
        dim = apart.kwargs.get("dim", 0)
        assert isinstance(key, int)
        if name == "unbind":
            return self._call(torch.select_scatter, (whole, part, dim, key), note_of(whole))
        if name not in ("split", "chunk", "tensor_split", "split_with_sizes"):
            self._fail(f"writes through a view made with {name}()")
        again = self._retake(apart, view.via, whole)
        count = max(int(user.args[1]) for user in apart.users if op_name(user) == "getitem") + 1  # type: ignore[arg-type]
        parts = [part if k == key else self._call(operator.getitem, (again, k), note_of(part)) for k in range(count)]
        return self._call(torch.cat, (parts,), note_of(whole), {"dim": dim})

    def _call(self, target: Any, args: tuple[Any, ...], note: Note, kwargs: Any = None) -> Node:
        return self._written(self._graph.create_node("call_function", target, args, dict(kwargs or {})), note)

    def _method(self, name: str, args: tuple[Any, ...], note: Note) -> Node:
        return self._written(self._graph.create_node("call_method", name, args), note)

    def _written(self, node: Node, note: Note) -> Node:
        self._made.append(node)
        return annotate(node, replace(self._note(), sizes=note.sizes, dtype=note.dtype, sparse=note.sparse))


def _may_copy(node: Node) -> bool:
    """Returns True if a call that returned its argument itself may return a copy of it elsewhere: ``x.float()``."""
    return node.op != "call_module" and op_name(node) != "getitem" and op_of(node).storage is Storage.SHARED


def _geometry(tensor: Tensor) -> _Geometry | None:
    if tensor.layout != torch.strided:
        return None
    return tuple(tensor.size()), tuple(tensor.stride()), int(tensor.storage_offset()), tensor.dtype


def _storage(tensor: Tensor) -> int | None:
    """Returns a key of a tensor's storage; ``None`` for a tensor without one storage."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):
        return None


def overlap(one: Tensor, other: Tensor) -> bool:
    """Returns True if a write into one tensor may change the other."""
    return one is other or (_storage(one) is not None and _storage(one) == _storage(other))


def _gone() -> None:
    """Stands for a reference to a tensor that nobody holds."""
