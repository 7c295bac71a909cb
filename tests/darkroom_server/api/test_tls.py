"""Over TLS: who is let in, who is not, and certificates that are renewed while the server runs."""

import hashlib
import os
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from pydantic import ValidationError

from darkroom_client import Client
from darkroom_client.errors import DarkroomError, InvalidOptions, ServerUnreachable, Unauthenticated
from darkroom_server.cli.self_signed import Files, self_signed
from darkroom_server.config.settings import Settings
from tests.support import RunningServer


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return self_signed(tmp_path_factory.mktemp("tls"), None)


def tls_server(tiny_model: Path, files: Files, client_ca: Path | None = None, **settings: Any) -> RunningServer:
    tls = {"certificate": files.certificate, "key": files.key, "client_ca": client_ca}
    return RunningServer(models=[{"name": "tiny", "path": tiny_model}], tls=tls, **settings)


def models(server: RunningServer, **options: Any) -> list[str]:
    with Client(server.address, retries=0, **options) as client:
        return [model.name for model in client.models()]


def serial(server: RunningServer) -> int:
    """Of the certificate that a new connection gets."""
    host, _, port = server.address.rpartition(":")
    return x509.load_pem_x509_certificate(ssl.get_server_certificate((host, int(port))).encode()).serial_number


def test_the_port_speaks_tls_alone(tiny_model: Path, files: Files, tmp_path: Path) -> None:
    sums = hashlib.sha256(b"t0ken").hexdigest()
    with tls_server(tiny_model, files, tokens=[{"name": "me", "sha256": sums}]) as server:
        assert models(server, root_certificate=files.ca, token="t0ken") == ["tiny"]
        with pytest.raises(Unauthenticated):  # a certificate of the CA is no token
            models(server, root_certificate=files.ca, client_certificate=files.client, client_key=files.client_key)
        for options in ({}, {"tls": True}, {"root_certificate": self_signed(tmp_path / "other", None).ca}):
            with pytest.raises(ServerUnreachable):
                models(server, token="t0ken", **options)


def test_clients_without_a_certificate_are_kept_out(tiny_model: Path, files: Files, tmp_path: Path) -> None:
    other = self_signed(tmp_path / "other", None)
    with tls_server(tiny_model, files, files.ca) as server:
        own: dict[str, Any] = {"client_certificate": files.client, "client_key": files.client_key}
        assert models(server, root_certificate=files.ca, **own) == ["tiny"]
        with pytest.raises(ServerUnreachable):
            models(server, root_certificate=files.ca)
        with pytest.raises(ServerUnreachable):
            models(server, root_certificate=files.ca, client_certificate=other.client, client_key=other.client_key)


def test_a_renewed_certificate_is_taken_up(tiny_model: Path, tmp_path: Path) -> None:
    files, new = self_signed(tmp_path / "now", None), self_signed(tmp_path / "next", None)
    with tls_server(tiny_model, files) as server, Client(server.address, root_certificate=files.ca.read_bytes()) as old:
        assert old.models()
        first = serial(server)
        os.replace(new.key, files.key)  # half of it: the old pair goes on
        assert serial(server) == first
        os.replace(new.certificate, files.certificate)
        second = serial(server)
        assert second != first
        assert models(server, root_certificate=new.ca) == ["tiny"]
        assert old.models()  # its connection is still open
        files.certificate.unlink()
        assert serial(server) == second


def test_a_renewed_client_ca_is_taken_up(tiny_model: Path, tmp_path: Path) -> None:
    files, new = self_signed(tmp_path / "now", None), self_signed(tmp_path / "next", None)
    client_ca = tmp_path / "client-ca.pem"
    client_ca.write_bytes(files.ca.read_bytes())
    old_one, new_one = (
        {"root_certificate": files.ca.read_bytes(), "client_certificate": each.client, "client_key": each.client_key}
        for each in (files, new)
    )
    with tls_server(tiny_model, files, client_ca) as server:
        assert models(server, **old_one) == ["tiny"]
        with pytest.raises(ServerUnreachable):
            models(server, **new_one)
        os.replace(new.ca, client_ca)
        assert models(server, **new_one) == ["tiny"]
        with pytest.raises(ServerUnreachable):
            models(server, **old_one)


def test_a_client_ca_lets_the_server_be_reached(files: Files) -> None:
    tls = {"certificate": files.certificate, "key": files.key}
    with pytest.raises(ValidationError, match=r"set tls\.client_ca"):
        Settings(listen="0.0.0.0:0", tls=tls)
    assert Settings(listen="0.0.0.0:0", tls={**tls, "client_ca": files.ca}).tls


def test_what_cannot_be_used_is_said_at_the_start(files: Files, tmp_path: Path) -> None:
    (tmp_path / "words.pem").write_text("words")
    other = self_signed(tmp_path / "other", None)
    for certificate, key, client_ca, problem in (
        (files.certificate, other.key, None, "is not the key of the certificate in"),
        (files.certificate, tmp_path / "none.pem", None, "none.pem cannot be read: No such file"),
        (tmp_path / "words.pem", files.key, None, "are no certificate and its private key in PEM format"),
        (files.certificate, files.key, tmp_path / "words.pem", "words.pem is no certificate in PEM format"),
    ):
        with pytest.raises(ValidationError, match=problem):
            Settings(tls={"certificate": certificate, "key": key, "client_ca": client_ca})
    with pytest.raises(ValidationError, match="a unix socket is not encrypted"):
        Settings(listen="unix:/tmp/socket", tls={"certificate": files.certificate, "key": files.key})


def test_certificates_are_made_once(tmp_path: Path) -> None:
    files = self_signed(tmp_path, None)
    before = [path.read_bytes() for path in files]
    assert [path.read_bytes() for path in self_signed(tmp_path, None)] == before
    assert all(path.stat().st_mode & 0o077 == 0 for path in (files.key, files.client_key, tmp_path / "ca-key.pem"))
    named = self_signed(tmp_path, "images.example")  # it has to name the host: a new one, of the same CA
    assert named.ca.read_bytes() == before[0]
    found = x509.load_pem_x509_certificate(named.certificate.read_bytes())
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "images.example" in names.get_values_for_type(x509.DNSName)


@pytest.mark.slow
def test_serve_makes_certificates_and_says_how_to_connect(tmp_path: Path) -> None:
    code = "from darkroom_client.cli import main; main()"
    command = [sys.executable, "-c", code, "serve", "--listen", "127.0.0.1:0", "--tls-self-signed", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            address = process.stdout.readline().split()[4].strip(":")
            with Client(address, root_certificate=tmp_path / "ca.pem") as client:
                assert client.generate("a red circle", num_inference_steps=1).image().width == 64
        finally:
            process.terminate()
        said = process.stderr.read()
    assert f"--root-certificate {tmp_path / 'ca.pem'}" in said


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"client_key": b"PRIVATE KEY"}, "client_key needs client_certificate beside it"),
        ({"client_certificate": b"x"}, "client_certificate needs client_key beside it"),
        ({"client_certificate": b"x", "client_key": b"PRIVATE KEY"}, "client_certificate: the bytes given are no"),
        ({"client_key": "none.pem"}, r"client_key: none\.pem cannot be read"),
    ],
)
def test_a_clients_certificate_is_checked(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidOptions, match=problem):
        Client(**options)
    assert issubclass(InvalidOptions, DarkroomError)
