"""gRPC's side of the servicer: bytes to messages, and what it raises to a status."""

import math
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from protos import open_inference_grpc_pb2 as oip
from serving.errors import InvalidRequest, ServingError
from serving.servicer import InferenceServicer

Context = grpc.aio.ServicerContext[Any, Any]
Decode = Callable[[bytes], Any]

PUSHBACK = "grpc-retry-pushback-ms"  # a client whose library tries again by itself waits for so long (gRFC A6)
MOST_PUSHBACK_MS = 2**31 - 1


def handlers(servicer: InferenceServicer) -> grpc.GenericRpcHandler:
    """The service's methods, for `server.add_generic_rpc_handlers`.

    Messages are decoded here, not by gRPC, which answers undecodable bytes with UNKNOWN and logs a stack trace.
    """
    service = oip.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
    for method in service.methods:
        message_class = GetMessageClass(method.input_type)
        call = getattr(servicer, method.name)
        decoded = _decoder(message_class, servicer.undecodable if message_class is oip.ModelInferRequest else None)
        serialize = GetMessageClass(method.output_type).SerializeToString
        methods[method.name] = (
            grpc.stream_stream_rpc_method_handler(_streaming(call, decoded), response_serializer=serialize)
            if method.client_streaming
            else grpc.unary_unary_rpc_method_handler(_single(call, decoded), response_serializer=serialize)
        )
    return grpc.method_handlers_generic_handler(service.full_name, methods)


def _single(method: Any, decoded: Decode) -> Any:
    async def call(data: bytes, context: Context) -> Any:
        try:
            return await method(decoded(data), context)
        except ServingError as error:
            await context.abort(error.code, str(error), _trailers(error))

    return call


def _streaming(method: Any, decoded: Decode) -> Any:
    async def call(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[Any]:
        try:
            async for response in method((decoded(data) async for data in requests), context):
                yield response
        except ServingError as error:
            await context.abort(error.code, str(error), _trailers(error))

    return call


def _trailers(error: ServingError) -> tuple[tuple[str, str], ...]:
    if error.retry_after_s is None:
        return ()
    return ((PUSHBACK, str(min(math.ceil(1000 * error.retry_after_s), MOST_PUSHBACK_MS))),)


def _decoder(message_class: Any, failed: Callable[[], None] | None) -> Decode:
    def decoded(data: bytes) -> Any:
        try:
            return message_class.FromString(data)
        except DecodeError:
            if failed is not None:
                failed()
            expected = message_class.DESCRIPTOR.full_name
            raise InvalidRequest(f"{len(data)} bytes arrived that are no {expected}") from None

    return decoded
