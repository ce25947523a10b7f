"""Hand one recording to the commands that read recordings, in a process of its own, and say what became of each."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import resource
import sys
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

# Imported here, before the forks, what each command would import again.
import rheoscope.diagnostics.comparison
import rheoscope.diagnostics.diagnosis
import rheoscope.probes.stage_folders
import rheoscope.reports.report
import rheoscope.reports.terminal  # noqa: F401
from rheoscope.command_line import main

SECONDS = 60.0  # of one command
MEMORY = 4 * 2**30  # bytes of address space beyond what the process has
FORBIDDEN = (
    "pickle.find_class",
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "socket.connect",
    "ctypes.dlopen",
)
UNREADABLE = 3


@dataclass(frozen=True)
class Outcome:
    """What one command did.

    Attributes:
        command: its name.
        kind: ``read``, ``clear error``, ``traceback``, ``crash``, ``no answer`` or ``reached outside``.
        detail: the last line it printed, or what it reached for.
    """

    command: str
    kind: str
    detail: str


def tried(folder: Path, sound: Path, scratch: Path) -> list[Outcome]:
    """Return what each command does with the recording in ``folder``; they may write to ``scratch`` alone."""
    (scratch / "joined" / "stages").mkdir(parents=True)
    (scratch / "joined" / "stages" / "0000").symlink_to(folder, target_is_directory=True)
    commands = (
        ["check", str(folder), "--json"],
        ["report", str(folder), "-o", str(scratch / "report.html")],
        ["compare", str(sound), str(folder), "-o", str(scratch / "comparison.html")],
        ["join", str(scratch / "joined")],
    )
    return [_tried(arguments, scratch) for arguments in commands]


def _tried(arguments: list[str], scratch: Path) -> Outcome:
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(arguments, scratch, sending), daemon=True)
    process.start()
    sending.close()
    try:
        if not receiving.poll(SECONDS):
            process.kill()
            return Outcome(arguments[0], "no answer", f"in {SECONDS:.0f} s")
        kind, detail = receiving.recv()
    except EOFError:
        process.join()
        return Outcome(arguments[0], "crash", f"exit code {process.exitcode}")
    process.join()
    return Outcome(arguments[0], kind, detail)


def _child(arguments: list[str], scratch: Path, answer: Connection) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    reached: list[str] = []
    sys.addaudithook(_watching(reached, scratch))
    told = io.StringIO()
    code: Any = 0
    failed = ""
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        try:
            with mock.patch.object(sys, "argv", ["rheoscope", *arguments]):
                main()
        except SystemExit as done:
            code = done.code or 0
        except BaseException:
            failed = traceback.format_exc(limit=-4)
    text = told.getvalue()
    answer.send(_judged(code, text, failed, list(reached)))
    answer.close()
    os._exit(0)


def _judged(code: Any, text: str, failed: str, reached: list[str]) -> tuple[str, str]:
    last = text.strip().splitlines()[-1][:300] if text.strip() else ""
    if failed or "Traceback" in text:
        return "traceback", failed or text
    if reached:
        return "reached outside", "; ".join(reached[:3])
    if code in (0, 1):
        return "read", last
    is_sentence = last.startswith("rheoscope: Expected") and code == UNREADABLE
    return ("clear error" if is_sentence else "traceback"), last or f"exit code {code} without a word"


def _watching(reached: list[str], scratch: Path) -> Any:
    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in FORBIDDEN:
            reached.append(f"{event} {arguments!r:.200}")
        elif event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            path, mode, flags = os.fsdecode(arguments[0]), arguments[1], arguments[2]
            is_written = (
                bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) if isinstance(flags, int) else "w" in str(mode)
            )
            if is_written and not Path(path).resolve().is_relative_to(scratch.resolve()) and path != os.devnull:
                reached.append(f"open for writing {path}")
        elif event in (
            "os.remove",
            "os.rename",
            "os.rmdir",
            "os.mkdir",
            "os.symlink",
            "shutil.rmtree",
            "os.chmod",
            "os.truncate",
        ):
            if event in ("os.remove", "os.rmdir") and arguments[1] != -1:
                return  # within a folder that shutil.rmtree was asked to delete, and was judged for
            paths = [os.fsdecode(a) for a in arguments[:2] if isinstance(a, str | bytes | os.PathLike)]
            if any(not Path(p).resolve().is_relative_to(scratch.resolve()) for p in paths):
                reached.append(f"{event} {paths}")

    return hook
