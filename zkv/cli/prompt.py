"""The prompt of the shell: reads commands of one or more lines, with history and completion.

To complete keys, a separate thread asks the server, with a short timeout. So Tab never delays
typing, and if no server answers, no keys are offered.
"""

from __future__ import annotations

import argparse
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.completion import (
    CompleteEvent,
    Completer,
    Completion,
    PathCompleter,
    ThreadedCompleter,
)
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.styles import Style

from zkv.cli.arguments import COMMANDS, OPTIONS
from zkv.cli.lexer import Word, split
from zkv.cli.ops import Argument, Command
from zkv.cli.text import word
from zkv.client import Client, ClientError, RetryPolicy
from zkv.client.curve import given
from zkv.endpoint import listed

PATIENCE: Final = 0.5
"""Seconds to wait for keys."""
IMPATIENT: Final = RetryPolicy(wait_for_start=False)
OFFERED: Final = 100
"""The largest number of keys offered."""
KEY_NAMES: Final = frozenset({"KEY", "PREFIX", "KEY VALUE", "OLD", "NEW"})
"""The names of arguments that are a key, or the beginning of one."""
STYLE: Final = Style.from_dict({"endpoint": "ansicyan", "more": "ansibrightblack"})


class Prompt:
    """Reads lines from the terminal, and keeps a history of them."""

    def __init__(self) -> None:
        self._completer = WordCompleter()
        self._session: PromptSession[str] = PromptSession(
            history=_history(),
            completer=ThreadedCompleter(self._completer),
            complete_while_typing=False,
            auto_suggest=AutoSuggestFromHistory(),
            multiline=Condition(lambda: not split(get_app().current_buffer.text).is_whole),
            prompt_continuation=[("class:more", "... ")],
            style=STYLE,
        )

    def ask(self, options: argparse.Namespace) -> str:
        """Read the next line. Raises EOFError after Ctrl-D, KeyboardInterrupt after Ctrl-C."""
        self._completer.options = options
        return self._session.prompt([("class:endpoint", options.endpoint), ("", "> ")])


class _History(FileHistory):
    """A history that ignores errors when it writes its file."""

    def store_string(self, string: str) -> None:
        """Append a line to the file, if that is possible."""
        with suppress(OSError, UnicodeError):
            super().store_string(string)


class WordCompleter(Completer):
    """Completes commands, options and their values, file names, and keys."""

    options: argparse.Namespace

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterator[Completion]:
        """The completions of the word before the cursor."""
        before = document.text_before_cursor
        words = split(before).words
        if not words or (before[-1:].isspace() and split(before).is_whole):
            words.append(Word("", len(before)))
        *earlier, typed = words
        back = typed.begin - len(before)
        if not earlier:
            yield from _completions(_commands(typed.text), typed.text, back)
            return
        command = COMMANDS.get(earlier[0].text.lower())
        if command is None:
            help_of = [*COMMANDS] if earlier[0].text.lower() == "help" else []
            yield from _completions(help_of, typed.text, back)
            return
        if typed.text.startswith("-"):
            own = [name for each in command.arguments if each.is_option for name in each.names]
            common = [name for each in OPTIONS for name in each.names]
            yield from _completions([*own, *common, "--help"], typed.text, back)
            return
        argument = _argument(command, [each.text for each in earlier[1:]])
        if argument is None:
            return
        if argument.is_file:
            part = Document(typed.text)
            yield from PathCompleter(expanduser=True).get_completions(part, event)
        elif argument.settings.get("metavar") in KEY_NAMES:
            for key in self._keys(typed.text):
                yield Completion(word(key), back, display=key)
        else:
            yield from _completions(argument.settings.get("choices", ()), typed.text, back)

    def _keys(self, prefix: str) -> list[str]:
        """Keys with this prefix; none if the server does not answer in time."""
        try:
            endpoints, keys = listed(self.options.endpoint), given(self.options)
            with Client(endpoints, PATIENCE, retry=IMPATIENT, **keys) as client:
                page = client.call("SCAN", prefix=prefix, limit=OFFERED, values=False)
            return [key for key, _, _ in page["items"]]
        except (ClientError, ValueError, TypeError, KeyError):
            return []


def _commands(typed: str) -> list[str]:
    names = [*COMMANDS, "help", "exit"]
    return [name.upper() for name in names] if typed.isupper() else names


def _completions(choices: Iterable[str], typed: str, back: int) -> Iterator[Completion]:
    return (Completion(each, back) for each in choices if each.startswith(typed))


def _argument(command: Command, words: list[str]) -> Argument | None:
    """The argument that the next word belongs to, if ``words`` follow the command."""
    options = {
        name: each for each in (*OPTIONS, *command.arguments) if each.is_option
        for name in each.names
    }  # fmt: skip
    open_option: Argument | None = None
    count = 0
    for typed in words:
        if open_option is not None:
            open_option = None
        elif typed in options:
            open_option = options[typed] if "metavar" in options[typed].settings else None
        elif not typed.startswith("-") or typed == "-":
            count += 1
    if open_option is not None:
        return open_option
    positional = [each for each in command.arguments if not each.is_option]
    for each in positional:
        if each.settings.get("nargs") == "+":
            is_value = each.settings["metavar"] == "KEY VALUE" and count % 2
            return None if is_value else each
        if count == 0:
            return each
        count -= 1
    return None


def _history() -> History:
    """The history, in a file that only the user can read, or in memory if that is impossible."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    path = Path(state) / "zkv" / "history"
    with suppress(OSError, RuntimeError, ValueError):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NONBLOCK, 0o600)
        try:
            is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
            if is_file:  # It may be a link to a device, whose mode must not change.
                os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)
        if is_file:
            return _History(path)
    return InMemoryHistory()
