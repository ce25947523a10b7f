"""Read tensors from safetensors files: weights into a model, a batch by keyword. Nothing is unpickled."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from rheoscope.probes.errors import LabError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

SUFFIX, INDEX = ".safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
WRAPPERS = ("module.", "_orig_mod.", "model.")  # that trainers and compilers put before every name
MOST_NAMED = 5
MOST_INDEX = 64 * 2**20  # bytes


def weight_files(path: Path) -> tuple[Path, ...]:
    """Return the safetensors files of a checkpoint: itself, what its index names, or all in the folder.

    Raises:
        LabError: the index names files that are not there, or lie outside the folder.
    """
    if path.is_file():
        return (path,) if path.suffix == SUFFIX else ()
    index = path / INDEX
    if index.is_file() and index.stat().st_size <= MOST_INDEX:
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            files = tuple(path / name for name in names if Path(name).name == name)
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise LabError(
                f"Expected an index of safetensors in {str(index)!r}, got {str(error)[:200]}. Restore the file."
            ) from error
        if len(files) < len(names) or not all(file.is_file() for file in files):
            raise LabError(
                f"Expected the {len(names)} files that {str(index)!r} names, got fewer. Copy all of them beside it."
            )
        return files
    found = sorted(path.glob(f"*{SUFFIX}"))
    whole = path / f"model{SUFFIX}"
    return (whole,) if whole in found else tuple(found)


def has_pickles_alone(path: Path) -> bool:
    """Return whether a folder holds weights, and all of them in files that would have to be unpickled."""
    return path.is_dir() and not weight_files(path) and any(file.suffix in PICKLES for file in path.iterdir())


def stored(files: tuple[Path, ...]) -> Iterator[tuple[str, Tensor]]:
    """Yield names and tensors of safetensors files, on the CPU, one at a time.

    Raises:
        LabError: a file is none of its kind.
    """
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - no mapping
                    yield name, file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise LabError(
                f"Expected a safetensors file at {str(path)!r}, got {str(error)[:200]}. Save it with "
                "safetensors.torch.save_file, or save_pretrained."
            ) from error


def load_weights(model: nn.Module, path: str | Path) -> list[str]:
    """Copy the weights of a checkpoint into ``model`` by name, and return what did not fit, in sentences.

    Args:
        model: whose weights are replaced.
        path: a safetensors file, or a folder of them.

    Raises:
        LabError: there are none, or less than half of the model's weights are among them, or a shape differs.
    """
    files = weight_files(Path(path))
    if not files:
        raise LabError(
            f"Expected safetensors at {str(path)!r}, got none. Weights in other files would have to be unpickled: save them "
            "with safetensors.torch.save_model, or save_pretrained."
        )
    own = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    given, extra = set[int](), list[str]()
    for name, tensor in stored(files):
        target = _target(name, own)
        if target is None:
            extra.append(name)
        elif own[target].shape != tensor.shape:
            raise LabError(
                f"Expected {target} of shape {tuple(own[target].shape)}, got {tuple(tensor.shape)} in {str(path)!r}. Pass the "
                "model that this checkpoint is of."
            )
        else:
            with torch.no_grad():
                own[target].copy_(tensor)
            given.add(id(own[target]))
    needed = dict(model.named_parameters())
    missing = [name for name, parameter in needed.items() if id(parameter) not in given]
    if 2 * len(missing) > len(needed):
        raise LabError(
            f"Expected the weights of this model in {str(path)!r}, got {len(needed) - len(missing)} of {len(needed)}; it holds "
            f"{_some(extra)}, the model has {_some(missing)}. Pass the model that this checkpoint is of."
        )
    notes = [f"Not in {path}: {_some(missing)}; left as the model was built."] if missing else []
    return [*notes, *([f"In {path}, and not in the model: {_some(extra)}."] if extra else [])]


def _target(name: str, own: dict[str, Tensor]) -> str | None:
    """Return the model's own name of a stored tensor, which may have a wrapper's before it, or lack one."""
    candidates = [name, *(name.removeprefix(prefix) for prefix in WRAPPERS), *(prefix + name for prefix in WRAPPERS)]
    return next((candidate for candidate in candidates if candidate in own), None)


def read_batch(path: str | Path) -> dict[str, Tensor]:
    """Return a batch from a safetensors file: tensors by the keywords of the model's forward.

    Raises:
        LabError: it is none.
    """
    batch = dict(stored((Path(path),)))
    if not batch:
        raise LabError(f"Expected tensors by keyword in {str(path)!r}, got none. Save what the training loop passes.")
    return batch


def _some(names: list[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "") if names else "nothing else"
