"""Gradient checkpointing runs forwards again inside the backward."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from oracles import NanoGPT, batch_of, cross_entropy, gpt2, loss_of
from rheoscope.probes.recorder import attach
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from robustness.loops import Counter, events, parameters, rows, train

# transformers renames its switches.
pytestmark = pytest.mark.filterwarnings("ignore:.*checkpointing.* is deprecated:FutureWarning")


class Checkpointed(NanoGPT):
    """nanoGPT whose blocks are computed again in the backward."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.reentrant = reentrant

    def forward(self, ids: Tensor, targets: Tensor | None = None, split: None = None) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x) if self.reentrant is None else checkpoint(block, x, use_reentrant=self.reentrant)
        return cross_entropy(self.head(self.norm(x)), ids if targets is None else targets)


@pytest.mark.parametrize("reentrant", [True, False])
def test_row_03_checkpointing_counts_activations_once(reentrant: bool, tmp_path: Path) -> None:
    model, plain = Checkpointed(reentrant).train(), Checkpointed(None)
    plain.load_state_dict(model.state_dict())
    naive = Counter(model.blocks[0].norm_1, model.blocks[0].attention)
    loss_of(model, batch_of(model)).backward()
    naive.remove()
    model.zero_grad()
    assert naive.calls == [2, 2]

    found, expected = train(model, tmp_path / "run"), train(plain, tmp_path / "plain")

    for table in ("activations", "gradient_paths"):
        pd.testing.assert_frame_equal(found.recording.table(table), expected.recording.table(table), rtol=1e-6)


@pytest.mark.parametrize("reentrant", [None, True, False])
def test_row_03_hugging_faces_checkpointing_changes_no_row(reentrant: bool | None, tmp_path: Path) -> None:
    model = gpt2()
    expected = train(model, tmp_path / "plain")
    options = None if reentrant is None else {"use_reentrant": reentrant}
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    model.config.use_cache = False

    found = train(model, tmp_path / "run")

    for site in ("state", "hidden"):
        for direction in ("forward", "backward"):
            one, other = rows(found, site, direction), rows(expected, site, direction)
            assert len(one) > 0
            assert one["rms"].tolist() == pytest.approx(other["rms"].tolist(), rel=1e-6)


def test_row_04_the_first_pass_without_gradients_is_not_lost(tmp_path: Path) -> None:
    model = Checkpointed(reentrant=True).train()
    seen: list[bool] = []
    handle = model.blocks[0].register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))

    probe = train(model, tmp_path / "run", anatomy=None)
    handle.remove()

    assert seen[-2:] == [False, True], "a monitor that looks only where gradients are on misses the first pass"
    assert rows(probe, "state", "forward")["depth"].tolist() == [0, 1, 2, 3, 4]
    assert rows(probe, "state", "backward")["depth"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("reentrant", [True, False])
def test_row_03_a_model_that_is_wrapped_as_a_whole_is_counted_once_or_said(reentrant: bool, tmp_path: Path) -> None:
    model, scale = NanoGPT().train(), nn.Parameter(torch.ones(()))
    ids = batch_of(model)["ids"]
    with attach(model, every=1, folder=tmp_path / "run") as probe:
        checkpoint(
            lambda ids, scale: model(ids) * scale, ids, scale, use_reentrant=reentrant
        ).square().mean().backward()
        probe.step()

    if reentrant:
        assert events(probe) == ["never_forwarded"]
        assert "reentrant checkpointing" in probe.recording.table("events")["sentence"][0]
    else:
        assert probe.recording.table("steps")["micro_batches"].tolist() == [1]
        assert len(rows(probe, "state", "backward")) == len(rows(probe, "state", "forward")) == 5


def test_row_12_trainable_parameters_that_never_get_a_gradient_are_named(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    from rheoscope.diagnostics.diagnosis import diagnose

    model = peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["qkv"]), Checkpointed(reentrant=True))
    model.norm.requires_grad_(True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    with pytest.warns(UserWarning, match="None of the inputs have requires_grad"):
        loss_of(model.train(), batch_of(model)).backward()
    assert model.norm.weight.grad is not None, "the backward passes: torch only warns"
    model.zero_grad()

    with pytest.warns(UserWarning, match="None of the inputs have requires_grad"):
        probe = train(model, tmp_path / "run", [optimizer], n_steps=2)

    table = parameters(probe)
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    adapters = [name for name in trainable if "lora" in name]
    assert set(table.loc[adapters, "gradient_state"]) == {"none"}
    assert set(table.loc[[n for n in trainable if n not in adapters], "gradient_state"]) == {"value"}
    assert set(table.loc[~table.index.isin(trainable), "gradient_state"]) == {"frozen"}
    finding = next(f for f in diagnose(probe.recording).findings if f.code == "no-gradient")
    assert finding.severity == "warning"
    assert finding.evidence.observed == len(adapters) == 4
    assert "use_reentrant=False" in finding.remedy
