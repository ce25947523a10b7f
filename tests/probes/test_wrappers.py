"""What is wrapped has the names that it has without its wrapper."""

from __future__ import annotations

import torch
from oracles import NanoGPT, ids
from rheoscope.probes.discovery import discover
from rheoscope.probes.wrappers import bare, here, is_summand, own_name
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper


def test_wrappers_leave_no_trace_in_names() -> None:
    name = "blocks.0._checkpoint_wrapped_module.mlp._orig_mod.0._fsdp_wrapped_module.weight"

    assert own_name(name) == "blocks.0.mlp.0.weight"
    assert own_name("base_model.model.module.weight") == "base_model.model.module.weight"  # real paths


def test_checkpointed_blocks_have_the_anatomy_of_plain_ones() -> None:
    plain, wrapped = NanoGPT(), NanoGPT()
    wrapped.load_state_dict(plain.state_dict())
    wrapped.blocks = nn.ModuleList(checkpoint_wrapper(block) for block in wrapped.blocks)

    assert discover(wrapped, ids()) == discover(plain, ids())


def test_a_compiled_model_is_found_inside_its_wrapper() -> None:
    model = NanoGPT()

    assert bare(torch.compile(model, backend="eager")) is model
    assert bare(model) is model


def test_a_plain_tensor_is_here_and_whole() -> None:
    tensor = torch.ones(2)

    assert here(tensor) is tensor
    assert not is_summand(tensor)
