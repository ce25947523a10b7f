"""Bring plotly's own script into the page: compressed, and named by its hash in the page's security policy."""

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
    packed = gzip.compress(text.encode(), compresslevel=9, mtime=0)
    return Script(base64.b64encode(packed).decode(), digest(text))


def digest(text: str) -> str:
    """Return the policy's name for a script of exactly this text."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
