"""A program's models are found and recorded from outside, whatever its loop is like, and everything is put back."""

from __future__ import annotations

import copy
import gc
import logging
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from oracles import NanoGPT, cross_entropy, ids
from rheoscope.probes.integrations import following, script
from rheoscope.probes.integrations.script import ScriptProbes, Taken
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules
from torch.optim import optimizer as torch_optimizers


class Run:
    """What a program gave that ran under probes: what was taken, and what was said."""

    def __init__(self, folder: Path, program: Callable[[], None], every: int = 1) -> None:
        self.said: list[str] = []
        probes = ScriptProbes(folder, label="script", say=self.said.append, options={"every": every})
        probes.start()
        try:
            program()
        finally:
            self.taken: list[Taken] = probes.finish()

    def losses(self, index: int = 0) -> list[float]:
        recording = self.taken[index].recording
        assert recording is not None
        return list(recording.table("steps")["loss"])

    def column(self, name: str, index: int = 0) -> list[float]:
        recording = self.taken[index].recording
        assert recording is not None
        return list(recording.table("steps")[name])


def loss_on(model: nn.Module, seed: int) -> Tensor:
    tokens = ids(seed=seed)
    return cross_entropy(model(tokens), tokens)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> float:
    loss = loss_on(model, seed)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def seen_globally() -> list[object]:
    """Return everything of torch's that a run puts itself around."""
    return [
        torch.autograd.backward,
        torch.optim.Optimizer.__init__,
        nn.Module.compile,
        torch.amp.GradScaler.step,
        torch.amp.GradScaler.scale,
        torch.distributed.destroy_process_group,
        len(torch_modules._global_forward_pre_hooks),
        len(torch_optimizers._global_optimizer_pre_hooks),
        len(torch_optimizers._global_optimizer_post_hooks),
        [each for each in warnings.filters if each[1] is not None and "global hooks" in each[1].pattern],
    ]


def test_a_model_is_recorded_from_its_first_forward_and_everything_is_put_back(tmp_path: Path) -> None:
    logged: list[float] = []
    before = seen_globally()

    def program() -> None:
        model = NanoGPT()
        optimizer = torch.optim.AdamW(model.parameters())
        logged.extend(step(model, optimizer, seed) for seed in range(3))

    run = Run(tmp_path, program)

    assert run.losses() == pytest.approx(logged, rel=1e-6)
    assert run.taken[0].n_steps == 3
    assert run.taken[0].recording is not None
    seen = run.taken[0].recording.table("activations")
    assert set(seen["step"]) == {0, 1, 2}
    assert set(seen["direction"]) == {"forward", "backward"}
    assert seen_globally() == before
    assert run.said == []


def test_training_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    def trained() -> list[Tensor]:
        torch.manual_seed(3)
        model = NanoGPT(dropout=0.1)
        optimizer = torch.optim.AdamW(model.parameters())
        for seed in range(4):
            step(model, optimizer, seed)
        return [p.detach().clone() for p in model.parameters()]

    found: list[list[Tensor]] = []
    Run(tmp_path, lambda: found.append(trained()))

    assert all(torch.equal(a, b) for a, b in zip(found[0], trained(), strict=True))


def test_models_of_two_optimizers_that_take_turns_are_kept_apart(tmp_path: Path) -> None:
    logged: dict[str, list[float]] = {"first": [], "second": []}

    def program() -> None:
        first, second = NanoGPT(), NanoGPT(n_blocks=3)
        optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (first, second)]
        for seed in range(3):
            logged["first"].append(step(first, optimizers[0], seed))
            # Its graph reaches the first model, which its optimizer does not step.
            tokens = ids(seed=seed)
            loss = cross_entropy(second(tokens) + 0 * first(tokens).detach(), tokens)
            loss.backward()
            optimizers[1].step()
            optimizers[1].zero_grad()
            logged["second"].append(loss.item())

    run = Run(tmp_path, program)

    assert [each.folder.relative_to(tmp_path).as_posix() for each in run.taken] == [".", "model-2"]
    assert run.losses(0) == pytest.approx(logged["first"], rel=1e-6)
    assert run.losses(1) == pytest.approx(logged["second"], rel=1e-6)
    depths = [each.recording.anatomy.n_blocks for each in run.taken if each.recording]
    assert depths == [2, 3]


