"""Padding is left out of every sum: what is recorded is what float64 says of the real tokens alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from kernel_cases import DTYPES, STATISTICS, differences, oracle
from oracles import LENGTH, VOCABULARY, WIDTH, gpt2, ids
from rheoscope.probes.anatomy import Anatomy, Branch, Stack
from rheoscope.probes.discovery import discover
from rheoscope.probes.padding import RealTokens, RealTokensThere, Unpadded, masks_of, meter
from rheoscope.probes.recorder import attach
from rheoscope.probes.recording import Recording
from rheoscope.probes.statistics import Sheet, statistics
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

N_REAL = (8, 3, 5)  # tokens of each sequence
IS_REAL = torch.arange(LENGTH) < torch.tensor(N_REAL)[:, None]
MASK = IS_REAL.long()
PAD = VOCABULARY - 1


class Padded(nn.Module):
    """Two feed-forward blocks, so that no token sees another one; batch first, or with all tokens on one axis."""

    def __init__(self, is_flat: bool) -> None:
        super().__init__()
        self.is_flat = is_flat
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH)) for _ in range(2)
        )
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, ids: Tensor, targets: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.tokens(ids.flatten() if self.is_flat else ids)
        for norm, mlp in zip(self.norms, self.mlps, strict=True):
            x = x + mlp(norm(x))
        # Also the padding's own loss: its gradients are not 0.
        losses = functional.cross_entropy(
            self.head(self.norm(x)).reshape(-1, VOCABULARY), targets.flatten(), reduction="none"
        )
        is_real = torch.ones_like(losses) if attention_mask is None else attention_mask.flatten()
        return torch.where(is_real > 0, losses, 3 * losses).mean()


PLACES = {  # site, depth -> module and side
    ("state", 0): ("norms.0", "in"),
    ("state", 1): ("norms.1", "in"),
    ("state", 2): ("norm", "in"),
    ("write", 1): ("mlps.0", "out"),
    ("write", 2): ("mlps.1", "out"),
    ("branch_input", 1): ("norms.0", "out"),
    ("hidden", 2): ("mlps.1.2", "in"),
    ("final_norm", 3): ("norm", "out"),
    ("logits", 3): ("head", "out"),
}


def by_hand(model: nn.Module, batch: dict[str, Tensor]) -> dict[tuple[str, int], tuple[Tensor, Tensor]]:
    """Return, for every place, the tensor and the gradient of the loss, tokens on one axis."""
    seen: dict[tuple[str, int], Tensor] = {}
    handles = []
    for place, (path, side) in PLACES.items():

        def keep(module: nn.Module, args: Any, output: Any, place: Any = place, side: str = side) -> None:
            seen[place] = args[0] if side == "in" else output

        handles.append(model.get_submodule(path).register_forward_hook(keep))
    loss = model(**batch)
    found = torch.autograd.grad(loss, list(seen.values()))
    for handle in handles:
        handle.remove()
    return {
        place: (tensor.detach().reshape(-1, tensor.shape[-1]), gradient.reshape(-1, tensor.shape[-1]))
        for (place, tensor), gradient in zip(seen.items(), found, strict=True)
    }


def recorded(model: nn.Module, batch: dict[str, Tensor], anatomy: Anatomy, folder: Path) -> Recording:
    with attach(model, every=1, folder=folder, strict=True, anatomy=anatomy) as probe:
        output = model(**batch)
        (output if isinstance(output, Tensor) else output.loss).backward()
        probe.step()
    model.zero_grad()
    return probe.recording


def padded(is_flat: bool, *, is_planted: bool) -> tuple[Padded, dict[str, Tensor], Anatomy]:
    torch.manual_seed(0)
    model = Padded(is_flat).train()
    values = ids() % PAD
    batch = {"ids": values, "targets": values, "attention_mask": MASK}
    anatomy = discover(model, batch)
    batch["ids"] = torch.where(IS_REAL, values, PAD)
    if is_planted:
        model.tokens.weight.data[PAD] = math.nan
    return model, batch, anatomy


@pytest.mark.parametrize("is_planted", [False, True])
@pytest.mark.parametrize("is_flat", [False, True])
def test_every_statistic_is_that_of_the_real_tokens(is_flat: bool, is_planted: bool, tmp_path: Path) -> None:
    model, batch, anatomy = padded(is_flat, is_planted=is_planted)
    tensors = by_hand(model, batch)
    # What is planted would be seen.
    assert any(torch.isnan(tensor).any() for pair in tensors.values() for tensor in pair) == is_planted

    rows = recorded(model, batch, anatomy, tmp_path / "run").table("activations")

    for (site, depth), pair in tensors.items():
        for direction, tensor in zip(("forward", "backward"), pair, strict=True):
            chosen = rows[(rows["site"] == site) & (rows["depth"] == depth) & (rows["direction"] == direction)]
            real = tensor[IS_REAL.flatten()]
            found = {name: float(chosen[name].iloc[0]) for name in STATISTICS}
            for name in ("mean_share", "channel_absmean"):
                if math.isnan(found[name]):  # not asked for at this site
                    found[name] = oracle(real)[name]
            assert chosen["n"].tolist() == [real.numel()]
            assert differences(found, real) == [], (site, depth, direction)


def test_both_paths_of_the_gradient_are_those_of_the_real_tokens(tmp_path: Path) -> None:
    model, batch, anatomy = padded(is_flat=False, is_planted=True)
    tensors = by_hand(model, batch)

    paths = recorded(model, batch, anatomy, tmp_path / "run").table("gradient_paths").sort_values("depth")

    for depth, found in zip((1, 2), paths.itertuples(), strict=True):
        skip = tensors["state", depth][1][IS_REAL.flatten()].double()
        branch = tensors["state", depth - 1][1][IS_REAL.flatten()].double() - skip
        assert found.skip_rms == pytest.approx(float(skip.square().mean().sqrt()), rel=1e-5)
        assert found.branch_rms == pytest.approx(float(branch.square().mean().sqrt()), rel=1e-5)
        assert found.cosine == pytest.approx(
            torch.cosine_similarity(skip.flatten(), branch.flatten(), 0).item(), abs=1e-5
        )


def test_what_a_short_stream_rounds_away_is_that_of_the_real_tokens(tmp_path: Path) -> None:
    model, batch, anatomy = padded(is_flat=False, is_planted=True)
    model.bfloat16()
    tensors = by_hand(model, batch)

    rows = recorded(model, batch, anatomy, tmp_path / "run").table("activations")

    rows = rows[(rows["site"] == "write") & (rows["direction"] == "forward")].sort_values("depth")
    for depth, found in zip((1, 2), rows["rounded_share"], strict=True):
        before, write, after = (
            tensors[place][0][IS_REAL.flatten()].double()
            for place in (("state", depth - 1), ("write", depth), ("state", depth))
        )
        expected = (after - before - write).square().sum() / write.square().sum()
        assert found == pytest.approx(float(expected), rel=1e-3)


def test_a_mask_without_padding_changes_nothing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = gpt2().train()
    batch = {"input_ids": ids(), "labels": ids()}
    anatomy = discover(model, batch)
    expected = recorded(model, batch, anatomy, tmp_path / "plain")

    found = recorded(model, {**batch, "attention_mask": torch.ones_like(ids())}, anatomy, tmp_path / "ones")

    for table in ("activations", "gradient_paths"):
        pd.testing.assert_frame_equal(found.table(table), expected.table(table))


def test_padding_has_no_part_in_what_a_real_model_records(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = gpt2().train()
    batch = {"input_ids": ids(), "labels": torch.where(IS_REAL, ids(), -100), "attention_mask": MASK}
    anatomy = discover(model, batch)
    expected = recorded(model, batch, anatomy, tmp_path / "one")
    other = {**batch, "input_ids": torch.where(IS_REAL, ids(), 5)}

    found = recorded(model, other, anatomy, tmp_path / "other")

    rows = expected.table("activations")
    assert set(rows["n"] % sum(N_REAL)) == {0}
    pd.testing.assert_frame_equal(found.table("activations"), rows)


@pytest.mark.filterwarnings("ignore:The .grad attribute", "ignore::DeprecationWarning")
def test_a_graph_leaves_padding_out_as_eager_hooks_do(tmp_path: Path) -> None:
    model, batch, anatomy = padded(is_flat=False, is_planted=False)
    expected = recorded(model, batch, anatomy, tmp_path / "eager").table("activations")
    torch._dynamo.reset()

    called = torch.compile(model, backend="aot_eager")

    with attach(called, every=1, folder=tmp_path / "graph", strict=True, anatomy=anatomy) as probe:
        called(**batch).backward()
        probe.step()

    found = probe.recording.table("activations")
    keys = ["depth", "site", "direction", "module_path"]
    assert "inside the graph" in probe.recording.table("events")["sentence"][0]
    found, expected = (frame.sort_values(keys).reset_index(drop=True) for frame in (found, expected))
    pd.testing.assert_frame_equal(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [RealTokens, RealTokensThere])
@pytest.mark.parametrize("shape", [(3, LENGTH, 40), (3 * LENGTH, 40), (3, LENGTH, 2, 20), (3 * LENGTH, 2, 20)])
def test_one_row_holds_the_sums_of_real_tokens(
    shape: tuple[int, ...], kind: type[RealTokens], dtype: torch.dtype
) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 0.3
    values[values.abs() < 0.2] = 0.0
    tensor = values.to(dtype)
    rows = tensor if shape[0] > 3 else tensor.flatten(0, 1)
    rows[~IS_REAL.flatten()] = math.nan
    sheet = Sheet(1, tensor.device)

    Unpadded(sheet, [kind(MASK)]).measure(0, tensor, flags=3)

    found = {name: float(value[0]) for name, value in statistics(sheet.values).items()}
    assert sheet.values[0, 0] == rows[0].numel() * sum(N_REAL)
    assert differences(found, rows[IS_REAL.flatten()]) == []


def test_a_tensor_on_other_axes_counts_whole() -> None:
    tensor = torch.randn(4, WIDTH)
    sheet, whole = Sheet(1, tensor.device), Sheet(1, tensor.device)

    Unpadded(sheet, [RealTokens(MASK)]).measure(0, tensor)

    whole.measure(0, tensor)
    assert torch.equal(sheet.values, whole.values)


class _Asked(TorchDispatchMode):
    """Lists the operations that make a host wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal"):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


