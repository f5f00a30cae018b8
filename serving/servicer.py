"""The RPC methods: a request, start to finish, in one screen."""

import asyncio
import importlib.metadata
import json
import logging
import time
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from protos import open_inference_grpc_pb2 as oip
from protos.open_inference_grpc_pb2_grpc import GRPCInferenceServiceServicer
from serving import request, response
from serving.control import Control
from serving.decoder import Decoder
from serving.errors import InvalidRequest, NotReady, ServingError
from serving.observation import Observation, Observer
from serving.pictures import takes_pictures
from serving.policy import Policy
from serving.repository import Repository, ServedModel

logger = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]


def handlers(servicer: "InferenceServicer") -> grpc.GenericRpcHandler:
    """The service's methods, for `server.add_generic_rpc_handlers`.

    Messages are decoded here, not by gRPC, which answers undecodable bytes with UNKNOWN and logs a stack trace.
    """
    service = oip.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        method.name: grpc.unary_unary_rpc_method_handler(
            _decoding(getattr(servicer, method.name), GetMessageClass(method.input_type)),
            response_serializer=GetMessageClass(method.output_type).SerializeToString,
        )
        for method in service.methods
    }
    return grpc.method_handlers_generic_handler(service.full_name, methods)


def _decoding(method: Any, message_class: Any) -> Any:
    async def call(data: bytes, context: Context) -> Any:
        try:
            message = message_class.FromString(data)
        except DecodeError:
            await context.abort(
                InvalidRequest.code, f"{len(data)} bytes arrived that are no {message_class.DESCRIPTOR.full_name}"
            )
        try:
            return await method(message, context)
        except ServingError as error:
            await context.abort(error.code, str(error))

    return call


