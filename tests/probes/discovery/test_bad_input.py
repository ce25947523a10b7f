"""Bad input: one clear sentence, in three parts, and the model is left as it was."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from rheoscope.probes.discovery import discover
from rheoscope.probes.errors import BatchError, DiscoveryError, RheoscopeError
from small_models.mechanics import Scripted
from small_models.parts import LENGTH, WIDTH, Model, batch, seeded
from small_models.placements import Pre
from small_models.streams import Convolutional
from torch import Tensor, nn


class _Raising(Pre):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("no such branch")


class _Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def _meta() -> nn.Module:
    with torch.device("meta"):
        return Model(Pre)


BAD: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], type[RheoscopeError], str]] = {
    "a model that raises": (lambda: Model(_Raising), batch, BatchError, "no such branch"),
    "a batch that does not fit": (lambda: Model(Pre), lambda: torch.zeros(2, 3), BatchError, "float32"),
    "a batch of no known kind": (lambda: Model(Pre), lambda: 3, BatchError, "int"),
    "a batch on another device": (lambda: Model(Pre), lambda: batch().to("meta"), BatchError, "meta"),
    "a convolutional net": (Convolutional, lambda: torch.randn(1, 3, 8, 8), DiscoveryError, "convolution"),
    "no repeated residual adds": (_Plain, lambda: torch.randn(2, 5, WIDTH), DiscoveryError, "no such sum recurs"),
    "meta parameters": (_meta, batch, DiscoveryError, "Materialise"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_bad_input_is_refused_in_one_sentence_of_three_parts(name: str) -> None:
    build, given, kind, told = BAD[name]

    with pytest.raises(kind, match=re.escape(told)) as caught:
        discover(build(), given())

    assert re.match(r"Expected .*, got .*\. [A-Z].*\.$", str(caught.value), re.DOTALL)


@pytest.mark.parametrize("name", ["a model that raises", "a convolutional net", "no repeated residual adds", "success"])
def test_the_model_is_left_untouched(name: str) -> None:
    build, given = (lambda: Model(Pre), batch) if name == "success" else BAD[name][:2]
    model = build()
    model.register_buffer("count", torch.zeros(3))
    model.train()
    next(iter(model.children())).eval()
    given_batch, before = given(), _everything(model)
    next(model.parameters()).grad = gradient = torch.ones_like(next(model.parameters()))

    with contextlib.suppress(RheoscopeError):
        discover(model, given_batch)

    assert next(model.parameters()).grad is gradient
    next(model.parameters()).grad = None
    assert _same(before, _everything(model))


def _everything(model: nn.Module) -> list[Any]:
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()]
    flags = [module.training for module in model.modules()]
    values = [value.clone() for value in model.state_dict().values()]
    versions = [parameter._version for parameter in model.parameters()]
    settings = [torch.backends.mha.get_fastpath_enabled(), torch.is_grad_enabled()]
    return [hooks, flags, versions, settings, *values, torch.get_rng_state()]


def _same(one: list[Any], other: list[Any]) -> bool:
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(one, other, strict=True))


def test_a_buffer_that_the_forward_changes_is_put_back() -> None:
    class Counting(Pre):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x)

    model = Model(Counting)

    discover(model, batch())

    assert [float(block.calls) for block in model.blocks] == [0.0, 0.0, 0.0]  # type: ignore[arg-type]


def test_tensor_tuple_and_mapping_give_the_same_anatomy() -> None:
    model = seeded(lambda: Model(Pre))

    found = [discover(model, given) for given in (batch(), (batch(),), {"ids": batch()})]

    assert found[0] == found[1] == found[2]


def test_quantised_linear_layers_are_seen_through_and_mentioned() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = seeded(lambda: Model(Pre)).eval()
        for block in model.blocks:  # type: ignore[union-attr]
            block.mlp.up = _Int8(block.mlp.up)  # type: ignore[union-attr]

        anatomy = discover(model, batch())

    assert anatomy.is_complete
    assert any("quantised" in note for note in anatomy.notes)


class _Int8(nn.Module):
    """A linear layer whose weights are stored in eight bits."""

    def __init__(self, given: nn.Linear) -> None:
        super().__init__()
        self.scale = float(given.weight.detach().abs().max()) / 127
        whole = (given.weight.detach() / self.scale).round().to(torch.int8)
        self.weight, self.bias = nn.Parameter(whole, requires_grad=False), given.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.float() * self.scale, self.bias)


def test_scripted_blocks_are_found_through_the_dispatcher() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        model = nn.Sequential(*(torch.jit.script(Scripted()) for _ in range(3)))

        anatomy = discover(model, torch.randn(2, LENGTH, WIDTH))

    assert [len(stack.branches) for stack in anatomy.stacks] == [6]
    assert not anatomy.is_complete


def test_compiled_models_are_traced_eagerly() -> None:
    plain = seeded(lambda: Model(Pre))

    anatomy = discover(torch.compile(plain, backend="eager"), batch())

    assert anatomy == discover(plain, batch())