def test_on_another_device_nobody_waits_for_the_mask() -> None:
    tensor = torch.randn(3, LENGTH, WIDTH)
    sheet, pair = Sheet(1, tensor.device), torch.zeros(2, dtype=torch.float64)

    with _Asked() as asked:
        unpadded = Unpadded(sheet, [RealTokensThere(MASK)])
        unpadded.measure(0, tensor, flags=3)
        unpadded.measure_beside(0, tensor, tensor, 1.0, pair)

    assert asked.found == []


def branch(stack: int, depth: int, kind: Any) -> Branch:
    return Branch(stack, 0, depth, kind, "pre", "layernorm")


def test_the_tokens_of_a_stack_that_reads_another_have_a_mask_of_their_own() -> None:
    encoder = Stack(0, (branch(0, 1, "attention"),))
    decoder = Stack(1, (branch(1, 1, "attention"), branch(1, 2, "cross_attention")))
    theirs = torch.ones(3, 4)
    given = {"attention_mask": MASK, "decoder_attention_mask": theirs}

    assert masks_of(Anatomy((encoder, decoder)), given) == {0: MASK, 1: theirs}
    assert masks_of(Anatomy((encoder, decoder)), {"attention_mask": MASK}) == {0: MASK}
    assert masks_of(Anatomy((Stack(0, decoder.branches),)), {"attention_mask": MASK}) == {0: MASK}
    assert masks_of(Anatomy((encoder,)), {"attention_mask": MASK[:, None, None]}) == {}


def test_a_mask_of_ones_in_the_hosts_memory_takes_the_plain_way() -> None:
    sheet = Sheet(2, torch.device("cpu"))

    assert meter(sheet, [0], {0: torch.ones(3, LENGTH)}) is sheet
    assert meter(sheet, [1], {0: MASK}) is not sheet
