"""Close what a program leaves open, when it ends."""

from __future__ import annotations

import atexit
import os
import weakref
from collections.abc import Callable
from functools import partial


def at_exit(close: Callable[[], None]) -> Callable[[], None]:
    """Call the bound method ``close`` when this process ends, if its object still lives; return what takes that back.

    A forked process leaves its parent's files alone.
    """
    registered = partial(_close, weakref.WeakMethod(close), os.getpid())
    atexit.register(registered)
    return partial(atexit.unregister, registered)


def _close(method: weakref.WeakMethod[Callable[[], None]], process: int) -> None:
    close = method()
    if close is not None and os.getpid() == process:
        close()
