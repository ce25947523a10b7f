"""Models of ten lines whose states are known, and slow ways to what Rheoscope measures: hooks by name, autograd.grad.

The names here are the tests' own knowledge of the models; the product must find the same from dataflow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

VOCABULARY, WIDTH, HEADS, LENGTH = 61, 16, 2, 8


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


class Wrong(nn.Module):
    """Computes what ``inner`` does, with a backward that is wrong by a factor; 0 detaches."""

    def __init__(self, inner: nn.Module, factor: float, is_before: bool) -> None:
        super().__init__()
        self.inner, self.factor, self.is_before = inner, factor, is_before

    def bent(self, x: Tensor) -> Tensor:
        return x.detach() if self.factor == 0 else _Scaled.apply(x, self.factor)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.bent(x)) if self.is_before else self.bent(self.inner(x))


class Attention(nn.Module):
    """Causal self-attention written out."""

    def __init__(self, bias: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias)
        self.out = nn.Linear(WIDTH, WIDTH, bias)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (t.view(batch, length, HEADS, -1).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        mask = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        weights = (q @ k.transpose(-2, -1) / (width // HEADS) ** 0.5).masked_fill(~mask, float("-inf")).softmax(-1)
        return self.drop(self.out((weights @ v).transpose(1, 2).reshape(batch, length, width)))


class MLP(nn.Sequential):
    """Two projections around a GELU."""

    def __init__(self, bias: bool = True, dropout: float = 0.0) -> None:
        super().__init__(nn.Linear(WIDTH, 32, bias), nn.GELU(), nn.Linear(32, WIDTH, bias), nn.Dropout(dropout))


class Block(nn.Module):
    """Pre, post, parallel, or pre with in-place adds; ``split`` receives each branch's two readings of the state."""

    def __init__(self, kind: str, dropout: float) -> None:
        super().__init__()
        self.kind = kind
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention, self.mlp = Attention(dropout=dropout), MLP(dropout=dropout)

    def forward(self, x: Tensor, split: list[tuple[Tensor, Tensor]] | None = None) -> Tensor:
        if self.kind == "parallel":
            return x + self.attention(self.norm_1(x)) + self.mlp(self.norm_2(x))
        for norm, branch in ((self.norm_1, self.attention), (self.norm_2, self.mlp)):
            skip = read = x
            if split is not None:
                skip, read = x.clone(), x.clone()
                split.append((skip, read))
            if self.kind == "post":
                x = norm(skip + branch(read))
            elif self.kind == "inplace":
                # The norm reads a copy, as after a cast: autograd needs its input unchanged.
                x += branch(norm(x.clone()))
            else:
                x = skip + branch(norm(read))
        return x


class NanoGPT(nn.Module):
    """A hand-written decoder; returns its loss when it is given targets, its logits otherwise."""

    def __init__(self, kind: str = "pre", n_blocks: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(kind, dropout) for _ in range(n_blocks))
        self.norm = nn.Identity() if kind == "post" else nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(
        self, ids: Tensor, targets: Tensor | None = None, split: list[tuple[Tensor, Tensor]] | None = None
    ) -> Tensor:
        x = self.drop(self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device)))
        for block in self.blocks:
            x = block(x) if split is None else block(x, split)
        logits: Tensor = self.head(self.norm(x))
        return logits if targets is None else cross_entropy(logits, targets)


