"""Make a batch of real text by the tokenizer that lies beside a model's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rheoscope.probes.errors import LabError
from torch import Tensor

from .corpus import corpus

TOKENIZER = "tokenizer.json"
BYTES_A_TOKEN = 64  # more than any token has on average


def text_tokens(folder: Path, n_rows: int, length: int, config: Any) -> Tensor | None:
    """Return token ids of the standard library's source, shape (rows, length); None without a tokenizer.json that serves.

    The tokenizer is data, read by the tokenizers library: no class of the folder's is looked up, no code run.
    """
    path = folder / TOKENIZER
    if not path.is_file():
        return None
    try:
        from tokenizers import Tokenizer

        text = bytes(corpus()[: n_rows * length * BYTES_A_TOKEN].to(torch.uint8).tolist()).decode("utf-8", "replace")
        ids = Tokenizer.from_file(str(path)).encode(text, add_special_tokens=False).ids
    except (ImportError, LabError):
        return None
    except Exception:  # noqa: BLE001 - tokenizers raises nothing more precise for a file that is none
        return None
    n = n_rows * length
    if len(ids) < n or max(ids[:n]) >= vocabulary(config):
        return None
    return torch.tensor(ids[:n]).reshape(n_rows, length)


def vocabulary(config: Any) -> int:
    """Return the number of tokens that a config knows, 0 where it names none."""
    text = getattr(config, "get_text_config", lambda: config)()
    return int(getattr(text, "vocab_size", 0) or 0)
