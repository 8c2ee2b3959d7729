"""What operations on files leave on a disk: after a kill, and after a power cut.

A `Disk` that is given operations one by one knows three things about any moment: what a process
that is killed leaves (`Disk.as_written`), what is certain to survive a power cut (`as_synced`), and
what may be found after one, in as many ways as there are random numbers (`torn`).

The model is what POSIX promises and no more, as in Pillai et al., "All File Systems Are Not Created
Equal" (OSDI 2014). Until a file is synced, any part of what was written to it may be on disk: some
of the writes, some of their sectors of 512 bytes, the size without what filled it. Until its
directory is synced, each name that is new, renamed or removed may be so on disk, or not yet. What a
sync has failed on stays doubtful for ever, whatever later ones say (Rebello et al., "Can
Applications Recover from fsync Failures?", USENIX ATC 2020).
"""

from __future__ import annotations

import enum
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from random import Random
from typing import Any, Final, NamedTuple

SECTOR: Final = 512
"""What a disk writes whole or not at all."""
ROOT: Final = PurePath()


# --- What was done -----------------------------------------------------------------------------


class MakeDirectory(NamedTuple):
    path: PurePath


class Create(NamedTuple):
    path: PurePath
    inode: int


class Write(NamedTuple):
    inode: int
    offset: int
    data: bytes


class Truncate(NamedTuple):
    inode: int
    size: int


class Sync(NamedTuple):
    inode: int


class FailedSync(NamedTuple):
    inode: int


class Rename(NamedTuple):
    old: PurePath
    new: PurePath


class Link(NamedTuple):
    old: PurePath
    new: PurePath


class Remove(NamedTuple):
    path: PurePath


class RemoveDirectory(NamedTuple):
    path: PurePath


class SyncDirectory(NamedTuple):
    path: PurePath


class Mark(NamedTuple):
    """Something that happened at this point, as far as the test is concerned."""

    what: tuple[Any, ...]


Operation = (
    MakeDirectory | Create | Write | Truncate | Sync | FailedSync | Rename | Link | Remove
    | RemoveDirectory | SyncDirectory | Mark
)  # fmt: skip


# --- What is left of it ------------------------------------------------------------------------

Tree = dict[PurePath, bytes | None]
"""Relative path -> the file's content; None for a directory."""


class Keep(enum.Enum):
    """How a torn file or directory chooses among what was not synced."""

    NOTHING = enum.auto()
    ALL = enum.auto()
    FIRST = enum.auto()
    """The first so many, the last of these perhaps in part."""
    SOME = enum.auto()
    SECTORS = enum.auto()


class _State(enum.Enum):
    PENDING = enum.auto()
    DONE = enum.auto()
    DOUBTFUL = enum.auto()


@dataclass
class _Effect:
    """A write or a truncation, and how certain it is."""

    operation: Write | Truncate
    state: _State = _State.PENDING


@dataclass
class _Content:
    """One file, whatever its name."""

    base: bytes = b""
    effects: list[_Effect] = field(default_factory=list)

    def sync(self) -> None:
        for effect in self.effects:
            if effect.state is _State.PENDING:
                effect.state = _State.DONE
        # Up to the first doubtful one, the outcome is certain: it need not be worked out again.
        certain = 0
        data = bytearray(self.base)
        for effect in self.effects:
            if effect.state is not _State.DONE:
                break
            _perform(data, effect.operation)
            certain += 1
        self.base = bytes(data)
        del self.effects[:certain]

    def sync_failed(self) -> None:
        for effect in self.effects:
            if effect.state is _State.PENDING:
                effect.state = _State.DOUBTFUL

    def as_written(self) -> bytes:
        data = bytearray(self.base)
        for effect in self.effects:
            _perform(data, effect.operation)
        return bytes(data)

    def as_synced(self) -> bytes:
        data = bytearray(self.base)
        for effect in self.effects:
            if effect.state is _State.DONE:
                _perform(data, effect.operation)
        return bytes(data)

    def torn(self, random: Random) -> bytes:
        keep = random.choice(list(Keep))
        unsure = [effect for effect in self.effects if effect.state is not _State.DONE]
        first = random.randrange(len(unsure) + 1)
        data = bytearray(self.base)
        number = 0
        for effect in self.effects:
            if effect.state is _State.DONE:
                _perform(data, effect.operation)
                continue
            if keep is Keep.SECTORS or (keep is Keep.FIRST and number == first):
                _perform_torn(data, effect.operation, random)
            elif _kept(keep, number, first, random):
                _perform(data, effect.operation)
            number += 1
        if random.random() < 0.3:  # The size reached the disk, and not what filled it.
            data.extend(bytes(max(0, len(self.as_written()) - len(data))))
        return bytes(data)