class PostNormEncoder(nn.Module):
    """torch's own post-norm encoder between an embedding and a head."""

    def __init__(self, n_blocks: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 32, dropout, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, n_blocks, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> Tensor:
        logits: Tensor = self.head(self.encoder(self.tokens(ids)))
        return logits if targets is None else cross_entropy(logits, targets)


class Plain(nn.Module):
    """A model with no residual stream: a chain of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, VOCABULARY))

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> Tensor:
        logits: Tensor = self.layers(self.tokens(ids))
        return logits if targets is None else cross_entropy(logits, targets)


def gpt2(dropout: float = 0.0, n_blocks: int = 2) -> nn.Module:
    """Return Hugging Face's GPT-2, tiny, with random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_layer": n_blocks, "n_embd": WIDTH, "n_head": HEADS, "vocab_size": VOCABULARY, "n_positions": LENGTH}
    drops = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    return GPT2LMHeadModel(GPT2Config(**sizes, **drops, bos_token_id=0, eos_token_id=0, loss_type="ForCausalLM"))


def llama(n_blocks: int = 2) -> nn.Module:
    """Return Hugging Face's Llama, tiny, with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"num_hidden_layers": n_blocks, "hidden_size": WIDTH, "num_attention_heads": HEADS}
    more = {"intermediate_size": 32, "vocab_size": VOCABULARY, "max_position_embeddings": LENGTH}
    return LlamaForCausalLM(LlamaConfig(**sizes, **more, loss_type="ForCausalLM"))


def ids(n: int = 3, seed: int = 0) -> Tensor:
    """Return token ids, shape (n, LENGTH)."""
    return torch.randint(0, VOCABULARY, (n, LENGTH), generator=torch.Generator().manual_seed(seed))


def batch_of(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Return keywords on which ``model`` computes a loss."""
    name = "labels" if hasattr(model, "config") else "targets"
    first = "input_ids" if hasattr(model, "config") else "ids"
    return {first: ids(seed=seed), name: ids(seed=seed)}


def loss_of(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return the model's loss on a batch of ``batch_of``."""
    output: Any = model(**batch)
    return output if isinstance(output, Tensor) else output.loss


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of next-token prediction."""
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())


def rms(tensor: Tensor) -> float:
    """Return the root mean square in float64."""
    return float(tensor.detach().double().square().mean().sqrt())


@dataclass(frozen=True)
class Oracle:
    """A model and where, by name, its states (and sums, where they differ) enter or leave modules.

    Attributes:
        make: builds the model; the argument is dropout.
        states: module path and "in" or "out", from state 0 on.
        sums: the same for sums 1 to K; empty where they are the states.
    """

    make: Callable[..., nn.Module]
    states: list[tuple[str, str]]
    sums: list[tuple[str, str]] = field(default_factory=list)


def _pre(paths: list[tuple[str, str]], end: str) -> list[tuple[str, str]]:
    return [(path, "in") for pair in paths for path in pair] + [(end, "in")]


ORACLES: dict[str, Oracle] = {
    "GPT-2": Oracle(
        gpt2,
        _pre([(f"transformer.h.{i}.ln_1", f"transformer.h.{i}.ln_2") for i in range(2)], "transformer.ln_f"),
    ),
    "Llama": Oracle(
        lambda dropout=0.0: llama(),
        _pre(
            [(f"model.layers.{i}.input_layernorm", f"model.layers.{i}.post_attention_layernorm") for i in range(2)],
            "model.norm",
        ),
    ),
    "post-norm encoder": Oracle(
        lambda dropout=0.0: PostNormEncoder(dropout=dropout),
        [("encoder", "in"), *((f"encoder.layers.{i}.norm{j}", "out") for i in range(2) for j in (1, 2))],
        [(f"encoder.layers.{i}.norm{j}", "in") for i in range(2) for j in (1, 2)],
    ),
    "nanoGPT": Oracle(
        lambda dropout=0.0: NanoGPT(dropout=dropout),
        _pre([(f"blocks.{i}.norm_1", f"blocks.{i}.norm_2") for i in range(2)], "norm"),
    ),
    "post-norm nanoGPT": Oracle(
        lambda dropout=0.0: NanoGPT("post", dropout=dropout),
        [("blocks.0.attention", "in"), *((f"blocks.{i}.norm_{j}", "out") for i in range(2) for j in (1, 2))],
        [(f"blocks.{i}.norm_{j}", "in") for i in range(2) for j in (1, 2)],
    ),
    "parallel nanoGPT": Oracle(
        lambda dropout=0.0: NanoGPT("parallel", dropout=dropout),
        [("blocks.0.norm_1", "in"), ("blocks.1.norm_1", "in"), ("norm", "in")],
    ),
}


def captured(model: nn.Module, places: list[tuple[str, str]], batch: dict[str, Tensor]) -> tuple[list[Tensor], Tensor]:
    """Return the tensors at ``places`` of one forward, still in its graph, and the loss."""
    seen: dict[tuple[str, str], Tensor] = {}
    handles = []
    for path, side in places:
        module = model.get_submodule(path)

        def enter(module: nn.Module, args: Any, kwargs: Any, place: tuple[str, str] = (path, side)) -> None:
            seen[place] = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))

        def leave(module: nn.Module, args: Any, output: Any, place: tuple[str, str] = (path, side)) -> None:
            seen[place] = output if isinstance(output, Tensor) else output[0]

        handles.append(
            module.register_forward_pre_hook(enter, with_kwargs=True)
            if side == "in"
            else module.register_forward_hook(leave)
        )
    loss = loss_of(model, batch)
    for handle in handles:
        handle.remove()
    return [seen[place] for place in places], loss


def gradients(model: nn.Module, places: list[tuple[str, str]], batch: dict[str, Tensor]) -> list[Tensor]:
    """Return ``torch.autograd.grad`` of the loss with respect to the tensors at ``places``."""
    tensors, loss = captured(model, places, batch)
    return list(torch.autograd.grad(loss, tensors))
