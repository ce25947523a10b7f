"""Models to plant faults in: the reference transformer, Hugging Face classes, and ones written by hand with names at random."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.transformer import ReferenceTransformer
from torch import Tensor, nn
from torch.nn import functional

from .handwritten import HandModel
from .sizes import BATCH, HEADS, HIDDEN, LENGTH, VOCABULARY, WIDTH


@dataclass(frozen=True)
class Parts:
    """Paths of one block's parts, in the model's own names; "" where it has none.

    Attributes:
        block: the block itself; its first argument is the stream.
        attention: the attention branch; its first argument is what it reads.
        mlp: the MLP branch.
        norms: the norms before, or after, the two branches.
        query: a projection whose output starts with the queries.
        key: one that makes keys; that of ``query`` where they are fused.
        attention_out: the last projection of attention.
        mlp_in: the first of the MLP.
        mlp_out: its last.
    """

    block: str
    attention: str
    mlp: str
    norms: tuple[str, str]
    query: str
    key: str
    attention_out: str
    mlp_in: str
    mlp_out: str


@dataclass
class Subject:
    """A model with a batch, a loss and the places where faults can be planted."""

    name: str
    model: nn.Module
    batch: dict[str, Tensor]
    parts: list[Parts]
    embedding: str
    head: str
    fused_qkv: bool = False
    loss: Callable[[Any, Any], Tensor] = field(default=lambda output, batch: own_loss(output, batch))
    groups: list[dict[str, Any]] = field(default_factory=list)


def own_loss(output: Any, batch: Any) -> Tensor:
    """Return next-token cross-entropy, whatever the model returns."""
    logits = output if isinstance(output, Tensor) else output.logits
    ids = batch["input_ids"] if "input_ids" in batch else batch["tokens"]
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def subject(name: str, seed: int, n_blocks: int = 6) -> Subject:
    """Return the subject of that name, fresh from its own init."""
    torch.manual_seed(seed)
    make = REFERENCE.get(name)
    if make is not None:
        return _reference(name, make, seed, n_blocks)
    return _HUGGING_FACE[name](name, n_blocks) if name in _HUGGING_FACE else _hand_written(name, seed, n_blocks)


REFERENCE: dict[str, dict[str, Any]] = {
    "reference pre": {},
    "reference post": {"norm_placement": "post"},
    "reference double rmsnorm": {"norm_placement": "double", "norm_kind": "rmsnorm", "biases": False},
    "reference reordered": {"norm_placement": "reordered", "activation": "relu"},
    "reference pre relu no biases": {"activation": "relu", "biases": False, "norm_kind": "rmsnorm"},
    "reference parallel": {"is_parallel": True},
    "reference pre xavier": {"init": "xavier"},
}


def _reference(name: str, fields: dict[str, Any], seed: int, n_blocks: int) -> Subject:
    architecture = Architecture(
        n_blocks=n_blocks, width=WIDTH, n_heads=HEADS, mlp_width=HIDDEN, vocabulary=VOCABULARY, context=LENGTH, **fields
    )
    model = ReferenceTransformer(architecture, seed)
    suffix = {"post": "post", "reordered": "out"}.get(architecture.norm_placement, "in")
    parts = [
        Parts(
            f"blocks.{i}",
            f"blocks.{i}.attention",
            f"blocks.{i}.mlp",
            (f"blocks.{i}.attention_{suffix}", f"blocks.{i}.mlp_{suffix}"),
            f"blocks.{i}.attention.query",
            f"blocks.{i}.attention.key",
            f"blocks.{i}.attention.output",
            f"blocks.{i}.mlp.up",
            f"blocks.{i}.mlp.down",
        )
        for i in range(n_blocks)
    ]
    return Subject(name, model, {"tokens": ids()}, parts, "token_embedding", "head")


def ids() -> Tensor:
    """Return a batch of token ids, from the global random state; none is the padding's, whose embedding may be 0."""
    return torch.randint(4, VOCABULARY, (BATCH, LENGTH))