class _Move:
    """A rename between two directories: on disk in both, or in neither.

    POSIX does not say so, but file systems with a journal or a log do it: else a file that is
    renamed could be lost. It is on disk once either directory is synced.
    """

    def __init__(self) -> None:
        self.is_certain = False


class _Edit(NamedTuple):
    """What one operation does to names, all of it or nothing; None = the name is gone."""

    names: dict[str, _Target | None]
    move: _Move | None = None


@dataclass(eq=False)
class _Directory:
    base: _Names = field(default_factory=dict)
    edits: list[_Edit] = field(default_factory=list)

    def sync(self) -> None:
        for edit in self.edits:
            if edit.move is not None:
                edit.move.is_certain = True
        self.base = self.as_written()
        self.edits.clear()

    def as_written(self) -> _Names:
        return _edited(self.base, self.edits)

    def as_synced(self) -> _Names:
        return _edited(self.base, [e for e in self.edits if e.move and e.move.is_certain])

    def torn(self, random: Random, moved: dict[_Move, bool]) -> _Names:
        """What may be found.

        Args:
            random: chooses.
            moved: whether a move is on disk, as far as that has been chosen.
        """
        keep = random.choice([Keep.NOTHING, Keep.ALL, Keep.FIRST, Keep.SOME])
        first = random.randrange(len(self.edits) + 1)
        kept = []
        for number, edit in enumerate(self.edits):
            if edit.move is None:
                is_kept = _kept(keep, number, first, random)
            else:
                is_kept = moved.setdefault(
                    edit.move, edit.move.is_certain or _kept(keep, number, first, random)
                )
            if is_kept:
                kept.append(edit)
        return _edited(self.base, kept)


_Target = int | _Directory
"""What a name stands for: a file's inode, or a directory."""
_Names = dict[str, _Target]
_Choose = Callable[[_Directory], _Names]
_Read = Callable[[_Content], bytes]


