"""Build models of Hugging Face's from a config: with random weights, or with those that lie in its folder as safetensors."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from rheoscope.probes.errors import LabError
from torch import nn

from .stored import weight_files

MOST_BYTES = 8 * 2**30  # of parameters


def config_of(target: str) -> Any:
    """Return the config that a file, its folder or a model type names.

    Raises:
        LabError: there is none, or transformers is not installed.
    """
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
    if path.is_file() and path.suffix != ".py":
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return AutoConfig.for_model(**values)
        except (ValueError, TypeError, OSError) as error:
            raise LabError(
                f"Expected a Hugging Face config with a model_type in {str(path)!r}, got {str(error)[:200]}. "
                "Pass the config.json that lies beside a model's weights."
            ) from error
    if path.suffix == ".py" and path.is_file():
        raise LabError(
            f"Expected a function that returns (model, batch), got the script {target!r}, which would train. Pass "
            f"{path.stem}:function."
        )
    if target in CONFIG_MAPPING:
        return AutoConfig.for_model(target)
    raise LabError(
        f"Expected a config.json, its folder, a model type such as gpt2, or module:function, got {target!r}. "
        "Nothing is downloaded: pass something that is on this machine."
    )


def from_config(config: Any, target: str) -> nn.Module:
    """Return a model of the config with random weights.

    Raises:
        LabError: transformers builds none from it, or it would take more than 8 GiB.
    """
    maker = _maker(config, target)
    with torch.device("meta"):
        n_bytes = sum(p.numel() * p.element_size() for p in maker.from_config(config).parameters())
    if n_bytes > MOST_BYTES:
        raise LabError(
            f"Expected a model of at most {MOST_BYTES / 2**30:.0f} GiB, got {n_bytes / 2**30:.1f} GiB from {target!r}. "
            "Pass --blocks with a smaller number: the blocks are alike."
        )
    model: nn.Module = maker.from_config(config)
    return model


def from_folder(config: Any, folder: Path) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the model with the folder's weights, in float32 (what is proven of it is proven to 1e-5), and what did not fit.

    Raises:
        LabError: the weights are not those of the config.
    """
    from transformers.utils import logging

    maker = _maker(config, str(folder))
    level, shows_progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    options = {"config": config, "use_safetensors": True, "local_files_only": True, "dtype": torch.float32}
    try:
        model, found = maker.from_pretrained(str(folder), output_loading_info=True, **options)
    except Exception as error:
        raise LabError(
            f"Expected weights of the config beside them in {str(folder)!r}, got {type(error).__name__}: {str(error)[:300]}. "
            "Pass the config.json alone for random weights, or module:function."
        ) from error
    finally:
        logging.set_verbosity(level)
        if shows_progress:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    notes = [f"Weights: {', '.join(file.name for file in weight_files(folder)[:3])}, read as float32."]
    for key, words in (
        ("missing_keys", "random, for want of them in the file"),
        ("unexpected_keys", "in the file alone"),
    ):
        names = sorted(found.get(key, ()))
        if names:
            notes.append(f"{len(names)} weights are {words}, such as {names[0]}.")
    return model, tuple(notes)


def _maker(config: Any, target: str) -> Any:
    """Return the Auto class that builds the config: that of the head its config names, else the first that knows it."""
    import transformers

    names = ["AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "AutoModelForMaskedLM", "AutoModel"]
    if getattr(config, "is_encoder_decoder", False):
        names.insert(0, "AutoModelForSeq2SeqLM")
    known = [maker for name in names if type(config) in (maker := getattr(transformers, name))._model_mapping]
    if not known:
        raise LabError(
            f"Expected a config that transformers can build a model from, got {target!r}. Pass module:function."
        )
    heads = set(getattr(config, "architectures", None) or ())
    return next((maker for maker in known if maker._model_mapping[type(config)].__name__ in heads), known[0])
