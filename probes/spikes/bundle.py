"""Hold what the steps around a spike began with, and keep it in a folder: numbers as JSON, tensors as safetensors, no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rheoscope.probes.batches import Arguments
from rheoscope.probes.errors import ProbeError, RecordingError
from torch import Tensor

FORMAT = 1
VALUES, TENSORS = "bundle.json", "tensors.safetensors"
MOST_BYTES = 64 * 2**20  # of the JSON: names and numbers
Plain = bool | int | float | str | None


@dataclass(frozen=True)
class Forward:
    """One forward of a step: its batch, the random state that it began with, and its precision by kind of device."""

    batch: Arguments
    random: Tensor
    random_cuda: tuple[Tensor, ...] = ()
    autocast: tuple[tuple[str, str], ...] = ()

    @property
    def state(self) -> dict[str, Any]:
        """As ``replay.as_it_was`` takes it."""
        dtypes = {kind: getattr(torch, name) for kind, name in self.autocast}
        return {"cpu": self.random, "cuda": list(self.random_cuda), "autocast": dtypes}


@dataclass(frozen=True)
class KeptStep:
    """One step.

    Attributes:
        step: its number.
        forwards: of its micro-batches, in order.
        groups: the optimizer's own numbers of each parameter group, as this step used them.
        gradient_norm: of all parameters, as the optimizer used it; None where it made no step.
        loss: as the loop has it; None where it is not known.
    """

    step: int
    forwards: tuple[Forward, ...]
    groups: tuple[Mapping[str, Plain | tuple[Plain, ...]], ...] = ()
    gradient_norm: float | None = None
    loss: float | None = None


@dataclass(frozen=True)
class Bundle:
    """Everything that running the steps around a spike again needs, but the model's code.

    Attributes:
        step: of the spike.
        usual_loss: the median loss of the steps before.
        optimizer: the name of a class of torch.optim; "" for another one, which is then to be given.
        names: names of the parameters of each of the optimizer's groups.
        weights: parameters and buffers by name, as the first step began with them.
        state: the optimizer's state by name of a parameter, as the first step began with it.
        steps: in order; the spike's is among them, the first is before it.
        usual_rates: the median learning rate of each of the optimizer's groups over the steps before.
    """

    step: int
    usual_loss: float
    optimizer: str
    names: tuple[tuple[str, ...], ...]
    weights: Mapping[str, Tensor]
    state: Mapping[str, Mapping[str, Tensor | Plain]]
    steps: tuple[KeptStep, ...]
    usual_rates: tuple[float, ...] = ()

    @property
    def before(self) -> tuple[KeptStep, ...]:
        """The steps whose updates led to the spike."""
        return tuple(each for each in self.steps if each.step < self.step)

    @property
    def spike(self) -> KeptStep:
        """The step whose loss spiked."""
        return next(each for each in self.steps if each.step == self.step)

    def save(self, folder: str | Path) -> Path:
        """Write the bundle into ``folder``, which is made; return it.

        Raises:
            ProbeError: a batch holds something that is neither a tensor nor a plain value.
        """
        from safetensors.torch import save_file

        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        held: dict[str, Tensor] = {}
        values = {
            "format": FORMAT,
            "step": self.step,
            "usual_loss": self.usual_loss,
            "usual_rates": self.usual_rates,
            "optimizer": self.optimizer,
            "names": self.names,
            "weights": {name: _put(held, tensor) for name, tensor in self.weights.items()},
            "state": {
                name: {key: _plain(held, value) for key, value in own.items()} for name, own in self.state.items()
            },
            "steps": [
                {
                    "step": each.step,
                    "groups": [dict(group) for group in each.groups],
                    "gradient_norm": each.gradient_norm,
                    "loss": each.loss,
                    "forwards": [
                        {
                            "args": _plain(held, forward.batch.positional),
                            "kwargs": _plain(held, dict(forward.batch.keywords)),
                            "random": _put(held, forward.random),
                            "random_cuda": [_put(held, one) for one in forward.random_cuda],
                            "autocast": forward.autocast,
                        }
                        for forward in each.forwards
                    ],
                }
                for each in self.steps
            ],
        }
        save_file(held, path / TENSORS)
        (path / VALUES).write_text(json.dumps(values), encoding="utf-8")
        return path

    @classmethod
    def load(cls, folder: str | Path) -> Bundle:
        """Read what ``save`` wrote; nothing of it is executed.

        Raises:
            RecordingError: the folder holds no bundle, or a damaged one.
        """
        from safetensors.torch import load_file

        path = Path(folder)
        try:
            if (path / VALUES).stat().st_size > MOST_BYTES:
                raise ValueError(f"{VALUES} is larger than {MOST_BYTES} bytes")
            values = json.loads((path / VALUES).read_text(encoding="utf-8"))
            if values["format"] != FORMAT:
                raise ValueError(f"format {values['format']!r} is not {FORMAT}")
            held = load_file(path / TENSORS)
            bundle = cls(
                int(values["step"]),
                float(values["usual_loss"]),
                str(values["optimizer"]),
                tuple(tuple(map(str, group)) for group in values["names"]),
                {str(name): held[key] for name, key in values["weights"].items()},
                {str(n): {k: _back(held, v) for k, v in own.items()} for n, own in values["state"].items()},
                tuple(_step(held, each) for each in values["steps"]),
                tuple(map(float, values["usual_rates"])),
            )
            if not bundle.before or not bundle.spike.forwards:
                raise ValueError("the spike's step, or every step before it, is missing")
        except Exception as error:
            raise RecordingError(
                f"Expected a bundle of a spike in {path}, got {type(error).__name__}: {error!s:.200}. Bundles are written by "
                "attach(..., bundle=True), into the folder spikes of the recording."
            ) from error
        return bundle


def bundles_in(folder: str | Path) -> list[Path]:
    """Return the folders of all bundles of a run, the earliest spike first; ``folder`` itself where it is one."""
    path = Path(folder)
    if (path / VALUES).is_file():
        return [path]
    found = [each.parent for each in (path / "spikes").glob(f"*/{VALUES}")]
    return sorted(found, key=lambda each: (len(each.name), each.name))


def _put(held: dict[str, Tensor], tensor: Tensor) -> str:
    key = str(len(held))
    held[key] = tensor.detach().cpu().contiguous().clone()
    return key


def _plain(held: dict[str, Tensor], value: Any, deep: int = 0) -> Any:
    """Return a value that JSON can hold, its tensors put into ``held``."""
    if isinstance(value, Tensor):
        return {"tensor": _put(held, value)}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    if deep < 6 and isinstance(value, tuple | list):
        return {"list" if isinstance(value, list) else "tuple": [_plain(held, item, deep + 1) for item in value]}
    if deep < 6 and isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"map": {key: _plain(held, item, deep + 1) for key, item in value.items()}}
    raise ProbeError(
        f"Expected a batch of tensors and plain values, got {type(value).__name__}: the spike's bundle is not kept. "
        "Pass the model tensors, numbers, texts, and tuples, lists and dicts of them."
    )


def _back(held: Mapping[str, Tensor], value: Mapping[str, Any]) -> Any:
    ((kind, inner),) = value.items()
    if kind == "tensor":
        return held[inner]
    if kind == "map":
        return {str(key): _back(held, item) for key, item in inner.items()}
    if kind in ("tuple", "list"):
        items = [_back(held, item) for item in inner]
        return items if kind == "list" else tuple(items)
    if kind == "value" and (inner is None or isinstance(inner, bool | int | float | str)):
        return inner
    raise ValueError(f"a value of kind {kind!r}")


def _step(held: Mapping[str, Tensor], value: Mapping[str, Any]) -> KeptStep:
    forwards = tuple(
        Forward(
            Arguments(tuple(_back(held, each["args"])), dict(_back(held, each["kwargs"]))),
            held[each["random"]],
            tuple(held[key] for key in each["random_cuda"]),
            tuple((str(kind), _dtype(name)) for kind, name in each["autocast"]),
        )
        for each in value["forwards"]
    )
    norm, loss = value["gradient_norm"], value["loss"]
    return KeptStep(
        int(value["step"]),
        forwards,
        tuple({str(k): tuple(v) if isinstance(v, list) else v for k, v in group.items()} for group in value["groups"]),
        None if norm is None else float(norm),
        None if loss is None else float(loss),
    )


def _dtype(name: object) -> str:
    if name not in ("bfloat16", "float16", "float32", "float64"):
        raise ValueError(f"a precision called {name!r}")
    return str(name)
