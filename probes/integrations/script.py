"""Put a probe on every model that a program trains, while it runs as it is, and close its steps at its optimizers' steps.

What is seen is seen from outside: optimizers as they are made and as they step, the first call of a module that holds their
parameters, the scalars that backward is called on. Nothing here raises into the program.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rheoscope.probes.door import Door
from rheoscope.probes.errors import ProbeError, RecordingError
from rheoscope.probes.recorder import attach
from rheoscope.probes.recording import Recording
from rheoscope.probes.spread import spread_of
from rheoscope.probes.wrappers import bare
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from .backward_losses import BackwardLosses, reached
from .probed import Probed
from .replacements import Replacements
from .search import Search
from .waiting import Waiting

MOST_MODELS = 8  # in one program: a search over many small models is not recorded one by one
MOST_IDLE = 50  # steps of other models, after which a model that does not step is let go of
MOST_SAID = 20
Say = Callable[[str], None]


@dataclass(frozen=True)
class Taken:
    """What was recorded of one model.

    Attributes:
        name: of its class.
        folder: where it was recorded.
        n_steps: how many optimizer steps.
        recording: the recording; None on a rank that writes nothing.
    """

    name: str
    folder: Path
    n_steps: int
    recording: Recording | None


class ScriptProbes:
    """The probes of one program."""

    def __init__(
        self, folder: Path, *, every: int, label: str, say: Say, at_hard_exit: Callable[[], None] = lambda: None
    ) -> None:
        """Prepare.

        Args:
            folder: where the first model is recorded; others in folders of their own in there.
            every: a step in so many is sampled in full.
            label: a name for the program.
            say: told in a sentence what is not measured.
            at_hard_exit: called where the program ends itself by ``os._exit``.
        """
        self._folder, self._every, self._label, self._tell = folder, every, label, say
        self._at_hard_exit = at_hard_exit
        self._process = os.getpid()
        self._is_on = False
        self._said: set[str] = set()
        self._replacements = Replacements()
        self._waiting: list[Waiting] = []
        self._probed: list[Probed] = []
        self._depth: dict[int, int] = {}
        self._n_stepped = 0
        self._handles: list[Any] = []
        self._search: Search | None = None

    def start(self) -> None:
        """Begin to watch: torch is imported."""
        self._is_on = True
        self._search = Search(self._found, self._guard, self._replacements)
        BackwardLosses(self._lost, self._guard, self._replacements)
        self._replacements.put(GradScaler, "step", self._around_scaler_step)
        self._replacements.put(os, "_exit", self._around_exit)
        if torch.distributed.is_available():
            for owner in (torch.distributed, torch.distributed.distributed_c10d):
                self._replacements.put(owner, "destroy_process_group", self._around_destroy)
        self._handles += [
            register_optimizer_step_pre_hook(lambda optimizer, *_: self._guard(lambda: self._before_step(optimizer))),
            register_optimizer_step_post_hook(lambda optimizer, *_: self._guard(lambda: self._after_step(optimizer))),
        ]
        mine = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _leave_to_parent(mine))

    def finish(self, error: BaseException | None = None) -> list[Taken]:
        """Close all recordings, put everything back as it was, and return what was recorded."""
        if self._process != os.getpid() or self._search is None:
            return []
        self._guard(self._search.close)
        for waiting in self._waiting:
            self._guard(waiting.close)
        for probed in self._probed:
            self._guard(partial(probed.close, error))
        self._is_on = False
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._replacements.put_back()
        return [Taken(each.name, each.folder, each.n_steps, each.recording) for each in self._probed]

    @property
    def n_stepped(self) -> int:
        """How many steps of optimizers were seen, of any model."""
        return self._n_stepped

    def _guard(self, action: Callable[[], None]) -> None:
        """Do something of ours, inside the program: what goes wrong is said once."""
        if not self._is_on:
            return
        try:
            action()
        except Exception as error:  # noqa: BLE001 - nothing of ours may end the program
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        logging.getLogger("rheoscope").debug("inside rheoscope run", exc_info=error)
        self._say(f"an error of Rheoscope's own, which goes on without: {type(error).__name__}: {error}")

    def _say(self, sentence: str) -> None:
        if sentence not in self._said and len(self._said) < MOST_SAID:
            self._said.add(sentence)
            self._tell(sentence)

    def _found(
        self, model: nn.Module, optimizers: list[Optimizer], args: tuple[Any, ...], kwargs: Mapping[str, Any] | None
    ) -> None:
        """Wait for the first training forward of a model; the call that shows it may be that."""
        current = self._open_on(model)
        if current is not None and all(current.holds(each) for each in optimizers):
            return
        waiting = Waiting(model, lambda: self._attach(model), self._fail)
        self._waiting.append(waiting)
        # Of replicas the forward of the module inside is the model's own: it is still to come.
        if kwargs is not None and waiting.is_around(model):
            waiting.enter(args, kwargs)

    def _open_on(self, model: nn.Module) -> Probed | None:
        found = (each for each in self._probed if each.model is not None and bare(each.model) is bare(model))
        return next(found, None)

    def _attach(self, model: nn.Module) -> Door | None:
        assert self._search is not None
        self._waiting = [each for each in self._waiting if each.model is not model]
        current = self._open_on(model)
        if current is not None:
            current.close()
        number = len(self._probed) + 1
        name = type(bare(model)).__name__
        if number > MOST_MODELS:
            self._say(f"{name} is not measured: {MOST_MODELS} models of this program are.")
            return None
        folder = _of_rank(model, self._folder)
        folder = folder if number == 1 else folder / f"model-{number}"
        optimizers = self._search.holders(model)
        try:
            probe = attach(model, optimizers, every=self._every, folder=folder, label=f"{self._label}: {name}")
        except (ProbeError, RecordingError) as error:
            self._say(f"{name} is not measured. {error}")
            return None
        probed = Probed(model, optimizers, probe, folder, self._fail)
        self._probed.append(probed)
        return probe.door

    def _lost(self, loss: Tensor, graph: Any, scaler: Any) -> None:
        """Give the loss of a backward to the models that it reaches."""
        found = [each for each in self._probed if each.is_open]
        if len(found) > 1:
            hit = reached(graph, frozenset().union(*(each.parameters for each in found)))
            # What a checkpoint hides is not reached: then it may be anyone's.
            found = [each for each in found if hit & each.parameters] or found
        for each in found:
            self._guard(partial(each.add_loss, loss, scaler))

    def _before_step(self, optimizer: Any) -> None:
        depth = self._depth.get(id(optimizer), 0)
        # A step that calls that of the class it extends runs the hooks again.
        self._depth[id(optimizer)] = depth + 1
        if depth:
            return
        for each in self._of(optimizer):
            self._closed(each, is_closed=each.before_step(optimizer))

    def _after_step(self, optimizer: Any) -> None:
        depth = self._depth[id(optimizer)] = max(0, self._depth.get(id(optimizer), 0) - 1)
        if not depth:
            self._stepped(optimizer)

    def _stepped(self, optimizer: Any) -> None:
        assert self._search is not None
        self._n_stepped += 1
        for each in self._of(optimizer):
            each.watch()
            self._closed(each, is_closed=each.after_step(optimizer))
        if self._search.know(optimizer):
            return  # a copy, or one that was read from a file: its model is looked for in the step that comes
        for part in self._search.settle(optimizer):
            if self._open_on(part) is None and not any(each.model is part for each in self._waiting):
                self._waiting.append(Waiting(part, partial(self._attach, part), self._fail))

    def _of(self, optimizer: Any) -> list[Probed]:
        return [each for each in self._probed if each.is_open and each.holds(optimizer)]

    def _closed(self, probed: Probed, *, is_closed: bool) -> None:
        """Let go of models that others have long gone on without: the program may have, too."""
        if not is_closed:
            return
        for each in self._probed:
            if each is not probed and each.is_open:
                each.n_idle += 1
                if each.n_idle > MOST_IDLE:
                    each.close()

    def _around_scaler_step(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """A scaler that leaves out a step calls no optimizer: the step has ended all the same."""

        def step(scaler: GradScaler, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            before = self._n_stepped
            returned = original(scaler, optimizer, *args, **kwargs)
            if self._n_stepped == before:
                self._guard(lambda: self._stepped(optimizer))
            return returned

        return step

    def _around_destroy(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """What ranks measured is joined while they can still be reached."""

        def destroy_process_group(group: Any = None) -> Any:
            if group is None:
                for each in self._probed:
                    self._guard(each.close)
            return original(group)

        return destroy_process_group

    def _around_exit(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def _exit(status: int) -> Any:
            is_main = threading.current_thread() is threading.main_thread()
            # A watchdog in another thread ends a program that hangs: then nothing may be waited for.
            if is_main and self._process == os.getpid():
                self._guard(self._at_hard_exit)
                sys.stderr.flush()
            return original(status)

        return _exit


def _of_rank(model: nn.Module, folder: Path) -> Path:
    """Return where this process writes: where the model is not known to be that of other ranks, each writes for itself."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return folder
    rank = torch.distributed.get_rank()
    return folder if rank == 0 or spread_of(model) is not None else folder / f"rank-{rank}"


def _leave_to_parent(probes: weakref.ref[ScriptProbes]) -> None:
    mine = probes()
    if mine is not None:
        mine._is_on = False
