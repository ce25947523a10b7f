"""Run one trial: make the subject, damage it or not, check it up, and keep what was found."""

from __future__ import annotations

import logging
import math
import random
import tempfile
import warnings
from dataclasses import asdict, dataclass, field
from typing import Any

import rheoscope
import torch
import transformers
from rheoscope.probes.schema import TABLES

from .faults import FAULTS, Fault
from .healthy import LOOK_ALIKES, OPTIMIZERS, TRAINED, steps_of, train
from .subjects import Subject, subject

RECIPE_STEPS, RECIPE_EVERY = 50, 5
MONITORED_STEPS, MONITORED_EVERY = 230, 3
CHANGED = 1e-3  # of the loss or of the gradient: below it a mutant is benign


@dataclass(frozen=True)
class Planted:
    """One fault, planned.

    Attributes:
        fault: index into FAULTS.
        severity: of it.
        block: where.
    """

    fault: int
    severity: float
    block: int


@dataclass(frozen=True)
class Trial:
    """One model to judge: healthy with ``look_alike``, or with faults ``planted``; a check-up, or training under a probe."""

    subject: str
    seed: int
    n_blocks: int = 6
    steps: int = 0
    look_alike: int | None = None
    planted: tuple[Planted, ...] = ()
    is_class_wide: bool = False
    is_monitored: bool = False
    optimizer: str = "adamw"


@dataclass
class Outcome:
    """What became of a trial.

    Attributes:
        trial: it.
        status: judged, benign, absent (no such part), or failed with a reason.
        findings: severity, code, block and component of each finding, root cause first; warnings and errors first of all.
        baselines: what simpler watchers say.
        sentences: of the warnings and errors.
    """

    trial: Trial
    status: str
    findings: list[tuple[str, str, int | None, str]] = field(default_factory=list)
    baselines: dict[str, bool] = field(default_factory=dict)
    sentences: list[str] = field(default_factory=list)

    def alarms(self) -> list[tuple[str, str, int | None, str]]:
        """Return the warnings and errors."""
        return [finding for finding in self.findings if finding[0] != "info"]


