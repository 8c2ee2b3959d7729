"""The messages of etcd, made by tools/rpc.py from rpc.proto: `make generate`."""
# ruff: noqa: D
from collections.abc import Iterable, MutableSequence
from typing import Self

class _Message:
    def SerializeToString(self) -> bytes: ...
    @classmethod
    def FromString(cls, data: bytes, /) -> Self: ...
    def WhichOneof(self, name: str, /) -> str | None: ...

class ResponseHeader(_Message):
    cluster_id: int
    member_id: int
    revision: int
    raft_term: int
    def __init__(
        self,
        *,
        cluster_id: int = ...,
        member_id: int = ...,
        revision: int = ...,
        raft_term: int = ...,
    ) -> None: ...

class KeyValue(_Message):
    key: bytes
    create_revision: int
    mod_revision: int
    version: int
    value: bytes
    lease: int
    def __init__(
        self,
        *,
        key: bytes = ...,
        create_revision: int = ...,
        mod_revision: int = ...,
        version: int = ...,
        value: bytes = ...,
        lease: int = ...,
    ) -> None: ...

class Event(_Message):
    PUT: int
    DELETE: int
    type: int
    kv: KeyValue
    def __init__(
        self,
        *,
        type: int = ...,
        kv: KeyValue = ...,
    ) -> None: ...

class RangeRequest(_Message):
    key: bytes
    range_end: bytes
    limit: int
    revision: int
    serializable: bool
    keys_only: bool
    def __init__(
        self,
        *,
        key: bytes = ...,
        range_end: bytes = ...,
        limit: int = ...,
        revision: int = ...,
        serializable: bool = ...,
        keys_only: bool = ...,
    ) -> None: ...

class RangeResponse(_Message):
    header: ResponseHeader
    kvs: MutableSequence[KeyValue]
    more: bool
    count: int
    def __init__(
        self,
        *,
        header: ResponseHeader = ...,
        kvs: Iterable[KeyValue] = ...,
        more: bool = ...,
        count: int = ...,
    ) -> None: ...

class PutRequest(_Message):
    key: bytes
    value: bytes
    def __init__(
        self,
        *,
        key: bytes = ...,
        value: bytes = ...,
    ) -> None: ...

class PutResponse(_Message):
    def __init__(
        self,
    ) -> None: ...

class DeleteRangeRequest(_Message):
    key: bytes
    range_end: bytes
    def __init__(
        self,
        *,
        key: bytes = ...,
        range_end: bytes = ...,
    ) -> None: ...

class DeleteRangeResponse(_Message):
    deleted: int
    def __init__(
        self,
        *,
        deleted: int = ...,
    ) -> None: ...

class RequestOp(_Message):
    request_range: RangeRequest
    request_put: PutRequest
    request_delete_range: DeleteRangeRequest
    def __init__(
        self,
        *,
        request_range: RangeRequest = ...,
        request_put: PutRequest = ...,
        request_delete_range: DeleteRangeRequest = ...,
    ) -> None: ...

class ResponseOp(_Message):
    response_range: RangeResponse
    response_put: PutResponse
    response_delete_range: DeleteRangeResponse
    def __init__(
        self,
        *,
        response_range: RangeResponse = ...,
        response_put: PutResponse = ...,
        response_delete_range: DeleteRangeResponse = ...,
    ) -> None: ...

class Compare(_Message):
    EQUAL: int
    GREATER: int
    LESS: int
    NOT_EQUAL: int
    VERSION: int
    CREATE: int
    MOD: int
    VALUE: int
    result: int
    target: int
    key: bytes
    version: int
    create_revision: int
    mod_revision: int
    value: bytes
    def __init__(
        self,
        *,
        result: int = ...,
        target: int = ...,
        key: bytes = ...,
        version: int = ...,
        create_revision: int = ...,
        mod_revision: int = ...,
        value: bytes = ...,
    ) -> None: ...

