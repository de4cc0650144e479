"""Measures the pool of target connections: a TLS target, with the pool and with a connection for each request."""

from __future__ import annotations

import contextlib
import functools
import itertools
import ssl
from collections.abc import Iterator, Mapping, Sequence

from agent.messages import Target
from agent.policy.router import StaticRouter
from agent.proxy import Upstreams
from agent.proxy.upstream import Upstream

from .hop import KEPT, counted, stack
from .measuring import Case, Samples, Scale, Turn
from .pipe import on_loop
from .processes import Nginx, nginx

__all__ = ["CASES", "Unpooled"]

CLIENTS = 16


class Unpooled(Upstreams):
    """Keeps no connection: each request dials, and ends what it has dialled."""

    def take(self, target: Target) -> None:
        return None

    def release(self, upstream: Upstream) -> None:
        upstream.abort()


async def requests(kind: type[Upstreams], server: Nginx, n: int) -> Samples:
    """n requests for 1 KiB by kept-alive clients over memory, by this kind of pool."""
    context = ssl.create_default_context(cafile=str(server.ca_file))
    upstreams = kind(ssl_context=lambda _: context)
    router = StaticRouter([("/", server.tls_url)], "c1")
    async with stack("memory", router.route, upstreams=upstreams) as made:
        return await counted(made.manager, made.packets, itertools.repeat(KEPT % b"1k"), n, CLIENTS, False)


@contextlib.contextmanager
def open_tls(scale: Scale) -> Iterator[Mapping[str, Turn]]:
    amounts = {"pooled": (Upstreams, 8_000), "connection per request": (Unpooled, 500)}

    def turn(kind: type[Upstreams], server: Nginx, n: int) -> Samples:
        found: Samples = on_loop("uvloop", requests(kind, server, n))
        return found

    with nginx() as server:
        yield {name: functools.partial(turn, kind, server, n) for name, (kind, n) in amounts.items()}


CASES: Sequence[Case] = (
    Case(
        "hop TLS target",
        f"The agent's hop over memory, {CLIENTS} kept-alive clients, 1 KiB from nginx over TLS",
        open_tls,
        [("pooled", "connection per request")],
    ),
)
