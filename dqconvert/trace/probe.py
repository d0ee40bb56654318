"""One recording of a method, to see whether a graph can hold what it does before the work of tracing it is done."""

from __future__ import annotations

from torch import nn

from dqconvert.trace.inputs import Inputs
from dqconvert.trace.interception import Interception
from dqconvert.trace.randomness import preserved_random_state, seed
from dqconvert.trace.record import record
from dqconvert.trace.values import Untraceable


def probe(root: nn.Module, inputs: Inputs, method: str, training: bool, kept: frozenset[str]) -> str | None:
    """Returns why a graph cannot hold a method, in words that follow its name; ``None`` if nothing speaks against it.

    Args:
        inputs: What to call the method on.
        method: Its name, behind the path of its part.
        training: The mode to record it in.
        kept: Paths of modules to keep whole.

    Example:
        >>> import torch
        >>> from dqconvert.trace.inputs import bind
        >>> class Net(nn.Linear):
        ...     def remember(self, x):
        ...         self.seen.append(len(x))
        ...         return self(x)
        >>> net = Net(2, 2)
        >>> net.seen = []
        >>> probe(net, bind(net, "remember", torch.ones(1, 2)), "remember", True, frozenset())
        "keeps something for later in 'seen'"
    """
    interception = Interception(root)
    later: list[str] = []
    with preserved_random_state():
        seed()
        try:
            with interception.active():
                record(interception, inputs, method, training, kept, left=later)
        except Untraceable as failure:
            return f"{failure.reason} ({failure.source})"
        except Exception:  # the user's code refuses the inputs, and says why when it is called
            return None
    return f"keeps something for later in {later[0]!r}" if later else None
