"""Tell whether a model is one stage of a pipeline, and which forwards of it belong to the training loop."""

from __future__ import annotations

import gc
import sys
from dataclasses import dataclass
from typing import Any

from torch import nn

from .errors import ProbeError
from .wrappers import bare


@dataclass(frozen=True)
class Stage:
    """One stage of a pipeline.

    Attributes:
        index: its place in the order of the forward, from 0.
        n: how many stages there are.
    """

    index: int
    n: int


def stage_of(model: nn.Module, given: tuple[int, int] | None) -> Stage | None:
    """Return which stage ``model`` is: the one ``given`` as (index, number), or what torch's pipelines say of it.

    Raises:
        ProbeError: ``given`` is no place among so many stages.
    """
    if given is None:
        holder = _holder(model)
        found = None if holder is None else Stage(int(holder.stage_index), int(holder.num_stages))
        return found if found is not None and found.n > 1 else None
    if not (
        isinstance(given, tuple)
        and len(given) == 2
        and all(type(number) is int for number in given)
        and 0 <= given[0] < given[1]
    ):
        raise ProbeError(
            f"Expected stage=(index, number of stages) with 0 <= index < number, got {given!r}. Leave it out where the model is "
            "no stage of a pipeline."
        )
    return Stage(*given)


class Chunks:
    """Knows when the pipeline that holds a stage runs a micro-batch through it.

    Before its first step torch's pipeline runs every stage on memory that nobody has written, to learn its shapes.
    """

    def __init__(self, model: nn.Module) -> None:
        """Watch the pipeline around ``model``, where there is one."""
        self._holder = _holder(model)
        self._run: Any = getattr(self._holder, "forward_one_chunk", None)
        self._before = vars(self._holder).get("forward_one_chunk") if self._run is not None else None
        self._is_on = self._run is None
        if self._run is not None:
            self._holder.forward_one_chunk = self._watched

    @property
    def is_on(self) -> bool:
        """Whether a forward that begins now is of a micro-batch; True where there is no pipeline."""
        return self._is_on

    def close(self) -> None:
        """Watch no longer; whoever watched before goes on."""
        if self._run is None or vars(self._holder).get("forward_one_chunk") != self._watched:
            return
        if self._before is None:
            del self._holder.forward_one_chunk
        else:
            self._holder.forward_one_chunk = self._before

    def _watched(self, *args: Any, **kwargs: Any) -> Any:
        self._is_on = True
        try:
            return self._run(*args, **kwargs)
        finally:
            self._is_on = False


def _holder(model: nn.Module) -> Any:
    """Return torch's pipeline stage around ``model``, which knows its module and not the other way round; None without."""
    module = sys.modules.get("torch.distributed.pipelining.stage")
    if module is None:
        return None
    inside, kind = bare(model), module._PipelineStageBase
    found = [each for each in gc.get_objects() if issubclass(type(each), kind)]
    return next((each for each in found if bare(each.submod) is inside), None)
