"""A hook that sees a copy or a view of a state sees a part of its gradient; discovery tells which."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from rheoscope.probes.discovery.dissect import discover
from rheoscope.probes.taps import Taps
from torch import Tensor, nn

WIDTH = 8


class Stream(nn.Module):
    """Pre-norm MLP branches, each of which reads the state in its own way."""

    def __init__(self, read: Callable[[Tensor], Tensor], carry: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.read, self.carry = read, carry
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 16), nn.GELU(), nn.Linear(16, WIDTH)) for _ in range(3)
        )
        self.states: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.states = []
        for norm, mlp in zip(self.norms, self.mlps, strict=True):
            x = self.carry(x)
            x = x + mlp(norm(self.read(x))).view(x.shape)
            self.states.append(x)
        return x


WHOLE = {
    "the state itself": Stream(lambda x: x),
    "a view that all go through": Stream(lambda x: x, lambda x: x.view(-1, WIDTH)),
    "a copy that all go through": Stream(lambda x: x, lambda x: x.clone()),
}
PARTIAL = {
    "a copy for the branch alone": Stream(lambda x: x.clone()),
    "a view for the branch alone": Stream(lambda x: x.view(-1, WIDTH)),
    "a cast for the branch alone": Stream(lambda x: x.double().float()),
}


def inner_states(model: nn.Module) -> list[tuple[str, ...]]:
    """Return what is partial in all branches but the last, whose state leaves the model."""
    anatomy = discover(model, torch.randn(2, 3, WIDTH))
    assert anatomy.n_branches == 3
    return [branch.partial for branch in anatomy.branches[:-1]]


@pytest.mark.parametrize("name", WHOLE)
def test_a_tensor_that_all_readers_go_through_shows_the_whole_gradient(name: str) -> None:
    assert inner_states(WHOLE[name]) == [(), ()]


@pytest.mark.parametrize("name", PARTIAL)
def test_a_tensor_of_one_reader_shows_a_part(name: str) -> None:
    assert inner_states(PARTIAL[name]) == [("state",), ("state",)]


@pytest.mark.parametrize("name", [*WHOLE, *PARTIAL])
def test_every_gradient_that_is_recorded_is_the_whole_one(name: str) -> None:
    model = (WHOLE | PARTIAL)[name]
    batch = torch.randn(2, 3, WIDTH)
    anatomy = discover(model, batch)
    gradients: dict[int, Tensor] = {}
    layout = Taps(model, anatomy, lambda *_: None).layout
    x = batch.clone().requires_grad_()
    seen: dict[object, Tensor] = {}
    modules = dict(model.named_modules())
    for site in layout.sites:
        if site.site == "state" and not site.is_partial:
            hook = capture(seen, site.point)
            module = modules[site.point.module_path]
            if site.point.side == "input":
                module.register_forward_pre_hook(lambda _, args, hook=hook: hook(args[0]))
            else:
                module.register_forward_hook(lambda _, __, output, hook=hook: hook(output))

    model(x).square().sum().backward(retain_graph=True)
    loss = model.states[-1].square().sum()

    for site in layout.sites:
        if site.point in seen and site.site == "state" and 0 < site.depth < 3:
            (expected,) = torch.autograd.grad(loss, model.states[site.depth - 1], retain_graph=True)
            gradients[site.depth] = expected
            assert torch.allclose(seen[site.point].reshape(-1), expected.reshape(-1), rtol=1e-5)
    assert bool(gradients) == (name in WHOLE)


def capture(seen: dict[object, Tensor], point: object) -> Callable[[Tensor], None]:
    """Return what keeps the gradient of the tensor that it is given."""
    return lambda tensor: tensor.register_hook(lambda gradient: seen.__setitem__(point, gradient)) and None


def test_branches_that_write_nothing_are_noted_since_their_adds_prove_nothing() -> None:
    model = Stream(lambda x: x)
    torch.nn.init.zeros_(model.mlps[1][2].weight)
    torch.nn.init.zeros_(model.mlps[1][2].bias)

    anatomy = discover(model, torch.randn(2, 3, WIDTH))

    assert [note for note in anatomy.notes if "1 branches write 0" in note and "block 1" in note]
