"""What is read from an Adam optimizer's state is what really happened to the weights, or is not believed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from oracles import NanoGPT, batch_of, loss_of, rms
from rheoscope.probes.adam import AdamReader
from rheoscope.probes.kernels import by_c
from rheoscope.probes.recorder import attach
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

Make = Callable[[nn.Module], Optimizer]
EPS = 1e-4  # large, so that some roots are below it


def groups(model: nn.Module) -> list[dict[str, Any]]:
    """Return two parameter groups with factors of their own."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    return [{"params": matrices, "weight_decay": 0.3}, {"params": vectors, "lr": 0.05, "betas": (0.5, 0.7)}]


OPTIMIZERS: dict[str, Make] = {
    "Adam": lambda m: Adam(m.parameters(), lr=0.01, eps=EPS),
    "Adam with decay in the gradient": lambda m: Adam(m.parameters(), lr=0.01, weight_decay=0.1, eps=EPS),
    "AdamW": lambda m: AdamW(m.parameters(), lr=0.01, weight_decay=0.1, eps=EPS),
    "AdamW fused": lambda m: AdamW(m.parameters(), lr=0.01, weight_decay=0.1, eps=EPS, fused=True),
    "AdamW in groups": lambda m: AdamW(groups(m), lr=0.01, eps=EPS),
    "AdamW with lr as a tensor": lambda m: AdamW(m.parameters(), lr=torch.tensor(0.01), eps=EPS, foreach=False),
    "AdamW that maximizes": lambda m: AdamW(m.parameters(), lr=0.01, eps=EPS, maximize=True),
}
WITHOUT_STATE = {
    "AdamW with amsgrad": lambda m: AdamW(m.parameters(), lr=0.01, amsgrad=True),
    "SGD": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9),
}


def trained(
    make: Make, folder: Path, *, n_steps: int = 3, dtype: torch.dtype = torch.float32, freeze: bool = False
) -> tuple[pd.DataFrame, dict[tuple[int, str], dict[str, float]], Any]:
    """Train under a probe; return the rows, the same numbers from copies of everything, and the parameter taps."""
    torch.manual_seed(1)
    model = NanoGPT().train().to(dtype)
    if freeze:
        model.tokens.weight.requires_grad_(False)
    optimizer = make(model)
    expected = {}
    with attach(model, optimizer, every=1, folder=folder, strict=True) as probe:
        for step in range(n_steps):
            loss_of(model, batch_of(model, seed=step)).backward()
            before = {name: p.detach().double().clone() for name, p in model.named_parameters()}
            optimizer.step()
            for name, p in model.named_parameters():
                expected[step, name] = numbers_of(p, before[name], optimizer)
            optimizer.zero_grad()
            probe.step()
        taps = probe._parameters
    return probe.recording.table("parameters"), expected, taps


def numbers_of(parameter: Tensor, before: Tensor, optimizer: Optimizer) -> dict[str, float]:
    """Return the columns of one row, in float64."""
    found = {"weight_rms": rms(parameter), "update_rms": rms(parameter.detach().double() - before)}
    if parameter.grad is None:
        return found
    gradient = parameter.grad.double()
    found |= {"gradient_rms": rms(gradient), "gradient_absmax": float(gradient.abs().max())}
    state = optimizer.state.get(parameter, {})
    group = next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))
    if "exp_avg_sq" in state:
        root = (state["exp_avg_sq"].double() / (1 - group["betas"][1] ** float(state["step"]))).sqrt()
        found["staleness"] = rms(gradient / (root + group["eps"]))
        found["second_moment_rms"] = rms(root)
        found["below_epsilon_share"] = float((root < group["eps"]).double().mean())
    return found


def assert_rows_are(rows: pd.DataFrame, expected: dict[tuple[int, str], dict[str, float]], rel: float) -> None:
    """Compare every column of every row with the copies."""
    index = rows.set_index(["step", "name"])
    assert len(index) == len(expected)
    for place, numbers in expected.items():
        for column, value in numbers.items():
            assert index.loc[place, column] == pytest.approx(value, rel=rel, abs=1e-12), (place, column)


