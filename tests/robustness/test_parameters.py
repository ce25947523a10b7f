"""Gradients that pile up, never come, or are gone; parameters that are replaced, shared or adapted."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from oracles import NanoGPT, batch_of, gpt2, loss_of, rms
from rheoscope.diagnostics.diagnosis import diagnose
from rheoscope.probes.recorder import attach
from torch import Tensor, nn

from robustness.loops import events, parameters, rows, train


def test_row_09_micro_batches_are_apart_and_their_sum_is_judged_once(tmp_path: Path) -> None:
    model = NanoGPT().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    naive: list[float] = []
    handle = model.head.weight.register_post_accumulate_grad_hook(lambda p: naive.append(rms(p.grad)))
    alone = []
    for seed in range(3):
        other = copy.deepcopy(model)
        loss_of(other, batch_of(other, seed=seed)).backward()
        alone.append(rms(other.head.weight.grad))
    with attach(model, optimizer, every=1, folder=tmp_path / "run", strict=True) as probe:
        for seed in range(3):
            loss_of(model, batch_of(model, seed=seed)).backward()
        whole = rms(model.head.weight.grad)
        optimizer.step()
        optimizer.zero_grad()
        probe.step()
    handle.remove()

    assert naive[-1] == pytest.approx(whole)
    assert naive[1] != pytest.approx(alone[1]), "a hook on .grad sees the sum so far"
    assert parameters(probe).loc["head.weight", "gradient_rms"] == pytest.approx(whole, rel=1e-6)
    assert probe.recording.table("steps")["micro_batches"].tolist() == [3]
    assert rows(probe, "state", "backward").groupby("micro_step").size().tolist() == [5, 5, 5]


class Partly(NanoGPT):
    """A decoder with a parameter that is unused, one that is frozen and one whose gradient is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.ones(3))
        self.muted = nn.Parameter(torch.ones(()))
        self.norm.weight.requires_grad_(False)

    def forward(self, ids: Tensor, targets: Tensor | None = None, split: None = None) -> Tensor:
        return super().forward(ids, targets) + 0 * self.muted


def test_row_11_a_gradient_that_never_comes_is_neither_zero_nor_frozen(tmp_path: Path) -> None:
    model = Partly()

    probe = train(model, tmp_path / "run", [torch.optim.SGD(model.parameters(), lr=0.1)])

    table = parameters(probe)
    states = table.loc[["unused", "norm.weight", "muted", "head.weight"], "gradient_state"].tolist()
    assert states == ["none", "frozen", "zero", "value"]
    assert table.loc[["unused", "norm.weight"], "gradient_rms"].isna().all()
    assert table.loc["muted", "gradient_rms"] == 0.0
    finding = next(found for found in diagnose(probe.recording).findings if found.code == "no-gradient")
    assert (finding.severity, finding.module_path) == ("info", "unused"), (
        "outside of the blocks, and frozen is no fault"
    )


