"""HTTP's door over TLS: with the certificates of gRPC's, renewed ones too."""

import os
import socket
import ssl
from pathlib import Path

import httpx2
import pytest

from darkroom_server.cli.self_signed import Files, self_signed
from tests.darkroom_server.web.http import unary
from tests.support import RunningServer

LIST = "/darkroom.v1.CatalogService/ListModels"


def tls_server(tiny_model: Path, files: Files, client_ca: Path | None = None) -> RunningServer:
    tls = {"certificate": files.certificate, "key": files.key, "client_ca": client_ca}
    return RunningServer(models=[{"name": "tiny", "path": tiny_model}], http="127.0.0.1:0", tls=tls)


def models(server: RunningServer, trusted: Path, client: Files | None = None) -> int:
    context = ssl.create_default_context(cafile=trusted)
    if client is not None:
        context.load_cert_chain(client.client, client.client_key)
    with httpx2.Client(base_url=server.app.url, verify=context) as http:
        return unary(http, LIST, {}).status_code


def test_a_renewed_certificate_is_taken_up(tiny_model: Path, tmp_path: Path) -> None:
    files, new = self_signed(tmp_path / "tls", None), self_signed(tmp_path / "new", None)
    with tls_server(tiny_model, files) as server:
        assert server.app.url.startswith("https://127.0.0.1:")
        assert models(server, files.ca) == 200
        with pytest.raises(httpx2.ConnectError):
            models(server, new.ca)
        os.replace(new.certificate, files.certificate)  # half of it: the old one goes on
        assert models(server, files.ca) == 200
        os.replace(new.key, files.key)
        assert models(server, new.ca) == 200
        plain = server.app.url.replace("https", "http")
        with httpx2.Client(base_url=plain) as http, pytest.raises(httpx2.TransportError):
            unary(http, LIST, {})


def test_clients_without_a_certificate_are_kept_out(tiny_model: Path, tmp_path: Path) -> None:
    files = self_signed(tmp_path / "tls", None)
    with tls_server(tiny_model, files, client_ca=files.ca) as server:
        assert models(server, files.ca, files) == 200
        with pytest.raises(httpx2.TransportError):
            models(server, files.ca)


@pytest.mark.parametrize("door", ["http", "grpc"])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def test_a_session_does_not_outlive_its_client_ca(
    tiny_model: Path, tmp_path: Path, door: str, version: ssl.TLSVersion
) -> None:
    """One that goes on shows no certificate."""
    files, new = self_signed(tmp_path / "tls", None), self_signed(tmp_path / "new", None)
    client_ca = tmp_path / "client-ca.pem"
    client_ca.write_bytes(files.ca.read_bytes())
    context = ssl.create_default_context(cafile=files.ca)
    context.load_cert_chain(files.client, files.client_key)
    context.maximum_version = version
    context.set_alpn_protocols(["http/1.1" if door == "http" else "h2"])

    def session(server: RunningServer, before: ssl.SSLSession | None = None) -> ssl.SSLSession | None:
        """The session of a connection, in which the server has said something."""
        host, _, port = (server.app.url.partition("//")[2] if door == "http" else server.address).rpartition(":")
        with (
            socket.create_connection((host, int(port)), timeout=20) as plain,
            context.wrap_socket(plain, server_hostname="localhost", session=before) as connection,
        ):
            ask = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" if door == "http" else b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            connection.sendall(ask)
            if not connection.recv(1):
                raise ConnectionError
            return connection.session

    with tls_server(tiny_model, files, client_ca) as server:
        if (door, version) == ("http", ssl.TLSVersion.TLSv1_2):
            with pytest.raises(OSError):  # noqa: PT011  # TLS's alert, or its end
                session(server)
            return
        before = session(server)
        os.replace(new.ca, client_ca)
        with pytest.raises(OSError):  # noqa: PT011
            session(server, before)


def test_a_renewed_client_ca_is_taken_up(tiny_model: Path, tmp_path: Path) -> None:
    files, new = self_signed(tmp_path / "tls", None), self_signed(tmp_path / "new", None)
    client_ca = tmp_path / "client-ca.pem"
    client_ca.write_bytes(files.ca.read_bytes())
    with tls_server(tiny_model, files, client_ca) as server:
        assert models(server, files.ca, files) == 200
        with pytest.raises(httpx2.TransportError):
            models(server, files.ca, new)
        os.replace(new.ca, client_ca)
        assert models(server, files.ca, new) == 200
        with pytest.raises(httpx2.TransportError):
            models(server, files.ca, files)
