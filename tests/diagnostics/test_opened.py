"""Tables of a recording are shared while they are held, and not kept for longer."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from rheoscope.diagnostics import diagnosis
from rheoscope.diagnostics.diagnosis import diagnose
from rheoscope.diagnostics.opened import opened
from rheoscope.diagnostics.tables import Tables
from rheoscope.probes.recording import Recording
from rheoscope.reports.content import content

Maker = Callable[..., Any]


def test_two_who_look_at_once_share_the_tables_and_recordings_do_not(made: Maker) -> None:
    first, second = made().recording(), made().recording()

    held = opened(first)

    assert opened(first) is held
    assert opened(second) is not held
    assert opened(second).recording is second


def test_nothing_is_kept_when_nobody_looks_any_more(made: Maker) -> None:
    recording = made().recording()
    gone = weakref.ref(opened(recording))
    gc.collect()

    assert gone() is None


def test_a_report_reads_the_tables_that_its_verdict_read(made: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tables] = []

    def watched(recording: Recording) -> Tables:
        seen.append(opened(recording))
        return seen[-1]

    monkeypatch.setattr(diagnosis, "opened", watched)
    recording = made(steps=(0, 1)).recording()

    told = content(recording)

    assert len(seen) == 1
    assert ("steps_to_bring_up",) in seen[0].kept
    assert told.diagnosis.findings == diagnose(recording).findings  # type: ignore[union-attr]
