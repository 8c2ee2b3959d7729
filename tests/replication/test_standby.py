"""A standby has what its primary has, answers what it may, and goes on after whatever happens."""

from __future__ import annotations

import json
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from tests.broker.followers import Follower as FeedFollower
from tests.broker.followers import Published
from tests.conftest import Connect
from tests.forking import run_zkv
from tests.replication.following import (
    Follower,
    applied,
    await_log,
    await_new_history,
    catch_up,
    compact,
    fixed_ports,
    promote,
    replication,
    state_of,
    write_some,
)
from tests.support import (
    FREE_PORT,
    Message,
    Raw,
    ServerInProcess,
    ServerProcess,
    curve_options,
    eventually,
)
from zkv.keys import make_key_file, read_key_file

Context = zmq.Context[zmq.Socket[bytes]]

CONFIG = """
[durability]
segment_bytes = 4096

[[cache]]
prefix = "cache/"
max_bytes = 2000
"""
"""Small segments, so that a snapshot soon removes some."""


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path / "primary", *fixed_ports(), config=CONFIG) as process:
        yield process


@pytest.fixture
def standby(tmp_path: Path, primary: ServerProcess) -> Iterator[Follower]:
    flags = ("--feed", FREE_PORT)
    with Follower(tmp_path / "standby", primary.endpoint, *flags, config=CONFIG) as process:
        yield process


