"""Run one type a process, a few at once, each under a time limit."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from .examine import Row

MOST_MEMORY = 5 * 2**30  # bytes of one child: a model that did not shrink fails instead of taking the machine


@dataclass
class _Running:
    name: str
    process: BaseProcess
    answer: Connection
    until: float


def rows(names: list[str], *, workers: int, seconds: float, work: Callable[[str], Row]) -> Iterator[Row]:
    """Yield the row of every type as it is done; one that takes longer than ``seconds`` is ended and says so.

    Children are forked, so that transformers is imported once.
    """
    waiting = list(reversed(names))
    running: list[_Running] = []
    context = multiprocessing.get_context("fork")
    while waiting or running:
        while waiting and len(running) < workers:
            running.append(_started(context, waiting.pop(), seconds, work))
        time.sleep(0.02)
        for entry in list(running):
            row = _row(entry)
            if row is not None:
                running.remove(entry)
                yield row


def _started(
    context: multiprocessing.context.ForkContext, name: str, seconds: float, work: Callable[[str], Row]
) -> _Running:
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(name, sending, work), daemon=True)
    process.start()
    sending.close()
    return _Running(name, process, receiving, time.monotonic() + seconds)


def _child(name: str, answer: Connection, work: Callable[[str], Row]) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):  # noqa: PTH123
        row = work(name)
        answer.send_bytes(json.dumps(row, default=str).encode())


def _row(entry: _Running) -> Row | None:
    if entry.answer.poll():
        try:
            row: Row = json.loads(entry.answer.recv_bytes())
        except EOFError:
            row = {"type": entry.name, "outcome": "crashed", "cause": "the process ended without an answer"}
        entry.process.join(5)
        return row
    if time.monotonic() > entry.until:
        entry.process.kill()
        entry.process.join()
        return {"type": entry.name, "outcome": "timeout", "cause": "no answer within the time limit"}
    return None
