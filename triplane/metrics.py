"""Figures of a running job for Prometheus: counters and gauges, served where TRIPLANE_METRICS_PORT says, and nowhere else.

    triplane_done_total{job, unit}                what every progress bar counts: bytes, tokens, items
    triplane_documents_total{job}                 documents a stage of a build has finished
    triplane_tokens_total{plane}                  tokens trained on
    triplane_loss{run}, triplane_mfu_ratio{run}   of the last step, and over the last 30 s
    triplane_evaluation_lag_tokens{run, suite}    newest checkpoint - newest evaluated checkpoint

Served on 127.0.0.1. TRIPLANE_METRICS_ADDRESS names another address, which needs a token (TRIPLANE_METRICS_TOKEN), asked of every
scrape as `Authorization: Bearer`. Without a port nothing is imported and a count costs a look at a variable.
Source: https://prometheus.io/docs/practices/naming/.
"""

import hmac
import ipaddress
import os
import socketserver
import sys
import threading
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from triplane.errors import UsageError

PORT_VARIABLE = "TRIPLANE_METRICS_PORT"
ADDRESS_VARIABLE = "TRIPLANE_METRICS_ADDRESS"
TOKEN_VARIABLE = "TRIPLANE_METRICS_TOKEN"

_HELP = {
    "done_total": "What progress bars count, by job and unit.",
    "documents_total": "Documents that a stage of a build has finished.",
    "tokens_total": "Tokens processed, by plane.",
    "loss": "Cross-entropy of the last step, nats a token.",
    "mfu_ratio": "Model FLOPs utilisation over the last 30 s, 0 to 1.",
    "evaluation_lag_tokens": "Tokens seen by the newest checkpoint minus those of the newest evaluated one.",
}


def count(name: str, amount: float, **labels: str) -> None:
    """Adds to the counter triplane_NAME; nothing where no metrics are served."""
    if PORT_VARIABLE in os.environ:
        _metric(name, tuple(labels)).labels(**labels).inc(amount)


def gauge(name: str, value: float, **labels: str) -> None:
    """Sets the gauge triplane_NAME; nothing where no metrics are served."""
    if PORT_VARIABLE in os.environ:
        _metric(name, tuple(labels)).labels(**labels).set(value)


@cache
def _metric(name: str, labels: tuple[str, ...]) -> Any:
    """The counter or gauge itself; the first one starts the server."""
    import prometheus_client

    serve()
    kind = prometheus_client.Counter if name.endswith("_total") else prometheus_client.Gauge
    return kind(f"triplane_{name}", _HELP[name], labels)


@cache
def serve() -> int | None:
    """Starts to serve, once a process -> the port; None where no port is asked for, or it cannot be used (said on stderr).

    Raises UsageError for a port that is none, prometheus_client missing, or an address others can reach without a token.
    """
    if PORT_VARIABLE not in os.environ:
        return None
    address, port = os.environ.get(ADDRESS_VARIABLE, "127.0.0.1"), _port()
    token = os.environ.get(TOKEN_VARIABLE)
    if not token and not _is_loopback(address):
        raise UsageError(
            f"metrics on {address} are for everybody who reaches it: set {TOKEN_VARIABLE}, or unset {ADDRESS_VARIABLE}"
        )
    try:
        server = make_server(address, port, _app(token), _Server, _Quiet)
    except OSError as error:
        print(
            f"warning: no metrics of this process, {address}:{port} cannot be used ({error.strerror})", file=sys.stderr
        )
        return None
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server.server_port


def _port() -> int:
    value = os.environ[PORT_VARIABLE]
    if not value.isdecimal() or int(value) > 65535:
        raise UsageError(f"{PORT_VARIABLE} is {value!r}: give a port, 1 to 65535")
    return int(value)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _app(token: str | None) -> Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]:
    """The exposition, behind the token if there is one."""
    try:
        from prometheus_client import make_wsgi_app
    except ModuleNotFoundError:
        raise UsageError(f"{PORT_VARIABLE} needs prometheus_client: pip install 'triplane[cluster]'") from None
    exposition: Any = make_wsgi_app()

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        given = environ.get("HTTP_AUTHORIZATION", "").encode()
        if token and not hmac.compare_digest(given, f"Bearer {token}".encode()):
            start_response("401 Unauthorized", [("WWW-Authenticate", "Bearer")])
            return [b"401: give the metrics token as Authorization: Bearer\n"]
        found: Iterable[bytes] = exposition(environ, start_response)
        return found

    return answer


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """A scrape every few seconds is no news."""
