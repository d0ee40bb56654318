"""What a prepared module that trains on several ranks says before it computes something else on each of them."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator

from torch import nn

from dqconvert.distributed import is_enabled
from dqconvert.errors import DistributedError
from dqconvert.quant import FakeQuantize
from dqconvert.rewrite.place import Quantizers

_warned: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def check_ranks(module: nn.Module) -> None:
    """Looks for what several ranks would not have in common: learned steps that FSDP2 ignores, quantizers of the user.

    Raises:
        DistributedError: Where nobody adds up the gradients of a learned step.
    """
    if ignored := list(_ignored(module)):
        raise DistributedError(
            f"FSDP2 was told to ignore {ignored[0]} and {len(ignored) - 1} more learned steps: nobody averages their "
            f"gradients, and every rank would learn a grid of its own. Give each a hook that does (examples/GUIDE.md, "
            f"Several processes: parameter.register_post_accumulate_grad_hook), or train with DistributedDataParallel, "
            f"or choose a range that is not learned."
        )
    if is_enabled() and module not in _warned and (own := list(_by_themselves(module))):
        _warned.add(module)
        warnings.warn(
            f"{', '.join(own)}: of quantizers of your own dqconvert cannot tell whether they observe the values of all "
            f"ranks; if each keeps a range of its own, ranks round to different grids, and DistributedDataParallel "
            f"overwrites buffers by those of rank 0. Merge what they observe (torch.distributed.all_reduce) and set "
            f"their attribute synchronized = True.",
            stacklevel=4,
        )


def _ignored(module: nn.Module) -> Iterator[str]:
    """Yields the names of learned steps that FSDP2 does not know, and that have no hook which would reduce them."""
    if not any(getattr(child, "_is_fsdp_managed_module", False) for child in module.modules()):
        return
    from torch.distributed.fsdp import FSDPModule

    known: set[tuple[int, str]] = set()
    for child in module.modules():
        for group in child._get_fsdp_state()._fsdp_param_groups if isinstance(child, FSDPModule) else ():
            for one in group.fsdp_params:
                info = one._module_info
                known.add((id(info.module), info.param_name))
                known |= {*zip(map(id, info.shared_modules), info.shared_param_names, strict=True)}
    for path, child in module.named_modules():
        for name, step in child.named_parameters(recurse=False) if isinstance(child, FakeQuantize) else ():
            # Of a module around this one nothing is to be seen here; but no scalar can be sharded.
            reduced = (id(child), name) in known if isinstance(module, FSDPModule) else step.dim() > 0
            if step.requires_grad and not reduced and not getattr(step, "_post_accumulate_grad_hooks", None):
                yield f"{path}.{name}"


def _by_themselves(module: nn.Module) -> Iterator[str]:
    """Yields the paths of the user's own quantizers that may keep something which ranks do not share."""
    for path, holder in module.named_modules():
        for name, own in holder.named_children() if isinstance(holder, Quantizers) else ():
            ours = isinstance(own, FakeQuantize) or type(own).__module__.startswith("dqconvert.")
            if not ours and not getattr(own, "synchronized", False) and any(map(_keeps, own.modules())):
                yield f"{path}.{name}"


def _keeps(module: nn.Module) -> bool:
    """True if a module has buffers or attributes that may change as it observes."""
    if isinstance(module, FakeQuantize):
        return False
    attributes = vars(module).keys() - vars(nn.Module()).keys()
    constant = all(isinstance(vars(module)[name], bool | int | str | None) for name in attributes)
    return bool(module._buffers) or not constant
