"""Read what a report's page carries."""

import base64
import gzip
import json
import re


def carried(text: str) -> str:
    """Return the JSON of the figures that a page carries packed."""
    found = re.search(r'<script type="text/plain" id="figures">(.*?)</script>', text, re.DOTALL)
    assert found
    return gzip.decompress(base64.b64decode(found[1])).decode()


def figures(text: str) -> dict[str, dict[str, object]]:
    """Return the figures that a page carries."""
    loaded: dict[str, dict[str, object]] = json.loads(carried(text))
    return loaded
