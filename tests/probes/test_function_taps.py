"""The function mode looks, and touches nothing."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import rheoscope as rs
import torch
from oracles import NanoGPT, PostNormEncoder, batch_of, gpt2, loss_of
from rheoscope.probes.function_mode import put_on, take_off
from rheoscope.probes.function_taps import MOST_FORWARDS, FunctionTaps
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint


def hooked(model: nn.Module, taps: FunctionTaps) -> None:
    """Let the model begin and end its forwards as the probe does."""
    taps.attach()
    model.register_forward_pre_hook(lambda module, args, kwargs: taps.begin(args, kwargs), with_kwargs=True)
    model.register_forward_hook(
        lambda module, args, output: taps.end(failed=output is None),
        always_call=True,
    )


def taps_of(model: nn.Module) -> FunctionTaps:
    return FunctionTaps(model, rs.discover(model, batch_of(model)))


@pytest.mark.parametrize("make", [gpt2, NanoGPT, PostNormEncoder])
def test_training_stays_bit_identical(make: Any) -> None:
    plain = make(dropout=0.1)
    watched = copy.deepcopy(plain)
    taps = taps_of(watched)
    hooked(watched, taps)
    states = []
    for model in (plain, watched):
        torch.manual_seed(1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for seed in range(20):
            loss_of(model, batch_of(model, seed)).backward()
            optimizer.step()
            optimizer.zero_grad()
            if model is watched:
                assert len(taps.take()["attention"]) == 4
        states.append((model.state_dict(), torch.get_rng_state()))

    (ours, rng), (theirs, their_rng) = states
    assert torch.equal(rng, their_rng)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


class Copies(TorchDispatchMode):
    """Counts copies of one number to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.n += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("make", [gpt2, NanoGPT, PostNormEncoder])
def test_nothing_waits_for_the_device_in_a_forward(make: Any) -> None:
    model = make()
    taps = taps_of(model)
    with Copies() as without:
        model(**batch_of(model))

    with Copies() as copies, taps.watching():
        model(**batch_of(model))

    assert copies.n == without.n
    assert len(taps.take()["attention"]) == 4


class Rescued(nn.Module):
    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        self.inner, self.use_reentrant = NanoGPT(), use_reentrant

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> Tensor:
        x = self.inner.tokens(ids)
        for block in self.inner.blocks:
            x = checkpoint(block, x, use_reentrant=self.use_reentrant)
        return self.inner.head(self.inner.norm(x)).square().mean()


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_what_checkpointing_computes_again_is_not_measured_again(use_reentrant: bool) -> None:
    model = Rescued(use_reentrant)
    taps = taps_of(model)
    taps.attach()

    taps.begin()
    loss = model(**batch_of(model))
    loss.backward()
    taps.end()

    assert [(row["block"], row["head"]) for row in taps.take()["attention"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_a_forward_that_fails_is_forgotten_and_the_mode_leaves() -> None:
    model = gpt2()
    taps = taps_of(model)
    hooked(model, taps)
    with pytest.raises(IndexError):
        model(input_ids=torch.full((2, 4), 10_000))
    model(**batch_of(model))

    rows = taps.take()["attention"]

    assert torch._C._len_torch_function_stack() == 0
    assert [row["micro_step"] for row in rows] == [0] * 4


def test_micro_batches_are_kept_apart_and_their_number_is_bounded() -> None:
    model = NanoGPT()
    taps = taps_of(model)
    hooked(model, taps)
    for _ in range(MOST_FORWARDS + 2):
        model(**batch_of(model))

    rows = taps.take()["attention"]

    assert {row["micro_step"] for row in rows} == set(range(MOST_FORWARDS))
    assert len(rows) == 4 * MOST_FORWARDS
    assert taps.take()["attention"] == []


def test_neither_graph_nor_activations_are_kept() -> None:
    model = NanoGPT()
    taps = taps_of(model)
    kept: list[weakref.ref[Tensor]] = []
    model.blocks[0].attention.qkv.register_forward_hook(lambda m, a, output: kept.append(weakref.ref(output)))
    with taps.watching():
        loss = loss_of(model, batch_of(model))

    del loss
    gc.collect()

    assert [tensor() for tensor in kept] == [None]


def test_a_measurement_that_fails_lets_the_forward_go_on() -> None:
    model, said = NanoGPT(), []

    def guard(where: str, action: Any) -> None:
        try:
            action()
        except RuntimeError as error:
            said.append((where, str(error)))

    taps = FunctionTaps(model, rs.discover(model, batch_of(model)), guard)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(taps.attention, "_add", lambda *_: (_ for _ in ()).throw(RuntimeError("broken")))
        with taps.watching():
            model(**batch_of(model))

    assert ("attention", "broken") in said
    assert taps.take()["attention"] == []


def test_other_modes_keep_their_order() -> None:
    class Other(TorchFunctionMode):
        pass

    below, ours, above = Other(), Other(), Other()
    for mode in (below, ours, above):
        put_on(mode)

    take_off(ours)

    stack = [torch._C._get_function_stack_at(i) for i in range(torch._C._len_torch_function_stack())]
    take_off(below)
    take_off(above)
    assert stack == [below, above]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_block_runs_as_it_is_and_is_measured_in_eager_stance() -> None:
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    counter = CompileCounter()
    model = NanoGPT()
    taps = taps_of(model)
    plain = model(**batch_of(model))
    for block in model.blocks:
        block.compile(backend=counter, fullgraph=True)
    with taps.watching():
        compiled = model(**batch_of(model))
    taps.take()
    n_graphs = counter.frame_count

    with torch.compiler.set_stance("force_eager"), taps.watching():
        eager = model(**batch_of(model))

    assert torch.allclose(plain, compiled)
    assert torch.equal(plain, eager)
    assert counter.frame_count == n_graphs
    assert len(taps.take()["attention"]) == 4


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flexible_attention_is_measured() -> None:
    from torch.nn.attention.flex_attention import flex_attention

    class Flexible(nn.Module):
        def forward(self, q: Tensor) -> Tensor:
            return flex_attention(q, q, q, score_mod=lambda score, b, h, i, j: 2 * torch.tanh(score / 2) + 0.1 * h)

    q = torch.randn(2, 3, 8, 16)
    taps = FunctionTaps(Flexible(), rs.Anatomy())
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), taps.watching():
        Flexible()(q)

    rows = taps.take()["attention"]

    largest = (2 * torch.tanh(q @ q.mT / 4 / 2)).amax((0, 2, 3)) + 0.1 * torch.arange(3)
    assert [row["logit_max"] for row in rows] == pytest.approx(largest.tolist(), rel=1e-5)
    assert {row["stack"] for row in rows} == {-1}
