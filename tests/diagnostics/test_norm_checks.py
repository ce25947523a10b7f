"""Norms judged by what each does alone; sizes that follow what a branch reads; losses worse than guessing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import NanoGPT, Wrong
from rheoscope.diagnostics.diagnosis import diagnose
from rheoscope.diagnostics.finding import Finding
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.transformer import ReferenceTransformer
from rheoscope.probes.check_up import examine
from rheoscope.probes.recorder import attach
from torch import Tensor, nn
from torch.nn import functional

IDS = torch.randint(4, 61, (2, 12), generator=torch.Generator().manual_seed(0))


def model(**fields: Any) -> ReferenceTransformer:
    given = {"n_blocks": 6, "width": 32, "n_heads": 4, "vocabulary": 61, "context": 12, "init": "xavier"} | fields
    return ReferenceTransformer(Architecture(**given), seed=0)


def loss(output: Any, _: Any) -> Tensor:
    logits = output if isinstance(output, Tensor) else output.logits
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())


def alarms(made: nn.Module) -> list[Finding]:
    return [finding for finding in diagnose(examine(made, IDS, loss)) if finding.severity != "info"]


@pytest.mark.parametrize(
    "fields", [{}, {"norm_placement": "post"}, {"norm_placement": "double"}, {"norm_kind": "rmsnorm"}]
)
def test_an_epsilon_that_shows_in_the_third_digit_alone_is_named(fields: dict[str, Any]) -> None:
    made = model(**fields)
    path = next(name for name, part in made.blocks[3].named_modules() if hasattr(part, "eps"))
    made.blocks[3].get_submodule(path).eps = 0.03
    (found,) = [finding for finding in alarms(made) if finding.code == "norm-epsilon"]
    assert (found.block, found.module_path) == (3, f"blocks.3.{path}")
    assert found.evidence.observed == pytest.approx(0.03, rel=1e-3)
    assert found.evidence.expected == pytest.approx(1e-6, rel=1e-3)


def test_an_epsilon_that_changes_nothing_is_not_named() -> None:
    made = model()
    made.blocks[3].mlp_in.eps = 1e-5
    assert alarms(made) == []


def test_a_norm_whose_gradient_is_scaled_is_named_by_its_path() -> None:
    made = model()
    norm = made.blocks[4].mlp_in
    norm.register_forward_hook(lambda _, __, output: Wrong.bent(Wrong(norm, 0.99, is_before=False), output))
    (found,) = [finding for finding in alarms(made) if finding.code == "norm-backward"]
    assert (found.severity, found.block, found.module_path) == ("error", 4, "blocks.4.mlp_in")
    assert found.evidence.observed == pytest.approx(0.01, rel=1e-3)


def test_a_wrong_backward_that_all_norms_share_is_told_once() -> None:
    class Half(nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return 0.5 * y + 0.5 * y.detach()

    torch.manual_seed(0)
    made = NanoGPT("pre", n_blocks=4)
    for block in made.blocks:
        block.norm_1, block.norm_2 = Half(16), Half(16)
    final = next(name for name, part in made.named_children() if isinstance(part, nn.LayerNorm))
    setattr(made, final, Half(16))
    batch = IDS[:, :8]
    found = diagnose(examine(made, batch, lambda out, _: functional.cross_entropy(out.flatten(0, 1), batch.flatten())))
    (told,) = [finding for finding in found if finding.code == "norm-backward"]
    assert (told.block, told.component) == (None, "norms")
    assert told.evidence.observed == pytest.approx(0.5, rel=1e-3)


def test_one_term_of_a_parallel_block_is_named_once_by_its_path() -> None:
    made = model(is_parallel=True)
    made.blocks[2].attention = Passing(made.blocks[2].attention, 0.95)
    (found,) = alarms(made)
    assert (found.code, found.block) == ("gradient-scaled", 2)
    assert found.module_path.startswith("blocks.2.attention")
    assert found.evidence.observed == pytest.approx(0.95, abs=0.01)


class Passing(nn.Module):
    """Passes what it is given on to ``inner``, whose gradient it scales."""

    def __init__(self, inner: nn.Module, factor: float) -> None:
        super().__init__()
        self.inner, self.factor = inner, factor

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return Wrong.bent(Wrong(self.inner, self.factor, is_before=False), self.inner(*args, **kwargs))


def test_a_first_block_that_reads_a_bare_embedding_is_not_odd() -> None:
    # Without a norm before it attention's logits go with the square of what it reads: 8 squared is 64.
    made = model(norm_placement="post", n_blocks=12)
    embedding = next(part for part in made.modules() if isinstance(part, nn.Embedding))
    with torch.no_grad():
        embedding.weight.mul_(8 / embedding.weight.square().mean().sqrt())
    assert [finding.code for finding in alarms(made) if finding.code in ("attention-logits", "hidden-scale")] == []


@pytest.mark.parametrize(("factor", "expected"), [(1.0, []), (40.0, ["worse-than-guessing"])])
def test_a_trained_model_that_is_sure_of_wrong_answers_is_told(factor: float, expected: list[str]) -> None:
    made = model()
    with torch.no_grad():
        for parameter in made.parameters():  # no gain at 1, no bias at 0: trained, as far as can be told
            parameter.add_(
                0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
        made.head.weight.mul_(factor)
    assert [finding.code for finding in alarms(made)] == expected


@pytest.mark.parametrize("placement", ["reordered", "double"])
def test_dropout_before_the_norm_that_ends_a_branch_is_seen(placement: str) -> None:
    made = model(norm_placement=placement)
    made.blocks[2].mlp = nn.Sequential(made.blocks[2].mlp, nn.Dropout(0.4))
    found = [(finding.code, finding.block, finding.component) for finding in alarms(made)]
    assert ("dropout-odd", 2, "mlp") in found


def test_a_write_that_is_zero_everywhere_is_not_said_to_be_dropped() -> None:
    made = model(dropout=0.1)
    with torch.no_grad():
        made.blocks[2].mlp.down.weight.zero_()
    assert "dropout-odd" not in {finding.code for finding in alarms(made)}


@pytest.mark.parametrize(("at", "expected"), [(0, [("weight-scale", 2)]), (3, [])])
def test_a_weight_is_odd_where_it_began_so_and_not_where_training_took_it(
    tmp_path: Path, at: int, expected: list[tuple[str, int]]
) -> None:
    made = model()
    optimizer = torch.optim.SGD(made.parameters(), lr=1e-3)
    with attach(made.train(), optimizer, folder=tmp_path / "run", every=1) as probe:
        for step in range(6):
            if step == at:
                with torch.no_grad():
                    made.blocks[2].mlp.down.weight.mul_(1.6)
            value = loss(made(IDS), None)
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
            probe.step(value)
    found = [(finding.code, finding.block) for finding in diagnose(probe.recording)]
    assert [each for each in found if each[0] == "weight-scale"] == expected
