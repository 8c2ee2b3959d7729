"""The checks of `zkv doctor` about security: keys, users, and who can reach the server.

The settings and their files are checked where they are, without a server. Whether a server asks for
keys is seen from outside: each listener of ZeroMQ tells its mechanism, unencrypted, before anything
else (ZMTP 3.0, https://rfc.zeromq.org/spec/23/).
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from zkv.cli.diagnosis import ACT, FINE, TELL, Diagnosis
from zkv.cli.settings import read_file_and_environment
from zkv.client import Client
from zkv.client.curve import server_key_of
from zkv.client.trouble import mechanism_at
from zkv.endpoint import host_of, is_exposed
from zkv.errors import ConfigError
from zkv.keys import read_key_file
from zkv.users.file import read_users

CLIENT_KEY: Final = "ZKV_KEY_FILE"
"""The variable that names the key file of a client."""
LONG: Final = 30 * 86_400.0
"""Seconds after which a change of the server's key should be complete."""
EVERYWHERE: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104  nothing is bound here
PATIENCE: Final = 2.0
GUIDE: Final = "see docs/security.md"

Info = dict[str, Any]


def check_here(config: Path | None) -> Iterator[Diagnosis]:
    """All findings that need no server. Raises ConfigError.

    Args:
        config: the file of the server's settings; None = they are not checked.
    """
    if config is not None:
        security = read_file_and_environment(config).security
        for file in security.key_files:
            yield _of_key_file(file)
        yield from _of_old_key(security.key_files)
        if security.users:
            yield from _of_users_file(Path(security.users))
        if security.insecure:
            yield Diagnosis(
                TELL, "insecure",
                f"{config}: insecure = true: the server would start without keys wherever it "
                "can be reached",
                "set it to false, unless that is what you want",
            )  # fmt: skip
    if named := os.environ.get(CLIENT_KEY):
        yield _of_key_file(named)


def _of_key_file(file: str) -> Diagnosis:
    """Is a key file good, and for its owner alone?"""
    try:
        public = read_key_file(file).public
    except ConfigError as error:
        advice = "neither a server nor a client uses it so; if others have read it, make a new key"
        return Diagnosis(ACT, "key", str(error), advice)
    return Diagnosis(FINE, "key", f"{file} is for its owner alone; its public key is {public}")


def _of_old_key(files: list[str]) -> Iterator[Diagnosis]:
    """Is a change of the server's key complete?"""
    try:
        newest = max(Path(file).stat().st_mtime for file in files) if len(files) > 1 else None
    except OSError:
        return  # It has a finding already.
    if newest is not None and time.time() - newest > LONG:
        days = (time.time() - newest) / 86_400
        yield Diagnosis(
            ACT, "old key",
            f"the server has had two keys for {days:.0f} days: whoever has the old one can still "
            "pretend to be the server",
            "once all clients know the new key, name that one alone in security.secret_key_file",
        )  # fmt: skip


def _of_users_file(path: Path) -> Iterator[Diagnosis]:
    """Is the users file good, and who may write it?"""
    try:
        users = read_users(path)
        places = [each for each in (path, path.absolute().parent) if _others_may_write(each)]
    except (ConfigError, OSError) as error:
        advice = "a server does not start with it, and on SIGHUP keeps the users that it has"
        yield Diagnosis(ACT, "users", str(error), advice)
        return
    for place in places:
        yield Diagnosis(
            ACT, "users", f"{place}: others may write it, and so give themselves every right",
            f"chmod go-w {place}",
        )  # fmt: skip
    if not places:
        yield Diagnosis(FINE, "users", f"{len(users):,} in {path}, which others may not write")


def _others_may_write(place: Path) -> bool:
    """Return True if the group or others may write a file, or replace those in a directory."""
    mode = place.stat().st_mode
    if stat.S_ISDIR(mode) and mode & stat.S_ISVTX:
        return False
    return bool(mode & (stat.S_IWGRP | stat.S_IWOTH))


def check_exposure(client: Client, info: Info) -> Iterator[Diagnosis]:
    """Who can reach the server, and what does it ask of them?"""
    listening = [*info["endpoints"], info["feed"] or ""]
    exposed = [each for each in listening if is_exposed(each)]
    if not exposed:
        yield Diagnosis(FINE, "exposure", "only this machine can reach the server")
        return
    # It asks for keys at all of its tcp endpoints, or at none.
    if client.endpoint.startswith("tcp://"):
        mechanism = "CURVE" if server_key_of(client) else "NULL"
    else:
        mechanism = _mechanism(exposed[0])
    yield _of_exposed(f"other machines can reach {', '.join(exposed)}", mechanism, info)


def _of_exposed(text: str, mechanism: str, info: Info) -> Diagnosis:
    """Is a server protected that other machines can reach?"""
    has_users = "user" in info
    match mechanism:
        case "CURVE" if has_users:
            return Diagnosis(FINE, "exposure", f"{text}, with the key of a user")
        case "CURVE":
            return Diagnosis(
                TELL, "exposure",
                f"{text}: whoever knows the server's public key can read, write and stop it",
                f"security.users sets who may connect, and what each may do: {GUIDE}",
            )  # fmt: skip
        case "NULL" if has_users:
            return Diagnosis(
                TELL, "exposure",
                f"{text} without a key: they are the user anonymous, and nothing is encrypted",
                f"security.secret_key_file has them ask for keys: {GUIDE}",
            )  # fmt: skip
        case "NULL":
            return Diagnosis(
                ACT, "exposure", f"{text}: anyone can read, write and stop it",
                f"set security.secret_key_file and security.users: {GUIDE}",
            )  # fmt: skip
    return Diagnosis(TELL, "exposure", f"{text}; if it asks for keys could not be seen")


def _mechanism(endpoint: str) -> str:
    """Return the mechanism that a listener of this machine asks for; empty if it does not tell."""
    host = host_of(endpoint)
    if host in EVERYWHERE:
        host = "::1" if ":" in host else "127.0.0.1"
    return mechanism_at(host, int(endpoint.rpartition(":")[2]), PATIENCE)
