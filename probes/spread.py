"""Tell over which ranks a model is spread, and which part of each parameter a rank holds.

A model is spread where torch wraps it in DistributedDataParallel or FullyShardedDataParallel, or where it has DTensor
parameters (``fully_shard``, tensor parallelism). Anything else is alone in its process, whatever process group there is: an
evaluation on one rank must not wait for others.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .gathered import sharded_modules
from .wrappers import bare


@dataclass(frozen=True)
class Spread:
    """The ranks that hold one model between them.

    Attributes:
        ranks: their global numbers.
        has_own_data: whether every rank is known to train on data of its own; where it is not, their inputs tell.
        notes: what is not measured because of it, in sentences.
        has_flat_parameters: whether parameters are kept as flat parts, which end anywhere in them.
    """

    ranks: tuple[int, ...]
    has_own_data: bool
    notes: tuple[str, ...] = ()
    has_flat_parameters: bool = False


def spread_of(model: nn.Module) -> Spread | None:
    """Return how ``model`` is spread over ranks; None where it is this process's alone."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return None
    replicated, flat = _replicated(model), _flattened(model)
    meshes = {parameter.device_mesh for parameter in _distributed(model)}
    notes: list[str] = []
    ranks: set[int] = set()
    for mesh in meshes:
        ranks |= set(mesh.mesh.flatten().tolist())
    for group in [replicated.process_group] if replicated is not None else [flat.process_group] if flat else []:
        ranks |= set(dist.get_process_group_ranks(group))
    if flat is not None:
        notes.append(
            "Parameters are not measured: FullyShardedDataParallel keeps flat parts of them that end anywhere. Shard with "
            "fully_shard to measure them."
        )
    if replicated is not None and getattr(replicated, "_comm_hooks", None):
        notes.append(
            "Gradients of activations are recorded as parts of a loss that is averaged over ranks: what the communication "
            "hook makes of the sum is not known."
        )
    if len(ranks) < 2:
        return None
    return Spread(tuple(sorted(ranks)), not meshes or _is_by_data(model, meshes), tuple(notes), flat is not None)


def share(parameter: Tensor, n_ranks: int) -> float:
    """Return what a rank's sums over its part of a parameter count, so that over all ranks each element counts once.

    A part that all ranks have counts 1 / n_ranks, a part of which there is one counts 1.
    """
    return n_parts(parameter) / n_ranks


def n_parts(parameter: Tensor) -> int:
    """Return into how many parts a parameter is cut."""
    count = 1
    if _is_distributed(parameter):
        held: Any = parameter
        for dim, placement in enumerate(held.placements):
            if not (placement.is_replicate() or placement.is_partial()):
                count *= held.device_mesh.size(dim)
    return count


def _is_distributed(tensor: Any) -> bool:
    return hasattr(tensor, "device_mesh") and hasattr(tensor, "placements")


def _distributed(model: nn.Module) -> list[Any]:
    return [parameter for parameter in model.parameters() if _is_distributed(parameter)]


def _replicated(model: nn.Module) -> Any:
    """Return the DistributedDataParallel around ``model``, or around a module that it is a part of; None where there is none."""
    if isinstance(model, DistributedDataParallel):
        return model
    inside = bare(model)
    # The wrapper knows its module and not the other way round.
    found = [each for each in gc.get_objects() if issubclass(type(each), DistributedDataParallel)]
    return next((wrapper for wrapper in found if any(module is inside for module in wrapper.modules())), None)


def _flattened(model: nn.Module) -> Any:
    """Return a FullyShardedDataParallel in the model, torch's first, which flattens parameters; None where there is none."""
    return next(
        (m for m in model.modules() if hasattr(m, "_fsdp_wrapped_module") and hasattr(m, "process_group")), None
    )


def _is_by_data(model: nn.Module, meshes: set[Any]) -> bool:
    """Return whether ``fully_shard`` alone made the meshes: over its ranks, or over them and replicas of them."""
    if not sharded_modules(model) or len(meshes) > 1:
        return False
    (mesh,) = meshes
    is_replica = all(parameter.placements[0].is_replicate() for parameter in _distributed(model))
    return mesh.ndim == 1 or (mesh.ndim == 2 and is_replica)
