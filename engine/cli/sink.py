"""`outrider sink`: a mail server for demos, tests and benchmarks.

Layer: command line.  Spec: design.md "Command line"; engine/net/sink.py.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import resource
import signal
import sys
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import trio
import typer
from cryptography import x509

from ..errors import ConfigError
from ..net.sink import IDLE_TIMEOUT_S, Sink, SinkOptions, open_sink
from ..net.sink_dns import SinkNames, open_names
from ..smtp.server import DEFAULT_MAX_RECIPIENTS, DEFAULT_MAX_SIZE_OCTETS, EXTENSIONS, ServerOptions
from ..tls.context import server_context
from ..tls.selfmade import make_leaf, tlsa_record
from .exits import exit_on_error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from OpenSSL import SSL

#: open files beside the connections: the interpreter's, the listener, what is being stored
_OTHER_DESCRIPTORS = 64


def sink(
    listen: Annotated[str, typer.Option(help="Address and port to listen on; port 0 for any.")] = "127.0.0.1:0",
    tls_cert: Annotated[Path | None, typer.Option(help="PEM file with the certificate and its issuers.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file with the private key.")] = None,
    tls: Annotated[bool, typer.Option("--tls/--no-tls", help="Offer STARTTLS; self-made without --tls-cert.")] = True,
    require_tls: Annotated[bool, typer.Option(help="Refuse mail without TLS.")] = False,
    host_name: Annotated[str, typer.Option(help="Name in the greeting and in a self-made certificate.")] = "localhost",
    dns: Annotated[
        str | None,
        typer.Option(help="Answer DNS here: every domain has this sink for its MX, with TLSA, as if it were signed."),
    ] = None,
    store: Annotated[Path | None, typer.Option(help="Directory to store messages in.")] = None,
    delay: Annotated[float, typer.Option(help="Milliseconds between a command and its reply.", min=0)] = 0,
    defer: Annotated[float, typer.Option(help="Probability that a recipient is deferred.", min=0, max=1)] = 0,
    fail: Annotated[float, typer.Option(help="Probability that a recipient is refused.", min=0, max=1)] = 0,
    drop: Annotated[float, typer.Option(help="Probability that a transaction drops the connection.", min=0, max=1)] = 0,
    max_messages_per_connection: Annotated[
        int | None, typer.Option(help="More are answered 421; any number without it.", min=1)
    ] = None,
    max_connections: Annotated[int, typer.Option(help="At a time; more are answered 421.", min=1)] = 1000,
    max_recipients: Annotated[
        int, typer.Option(help="Of one message; more are answered 452.", min=1)
    ] = DEFAULT_MAX_RECIPIENTS,
    max_size: Annotated[int, typer.Option(help="Octets of one message.", min=1)] = DEFAULT_MAX_SIZE_OCTETS,
    auth: Annotated[str | None, typer.Option(help="USER:PASSWORD that clients must show.")] = None,
    without: Annotated[list[str] | None, typer.Option(help="Extension not to offer; may be repeated.")] = None,
    offer: Annotated[list[str] | None, typer.Option(help="Further EHLO keyword to offer; may be repeated.")] = None,
    idle_timeout: Annotated[float, typer.Option(help="Seconds of a client's silence.", min=0.1)] = IDLE_TIMEOUT_S,
    track: Annotated[bool, typer.Option(help="Count duplicates by Message-ID and recipient.")] = False,
    seed: Annotated[int | None, typer.Option(help="Makes deferrals, refusals and drops repeatable.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the address and the counts as JSON.")] = False,
) -> None:
    """Accept mail, and defer, refuse, delay or drop it as told; print counts when stopped (SIGTERM or Ctrl-C)."""
    extensions = tuple(name for name in EXTENSIONS if name not in {word.upper() for word in without or []})
    with exit_on_error():
        try:
            host, port = _host_and_port(listen)
            names_at = _host_and_port(dns) if dns is not None else None
            server = ServerOptions(
                host_name=host_name,
                extensions=extensions + tuple(word for word in offer or [] if word not in extensions),
                defer=defer,
                fail=fail,
                drop=drop,
                max_size_octets=max_size,
                max_messages=max_messages_per_connection,
                max_recipients=max_recipients,
                require_tls=require_tls,
                credentials=_credentials(auth),
            )
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        if tls_cert is None and tls_key is not None:
            raise typer.BadParameter("--tls-key goes with --tls-cert")
        if require_tls and not (tls and "STARTTLS" in extensions):
            raise typer.BadParameter("--require-tls without STARTTLS would refuse all mail")
        _allow_descriptors(max_connections)
        context, tlsa = _context(host_name, tls_cert, tls_key) if tls else (None, None)
        options = SinkOptions(
            host=host,
            port=port,
            server=server,
            tls=context,
            store=store,
            track=track,
            delay_s=delay / 1000,
            max_connections=max_connections,
            seed=seed,
            idle_timeout_s=idle_timeout,
        )
        trio.run(_run, options, tlsa, names_at, as_json)


async def _run(options: SinkOptions, tlsa: str | None, names_at: tuple[str, int] | None, as_json: bool) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with contextlib.AsyncExitStack() as stack:
            with _telling_where(options.host, options.port):
                running = await stack.enter_async_context(open_sink(options))
            host, port = running.address
            first = {"listening": _shown(host, port), "host": host, "port": port, "tlsa": tlsa}
            if names_at is not None:
                with _telling_where(*names_at):
                    names = SinkNames(options.server.host_name, host, port, tlsa)
                    first["dns"] = _shown(*await stack.enter_async_context(open_names(names, *names_at)))
            if as_json:
                print(json.dumps(first), flush=True)
            else:
                print(first["listening"], *(["DNS", first["dns"]] if "dns" in first else []), flush=True)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_tell_store_error, running)
                async for _ in signals:
                    break
                nursery.cancel_scope.cancel()
    counts = running.counts.to_dict()
    lines = [f"{name.replace('_', ' ')}: {count}" for name, count in counts.items()]
    try:
        print(json.dumps(counts) if as_json else "\n".join(lines), flush=True)
    except BrokenPipeError:
        # Nobody reads any more, as after `outrider sink | head -1`; the interpreter must not try again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def _telling_where(host: str, port: int) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        reason = error.strerror or error if isinstance(error, OSError) else error
        raise ConfigError(f"cannot listen on {host}:{port}: {reason}") from None


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def _tell_store_error(running: Sink) -> None:
    """Tell once, and at once, that messages are refused because they cannot be stored."""
    error = await running.wait_store_error()
    print(f"outrider: {error}; messages are answered with 452", file=sys.stderr, flush=True)


def _allow_descriptors(connections: int) -> None:
    """Raise the soft limit of open files, often 1,024, as far as `connections` need it and the hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _OTHER_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        except (OSError, ValueError):
            return  # macOS has another limit below the hard one; then trio tells of each connection it cannot accept


def _host_and_port(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{text!r} is not an address and a port, such as 127.0.0.1:2525 or [::1]:2525")
    return host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port)


def _credentials(text: str | None) -> tuple[str, str] | None:
    if text is None:
        return None
    user, colon, password = text.partition(":")
    if not colon or not user:
        raise ValueError("--auth wants USER:PASSWORD")
    return user, password


def _context(host_name: str, certificate: Path | None, key: Path | None) -> tuple[SSL.Context, str]:
    """A server context, and the TLSA record (usage 3, selector 1, SHA2-256) that its certificate matches."""
    if certificate is None:
        identity = make_leaf([host_name], now=datetime.datetime.now(datetime.UTC))
        return server_context(identity), identity.tlsa_record
    context = server_context(certificate_file=str(certificate), key_file=str(key) if key else None)
    try:
        leaf = x509.load_pem_x509_certificate(certificate.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"certificate from {certificate}: {error}") from None
    return context, tlsa_record(leaf)
