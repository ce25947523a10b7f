"""Ways to damage a model that no rule was written for, and which nobody looked at while writing one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .planting import replace, turned
from .sizes import HEADS, LENGTH, WIDTH
from .subjects import Subject


def ahead(subject: Subject, block: int, _: float) -> bool:
    """Let attention stand one position ahead: what a position gets is what the next one should have."""
    if "bidirectional" in subject.name:
        return False

    def enter(__: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (args[0].roll(-1, 1), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": kwargs["hidden_states"].roll(-1, 1)}

    attention = subject.model.get_submodule(subject.parts[block].attention)
    attention.register_forward_pre_hook(enter, with_kwargs=True)
    return True


def turned_otherwise(subject: Subject, block: int, severity: float) -> bool:
    """Turn queries and keys of one block by other angles than those of the rest: another base of its rotary embedding."""
    attention = subject.model.get_submodule(subject.parts[block].attention)
    is_rotary = False

    def enter(__: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        nonlocal is_rotary
        given = kwargs.get("position_embeddings")
        if given is None:
            return None
        is_rotary = True
        angles = torch.atan2(given[1].double(), given[0].double())[:, 1:2]  # of position 1: one step
        positions = torch.arange(given[0].shape[1], dtype=torch.float64)[None, :, None]
        turned = (angles * severity * positions).to(given[0].dtype)
        return args, kwargs | {"position_embeddings": (turned.cos(), turned.sin())}

    attention.register_forward_pre_hook(enter, with_kwargs=True)
    with torch.no_grad():
        subject.model(**subject.batch)
    return is_rotary


def other_norm(subject: Subject, block: int, _: float) -> bool:
    """Put an RMSNorm where the siblings have LayerNorms, or a LayerNorm where they have RMSNorms, with the same gain."""
    path = subject.parts[block].norms[block % 2]
    norm: Any = subject.model.get_submodule(path)
    has_mean = isinstance(norm, nn.LayerNorm)
    eps = float(getattr(norm, "eps", None) or getattr(norm, "variance_epsilon", None) or 1e-6)
    made: Any = nn.RMSNorm(WIDTH, eps=eps) if has_mean else nn.LayerNorm(WIDTH, eps=eps, bias=False)
    with torch.no_grad():
        made.weight.copy_(norm.weight if "gemma" not in subject.name else 1 + norm.weight)
    replace(subject.model, path, made)
    return True


def placed_again(subject: Subject, block: int, severity: float) -> bool:
    """Add the position embedding to the stream once more, behind one block."""
    tables = [
        module
        for module in subject.model.modules()
        if isinstance(module, nn.Embedding) and LENGTH <= module.num_embeddings < 2 * LENGTH
    ]
    if len(tables) != 1:
        return False
    table = tables[0]

    def leave(__: nn.Module, ___: Any, output: Any) -> Any:
        stream = output[0] if isinstance(output, tuple) else output
        stream = stream + severity * table.weight[: stream.shape[1]]
        return (stream, *output[1:]) if isinstance(output, tuple) else stream

    subject.model.get_submodule(subject.parts[block].block).register_forward_hook(leave)
    return True


def always_dropping(subject: Subject, block: int, severity: float) -> bool:
    """Drop a share of what the attention of one block writes, in evaluation as well."""

    def leave(__: nn.Module, ___: Any, output: Any) -> Any:
        written = output[0] if isinstance(output, tuple) else output
        written = functional.dropout(written, severity, training=True)
        return (written, *output[1:]) if isinstance(output, tuple) else written

    subject.model.get_submodule(subject.parts[block].attention).register_forward_hook(leave)
    return True


def head_silent(subject: Subject, block: int, _: float) -> bool:
    """Let the first head of one block give nothing to its last projection."""
    size = WIDTH // HEADS

    def enter(__: nn.Module, args: tuple[Any, ...]) -> Any:
        given: Tensor = args[0]
        return (torch.cat([0 * given[..., :size], given[..., size:]], -1), *args[1:])

    subject.model.get_submodule(subject.parts[block].attention_out).register_forward_pre_hook(enter)
    return True


def behind(subject: Subject, block: int, _: float) -> bool:
    """Let the MLP of one block read the position before its own."""
    path = subject.parts[block].mlp
    if not path:
        return False
    mlp = subject.model.get_submodule(path)
    mlp.register_forward_pre_hook(lambda _, args: (args[0].roll(1, 1), *args[1:]) if args else None)
    return True


def norm_turned(subject: Subject, block: int, severity: float) -> bool:
    """Scale the gradient that comes to one norm."""
    change = turned(severity)
    norm = subject.model.get_submodule(subject.parts[block].norms[block % 2])
    norm.register_forward_hook(lambda _, args, output: change(output, args[0]))
    return True


def norm_halved(subject: Subject, block: int, _: float) -> bool:
    """Let one norm give bfloat16, as a cast in the wrong place does."""
    norm = subject.model.get_submodule(subject.parts[block].norms[block % 2])
    norm.register_forward_hook(lambda _, __, output: output.bfloat16().to(output.dtype))
    return True


def twice(subject: Subject, block: int, _: float) -> bool:
    """Run the MLP of one block on its own result once more."""
    path = subject.parts[block].mlp
    if not path:
        return False
    mlp: Any = subject.model.get_submodule(path)
    inner = mlp.forward
    mlp.forward = lambda *args, **kwargs: inner(inner(*args, **kwargs))
    return True


class _OverPositions(nn.Module):
    """Norms each channel over all positions, in place of each position over all channels."""

    def __init__(self, gain: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(gain.clone())

    def forward(self, x: Tensor) -> Tensor:
        return x * x.square().mean(1, keepdim=True).add(1e-6).rsqrt() * self.weight


def normed_over_positions(subject: Subject, block: int, _: float) -> bool:
    """Norm over the wrong axis."""
    path = subject.parts[block].norms[block % 2]
    norm: Any = subject.model.get_submodule(path)
    replace(subject.model, path, _OverPositions(norm.weight.detach() + (1.0 if "gemma" in subject.name else 0.0)))
    return True


def normed_again(subject: Subject, block: int, _: float) -> bool:
    """Norm what the attention of one block writes."""

    def leave(__: nn.Module, ___: Any, output: Any) -> Any:
        written = output[0] if isinstance(output, tuple) else output
        written = functional.rms_norm(written, written.shape[-1:])
        return (written, *output[1:]) if isinstance(output, tuple) else written

    subject.model.get_submodule(subject.parts[block].attention).register_forward_hook(leave)
    return True


def samples_mixed(subject: Subject, block: int, _: float) -> bool:
    """Let the MLP of one block read the other sample of the batch."""
    path = subject.parts[block].mlp
    if not path:
        return False
    mlp = subject.model.get_submodule(path)
    mlp.register_forward_pre_hook(lambda _, args: (args[0].roll(1, 0), *args[1:]) if args else None)
    return True


def linear_mlp(subject: Subject, block: int, _: float) -> bool:
    """Leave the activation of one block out."""
    parts = subject.parts[block]
    if not parts.mlp or not parts.mlp_in.startswith(f"{parts.mlp}."):
        return False
    enters, leaves = (subject.model.get_submodule(path) for path in (parts.mlp_in, parts.mlp_out))
    given: list[Tensor] = []
    if enters.weight.shape != leaves.weight.T.shape or "swiglu" in subject.name:  # type: ignore[union-attr, operator]
        return False
    enters.register_forward_hook(lambda _, __, output: given.append(output))
    leaves.register_forward_pre_hook(lambda _, args: (given.pop(), *args[1:]))
    return True


def one_token_lost(subject: Subject, block: int, _: float) -> bool:
    """Let nothing of what the attention of one block writes reach the first position."""

    def leave(__: nn.Module, ___: Any, output: Any) -> Any:
        written = output[0] if isinstance(output, tuple) else output
        written = torch.cat([0 * written[:, :1], written[:, 1:]], 1)
        return (written, *output[1:]) if isinstance(output, tuple) else written

    subject.model.get_submodule(subject.parts[block].attention).register_forward_hook(leave)
    return True


def values_rounded(subject: Subject, block: int, _: float) -> bool:
    """Keep what the MLP of one block writes in 8 bits: 127 steps on either side, with a gradient straight through."""
    path = subject.parts[block].mlp
    if not path:
        return False

    def leave(__: nn.Module, ___: Any, output: Tensor) -> Tensor:
        step = output.detach().abs().max() / 127
        return output + ((output / step).round() * step - output).detach()

    subject.model.get_submodule(path).register_forward_hook(leave)
    return True


def shared_mlp(subject: Subject, block: int, _: float) -> bool:
    """Give one block the MLP of the block before it."""
    if block == 0 or not subject.parts[block].mlp:
        return False
    replace(subject.model, subject.parts[block].mlp, subject.model.get_submodule(subject.parts[block - 1].mlp))
    return True


def rank_one(subject: Subject, block: int, _: float) -> bool:
    """Start the last projection of one MLP with a matrix of rank one, as large as it was."""
    weight: Any = subject.model.get_submodule(subject.parts[block].mlp_out).weight
    with torch.no_grad():
        made = torch.outer(torch.randn(weight.shape[0]), torch.randn(weight.shape[1]))
        weight.copy_(made * weight.std() / made.std())
    return True


def constant(subject: Subject, block: int, _: float) -> bool:
    """Start the first projection of one MLP with one number, as large as its weights were: its units stay alike."""
    weight: Any = subject.model.get_submodule(subject.parts[block].mlp_in).weight
    with torch.no_grad():
        weight.fill_(float(weight.square().mean().sqrt()))
    return True


def gradient_clamped(subject: Subject, block: int, _: float) -> bool:
    """Clamp the gradient of what one attention writes to half its RMS."""

    def leave(__: nn.Module, ___: Any, output: Any) -> None:
        written = output[0] if isinstance(output, tuple) else output
        if written.requires_grad:
            written.register_hook(lambda g: g.clamp(-(m := 0.5 * float(g.square().mean().sqrt())), m))

    subject.model.get_submodule(subject.parts[block].attention).register_forward_hook(leave)
    return True


def keys_behind(subject: Subject, block: int, _: float) -> bool:
    """Give every position of one attention the key of the position before it."""
    if subject.fused_qkv:
        return False
    key = subject.model.get_submodule(subject.parts[block].key)
    key.register_forward_hook(lambda _, __, output: torch.cat([output[:, :1], output[:, :-1]], 1))
    return True
