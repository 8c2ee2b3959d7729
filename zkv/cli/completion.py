"""``zkv-cli completion``: prints a completion script for bash, zsh or fish.

The script is made from the table of commands and does not run zkv-cli, so completion is quick.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from shlex import quote
from typing import Final

from zkv.cli.asking import CommandSession
from zkv.cli.ops import Argument, Command
from zkv.cli.output import print_result

BASH: Final = """\
_zkv_cli() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} command= choices= i
    case ${{COMP_WORDS[COMP_CWORD - 1]}} in
        {with_choice}
        {with_file}) COMPREPLY=($(compgen -f -- "$word")); return ;;
        {with_value}) COMPREPLY=(); return ;;
    esac
    # bash splits an endpoint at its colons: the command is the first word that is one.
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${{COMP_WORDS[i]}} in {names}) command=${{COMP_WORDS[i]}}; break ;; esac
    done
    case $command/$word in
        {cases}
    esac
    COMPREPLY=($(compgen -W "$choices" -- "$word"))
}}
complete -F _zkv_cli zkv-cli"""


def run(_session: CommandSession, options: argparse.Namespace) -> int:
    """Print the script for a shell."""
    from zkv.cli.arguments import COMMANDS, OPTIONS

    print_result(script(options.shell, COMMANDS, OPTIONS))
    return 0


def script(shell: str, commands: Mapping[str, Command], options: Sequence[Argument]) -> str:
    """The script for ``shell``, which is bash, zsh or fish.

    Args:
        shell: its name.
        commands: all commands by name.
        options: the options that every command takes.
    """
    if shell == "fish":
        return "\n".join(_fish(commands, options))
    start = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    return start + _bash(commands, options)


def _bash(commands: Mapping[str, Command], options: Sequence[Argument]) -> str:
    lower = " ".join(commands)
    common = [name for option in options for name in option.names] + ["-h", "--help"]
    cases = {
        "/-*": [*common, "--version"],
        "/[[:upper:]]*": [lower.upper()],
        "/*": [lower],
    }
    for name, command in commands.items():
        own = [word for option in _own_options(command) for word in option.names]
        cases[f"{name}/-*|{name.upper()}/-*"] = [*own, *common]
        cases[f"{name}/*|{name.upper()}/*"] = _choices(command)
    lines = [f"{case}) choices='{' '.join(words)}' ;;" for case, words in cases.items() if words]
    lines += [
        f'{name}/*|{name.upper()}/*) COMPREPLY=($(compgen -f -- "$word")); return ;;'
        for name, command in commands.items()
        if _takes_file(command)
    ]
    of_options = [
        f"{'|'.join(option.names)}) choices='{' '.join(option.settings['choices'])}'; "
        'COMPREPLY=($(compgen -W "$choices" -- "$word")); return ;;'
        for option in _having_choices(commands, options)
    ]
    return BASH.format(
        with_choice="\n        ".join(of_options),
        with_file="|".join(name for option in options if option.is_file for name in option.names),
        with_value="|".join(_taking_value(commands, options)),
        names=f"{lower} {lower.upper()}".replace(" ", "|"),
        cases="\n        ".join(lines),
    )


def _taking_value(commands: Mapping[str, Command], options: Sequence[Argument]) -> list[str]:
    """The names of all options that take a value of free text."""
    own = [option for command in commands.values() for option in _own_options(command)]
    taking = [
        option.names for option in (*options, *own)
        if "metavar" in option.settings and not option.is_file
    ]  # fmt: skip
    return list(dict.fromkeys(name for names in taking for name in names))


def _having_choices(commands: Mapping[str, Command], options: Sequence[Argument]) -> list[Argument]:
    """All options with a fixed list of values, each once."""
    own = [option for command in commands.values() for option in _own_options(command)]
    having = [option for option in (*options, *own) if "choices" in option.settings]
    return list({option.names: option for option in having}.values())


def _fish(commands: Mapping[str, Command], options: Sequence[Argument]) -> list[str]:
    names = " ".join([*commands, *map(str.upper, commands)])
    lines = ["-f", *map(_fish_option, options)]
    for name, command in commands.items():
        before = f"-n 'not __fish_seen_subcommand_from {names}'"
        behind = f"-n '__fish_seen_subcommand_from {name} {name.upper()}'"
        lines.append(f"{before} -a {name} -d {quote(command.summary)}")
        lines += [f"{behind} {_fish_option(option)}" for option in _own_options(command)]
        lines += [f"{behind} -a '{' '.join(words)}'" for words in [_choices(command)] if words]
        lines += [f"{behind} -F"] if _takes_file(command) else []
    return [f"complete -c zkv-cli {line}" for line in lines]


def _fish_option(option: Argument) -> str:
    names = [f"-{'l' if name.startswith('--') else 's'} {name.strip('-')}" for name in option.names]
    value = ["-x"] if "metavar" in option.settings else []
    if option.is_file:
        value = ["-r", "-F"]
    if "choices" in option.settings:
        value.append(f"-a '{' '.join(option.settings['choices'])}'")
    return " ".join([*names, *value, "-d", quote(option.settings["help"])])


def _own_options(command: Command) -> list[Argument]:
    return [argument for argument in command.arguments if argument.is_option]


def _takes_file(command: Command) -> bool:
    return any(argument.is_file for argument in command.arguments)


def _choices(command: Command) -> list[str]:
    """The values allowed for the positional arguments of ``command``."""
    return [
        word
        for argument in command.arguments
        if not argument.is_option and argument.settings["help"] != argparse.SUPPRESS
        for word in argument.settings.get("choices", ())
    ]
