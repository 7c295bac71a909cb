"""Each mistake about a connection has a sentence of its own, as one of the client's errors."""

import asyncio
import threading
from fractions import Fraction

import pytest

from darkroom_client import (
    AsyncClient,
    Client,
    DarkroomError,
    InvalidOptions,
    InvalidRequest,
    RequestTooLarge,
    ServerUnreachable,
)

KEY = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"


@pytest.mark.parametrize("timeout", [float("inf"), 1e12, 10**400, 3, Fraction(7, 2)])
def test_time_outs_that_never_pass_are_none(client, timeout):
    assert client.generate("a", timeout=timeout).image().seed == 7


@pytest.mark.parametrize("timeout", [float("nan"), 0, -1, float("-inf"), "5", b"5", True, [1]])
@pytest.mark.parametrize(
    "call", ["generate", "edit", "preprocess", "watch", "wait_for_server", "is_ready", "check_health"]
)
def test_other_time_outs_are_refused_before_the_call(scripted, client, call, timeout):
    arguments = {"generate": ["a"], "edit": [b"", "a"], "preprocess": [b"", "canny"], "watch": ["job"]}
    with pytest.raises(InvalidRequest, match="timeout: must be a number of seconds above 0") as caught:
        getattr(client, call)(*arguments.get(call, []), timeout=timeout)
    assert [violation.field for violation in caught.value.violations] == ["timeout"]
    assert scripted.requests == []


@pytest.mark.parametrize("token", ["t0ken\n", " t0ken", "\tt0ken\r\n"])
def test_a_token_may_come_from_a_file(scripted, token):
    with Client(scripted.address, token=token) as client:
        client.server_info()
    assert scripted.metadata[0]["authorization"] == "Bearer t0ken"


@pytest.mark.parametrize("token", ["two\nlines", "n\0l", "é", "two words", b"bytes", 5])
def test_other_tokens_are_refused_without_telling_them(monkeypatch, token):
    with pytest.raises(InvalidOptions, match="token must be ") as caught:
        Client(token=token)
    assert str(token) not in str(caught.value)
    assert isinstance(caught.value, ValueError)
    if isinstance(token, str) and "\0" not in token:
        monkeypatch.setenv("DARKROOM_TOKEN", token)
        with pytest.raises(InvalidOptions, match="token must be "):
            AsyncClient()


ADDRESSES = ["localhost:1", "[::1]:65535", "a-b.example:50051", "unix:a/b.sock", "unix-abstract:a", " host:5 \n"]


@pytest.mark.parametrize("address", ADDRESSES)
def test_addresses(address):
    assert AsyncClient(address).address == address.strip()


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("localhost", "has no port"),
        ("localhost:", "has no port"),
        ("[::1]", "has no port"),
        ("localhost:http", "has no such port as 'http'"),
        ("localhost:0", "has no such port as '0'"),
        ("localhost:65536", "has no such port as '65536'"),
        ("localhost:-1", "has no such port as '-1'"),
        ("localhost:\u0665", "has no such port"),
        (":50051", "has no host"),
        ("::1:50051", "has an IPv6 address without brackets"),
        ("[host]:50051", r"has no IPv6 address in \[host\]"),
        ("[127.0.0.1]:50051", r"has no IPv6 address in \[127.0.0.1\]"),
        ("two words:50051", "has no host name in 'two words'"),
        ("http://localhost:50051", "has a scheme"),
        ("unix:", "names no socket"),
        (5, "must be text"),
    ],
)
def test_other_addresses_are_refused(monkeypatch, address, problem):
    with pytest.raises(InvalidOptions, match=f"^address .*{problem}"):
        Client(address)
    if isinstance(address, str):
        monkeypatch.setenv("DARKROOM_ADDRESS", address)
        with pytest.raises(InvalidOptions, match=f"^DARKROOM_ADDRESS .*{problem}"):
            AsyncClient()


@pytest.mark.parametrize("retries", [-1, 1.5, "3", True])
def test_retries_are_whole_numbers(retries):
    with pytest.raises(InvalidOptions, match="retries must be a whole number from 0"):
        Client(retries=retries)


@pytest.mark.parametrize("content", ["", "hello", KEY])
def test_a_root_certificate_that_is_none(tmp_path, content):
    file = tmp_path / "ca.pem"
    file.write_text(content)
    with pytest.raises(InvalidOptions, match=r"root_certificate: .*ca.pem is no certificate in PEM format"):
        Client(root_certificate=file)
    with pytest.raises(InvalidOptions, match="root_certificate: the bytes given are no certificate in PEM format"):
        Client(root_certificate=content.encode())


