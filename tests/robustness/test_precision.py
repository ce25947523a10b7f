"""Loss scales, half precision, and dtypes whose numbers say nothing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import ORACLES, NanoGPT, batch_of, gradients, loss_of, rms
from rheoscope.probes.errors import DiscoveryError, ProbeError
from rheoscope.probes.recorder import attach
from rheoscope.probes.statistics import power_sums, statistics
from torch import Tensor, nn

from robustness.loops import parameters, rows, train

SCALE = 1024.0


def test_row_08_gradients_are_without_the_loss_scale_and_skipped_steps_are_marked(tmp_path: Path) -> None:
    model = NanoGPT().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    expected = [rms(gradient) for gradient in gradients(model, ORACLES["nanoGPT"].states, batch_of(model, seed=0))]
    naive: list[float] = []

    def watch(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if args[0].requires_grad:
            args[0].register_hook(lambda gradient: naive.append(rms(gradient)))

    with attach(model, optimizer, every=1, folder=tmp_path / "run", scaler=scaler, strict=True) as probe:
        for step in range(3):
            handle = model.norm.register_forward_pre_hook(watch)
            scaler.scale(loss_of(model, batch_of(model, seed=step))).backward()
            handle.remove()
            if step == 1:
                model.head.weight.grad[0, 0] = math.inf
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            probe.step()

    steps = probe.recording.table("steps")
    states = rows(probe, "state", "backward")
    assert naive[0] == pytest.approx(SCALE * expected[-1], rel=1e-6)
    assert states[states["step"] == 0]["rms"].tolist() == pytest.approx(expected, rel=1e-6)
    assert steps["loss_scale"].tolist() == [SCALE, SCALE, SCALE / 2]
    assert steps["is_skipped"].tolist() == [False, True, False]
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (8.0, torch.float16),
        (300.0, torch.float16),
        (1e-4, torch.float16),
        (1e25, torch.bfloat16),
        (1e25, torch.float32),
    ],
)
def test_row_27_statistics_of_short_numbers_are_those_of_float64(value: float, dtype: torch.dtype) -> None:
    x = torch.full((100_000,), value).to(dtype)
    naive = float(x.square().sum())
    assert math.isinf(naive) or naive == 0.0 or naive != pytest.approx(float(x.double().square().sum()), rel=1e-3)

    found = {name: float(column[0]) for name, column in statistics(power_sums(x)[None]).items()}

    assert found["rms"] == pytest.approx(rms(x), rel=1e-6)
    assert found["absmax"] == float(x[0])
    assert found["std"] == 0.0
    assert found["nonfinite"] == 0


def test_row_27_parameters_of_bfloat16_are_read_wide(tmp_path: Path) -> None:
    model = NanoGPT().bfloat16().train()
    with torch.no_grad():
        model.blocks[0].mlp[0].weight.fill_(1e25)
        model.blocks[0].mlp[2].weight.zero_()

    probe = train(model, tmp_path / "run", anatomy=None)

    assert math.isinf(float(model.blocks[0].mlp[0].weight.detach().float().square().sum()))
    assert parameters(probe).loc["blocks.0.mlp.0.weight", "weight_rms"] == pytest.approx(1e25, rel=1e-2)


class Exotic(NanoGPT):
    """A decoder that also keeps parameters of kinds that have no norm."""

    def __init__(self) -> None:
        super().__init__()
        kinds = {
            "packed": torch.ones(3, dtype=torch.uint8),
            "whole": torch.ones(3, dtype=torch.int8),
            "mask": torch.ones(3, dtype=torch.bool),
            "eighth": torch.ones(4).to(torch.float8_e4m3fn),
            "sparse": torch.eye(4).to_sparse(),
            "turning": torch.ones(4, dtype=torch.complex64),
        }
        for name, values in kinds.items():
            self.register_parameter(name, nn.Parameter(values, requires_grad=False))


def test_row_28_parameters_that_have_no_norm_are_said_not_to_be_measured(tmp_path: Path) -> None:
    model = Exotic()
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.linalg.vector_norm(model.eighth)
    with pytest.raises(RuntimeError):
        torch.linalg.vector_norm(model.whole)

    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    probe = train(model, tmp_path / "run", [optimizer])

    said = " ".join(probe.recording.manifest["not_measured"])
    for name, kind in [
        ("packed", "uint8"),
        ("whole", "int8"),
        ("mask", "bool"),
        ("eighth", "float8_e4m3fn"),
        ("sparse", "sparse_coo"),
        ("turning", "complex64"),
    ]:
        assert f"1 parameter ('{name}') is of {kind}: not measured." in said
    table = parameters(probe)
    assert sorted(table.index) == sorted(name for name, _ in NanoGPT().named_parameters())
    assert table["update_rms"].notna().all()


class Packed(Tensor):
    """Weights of another library, which it alone can read."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("reshape", "to", "dot", "norm", "square"):
            raise NotImplementedError(f"{func.__name__} of packed weights")
        return super().__torch_function__(func, types, args, kwargs or {})


def test_row_28_weights_that_only_another_library_reads_cost_no_other(tmp_path: Path) -> None:
    model = NanoGPT()
    model.blocks[0].packed = nn.Parameter(torch.ones(3).as_subclass(Packed), requires_grad=False)
    with pytest.raises(NotImplementedError):
        model.blocks[0].packed.norm()

    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    probe = train(model, tmp_path / "run", [optimizer])

    said = "1 parameter ('blocks.0.packed') is of Packed: not measured."
    assert said in probe.recording.manifest["not_measured"]
    assert sorted(parameters(probe).index) == sorted(name for name, _ in NanoGPT().named_parameters())


def test_row_28_a_model_on_the_meta_device_is_refused_in_words(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = NanoGPT().train()

    with (
        pytest.raises(DiscoveryError, match="Expected parameters that hold values, got parameters on the meta device"),
        attach(model, folder=tmp_path / "run", strict=True),
    ):
        model(torch.zeros(1, 4, dtype=torch.long, device="meta"))


def test_row_28_parameters_without_values_yet_are_refused_in_words(tmp_path: Path) -> None:
    model = NanoGPT()
    model.head = nn.LazyLinear(61)

    with pytest.raises(ProbeError, match=r"got lazy ones\. Run one forward before attach"):
        attach(model, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()