def test_two_optimizers_of_one_model_close_one_step(tmp_path: Path) -> None:
    def program() -> None:
        model = NanoGPT()
        matrices = [p for p in model.parameters() if p.dim() > 1]
        others = [p for p in model.parameters() if p.dim() < 2]
        both = [torch.optim.SGD(matrices, lr=0.1), torch.optim.AdamW(others)]
        for seed in range(3):
            loss_on(model, seed).backward()
            for optimizer in both:
                optimizer.step()
                optimizer.zero_grad()

    run = Run(tmp_path, program)

    assert [each.n_steps for each in run.taken] == [3]
    assert run.column("micro_batches") == [1, 1, 1]
    assert run.taken[0].recording is not None
    assert set(run.taken[0].recording.table("groups")["group"]) == {0, 1}


def test_an_optimizer_that_never_steps_is_not_waited_for(tmp_path: Path) -> None:
    logged: list[float] = []

    def program() -> None:
        model = NanoGPT()
        _unused = torch.optim.SGD(model.parameters(), lr=1.0)
        optimizer = torch.optim.AdamW(model.parameters())
        logged.extend(step(model, optimizer, seed) for seed in range(4))

    run = Run(tmp_path, program)

    assert run.column("micro_batches") == [1, 1, 1, 1]
    assert run.losses() == pytest.approx(logged, rel=1e-6)


def test_micro_batches_add_up_to_one_step(tmp_path: Path) -> None:
    def program() -> None:
        model = NanoGPT()
        optimizer = torch.optim.AdamW(model.parameters())
        for seed in range(4):
            (loss_on(model, seed) / 2).backward()
            if seed % 2:
                optimizer.step()
                optimizer.zero_grad()

    run = Run(tmp_path, program)

    assert run.column("micro_batches") == [2, 2]


def test_steps_that_a_scaler_leaves_out_are_steps_and_losses_are_without_its_scale(tmp_path: Path) -> None:
    logged: list[float] = []

    def program() -> None:
        model = NanoGPT()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for seed in range(4):
            loss = loss_on(model, seed)
            logged.append(loss.item())
            scaler.scale(loss).backward()
            if seed == 1:
                model.head.weight.grad.fill_(float("inf"))  # type: ignore[union-attr]  # the backward left one
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()

    run = Run(tmp_path, program)

    assert run.losses() == pytest.approx(logged, rel=1e-6)
    assert run.column("is_skipped") == [False, True, False, False]
    assert run.column("loss_scale") == [1024, 1024, 512, 512]


def test_an_optimizer_that_calls_the_loss_itself_is_followed(tmp_path: Path) -> None:
    def program() -> None:
        model = NanoGPT()
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = loss_on(model, 0)
            loss.backward()
            return loss

        for _ in range(2):
            optimizer.step(closure)

    run = Run(tmp_path, program)

    assert run.taken[0].n_steps == 2


def test_models_that_come_one_after_the_other_are_found_and_let_go_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "MOST_IDLE", 2)
    alive: list[bool] = []

    def fold(seed: int) -> weakref.ref[nn.Module]:
        model = NanoGPT()
        optimizer = torch.optim.AdamW(model.parameters())
        for _ in range(4):
            step(model, optimizer, seed)
        return weakref.ref(model)

    def program() -> None:
        models = [fold(seed) for seed in range(3)]
        gc.collect()
        alive.extend(each() is not None for each in models)

    run = Run(tmp_path, program)

    assert [each.n_steps for each in run.taken] == [4, 4, 4]
    assert alive == [False, False, True]


