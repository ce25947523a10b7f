"""Show a model whose parameters are sharded as a whole one, for as long as it is looked into."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from torch import nn


def sharded_modules(model: nn.Module) -> list[Any]:
    """Return the modules of ``model`` to which ``torch.distributed.fsdp.fully_shard`` was applied."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")  # where it was never imported, nothing is sharded by it
    return [] if fsdp is None else [module for module in model.modules() if isinstance(module, fsdp.FSDPModule)]


@contextlib.contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Gather the parameters that ``fully_shard`` spread, once, and keep them until the block has ended.

    Every process of the group must come here. Inside no forward communicates, so that one whose block fails or ends early
    leaves the others alone. The memory taken is that of the whole model's parameters, in the dtype that it computes with.
    """
    modules = sharded_modules(model)
    if modules and modules[0] is model:
        root: Any = model
        root._get_fsdp_state()._lazy_init()  # decides whether the root's own parameters are kept after a forward
    groups = [group for module in modules for group in module._get_fsdp_state()._fsdp_param_groups]
    after_forward = [group.post_forward_mesh_info for group in groups]
    try:
        for group in groups:
            group.post_forward_mesh_info = None  # gathered parameters stay after a forward
        for module in modules:
            module.unshard()
        yield
    finally:
        for group, info in zip(groups, after_forward, strict=True):
            group.post_forward_mesh_info = info
        for module in modules:
            module.reshard()
