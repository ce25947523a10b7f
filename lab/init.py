"""Draw the reference transformer's weights."""

from __future__ import annotations

import math

import torch
from torch import nn

from .architecture import Architecture


@torch.no_grad()
def initialise(model: nn.Module, architecture: Architecture, generator: torch.Generator) -> None:
    """Draw every matrix; biases start at 0 and gains at 1."""
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            return  # a model that is only counted
        if parameter.dim() < 2:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
        else:
            parameter.normal_(0.0, _std(name, parameter, architecture), generator=generator)


def _std(name: str, parameter: nn.Parameter, architecture: Architecture) -> float:
    init, fan_out, fan_in = architecture.init, *parameter.shape
    if "embedding" in name:
        if architecture.embedding_std:
            return architecture.embedding_std
        # Where two embeddings are summed, state 0 has unit variance.
        has_two = architecture.positions == "learned"
        return architecture.init_std if init == "normal" else math.sqrt(0.5) if has_two else 1.0
    if init == "normal" or name.startswith("head"):
        std = architecture.init_std
    else:
        std = math.sqrt(2 / (fan_in + fan_out)) if init == "xavier" else math.sqrt(1 / fan_in)
    return std * _depth_factor(name, architecture)


def _depth_factor(name: str, architecture: Architecture) -> float:
    """Return by what the depth scales the init of a matrix (Radford et al. 2019; Wang et al. 2022, DeepNet)."""
    is_last = name.endswith(("output.weight", "down.weight"))
    if architecture.depth_scaling == "gpt2" and is_last:
        return math.sqrt(1 / (2 * architecture.n_blocks))
    carries_values = ".mlp." in name or name.endswith(("value.weight", "output.weight"))
    if carries_values:
        return architecture.deepnorm(of_encoder=name.startswith("encoder."))[1]
    return 1.0
