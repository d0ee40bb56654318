"""Which values cannot be negative, so that an unsigned grid wastes nothing."""

from __future__ import annotations

from torch import nn
from torch.fx import Node
from torch_geometric.nn import aggr
from torch_geometric.utils import scatter

from dqconvert.ops import op_name
from dqconvert.trace.note import note_of

_NONNEGATIVE = {
    "relu",
    "relu6",
    "sigmoid",
    "softmax",
    "abs",
    "square",
    "exp",
    "hardsigmoid",
    "softplus",
    "norm",
}
_NONNEGATIVE_MODULES = (nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Softmax, nn.Hardsigmoid, nn.Softplus)

# Operations that keep nonnegative values nonnegative.
_KEEPS = {
    *(
        "view",
        "reshape",
        "flatten",
        "squeeze",
        "unsqueeze",
        "transpose",
        "permute",
        "t",
        "contiguous",
        "expand",
    ),
    *(
        "clone",
        "detach",
        "index_select",
        "getitem",
        "dropout",
        "repeat",
        "chunk",
        "split",
        "unbind",
        "gather",
    ),
    *("stage_output", "cat", "stack", "sum", "mean", "max", "min", "amax", "amin", "sqrt"),
    *(
        "scatter",
        "global_add_pool",
        "global_mean_pool",
        "global_max_pool",
        "maximum",
        "minimum",
        "float",
        "to",
    ),
}
_ARITHMETIC = {"add", "mul", "div"}
_KEEPING_MODULES = (
    nn.Dropout,
    nn.Identity,
    *(getattr(aggr, f"{name}Aggregation") for name in ("Sum", "Mean", "Max", "Min")),
)


class Signs:
    """Answers for one module, remembering what it found.

    Example:
        >>> from dqconvert.trace import trace
        >>> module = trace(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Dropout())).module
        >>> signs = Signs(module)
        >>> [signs.is_nonnegative(node) for node in module.graph.nodes if node.op == "call_module"]
        [False, True, True]
    """

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self._known: dict[Node, bool] = {}

    def is_nonnegative(self, node: Node) -> bool:
        """Whether the value of a node cannot be negative, whatever the inputs."""
        # An explicit stack: graphs of hundreds of layers would overflow Python's.
        stack = [node]
        while stack:
            top = stack[-1]
            verdict = self._known.get(top, self._alone(top))
            operands = [operand for operand in top.all_input_nodes if note_of(operand).is_float]
            pending = [operand for operand in operands if operand not in self._known] if verdict is None else []
            if pending:
                stack.extend(pending)
                continue
            if verdict is None:
                verdict = bool(operands) and all(self._known[operand] for operand in operands)
            self._known[top] = verdict
            stack.pop()
        return self._known[node]

    def _alone(self, node: Node) -> bool | None:
        """The answer if the operation settles it, ``None`` if it depends on its operands."""
        if node.op == "call_module":
            module = self.root.get_submodule(str(node.target))
            if isinstance(module, _NONNEGATIVE_MODULES):
                return True
            return None if isinstance(module, _KEEPING_MODULES) else False
        if node.op not in ("call_function", "call_method"):
            return False
        name = op_name(node)
        if name in _NONNEGATIVE:
            return True
        if name in _ARITHMETIC and any(map(_may_be_negative, (*node.args, *node.kwargs.values()))):
            return False
        if name == "scatter" and node.target is not scatter:  # torch's, which may put a number
            return False
        return None if name in _KEEPS or name in _ARITHMETIC else False


def _may_be_negative(operand: object) -> bool:
    """Whether an operand of arithmetic is a negative number or an integer tensor, whose sign is unknown."""
    if isinstance(operand, Node):
        return not note_of(operand).is_float
    return isinstance(operand, int | float) and operand < 0
