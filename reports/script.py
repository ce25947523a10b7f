"""Bring plotly's own script, and the figures, into the page: compressed; scripts are named by hash in its security policy."""

from __future__ import annotations

import base64
import gzip
import hashlib
from dataclasses import dataclass
from functools import cache

from plotly.offline import get_plotlyjs


@dataclass(frozen=True)
class Script:
    """A script and the hash under which a policy allows it.

    Attributes:
        packed: gzip, then base64: text that is no script until the page inflates it.
        digest: ``sha256-`` and the base64 of the hash of the inflated text.
    """

    packed: str
    digest: str


@cache
def plotly_script() -> Script:
    """Return the installed plotly's script."""
    text = get_plotlyjs()
    return Script(packed(text), digest(text))


def packed(text: str, level: int = 9) -> str:
    """Return gzip in base64: a third of what figures take as they are, and nothing in it can end the element it stands in."""
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=level, mtime=0)).decode()


def digest(text: str) -> str:
    """Return the policy's name for a script of exactly this text."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
