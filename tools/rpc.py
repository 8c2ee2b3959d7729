"""Generates `zkv/etcd/rpc.py` and its types, `rpc.pyi`, from `rpc.proto`.

    python tools/rpc.py            # writes the files
    python tools/rpc.py --check    # exit status 1 if one is outdated

The usual generated code demands a runtime of protobuf at least as new as the compiler, and puts its
messages where those of any other client of etcd in the process have the same names. So the module
has only the description of the messages, and makes the classes when it is imported, in a pool of
its own: it runs with every runtime that knows the description, and does not depend on the
compiler's version.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)

FOLDER: Final = Path(__file__).parents[1] / "zkv" / "etcd"
SOURCE: Final = "rpc.proto"
COMPILER: Final = Path(sys.executable).with_name("protoc")
HEADER: Final = '''\
"""The messages of etcd, made by tools/rpc.py from rpc.proto: `make generate`."""
'''
BODY: Final = """\

from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

_pool = DescriptorPool()  # Of its own: other clients of etcd have messages of the same names.
_pool.Add(FileDescriptorProto.FromString(bytes.fromhex(
{lines}
)))
for _name in (
{names}
):
    globals()[_name] = GetMessageClass(_pool.FindMessageTypeByName("{package}." + _name))
"""
TYPES: Final = """\
# ruff: noqa: D
from collections.abc import Iterable, MutableSequence
from typing import Self

class _Message:
    def SerializeToString(self) -> bytes: ...
    @classmethod
    def FromString(cls, data: bytes, /) -> Self: ...
    def WhichOneof(self, name: str, /) -> str | None: ...
"""
SCALARS: Final = {
    FieldDescriptorProto.TYPE_BOOL: "bool",
    FieldDescriptorProto.TYPE_BYTES: "bytes",
    FieldDescriptorProto.TYPE_INT64: "int",
    FieldDescriptorProto.TYPE_STRING: "str",
    FieldDescriptorProto.TYPE_UINT64: "int",
}


def compiled() -> FileDescriptorProto:
    """The description of the messages, without what depends on the compiler's version."""
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory) / "set"
        words = [str(COMPILER), f"-I{FOLDER}", f"--descriptor_set_out={target}", SOURCE]
        if status := subprocess.run(words, check=False).returncode:
            raise SystemExit(status)
        (file,) = FileDescriptorSet.FromString(target.read_bytes()).file
    for message in file.message_type:
        for field in message.field:
            field.ClearField("json_name")
    return file


def module(file: FileDescriptorProto) -> str:
    """The text of the module."""
    digits = file.SerializeToString(deterministic=True).hex()
    lines = [f'    "{digits[at : at + 88]}"' for at in range(0, len(digits), 88)]
    names = [f'    "{message.name}",' for message in file.message_type]
    return HEADER + BODY.format(
        lines="\n".join(lines), names="\n".join(names), package=file.package
    )


def types(file: FileDescriptorProto) -> str:
    """The text of the module's types."""
    lines = [line for message in file.message_type for line in class_of(message)]
    return HEADER + TYPES + "\n".join(lines) + "\n"


def class_of(message: DescriptorProto) -> Iterator[str]:
    """The lines for one message."""
    yield f"\nclass {message.name}(_Message):"
    for each in message.enum_type:
        yield from values_of(each)
    for field in message.field:
        yield f"    {field.name}: {type_of(field, 'MutableSequence')}"
    yield "    def __init__("
    if message.field:
        yield "        self,"
        yield "        *,"
        for field in message.field:
            yield f"        {field.name}: {type_of(field, 'Iterable')} = ...,"
        yield "    ) -> None: ..."
    else:
        yield "        self,"
        yield "    ) -> None: ..."


def values_of(enum: EnumDescriptorProto) -> Iterator[str]:
    """The lines for the values of an enum in a message."""
    for value in enum.value:
        yield f"    {value.name}: int"


def type_of(field: FieldDescriptorProto, many: str) -> str:
    """The type of a field; ``many`` is that of one that is repeated."""
    if field.type == FieldDescriptorProto.TYPE_MESSAGE:
        one = field.type_name.rpartition(".")[2]
    elif field.type == FieldDescriptorProto.TYPE_ENUM:
        one = "int"
    else:
        one = SCALARS[field.type]
    return f"{many}[{one}]" if field.label == FieldDescriptorProto.LABEL_REPEATED else one


def main(words: list[str]) -> int:
    """Run the command line; returns the exit status."""
    file = compiled()
    status = 0
    for name, text in (("rpc.py", module(file)), ("rpc.pyi", types(file))):
        target = FOLDER / name
        if words != ["--check"]:
            target.write_text(text, encoding="utf-8")
        elif not target.exists() or target.read_text(encoding="utf-8") != text:
            print(f"{target} is outdated: run make generate", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
