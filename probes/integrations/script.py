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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rheoscope.probes.door import Door
from rheoscope.probes.errors import ProbeError, RecordingError
from rheoscope.probes.optimizers import stepping
from rheoscope.probes.recorder import attach
from rheoscope.probes.recording import Recording
from rheoscope.probes.spread import spread_of
from rheoscope.probes.stages import stage_of
from rheoscope.probes.wrappers import bare
from torch import Tensor, nn
from torch.optim import Optimizer

from .following import Following
from .probed import Probed
from .replacements import Replacements
from .search import Search
from .waiting import Waiting

MOST_MODELS = 8  # in one program: a search over many small models is not recorded one by one
MOST_SAID = 20
FIRST_ONLY = {"sinks", "report", "resume", "anatomy"}  # options that are of one model alone
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
        self,
        folder: Path,
        *,
        label: str,
        say: Say,
        options: Mapping[str, Any],
        at_hard_exit: Callable[[], None] = lambda: None,
        on_loss: Callable[[Tensor], None] = lambda _: None,
    ) -> None:
        """Prepare.

        Args:
            folder: where the first model is recorded; others in folders of their own in there.
            label: a name for the program.
            say: told in a sentence what is not measured.
            options: more of what ``attach`` takes.
            at_hard_exit: called where the program ends itself by ``os._exit``.
            on_loss: told of the loss of every backward, without any loss scale.
        """
        self._folder, self._label, self._tell, self._options = folder, label, say, dict(options)
        self._at_hard_exit, self._on_loss = at_hard_exit, on_loss
        self._process = os.getpid()
        self._is_on = False
        self._said: set[str] = set()
        self._replacements = Replacements()
        self._waiting: list[Waiting] = []
        self._following: Following | None = None
        self._search: Search | None = None

    def start(self) -> None:
        """Begin to watch: torch is imported."""
        self._is_on = True
        self._search = Search(self._found, self._guard, self._replacements)
        self._following = Following(self._stepped, self._on_loss, self._guard, self._replacements)
        self._replacements.put(os, "_exit", self._around_exit)
        if torch.distributed.is_available():
            for owner in (torch.distributed, torch.distributed.distributed_c10d):
                self._replacements.put(owner, "destroy_process_group", self._around_destroy)
        mine = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _leave_to_parent(mine))

    def finish(self, error: BaseException | None = None) -> list[Taken]:
        """Close all recordings, put everything back as it was, and return what was recorded."""
        if self._process != os.getpid() or self._search is None or self._following is None:
            return []
        self._guard(self._search.close)
        for waiting in self._waiting:
            self._guard(waiting.close)
        for probed in self._probed:
            self._guard(partial(probed.close, error))
        self._is_on = False
        self._following.close()
        self._replacements.put_back()
        return [Taken(each.name, each.folder, each.n_steps, each.recording) for each in self._probed]

    def know(self, optimizers: Iterable[Optimizer]) -> None:
        """Take in optimizers that were made before ``start``."""
        for each in optimizers:
            found = stepping(each)
            if found is not None and self._search is not None:
                self._guard(partial(self._take_in, found))

    def event(self, kind: str, sentence: str) -> None:
        """Record something that happened, with every model that is open."""
        for each in self._probed:
            each.event(kind, sentence)

    def clipped(self, norm: Any) -> None:
        """Take in the norm of the gradient before clipping, from whoever clips without torch."""
        for each in self._probed:
            self._guard(partial(each.clipped, norm))

    @property
    def n_stepped(self) -> int:
        """How many steps of optimizers were seen, of any model."""
        return 0 if self._following is None else self._following.n_stepped

    @property
    def _probed(self) -> list[Probed]:
        return [] if self._following is None else self._following.probed

    def _guard(self, action: Callable[[], None]) -> None:
        """Do something of ours, inside the program: what goes wrong is said once."""
        if not self._is_on:
            return
        try:
            action()
        except Exception as error:
            if self._options.get("strict"):
                raise
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
            label = ": ".join(filter(None, (self._label, name)))
            options = self._options if number == 1 else {k: v for k, v in self._options.items() if k not in FIRST_ONLY}
            probe = attach(model, optimizers, folder=folder, label=label, **options)
        except (ProbeError, RecordingError) as error:
            if self._options.get("strict"):
                raise
            self._say(f"{name} is not measured. {error}")
            return None
        assert self._following is not None
        self._following.probed.append(Probed(model, optimizers, probe, folder, self._fail))
        for each in self._following.running.values():
            if probe.optimizers is not None:
                probe.optimizers.begun(each)
        return probe.door

    def _take_in(self, optimizer: Optimizer) -> None:
        assert self._search is not None
        self._search.know(optimizer)

    def _stepped(self, optimizer: Any) -> None:
        assert self._search is not None
        if self._search.know(optimizer):
            return  # a copy, or one that was read from a file: its model is looked for in the step that comes
        for part in self._search.settle(optimizer):
            if self._open_on(part) is None and not any(each.model is part for each in self._waiting):
                self._waiting.append(Waiting(part, partial(self._attach, part), self._fail))

    def _close_all(self) -> None:
        for each in self._probed:
            self._guard(each.close)

    def _around_destroy(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """What ranks measured is joined while they can still be reached."""

        def destroy_process_group(group: Any = None) -> Any:
            if group is None:
                self._guard(self._close_all)
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
    is_shared = spread_of(model) is not None or stage_of(model, None) is not None
    return folder if rank == 0 or is_shared else folder / f"rank-{rank}"


def _leave_to_parent(probes: weakref.ref[ScriptProbes]) -> None:
    mine = probes()
    if mine is not None:
        mine._is_on = False
