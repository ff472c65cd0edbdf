"""A web server for MTA-STS policies on loopback: Python's HTTPS server in a thread, or one that says what it is told.

with PolicyHost(leaf("mta-sts.example.org")) as host:
    host.policies["mta-sts.example.org"] = POLICY
    StsFetcher(…, port=host.port)
"""

from __future__ import annotations

import contextlib
import http.server
import socket
import ssl
import tempfile
import threading
from pathlib import Path

from engine.tls.selfmade import Identity

POLICY = "version: STSv1\nmode: {mode}\nmx: {mx}\nmax_age: {age}\n"


def policy(mode: str = "enforce", mx: str = "mx.example.org", age: int = 86400) -> bytes:
    return POLICY.format(mode=mode, mx=mx, age=age).encode()


class PolicyHost:
    """A running server.

    Attributes:
        policies: Host header -> body; who is not here gets 404.
        status, headers: of every response.
        raw: octets to send instead of a response, after which the connection is closed.
        requests: (Host header, path) of each.
    """

    def __init__(self, identity: Identity) -> None:
        self.policies: dict[str, bytes] = {}
        self.status = 200
        self.headers = {"Content-Type": "text/plain; charset=utf-8"}
        self.raw: bytes | None = None
        self.requests: list[tuple[str, str]] = []
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.TemporaryDirectory() as folder:
            chain, key = Path(folder, "chain"), Path(folder, "key")
            chain.write_bytes(identity.chain_pem)
            key.write_bytes(identity.key_pem)
            self._context.load_cert_chain(chain, key)
        host = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                self.request.settimeout(10)
                self.request = host._context.wrap_socket(self.request, server_side=True)
                super().setup()

            def finish(self) -> None:
                with contextlib.suppress(OSError, ValueError):
                    super().finish()
                self.request.close()

            def do_GET(self) -> None:
                name = self.headers.get("Host", "")
                host.requests.append((name, self.path))
                self.close_connection = True
                if host.raw is not None:
                    self.wfile.write(host.raw)
                    self.wfile.flush()
                    with contextlib.suppress(OSError, ValueError):
                        self.request.unwrap()
                    return
                body = host.policies.get(name)
                self.send_response(host.status if body is not None else 404)
                for key, value in host.headers.items():
                    self.send_header(key, value)
                body = body or b""
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = False

            def handle_error(self, request: object, client_address: object) -> None:
                """A client that does not like our certificate is no news."""

            def shutdown_request(self, request: socket.socket | tuple[bytes, socket.socket]) -> None:
                assert isinstance(request, socket.socket)
                request.close()

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> PolicyHost:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()
