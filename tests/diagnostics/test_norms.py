"""What every norm does, against vector-Jacobian products of the norms themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from oracles import NanoGPT, batch_of, ids, llama, loss_of
from rheoscope.diagnostics.tables import Tables
from rheoscope.probes.recorder import attach
from torch import Tensor, nn


def hugging_face(name: str, **more: Any) -> nn.Module:
    """Return a tiny model of Hugging Face's."""
    import transformers

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    special = {"vocab_size": 61, "intermediate_size": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model = getattr(transformers, name)
    made: nn.Module = model(model.config_class(**sizes, **special, **more))
    return made


MODELS = {
    "pre": NanoGPT,
    "post": lambda: NanoGPT("post"),
    "rms": llama,
    "reordered": lambda: hugging_face("Olmo2ForCausalLM"),
    "double": lambda: hugging_face("Gemma2ForCausalLM", head_dim=8),
}


def frame_of(model: nn.Module, folder: Path) -> pd.DataFrame:
    """Return the norms of one recorded step."""
    with attach(model, every=1, folder=folder, strict=True) as probe:
        loss = loss_of(model, batch_of(model))
        loss.backward()  # type: ignore[no-untyped-call]
        probe.step(loss)
    return Tables(probe.recording).norms


def rms(tensor: Tensor) -> float:
    """Return the RMS in float64."""
    return float(tensor.detach().double().square().mean().sqrt())


def ends_of(model: nn.Module, paths: list[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return input and output of some modules, and leave the loss's graph behind them; the input is cut off before."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    handles = []
    for path in paths:

        def see(module: nn.Module, args: tuple[Tensor, ...], output: Tensor, path: str = path) -> None:
            seen[path] = (args[0], output)

        handles.append(model.get_submodule(path).register_forward_hook(see))
    seen[""] = (loss_of(model, batch_of(model)),) * 2
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_every_norm_has_the_input_and_the_gain_that_autograd_gives(name: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = MODELS[name]().train()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, 1.0, 0.3)

    frame = frame_of(model, tmp_path / "run").set_index("module_path")

    expected = {path for path, module in model.named_modules() if "Norm" in type(module).__name__}
    assert set(frame.index) == {path for path in expected if not path.endswith(("q_norm", "k_norm"))}
    ends = ends_of(model, list(frame.index))
    loss = ends.pop("")[0]
    above = dict(zip(ends, torch.autograd.grad(loss, [o for _, o in ends.values()], retain_graph=True), strict=True))
    for path, (given, _) in ends.items():
        module = model.get_submodule(path)
        leaf = given.detach().requires_grad_()
        (below,) = torch.autograd.grad(module(leaf), leaf, above[path])
        row = frame.loc[path]
        assert row["input_rms"] == pytest.approx(rms(given), rel=1e-5)
        assert row["jacobian_gain"] == pytest.approx(rms(below) / rms(above[path]), rel=1e-3), path
        assert row["not_known"] == ""
        wide = given.detach().double()
        share = float(wide.mean(-1).square().mean() / wide.square().mean())
        assert row["mean_energy_removed"] == pytest.approx(share if row["kind"] == "layernorm" else 0.0, rel=1e-4)
        assert row["gain_rms"] == pytest.approx(rms(module.weight), rel=1e-5)
        bias = getattr(module, "bias", None)
        assert pd.isna(row["bias_rms"]) if bias is None else row["bias_rms"] == pytest.approx(rms(bias), rel=1e-5)


def test_roles_and_places_tell_where_a_norm_stands(tmp_path: Path) -> None:
    pre = frame_of(NanoGPT().train(), tmp_path / "pre")
    post = frame_of(NanoGPT("post").train(), tmp_path / "post")

    assert pre["role"].tolist() == ["input"] * 4 + ["final"]
    assert pre[["block", "branch", "depth"]].iloc[-1].tolist() == [-1, "output", 5]
    assert post["role"].tolist() == ["stream"] * 4
    assert set(pre["kind"]) == {"layernorm"}


def test_of_two_norms_that_read_one_state_the_gain_is_not_known_and_said_so(tmp_path: Path) -> None:
    frame = frame_of(NanoGPT("parallel").train(), tmp_path / "run")

    inputs = frame[frame["role"] == "input"]
    assert len(inputs) == 4
    assert inputs["jacobian_gain"].isna().all()
    assert inputs["input_rms"].notna().all()
    assert inputs["not_known"].str.contains("several norms").all()


def test_micro_batches_are_joined(tmp_path: Path) -> None:
    model = NanoGPT().train()
    with attach(model, every=1, folder=tmp_path / "run", strict=True) as probe:
        for seed in (0, 1):
            loss_of(model, {"ids": ids(seed=seed), "targets": ids(seed=seed)}).backward()  # type: ignore[no-untyped-call]
        probe.step(1.0)

    row = Tables(probe.recording).norms.iloc[0]

    states = [model.tokens(ids(seed=s)) + model.positions.weight for s in (0, 1)]
    assert row["input_rms"] == pytest.approx(rms(torch.stack(states)), rel=1e-5)


def test_where_the_anatomy_does_not_tell_what_is_between_nothing_is_measured_and_that_is_said(made: Any) -> None:
    frame = Tables(made(n_blocks=2).recording()).norms

    assert frame["role"].tolist() == ["input"] * 4
    assert frame[["input_rms", "mean_energy_removed", "jacobian_gain"]].isna().all(axis=None)
    assert (frame["not_known"] != "").all()
