"""Key files."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import zmq

from zkv.errors import ConfigError
from zkv.keys import KeyPair, check_public_key, make_key_file, read_key_file


def test_a_key_file_is_one_line_that_its_owner_alone_may_read(tmp_path: Path) -> None:
    path = tmp_path / "ann.key"
    before = os.umask(0o377)
    try:
        public = make_key_file(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(path.read_bytes()) == 41
    assert path.read_bytes().endswith(b"\n")
    pair = read_key_file(path)
    assert pair.public == public == check_public_key(public)
    assert zmq.curve_public(pair.secret.encode()).decode() == public
    assert pair.secret not in repr(pair)


def test_a_public_key_may_follow_an_option(tmp_path: Path) -> None:
    """One that began with a dash would be taken for an option itself."""
    for number in range(500):  # Of all keys, one in 85 begins so.
        assert make_key_file(tmp_path / f"{number}.key")[0].isalnum()


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "ann.key"
    make_key_file(path)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"ann\.key: exists already"):
        make_key_file(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o601])
def test_a_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "ann.key"
    make_key_file(path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=rf"ann.key: others may read it \(mode {mode:04o}\)"):
        read_key_file(path)


NOBODY = 65534


@pytest.mark.parametrize(
    ("owner", "reader", "mode", "taken"),
    [
        (0, NOBODY, 0o440, True),  # By systemd, and by Kubernetes with fsGroup.
        (0, NOBODY, 0o640, True),
        (0, NOBODY, 0o444, False),
        (0, NOBODY, 0o660, False),
        (0, 0, 0o440, False),
        (NOBODY, NOBODY, 0o440, False),
        (1, NOBODY, 0o440, False),
    ],
)
def test_the_group_may_read_what_root_hands_to_a_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: int, reader: int, mode: int, taken: bool
) -> None:
    path = tmp_path / "ann.key"
    public = make_key_file(path)
    path.chmod(mode)
    of_file = os.fstat

    def owned(descriptor: int) -> os.stat_result:
        status = list(of_file(descriptor))
        status[stat.ST_UID] = owner
        return os.stat_result(status)

    with monkeypatch.context() as patched:
        patched.setattr("os.fstat", owned)
        patched.setattr("os.geteuid", lambda: reader)
        if taken:
            assert read_key_file(path).public == public
        else:
            with pytest.raises(ConfigError, match="others may read it"):
                read_key_file(path)


@pytest.mark.parametrize(
    "content", [b"", b"x" * 39, b"x" * 41, b"\xff" * 40, b"~" * 40, b"#" * 40, b"a b" * 13 + b"a"]
)
def test_what_is_no_key_is_refused_and_not_shown(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ann.key"
    path.touch(0o600)
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"ann\.key: not a key file") as caught:
        read_key_file(path)
    assert not content or content.decode("latin-1") not in str(caught.value)
    with pytest.raises(ValueError, match="not a key"):
        check_public_key(content.decode("latin-1"))


@pytest.mark.parametrize("name", ["absent.key", "", "a\0b"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError):
        read_key_file(tmp_path / name)
    with pytest.raises(ConfigError):
        make_key_file(tmp_path / "no" / "directory" / name)


def test_a_key_is_text() -> None:
    with pytest.raises(TypeError):
        check_public_key(b"x" * 40)
    assert "secret" not in repr(KeyPair("p", "s")).replace("secret=...", "")


def test_no_file_has_a_nul_in_its_name() -> None:
    for use in (make_key_file, read_key_file):
        with pytest.raises(ConfigError, match="NUL character"):
            use("a\0b")
