"""Offer ``assert_stable`` as a fixture to every test suite; nothing but pytest is imported before a test asks for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest


@pytest.fixture
def assert_stable(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Return ``rheoscope.assert_stable``; known findings are read from rheoscope.toml beside pytest's own settings, if there."""
    from rheoscope.diagnostics.suppression import FILE

    from .stability import assert_stable as asserted

    known = request.config.rootpath / FILE
    return partial(asserted, suppress=known) if known.is_file() else asserted
