"""gRPC as this package uses it: channels, and a stub made from the service's descriptor."""

from __future__ import annotations

import os
from typing import Any, Union

import grpc
from google.protobuf import descriptor_pb2

from .relay import RelayChannel
from .v1 import checkpoint_pb2 as pb

Channel = Union[grpc.Channel, RelayChannel]

_MAX_MESSAGE_BYTES = 64 << 20
# Streams run without a thread of their own.
_OPTIONS = [
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("SingleThreadedUnaryStream", 1),
]
# HealthCheckResponse.ServingStatus.SERVING in field 1: all there is of grpc.health.v1 to know.
_SERVING = b"\x08\x01"

# Whether this process has used gRPC, and whether its parent had when it forked this one.
_used = False
_forked_after_use = False


def open_channel(address: str) -> Channel:
    """A channel to `address` that connects when it is first used, in this process if it can."""
    global _used
    if _forked_after_use:
        return RelayChannel(address)
    _used = True
    return grpc.insecure_channel(address, options=_OPTIONS)


def _after_fork_in_child() -> None:
    global _forked_after_use
    _forked_after_use = _forked_after_use or _used


os.register_at_fork(after_in_child=_after_fork_in_child)


def is_serving(channel: Channel, timeout: float) -> bool:
    """Asks grpc.health.v1.Health. Raises grpc.RpcError where nobody answers within `timeout` s."""
    check = channel.unary_unary("/grpc.health.v1.Health/Check")
    return bool(check(b"", timeout=timeout) == _SERVING)


class Stub:
    """ckptd.v1.CheckpointService on a channel: one callable for each method, named as it is."""

    def __init__(self, channel: Channel) -> None:
        file = descriptor_pb2.FileDescriptorProto.FromString(pb.DESCRIPTOR.serialized_pb)
        for service in file.service:
            for method in service.method:
                if method.client_streaming and method.server_streaming:
                    if isinstance(channel, RelayChannel):  # a forked child is no host process
                        continue
                setattr(self, method.name, _callable(channel, file.package, service, method))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"ckptd.v1.CheckpointService has no method {name}")


def _callable(channel: Channel, package: str, service: Any, method: Any) -> Any:
    inbound = "stream" if method.client_streaming else "unary"
    outbound = "stream" if method.server_streaming else "unary"
    make = getattr(channel, f"{inbound}_{outbound}")
    request, response = (
        getattr(pb, name.rsplit(".", 1)[1]) for name in (method.input_type, method.output_type)
    )
    return make(
        f"/{package}.{service.name}/{method.name}",
        request_serializer=_serialized if method.client_streaming else request.SerializeToString,
        response_deserializer=response.FromString,
    )


def _serialized(request: Any) -> bytes:
    """Whoever streams may have put the message together himself."""
    return request if isinstance(request, bytes) else request.SerializeToString()