def damage(path: Path) -> None:
    """Flip a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def same_state(one: ServerProcess, other: ServerProcess) -> None:
    assert state_of(one.data_dir) == state_of(other.data_dir)


def test_it_has_what_the_primary_has(
    primary: ServerProcess, standby: Follower, connect: Connect
) -> None:
    one, two = connect(primary.endpoint), connect(standby.endpoint)
    write_some(one)
    one.ok(op="PUT", key="soon", value=1, ttl=0.03)
    one.ok(op="PUT", key="later", value=1, ttl=1000)
    one.ok(op="DELETE", key="k3")
    one.ok(op="TXN", ops=[{"op": "PUT", "key": "t1", "value": [1]}, {"op": "INCR", "key": "t2"}])
    one.ok(op="INCR", key="n", session="s", seq=1)
    refused = {"op": "PUT", "key": "k1", "value": 0, "if_rev": 10**9, "session": "s", "seq": 2}
    assert one.call(**refused)["code"] == "CONFLICT"
    for number in range(20):
        one.ok(op="PUT", key=f"cache/{number}", value="x" * 300)
    eventually(lambda: one.ok(op="INFO")["stats"]["expired"] == 1, "the expiry")
    assert one.ok(op="INFO")["stats"]["evicted"]
    catch_up(two, one)
    same_state(primary, standby)
    for key in ("k1", "later", "t1", "t2", "n"):
        there, here = one.ok(op="GET", key=key), two.ok(op="GET", key=key, stale=True)
        assert (there["value"], there["rev"]) == (here["value"], here["rev"])
    assert two.call(op="GET", key="soon", stale=True)["code"] == "NOT_FOUND"
    assert two.ok(op="COUNT", stale=True)["count"] == one.ok(op="COUNT")["count"]
    assert two.ok(op="CHANGES", since=0) == one.ok(op="CHANGES", since=0)


@pytest.mark.parametrize("is_newest", [False, True])
def test_a_refusal_between_two_connections_is_not_lost(
    primary: ServerProcess, tmp_path: Path, connect: Connect, is_newest: bool
) -> None:
    one = connect(primary.endpoint)
    write_some(one)
    with Follower(tmp_path / "standby", primary.endpoint) as standby:
        two = connect(standby.endpoint)
        catch_up(two, one)
        assert standby.stop() == 0
        # It takes a place in the log, and no revision.
        refused = {"op": "PUT", "key": "k1", "value": 0, "if_rev": 999, "session": "s"}
        first = one.call(**refused, seq=1)
        assert first["code"] == "CONFLICT"
        if not is_newest:
            one.ok(op="DELETE", key="k1")
        standby.start()
        two = connect(standby.endpoint)
        catch_up(two, one)
        same_state(primary, standby)
        assert promote(standby.endpoint).returncode == 0
        assert two.call(**refused, seq=1) == first | {"replayed": True}


def test_it_answers_what_may_be_stale_and_sends_the_rest_to_the_primary(
    primary: ServerProcess, standby: Follower, connect: Connect
) -> None:
    one, two = connect(primary.endpoint), connect(standby.endpoint)
    rev = one.ok(op="PUT", key="k", value=1)["rev"]
    catch_up(two, one)
    reads: list[Message] = [
        {"op": "GET", "key": "k"},
        {"op": "MGET", "keys": ["k"]},
        {"op": "SCAN"},
        {"op": "COUNT"},
    ]
    writes: list[Message] = [
        {"op": "PUT", "key": "k", "value": 2},
        {"op": "MPUT", "items": {"k": 2}},
        {"op": "INCR", "key": "n", "session": "s", "seq": 1},
        {"op": "DELETE", "key": "k"},
        {"op": "TXN", "ops": [{"op": "GET", "key": "k"}]},
    ]
    for request in reads + writes:
        reply = two.call(**request)
        assert reply["code"] == "NOT_LEADER", reply
        assert (reply["retry"], reply["applied"]) == (True, False)
        assert reply["leader"] == [primary.endpoint]
    for request in reads:
        two.ok(**request, stale=True)
        two.ok(**request, min_rev=rev)
    two.ok(op="PING")
    two.ok(op="CHANGES", since=0)
    two.ok(op="SNAPSHOT")
    features = two.ok(op="INFO")["features"]
    assert {"stale", "min_rev", "REPLICATE"} <= set(features)
    figures = replication(two)
    assert (figures["role"], figures["leader"]) == ("standby", [primary.endpoint])
    assert [each["durable"] for each in replication(one)["members"]] == [applied(one)]


def test_a_read_waits_for_the_revision_that_it_asks_for(
    primary: ServerProcess, standby: Follower, connect: Connect
) -> None:
    one, two = connect(primary.endpoint), connect(standby.endpoint)
    rev = one.ok(op="PUT", key="k", value=1)["rev"]
    for value in range(20):
        rev = one.ok(op="PUT", key="k", value=value)["rev"]
        assert two.ok(op="GET", key="k", min_rev=rev)["value"] == value
    late = two.call(op="GET", key="k", min_rev=rev + 1, deadline=round(time.time() * 1000) + 300)
    assert (late["code"], late["retry"], late["rev"]) == ("BEHIND", True, rev)


def test_its_feed_tells_the_same(
    primary: ServerProcess, standby: Follower, connect: Connect, context: Context
) -> None:
    one, two = connect(primary.endpoint), connect(standby.endpoint)
    feeds = [FeedFollower(context, client.ok(op="INFO")["feed"]).joined() for client in (one, two)]
    write_some(one, 5)
    one.ok(op="PUT", key="gone", value=1, ttl=0.02)
    eventually(lambda: one.ok(op="INFO")["stats"]["expired"] == 1, "the expiry")
    last = one.ok(op="PUT", key="last", value=1)["rev"]
    told = []
    for feed in feeds:
        messages: list[Published] = []
        while not messages or messages[-1].fields["rev"] < last:
            message = feed.next()
            if message.is_heartbeat:
                assert message.fields["store"] == replication(one)["store"]
                assert message.fields["term"] == 1
            else:
                messages.append(message)
        told.append([each.fields for each in messages])
        feed.close()
    assert told[0] == told[1]
    assert len(told[0]) == 8


def test_it_goes_on_from_its_own_files(
    primary: ServerProcess, standby: Follower, connect: Connect
) -> None:
    one = connect(primary.endpoint)
    write_some(one)
    catch_up(connect(standby.endpoint), one)
    standby.kill()
    write_some(one)
    standby.start()
    catch_up(connect(standby.endpoint), one)
    assert standby.stop() == 0
    write_some(one, 3)
    standby.start()
    catch_up(connect(standby.endpoint), one)
    assert standby.log().count("fetched a snapshot") == 1
    same_state(primary, standby)
    assert standby.stop() == 0
    checked = run_zkv("check", str(standby.data_dir))
    assert checked.returncode == 0, checked


def test_it_begins_anew_where_the_log_does_not_reach_back(
    primary: ServerProcess, standby: Follower, connect: Connect
) -> None:
    one = connect(primary.endpoint)
    write_some(one)
    catch_up(connect(standby.endpoint), one)
    standby.signal(signal.SIGSTOP)  # Its server stays in its process, at its port.
    compact(primary)
    one = connect(primary.endpoint)
    standby.signal(signal.SIGCONT)
    await_new_history(standby)
    catch_up(connect(standby.endpoint), one)
    assert "COMPACTED" in standby.log()
    assert standby.log().count("fetched a snapshot") == 2
    same_state(primary, standby)
    assert not list(standby.data_dir.glob("diverged*"))


def test_a_standby_of_a_standby(
    primary: ServerProcess, standby: Follower, tmp_path: Path, connect: Connect
) -> None:
    one = connect(primary.endpoint)
    write_some(one)
    with Follower(tmp_path / "third", standby.endpoint) as third:
        write_some(one)
        catch_up(connect(third.endpoint), one)
        same_state(primary, third)
        assert promote(standby.endpoint).returncode == 0
        two = connect(standby.endpoint)
        two.ok(op="PUT", key="new", value=1)
        catch_up(connect(third.endpoint), two)
        same_state(standby, third)
        assert replication(connect(third.endpoint))["term"] == 2


def test_it_does_not_begin_anew_from_one_that_has_less(
    primary: ServerProcess, tmp_path: Path, connect: Connect
) -> None:
    """It would give up commits that it has confirmed, for those of a standby that was cut off."""
    one, ports = connect(primary.endpoint), fixed_ports()
    write_some(one)
    with Follower(tmp_path / "b", primary.endpoint, *ports, config=CONFIG) as cut_off:
        catch_up(connect(cut_off.endpoint), one)
    with Follower(tmp_path / "c", primary.endpoint, config=CONFIG) as ahead:
        write_some(one, 5, 1000)
        has = catch_up(connect(ahead.endpoint), one)
        ahead.stop()
    nobody = fixed_ports()[1]
    compact(primary)
    one = connect(primary.endpoint)
    places = f"{ports[1]},{primary.endpoint}"
    with (
        Follower(tmp_path / "b", nobody, *ports, config=CONFIG) as cut_off,
        Follower(tmp_path / "c", places, config=CONFIG) as standby,
    ):
        await_new_history(standby)
        assert "COMPACTED" in standby.log()
        client = connect(standby.endpoint)
        assert applied(connect(cut_off.endpoint)) < has <= applied(client)
        catch_up(client, one)
        same_state(primary, standby)


def test_two_that_follow_each_other_find_the_primary_again(
    primary: ServerProcess, tmp_path: Path, connect: Connect
) -> None:
    """Each answers the other one, which alone must not keep it there."""
    one = connect(primary.endpoint)
    write_some(one)
    ports = {name: fixed_ports() for name in "bc"}

    def follower(name: str, other: str) -> Follower:
        places = f"{primary.endpoint},{ports[other][1]}"
        return Follower(tmp_path / name, places, *ports[name], config=CONFIG)

    with follower("b", "c") as b, follower("c", "b") as c:
        two, three = connect(b.endpoint), connect(c.endpoint)
        catch_up(two, one)
        catch_up(three, one)
        primary.signal(signal.SIGSTOP)
        await_log(b, "no reply")
        await_log(c, "no reply")
        primary.signal(signal.SIGCONT)
        write_some(one)
        catch_up(two, one)
        catch_up(three, one)
        assert "beginning anew" not in b.log() + c.log()


def test_it_follows_a_primary_that_is_killed_and_started_again(
    primary: ServerProcess, standby: Follower, connect: Connect
) -> None:
    one = connect(primary.endpoint)
    write_some(one)
    for _ in range(2):
        primary.kill()
        primary.start()
        one = connect(primary.endpoint)
        write_some(one)
    catch_up(connect(standby.endpoint), one)
    same_state(primary, standby)
    assert standby.log().count("fetched a snapshot") == 1


@pytest.mark.parametrize("way", ["END", "SIGTERM"])
def test_both_stop_in_order_while_they_stream(
    way: str, primary: ServerProcess, standby: Follower, connect: Connect
) -> None:
    one, two = connect(primary.endpoint), connect(standby.endpoint)
    write_some(one)
    for server, client in ((standby, two), (primary, one)):
        if way == "END":
            client.ok(op="END")
            assert server.wait() == 0
        else:
            assert server.stop() == 0
    for server in (primary, standby):
        assert run_zkv("check", str(server.data_dir)).returncode == 0


def test_the_directory_of_another_store_stays_as_it_is(
    primary: ServerProcess, tmp_path: Path, connect: Connect
) -> None:
    write_some(connect(primary.endpoint))
    with ServerProcess(tmp_path / "other") as other:
        write_some(connect(other.endpoint))
        other.stop()
    before = {path: path.read_bytes() for path in other.data_dir.rglob("*") if path.is_file()}
    before.pop(other.data_dir / "LOCK")
    done = run_zkv("follow", primary.endpoint, "--data-dir", str(other.data_dir))
    assert done.returncode == 2
    assert "another store" in done.stderr
    after = {path: path.read_bytes() for path in other.data_dir.rglob("*") if path.is_file()}
    after.pop(other.data_dir / "LOCK")
    assert after == before


def test_a_standby_is_not_led_to_another_store(
    primary: ServerProcess, standby: Follower, tmp_path: Path, connect: Connect
) -> None:
    one = connect(primary.endpoint)
    write_some(one)
    catch_up(connect(standby.endpoint), one)
    standby.stop()
    before = state_of(standby.data_dir)
    with ServerProcess(tmp_path / "other") as other:
        write_some(connect(other.endpoint), 2)
        done = run_zkv("follow", other.endpoint, "--data-dir", str(standby.data_dir),
                       "--endpoint", FREE_PORT)  # fmt: skip
    assert done.returncode == 2
    assert "another store" in done.stderr
    assert state_of(standby.data_dir) == before
    standby.start()
    catch_up(connect(standby.endpoint), one)
    assert standby.log().count("fetched a snapshot") == 1


def test_a_standby_is_not_served_as_a_primary(standby: Follower) -> None:
    standby.stop()
    done = run_zkv("serve", "--data-dir", str(standby.data_dir), "--endpoint", FREE_PORT)
    assert done.returncode == 2
    assert "zkv follow" in done.stderr
    assert "zkv promote" in done.stderr


def test_a_second_one_keeps_off_its_directory(
    primary: ServerProcess, standby: Follower, connect: Connect
) -> None:
    incoming = standby.data_dir / "incoming"
    incoming.mkdir()  # As while it begins anew.
    done = run_zkv("follow", primary.endpoint, "--data-dir", str(standby.data_dir))
    assert done.returncode == 2
    assert "holds this data directory" in done.stderr
    assert incoming.is_dir()


def test_a_signal_ends_one_that_waits_for_a_primary(tmp_path: Path, connect: Connect) -> None:
    with ServerProcess(tmp_path / "primary", *fixed_ports(), config=CONFIG) as primary:
        one = connect(primary.endpoint)
        write_some(one)
        with Follower(tmp_path / "standby", primary.endpoint) as standby:
            catch_up(connect(standby.endpoint), one)
            standby.signal(signal.SIGSTOP)
            compact(primary)
            # What it needs then cannot be fetched.
            for path in (primary.data_dir / "snapshot").iterdir():
                damage(path)
            standby.signal(signal.SIGCONT)
            await_log(standby, "beginning anew")
            await_log(standby, "damaged")
            assert standby.stop() == 0
    fresh = Follower(tmp_path / "fresh", "tcp://127.0.0.1:9")
    fresh.launch()
    eventually((fresh.data_dir / "replication.json").exists, "its directory")
    assert fresh.stop() == 0


def test_a_list_of_endpoints_is_gone_through(
    primary: ServerProcess, tmp_path: Path, connect: Connect
) -> None:
    one = connect(primary.endpoint)
    write_some(one)
    with ServerInProcess(tmp_path, durability={"data_dir": None}) as nobody:
        endpoints = f"{nobody.endpoint},{primary.endpoint}"
        with Follower(tmp_path / "standby", endpoints) as standby:
            catch_up(connect(standby.endpoint), one)
            same_state(primary, standby)


def test_a_damaged_snapshot_is_never_loaded(
    primary: ServerProcess, tmp_path: Path, connect: Connect
) -> None:
    one = connect(primary.endpoint)
    write_some(one, 30, 500)
    one.ok(op="SNAPSHOT")
    (path,) = (primary.data_dir / "snapshot").iterdir()
    damage(path)
    standby = Follower(tmp_path / "standby", primary.endpoint)
    standby.launch()
    try:
        await_log(standby, "damaged")
        assert not any((standby.data_dir / name).exists() for name in ("snapshot", "wal"))
        one.ok(op="PUT", key="one more", value=1)
        one.ok(op="SNAPSHOT")
        standby.await_ready()
        catch_up(connect(standby.endpoint), one)
        assert state_of(standby.data_dir).entries == state_of(primary.data_dir).entries
    finally:
        standby.kill()


def test_a_damaged_log_is_never_applied(
    primary: ServerProcess, standby: Follower, connect: Connect
) -> None:
    one = connect(primary.endpoint)
    write_some(one)
    catch_up(connect(standby.endpoint), one)
    standby.stop()
    write_some(one, 10, 200)
    (path,) = (primary.data_dir / "wal").iterdir()
    content = bytearray(path.read_bytes())
    content[-1500] ^= 1
    with open(path, "r+b") as file:  # The server goes on writing into the same file.
        file.write(content)
    standby.start()
    await_log(primary, "damaged at offset")
    await_new_history(standby)
    with connect(standby.endpoint) as two:
        catch_up(two, one)
        for number in range(20):
            key = f"k{number}"
            assert (
                two.ok(op="GET", key=key, stale=True)["value"] == one.ok(op="GET", key=key)["value"]
            )


def make_user(directory: Path, name: str) -> str:
    make_key_file(directory / f"{name}.key")
    return read_key_file(directory / f"{name}.key").public


def test_over_curve_with_the_right_to(tmp_path: Path, context: Context) -> None:
    server_key = make_user(tmp_path, "server")
    users = []
    for name, rights in (("replica", '["replicate"]'), ("guest", "false"), ("boss", "true")):
        public = make_user(tmp_path, name)
        users.append(f'[users.{name}]\nkeys = ["{public}"]\nread = [""]\nadmin = {rights}\n')
    (tmp_path / "users.toml").write_text("\n".join(users), encoding="utf-8")
    security = (
        f'[security]\nsecret_key_file = "{tmp_path}/server.key"\nusers = "{tmp_path}/users.toml"\n'
    )

    def config(name: str) -> str:
        return security + (
            f'[replication]\nkey_file = "{tmp_path}/{name}.key"\nserver_keys = ["{server_key}"]\n'
        )

    options = curve_options(server_key, read_key_file(tmp_path / "boss.key"))
    with ServerProcess(tmp_path / "primary", config=security) as primary:
        guest = Follower(tmp_path / "guest", primary.endpoint, config=config("guest"))
        guest.launch()
        await_log(guest, "DENIED")
        assert guest.stop() == 0
        with (
            Follower(tmp_path / "replica", primary.endpoint, config=config("replica")) as standby,
            Raw(primary.endpoint, context=context, options=options) as one,
            Raw(standby.endpoint, context=context, options=options) as two,
        ):
            one.call(op="PUT", key="k", value=1)
            catch_up(two, one)
            same_state(primary, standby)


def test_a_disk_that_is_full_for_a_while(
    primary: ServerProcess, tmp_path: Path, connect: Connect
) -> None:
    one = connect(primary.endpoint)
    write_some(one)
    with Follower(
        tmp_path / "standby", primary.endpoint, config='[log]\nfile = "/dev/null"\n'
    ) as standby:
        two = connect(standby.endpoint)
        lsn = catch_up(two, one)
        # No file grows beyond this: what a full disk does to a log, as far as it can be told.
        size = max(path.stat().st_size for path in standby.data_dir.rglob("*") if path.is_file())
        resource.prlimit(standby.process.pid, resource.RLIMIT_FSIZE, (size + 2000, -1))
        write_some(one, 100, 500)
        eventually(lambda: two.ok(op="INFO")["durability"]["refusal"], "a refusal")
        assert applied(two) < applied(one)
        resource.prlimit(standby.process.pid, resource.RLIMIT_FSIZE, (-1, -1))
        assert catch_up(two, one) > lsn
        same_state(primary, standby)
        assert json.loads((standby.data_dir / "replication.json").read_text())["role"] == "standby"