class TxnRequest(_Message):
    compare: MutableSequence[Compare]
    success: MutableSequence[RequestOp]
    failure: MutableSequence[RequestOp]
    def __init__(
        self,
        *,
        compare: Iterable[Compare] = ...,
        success: Iterable[RequestOp] = ...,
        failure: Iterable[RequestOp] = ...,
    ) -> None: ...

class TxnResponse(_Message):
    header: ResponseHeader
    succeeded: bool
    responses: MutableSequence[ResponseOp]
    def __init__(
        self,
        *,
        header: ResponseHeader = ...,
        succeeded: bool = ...,
        responses: Iterable[ResponseOp] = ...,
    ) -> None: ...

class CompactionRequest(_Message):
    revision: int
    def __init__(
        self,
        *,
        revision: int = ...,
    ) -> None: ...

class CompactionResponse(_Message):
    header: ResponseHeader
    def __init__(
        self,
        *,
        header: ResponseHeader = ...,
    ) -> None: ...

class LeaseTimeToLiveRequest(_Message):
    ID: int
    def __init__(
        self,
        *,
        ID: int = ...,
    ) -> None: ...

class LeaseTimeToLiveResponse(_Message):
    TTL: int
    def __init__(
        self,
        *,
        TTL: int = ...,
    ) -> None: ...

class WatchCreateRequest(_Message):
    key: bytes
    range_end: bytes
    start_revision: int
    def __init__(
        self,
        *,
        key: bytes = ...,
        range_end: bytes = ...,
        start_revision: int = ...,
    ) -> None: ...

class WatchRequest(_Message):
    create_request: WatchCreateRequest
    def __init__(
        self,
        *,
        create_request: WatchCreateRequest = ...,
    ) -> None: ...

class WatchResponse(_Message):
    header: ResponseHeader
    watch_id: int
    created: bool
    canceled: bool
    compact_revision: int
    cancel_reason: str
    events: MutableSequence[Event]
    def __init__(
        self,
        *,
        header: ResponseHeader = ...,
        watch_id: int = ...,
        created: bool = ...,
        canceled: bool = ...,
        compact_revision: int = ...,
        cancel_reason: str = ...,
        events: Iterable[Event] = ...,
    ) -> None: ...

class AlarmMember(_Message):
    memberID: int
    alarm: int
    def __init__(
        self,
        *,
        memberID: int = ...,
        alarm: int = ...,
    ) -> None: ...

class AlarmRequest(_Message):
    GET: int
    ACTIVATE: int
    DEACTIVATE: int
    action: int
    def __init__(
        self,
        *,
        action: int = ...,
    ) -> None: ...

class AlarmResponse(_Message):
    header: ResponseHeader
    alarms: MutableSequence[AlarmMember]
    def __init__(
        self,
        *,
        header: ResponseHeader = ...,
        alarms: Iterable[AlarmMember] = ...,
    ) -> None: ...

class StatusRequest(_Message):
    def __init__(
        self,
    ) -> None: ...

class StatusResponse(_Message):
    header: ResponseHeader
    version: str
    dbSize: int
    leader: int
    raftTerm: int
    errors: MutableSequence[str]
    dbSizeInUse: int
    dbSizeQuota: int
    def __init__(
        self,
        *,
        header: ResponseHeader = ...,
        version: str = ...,
        dbSize: int = ...,
        leader: int = ...,
        raftTerm: int = ...,
        errors: Iterable[str] = ...,
        dbSizeInUse: int = ...,
        dbSizeQuota: int = ...,
    ) -> None: ...

class AuthenticateRequest(_Message):
    name: str
    password: str
    def __init__(
        self,
        *,
        name: str = ...,
        password: str = ...,
    ) -> None: ...

class AuthenticateResponse(_Message):
    token: str
    def __init__(
        self,
        *,
        token: str = ...,
    ) -> None: ...
