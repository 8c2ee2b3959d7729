"""The stop of the server: one object for each server, which its threads look at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zkv import compiled

if TYPE_CHECKING:
    _Base = object
else:  # The front looks at it in each turn: see zkv/compiled/states.c.
    _Base = compiled.store.StoppingBase if compiled.COMPILED else object


class Stopping(_Base):
    """The stop of the server.

    Attributes:
        begun: True once new requests must be refused.
    """

    def __init__(self) -> None:
        self.begun = False
