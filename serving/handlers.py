"""gRPC's side of the servicer: bytes to messages, and what it raises to a status."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from protos import open_inference_grpc_pb2 as oip
from serving.errors import InvalidRequest, ServingError
from serving.servicer import InferenceServicer

Context = grpc.aio.ServicerContext[Any, Any]


def handlers(servicer: InferenceServicer) -> grpc.GenericRpcHandler:
    """The service's methods, for `server.add_generic_rpc_handlers`.

    Messages are decoded here, not by gRPC, which answers undecodable bytes with UNKNOWN and logs a stack trace.
    """
    service = oip.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
    for method in service.methods:
        message_class = GetMessageClass(method.input_type)
        call = getattr(servicer, method.name)
        serialize = GetMessageClass(method.output_type).SerializeToString
        methods[method.name] = (
            grpc.stream_stream_rpc_method_handler(_streaming(call, message_class), response_serializer=serialize)
            if method.client_streaming
            else grpc.unary_unary_rpc_method_handler(_single(call, message_class), response_serializer=serialize)
        )
    return grpc.method_handlers_generic_handler(service.full_name, methods)


def _single(method: Any, message_class: Any) -> Any:
    async def call(data: bytes, context: Context) -> Any:
        try:
            return await method(_decoded(data, message_class), context)
        except ServingError as error:
            await context.abort(error.code, str(error))

    return call


def _streaming(method: Any, message_class: Any) -> Any:
    async def call(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[Any]:
        try:
            async for response in method((_decoded(data, message_class) async for data in requests), context):
                yield response
        except ServingError as error:
            await context.abort(error.code, str(error))

    return call


def _decoded(data: bytes, message_class: Any) -> Any:
    try:
        return message_class.FromString(data)
    except DecodeError:
        raise InvalidRequest(f"{len(data)} bytes arrived that are no {message_class.DESCRIPTOR.full_name}") from None
