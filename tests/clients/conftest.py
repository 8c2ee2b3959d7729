"""Fixtures of the tests of the clients in other languages."""

from __future__ import annotations

import pytest

from tests.clients.languages import Language, languages


@pytest.fixture(params=languages(), ids=repr)
def language(request: pytest.FixtureRequest) -> Language:
    """Each language, if it can be run here; a test may choose others as its parameters."""
    found: Language = request.param
    if not found.is_present:
        pytest.skip(f"NOT RUN: {found} is not installed here (make clients-deps)")
    found.build()
    return found