class Disk:
    """What a series of operations leaves behind, whenever it ends.

    Args:
        tree: what was there before, all of it synced.
    """

    def __init__(self, tree: Tree | None = None) -> None:
        self._contents: dict[int, _Content] = {}
        # By their present paths.
        self._directories: dict[PurePath, _Directory] = {ROOT: _Directory()}
        for number, (path, data) in enumerate(sorted((tree or {}).items())):
            if data is None:
                self._directories[path] = made = _Directory()
                self._directories[path.parent].base[path.name] = made
            else:
                inode = -1 - number  # The recorder counts up from 0.
                self._contents[inode] = _Content(data)
                self._directories[path.parent].base[path.name] = inode

    def inode(self, path: PurePath) -> int | None:
        """The file that has this name now."""
        directory = self._directories.get(path.parent)
        target = None if directory is None else directory.as_written().get(path.name)
        return target if isinstance(target, int) else None

    def apply(self, operation: Operation) -> None:
        """Have ``operation`` done."""
        match operation:
            case MakeDirectory(path):
                self._directories[path] = made = _Directory()
                self._edit(path.parent, {path.name: made})
            case Create(path, inode):
                self._contents[inode] = _Content()
                self._edit(path.parent, {path.name: inode})
            case Write(inode) | Truncate(inode):
                self._contents[inode].effects.append(_Effect(operation))
            case Sync(inode):
                self._contents[inode].sync()
            case FailedSync(inode):
                self._contents[inode].sync_failed()
            case Rename(old, new):
                self._rename(old, new)
            case Link(old, new):
                self._edit(new.parent, {new.name: self.inode(old)})
            case Remove(path):
                self._edit(path.parent, {path.name: None})
            case RemoveDirectory(path):
                self._edit(path.parent, {path.name: None})
                del self._directories[path]
            case SyncDirectory(path):
                self._directories[path].sync()
            case Mark():
                pass

    def as_written(self) -> Tree:
        """What a process that is killed now leaves: the kernel writes it all in the end."""
        return self._tree(lambda d: d.as_written(), lambda c: c.as_written())

    def as_synced(self) -> Tree:
        """What a power cut leaves at least."""
        return self._tree(lambda d: d.as_synced(), lambda c: c.as_synced())

    def torn(self, random: Random) -> Tree:
        """What a power cut may leave."""
        moved: dict[_Move, bool] = {}
        return self._tree(lambda d: d.torn(random, moved), lambda c: c.torn(random))

    def unsynced(self) -> bool:
        """Whether anything at all could be lost now."""
        return any(c.effects for c in self._contents.values()) or any(
            d.edits for d in self._directories.values()
        )

    def _rename(self, old: PurePath, new: PurePath) -> None:
        target = self._directories[old.parent].as_written()[old.name]
        if old.parent == new.parent:
            self._edit(old.parent, {old.name: None, new.name: target})
        else:
            move = _Move()
            self._edit(old.parent, {old.name: None}, move)
            self._edit(new.parent, {new.name: target}, move)
        for path in [path for path in self._directories if path.is_relative_to(old)]:
            self._directories[new / path.relative_to(old)] = self._directories.pop(path)

    def _edit(
        self, directory: PurePath, names: dict[str, _Target | None], move: _Move | None = None
    ) -> None:
        self._directories[directory].edits.append(_Edit(names, move))

    def _tree(self, names: _Choose, content: _Read) -> Tree:
        tree: Tree = {}
        waiting = [(ROOT, self._directories[ROOT])]
        while waiting:
            path, directory = waiting.pop()
            for name, target in sorted(names(directory).items()):
                if isinstance(target, _Directory):
                    tree[path / name] = None
                    waiting.append((path / name, target))
                else:
                    tree[path / name] = content(self._contents[target])
        return tree


def _kept(keep: Keep, number: int, first: int, random: Random) -> bool:
    match keep:
        case Keep.NOTHING:
            return False
        case Keep.ALL:
            return True
        case Keep.FIRST:
            return number < first
        case _:
            return random.random() < 0.5


def _edited(base: _Names, edits: Iterable[_Edit]) -> _Names:
    names = dict(base)
    for edit in edits:
        for name, target in edit.names.items():
            if target is None:
                names.pop(name, None)
            else:
                names[name] = target
    return names


def _perform(data: bytearray, operation: Write | Truncate) -> None:
    match operation:
        case Write(_, offset, new):
            data.extend(bytes(max(0, offset - len(data))))
            data[offset : offset + len(new)] = new
        case Truncate(_, size):
            del data[size:]
            data.extend(bytes(size - len(data)))


def _perform_torn(data: bytearray, operation: Write | Truncate, random: Random) -> None:
    """Perform the part of ``operation`` that falls into some of its sectors."""
    if isinstance(operation, Truncate):
        if random.random() < 0.5:
            _perform(data, operation)
        return
    begin = operation.offset
    end = begin + len(operation.data)
    while begin < end:
        next_sector = min(end, (begin // SECTOR + 1) * SECTOR)
        if random.random() < 0.5:
            piece = operation.data[begin - operation.offset : next_sector - operation.offset]
            _perform(data, Write(operation.inode, begin, piece))
        begin = next_sector


def read_tree(root: Path) -> Tree:
    """What is below ``root``."""
    tree: Tree = {}
    for directory, inner, files in os.walk(root):
        here = PurePath(os.path.relpath(directory, root))
        tree.update(dict.fromkeys(here / name for name in inner))
        for name in files:
            with open(os.path.join(directory, name), "rb") as file:
                tree[here / name] = file.read()
    return tree


def write_tree(tree: Tree, root: Path) -> None:
    """Make ``tree`` in the empty directory ``root``."""
    for path, data in sorted(tree.items()):
        if data is None:
            os.mkdir(root / path)
        else:
            with open(root / path, "wb") as file:
                file.write(data)
