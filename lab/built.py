"""Build a model, and a batch that fits it, from a Hugging Face config, a folder with its weights, or the user's own function."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from rheoscope.probes.batches import Batch
from rheoscope.probes.errors import LabError
from rheoscope.probes.losses import LossFunction
from torch import Tensor, nn

from .configs import config_of, from_config, from_folder
from .stored import has_pickles_alone, weight_files
from .texts import text_tokens, vocabulary

LENGTH, BATCH = 32, 2


@dataclass(frozen=True)
class Built:
    """A model, a batch that it accepts, and what both are.

    Attributes:
        model: with weights.
        batch: for its forward.
        notes: which weights and which tokens these are, in sentences; none for the user's own function.
        is_guessing: whether trained weights are to be asked for random tokens, on which their loss says nothing.
        optimizer: of the user's own function; None for none.
        loss_fn: of the user's own function, ``loss_fn(output, batch)``; None for none.
    """

    model: nn.Module
    batch: Batch
    notes: tuple[str, ...] = ()
    is_guessing: bool = False
    optimizer: torch.optim.Optimizer | None = None
    loss_fn: LossFunction | None = None


def built(target: str, *, n_blocks: int | None = None, seed: int = 0) -> tuple[nn.Module, Batch]:
    """Return the model and the batch of ``build``."""
    found = build(target, n_blocks=n_blocks, seed=seed)
    return found.model, found.batch


def build(
    target: str,
    *,
    n_blocks: int | None = None,
    batch: Batch | None = None,
    seed: int = 0,
    reads_weights: bool = True,
) -> Built:
    """Return a model and a batch for it; nothing is downloaded, nothing is unpickled.

    Args:
        target: a config.json of Hugging Face's (random weights), its folder (the weights that lie in it as safetensors, in
            float32), or a model type such as ``gpt2`` (its default config); or ``module:function`` of the user's, which
            returns ``(model, batch)``, and behind them, if it likes, an optimizer and a ``loss_fn(output, batch)``.
        n_blocks: how many blocks the config is to have instead of its own number.
        batch: the user's own, instead of one that is made here.
        seed: of the random weights and the batch.
        reads_weights: whether weights in the folder are read.

    Raises:
        LabError: the target is of none of these kinds, too large, or its model accepts no batch that is known here.
    """
    torch.manual_seed(seed)
    if _is_function(target):
        own = _from_function(target)
        return own if batch is None else replace(own, batch=batch)
    config = config_of(target)
    if n_blocks is not None:
        for name in ("num_hidden_layers", "num_decoder_layers", "decoder_layers"):
            if getattr(config, name, None) is not None:
                setattr(config, name, n_blocks)
    folder = Path(target)
    has_weights = reads_weights and folder.is_dir() and bool(weight_files(folder))
    if has_weights:
        model, notes = from_folder(config, folder)
        tokens = text_tokens(folder, BATCH, LENGTH, config)
        told = (
            "random ids, for want of a tokenizer.json: of trained weights the loss on them says nothing"
            if tokens is None
            else "the standard library's source, by the folder's tokenizer"
        )
        notes = (*notes, f"Tokens: {told}.")
    else:
        model, tokens = from_config(config, target), None
        pickled = " The folder's weights would have to be unpickled." if has_pickles_alone(folder) else ""
        notes = (f"Weights: random, as the model's own init draws them.{pickled}", "Tokens: random ids.")
    if batch is not None:
        return Built(model, batch, notes[:-1])
    is_guessing = tokens is None and has_weights
    return Built(model, _batch(model, config, target, tokens), notes, is_guessing)


def maker(target: str, *, n_blocks: int | None = None) -> Callable[[], nn.Module] | None:
    """Return what builds the target's model anew, with the weights of torch's random state as it is then.

    None for the user's own function: whether that gives fresh weights or a checkpoint's is not known.
    """
    if _is_function(target):
        return None
    return lambda: build(target, n_blocks=n_blocks, seed=torch.initial_seed(), reads_weights=False).model


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


def _from_function(target: str) -> Built:
    found = imported(target)()
    if not (isinstance(found, tuple) and len(found) >= 2 and isinstance(found[0], nn.Module)):
        raise LabError(f"Expected {target!r} to return (model, batch), got {type(found).__name__}. Return both.")
    model, batch, *rest = found
    optimizers = [each for each in rest if isinstance(each, torch.optim.Optimizer)]
    losses = [each for each in rest if callable(each) and not isinstance(each, torch.optim.Optimizer)]
    if len(optimizers) > 1 or len(losses) > 1 or len(rest) != len(optimizers) + len(losses):
        kinds = ", ".join(type(each).__name__ for each in rest)
        raise LabError(
            f"Expected an optimizer and a loss_fn(output, batch) at most behind (model, batch) of {target!r}, got {kinds}. "
            "Leave the others out."
        )
    return Built(model, batch, optimizer=optimizers[0] if optimizers else None, loss_fn=losses[0] if losses else None)


def _batch(model: nn.Module, config: Any, target: str, tokens: Tensor | None = None) -> Batch:
    """Return the first batch that the model accepts: token ids, with decoder ids, or what its main input takes."""
    errors = []
    for batch in _candidates(model, config, tokens):
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


def _candidates(model: nn.Module, config: Any, tokens: Tensor | None) -> list[dict[str, Tensor]]:
    if tokens is None:
        tokens = torch.randint(10, max(11, vocabulary(config)), (BATCH, LENGTH))
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
