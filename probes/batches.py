"""Call a model with a batch of any of the usual kinds: a tensor, a tuple of arguments, a mapping of keywords."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .errors import BatchError


@dataclass(frozen=True)
class Arguments:
    """Positional and keyword arguments of one call of a model."""

    positional: tuple[Any, ...]
    keywords: Mapping[str, Any]


Batch = Arguments | Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]
DEEPEST = 6  # levels of tuples, mappings and dataclasses that are searched for tensors


def arguments(batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and keyword arguments that ``batch`` stands for.

    Raises:
        BatchError: the batch is of none of the known kinds.
    """
    if isinstance(batch, Arguments):
        return batch.positional, dict(batch.keywords)
    if isinstance(batch, Tensor):
        return (batch,), {}
    if isinstance(batch, Mapping):
        return (), dict(batch)
    if isinstance(batch, tuple | list):
        return tuple(batch), {}
    raise BatchError(
        "Expected a batch that is a Tensor, a tuple of arguments or a mapping of keywords, got "
        f"{type(batch).__name__}. Pass what the training loop passes to the model."
    )


def call(model: nn.Module, batch: Batch) -> Any:
    """Return ``model(batch)``.

    Raises:
        BatchError: the model raises on this batch; the model's own error is its cause.
    """
    positional, keywords = arguments(batch)
    try:
        return model(*positional, **keywords)
    except BatchError:
        raise
    except Exception as error:
        given = ", ".join(
            [*(describe(value) for value in positional), *(f"{k}={describe(v)}" for k, v in keywords.items())]
        )
        raise BatchError(
            f"Expected a batch that the model accepts, got ({given}), on which its forward raised "
            f"{type(error).__name__}: {str(error)[:300]}. Pass a batch as the training loop does, on "
            "the model's device."
        ) from error


def describe(value: object) -> str:
    """Return a short description of an argument, without its contents."""
    if isinstance(value, Tensor):
        return f"Tensor{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')} on {value.device}"
    return type(value).__name__


def tensors(value: object, position: tuple[int | str, ...] = ()) -> Iterator[tuple[tuple[int | str, ...], Tensor]]:
    """Yield every tensor in a nested value with its position: tuples, lists, mappings and dataclasses."""
    if isinstance(value, Tensor):
        yield position, value
    elif len(position) >= DEEPEST:
        return
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if isinstance(key, str | int):
                yield from tensors(item, (*position, key))
    elif isinstance(value, tuple | list):
        for index, item in enumerate(value):
            yield from tensors(item, (*position, index))
    elif hasattr(value, "__dataclass_fields__") and not isinstance(value, type):
        for name in value.__dataclass_fields__:
            yield from tensors(getattr(value, name, None), (*position, name))


def at(value: Any, position: tuple[int | str, ...]) -> Tensor | None:
    """Return the tensor at ``position`` of a nested value, None where there is none."""
    for item in position:
        try:
            holds_items = isinstance(value, Mapping | tuple | list)
            value = value.__getitem__(item) if holds_items else getattr(value, str(item))
        except (KeyError, IndexError, AttributeError, TypeError):
            return None
    return value if isinstance(value, Tensor) else None


def floating(value: object) -> torch.Tensor | None:
    """Return the first floating-point tensor in a nested value."""
    return next((tensor for _, tensor in tensors(value) if tensor.is_floating_point()), None)
