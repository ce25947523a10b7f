"""One module in many places, arguments by keyword, outputs of any shape, replicas, names behind wrappers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import HEADS, ORACLES, VOCABULARY, WIDTH, NanoGPT, batch_of, cross_entropy, gradients, llama, loss_of, rms
from rheoscope.probes.errors import ProbeError
from rheoscope.probes.recorder import attach
from torch import Tensor, nn

from robustness.loops import Counter, events, parameters, rows, train


def test_row_19_a_block_that_runs_four_times_has_four_places(tmp_path: Path) -> None:
    from transformers import AlbertConfig, AlbertForMaskedLM

    sizes = {"hidden_size": WIDTH, "embedding_size": WIDTH, "num_attention_heads": HEADS, "intermediate_size": 32}
    more = {
        "num_hidden_layers": 4,
        "vocab_size": VOCABULARY,
        "hidden_dropout_prob": 0,
        "attention_probs_dropout_prob": 0,
    }
    model = AlbertForMaskedLM(AlbertConfig(**sizes, **more)).train()
    block = model.albert.encoder.albert_layer_groups[0].albert_layers[0]
    states: list[Tensor] = []
    handle = block.register_forward_hook(
        lambda _, args, output: states.append(output if isinstance(output, Tensor) else output[0])
    )
    expected = [rms(gradient) for gradient in torch.autograd.grad(loss_of(model, batch_of(model)), states)]
    handle.remove()
    assert len(states) == 4
    assert len({name for name, module in model.named_modules() if module is block}) == 1, "one name for all four"

    probe = train(model, tmp_path / "run")

    found = rows(probe, "state", "backward")
    assert found["rms"].tolist()[2::2] == pytest.approx(expected, rel=1e-6)
    assert found["block"].tolist()[1:] == [0, 0, 1, 1, 2, 2, 3, 3]
    last = found[found["depth"] % 2 == 0].iloc[1:]
    # The last is seen where the model reads it.
    assert last["module_path"].iloc[:3].nunique() == 1
    assert last["call"].tolist() == [0, 1, 2, 0]


class Record(nn.Module):
    """A block that takes its arguments by keyword and returns a dictionary with a tuple in it."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *, hidden: Tensor, flags: dict[str, bool]) -> dict[str, Any]:
        return {"flags": flags, "result": (None, self.block(hidden))}


class Keyworded(NanoGPT):
    """nanoGPT that hands everything on by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Record(block) for block in self.blocks)

    def forward(self, ids: Tensor, targets: Tensor | None = None, split: None = None) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(hidden=x, flags={"plain": True})["result"][1]
        logits: Tensor = self.head(self.norm(x))
        return logits if targets is None else cross_entropy(logits, targets)


def test_row_20_arguments_by_keyword_and_results_in_dictionaries_are_seen(tmp_path: Path) -> None:
    model = Keyworded().train()
    given: list[tuple[Any, ...]] = []
    model.blocks[0].register_forward_hook(lambda _, args, output: given.append(args))
    handle = model.blocks[0].register_full_backward_hook(lambda *_: given.append(("backward",)))
    places = [("blocks.0.block.norm_1", "in"), ("blocks.0.block.norm_2", "in"), ("blocks.1.block.norm_1", "in")]
    places += [("blocks.1.block.norm_2", "in"), ("norm", "in")]
    with pytest.warns(UserWarning, match="For backward hooks to be called"):
        expected = [rms(gradient) for gradient in gradients(model, places, batch_of(model))]
    handle.remove()
    assert given == [()], "naive hooks see no argument, and of a dictionary no gradient"

    probe = train(model, tmp_path / "run")

    assert rows(probe, "state", "backward")["rms"].tolist() == pytest.approx(expected, rel=1e-6)


def test_row_20_attention_that_gets_all_by_keyword_is_measured(tmp_path: Path) -> None:
    model = llama().train()
    given: list[tuple[Any, ...]] = []
    model.model.layers[0].self_attn.register_forward_pre_hook(lambda _, args: given.append(args))
    expected = [rms(gradient) for gradient in gradients(model, ORACLES["Llama"].states, batch_of(model))]
    assert given == [()]

    probe = train(model, tmp_path / "run")

    assert rows(probe, "state", "backward")["rms"].tolist() == pytest.approx(expected, rel=1e-6)
    assert set(probe.recording.table("attention")["head"]) == set(range(HEADS))


def test_row_33_data_parallel_is_refused_and_its_replicas_are_not_counted(tmp_path: Path) -> None:
    model = NanoGPT().train()
    with pytest.raises(ProbeError, match=r"nn\.DataParallel copies its modules at every forward"):
        attach(nn.DataParallel(model), folder=tmp_path / "refused")

    naive = Counter(model)
    with attach(model, every=1, folder=tmp_path / "run", strict=True) as probe:
        loss_of(model, batch_of(model)).backward()
        replica = model._replicate_for_data_parallel()
        replica._parameters = model._parameters
        for name, child in model._modules.items():
            replica._modules[name] = child
        loss_of(replica, batch_of(model)).backward()
        probe.step()
    naive.remove()

    assert naive.calls[0] >= 2, "the replica calls the hooks of the model"
    assert probe.recording.table("steps")["micro_batches"].tolist() == [1]
    assert events(probe) == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_row_37_names_of_a_compiled_model_are_those_of_the_model_inside(tmp_path: Path) -> None:
    model = NanoGPT().train()
    compiled = torch.compile(model, backend="eager")
    assert next(iter(dict(compiled.named_parameters()))) == "_orig_mod.tokens.weight"

    probe = train(compiled, tmp_path / "run", [torch.optim.SGD(model.parameters(), lr=0.1)])

    table = parameters(probe)
    assert sorted(table.index) == sorted(name for name, _ in model.named_parameters())
    assert not any("_orig_mod" in path for path in probe.recording.table("activations")["module_path"].dropna())
    assert probe.recording.manifest["model"]["class_name"] == "NanoGPT"
