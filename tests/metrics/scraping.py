"""A client of the endpoint for monitoring."""

from __future__ import annotations

import http.client
from typing import NamedTuple

from tests.support import LIMIT

CLASSIC = "text/plain;version=0.0.4"
OPENMETRICS = "application/openmetrics-text;version=1.0.0"


class Answer(NamedTuple):
    """What came over HTTP."""

    status: int
    content_type: str
    text: str


def ask(url: str, path: str, accept: str = "*/*", method: str = "GET") -> Answer:
    """The answer to one request."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=LIMIT)
    try:
        connection.request(method, path, headers={"Accept": accept})
        answer = connection.getresponse()
        return Answer(answer.status, answer.headers.get("Content-Type", ""), answer.read().decode())
    finally:
        connection.close()
