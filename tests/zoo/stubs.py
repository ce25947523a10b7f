"""Stand in for torchvision, whose published builds do not load beside this torch: timm only needs its names."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types
from typing import Any


class _Names(type):
    """The type of a class whose every attribute is a class like itself: members of enumerations, say."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Names(name, (), {})


class _Anything(types.ModuleType):
    """A module in which every name is a class that does nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Names(name, (), {"__init__": lambda self, *args, **kwargs: None})


def stub_torchvision() -> None:
    """Put empty torchvision modules into ``sys.modules`` where none can be imported."""
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is not None:
        return
    names = (
        "",
        ".ops",
        ".ops.misc",
        ".transforms",
        ".transforms.functional",
        ".transforms.functional_pil",
        ".datasets",
        ".models",
        ".io",
        ".utils",
    )
    names += (".models.feature_extraction", ".datasets.folder", ".transforms.v2", ".transforms.v2.functional")
    for name in names:
        module = _Anything(f"torchvision{name}")
        module.__spec__ = importlib.machinery.ModuleSpec(f"torchvision{name}", None)
        module.__path__ = []  # type: ignore[attr-defined]
        module.__version__ = "0.28.0"  # type: ignore[attr-defined]
        sys.modules[f"torchvision{name}"] = module
        parent, _, child = f"torchvision{name}".rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
