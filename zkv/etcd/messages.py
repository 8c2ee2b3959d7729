"""Turns operations into etcd's messages, and its messages into results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from zkv.etcd import rpc
from zkv.etcd.interface import (
    Alarm,
    Compare,
    DeleteOp,
    Item,
    ItemEvent,
    NodeStatus,
    Op,
    PutOp,
    ReadOp,
    ReadResult,
    TxnResult,
)

_OPS: Final = {
    "=": rpc.Compare.EQUAL,
    "!=": rpc.Compare.NOT_EQUAL,
    "<": rpc.Compare.LESS,
    ">": rpc.Compare.GREATER,
}
_ALARMS: Final = {1: "NOSPACE", 2: "CORRUPT"}


def txn_request(
    compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op]
) -> rpc.TxnRequest:
    """Return the request of a transaction."""
    return rpc.TxnRequest(
        compare=[_compare(each) for each in compares],
        success=[_op(each) for each in then],
        failure=[_op(each) for each in otherwise],
    )


def txn_result(response: rpc.TxnResponse) -> TxnResult:
    """Return what the answer to a transaction says."""
    reads = [
        _items(each.response_range.kvs)
        for each in response.responses
        if each.WhichOneof("response") == "response_range"
    ]
    header = response.header
    return TxnResult(response.succeeded, header.revision, header.cluster_id, reads)


def read_result(response: rpc.RangeResponse) -> ReadResult:
    """Return what the answer to a read says."""
    header = response.header
    return ReadResult(
        header.revision, header.cluster_id, _items(response.kvs), response.more, response.count
    )


def events(response: rpc.WatchResponse) -> list[ItemEvent]:
    """Return the events of a watch."""
    return [ItemEvent(each.type == rpc.Event.DELETE, _item(each.kv)) for each in response.events]


def status(endpoint: str, response: rpc.StatusResponse) -> NodeStatus:
    """Return what a node says of itself."""
    header = response.header
    return NodeStatus(
        endpoint,
        cluster_id=header.cluster_id,
        member_id=header.member_id,
        leader=response.leader,
        revision=header.revision,
        raft_term=response.raftTerm,
        version=response.version,
        db_size=response.dbSize,
        db_size_in_use=response.dbSizeInUse,
        db_quota=response.dbSizeQuota,
        errors=tuple(response.errors),
    )


def alarms(response: rpc.AlarmResponse) -> list[Alarm]:
    """Return the alarms that are raised."""
    return [
        Alarm(each.memberID, _ALARMS.get(each.alarm, str(each.alarm))) for each in response.alarms
    ]


def _compare(compare: Compare) -> rpc.Compare:
    op = _OPS[compare.op]
    match compare.target, compare.value:
        case "value", bytes(value):
            return rpc.Compare(result=op, target=rpc.Compare.VALUE, key=compare.key, value=value)
        case "version", int(number):
            return rpc.Compare(
                result=op, target=rpc.Compare.VERSION, key=compare.key, version=number
            )
        case "create", int(number):
            return rpc.Compare(
                result=op, target=rpc.Compare.CREATE, key=compare.key, create_revision=number
            )
        case "mod", int(number):
            return rpc.Compare(
                result=op, target=rpc.Compare.MOD, key=compare.key, mod_revision=number
            )
    raise TypeError(f"{compare.target} is not compared with {type(compare.value).__name__}")


def _op(op: Op) -> rpc.RequestOp:
    match op:
        case PutOp():
            return rpc.RequestOp(request_put=rpc.PutRequest(key=op.key, value=op.value))
        case ReadOp():
            return rpc.RequestOp(
                request_range=rpc.RangeRequest(
                    key=op.begin, range_end=op.end or b"", limit=op.limit, keys_only=op.keys_only
                )
            )
        case DeleteOp():
            return rpc.RequestOp(
                request_delete_range=rpc.DeleteRangeRequest(key=op.begin, range_end=op.end or b"")
            )


def _items(messages: Iterable[rpc.KeyValue]) -> list[Item]:
    return [_item(each) for each in messages]


def _item(message: rpc.KeyValue) -> Item:
    return Item(
        message.key,
        message.value,
        message.create_revision,
        message.mod_revision,
        message.version,
        message.lease,
    )
