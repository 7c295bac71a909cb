"""The engine's loop: step-level batching of all active images, on one thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import TypeVar

import torch
from accelerate.utils.memory import clear_device_cache

from darkroom_plugins.errors import DarkroomError
from darkroom_plugins.manager import Plugins
from darkroom_server.device.thread_tuner import ThreadTuner
from darkroom_server.device.transfer import LaunchLimiter
from darkroom_server.engine.batcher import Batcher, Lane
from darkroom_server.engine.endings import Endings
from darkroom_server.engine.forecast import Estimate
from darkroom_server.engine.long_work import LongWork, Work
from darkroom_server.engine.meter import Meter
from darkroom_server.engine.outbox import Outbox
from darkroom_server.engine.previews import PreviewDecoders
from darkroom_server.engine.prompt_cache import PromptCache
from darkroom_server.engine.queue_positions import QueuePositions
from darkroom_server.engine.recovery import Recovery, work
from darkroom_server.engine.slot import Slot, announce
from darkroom_server.engine.tick import Tick, kind_of
from darkroom_server.errors import Cancelled, DeviceLost
from darkroom_server.jobs.job import Job
from darkroom_server.jobs.numbers import EngineNumbers
from darkroom_server.jobs.plan import Plan

log = logging.getLogger(__name__)

FAILED = "the engine failed; the server will be restarted"

T = TypeVar("T")


class Engine:
    """Steps the samples of all jobs, and posts events to the jobs' mailboxes on the event loop.

    `start`, `call`, `submit`, `estimate`, `cancel`, `memory_freed`, `lose` and `stop` are for the event loop; all else
    runs on the engine's thread, the only one that runs torch while the server serves.
    """

    def __init__(
        self,
        max_batch_rows: int,
        plugins: Plugins,
        decoders: PreviewDecoders,
        threads: ThreadTuner,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._max_batch_rows = max_batch_rows
        self._plugins = plugins
        self._threads = threads
        self._on_lost: Callable[[], None] = lambda: None
        self._relieve: Callable[[], bool] = lambda: False
        self.recovery = Recovery(self._make_room)
        self._long = LongWork(self._attend)
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.prompts = PromptCache()
        self.numbers = EngineNumbers()
        self._batcher = Batcher()
        self._meter = Meter(self.numbers, self._batcher.charge)
        self._positions = QueuePositions(self._batcher, self._row_limit, self._meter.speeds)
        self.outbox = Outbox(self._loop, self._positions)
        self.endings = Endings(self._batcher, self.numbers, self._positions, self.outbox)
        self._tick = Tick(
            max_batch_rows // 2,  # as many seats as there are, with guidance
            self.recovery,
            self._long,
            threads,
            self.prompts,
            decoders,
            self.numbers,
            self._meter,
            self._positions,
            self.outbox,
            self.endings,
            self._go_on,
        )
        self._launches = LaunchLimiter()
        self._stopping = False
        self._returns_memory = False  # of models that have left, when it is idle
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._attended: float | None = None  # time.monotonic at the last turn, call or attendance; None: it waits
        self.ticks = 0

    @property
    def thread(self) -> int | None:
        """The identifier of its thread."""
        return self._thread.ident

    @property
    def threads(self) -> int:
        """How many threads compute for deterministic jobs on a CPU: all."""
        return self._threads.most

    @property
    def working(self) -> Work | None:
        """The long work that runs now, if any. May be read from another thread."""
        return self._long.running

    def stalled_for(self, now: float) -> float:
        """Seconds since the engine last attended to its jobs, 0 while it has none. May be called on another thread."""
        attended = self._attended
        return max(0.0, now - attended) if attended is not None else 0.0

    @property
    def idle(self) -> bool:
        """Whether no job has a slot. From another thread the answer may be out of date."""
        return not self._batcher

    def samples(self) -> tuple[int, int]:
        """How many images the engine has not begun, and has begun. May be called on another thread, and is then out of
        date."""
        slots = [slot for lane in self._batcher.lanes() for slot in lane.slots]
        waiting = sum(slot.sample is None and slot.first_stage is None for slot in slots)
        return waiting, len(slots) - waiting

    @property
    def pending(self) -> int:
        """How many jobs and calls wait for the next tick."""
        return self._inbox.qsize()

    @contextlib.asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """A context in which nothing is stepped: the jobs that come in meanwhile begin together."""
        gate = threading.Event()
        holding = asyncio.ensure_future(self.call(gate.wait))
        try:
            yield
        finally:
            gate.set()
            await holding

    def attach(self, on_lost: Callable[[], None], relieve: Callable[[], bool]) -> None:
        """Set callbacks for the engine's thread: `on_lost` runs when the device is lost; `relieve` when a single item
        does not fit into its memory: it evicts idle models, and returns whether there were any."""
        self._on_lost, self._relieve = on_lost, relieve

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    async def stop(self) -> None:
        """Cancel all jobs, and join the thread."""
        self._inbox.put(self._stop)
        await asyncio.to_thread(self._thread.join)

    async def call(self, function: Callable[[], T]) -> T:
        """The result of a function that uses torch, run on the engine's thread between two ticks."""
        future: concurrent.futures.Future[T] = concurrent.futures.Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():  # nobody waits for it any more
                return
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        self._inbox.put(run)
        return await asyncio.wrap_future(future)

    def submit(self, job: Job, then: Callable[[], None]) -> None:
        """Enqueue a job. Its events go to its mailbox, the last one is `Ended`. `then` is called on the event loop when
        the job has ended and the engine no longer uses its model."""
        self._inbox.put(lambda: self._admit(job, then))

    def estimate(self, job: Job) -> Estimate | None:
        """When a planned job would begin and be done that came now; None if nothing like it has been measured."""
        return self._positions.estimate(job, self._row_limit_of(job.plan), time.monotonic())

    def seconds_alone(self, job: Job) -> float | None:
        """What a planned job would take without others; None if nothing like it has been measured."""
        return self._positions.alone(job, self._row_limit_of(job.plan))

    def cancel(self, job: Job, error: DarkroomError) -> None:
        """End a job with this error before its next step, unless it has ended."""
        self._inbox.put(lambda: self.endings.end(job, error))

    def memory_freed(self) -> None:
        """Reset the learnt row limits, and when nothing is to be done return memory to the device."""
        self._inbox.put(self._on_freed)

    def forget_prompts(self) -> None:
        """Drop the prompts' embeddings, of which some may be due to files that have changed."""
        self._inbox.put(self.prompts.clear)

    def lose(self, error: DeviceLost) -> None:
        """End all jobs: another thread found the device lost."""
        self._inbox.put(lambda: self._lose(error))

    @torch.inference_mode()
    def _run(self) -> None:
        while not self._stopping:
            try:
                self._wait()
                self._drain_inbox()
                if (lane := self._batcher.next_lane()) is not None:
                    self._take_turn(lane)
                self.outbox.post()
            except DeviceLost as error:
                self._lose(error)
            except BaseException as error:  # without this thread all streams would hang
                log.critical("the engine failed", exc_info=error)
                self._lose(DeviceLost(FAILED))
        self.outbox.post()

    def _on_freed(self) -> None:
        self.recovery.limits.forget()
        self._returns_memory = True

    def _wait(self) -> None:
        """Block while there is nothing to do."""
        if self._returns_memory and not self._batcher and not self.pending:  # it waits for all that the device runs
            self._returns_memory = False
            clear_device_cache()
        self._attended = None
        call = self._inbox.get() if not self._batcher else None
        self._attended = time.monotonic()
        if call is not None:
            call()

    def _drain_inbox(self) -> None:
        """Run the calls that arrived since the last tick."""
        while not self._inbox.empty():
            self._inbox.get()()
            self._attended = time.monotonic()

    def _attend(self, running: Work, seconds: float) -> None:
        """Between two layers of long work, `seconds` after the last time: take new jobs in, end cancelled ones, and
        give other lanes turns for as long as the piece took, where they do not disturb it.

        :raises Cancelled: all jobs of the work have ended
        """
        try:
            self._drain_inbox()
            running.check()
            if running.shared:
                with running.interrupted():
                    self._give_turns(running, time.monotonic() + seconds)
                self._threads.settle(*kind_of(running.slots))
            self.outbox.post(within_turn=True)
            self._attended = time.monotonic()
            running.check()
        except (Cancelled, DeviceLost):
            raise
        except Exception as error:  # not the fault of the work's network, through which it is raised
            log.critical("the engine failed", exc_info=error)
            raise DeviceLost(FAILED) from error

    def _give_turns(self, running: Work, until: float) -> None:
        """Give other lanes turns, at least one, until this time."""
        while (lane := self._batcher.next_lane(running.may_give_way)) is not None:
            self._take_turn(lane)
            self._drain_inbox()
            if time.monotonic() >= until:
                break

    def _lose(self, error: DeviceLost) -> None:
        self.endings.end_all(error)
        self._on_lost()
        self.outbox.post()

    def _stop(self) -> None:
        self._stopping = True
        self.endings.end_all(Cancelled("the server stopped"))

    def _admit(self, job: Job, then: Callable[[], None]) -> None:
        if job.progress.ended:
            self.outbox.release(then)
            return
        job.progress.then = then
        self._measure(self._batcher.add(job))

    def _go_on(self, slot: Slot, plan: Plan, latents: torch.Tensor) -> None:
        """Let a slot go on by the plan of its next stage, with the latents of the one before."""
        self._measure(self._batcher.move(slot, plan, latents))

    def _measure(self, lane: Lane) -> None:
        """A lane has got slots."""
        lane.seconds = partial(self._meter.speeds.evaluation, lane.first.plan)
        self._positions.stale = True

    def _row_limit(self, lane: Lane) -> int:
        return self._row_limit_of(lane.first.plan)

    def _row_limit_of(self, plan: Plan) -> int:
        return self.recovery.limits.of(work("denoise", plan.request), self._max_batch_rows)

    def _make_room(self) -> bool:
        self.prompts.clear()
        self._plugins.release()
        return self._relieve()

    def _take_turn(self, lane: Lane) -> None:
        slots = lane.select_batch(self._row_limit(lane))
        announce(slots, turn=True)
        lane.begin_turn(slots, time.monotonic())
        lane.busy = True
        try:
            with self._meter.turn(slots):
                self.ticks += 1
                self._tick.run(slots)
                self._launches.keep(slots[0].plan.model.family.device)
        except DeviceLost:
            raise
        except Exception as error:  # a bug of the engine: fail the batch's jobs only
            for slot in slots:
                self.endings.fail(slot.job, error)
        finally:
            lane.busy = False
            self._attended = time.monotonic()