def test_a_root_certificate_that_is_not_there(tmp_path):
    with pytest.raises(InvalidOptions, match=r"none\.pem cannot be read: No such file"):
        Client(root_certificate=tmp_path / "none.pem")
    with pytest.raises(InvalidOptions, match="must be a path or bytes, not int"):
        Client(root_certificate=5)


def test_a_proxy_is_never_used_for_this_machine(scripted, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://me:secret@127.0.0.1:1")
    with Client(scripted.address) as client:
        assert client.models()


def test_else_a_proxy_is_named(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://me:secret@127.0.0.1:1")
    with Client("192.0.2.1:50051", retries=0) as client, pytest.raises(ServerUnreachable) as caught:
        client.models()
    assert "no Darkroom server answers at 192.0.2.1:50051 through the proxy 127.0.0.1:1 (http_proxy)" in str(
        caught.value
    )
    assert "secret" not in str(caught.value)


def test_a_closed_client_says_so(scripted):
    client = Client(scripted.address)
    client.close()
    client.close()
    for call in (client.models, lambda: client.generate("a"), lambda: client.load_model("shapes"), client.is_ready):
        with pytest.raises(DarkroomError, match=r"this client of .* is closed: make another"):
            call()


@pytest.mark.parametrize("call", ["wait_for_server", "models", "load_model"])
def test_closing_a_client_ends_its_calls(call):
    client = Client("127.0.0.1:1", retries=10**6)
    closing = threading.Timer(0.3, client.close)
    closing.start()
    with pytest.raises(DarkroomError, match="closed"):
        getattr(client, call)(*(["shapes"] if call == "load_model" else []))
    closing.join()


def test_an_async_client_belongs_to_one_event_loop(scripted):
    client = AsyncClient(scripted.address)

    async def main():
        await client.models()

    asyncio.run(main())
    with pytest.raises(DarkroomError, match="was used in another event loop: make one in each, or use Client"):
        asyncio.run(main())
    asyncio.run(client.close())
    with pytest.raises(DarkroomError, match="in a running event loop: elsewhere use Client"):
        AsyncClient(scripted.address).generate("a")


class TestSizes:
    @pytest.mark.parametrize("size", [70_000, 5 * 2**20])
    def test_what_is_over_the_servers_limit_is_not_sent(self, scripted, client, size):
        scripted.max_request_bytes = 65536
        with pytest.raises(
            RequestTooLarge, match=rf"the request has {size // 10**6 or 70}.*takes up to 65,536"
        ) as caught:
            client.edit(b"x" * size, "a", request_id="job").image()
        assert (caught.value.reason, caught.value.code) == ("REQUEST_TOO_LARGE", "")
        assert scripted.requests == []

    def test_a_limit_that_was_raised_is_noticed(self, scripted, client):
        scripted.max_request_bytes = 65536
        with pytest.raises(RequestTooLarge):
            client.edit(b"x" * 70_000, "a").image()
        scripted.max_request_bytes = 10**6
        assert client.edit(b"x" * 70_000, "a").image().seed == 7

    def test_a_large_job_runs_from_the_call_on_and_is_stopped_by_closing(self, scripted, client):
        scripted.script = scripted.endless
        with client.edit(b"x" * 70_000, "a", request_id="large"):
            scripted.wait_started("large")
        scripted.wait_ended("large")
        client.edit(b"x" * 70_000, "a").close()

    def test_what_the_servers_grpc_refuses_has_the_same_reason(self, client):
        with pytest.raises(RequestTooLarge, match=r"the request is larger than the server at .* takes") as caught:
            client.edit(b"x" * 5 * 2**20, "a").image()  # 4 MiB are gRPC's default
        assert (caught.value.reason, caught.value.code) == ("REQUEST_TOO_LARGE", "RESOURCE_EXHAUSTED")

    def test_what_the_client_does_not_take_has_not(self, scripted, client, make_events):
        scripted.script = lambda request, context: [make_events().image(b"x" * 5 * 2**20)]
        with pytest.raises(DarkroomError, match="larger than max") as caught:
            client.generate("a").image()
        assert not isinstance(caught.value, RequestTooLarge)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--address", "localhost"], "--address 'localhost' has no port"),
        (["--token", "two words"], "--token must be"),
        (["--root-certificate", "none.pem"], "--root-certificate: none.pem cannot be read"),
    ],
)
def test_the_command_says_it_without_a_traceback(darkroom, options, problem):
    result = darkroom("models", *options, exit_code=2)
    assert result.stderr.startswith(f"error: {problem}")
