"""Shrink a configuration: keep what decides the architecture, cut what decides the size."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

WIDTH, HEADS, BLOCKS, TOKENS = 64, 4, 3, 128

_WIDTHS = re.compile(
    r"(?!num_|max_|per_)(\w*_)?(hidden_size|hidden_dim|embed_dim|embedding_size|d_model|n_embd|n_embed|emb_dim|dim_model|"
    r"word_embed_proj_dim|projection_dim|pooler_output_size|output_dim|lru_width|encoder_width|fusion_hidden_size|"
    r"reduced_dim|proj_dim|embed_size|embedding_dim|hidden_size_global|num_channels_hidden|feature_dim)|dim"
)
_FEED_FORWARD = re.compile(
    r"\w*(intermediate_size|ffn_dim|feedforward_dim|dim_feedforward|feed_forward_hidden_size|linear_units|ff_dim)\w*|"
    r"n_inner|d_ff|mlp_dim|ffn_hidden_size|inner_dim|prenet_units|\w*mlp_hidden_size|expert_hidden_dim"
)
_HEADS = re.compile(
    r"\w*(num_attention_heads|num_self_attention_heads|num_cross_attention_heads|attention_heads|num_heads|n_heads?|"
    r"attention_num_heads|num_heads)"
)
_KEY_HEADS = re.compile(r"\w*(num_key_value_heads|num_kv_heads|multi_query_group_num|num_global_key_value_heads)\w*")
_BLOCKS = re.compile(
    r"(\w*_)?(num_hidden_layers|n_layers?|num_layers|layers|num_blocks?|depth|num_text_layers|num_encoder_layers|"
    r"num_decoder_layers|nlayers|num_layers_\w+|[rlx]_layers)"
)
_EXPERTS = re.compile(
    r"num_experts|num_local_experts|n_routed_experts|moe_num_experts|ffn_num_experts|num_routed_experts"
)
_CHOSEN = re.compile(
    r"num_experts_per_tok(en)?|moe_k|moe_top_?k|expert_top_k|top_k_experts|num_selected_experts|router_top_k"
)
_TOKENS = re.compile(r"\w*(vocab_size|n_vocab)(_per_layer_input)?")
_LENGTHS = re.compile(
    r"max_position_embeddings|n_positions|n_ctx|max_(source|target)_positions|max_seq_len(gth)?|max_length"
)
_LISTED = re.compile(r"depths|num_heads|num_attention_heads|hidden_sizes|embed_dims|embed_dim|hidden_dims?|num_blocks")
_EXACT = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
    "qk_head_dim": 24, "head_dim": 16, "d_kv": 16, "d_head": 16, "kv_channels": 16, "sliding_window": 8,
    "hidden_size_per_layer_input": 16, "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_head_dim": 16,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_num_heads": 4, "mamba_d_state": 8,
    "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_num_heads": 8, "mamba_head_dim": 16, "mamba_d_ssm": 128,
    "mamba_chunk_size": 8, "mamba_expand": 2, "mamba_dt_rank": 4, "ssm_state_size": 8, "state_size": 8,
    "time_step_rank": 4, "chunk_size": 8, "num_mel_bins": 16, "num_frames": 4, "swa_head_dim": 16,
    "global_head_dim": 16, "index_head_dim": 16, "index_topk": 8, "index_n_heads": 4, "num_query_tokens": 8,
    "num_queries": 12, "image_seq_length": 4, "num_image_tokens": 4, "mm_tokens_per_image": 4,
    "first_k_dense_replace": 1, "max_window_layers": 1, "codevector_dim": 32, "proj_codevector_dim": 32,
    "num_codevectors_per_group": 16, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
    "num_nextn_predict_layers": 0, "query_pre_attn_scalar": 16, "rotary_dim": 8, "num_kv_shared_layers": 0,
    "d_rel": 8, "rel_extent": 64, "num_buckets": 4, "o_lora_rank": 16, "o_groups": 2, "n_group": 1, "topk_group": 1,
    "n_shared_experts": 1, "moe_num_shared_experts": 1, "num_shared_experts": 1, "attention_window_size": 8,
    "codebook_size": 32, "zero_expert_num": 1,
}  # fmt: skip
_LEFT_ALONE = {"id2label", "label2id", "quantization_config", "task_specific_params", "generation_config"}
_NOT_ARGUMENTS = {"transformers_version", "model_type", "architectures", "_name_or_path", "dtype", "torch_dtype"}


def shrunk(given: Mapping[str, Any], *, keep_widths: bool) -> dict[str, Any]:
    """Return the configuration with few blocks and, unless ``keep_widths``, narrow ones.

    Args:
        given: a configuration as a mapping, with further ones inside it.
        keep_widths: leave widths and heads, whose ratios a model may rely on; cut blocks, tokens and experts only.
    """
    result = {name: copy.deepcopy(value) for name, value in given.items() if name not in _NOT_ARGUMENTS}
    blocks = next(
        (value for name, value in given.items() if _BLOCKS.fullmatch(name) and _is_count(value) and value > BLOCKS), 0
    )
    width = next(
        (v for n, v in given.items() if n in ("hidden_size", "d_model", "n_embd", "embed_dim") and _is_count(v)), 0
    )
    heads = next((v for n, v in given.items() if _HEADS.fullmatch(n) and _is_count(v)), 0)
    is_staged = any(isinstance(v, list | tuple) for n, v in given.items() if _LISTED.fullmatch(n))
    has_latent = "qk_rope_head_dim" in given
    for name, value in given.items():
        if name in _LEFT_ALONE or name in _NOT_ARGUMENTS:
            continue
        if isinstance(value, Mapping):
            is_rope = name.startswith("rope_")
            result[name] = _rope(value, keep_widths) if is_rope else shrunk(value, keep_widths=keep_widths)
        elif _is_count(value):
            result[name] = _count(name, value, keep_widths, is_staged, has_latent, width, heads)
        elif isinstance(value, list | tuple) and value:
            result[name] = _listed(name, value, blocks)
    if not keep_widths and {"state_size", "expand", "head_dim", "num_heads"} <= given.keys():
        result["num_heads"] = 2 * WIDTH // result["head_dim"]  # state-space heads share the expanded width
    return {name: value for name, value in result.items() if name not in _NOT_ARGUMENTS}


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _count(name: str, value: int, keep_widths: bool, is_staged: bool, has_latent: bool, width: int, heads: int) -> int:
    if name in ("first_k_dense_replace", "num_nextn_predict_layers", "num_kv_shared_layers", "n_group", "topk_group"):
        return min(value, _EXACT[name])
    if _BLOCKS.fullmatch(name):
        return min(value, BLOCKS)
    if _TOKENS.fullmatch(name):
        return min(value, TOKENS)
    if _EXPERTS.fullmatch(name):
        return min(value, 4)
    if _CHOSEN.fullmatch(name):
        return min(value, 2)
    if name.endswith(("token_id", "token_index", "_id")) and value >= TOKENS - 8:
        fixed = {"pad": 0, "bos": 1, "eos": 2, "dec": 1}
        return fixed.get(name[:3], TOKENS - 28 + sum(map(ord, name)) % 20)
    if keep_widths:
        return value
    if _LENGTHS.fullmatch(name):
        return min(value, TOKENS)
    if name == "image_size":
        return min(value, 64)
    if has_latent and name == "head_dim":
        return 8
    if _FEED_FORWARD.fullmatch(name):
        return (WIDTH * min(4, value // width)) if width and value % width == 0 else 96
    if name in _EXACT:
        return min(value, _EXACT[name]) if value > 0 else value
    if is_staged and (_WIDTHS.fullmatch(name) or _HEADS.fullmatch(name)):
        return value
    if _WIDTHS.fullmatch(name):
        return min(value, WIDTH)
    if _KEY_HEADS.fullmatch(name):
        return HEADS if value == heads else min(2, value)
    if _HEADS.fullmatch(name):
        return min(value, HEADS)
    return value


def _listed(name: str, values: list[Any] | tuple[Any, ...], blocks: int) -> list[Any]:
    """Shorten a list with one item a block, so that every kind of block stays; bound indices of blocks."""
    if blocks and len(values) == blocks:
        chosen = [0]
        for index in range(1, len(values)):
            if all(values[index] != values[other] for other in chosen) and len(chosen) < BLOCKS:
                chosen.append(index)
        for index in range(1, len(values)):
            if len(chosen) < BLOCKS and index not in chosen:
                chosen.append(index)
        return [values[index] for index in sorted(chosen)]
    counts = all(_is_count(value) for value in values)
    if counts and blocks and ("index" in name or "indices" in name or "layers" in name) and max(values) > BLOCKS:
        return sorted({min(value, BLOCKS - 1) for value in values})
    if counts and name.endswith("token_id"):
        return [min(value, 2) for value in values]
    if counts and name == "depths":
        return [min(value, 2) for value in values]
    return list(values)


def _rope(value: Mapping[str, Any], keep_widths: bool) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, Mapping):
            result[name] = _rope(item, keep_widths)
        elif name == "mrope_section" and not keep_widths:
            result[name] = [2, 3, 3]
        elif name in ("short_factor", "long_factor") and item and not keep_widths:
            result[name] = [1.0] * 8
        else:
            result[name] = copy.deepcopy(item)
    return result