@pytest.mark.parametrize("has_kernel", [True, False])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_tells_what_copies_of_the_weights_tell(
    name: str, has_kernel: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_kernel:
        monkeypatch.setattr(by_c, "kernel", None)
    rows, expected, taps = trained(OPTIMIZERS[name], tmp_path / "run")

    assert next(iter(taps._readers.values())).is_trusted is True
    assert not taps._before, "nothing is copied once the state is trusted"
    # The weights themselves are rounded: what an update was is known to about 1e-7 of a weight.
    assert_rows_are(rows, expected, rel=2e-4)
    assert (rows["below_epsilon_share"] > 0).any()


@pytest.mark.parametrize("name", WITHOUT_STATE)
def test_another_optimizer_is_measured_by_copies(name: str, tmp_path: Path) -> None:
    rows, expected, taps = trained(WITHOUT_STATE[name], tmp_path / "run")

    assert taps._readers == {}
    wanted = {
        k: {c: v for c, v in each.items() if c in ("weight_rms", "update_rms", "gradient_rms")}
        for k, each in expected.items()
    }
    assert_rows_are(rows, wanted, rel=1e-6)
    assert rows["staleness"].isna().all()


def test_parameters_in_bfloat16_are_read_by_torch(tmp_path: Path) -> None:
    rows, expected, taps = trained(OPTIMIZERS["AdamW"], tmp_path / "run", dtype=torch.bfloat16)

    # The update is rounded to bfloat16 when it is applied: the state, which tells the exact one, is off by more than is trusted,
    # and copies serve; or it is near enough.
    for column in ("weight_rms", "gradient_rms", "gradient_absmax"):
        assert_rows_are(rows, {place: {column: each[column]} for place, each in expected.items()}, rel=1e-5)
    if next(iter(taps._readers.values())).is_trusted is False:
        assert_rows_are(rows, {place: {"update_rms": each["update_rms"]} for place, each in expected.items()}, rel=1e-5)


def test_a_parameter_without_a_gradient_has_no_update_of_its_state(tmp_path: Path) -> None:
    rows, _, _ = trained(OPTIMIZERS["AdamW"], tmp_path / "run", freeze=True)

    frozen = rows[rows["name"] == "tokens.weight"]
    assert (frozen["gradient_state"] == "frozen").all()
    assert frozen[["update_rms", "staleness", "gradient_rms"]].isna().all().all()
    assert frozen["weight_rms"].notna().all()
    assert rows[rows["name"] == "head.weight"]["staleness"].notna().all()


def test_an_optimizer_that_does_not_do_what_its_state_says_is_not_trusted(tmp_path: Path) -> None:
    def make(model: nn.Module) -> Optimizer:
        optimizer = AdamW(model.parameters(), lr=0.01)
        kept: dict[nn.Parameter, Tensor] = {}

        def remember(*_: object) -> None:
            kept.update((p, p.detach().clone()) for p in model.parameters())

        def halve(*_: object) -> None:
            with torch.no_grad():
                for p in model.parameters():
                    p.copy_((p + kept[p]) / 2)

        optimizer.register_step_pre_hook(remember)
        optimizer.register_step_post_hook(halve)
        return optimizer

    rows, expected, taps = trained(make, tmp_path / "run")

    assert next(iter(taps._readers.values())).is_trusted is False
    assert_rows_are(rows, {place: {"update_rms": each["update_rms"]} for place, each in expected.items()}, rel=1e-5)


def test_a_subclass_of_adam_is_not_read_by_its_state() -> None:
    class Mine(AdamW):
        """May do anything."""

    model = NanoGPT()

    assert not AdamReader.reads(Mine(model.parameters()))
    assert AdamReader.reads(AdamW(model.parameters()))


def test_a_checkpoint_that_is_loaded_into_the_optimizer_is_read_from_then_on(tmp_path: Path) -> None:
    model = NanoGPT().train()
    optimizer = AdamW(model.parameters(), lr=0.01, eps=EPS)
    with attach(model, optimizer, every=1, folder=tmp_path / "run", strict=True) as probe:
        for step in range(4):
            if step == 2:
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            loss_of(model, batch_of(model, seed=step)).backward()
            before = model.head.weight.detach().double().clone()
            optimizer.step()
            expected = numbers_of(model.head.weight, before, optimizer)
            optimizer.zero_grad()
            probe.step()

    rows = probe.recording.table("parameters", steps=3).set_index("name")
    for column, value in expected.items():
        assert rows.loc["head.weight", column] == pytest.approx(value, rel=2e-4), column


def test_the_first_gradients_of_a_group_that_joins_later_are_read(tmp_path: Path) -> None:
    model = NanoGPT().train()
    late = list(model.head.parameters())
    optimizer = AdamW([p for p in model.parameters() if p is not late[0]], lr=0.01)
    with attach(model, optimizer, every=1, folder=tmp_path / "run", strict=True) as probe:
        for step in range(3):
            if step == 2:
                optimizer.add_param_group({"params": late, "lr": 0.1})
            loss_of(model, batch_of(model, seed=step)).backward()
            before = late[0].detach().double().clone()
            optimizer.step()
            moved = rms(late[0].detach().double() - before)
            optimizer.zero_grad()
            model.zero_grad()
            probe.step()

    rows = probe.recording.table("parameters")
    found = rows[rows["name"] == "head.weight"].sort_values("step")
    assert found["update_rms"].tolist()[-1] == pytest.approx(moved, rel=2e-4)
    assert found["staleness"].notna().tolist() == [False, False, True]
