"""Which steps are sampled in full, and that a spike or a value that is not finite samples the next ones."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from oracles import NanoGPT, batch_of, loss_of
from rheoscope.probes.errors import ProbeError
from rheoscope.probes.host_copies import ScalarCopies
from rheoscope.probes.recorder import Cycle, Probe, attach
from rheoscope.probes.schedule import FEWEST, MOST_TRIGGERS, Sampler, Stride, Trigger, is_sampled


def sampled(probe: Probe) -> list[int]:
    """Return the steps that were sampled in full."""
    return sorted(int(step) for step in probe.recording.table("activations")["step"].unique())


def train(folder: Path, losses: list[float], **options: object) -> Probe:
    """Train a tiny model and tell the probe these losses."""
    model = NanoGPT(n_blocks=1).train()
    with attach(model, folder=folder, strict=True, **options) as probe:
        for loss in losses:
            loss_of(model, batch_of(model)).backward()
            probe.step(loss)
    return probe


@pytest.mark.filterwarnings("ignore:Profiler won't be using warmup")
@pytest.mark.parametrize(
    "words",
    [
        {"wait": 3, "warmup": 1, "active": 2, "repeat": 2, "skip_first": 2},
        {"wait": 0, "warmup": 0, "active": 1},
        {"wait": 9, "warmup": 0, "active": 1, "skip_first": 5},
        {"wait": 1, "warmup": 2, "active": 3, "repeat": 1},
    ],
)
def test_a_cycle_samples_what_torchs_profiler_would_record(words: dict[str, int]) -> None:
    numbers = {"warmup": 0, "repeat": 0, "skip_first": 0, **words}
    profiler = torch.profiler.schedule(**numbers)
    steps = range(60)

    assert [Cycle(**words)(step) for step in steps] == [is_sampled(profiler, step) for step in steps]
    assert any(Cycle(**words)(step) for step in steps)


def test_a_stride_samples_one_step_in_so_many() -> None:
    assert [step for step in range(10) if Stride(4)(step)] == [0, 4, 8]


def test_a_cycle_of_nothing_is_refused() -> None:
    with pytest.raises(ProbeError, match="Expected numbers of steps of 0 or more, and active >= 1"):
        Cycle(active=0)
    with pytest.raises(ProbeError, match="wait=-1"):
        Cycle(wait=-1)


@pytest.mark.parametrize(
    ("schedule", "expected", "words"),
    [
        (Cycle(wait=2, active=2, skip_first=1), [3, 4], "Cycle(wait=2, warmup=0, active=2, repeat=0, skip_first=1)"),
        (lambda step: step in (1, 5), [1, 5], "a function of the step"),
        (torch.profiler.schedule(wait=1, warmup=1, active=1), [2, 5], "a function of the step"),
    ],
)
def test_the_steps_of_a_schedule_are_sampled(schedule: object, expected: list[int], words: str, tmp_path: Path) -> None:
    probe = train(tmp_path / "run", [1.0] * 7, schedule=schedule)

    assert sampled(probe) == expected
    assert probe.recording.manifest["schedule"] == {"every": None, "words": words, "triggered": 5}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"schedule": 10}, "Expected a schedule that can be asked about a step, got int"),
        ({"triggered": -1}, "Expected triggered >= 0"),
        ({"scaler": object()}, "Expected a torch.amp.GradScaler or none, got object"),
    ],
)
def test_what_is_no_schedule_or_scaler_is_refused(options: dict, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match=sentence):
        attach(NanoGPT(), folder=tmp_path / "run", **options)

    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", [9.0, math.nan, math.inf])
def test_after_a_spike_the_next_steps_are_sampled_and_the_event_says_why(value: float, tmp_path: Path) -> None:
    losses = [2.0 + 0.01 * (step % 5) for step in range(FEWEST + 4)]
    losses[-1] = value
    probe = train(tmp_path / "run", [*losses, 2.0, 2.0, 2.0, 2.0, 2.0], every=1000, triggered=3)

    last = len(losses) - 1
    events = probe.recording.table("events")
    events = events[events["kind"] == "triggered"]
    assert sampled(probe) == [0, last + 1, last + 2, last + 3]
    assert events["step"].tolist() == [last]
    assert f"At step {last} the loss was" in events["sentence"].iloc[0]
    assert events["sentence"].iloc[0].endswith("the next 3 steps are sampled in full.")


def test_without_triggers_a_spike_samples_nothing(tmp_path: Path) -> None:
    probe = train(tmp_path / "run", [2.0] * (FEWEST + 2) + [math.nan, 2.0], every=1000, triggered=0)

    assert sampled(probe) == [0]


def test_a_falling_noisy_loss_is_no_spike() -> None:
    noise = torch.Generator().manual_seed(0)
    trigger = Trigger()
    losses = [10 * math.exp(-step / 300) + 0.2 * float(torch.randn((), generator=noise)) for step in range(3000)]

    told = [trigger.see(step, {"loss": loss}) for step, loss in enumerate(losses)]

    assert [text for text in told if text] == []


def test_one_long_plateau_is_one_event_and_a_run_full_of_them_is_cut_off() -> None:
    trigger = Trigger()
    for step in range(FEWEST):
        assert trigger.see(step, {"loss": 1.0}) is None
    plateau = [trigger.see(100 + step, {"loss": 50.0}) for step in range(5)]
    ill = [trigger.see(200 + step, {"loss": math.nan}) for step in range(5)]
    told = sum(
        trigger.see(300 + step, {"loss": math.nan if step % 2 else 1.0}) is not None
        for step in range(4 * MOST_TRIGGERS)
    )

    assert [text is not None for text in plateau] == [True, False, False, False, False]
    assert [text is not None for text in ill] == [True, False, False, False, False]
    assert told == MOST_TRIGGERS - 2


def test_scalars_on_their_way_are_looked_at_when_they_have_come() -> None:
    class Late(ScalarCopies):
        """Comes when it is told to, and must not be read before."""

        here = False

        @property
        def is_here(self) -> bool:
            return self.here

        def values(self) -> dict[str, float | None]:
            assert self.here
            return super().values()

    sampler = Sampler(Stride(1000), 2)
    late = Late({"loss": torch.tensor(math.nan)})

    assert sampler.look(5, late) is None
    sampler.choose(6)
    assert not sampler.is_on
    late.here = True
    told = sampler.look(6, ScalarCopies({"loss": torch.tensor(1.0)}))
    assert told is not None
    assert told.startswith("At step 5 the loss was nan")
    on = []
    for step in range(7, 11):
        sampler.choose(step)
        on.append(sampler.is_on)
    assert on == [True, True, False, False]


def test_a_skipped_step_triggers_nothing() -> None:
    sampler = Sampler(Stride(1000), 2)
    scalars = {"loss": torch.tensor(math.inf), "is_skipped": torch.tensor(1.0)}

    assert sampler.look(3, ScalarCopies(scalars)) is None


def test_where_ranks_decide_together_what_they_agreed_on_counts() -> None:
    sampler = Sampler(Stride(1000), 2)
    told = sampler.look(3, ScalarCopies({"loss": torch.tensor(math.nan)}), now=5)

    assert told is not None
    assert sampler.until == 7
    sampler.choose(6, until=-1)
    assert not sampler.is_on  # the others do not know yet
    sampler.choose(6, until=7)
    assert sampler.is_on
