"""The RPC methods: a request, start to finish, in one screen."""

import asyncio
import importlib.metadata
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc

from protos import open_inference_grpc_pb2 as oip
from protos.open_inference_grpc_pb2_grpc import GRPCInferenceServiceServicer
from serving import description, request, response
from serving.budget import Budget
from serving.decoder import Decoder
from serving.errors import InvalidRequest, NotReady, OverBudget, ServingError
from serving.policy import Policy
from serving.ports import streaming
from serving.ports.identity import Identify, anyone
from serving.repository.control import Control
from serving.repository.models import Repository, ServedModel
from serving.telemetry.observation import Observation, Observer
from serving.telemetry.stage import Stage

logger = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]


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
        identify: Identify = anyone,
        budget: Budget | None = None,
    ) -> None:
        self._repository = repository
        self._observer = observer
        self._max_batch_rows = max_batch_rows
        self._forced_policy = forced_policy  # no request can undo it
        self._decoder = decoder
        self._control = control or Control(None)
        self._identify = identify
        self._budget = budget
        self._ready = False
        self._refusing = False
        self._in_flight = 0
        self._last_arrival = 0.0

    @property
    def ready(self) -> bool:
        return self._ready

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

    async def finished(self, limit_s: float) -> None:
        """Returns once nothing is in flight, or after the limit."""
        end = time.monotonic() + limit_s
        while self._in_flight and time.monotonic() < end:  # noqa: ASYNC110  # as in quiet()
            await asyncio.sleep(0.01)

    def undecodable(self) -> None:
        """Of bytes that came in place of an inference request."""
        self._observer.undecodable()

    async def ModelInfer(self, message: oip.ModelInferRequest, context: Context) -> oip.ModelInferResponse:  # noqa: N802
        return await self._observed("ModelInfer", message, context)

    async def ModelStreamInfer(  # noqa: N802
        self, messages: AsyncIterator[oip.ModelInferRequest], context: Context
    ) -> AsyncIterator[oip.ModelStreamInferResponse]:
        async for answer in streaming.answers(messages, lambda message: self._streamed(message, context)):
            yield answer

    async def _streamed(self, message: oip.ModelInferRequest, context: Context) -> oip.ModelStreamInferResponse:
        """An error is told in the answer: it fails this request, not the stream."""
        try:
            answer = await self._observed("ModelStreamInfer", message, context)
        except ServingError as error:
            return oip.ModelStreamInferResponse(
                error_message=str(error), infer_response=oip.ModelInferResponse(id=message.id)
            )
        answer.parameters["triton_final_response"].bool_param = True  # each request has one
        return oip.ModelStreamInferResponse(infer_response=answer)

    async def _observed(self, name: str, message: oip.ModelInferRequest, context: Context) -> oip.ModelInferResponse:
        """When this returns or raises, the request is counted: the metrics never know less than the client."""
        self._last_arrival = time.monotonic()
        self._in_flight += 1
        remaining_s = context.time_remaining()
        metadata = dict(context.invocation_metadata() or ())
        try:
            with self._observer.request(name, message.id, metadata, remaining_s) as seen:
                return await self._infer(message, context, seen, remaining_s)
        finally:
            self._in_flight -= 1

    async def _infer(
        self, message: oip.ModelInferRequest, context: Context, seen: Observation, remaining_s: float | None
    ) -> oip.ModelInferResponse:
        if self._refusing:
            raise NotReady("the server is shutting down")
        model = self._repository.find(message.model_name, message.model_version)
        seen.model = model.ensemble.metrics
        with model.held():
            parsed = request.parse(message, model.ensemble, self._max_batch_rows, self._forced_policy)
            seen.policy, seen.rows = parsed.choice.policy, parsed.rows
            client = self._identify(context)
            self._charge(client, parsed.rows, model)
            limits = [limit for limit in (remaining_s, parsed.timeout_s) if limit is not None]
            deadline = seen.arrived + min(limits) if limits else None
            inputs = parsed.inputs
            if inputs is None:
                inputs = await self._decoder.decode(parsed.pictures, model.ensemble.input_shape, deadline)
            seen.stages.append(Stage("input", seen.arrived, time.monotonic(), parsed.rows))
            prediction = await model.batcher.submit(inputs, parsed.choice, deadline, seen.stages, parsed.priority)
            if model.near_duplicates is not None:
                model.near_duplicates.observe(client, inputs)
            return response.build(message, parsed, prediction, model.ensemble)

    def _charge(self, client: str, rows: int, model: ServedModel) -> None:
        """Whatever becomes of the rows after this. Raises OverBudget."""
        if self._budget is None or not (wait_s := self._budget.take(client, rows)):
            return
        model.ensemble.metrics.rejected["over_budget"].inc()
        raise OverBudget(
            f"{rows} rows arrived and the client's query budget is used up; {rows} are free in {wait_s:.3f} s", wait_s
        )

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
        return oip.ServerMetadataResponse(
            name="thalweg", version=importlib.metadata.version("thalweg"), extensions=description.EXTENSIONS
        )

    async def ModelMetadata(  # noqa: N802
        self, message: oip.ModelMetadataRequest, context: Context
    ) -> oip.ModelMetadataResponse:
        ensemble = self._find(message.name, message.version).ensemble
        versions = self._repository.versions(ensemble.name)
        return description.metadata(ensemble, versions, self._max_batch_rows, self._forced_policy)

    async def ModelConfig(self, message: oip.ModelConfigRequest, context: Context) -> oip.ModelConfigResponse:  # noqa: N802
        ensemble = self._find(message.name, message.version).ensemble
        configuration = description.configuration(ensemble, self._max_batch_rows, self._forced_policy)
        return oip.ModelConfigResponse(config=configuration)

    async def ModelStatistics(  # noqa: N802
        self, message: oip.ModelStatisticsRequest, context: Context
    ) -> oip.ModelStatisticsResponse:
        served = [model.ensemble.metrics for model in self._repository.matching(message.name, message.version)]
        return oip.ModelStatisticsResponse(
            model_stats=[model.statistics.message(model.name, model.version) for model in served]
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
