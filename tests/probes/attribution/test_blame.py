"""Blame for an update: what integrates, what adds up, whom it names, and that the model is left alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from oracles import VOCABULARY, NanoGPT, gpt2
from rheoscope.probes.attribution import attribute_update
from rheoscope.probes.attribution.blame import NOT_CAUSE
from rheoscope.probes.errors import ProbeError
from torch import Tensor, nn

Batch = dict[str, Tensor]


def batch_of(n: int = 3, seed: int = 0) -> Batch:
    """Return token ids that are their own labels."""
    ids = torch.randint(VOCABULARY, (n, 8), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "labels": ids}


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the weights."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def moved(model: nn.Module, batch: Batch, block: str = "h.2.", size: float = 0.5) -> dict[str, Tensor]:
    """Take one step with every block and a harmful one, up the gradient, with one; return the weights before."""
    before = weights(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(**batch).loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    optimizer.step()
    model.zero_grad()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if block in name:
                parameter.add_(gradients[name], alpha=size / float(gradients[name].norm() + 1e-9))
    return before


def test_the_block_that_moved_up_the_gradient_is_named_first_and_the_values_add_up() -> None:
    model, batch = gpt2(n_blocks=4), batch_of()
    before = moved(model, batch)

    found = attribute_update(model, batch, before)

    with torch.no_grad():
        after = float(model.eval()(**batch).loss)
        model.load_state_dict(before, strict=False)
        earlier = float(model(**batch).loss)
    assert found.ranking[0] == (0, 2)
    assert found.total == pytest.approx(after - earlier, rel=1e-4)
    assert sum(found.by_block().values()) == pytest.approx(found.total, rel=0.01)
    assert found.error is not None
    assert found.error < 0.01
    assert found.sentences[-1] == NOT_CAUSE


def test_values_equal_integrated_gradients_of_the_whole_weights_as_captum_takes_them() -> None:
    from captum.attr import IntegratedGradients
    from torch.func import functional_call

    model, batch = gpt2(n_blocks=2).eval(), batch_of()
    before = moved(model, batch, "h.1.")
    model.eval()
    names = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    after = weights(model)

    def loss(*values: Tensor) -> Tensor:
        chosen = {name: value[0] for name, value in zip(names, values, strict=True)}
        return functional_call(model, before | chosen, kwargs=batch).loss.reshape(1)

    slow = IntegratedGradients(loss).attribute(
        tuple(after[name][None] for name in names),
        tuple(before[name][None] for name in names),
        n_steps=16,
        internal_batch_size=1,
    )
    expected = sum(float(v.sum()) for name, v in zip(names, slow, strict=True) if ".h.1." in name)

    assert attribute_update(model, batch, before).by_block()[0, 1] == pytest.approx(expected, rel=1e-3)


class Straight(NanoGPT):
    """Returns logits that move by the sum of the last biases of all MLPs."""

    def forward(self, ids: Tensor) -> Tensor:
        return 0 * super().forward(ids) + torch.stack([block.mlp[2].bias.sum() for block in self.blocks]).sum()


def test_a_straight_loss_is_booked_exactly() -> None:
    model, batch = Straight(n_blocks=3), (torch.randint(VOCABULARY, (2, 8)),)
    before = weights(model)
    with torch.no_grad():
        for k, block in enumerate(model.blocks):
            block.mlp[2].bias.add_(k + 1.0)

    found = attribute_update(model, batch, before, loss_fn=lambda output, _: output.mean())

    assert found.by_block() == pytest.approx({(0, 0): 16.0, (0, 1): 32.0, (0, 2): 48.0}, rel=1e-5)


def test_what_another_batch_changes_is_kept_apart() -> None:
    model, batch, earlier = gpt2(), batch_of(), batch_of(seed=1)
    before = moved(model, batch, "h.1.")

    rows = attribute_update(model, batch, before, previous_batch=earlier).to_frame()

    with torch.no_grad():
        model.eval().load_state_dict(before, strict=False)
        expected = float(model(**batch).loss - model(**earlier).loss)
    assert float(rows[rows["method"] == "batch"]["value"].iloc[0]) == pytest.approx(expected, rel=1e-4)


def test_of_the_blocks_that_moved_furthest_alone_the_others_are_told_together() -> None:
    model, batch = gpt2(n_blocks=4), batch_of()
    before = moved(model, batch)

    whole, found = attribute_update(model, batch, before), attribute_update(model, batch, before, top=1)

    rows = found.to_frame()
    assert set(rows["branch"]) == {"attention", "mlp", "others", ""}
    assert found.cost.n_bytes < whole.cost.n_bytes / 3
    assert rows[rows["method"] == "update"]["value"].sum() == pytest.approx(whole.total, rel=0.01)


def test_little_memory_makes_it_look_at_a_few_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    from rheoscope.probes.attribution import blame

    model, batch = gpt2(n_blocks=5), batch_of()
    before = moved(model, batch)
    monkeypatch.setattr(blame, "free_bytes", lambda _: 1000)

    found = attribute_update(model, batch, before)

    assert len(found.by_block()) <= blame.TOP + 1
    assert "by difference" in str(found)


def test_values_that_do_not_add_up_name_nobody() -> None:
    model, batch = Straight(n_blocks=2), (torch.randint(VOCABULARY, (2, 8)),)
    before = weights(model)
    with torch.no_grad():
        model.blocks[1].mlp[2].bias.add_(1.0)

    found = attribute_update(model, batch, before, loss_fn=lambda output, _: torch.tanh(9 * output).mean(), n_points=2)

    assert found.error is not None
    assert found.error > 0.05
    assert not found.is_ranked
    assert "No block is named" in str(found)


def test_the_model_is_left_bit_identical() -> None:
    model, batch = gpt2(dropout=0.1).train(), batch_of()
    before = moved(model, batch)
    model(**batch).loss.backward()
    held = copy.deepcopy({name: (p.detach(), p.grad) for name, p in model.named_parameters()})
    parameters, state = list(model.parameters()), torch.get_rng_state()

    attribute_update(model, batch, before)

    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert all(torch.equal(p, held[n][0]) and torch.equal(p.grad, held[n][1]) for n, p in model.named_parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_half_precision_weights_are_attributed_in_float32_and_frozen_ones_stay_frozen() -> None:
    model, batch = gpt2(n_blocks=2).bfloat16(), batch_of()
    model.transformer.wte.weight.requires_grad_(False)
    before = weights(model)
    with torch.no_grad():
        for parameter in model.transformer.h[1].parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))

    found = attribute_update(model, batch, before)

    assert found.ranking[0] == (0, 1)
    assert found.error is not None
    assert found.error < 0.01
    assert model.transformer.h[0].ln_1.weight.dtype == torch.bfloat16
    assert not model.transformer.wte.weight.requires_grad


def test_a_compiled_model_and_its_own_weights_before_are_understood() -> None:
    model, batch = gpt2(), batch_of()
    before = copy.deepcopy(model)
    moved(model, batch, "h.1.")

    plain = attribute_update(model, batch, before)
    compiled = attribute_update(torch.compile(model, backend="eager"), batch, before)

    assert compiled.by_block() == pytest.approx(plain.by_block())


def test_the_cost_is_told_before_the_first_pass_and_after_it_in_seconds() -> None:
    model, batch, told = gpt2(), batch_of(), []
    before = moved(model, batch, "h.1.")

    found = attribute_update(
        model, batch, before, on_progress=lambda done, total, text: told.append((done, total, text))
    )

    assert told[0][:2] == (0, 18)
    assert "18 passes" in told[0][2]
    assert " s," in told[1][2]
    assert [done for done, _, _ in told] == list(range(found.cost.n_passes + 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda before: before, "the same"),
        (lambda before: {k: v for k, v in before.items() if "ln_f" not in k}, "got nothing"),
        (lambda before: {k: v[:1] for k, v in before.items()}, "of shape"),
    ],
)
def test_weights_that_do_not_fit_are_refused_in_a_sentence(change: Any, message: str) -> None:
    model = gpt2()

    with pytest.raises(ProbeError, match=message):
        attribute_update(model, batch_of(), change(weights(model)))
