"""Find the modules that a program's optimizers train, at the first call that reaches them from outside of every module.

An optimizer is known from its creation; from then on torch's hook on all modules is on, and it is taken off as soon as every
optimizer is accounted for. So nothing of it is there when a graph is compiled, or in the steps that follow.
"""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from .replacements import Replacements

MOST = 0.5  # of an optimizer's elements: a module that holds so much of them is its model
PART = 0.1  # of them: a module that is called from outside and holds so much is a part worth measuring
NEARLY_ALL = 0.9
PATIENCE = 20  # steps of any optimizer, after which one that does not step is not waited for
WARNING = "Using `torch.compile\\(module\\)` when there are global hooks"

Guard = Callable[[Callable[[], None]], None]
Found = Callable[[nn.Module, list[Optimizer], tuple[Any, ...], Mapping[str, Any] | None], None]


class Search:
    """Watches optimizers being made and modules being called, until they are matched."""

    def __init__(self, found: Found, guard: Guard, replacements: Replacements) -> None:
        """Tell ``found(model, optimizers, args, kwargs)``, in the call that shows it; ``guard`` keeps our errors away.

        ``kwargs`` is None where the call is still to come to whatever is put around the model now.
        """
        self._found, self._guard = found, guard
        self._optimizers: list[weakref.ref[Optimizer]] = []
        self._open: dict[int, int] = {}  # elements that no model was found for, by optimizer
        self._given_up: set[int] = set()
        self._n_waited = 0
        self._parts: list[weakref.ref[nn.Module]] = []
        self._known: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._handle: RemovableHandle | None = None
        self._filter: Any = None
        replacements.put(Optimizer, "__init__", self._around_init)
        replacements.put(nn.Module, "compile", self._around_compile)

    @property
    def optimizers(self) -> list[Optimizer]:
        """Those that still exist, in the order in which they were made."""
        return [each for known in self._optimizers if (each := known()) is not None]

    def holders(self, model: nn.Module) -> list[Optimizer]:
        """Return the optimizers that hold a parameter of ``model``."""
        mine = {id(parameter) for parameter in model.parameters()}
        return [each for each in self.optimizers if any(id(p) in mine for p in _held(each))]

    def know(self, optimizer: Optimizer) -> bool:
        """Take in an optimizer, whose model is looked for from here on; return whether it is new."""
        if any(each is optimizer for each in self.optimizers) and id(optimizer) not in self._given_up:
            return False
        self._given_up.discard(id(optimizer))
        self._n_waited = 0
        others = (known for known in self._optimizers if known() not in (None, optimizer))
        self._optimizers = [*others, weakref.ref(optimizer)]
        self._open[id(optimizer)] = sum(p.numel() for p in _held(optimizer))
        self._known = weakref.WeakSet()
        self._arm()
        return True

    def settle(self, optimizer: Optimizer) -> list[nn.Module]:
        """Look no further for what ``optimizer`` trains: it has stepped. Return the parts that were called on their own."""
        was_open = self._open.pop(id(optimizer), None) is not None
        self._n_waited += 1
        if self._n_waited > PATIENCE:
            self._given_up |= set(self._open)
            self._open.clear()
        if not self._open:
            self._disarm()
        if not was_open:
            return []
        sizes = {id(p): p.numel() for p in _held(optimizer)}
        whole = sum(sizes.values())
        parts = [each for known in self._parts if (each := known()) is not None]
        return [part for part in parts if sum(sizes.get(id(p), 0) for p in part.parameters()) >= PART * whole]

    def close(self) -> None:
        """Look no further."""
        self._open.clear()
        self._disarm()

    def _take_in(self, optimizer: Optimizer) -> None:
        self.know(optimizer)

    def _arm(self) -> None:
        if self._handle is None:
            self._handle = register_module_forward_pre_hook(self._called)
            # torch.compile's module warns of our hook, which is gone again when it compiles.
            warnings.filterwarnings("ignore", message=WARNING)
            self._filter = warnings.filters[0]

    def _disarm(self) -> None:
        if self._handle is None:
            return
        self._handle.remove()
        self._handle = None
        if self._filter in warnings.filters:
            warnings.filters.remove(self._filter)  # type: ignore[attr-defined]  # a list

    def _called(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        # All that dynamo sees of us, should it trace a call meanwhile: a constant.
        if torch.compiler.is_compiling():
            return
        call = sys._getframe(1)
        self._guard(lambda: self._look(module, args, call))

    def _look(self, module: nn.Module, args: tuple[Any, ...], call: FrameType | None) -> None:
        # What is inside a module that was looked at is called from inside.
        if module in self._known or not self._open:
            return
        sizes = {id(p): p.numel() for p in module.parameters()}
        owners = [each for each in self.optimizers if any(id(p) in sizes for p in _held(each))]
        if not owners:
            self._known.update(module.modules())
            return
        inside = module.module if isinstance(module, DistributedDataParallel) else module
        if inside is not module and _is_redirected(inside):
            # Its forward is another method for this one call: what that method calls is looked at.
            self._known.update((module, inside))
            return
        self._known.update(module.modules())
        wholes = {id(each): sum(p.numel() for p in _held(each)) for each in owners}
        mine = {id(each): sum(sizes.get(id(p), 0) for p in _held(each)) for each in owners}
        if not any(mine[key] >= MOST * whole for key, whole in wholes.items()):
            self._parts.append(weakref.ref(module))
            return
        for key, found in mine.items():
            if key in self._open:
                self._open[key] -= found
                if self._open[key] <= (1 - NEARLY_ALL) * wholes[key]:
                    del self._open[key]
        if not self._open:
            self._disarm()
        self._found(module, owners, args, None if call is None else _keywords(call))

    def _around_init(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def __init__(optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:  # noqa: N807
            original(optimizer, *args, **kwargs)
            self._guard(lambda: self._take_in(optimizer))

        return __init__

    def _around_compile(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """All hooks of a module that compiles itself are inside its graph: its calls are seen around it."""

        def compile(module: nn.Module, *args: Any, **kwargs: Any) -> None:
            original(module, *args, **kwargs)
            inside: Any = module._compiled_call_impl
            is_first = True

            def entered(*args: Any, **kwargs: Any) -> Any:
                nonlocal is_first
                if not is_first or torch.compiler.is_compiling():
                    return inside(*args, **kwargs)
                is_first = False
                # Whoever is told puts something around us, which then sees this call.
                self._guard(lambda: self._look(module, args, None))
                return module._compiled_call_impl(*args, **kwargs)  # type: ignore[misc]  # set since

            module._compiled_call_impl = entered

        return compile


def _held(optimizer: Optimizer) -> Iterable[torch.Tensor]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def _is_redirected(module: nn.Module) -> bool:
    """Return whether Lightning sends this module's forward to its training step, as it does inside a wrapper."""
    kinds = [
        getattr(sys.modules[name], "LightningModule", None)
        for name in ("lightning.pytorch", "pytorch_lightning")
        if name in sys.modules
    ]
    return "forward" in vars(module) and any(isinstance(module, kind) for kind in kinds if isinstance(kind, type))


def _keywords(call: FrameType) -> Mapping[str, Any] | None:
    """Return the keyword arguments of the module call that runs the hook on all modules, which torch does not hand it.

    None where they are not found: the model's second forward is then its first that is measured.
    """
    found = call.f_locals.get("kwargs") if call.f_code.co_name == "inner" else None
    return found if isinstance(found, dict) else None