def run(trial: Trial) -> dict[str, Any]:
    """Return the outcome of a trial as plain values; whatever goes wrong is part of it."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings(action="ignore"):
        try:
            return asdict(_run(trial))
        except Exception as error:  # noqa: BLE001 - counted as a miss, and named
            return asdict(Outcome(trial, f"failed: {type(error).__name__}: {str(error)[:200]}"))


def _made(trial: Trial) -> Subject:
    made = subject(trial.subject, trial.seed, trial.n_blocks)
    if trial.steps:
        train(made, trial.steps)
    return made


def _run(trial: Trial) -> Outcome:
    made = _made(trial)
    chance = torch.get_rng_state()
    is_recipe = any(FAULTS[planted.fault].is_recipe for planted in trial.planted)
    has_twin = bool(trial.planted) and not is_recipe
    sound = _effect(made) if has_twin else (1.0, [])
    torch.manual_seed(trial.seed)
    if trial.look_alike is not None and not LOOK_ALIKES[trial.look_alike](made):
        return Outcome(trial, "absent")
    for planted in trial.planted:
        blocks = range(trial.n_blocks) if trial.is_class_wide else (planted.block,)
        done = [FAULTS[planted.fault].plant(made, block, planted.severity) for block in blocks]
        if not all(done):
            return Outcome(trial, "absent")
    if has_twin:
        torch.set_rng_state(chance)  # what is drawn from here on does not depend on what planting draws
    own = _effect(made)
    is_seen = not any(
        FAULTS[planted.fault].name == "dropout" for planted in trial.planted
    )  # the effect is taken without it
    if has_twin and is_seen and not _differ(own, sound):
        return Outcome(trial, "benign")
    if is_recipe or trial.is_monitored:
        diagnosis = rheoscope.diagnose(_monitored(made, trial))
    else:
        diagnosis = rheoscope.diagnose(rheoscope.examine(made.model, made.batch, made.loss))
    broken = [sentence for sentence in diagnosis.not_judged if "failed on this recording" in sentence]
    if broken:
        return Outcome(trial, f"failed: {broken[0][:200]}")
    findings = [(f.severity, f.code, f.block, f.component) for f in diagnosis]
    sentences = [f.sentence for f in diagnosis if f.severity != "info"]
    return Outcome(trial, "judged", findings, _baselines(own), sentences)


def _monitored(made: Subject, trial: Trial) -> rheoscope.Recording:
    """Train under a probe and return what it recorded."""
    steps, every = (MONITORED_STEPS, MONITORED_EVERY) if trial.is_monitored else (RECIPE_STEPS, RECIPE_EVERY)
    with tempfile.TemporaryDirectory() as folder:
        probe = None
        for probe in steps_of(  # noqa: B007
            made, steps, every=every, folder=f"{folder}/run", optimizer_name=trial.optimizer
        ):
            pass
        assert probe is not None
        probe.close()
        found = probe.recording
        tables = {name: found.table(name) for name in TABLES}
        return rheoscope.Recording.from_tables(found.manifest, found.anatomy, tables)


def _effect(made: Subject) -> tuple[float, list[float]]:
    """Return the loss and the norm of every parameter's gradient, with the sign of one projection of it."""
    made.model.eval()
    loss = made.loss(made.model(**made.batch), made.batch)
    parameters = [p for p in made.model.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    generator = torch.Generator().manual_seed(0)
    numbers = []
    for gradient in found:
        if gradient is None:
            numbers += [0.0, 0.0]
        else:
            side = torch.randn(gradient.shape, generator=generator)
            numbers += [float(gradient.norm()), float((gradient * side).sum())]
    return float(loss), numbers


def _differ(one: tuple[float, list[float]], other: tuple[float, list[float]]) -> bool:
    if len(one[1]) != len(other[1]) or not math.isfinite(one[0]):
        return True
    size = math.sqrt(sum(value**2 for value in other[1])) or 1.0
    change = math.sqrt(sum((a - b) ** 2 for a, b in zip(one[1], other[1], strict=True)))
    return not change <= CHANGED * size or abs(one[0] - other[0]) > CHANGED * abs(other[0])


def _baselines(effect: tuple[float, list[float]]) -> dict[str, bool]:
    """Say what watchers of the loss, of the gradient norm, and of published thresholds would report."""
    loss, numbers = effect
    norms = numbers[::2]
    total = math.sqrt(sum(value**2 for value in norms))
    return {
        "loss": not loss < math.log(128) + 1.0,
        "gradient norm": not 1e-3 < total < 1e2,
        # Vanishing below 1e-7, exploding above 1e3 for any layer, as published monitors have it.
        "thresholds": not all(1e-7 < value < 1e3 for value in norms if value != 0) or not math.isfinite(loss),
    }


def faulty(names: tuple[str, ...], seed: int, per_fault: int) -> list[Trial]:
    """Plan trials of single faults: every class and severity, over subjects, blocks and training."""
    chance = random.Random(seed)
    trials = []
    for index, fault in enumerate(FAULTS):
        for severity in fault.severities:
            for _ in range(per_fault):
                n_blocks = chance.choice((6, 8))
                planted = Planted(index, severity, chance.randrange(n_blocks))
                steps = chance.choice((0, 0, 0, 40))
                trials.append(
                    Trial(chance.choice(names), chance.randrange(10_000), n_blocks, steps, planted=(planted,))
                )
    return trials


def doubled(names: tuple[str, ...], seed: int, n: int) -> list[Trial]:
    """Plan trials of two faults at once, in different blocks."""
    chance = random.Random(seed)
    local = [i for i, f in enumerate(FAULTS) if f.is_local and not f.is_recipe and "nan" not in f.name]
    trials = []
    for _ in range(n):
        one, two = chance.sample(local, 2)
        blocks = chance.sample(range(6), 2)
        planted = tuple(Planted(i, FAULTS[i].severities[0], block) for i, block in zip((one, two), blocks, strict=True))
        trials.append(Trial(chance.choice(names), chance.randrange(10_000), planted=planted))
    return trials


def class_wide(names: tuple[str, ...], seed: int, n: int) -> list[Trial]:
    """Plan trials in which every block has the same fault."""
    chance = random.Random(seed)
    chosen = [i for i, f in enumerate(FAULTS) if f.name in WIDE]
    return [
        Trial(
            chance.choice(names),
            chance.randrange(10_000),
            planted=(Planted(i := chance.choice(chosen), FAULTS[i].severities[0], 0),),
            is_class_wide=True,
        )
        for _ in range(n)
    ]


def healthy(names: tuple[str, ...], seed: int, per_pair: int) -> list[Trial]:
    """Plan healthy trials: every look-alike of every subject, half as often where it takes training."""
    chance = random.Random(seed)
    return [
        Trial(name, chance.randrange(10_000), chance.choice((4, 6, 8, 12)), look_alike=index)
        for name in names
        for index, look_alike in enumerate(LOOK_ALIKES)
        for _ in range(max(1, per_pair // 2) if look_alike in TRAINED else per_pair)
    ]


def monitored(names: tuple[str, ...], seed: int, per_name: int) -> list[Trial]:
    """Plan healthy training under a probe."""
    chance = random.Random(seed)
    return [
        Trial(
            name,
            chance.randrange(10_000),
            chance.choice((4, 6)),
            look_alike=0,
            is_monitored=True,
            optimizer=chance.choice(list(OPTIMIZERS)),
        )
        for name in names
        for _ in range(per_name)
    ]


WIDE = (
    "attention gradient scaled",
    "mlp detached",
    "attention detached",
    "stream added again",
    "norm removed",
    "norm epsilon",
)


def fault_of(trial: Trial) -> Fault:
    """Return the first fault of a trial."""
    return FAULTS[trial.planted[0].fault]
