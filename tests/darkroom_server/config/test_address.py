"""One grammar of addresses, in the settings: what can be listened on, and what is said of the rest."""

import pytest
from pydantic import ValidationError

from darkroom_server.config.address import MAX_UNIX_PATH, TcpAddress, UnixAddress, parse_address
from darkroom_server.config.settings import Settings, TokenSettings

TOKEN = TokenSettings(name="me", sha256="0" * 64)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:50051", TcpAddress("127.0.0.1", 50051)),
        ("127.0.0.1:0", TcpAddress("127.0.0.1", 0)),
        ("localhost:65535", TcpAddress("localhost", 65535)),
        ("gpu-1.example.org:1", TcpAddress("gpu-1.example.org", 1)),
        ("[::1]:50051", TcpAddress("::1", 50051)),
        ("[0:0::1]:1", TcpAddress("::1", 1)),
        ("unix:run/darkroom.sock", UnixAddress("run/darkroom.sock")),
        ("unix:/run/darkroom.sock", UnixAddress("/run/darkroom.sock")),
        ("unix:///run/darkroom.sock", UnixAddress("/run/darkroom.sock")),
        ("unix:a:1", UnixAddress("a:1")),
        ("unix-abstract:darkroom", UnixAddress("darkroom", abstract=True)),
    ],
)
def test_addresses_and_their_text(text: str, address: TcpAddress | UnixAddress) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("127.0.0.1:99999", "the port must be a number from 0 to 65535, not '99999'"),
        ("127.0.0.1:65536", "the port must be a number from 0 to 65535, not '65536'"),
        ("127.0.0.1:-1", "the port must be a number from 0 to 65535, not '-1'"),
        ("127.0.0.1:+1", "not '+1'"),
        ("127.0.0.1: 1", "not ' 1'"),
        ("127.0.0.1:", "not ''"),
        ("127.0.0.1:٣", "not '٣'"),
        ("127.0.0.1:http", "not 'http'"),
        ("127.0.0.1", "'127.0.0.1' has no port; HOST:PORT, [IPv6]:PORT, unix:PATH or unix-abstract:NAME is needed"),
        ("", "'' has no port"),
        ("[::1]", "'[::1]' has no port"),
        (":50051", "a host is needed before the port: 127.0.0.1, or 0.0.0.0 for all"),
        ("::1:50051", "'::1' is no host; an IPv6 address goes in brackets"),
        ("[127.0.0.1]:1", "[127.0.0.1] is no IPv6 address"),
        ("dns:///localhost:1", "'dns:///localhost' is no host"),
        ("my host:1", "'my host' is no host"),
        ("*:1", "'*' is no host"),
        ("unix:", "unix: has no path"),
        ("unix://", "after unix:// the path must be absolute"),
        ("unix://run/x", "unix:run/x is a relative one"),
        ("unix-abstract:", "unix-abstract: has no name"),
        ("unix:a\0b", "without zeros"),
        (f"unix:{'x' * (MAX_UNIX_PATH + 1)}", "must have up to 99 bytes"),
    ],
)
def test_what_is_no_address(text: str, problem: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(listen=text)
    ((place, message),) = [(error["loc"], error["msg"]) for error in caught.value.errors()]
    assert place == ("listen",)
    assert problem in message


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "10.1.2.3", "example.org", "[fe80::1]"])
def test_other_machines_need_a_token(host: str) -> None:
    with pytest.raises(ValidationError, match="reached from other machines, and no tokens"):
        Settings(listen=f"{host}:1")
    assert Settings(listen=f"{host}:1", tokens=[TOKEN]).listen == f"{host}:1"


@pytest.mark.parametrize(
    "listen", ["127.0.0.1:1", "127.1.2.3:1", "[::1]:1", "localhost:1", "unix:x", "unix-abstract:x"]
)
def test_this_machine_alone_needs_none(listen: str) -> None:
    assert Settings(listen=listen).listen == listen