def _gpt2(name: str, n_blocks: int) -> Subject:
    config = transformers.GPT2Config(
        n_layer=n_blocks, n_embd=WIDTH, n_head=HEADS, n_inner=HIDDEN, vocab_size=VOCABULARY, n_positions=LENGTH,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    at = "transformer.h.{}"
    names = ("attn", "mlp", ("ln_1", "ln_2"), "attn.c_attn", "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    return _hugging_face(name, transformers.GPT2LMHeadModel(config), at, names, n_blocks, "transformer.wte", fused=True)


def _neox(name: str, n_blocks: int) -> Subject:
    config = transformers.GPTNeoXConfig(
        num_hidden_layers=n_blocks, hidden_size=WIDTH, num_attention_heads=HEADS, intermediate_size=HIDDEN,
        vocab_size=VOCABULARY, max_position_embeddings=LENGTH, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    names = (
        "attention", "mlp", ("input_layernorm", "post_attention_layernorm"), "attention.query_key_value",
        "attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h",
    )  # fmt: skip
    model = transformers.GPTNeoXForCausalLM(config)
    return _hugging_face(name, model, "gpt_neox.layers.{}", names, n_blocks, "gpt_neox.embed_in", fused=True)


def _opt(name: str, n_blocks: int) -> Subject:
    config = transformers.OPTConfig(
        num_hidden_layers=n_blocks, hidden_size=WIDTH, num_attention_heads=HEADS, ffn_dim=HIDDEN, vocab_size=VOCABULARY,
        max_position_embeddings=LENGTH, word_embed_proj_dim=WIDTH, bos_token_id=0, eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    names = (
        "self_attn", "", ("self_attn_layer_norm", "final_layer_norm"), "self_attn.q_proj", "self_attn.k_proj",
        "self_attn.out_proj", "fc1", "fc2",
    )  # fmt: skip
    model = transformers.OPTForCausalLM(config)
    return _hugging_face(name, model, "model.decoder.layers.{}", names, n_blocks, "model.decoder.embed_tokens")


def _llama_like(kind: str, n_kv: int = 2, **more: Any) -> Callable[[str, int], Subject]:
    def make(name: str, n_blocks: int) -> Subject:
        config = getattr(transformers, f"{kind}Config")(
            num_hidden_layers=n_blocks, hidden_size=WIDTH, num_attention_heads=HEADS, num_key_value_heads=n_kv,
            intermediate_size=HIDDEN, vocab_size=VOCABULARY, max_position_embeddings=LENGTH, head_dim=WIDTH // HEADS,
            bos_token_id=0, eos_token_id=0, pad_token_id=0, **more,
        )  # fmt: skip
        reordered = kind == "Olmo2"
        norms = (
            ("post_attention_layernorm", "post_feedforward_layernorm")
            if reordered
            else ("input_layernorm", "pre_feedforward_layernorm" if kind == "Gemma2" else "post_attention_layernorm")
        )
        names = (
            "self_attn", "mlp", norms, "self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.up_proj",
            "mlp.down_proj",
        )  # fmt: skip
        model = getattr(transformers, f"{kind}ForCausalLM")(config)
        return _hugging_face(name, model, "model.layers.{}", names, n_blocks, "model.embed_tokens")

    return make


def _hugging_face(
    name: str,
    model: nn.Module,
    at: str,
    names: tuple[Any, ...],
    n_blocks: int,
    embedding: str,
    head: str = "lm_head",
    *,
    fused: bool = False,
) -> Subject:
    attention, mlp, norms, *projections = names
    parts = [
        Parts(
            path := at.format(i),
            f"{path}.{attention}",
            f"{path}.{mlp}" if mlp else "",
            (f"{path}.{norms[0]}", f"{path}.{norms[1]}"),
            *(f"{path}.{projection}" for projection in projections),
        )
        for i in range(n_blocks)
    ]
    return Subject(name, model, {"input_ids": ids()}, parts, embedding, head, fused)


def _phi(name: str, n_blocks: int) -> Subject:
    config = transformers.PhiConfig(
        num_hidden_layers=n_blocks, hidden_size=WIDTH, num_attention_heads=HEADS, intermediate_size=HIDDEN,
        vocab_size=VOCABULARY, max_position_embeddings=LENGTH, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    # One norm before both branches.
    names = (
        "self_attn", "mlp", ("input_layernorm", "input_layernorm"), "self_attn.q_proj", "self_attn.k_proj",
        "self_attn.dense", "mlp.fc1", "mlp.fc2",
    )  # fmt: skip
    model = transformers.PhiForCausalLM(config)
    return _hugging_face(name, model, "model.layers.{}", names, n_blocks, "model.embed_tokens")


def _starcoder2(name: str, n_blocks: int) -> Subject:
    config = transformers.Starcoder2Config(
        num_hidden_layers=n_blocks, hidden_size=WIDTH, num_attention_heads=HEADS, num_key_value_heads=2,
        intermediate_size=HIDDEN, vocab_size=VOCABULARY, max_position_embeddings=LENGTH, bos_token_id=0, eos_token_id=0,
        sliding_window=None,
    )  # fmt: skip
    names = (
        "self_attn", "mlp", ("input_layernorm", "post_attention_layernorm"), "self_attn.q_proj", "self_attn.k_proj",
        "self_attn.o_proj", "mlp.c_fc", "mlp.c_proj",
    )  # fmt: skip
    model = transformers.Starcoder2ForCausalLM(config)
    return _hugging_face(name, model, "model.layers.{}", names, n_blocks, "model.embed_tokens")


_HUGGING_FACE: dict[str, Callable[[str, int], Subject]] = {
    "gpt2": _gpt2,
    "gpt_neox": _neox,
    "opt": _opt,
    "llama": _llama_like("Llama"),
    "mistral": _llama_like("Mistral", sliding_window=8),
    "qwen2": _llama_like("Qwen2"),
    "qwen3": _llama_like("Qwen3"),
    "olmo2": _llama_like("Olmo2"),
    "gemma2": _llama_like("Gemma2", sliding_window=8),
    "phi": _phi,
    "starcoder2": _starcoder2,
}


HAND_WRITTEN = ("hand pre", "hand pre rms swiglu", "hand post", "hand pre bidirectional")


def _hand_written(name: str, seed: int, n_blocks: int) -> Subject:
    model = HandModel(name, n_blocks, random.Random(seed))
    blocks = model.names["blocks"]
    parts = []
    for i, block in enumerate(model.part("blocks")):
        attention, mlp = block.part("attention"), block.part("mlp")
        path = f"{blocks}.{i}"
        own = {role: f"{path}.{block.names[role]}" for role in block.names}
        a = {role: f"{own['attention']}.{attention.names[role]}" for role in attention.names}
        m = {role: f"{own['mlp']}.{mlp.names[role]}" for role in mlp.names}
        norms = (own["norm 1"], own["norm 2"])
        parts.append(
            Parts(path, own["attention"], own["mlp"], norms, a["query"], a["key"], a["out"], m["in"], m["out"])
        )
    return Subject(name, model, {"input_ids": ids()}, parts, model.names["tokens"], model.names["head"])


EVERY = (*REFERENCE, *_HUGGING_FACE, *HAND_WRITTEN)
# Kept aside: no limit of a rule was looked at with these.
ASIDE = ("reference parallel", "hand pre rms swiglu", "phi", "starcoder2")
