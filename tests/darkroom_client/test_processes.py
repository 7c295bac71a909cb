"""What a process around the client may do: loops and threads side by side, fork, and exit at any moment."""

import asyncio
import os
import subprocess
import sys
import textwrap

import pytest

from darkroom_client import AsyncClient, Client


def python(code: str, address: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a process of its own, in which every warning is shown."""
    return subprocess.run(
        [sys.executable, "-X", "dev", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, "DARKROOM_ADDRESS": address, "GRPC_VERBOSITY": "ERROR"},
    )


def test_clients_in_many_loops_and_threads_at_once(scripted, caplog):
    def blocking() -> int:
        with Client(scripted.address) as client:
            return sum(client.generate("a").image().seed for _ in range(3))

    async def main() -> list[int]:
        async with AsyncClient(scripted.address) as client:
            with Client(scripted.address) as inside:
                assert inside.generate("blocks the loop").image().seed == 7
                streams = [client.generate("a") for _ in range(4)]
                threads = [asyncio.to_thread(blocking) for _ in range(4)]
                return [*await asyncio.gather(*threads), *[(await stream.image()).seed for stream in streams]]

    for _ in range(3):
        assert asyncio.run(main()) == [21] * 4 + [7] * 4
    assert blocking() == 21
    assert caplog.records == []


@pytest.mark.parametrize(
    "code",
    [
        """
        from darkroom_client import Client
        client = Client()
        stream = client.generate("a", request_id="left")
        events = iter(stream)
        next(events)
        print("leaving")
        """,
        """
        import asyncio
        from darkroom_client import AsyncClient
        async def main():
            client = AsyncClient()
            stream = client.generate("a", request_id="left")
            events = aiter(stream)
            await anext(events)
            print("leaving")
        asyncio.run(main())
        """,
        """
        import threading
        from darkroom_client import Client
        started = threading.Event()
        def read():
            for _ in Client().generate("a", request_id="left"):
                started.set()
        threading.Thread(target=read, daemon=True).start()
        started.wait()
        print("leaving")
        """,
    ],
    ids=["sync", "async", "reading in a thread"],
)
def test_leaving_the_interpreter_makes_no_noise_and_stops_the_job(scripted, code):
    scripted.script = scripted.endless
    result = python(code, scripted.address)
    assert (result.stdout, result.stderr, result.returncode) == ("leaving\n", "", 0)
    scripted.wait_ended("left")


def test_a_client_of_before_a_fork_says_so(scripted):
    result = python(
        """
        import os
        from darkroom_client import Client, DarkroomError
        client = Client()
        client.generate("a").image()
        child = os.fork()
        if child == 0:
            for use in (lambda: client.generate("a"), lambda: Client().models()):
                try:
                    use()
                except DarkroomError as error:
                    print("refused" if "fork" in str(error) else error, flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        print(client.generate("a").image().seed)
        """,
        scripted.address,
    )
    assert result.stdout.split() == ["refused", "refused", "7"], result.stderr


def test_clients_in_forked_children_work_when_there_was_none_before(scripted):
    result = python(
        """
        import multiprocessing
        from darkroom_client import Client
        def work(number):
            with Client() as client:
                return client.generate("a").image().seed
        with multiprocessing.get_context("fork").Pool(2) as pool:
            print(pool.map(work, range(3)))
        """,
        scripted.address,
    )
    assert result.stdout.strip() == "[7, 7, 7]", result.stderr