def test_a_second_optimizer_for_the_same_model_starts_a_second_recording(tmp_path: Path) -> None:
    def program() -> None:
        model = NanoGPT()
        for lr in (1e-3, 1e-4):
            optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
            for seed in range(2):
                step(model, optimizer, seed)

    run = Run(tmp_path, program)

    assert [each.n_steps for each in run.taken] == [2, 2]
    assert run.column("lr", 0) == [1e-3, 1e-3]
    assert run.column("micro_batches", 1) == [1, 1]


def test_evaluation_before_training_is_not_taken_for_it(tmp_path: Path) -> None:
    def program() -> None:
        model = NanoGPT()
        optimizer = torch.optim.AdamW(model.parameters())
        model.eval()
        with torch.no_grad():
            model(ids())
        model.train()
        step(model, optimizer, 0)

    run = Run(tmp_path, program)

    assert run.column("micro_batches") == [1]


@pytest.mark.parametrize("in_place", [True, False], ids=["model.compile()", "torch.compile(model)"])
def test_a_compiled_model_is_recorded_and_its_graph_holds_nothing_of_the_search(tmp_path: Path, in_place: bool) -> None:
    def program() -> None:
        model: nn.Module = NanoGPT()
        optimizer = torch.optim.AdamW(model.parameters())
        if in_place:
            model.compile(backend="eager", fullgraph=True)
        else:
            model = torch.compile(model, backend="eager", fullgraph=True)  # type: ignore[assignment]  # called alike
        for seed in range(3):
            step(model, optimizer, seed)

    run = Run(tmp_path, program)
    torch._dynamo.reset()

    assert run.said == []
    assert run.column("micro_batches") == [1, 1, 1]
    assert run.taken[0].recording is not None
    states = run.taken[0].recording.table("activations").query("site == 'state' and direction == 'backward'")
    assert set(states["step"]) == {0, 1, 2}


def test_parts_that_a_loop_calls_one_by_one_are_measured_from_the_second_step(tmp_path: Path) -> None:
    def program() -> None:
        parts = nn.ModuleList([NanoGPT(), NanoGPT(), NanoGPT()])
        optimizer = torch.optim.AdamW(parts.parameters())
        for seed in range(3):
            sum((loss_on(part, seed) for part in parts), torch.zeros(())).backward()
            optimizer.step()
            optimizer.zero_grad()

    run = Run(tmp_path, program)

    assert [each.n_steps for each in run.taken] == [2, 2, 2]


def test_what_no_module_holds_is_said_to_be_trained_without_a_record(tmp_path: Path) -> None:
    def program() -> None:
        point = nn.Parameter(torch.ones(3))
        optimizer = torch.optim.SGD([point], lr=0.1)
        for _ in range(2):
            point.square().sum().backward()
            optimizer.step()

    before = len(torch_modules._global_forward_pre_hooks)
    run = Run(tmp_path / "run", program)

    assert run.taken == []
    assert not (tmp_path / "run").exists()
    assert len(torch_modules._global_forward_pre_hooks) == before


def test_a_copied_optimizer_is_found_when_it_steps(tmp_path: Path) -> None:
    def program() -> None:
        model, optimizer = copy.deepcopy((lambda m: (m, torch.optim.AdamW(m.parameters())))(NanoGPT()))
        for seed in range(3):
            step(model, optimizer, seed)

    run = Run(tmp_path, program)

    assert run.taken[0].n_steps == 2


def test_errors_of_ours_are_said_once_and_stop_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(script, "attach", broken)
    logged: list[float] = []

    def program() -> None:
        model = NanoGPT()
        optimizer = torch.optim.AdamW(model.parameters())
        logged.extend(step(model, optimizer, seed) for seed in range(3))

    run = Run(tmp_path, program)

    assert len(logged) == 3
    assert len([said for said in run.said if "broken on purpose" in said]) == 1


def test_a_model_that_cannot_be_probed_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def program() -> None:
        model = nn.DataParallel(NanoGPT())
        optimizer = torch.optim.AdamW(model.parameters())
        for seed in range(2):
            step(model, optimizer, seed)

    with caplog.at_level(logging.CRITICAL):
        run = Run(tmp_path, program)

    assert len(run.said) == 1
    assert "nn.DataParallel" in run.said[0]
