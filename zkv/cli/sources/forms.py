"""Makes values of the bytes of another system: ``--values``.

Nothing is guessed from what a value looks like: all values are taken in one form, and those that
do not have it are left out.
"""

from __future__ import annotations

import pickle
from typing import Any, Final

import msgpack

from zkv.cli.sources import Convert
from zkv.client.codec import Packed
from zkv.client.slicing import is_one_value
from zkv.client.values import pack
from zkv.entries.value_reader import parse
from zkv.reading import BadTextError

BIN: Final = "bin"


def as_bin(data: bytes) -> Packed:
    """The bytes, as bin."""
    return Packed(_pack(data))


def as_text(data: bytes) -> Packed:
    """Text in UTF-8, as str."""
    return Packed(_pack(_text(data)))


def as_json(data: bytes) -> Packed:
    """The value that the JSON has."""
    try:
        return _packed(parse(_text(data)))
    except BadTextError as error:
        raise ValueError(f"its value is no JSON: {error}") from None


def as_msgpack(data: bytes) -> Packed:
    """The bytes, which are msgpack."""
    if not is_one_value(data):
        raise ValueError("its value is not one msgpack value")
    return Packed(data)


def as_pickle(data: bytes) -> Packed:
    """The object in the pickle, which runs what its writer wants: he has to be trusted."""
    try:
        value = pickle.loads(data)  # noqa: S301  only where the user asks for it
    except Exception as error:  # What it runs may raise anything.
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"its value cannot be unpickled: {what:.200}") from None
    return _packed(value)


FORMS: Final[dict[str, Convert]] = {
    BIN: as_bin,
    "text": as_text,
    "json": as_json,
    "msgpack": as_msgpack,
    "pickle": as_pickle,
}
"""The name of a form -> what makes a value in it."""

_pack: Final = msgpack.Packer().pack


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ValueError("its value is not UTF-8") from None


def _packed(value: Any) -> Packed:
    try:
        return Packed(pack(value))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"its value is none of msgpack: {error!s:.200}") from None