class InferenceServicer(GRPCInferenceServiceServicer):
    """Live from the first moment; ready between `open` and `close`."""

    def __init__(
        self,
        repository: Repository,
        observer: Observer,
        max_batch_rows: int,
        forced_policy: Policy | None,
        decoder: Decoder,
        control: Control | None = None,
    ) -> None:
        self._repository = repository
        self._observer = observer
        self._max_batch_rows = max_batch_rows
        self._forced_policy = forced_policy  # no request can undo it
        self._decoder = decoder
        self._control = control or Control(None)
        self._ready = False
        self._refusing = False
        self._in_flight = 0
        self._last_arrival = 0.0

    def open(self) -> None:
        self._ready = True

    def close(self) -> bool:
        """Not ready any more; what still arrives is answered. Returns whether it was ready."""
        was_ready, self._ready = self._ready, False
        return was_ready

    def refuse(self) -> None:
        """What still arrives is told to go elsewhere."""
        self._refusing = True

    async def quiet(self, seconds: float, limit_s: float) -> None:
        """Returns once nothing is in flight and nothing has arrived for so long, or after the limit.

        gRPC holds requests that it has received and not yet handed over: they would be lost by a server that stops
        as soon as its handlers are done.
        """
        end = time.monotonic() + limit_s
        while (now := time.monotonic()) < end:
            if not self._in_flight and now - self._last_arrival >= seconds:
                return
            await asyncio.sleep(seconds / 5)

    async def ModelInfer(self, message: oip.ModelInferRequest, context: Context) -> oip.ModelInferResponse:  # noqa: N802
        self._last_arrival = time.monotonic()
        self._in_flight += 1
        remaining_s = context.time_remaining()
        metadata = dict(context.invocation_metadata() or ())
        try:
            with self._observer.request("ModelInfer", message.id, metadata, remaining_s) as seen:
                return await self._infer(message, seen, remaining_s)
        except ServingError as error:
            # The observer is through with it: who asks for the metrics after this answer finds it counted.
            await context.abort(error.code, str(error))
        finally:
            self._in_flight -= 1
        raise AssertionError("abort always raises")

    async def _infer(
        self, message: oip.ModelInferRequest, seen: Observation, remaining_s: float | None
    ) -> oip.ModelInferResponse:
        if self._refusing:
            raise NotReady("the server is shutting down")
        model = self._repository.find(message.model_name, message.model_version)
        seen.model = model.ensemble.metrics
        with model.held():
            parsed = request.parse(message, model.ensemble, self._max_batch_rows, self._forced_policy)
            seen.policy, seen.rows = parsed.choice.policy, parsed.rows
            limits = [limit for limit in (remaining_s, parsed.timeout_s) if limit is not None]
            deadline = seen.arrived + min(limits) if limits else None
            inputs = parsed.inputs
            if inputs is None:
                inputs = await self._decoder.decode(parsed.pictures, model.ensemble.input_shape, deadline)
            prediction = await model.batcher.submit(inputs, parsed.choice, deadline, seen.stages, parsed.priority)
            return response.build(message, parsed, prediction, model.ensemble)

    async def ServerLive(self, message: oip.ServerLiveRequest, context: Context) -> oip.ServerLiveResponse:  # noqa: N802
        return oip.ServerLiveResponse(live=True)

    async def ServerReady(self, message: oip.ServerReadyRequest, context: Context) -> oip.ServerReadyResponse:  # noqa: N802
        return oip.ServerReadyResponse(ready=self._ready)

    async def ModelReady(self, message: oip.ModelReadyRequest, context: Context) -> oip.ModelReadyResponse:  # noqa: N802
        try:
            self._find(message.name, message.version)
        except NotReady:
            return oip.ModelReadyResponse(ready=False)
        return oip.ModelReadyResponse(ready=self._ready)

    async def ServerMetadata(  # noqa: N802
        self, message: oip.ServerMetadataRequest, context: Context
    ) -> oip.ServerMetadataResponse:
        return oip.ServerMetadataResponse(name="thalweg", version=importlib.metadata.version("thalweg"))

    async def ModelMetadata(  # noqa: N802
        self, message: oip.ModelMetadataRequest, context: Context
    ) -> oip.ModelMetadataResponse:
        ensemble = self._find(message.name, message.version).ensemble
        tensor = oip.ModelMetadataResponse.TensorMetadata
        classes = len(ensemble.class_labels)
        return oip.ModelMetadataResponse(
            name=ensemble.name,
            versions=self._repository.versions(ensemble.name),
            platform="thalweg_onnx_ensemble",
            inputs=[
                tensor(name=ensemble.input_name, datatype=ensemble.input_datatype, shape=[-1, *ensemble.input_shape])
            ],
            outputs=[
                tensor(name="probs", datatype="FP32", shape=[-1, classes]),
                tensor(name="entropy", datatype="FP32", shape=[-1]),
                tensor(name="mutual_information", datatype="FP32", shape=[-1]),
                tensor(name="member_probs", datatype="FP32", shape=[-1, -1, classes]),
            ],
            properties={
                "class_labels": json.dumps(ensemble.class_labels),
                "members": str(len(ensemble.member_ids)),
                "max_batch_rows": str(self._max_batch_rows),
                "policy": self._forced_policy or Policy.MEAN,
                "pictures": "PNG,JPEG" if takes_pictures(ensemble.input_datatype, ensemble.input_shape) else "",
            },
        )

    async def RepositoryIndex(  # noqa: N802
        self, message: oip.RepositoryIndexRequest, context: Context
    ) -> oip.RepositoryIndexResponse:
        return self._control.index(message)

    async def RepositoryModelLoad(  # noqa: N802
        self, message: oip.RepositoryModelLoadRequest, context: Context
    ) -> oip.RepositoryModelLoadResponse:
        return await self._control.load(message)

    async def RepositoryModelUnload(  # noqa: N802
        self, message: oip.RepositoryModelUnloadRequest, context: Context
    ) -> oip.RepositoryModelUnloadResponse:
        return await self._control.unload(message)

    def _find(self, name: str, version: str) -> ServedModel:
        if not name:
            raise InvalidRequest("the model's name is empty")
        return self._repository.find(name, version)
