"""A plain norm does what the norm does that it stands in for, whatever that one looks like inside."""

from __future__ import annotations

import pytest
import torch
from rheoscope.probes.errors import LabError
from rheoscope.probes.plain_norm import Passed, PlainNorm, plain
from torch import Tensor, nn

WIDTH = 24


class Written(nn.Module):
    """An RMSNorm written out, whose gain is stored less 1, and whose epsilon has another name."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.g, self.small = nn.Parameter(0.1 * torch.randn(WIDTH)), eps

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + self.small).rsqrt() * (1 + self.g)


def spoiled(norm: nn.Module) -> nn.Module:
    """Give a norm gains and biases of its own."""
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return norm


def norms() -> dict[str, nn.Module]:
    """Return norms of several kinds, epsilons and parameters."""
    torch.manual_seed(0)
    return {
        "LayerNorm": spoiled(nn.LayerNorm(WIDTH)),
        "LayerNorm with a small epsilon": spoiled(nn.LayerNorm(WIDTH, eps=1e-12)),
        "LayerNorm with a large epsilon": spoiled(nn.LayerNorm(WIDTH, eps=1e-3)),
        "LayerNorm without bias": spoiled(nn.LayerNorm(WIDTH, bias=False)),
        "LayerNorm without parameters": nn.LayerNorm(WIDTH, elementwise_affine=False),
        "RMSNorm": spoiled(nn.RMSNorm(WIDTH, eps=1e-6)),
        "RMSNorm with the epsilon of its type": spoiled(nn.RMSNorm(WIDTH)),
        "written out": Written(1e-5),
    }


@pytest.mark.parametrize("name", norms())
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_it_gives_what_the_norm_gives_at_every_size_of_input(name: str, size: float) -> None:
    norm = norms()[name]
    x = size * (torch.randn(5, WIDTH) + 0.3)

    found = plain(norm, WIDTH, name)

    torch.testing.assert_close(found(x), norm(x), rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("eps", [1e-3, 1e-5, 1e-6, 1e-8])
def test_epsilon_is_read_off_what_the_norm_gives(eps: float) -> None:
    assert plain(nn.LayerNorm(WIDTH, eps=eps), WIDTH, "norm").eps == pytest.approx(eps, rel=1e-3)
    assert plain(Written(eps), WIDTH, "norm").eps == pytest.approx(eps, rel=1e-3)


def test_another_kind_keeps_gain_and_bias_and_changes_the_mean_alone() -> None:
    norm = norms()["LayerNorm"]
    x = torch.randn(5, WIDTH) + 1

    found = plain(norm, WIDTH, "norm", kind="rmsnorm")

    expected = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(found(x), expected)
    assert found.weight is norm.weight
    assert found.bias is norm.bias


def test_a_new_norm_has_gains_of_one_and_biases_where_the_old_one_has_some() -> None:
    new = plain(norms()["LayerNorm"], WIDTH, "norm").new(8, kind="rmsnorm")

    assert (new.kind, new.width, new.eps) == ("rmsnorm", 8, 1e-5)
    assert new.weight is not None
    assert new.weight.tolist() == [1.0] * 8
    assert new.bias is not None
    assert new.bias.tolist() == [0.0] * 8
    assert plain(norms()["RMSNorm"], WIDTH, "norm").new().bias is None


def test_what_is_no_plain_norm_is_refused_by_its_path() -> None:
    with pytest.raises(LabError, match=r"blocks\.3\.odd"):
        plain(nn.Linear(WIDTH, WIDTH), WIDTH, "blocks.3.odd")


def test_a_norm_that_is_passed_by_keeps_its_parameters_and_gives_its_input() -> None:
    norm = nn.LayerNorm(WIDTH)
    x = torch.randn(2, WIDTH)

    passed = Passed(norm)

    assert passed(x) is x
    assert dict(passed.named_parameters())["norm.weight"] is norm.weight


def test_a_plain_norm_without_parameters_has_none() -> None:
    assert list(PlainNorm("rmsnorm", WIDTH, 1e-6, None, None).parameters()) == []
