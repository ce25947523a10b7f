"""Placements of well-known architectures, written down by hand and not by discovery.

They come from what is known of each architecture; not every file of the installed transformers was read again for it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Known:
    """What the source says: the placement of every branch, or ``parallel`` for one pre-normed sum of two branches."""

    placement: str
    norm: str


def _all(placement: str, norm: str, types: str) -> dict[str, Known]:
    return {name: Known(placement, norm) for name in types.split()}


KNOWN: dict[str, Known] = (
    _all("pre", "layernorm", "gpt2 gpt_neo gpt_bigcode bloom mpt vit deit dinov2 beit siglip_vision_model imagegpt")
    | _all("pre", "layernorm", "clip_vision_model whisper pegasus mbart blenderbot biogpt xglm stablelm starcoder2")
    | _all("pre", "layernorm", "codegen_not_here opt vit_mae vit_msn videomae audio-spectrogram-transformer nllb-moe")
    | _all("pre", "rmsnorm", "llama mistral mixtral qwen2 qwen3 qwen2_moe qwen3_moe gemma granite t5 mt5 phi3 olmoe")
    | _all("pre", "rmsnorm", "deepseek_v2 deepseek_v3 smollm3 helium ernie4_5 seed_oss longt5 umt5 vaultgemma arcee")
    | _all("pre", "layernorm", "nemotron persimmon olmo m2m_100")
    | _all("pre", "rmsnorm", "hunyuan_v1_dense dots1 minimax_m2 gpt_oss jamba mamba mamba2 exaone_moe_not_here")
    | _all("post", "layernorm", "bert roberta distilbert electra camembert xlm-roberta mpnet deberta deberta-v2 albert")
    | _all("post", "layernorm", "openai-gpt bart xlm layoutlm convbert marian ernie squeezebert xlnet lilt ibert")
    | _all(
        "post",
        "layernorm",
        "roc_bert splinter mobilebert_not_here data2vec-text nystromformer yoso mra bert-generation",
    )
    | _all("double", "rmsnorm", "gemma2 gemma3_text glm4")
    | _all("reordered", "rmsnorm", "olmo2 olmo3 exaone4")
    | _all("parallel", "layernorm", "gptj gpt_neox phi falcon cohere codegen")
    | _all("parallel", "layernorm", "cohere2")
)
