"""The catalog service of an edge: forwards to replicas."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from google.protobuf import message_factory

from darkroom.v1 import catalog_service_pb2 as pb
from darkroom.v1 import catalog_service_pb2_grpc
from darkroom_plugins.errors import InvalidRequest, Violation, no_such
from darkroom_server.api.access import owner
from darkroom_server.api.load import open_streams, summed
from darkroom_server.cluster.wire import ReplicaLost
from darkroom_server.errors import DeviceLost

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from darkroom.v1 import events_pb2
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
        """With the residency at each replica that offers it: in the course of an upgrade not all do."""
        answers = await self._everywhere("ListModels", request)
        if not answers:
            await self.answer("ListModels", request)  # waits for a replica
            if not (answers := await self._everywhere("ListModels", request)):
                raise DeviceLost("no replica is ready now; others are being started")
        lists = {name: each.models for name, each in answers.items()}
        listed = pb.ListModelsResponse(models=next(iter(lists.values())))
        for model in listed.models:
            for name, models in sorted(lists.items()):
                for there in (each.residency for each in models if each.name == model.name):
                    model.replicas.add(replica=name, residency=there)
            model.residency = max(each.residency for each in model.replicas)
        return listed

    async def LoadModel(self, request: pb.LoadModelRequest, context: CallContext) -> None:
        """At those that it names; else at one: the others load it when requests for it are more than that one takes."""
        names = await self._named(request.replicas) or [""]
        progress: asyncio.Queue[tuple[str, events_pb2.LoadingEvent] | None] = asyncio.Queue()

        async def load(name: str) -> pb.Model:
            async for data in self._answers("LoadModel", pb.LoadModelRequest(model=request.model), request.model, name):
                update = pb.LoadModelResponse.FromString(data)
                if update.HasField("loading"):
                    progress.put_nowait((name, update.loading))
            return update.model

        loading = asyncio.gather(*map(load, names))
        loading.add_done_callback(lambda _: progress.put_nowait(None))
        newest: dict[str, events_pb2.LoadingEvent] = {}
        try:
            while (step := await progress.get()) is not None:
                newest[step[0]] = step[1]
                await context.write(pb.LoadModelResponse(loading=min(newest.values(), key=_done)))
            model = (await loading)[0]
        finally:
            loading.cancel()
        listed = await self.ListModels(pb.ListModelsRequest(), context)
        model.replicas.extend(where for each in listed.models if each.name == model.name for where in each.replicas)
        await context.write(pb.LoadModelResponse(model=model))

    async def UnloadModel(self, request: pb.UnloadModelRequest, context: CallContext) -> pb.UnloadModelResponse:
        """At those that it names, else at all."""
        names = await self._named(request.replicas)
        answers = await self._everywhere("UnloadModel", pb.UnloadModelRequest(model=request.model), names)
        return pb.UnloadModelResponse(freed_bytes=sum(each.freed_bytes for each in answers.values()))

    async def GetServerLoad(self, request: pb.GetServerLoadRequest, context: CallContext) -> pb.GetServerLoadResponse:
        """Of all replicas, with the streams that are open here."""
        whole = summed((await self._everywhere("GetServerLoad", request)).values())
        whole.open_streams = open_streams(self._calls)
        return whole

    async def RescanAssets(self, request: pb.RescanAssetsRequest, context: CallContext) -> pb.RescanAssetsResponse:
        """At all replicas; what has changed at any of them."""
        answers = await self._everywhere("RescanAssets", request)
        distinct = {each.SerializeToString(): each for answer in answers.values() for each in answer.changes}
        return pb.RescanAssetsResponse(changes=distinct.values())

    async def answer(self, method: str, request: Any) -> bytes:
        """The answer of any replica. :raises DarkroomError: the call failed"""
        async with aclosing(self._answers(method, request)) as answers:
            return await anext(answers)

    async def _answers(
        self, method: str, request: Any, model: str = "", replica: str = ""
    ) -> AsyncGenerator[bytes, None]:
        """Those of one replica: of this name, or of any."""
        for left in reversed(range(ATTEMPTS)):
            begun = False
            try:
                calling = self._backend.messages(_path(method), request, owner(), model, replica)
                async with aclosing(calling) as messages:
                    async for data in messages:
                        begun = True
                        yield data
                if not begun:
                    raise ReplicaLost("the replica's stream ended before its answer")
                return
            except ReplicaLost as error:
                if begun or replica or not left:
                    raise DeviceLost("what answered the call was lost") from error

    async def _everywhere(self, method: str, request: Any, names: Sequence[str] = ()) -> dict[str, Any]:
        """The answers of the replicas of these names, by default of all; but of those that are lost meanwhile. Empty:
        there is none.

        :raises DarkroomError: of one of them
        """
        parse = message_factory.GetMessageClass(SERVICE.methods_by_name[method].output_type).FromString

        async def one(name: str) -> tuple[str, Any] | None:
            try:
                async with aclosing(self._backend.messages(_path(method), request, owner(), replica=name)) as messages:
                    async for data in messages:
                        return name, parse(data)
            except ReplicaLost:
                pass
            return None

        found = await asyncio.gather(*map(one, names or await self._backend.names()))
        return dict(each for each in found if each is not None)

    async def _named(self, names: Sequence[str]) -> list[str]:
        """The names, each once. :raises InvalidRequest: there is no such replica"""
        there = await self._backend.names() if names else ()
        wrong = [
            Violation(f"replicas[{index}]", no_such("replica", name, set(there)))
            for index, name in enumerate(names)
            if name not in there
        ]
        if wrong:
            raise InvalidRequest(wrong)
        return list(dict.fromkeys(names))


def _done(loading: events_pb2.LoadingEvent) -> float:
    return loading.bytes_done / max(1, loading.bytes_total)


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
