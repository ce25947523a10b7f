"""Build one model of a type: the first class and the first way of shrinking that give a model and accept a batch."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

from .kits import kits
from .shrink import BLOCKS, shrunk

# narrow: widths too; alike: one kind of block; grid: three-part rotary positions; wide: widths as they are.
SHRINKINGS = ("narrow", "alike", "grid", "half grid", "wide")
MOST_PARAMETERS = {"narrow": 40e6, "alike": 40e6, "grid": 40e6, "half grid": 40e6, "wide": 90e6}
# What some configurations leave open for the checkpoint to fill in.
_OPEN = {
    "prediction_length": 8, "num_experts_per_tok": 2, "head_dim": 16, "n_routed_experts": 4, "num_experts": 4,
    "pad_token_id": 0, "moe_topk": 2, "n_group": 1, "topk_group": 1, "topk_method": "greedy", "vocab_size": 128,
    "num_key_value_heads": 4,
}  # fmt: skip
_HEADS_FIRST = (
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "MODEL_MAPPING_NAMES",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
)


class NotBuiltError(Exception):
    """No class of the type could be built and run; the message says why."""


@dataclass
class Specimen:
    """A small model of a type, in eval mode, with a batch that it accepts."""

    model: nn.Module
    batch: dict[str, Any]
    config: Any
    shrinking: str
    tried: list[str] = field(default_factory=list)


def model_types() -> list[str]:
    """Return every model type of the auto mappings."""
    return sorted(CONFIG_MAPPING_NAMES)


def specimen(model_type: str, shrinking: str = "", name: str = "") -> Specimen:
    """Return a model of ``model_type`` with a batch.

    Args:
        model_type: a name of the auto mappings.
        shrinking: the one way of shrinking to try; all of them when empty.
        name: the one class to try; those that the auto mappings name when empty.

    Raises:
        NotBuiltError: nothing worked.
    """
    tried: list[str] = []
    names = [name] if name else list(_classes(model_type))
    for way in [shrinking] if shrinking else SHRINKINGS:
        try:
            config = _config(model_type, way)
        except Exception as error:
            tried.append(f"config {way}: {_short(error)}")
            continue
        for name in names:
            try:
                model = _model(name, config, MOST_PARAMETERS[way])
            except Exception as error:
                tried.append(f"{name} {way}: {_short(error)}")
                continue
            batch, why = _batch(model, config)
            if batch is not None:
                return Specimen(model, batch, config, way, tried)
            tried.append(f"{name} {way} takes none of the batches: {why}")
    raise NotBuiltError(" // ".join(tried) or "no model class in the auto mappings")


def _config(model_type: str, shrinking: str) -> Any:
    kind = CONFIG_MAPPING[model_type]
    try:
        whole = kind().to_dict()
    except Exception:
        # Some values differ between blocks and cannot be written down as one.
        whole = {name: value for name, value in vars(kind()).items() if not name.startswith("_")}
    small = shrunk(whole, keep_widths=shrinking == "wide")
    if shrinking == "alike":
        _alike(small)
    if shrinking in ("grid", "half grid"):
        _grid(small, [2, 3, 3] if shrinking == "grid" else [1, 1, 2])
    errors = []
    for left_out in ((), ("layer_types", "mlp_layer_types", "layers_block_type", "block_types")):
        try:
            config = kind.from_dict(copy.deepcopy({k: v for k, v in small.items() if k not in left_out}))
            break
        except Exception as error:
            errors.append(_short(error))
    else:
        config = kind()
        for name, value in small.items():
            if isinstance(value, int | list) and hasattr(config, name):
                try:
                    setattr(config, name, value)
                except Exception as error:
                    errors.append(_short(error))
    try:
        config.use_cache = False
    except Exception as error:
        errors.append(_short(error))
    return config


def _alike(small: dict[str, Any]) -> None:
    """Make all blocks of one kind, where a configuration lists a kind for each; fill in what it leaves open."""
    for name, value in list(small.items()):
        if isinstance(value, dict):
            _alike(value)
        elif value is None and name in _OPEN:
            small[name] = _OPEN[name]
        elif name in ("layer_types", "mlp_layer_types", "layers_block_type", "block_types"):
            blocks = small.get("num_hidden_layers", BLOCKS)
            small[name] = [value[-1] if value else "full_attention"] * blocks
        elif name == "num_kv_shared_layers" and value == 0:
            small[name] = 1


def _grid(small: dict[str, Any], sections: list[int]) -> None:
    """Split rotary positions over time, height and width, as models of images and text expect."""
    for name, value in list(small.items()):
        if name in ("rope_parameters", "rope_scaling"):
            small[name] = {**(value or {"rope_type": "default"}), "mrope_section": sections}
        elif isinstance(value, dict):
            _grid(value, sections)


def _classes(model_type: str) -> Iterator[str]:
    every = (n for n in dir(modeling_auto) if n.startswith("MODEL_") and n.endswith("MAPPING_NAMES"))
    others = sorted(name for name in every if name not in _HEADS_FIRST)
    seen = set()
    for mapping in (*_HEADS_FIRST, *others):
        names = getattr(modeling_auto, mapping).get(model_type, ())
        for name in [names] if isinstance(names, str) else names:
            if name not in seen:
                seen.add(name)
                yield name
            if len(seen) >= 4:
                return
    if not seen:
        yield from _by_config(model_type)


def _by_config(model_type: str) -> Iterator[str]:
    """Yield the models that take a configuration which no auto mapping leads to: parts of larger models."""
    kind = CONFIG_MAPPING[model_type]
    try:
        module = importlib.import_module(kind.__module__.replace("configuration_", "modeling_"))
    except ImportError:
        return
    for name, found in vars(module).items():
        is_model = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
        if is_model and found.config_class is kind and not name.endswith("PreTrainedModel"):
            yield name


def _model(name: str, config: Any, most: float) -> nn.Module:
    kind = getattr(transformers, name, None)
    if kind is None:
        kind = getattr(importlib.import_module(type(config).__module__.replace("configuration_", "modeling_")), name)
    try:
        with torch.device("meta"):
            size = sum(p.numel() for p in kind(copy.deepcopy(config)).parameters())
    except Exception:
        size = 0
    if size > most:
        raise NotBuiltError(f"{size / 1e6:.0f} million parameters")
    torch.manual_seed(0)
    model: nn.Module = kind(copy.deepcopy(config))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            # Fresh gains and biases are all ones and zeros, and some weights are left as found in memory:
            # neither would tell one branch from another.
            if parameter.is_floating_point():
                noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype) * 0.02
                if parameter.dim() == 1:
                    parameter.add_(noise)
                if (
                    not bool(torch.isfinite(parameter).all())
                    or float(parameter.abs().max()) > 1e4
                    or (parameter.dim() > 1 and not bool(parameter.any()))
                ):
                    parameter.copy_(noise)
    return model.float().eval()


def _batch(model: nn.Module, config: Any) -> tuple[dict[str, Any] | None, str]:
    errors: list[str] = []
    for batch in kits(model, config):
        try:
            torch.manual_seed(0)
            with torch.no_grad():
                model(**batch)
            return batch, ""
        except Exception as error:
            errors.append(f"{', '.join(batch)}: {_short(error)}")
    return None, " / ".join(list(dict.fromkeys(errors))[:3]) or "none fits its forward"


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:140]}"


__all__ = ["BLOCKS", "NotBuiltError", "Specimen", "model_types", "specimen"]
