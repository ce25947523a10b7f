"""Attach a probe to a model in training: refuse what cannot be probed, open the recording, put on the hooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer

from .anatomy import Anatomy
from .errors import ProbeError
from .hooked import Hooked
from .integrations.sinks import Report, Sink, SinkWriter, check
from .manifest import manifest
from .opening import opened
from .optimizers import stepping
from .overshoot import with_overshoot
from .probe import Probe
from .schedule import Cycle, Sampler, Schedule, Stride
from .sites import layout
from .spike_blame import with_blame
from .spikes.keeping import with_bundles
from .stage_writer import StageWriter
from .stages import stage_of
from .wrappers import bare
from .writer import Writer


def attach(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    *,
    every: int = 10,
    schedule: Schedule | None = None,
    triggered: int = 5,
    scaler: torch.amp.GradScaler | None = None,
    folder: str | Path | None = None,
    anatomy: Anatomy | None = None,
    resume: bool | int = False,
    strict: bool = False,
    label: str = "",
    attention: bool = True,
    replay: bool = False,
    stage: tuple[int, int] | None = None,
    curvature: bool = False,
    blame: bool = False,
    bundle: bool = False,
    sinks: Sequence[Sink] = (),
    report: Report | None = None,
) -> Probe:
    """Put probes on ``model``: they find the residual stream on the first training forward and measure from there on.

    Training is left alone: the same weights bit for bit, no synchronisation in hooks, no exception that stops the run.

    A model that several ranks train (DistributedDataParallel, ``fully_shard``, tensor parallelism) is attached to on every one of
    them, after it was wrapped. What they measure is joined, and the first rank writes it: ``recording`` is there alone.

    Of a pipeline every stage is attached to, after it was made, with the same ``folder``. Each writes what it measures to a
    folder of its own in there, and the first joins them when it closes; ``rheoscope join`` does where it could not.

    Args:
        model: the model that is called in the training loop; forwards in eval mode are not recorded.
        optimizer: the optimizer that steps it, or several; without one, updates are not measured.
        every: a step in so many is sampled in full; the loss and learning rates are kept of all.
        schedule: which steps are sampled in full, instead of ``every``: ``Cycle(wait=9, active=1)``, or any function of a
            step's number, ``torch.profiler.schedule``'s included.
        triggered: so many steps are sampled in full after a loss or gradient norm that is not finite or spikes; 0 for none.
        scaler: the gradient scaler of the loop: gradients are divided by its scale, and steps that it skips are marked.
        folder: where the recording is written; None for ``runs/<date and time>``.
        anatomy: what ``discover`` found, to skip discovery on the first forward.
        resume: continue the recording in ``folder``: True behind its last step; a number at that step, as after a restart from
            an older checkpoint, and what was recorded of it and later ones is dropped.
        strict: raise instead of logging when the probe itself fails.
        label: a name for the run.
        replay: keep weights, batches and random state of the last three steps, and run a step again whose loss is not finite:
            the first operation that made it so is then named. Costs three copies of the weights, and the time of one a step; on
            one process alone.
        stage: (index, number of stages) of a stage of a pipeline; torch's own pipelines tell it.
        curvature: run the batch of every sampled step once before and once after its update, without gradients: by how much its
            loss falls, beside what the gradient promised, is then recorded (``decrease_ratio`` of table steps). Costs two
            forwards, a copy of the weights, and a wait for the device on sampled steps; on one process alone, with an optimizer,
            for models that are not compiled, and where the model's output gives the loop's loss.
        blame: keep weights and batches of the last three steps, and where the loss spikes say which blocks' update raised it
            (table attributions, event ``blame``). Costs three copies of the weights, the time of one a step, and at a spike some
            20 forwards and backwards of its batch, in evaluation and float32; on one process alone, for losses that the model's
            output gives.
        bundle: keep weights, optimizer state, batches and random state of the last steps, and where the loss spikes write what it
            began with into the folder ``spikes`` of the recording, weights and batches included: ``bisect`` finds in it which
            change removes the spike. Costs two copies of weights and optimizer state, made every fourth step; on one process
            alone, with an optimizer.
        sinks: where scalars of sampled steps are shown while they are recorded, and the report when the run is closed:
            ``to_tensorboard("logs")``, ``to_wandb(project="mine")``, ``to_mlflow()``, or any object with ``open(meta)``,
            ``log(step, values)`` and ``close(report)``. On ranks, the first one's are used.
        report: writes the report that sinks are given, from the recording; by default the first sink's own.
        attention: whether the exact logits of attention are measured per head; without, only their bound is.

    Returns:
        The probe: a context manager with ``step`` and ``recording``.

    Raises:
        ProbeError: ``every`` is not a positive number of steps, ``schedule`` cannot be asked about a step, the model is
            replicated by nn.DataParallel, the optimizer takes no hooks, ``anatomy`` is another model's, or ``stage`` is no stage
            or comes without a ``folder``.
        RecordingExistsError: the folder holds a recording and ``resume`` is false.
        RecordingError: the folder cannot be written.
    """
    _expect(model, optimizer, every, anatomy)
    _expect_times(schedule, triggered, scaler, resume, blame=blame)
    part = stage_of(model, stage)
    check(sinks, part)
    if folder is None and part is not None:
        raise ProbeError("Expected a folder, the same on every stage of the pipeline, got none. Pass folder=.")
    if folder is None:
        folder = Path("runs") / datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S-%f")
    head = manifest(
        bare(model), every=every if schedule is None else None, label=label, schedule=schedule, triggered=triggered
    )
    sampler = Sampler(Stride(every) if schedule is None else schedule, triggered)
    kind: Callable[..., Writer] = Writer if part is None else partial(StageWriter, part)
    if sinks:
        kind = partial(
            SinkWriter, sinks, report or next((each.report for each in sinks if hasattr(each, "report")), None)
        )
    write = partial(kind, Path(folder), head, resume=resume, strict=strict)
    writer, desk = opened(model, sampler, write, is_alone=part is None)
    if curvature and optimizer:
        desk = with_overshoot(desk, bare(model), optimizer, sampler)
    if blame:
        desk = with_blame(desk, model, writer, sampler)
    if bundle and optimizer:
        desk = with_bundles(desk, model, optimizer, sampler, Path(folder) / "spikes")
    return Probe(
        model,
        optimizer or None,
        writer,
        desk=desk,
        sampler=sampler,
        scaler=scaler,
        anatomy=anatomy,
        strict=strict,
        attention=attention,
        replay=replay,
    )


def _expect(model: object, optimizer: object, every: object, anatomy: Anatomy | None) -> None:
    """Refuse what cannot be probed before a folder is made."""
    if not isinstance(model, nn.Module) or isinstance(model, nn.DataParallel):
        raise ProbeError(
            f"Expected a torch.nn.Module that runs as itself, got {type(model).__name__}. nn.DataParallel copies its "
            "modules at every forward: use DistributedDataParallel, or attach to one device's model."
        )
    if any(nn.parameter.is_lazy(parameter) for parameter in model.parameters()):
        raise ProbeError(
            f"Expected a {type(model).__name__} with all its parameters, got lazy ones. Run one forward before attach."
        )
    several = optimizer if isinstance(optimizer, Sequence) else [] if optimizer is None else [optimizer]
    for each in several:
        if stepping(each) is None:
            raise ProbeError(
                f"Expected a torch.optim.Optimizer, several or none, got {type(each).__name__}. Pass the one inside it, or None."
            )
    if not isinstance(every, int) or every < 1:
        raise ProbeError(f"Expected every >= 1 (a step in so many is sampled), got {every!r}. Pass a positive number.")
    if anatomy is not None:
        Hooked(bare(model), layout(anatomy).points, lambda _: lambda _: None).remove()


def _expect_times(schedule: object, triggered: object, scaler: object, resume: object, *, blame: bool) -> None:
    if schedule is not None and not callable(schedule):
        raise ProbeError(
            f"Expected a schedule that can be asked about a step, got {type(schedule).__name__}. Pass Cycle(wait=9, active=1) "
            "or a function of the step's number, or every=10."
        )
    if not isinstance(resume, int) or resume < 0:
        raise ProbeError(f"Expected resume to be True, False or a step, got {resume!r}. Pass the step to continue at.")
    if not isinstance(triggered, int) or triggered < 0:
        raise ProbeError(f"Expected triggered >= 0 steps, got {triggered!r}. Pass a number of steps.")
    if blame and not triggered:
        raise ProbeError(
            "Expected triggered >= 1 with blame=True, got 0: no spike is looked for. Pass a number of steps."
        )
    if scaler is not None and not isinstance(scaler, torch.amp.GradScaler):
        raise ProbeError(f"Expected a torch.amp.GradScaler or none, got {type(scaler).__name__}. Pass the loop's own.")


__all__ = ["Cycle", "Probe", "attach"]
