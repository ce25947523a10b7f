"""Norms run alone: epsilons as they were set, and a wrong backward to the share by which it errs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles import WIDTH, NanoGPT
from rheoscope.diagnostics.diagnosis import diagnose
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.transformer import ReferenceTransformer
from rheoscope.probes.check_up import default_loss, examine
from rheoscope.probes.conservation import conservation
from rheoscope.probes.discovery import discover
from rheoscope.probes.norms_alone import norm_points, norms_alone
from rheoscope.probes.together import seen_in
from rheoscope.probes.untouched import untouched
from torch import Tensor, nn
from torch.nn import functional

IDS = torch.randint(0, 61, (2, 8), generator=torch.Generator().manual_seed(0))


class _Normed(torch.autograd.Function):
    """A LayerNorm whose backward leaves the gradient's mean in, or uses a factor that is not that of its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, bias: Tensor, keeps_mean: bool, factor: float) -> Tensor:
        z = functional.layer_norm(x, x.shape[-1:])
        r = (x.var(-1, correction=0, keepdim=True) + 1e-5).rsqrt()
        ctx.save_for_backward(z, r, gain)
        ctx.keeps_mean, ctx.factor = keeps_mean, factor
        return z * gain + bias

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        z, r, gain = ctx.saved_tensors
        u = dy * gain
        dx = u - z * (u * z).mean(-1, keepdim=True)
        dx = dx if ctx.keeps_mean else dx - u.mean(-1, keepdim=True)
        return ctx.factor * r * dx, (dy * z).sum((0, 1)), dy.sum((0, 1)), None, None


class Wrong(nn.LayerNorm):
    """Gives what a LayerNorm does; its backward is the wrong one above."""

    def __init__(self, keeps_mean: bool, factor: float) -> None:
        super().__init__(WIDTH)
        self.keeps_mean, self.factor = keeps_mean, factor

    def forward(self, x: Tensor) -> Tensor:
        return _Normed.apply(x, self.weight, self.bias, self.keeps_mean, self.factor)


def found(model: nn.Module, check: str, ids: Tensor = IDS) -> dict[str, float]:
    anatomy = discover(model, ids)
    with untouched(model, training=False):
        rows = norms_alone(model, anatomy, seen_in(model, ids, norm_points(model, anatomy)))
    return {row["module_path"]: row["observed"] for row in rows if row["check"] == check}


@pytest.mark.parametrize("epsilon", [0.0, 1e-12, 1e-6, 1e-5, 1e-3, 0.1])
@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
def test_the_epsilon_of_every_norm_is_the_one_it_was_given(kind: str, epsilon: float) -> None:
    given = Architecture(n_blocks=3, width=32, n_heads=4, vocabulary=61, context=8, norm_kind=kind)
    model = ReferenceTransformer(given, seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:  # gains and biases that are no ones and zeros
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    norm = model.blocks[1].mlp_in
    norm.eps = epsilon
    measured = found(model, "norm_epsilon")
    assert len(measured) == 7
    assert measured.pop("blocks.1.mlp_in") == pytest.approx(epsilon, rel=1e-3, abs=1e-10)
    assert list(measured.values()) == pytest.approx([1e-6] * 6, rel=1e-3)


@pytest.mark.parametrize("kind", ["pre", "post", "parallel"])
def test_the_backward_of_sound_norms_is_exact(kind: str) -> None:
    torch.manual_seed(0)
    errors = found(NanoGPT(kind), "norm_backward")
    assert len(errors) >= 4
    assert max(errors.values()) < 1e-5


def test_a_factor_that_is_not_that_of_the_input_is_measured_where_it_is() -> None:
    torch.manual_seed(0)
    model = NanoGPT("pre")
    model.blocks[1].norm_2 = Wrong(keeps_mean=False, factor=0.95)
    errors = found(model, "norm_backward")
    assert errors.pop("blocks.1.norm_2") == pytest.approx(0.05, rel=1e-3)
    assert max(errors.values()) < 1e-5


def test_a_forgotten_mean_is_seen_though_the_branch_as_a_whole_hides_it() -> None:
    torch.manual_seed(0)
    model = NanoGPT("pre")
    model.blocks[1].norm_2 = Wrong(keeps_mean=True, factor=1.0)
    errors = found(model, "norm_backward")
    # Of a gradient of independent numbers the mean carries one share in so many as there are channels.
    assert errors.pop("blocks.1.norm_2") == pytest.approx(WIDTH**-0.5, rel=0.3)
    assert max(errors.values()) < 1e-5
    anatomy = discover(model, IDS)
    with untouched(model, training=False):
        rows = conservation(model, IDS, anatomy, lambda output: default_loss(output, IDS))
    assert all(abs(row["observed"] - 1) < 0.1 for row in rows)


def test_a_detached_norm_errs_by_the_whole() -> None:
    class Cut(nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.detach())

    torch.manual_seed(0)
    model = NanoGPT("pre")
    model.blocks[0].norm_1 = Cut(WIDTH)
    assert found(model, "norm_backward")["blocks.0.norm_1"] == pytest.approx(1.0)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
def test_what_a_norm_does_to_a_mean_is_known_where_it_reads_none(kind: str) -> None:
    # Branches that start at zero: every norm of a post-norm stack reads what the one before gave, whose mean is 0.
    given = Architecture(
        n_blocks=3, width=32, n_heads=4, vocabulary=61, context=8, norm_kind=kind, norm_placement="post"
    )
    model = ReferenceTransformer(given, seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("attention.output.weight", "mlp.down.weight")):
                parameter.zero_()
        embedding = next(part for part in model.modules() if isinstance(part, nn.Embedding))
        embedding.weight.sub_(embedding.weight.mean(-1, keepdim=True))
    errors = found(model, "norm_backward")
    assert len(errors) == 6
    assert max(errors.values()) < 1e-5


class Coarse(nn.LayerNorm):
    """Computes in bfloat16."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.bfloat16(), self.bias.bfloat16()
        return functional.layer_norm(x.bfloat16(), x.shape[-1:], weight, bias, self.eps).float()


def test_a_norm_that_computes_in_fewer_bits_is_told_by_its_form() -> None:
    torch.manual_seed(0)
    shape = {"width": 32, "n_heads": 4, "mlp_width": 64, "vocabulary": 61, "context": 16}
    model = ReferenceTransformer(Architecture(n_blocks=5, **shape), seed=0)
    assert max(found(model, "norm_form").values()) < 1e-5
    model.blocks[2].mlp_in = Coarse(32)
    misfits = found(model, "norm_form")
    assert 1e-4 < misfits.pop("blocks.2.mlp_in") < 1e-2
    assert max(misfits.values()) < 1e-5
    told = [(f.code, f.severity, f.block) for f in diagnose(examine(model, IDS)) if f.severity != "info"]
    assert told == [("norm-form", "warning", 2)]