def lora() -> nn.Module:
    """Return GPT-2 with adapters and a norm that is trained too."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["c_attn", "c_proj"], modules_to_save=["ln_f"], fan_in_fan_out=True)
    return peft.get_peft_model(gpt2(), config)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing. is deprecated:FutureWarning")
def test_row_13_the_first_zero_gradient_of_an_adapter_is_no_finding(tmp_path: Path) -> None:
    model = lora()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    moved: dict[str, float] = {}
    before: dict[str, Tensor] = {}

    def keep(step: int) -> None:
        before.update({name: p.detach().double().clone() for name, p in trained.items()})

    probe = train(model, tmp_path / "run", [torch.optim.AdamW(trained.values(), lr=1e-3)], n_steps=3, before=keep)
    moved = {name: rms(p.double() - before[name]) / rms(p) for name, p in trained.items()}

    first, last = parameters(probe), parameters(probe, 2)
    down = [name for name in trained if "lora_A" in name]
    up = [name for name in trained if "lora_B" in name]
    frozen = [name for name in first.index if name not in trained]
    assert set(first.loc[down, "gradient_state"]) == {"zero"}
    assert set(first.loc[up, "gradient_state"]) == set(last.loc[down, "gradient_state"]) == {"value"}
    assert set(first.loc[frozen, "gradient_state"]) == {"frozen"}
    assert last.loc[frozen, "update_rms"].isna().all()
    for name, ratio in moved.items():
        assert last.loc[name, "update_ratio"] == pytest.approx(ratio, rel=2e-4), name
    assert last.loc[[n for n in trained if n.endswith("ln_f.modules_to_save.default.bias")], "role"].tolist() == [
        "norm_bias"
    ]
    assert probe.recording.anatomy.is_complete
    assert {"no-gradient", "vanishing"}.isdisjoint(found.code for found in diagnose(probe.recording).findings)


def test_row_26_a_model_that_is_widened_is_measured_on(tmp_path: Path) -> None:
    model = NanoGPT()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    probe = train(
        model, tmp_path / "run", [optimizer], n_steps=2, before=lambda step: model.double() and None if step else None
    )

    last = parameters(probe, 1)
    assert model.head.weight.dtype is torch.float64
    assert last.loc["head.weight", "weight_rms"] == pytest.approx(rms(model.head.weight), rel=1e-9)
    assert last["update_rms"].notna().all()


def test_row_26_a_parameter_that_is_replaced_is_followed_by_its_name(tmp_path: Path) -> None:
    model = NanoGPT()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    seen: list[Tensor] = []
    model.head.weight.register_hook(seen.append)

    def replace(step: int) -> None:
        if step == 2:
            old, new = model.head.weight, nn.Parameter(torch.full_like(model.head.weight, 2.0))
            model.head.weight = new
            members = optimizer.param_groups[0]["params"]
            members[[p is old for p in members].index(True)] = new
        if step == 3:
            model.positions = nn.Embedding(9, 16)

    probe = train(model, tmp_path / "run", [optimizer], n_steps=4, before=replace)

    assert len(seen) == 2, "a hook on the parameter is lost with it"
    last = parameters(probe, 3)
    assert last.loc["head.weight", "weight_rms"] == pytest.approx(rms(model.head.weight), rel=1e-6)
    assert last.loc["head.weight", "gradient_state"] == "value"
    assert parameters(probe, 2).loc["head.weight", "update_rms"] > 0
    assert last.loc["positions.weight", ["weight_rms", "update_rms"]].isna().all()
    assert last["gradient_state"].isna().tolist() == [name == "positions.weight" for name in last.index]
    told = probe.recording.table("events")
    assert told["kind"].tolist() == ["replaced", "replaced"]
    assert told["sentence"][0].startswith("1 parameter ('head.weight') is replaced")
    assert told["sentence"][1].startswith("1 parameter ('positions.weight') is taken away or changed in shape")


def test_row_26_adapters_that_come_later_are_said_and_the_layers_inside_are_followed(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = NanoGPT()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def adapt(step: int) -> None:
        if step == 1:
            peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["qkv"]), model)
            optimizer.param_groups[0]["params"] = [p for p in model.parameters() if p.requires_grad]

    probe = train(model, tmp_path / "run", [optimizer], n_steps=3, before=adapt)

    last, inner = parameters(probe, 2), model.blocks[0].attention.qkv.base_layer
    assert set(last["gradient_state"]) == {"frozen"}
    assert last.loc["blocks.0.attention.qkv.weight", "weight_rms"] == pytest.approx(rms(inner.weight), rel=1e-6)
    assert events(probe) == ["replaced"]
    told = probe.recording.table("events")["sentence"][0]
    assert told.startswith("4 parameters ('blocks.0.attention.qkv.lora_A.default.weight', ")
    assert "Attach again to measure all." in told


def test_row_34_optimizers_that_step_inside_the_backward_are_said(tmp_path: Path) -> None:
    model = NanoGPT()
    optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}

    def update(parameter: nn.Parameter) -> None:
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(update)
    naive: list[bool] = []
    model.head.weight.register_post_accumulate_grad_hook(lambda p: naive.append(p.grad is None))

    probe = train(model, tmp_path / "run", n_steps=2)

    table = parameters(probe, 1)
    assert naive == [True, True], "who reads .grad after the optimizer's hook sees none"
    assert events(probe) == ["gradients_gone"]
    assert table["gradient_state"].isna().all(), "not known is not none"
    assert table.loc["head.weight", "weight_rms"] == pytest.approx(rms(model.head.weight), rel=1e-6)
    assert rows(probe, "state", "backward")["rms"].notna().all()


def test_row_34_gradients_that_were_cleared_before_the_probe_looked_are_said(tmp_path: Path) -> None:
    model = NanoGPT().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with attach(model, None, every=1, folder=tmp_path / "run", strict=True) as probe:
        loss_of(model, batch_of(model)).backward()
        optimizer.step()
        optimizer.zero_grad()
        probe.step()

    assert events(probe) == ["gradients_gone"]
    assert "Pass the optimizer to attach" in probe.recording.table("events")["sentence"][0]


def test_row_38_tied_weights_are_one_parameter_with_two_names(tmp_path: Path) -> None:
    model = gpt2()
    naive = sum(p.numel() for _, p in model.named_parameters(remove_duplicate=False))

    probe = train(model, tmp_path / "run", [torch.optim.SGD(model.parameters(), lr=0.0)])

    table = parameters(probe)
    head = probe.recording.manifest["model"]
    loss_of(model, batch_of(model)).backward()
    assert "lm_head.weight" not in table.index
    assert table.loc["transformer.wte.weight", "gradient_rms"] == pytest.approx(
        rms(model.lm_head.weight.grad), rel=1e-6
    )
    assert head["tied"] == [["transformer.wte.weight", "lm_head.weight"]]
    assert head["n_parameters"] == table["n"].sum() == naive - model.lm_head.weight.numel()
