"""Ends the process where something went wrong halfway through a step that must be whole.

After that, what the log says and what the store holds would differ, and later commits would make it
worse. A restart reads the log, which is whole. The C part ends the process likewise.
"""

from __future__ import annotations

import os
from typing import NoReturn


def end_process(step: str) -> NoReturn:
    """End the process at once, with a line on standard error.

    Args:
        step: what has not been completed.
    """
    try:
        os.write(2, f"zkv: out of memory, or a bug, in the middle of a {step}\n".encode())
    finally:
        os.abort()
