"""The catalog service of an edge: forwards to replicas."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from google.protobuf import message_factory

from darkroom.v1 import catalog_service_pb2 as pb
from darkroom.v1 import catalog_service_pb2_grpc
from darkroom_server.api.access import owner
from darkroom_server.api.load import open_streams, summed
from darkroom_server.cluster.backend import messages_of
from darkroom_server.cluster.wire import Call, ReplicaLost
from darkroom_server.errors import DeviceLost

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from darkroom_server.api.context import CallContext
    from darkroom_server.cluster.backend import ClusterBackend
    from darkroom_server.jobs.numbers import CallNumbers

SERVICE = pb.DESCRIPTOR.services_by_name["CatalogService"]
ATTEMPTS = 3


class ClusterCatalog(catalog_service_pb2_grpc.CatalogServiceServicer):
    """What replicas offer. They are alike: one answers what all could, but where they differ by what is in memory."""

    def __init__(self, backend: ClusterBackend, calls: CallNumbers) -> None:
        self._backend, self._calls = backend, calls

    async def ListModels(self, request: pb.ListModelsRequest, context: CallContext) -> pb.ListModelsResponse:
        """With the best residency that any replica has for each."""
        lists = [pb.ListModelsResponse.FromString(data) for data in await self._everywhere("ListModels", request)]
        best = lists[0]
        for model in best.models:
            model.residency = max(each.residency for found in lists for each in found.models if each.name == model.name)
        return best

    async def LoadModel(self, request: pb.LoadModelRequest, context: CallContext) -> None:
        """At one replica: the others load it when requests for it are more than that one takes."""
        async for data in self._answers("LoadModel", request, request.model):
            await context.write(pb.LoadModelResponse.FromString(data))

    async def UnloadModel(self, request: pb.UnloadModelRequest, context: CallContext) -> pb.UnloadModelResponse:
        """At all replicas."""
        answers = await self._everywhere("UnloadModel", request)
        freed = sum(pb.UnloadModelResponse.FromString(data).freed_bytes for data in answers)
        return pb.UnloadModelResponse(freed_bytes=freed)

    async def GetServerLoad(self, request: pb.GetServerLoadRequest, context: CallContext) -> pb.GetServerLoadResponse:
        """Of all replicas, with the streams that are open here."""
        answers = await self._everywhere("GetServerLoad", request)
        whole = summed(map(pb.GetServerLoadResponse.FromString, answers))
        whole.open_streams = open_streams(self._calls)
        return whole

    async def RescanAssets(self, request: pb.RescanAssetsRequest, context: CallContext) -> pb.RescanAssetsResponse:
        """At all replicas; what has changed at any of them."""
        answers = await self._everywhere("RescanAssets", request)
        changes = [each for data in answers for each in pb.RescanAssetsResponse.FromString(data).changes]
        distinct = {each.SerializeToString(): each for each in changes}
        return pb.RescanAssetsResponse(changes=distinct.values())

    async def answer(self, method: str, request: Any) -> bytes:
        """The answer of any replica. :raises DarkroomError: the call failed"""
        async with aclosing(self._answers(method, request)) as answers:
            return await anext(answers)

    async def _answers(self, method: str, request: Any, model: str = "") -> AsyncGenerator[bytes, None]:
        for left in reversed(range(ATTEMPTS)):
            begun = False
            try:
                async with aclosing(self._backend.messages(_path(method), request, owner(), model)) as messages:
                    async for data in messages:
                        begun = True
                        yield data
                return
            except ReplicaLost as error:
                if begun or not left:
                    raise DeviceLost("what answered the call was lost") from error

    async def _everywhere(self, method: str, request: Any) -> list[bytes]:
        """The answers of all replicas, one or more.

        :raises DarkroomError: of one of them, or there is none
        """
        call = Call("", _path(method), request.SerializeToString(), owner())
        replies = await self._backend.replicas.everywhere(call)
        if not replies:
            raise DeviceLost("no replica is ready now; others are being started")
        return [data for each in replies for reply in each for data in messages_of(reply)]


def _path(method: str) -> str:
    return f"/{SERVICE.full_name}/{method}"


def _forwarded(name: str, answer: Any) -> Any:
    async def forward(self: ClusterCatalog, request: Any, context: CallContext) -> Any:
        return answer.FromString(await self.answer(name, request))

    return forward


for _method in SERVICE.methods:
    if _method.name not in vars(ClusterCatalog):
        _answer = message_factory.GetMessageClass(_method.output_type)
        setattr(ClusterCatalog, _method.name, _forwarded(_method.name, _answer))
