"""Several ranks: learned steps that FSDP2 leaves alone; what a module says before ranks compute different things."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator
from typing import Any

from torch import Tensor, distributed, nn

from dqconvert.distributed import is_enabled, several_ranks
from dqconvert.errors import DistributedError
from dqconvert.quant import FakeQuantize
from dqconvert.rewrite.place import Quantizers

_looked_at: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def average_learned_steps(module: nn.Module) -> set[nn.Parameter]:
    """Has every backward average the gradients of the learned steps over all ranks, for FSDP2, which shards no scalars.

    ``fully_shard(module, ignored_params=average_learned_steps(module))``; call it once, before. Of copies, and under
    DistributedDataParallel, which averages them itself, there is nothing to call.

    Args:
        module: A prepared module, or one that holds some.

    Returns:
        The steps: every ``log_scale`` and ``offset``.

    Example:
        >>> import dqconvert
        >>> from torch_geometric.nn import GCNConv
        >>> len(average_learned_steps(dqconvert.prepare(GCNConv(8, 4), "int8-lsq").module))
        13
    """
    steps = {step for _, step in _learned(module)}
    for step in steps:
        step.register_post_accumulate_grad_hook(_average)
    return steps


def _average(step: Tensor) -> None:
    if several_ranks() and is_enabled() and step.grad is not None:
        distributed.all_reduce(step.grad)
        step.grad /= distributed.get_world_size()


def _learned(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for path, child in module.named_modules():
        for name, step in child.named_parameters(recurse=False) if isinstance(child, FakeQuantize) else ():
            yield f"{path}.{name}", step


def check_ranks(module: nn.Module) -> None:
    """Looks for what several ranks would not have in common: learned steps that FSDP ignores, quantizers of the user.

    Raises:
        DistributedError: Where nobody adds up the gradients of a learned step.
    """
    if ignored := list(_ignored(module)):
        raise DistributedError(
            f"FSDP was told to ignore {len(ignored)} learned steps, {ignored[0]} first: nobody averages their "
            f"gradients, and every rank would learn a grid of its own. fully_shard(module, ignored_params="
            f"dqconvert.average_learned_steps(module)) has them averaged; DistributedDataParallel does so by itself."
        )
    if not is_enabled() or module in _looked_at:
        return
    _looked_at.add(module)
    if own := list(_by_themselves(module)):
        warnings.warn(
            f"{', '.join(own)}: of quantizers of your own dqconvert cannot tell whether they observe the values of all "
            f"ranks; if each keeps a range of its own, ranks round to different grids, and DistributedDataParallel "
            f"overwrites buffers by those of rank 0. Merge what they observe (torch.distributed.all_reduce) and set "
            f"their attribute synchronized = True.",
            stacklevel=4,
        )


def _ignored(module: nn.Module) -> Iterator[str]:
    """Yields the names of learned steps that FSDP does not know, and that :func:`average_learned_steps` did not see."""
    if not any(getattr(child, "_is_fsdp_managed_module", False) for child in module.modules()):
        return
    from torch.distributed.fsdp import FSDPModule

    known: set[int] = set()
    for child in module.modules():
        state: Any = child._get_fsdp_state() if isinstance(child, FSDPModule) else None
        groups = getattr(state, "_fsdp_param_groups", None) or [getattr(state, "_fsdp_param_group", None)]
        for one in (one for group in groups if group is not None for one in group.fsdp_params):
            info = one._module_info
            owners = zip((info.module, *info.shared_modules), (info.param_name, *info.shared_param_names), strict=True)
            known |= {id(getattr(owner, name)) for owner, name in owners}
    for path, step in _learned(module):
        # Of a module around this one nothing is to be seen here; but no scalar can be sharded.
        reduced = id(step) in known if isinstance(module, FSDPModule) else step.dim() > 0
        hooks = getattr(step, "_post_accumulate_grad_hooks", None) or {}
        if step.requires_grad and not reduced and _average not in hooks.values():
            yield path


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
