"""HTTPS in front of any of our servers: an authority of one test session, and what ends TLS."""

from __future__ import annotations

import datetime
import ipaddress
import socket
import socketserver
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

PIECE_BYTES = 64 << 10


def write_authority(folder: Path) -> tuple[Path, Path]:
    """(certificate to trust, certificate and key of a server on 127.0.0.1), as PEM files."""
    now = datetime.datetime.now(datetime.UTC)
    authority, server = (
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP256R1()),
    )

    def signed(name: str, key: ec.EllipticCurvePublicKey, *, is_authority: bool) -> bytes:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "historay tests")])
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
            .add_extension(x509.SubjectAlternativeName([address]), critical=False)
            .sign(authority, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM)

    trusted, own = folder / "authority.pem", folder / "server.pem"
    trusted.write_bytes(signed("historay tests", authority.public_key(), is_authority=True))
    key = server.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    own.write_bytes(key + signed("127.0.0.1", server.public_key(), is_authority=False))
    return trusted, own


@contextmanager
def https(endpoint: str, certificate: Path) -> Iterator[str]:
    """`https://127.0.0.1:PORT`, whose requests go on to the server at `endpoint`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    upstream = urlsplit(endpoint)
    assert upstream.hostname is not None

    class Passed(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            address = upstream.hostname, upstream.port
            with (
                suppress(OSError),  # either side may go away
                context.wrap_socket(self.request, server_side=True) as here,
                socket.create_connection(address, timeout=60) as there,
            ):
                back = Thread(target=_pass_on, args=(there, here), daemon=True)
                back.start()
                _pass_on(here, there)
                back.join()

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Passed) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"https://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(PIECE_BYTES):
            target.sendall(piece)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
