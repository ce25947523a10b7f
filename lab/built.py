"""Build a model with random weights, and a batch that fits it, from a Hugging Face config or the user's own function."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from rheoscope.probes.batches import Batch
from rheoscope.probes.errors import LabError
from torch import Tensor, nn

LENGTH, BATCH = 32, 2
MOST_BYTES = 8 * 2**30  # of parameters


def built(target: str, *, n_blocks: int | None = None, seed: int = 0) -> tuple[nn.Module, Batch]:
    """Return a model and a batch for it; nothing is downloaded.

    Args:
        target: a config.json of Hugging Face's, its folder, or a model type such as ``gpt2`` (its default config); or
            ``module:function`` of the user's, which returns ``(model, batch)``.
        n_blocks: how many blocks the config is to have instead of its own number.
        seed: of the weights and the batch.

    Raises:
        LabError: the target is of none of these kinds, too large, or its model accepts no batch that is known here.
    """
    torch.manual_seed(seed)
    if _is_function(target):
        return _from_function(target)
    config = _config(target)
    if n_blocks is not None:
        for name in ("num_hidden_layers", "num_decoder_layers", "decoder_layers"):
            if getattr(config, name, None) is not None:
                setattr(config, name, n_blocks)
    model = _from_config(config, target)
    return model, _batch(model, config, target)


def maker(target: str, *, n_blocks: int | None = None) -> Callable[[], nn.Module] | None:
    """Return what builds the target's model anew, with the weights of torch's random state as it is then.

    None for the user's own function: whether that gives fresh weights or a checkpoint's is not known.
    """
    if _is_function(target):
        return None
    return lambda: built(target, n_blocks=n_blocks, seed=torch.initial_seed())[0]


def _is_function(target: str) -> bool:
    return ":" in target and not Path(target).exists()


def imported(target: str) -> Any:
    """Return what ``module:function`` names, looked for in the current folder too.

    Raises:
        LabError: it cannot be imported.
    """
    module_name, _, name = target.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise LabError(
            f"Expected module:function that can be imported from here, got {target!r} ({error}). Check the spelling."
        ) from error
    finally:
        sys.path.pop(0)


def _from_function(target: str) -> tuple[nn.Module, Batch]:
    found = imported(target)()
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], nn.Module)):
        raise LabError(f"Expected {target!r} to return (model, batch), got {type(found).__name__}. Return both.")
    model, batch = found
    return model, batch


def _config(target: str) -> Any:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        from transformers import CONFIG_MAPPING, AutoConfig
    except ImportError as error:
        raise LabError(
            "Expected transformers to be installed for a Hugging Face config, got none. pip install 'rheoscope[hf]', or "
            "pass module:function."
        ) from error
    path = Path(target)
    if path.is_dir():
        path = path / "config.json"
    if path.is_file():
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return AutoConfig.for_model(**values)
        except (ValueError, TypeError, OSError) as error:
            raise LabError(
                f"Expected a Hugging Face config with a model_type in {str(path)!r}, got {str(error)[:200]}. "
                "Pass the config.json that lies beside a model's weights."
            ) from error
    if target in CONFIG_MAPPING:
        return AutoConfig.for_model(target)
    raise LabError(
        f"Expected a config.json, its folder, a model type such as gpt2, or module:function, got {target!r}. "
        "Nothing is downloaded: pass something that is on this machine."
    )


def _from_config(config: Any, target: str) -> nn.Module:
    import transformers

    names = ["AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "AutoModelForMaskedLM", "AutoModel"]
    if getattr(config, "is_encoder_decoder", False):
        names.insert(0, "AutoModelForSeq2SeqLM")
    for name in names:
        maker = getattr(transformers, name)
        if type(config) not in maker._model_mapping:
            continue
        with torch.device("meta"):
            n_bytes = sum(p.numel() * p.element_size() for p in maker.from_config(config).parameters())
        if n_bytes > MOST_BYTES:
            raise LabError(
                f"Expected a model of at most {MOST_BYTES / 2**30:.0f} GiB, got {n_bytes / 2**30:.1f} GiB from {target!r}. "
                "Pass --blocks with a smaller number: the blocks are alike."
            )
        model: nn.Module = maker.from_config(config)
        return model
    raise LabError(f"Expected a config that transformers can build a model from, got {target!r}. Pass module:function.")


def _batch(model: nn.Module, config: Any, target: str) -> Batch:
    """Return the first batch that the model accepts: token ids, with decoder ids, or what its main input takes."""
    errors = []
    for batch in _candidates(model, config):
        try:
            with torch.no_grad():
                model(**batch)
        except Exception as error:  # noqa: BLE001 - the next candidate may fit
            errors.append(f"{', '.join(batch)}: {str(error)[:120]}")
        else:
            return batch
    raise LabError(
        f"Expected {target!r} to accept token ids or pixels, got {'; '.join(errors)[:600]}. "
        "Pass module:function that returns (model, batch)."
    )


def _candidates(model: nn.Module, config: Any) -> list[dict[str, Tensor]]:
    text = getattr(config, "get_text_config", lambda: config)()
    tokens = torch.randint(10, max(11, int(getattr(text, "vocab_size", 0) or 0)), (BATCH, LENGTH))
    candidates = []
    if getattr(config, "is_encoder_decoder", False):
        written = tokens.flip(0, 1)
        candidates.append({"input_ids": tokens, "decoder_input_ids": written, "labels": written})
    candidates += [{"input_ids": tokens, "labels": tokens}, {"input_ids": tokens}]
    candidates += [{"input_ids": tokens, "decoder_input_ids": tokens}]
    size, channels = getattr(config, "image_size", 224), getattr(config, "num_channels", 3)
    height, width = (
        (size, size) if isinstance(size, int) else (tuple(size) if isinstance(size, list | tuple) else (224, 224))
    )
    candidates.append({"pixel_values": torch.randn(BATCH, channels, height, width)})
    candidates += [{"input_values": torch.randn(BATCH, 16_000)}]
    if "input_ids" not in getattr(model, "main_input_name", "input_ids"):
        candidates.reverse()
    return candidates
