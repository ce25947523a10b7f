"""Check up healthy models of many types of transformers, built small: none may have an error."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass

import rheoscope
import torch
import transformers

TYPES = (
    "gpt2 gpt_neo gpt_neox gptj opt bloom falcon llama mistral mixtral qwen2 qwen3 qwen3_moe gemma gemma2 gemma3_text olmo olmo2 "
    "olmoe phi phi3 stablelm starcoder2 cohere cohere2 granite granitemoe glm glm4 deepseek_v3 nemotron persimmon mpt codegen "
    "xglm biogpt bert roberta albert distilbert electra deberta deberta-v2 ernie xlnet xlm mpnet modernbert esm nystromformer t5 "
    "mt5 bart mbart pegasus marian blenderbot led vit dinov2 swin clip siglip wav2vec2 whisper hubert mamba jamba bamba rwkv"
)
BLOCKS = 8


@dataclass(frozen=True)
class OfType:
    """What a check-up of one type said: ``status``, and severity, code and block of every warning and error."""

    name: str
    status: str
    alarms: tuple[tuple[str, str, int | None], ...] = ()


def check_up(name: str) -> OfType:
    """Build a model of the type and check it; whatever goes wrong is part of the answer."""
    import zoo.shrink

    zoo.shrink.BLOCKS = BLOCKS  # siblings to compare with
    from zoo.build import NotBuiltError, specimen
    from zoo.identity import scalar

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings(action="ignore"):
        try:
            made = specimen(name)
            diagnosis = rheoscope.diagnose(rheoscope.examine(made.model, made.batch, scalar))
        except NotBuiltError:
            return OfType(name, "not built")
        except Exception as error:  # noqa: BLE001 - named on the page
            return OfType(name, f"failed: {type(error).__name__}: {str(error)[:160]}")
    broken = [sentence for sentence in diagnosis.not_judged if "failed on this recording" in sentence]
    if broken:
        return OfType(name, f"failed: {broken[0][:160]}")
    return OfType(name, "judged", tuple((f.severity, f.code, f.block) for f in diagnosis if f.severity != "info"))
