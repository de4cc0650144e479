"""Tries what an agent needs before it runs: files and policy, hubs, targets, API servers and the rights there."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..config.credentials import EXPIRED, NOT_YET, check_credentials
from ..config.loading import add_source
from ..config.schema import AgentConfig
from ..errors import ConfigError, HubError
from ..messages import TLS_SCHEMES, Target
from ..policy.api_server import AccessError, ApiAccess
from ..policy.assembly import Policy, make_policy
from ..runtime.alpn import OfferedContext
from ..spoke.hub_endpoint import EndpointSource
from ..syntax import Address
from ..tunnel.call import Call
from ..tunnel.grpc import check_metadata
from ..tunnel.packet import ControlCode
from ..tunnel.session import Tunnel
from ..tunnel.sizes import MESSAGE_BYTES, WINDOW_BYTES
from ..x509.peer import verify_reason, whose_dates

__all__ = ["Result", "run_checks"]

DIAL_TIMEOUT_S = 10.0
PROBE_TIMEOUT_S = 5.0

REVIEW_RIGHT = ("create", "authentication.k8s.io", "tokenreviews")
IMPERSONATION_RIGHTS = (("impersonate", "", "users"), ("impersonate", "", "groups"))
ACCESS_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
RULES_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
EVERYBODYS_GROUP = "system:authenticated"
NAMES_SHOWN = 10


class Result(NamedTuple):
    """The result of one check.

    what: the thing tried.
    finding: its outcome, without secrets.
    note: it works, but needs care.
    """

    ok: bool
    what: str
    finding: str
    note: bool = False

    def __str__(self) -> str:
        """One line."""
        mark = "note" if self.note else "ok  " if self.ok else "FAIL"
        return f"{mark} {self.what}: {' '.join(self.finding.split())}"


async def run_checks(config: AgentConfig, sources: Mapping[str, str] | None = None) -> AsyncIterator[Result]:
    """Yield the result of each check: files and policy, hubs, targets, API servers and the rights there.

    A check is skipped if an earlier one that it needs has failed. If cancelled, nothing stays open.
    sources: of the configuration's set fields, from `settings.load`.
    """
    policy = endpoints = None
    try:
        endpoints = EndpointSource(config)
        policy = make_policy(config)
    except ConfigError as error:
        yield Result(False, "configuration", str(add_source(error, sources or {})))
    else:
        yield Result(True, "configuration", f"cluster {config.cluster_name}, {_described(policy)}")
        for found in filter(lambda each: each.is_dated, check_credentials(config)):
            more = ", ".join(f"{key} {value}" for key, value in found.details.items())
            fails = found.text in (EXPIRED, NOT_YET)
            yield Result(not fails, found.setting, f"{found.text} ({found.path}, {more})", note=not fails)
    if endpoints is not None:
        for number, address in enumerate(config.hub_addresses):
            async for result in _hub(config, endpoints, number, address):
                yield result
    if policy is None:
        return
    try:
        for route in config.static_routes:
            yield await _target(f"route {route.prefix}", Target(route.url), policy)
        for name, access, rights in (
            ("managed cluster", policy.managed, (REVIEW_RIGHT, *(IMPERSONATION_RIGHTS if policy.hub else ()))),
            ("hub cluster", policy.hub, (REVIEW_RIGHT,)),
        ):
            if access is not None:
                async for result in _api_server(name, access, rights):
                    yield result
    finally:
        await policy.close()


def _described(policy: Policy) -> str:
    return f"{type(policy.router).__name__}, {type(policy.processor).__name__}"


class _Nobody:
    """Serves no connection. A connection that the hub opens meanwhile gets an ERROR."""

    def __init__(self, tunnel: Tunnel) -> None:
        self._tunnel = tunnel

    def packet_received(self, conn_id: int, code: int, data: bytes | memoryview, error_message: str) -> None:
        if code == ControlCode.DATA:
            self._tunnel.send(conn_id, ControlCode.ERROR, error_message="this agent only checks its configuration")

    def tunnel_lost(self, error: Exception | None) -> None: ...


async def _hub(config: AgentConfig, endpoints: EndpointSource, number: int, address: Address) -> AsyncIterator[Result]:
    """Name, TCP and TLS, then stream and probe."""
    what = f"hub {address}"
    endpoint = endpoints.endpoint(number)
    if endpoint.proxy is not None:  # it is the one that resolves the name
        yield Result(True, f"{what} proxy", f"through {endpoint.proxy} ({endpoint.proxy.variable})")
    else:
        found = await _resolved(f"{what} name", address.host, address.port)
        yield found
        if not found.ok:
            return
    call = Call(
        endpoint,
        check_metadata([("cluster-name", config.cluster_name), *endpoints.metadata()]),
        "fastpipe-agent check",
        window_bytes=WINDOW_BYTES,
        message_bytes=MESSAGE_BYTES,
    )
    call.tunnel.open(_Nobody(call.tunnel))
    stage = "connection"
    try:
        await call.dial(DIAL_TIMEOUT_S, DIAL_TIMEOUT_S)
        yield Result(True, f"{what} {stage}", "plaintext" if config.insecure else "the TLS handshake succeeded")
        stage = "tunnel"
        await call.probe(PROBE_TIMEOUT_S)
        yield Result(True, f"{what} {stage}", "the hub replied to a probe")
        call.finish()
        await asyncio.wait([call.ended], timeout=PROBE_TIMEOUT_S)
    except HubError as error:
        yield Result(False, f"{what} {stage}", error.reason)
    finally:
        call.fail(None)
        await call.wait_closed()


async def _resolved(what: str, host: str, port: int) -> Result:
    try:
        async with asyncio.timeout(DIAL_TIMEOUT_S):
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except TimeoutError:
        return Result(False, what, f"{host} wasn't resolved within {DIAL_TIMEOUT_S:g} s")
    except (OSError, UnicodeError) as error:
        return Result(False, what, f"{host} can't be resolved ({getattr(error, 'strerror', None) or error})")
    return Result(True, what, ", ".join(dict.fromkeys(str(info[4][0]) for info in found)))


async def _target(what: str, target: Target, policy: Policy) -> Result:
    if target.scheme not in TLS_SCHEMES:
        return await _dialled(what, target.host, target.port, None)
    context, needs_http2 = policy.ssl_context(target), target.scheme == "h2"
    return await _dialled(what, target.host, target.port, context, "target_ca_file", needs_http2=needs_http2)


async def _dialled(
    what: str,
    host: str,
    port: int,
    context: ssl.SSLContext | None,
    ca_setting: str = "",
    *,
    needs_http2: bool = False,
) -> Result:
    """A connection, TLS included, that is closed again.

    ca_setting: the setting with the context's CAs, if one has. needs_http2: the peer must choose HTTP/2 by ALPN.
    """
    where = str(Address(host, port))
    offered: Any = OfferedContext(context, ["h2"]) if context is not None and needs_http2 else context
    try:
        async with asyncio.timeout(DIAL_TIMEOUT_S):
            _, writer = await asyncio.open_connection(
                host, port, ssl=offered, server_hostname=host if context is not None else None
            )
    except TimeoutError:
        return Result(False, what, f"{where} gave no connection within {DIAL_TIMEOUT_S:g} s")
    except ssl.SSLError as error:
        reason = verify_reason(error, ca_setting)
        loop = asyncio.get_running_loop()
        whose = await whose_dates(
            error, "the target", host, lambda reader: loop.create_connection(lambda: reader, host, port)
        )
        return Result(False, what, f"TLS with {where} failed: {reason}{whose and f': {whose}'}")
    except (OSError, UnicodeError) as error:
        return Result(False, what, f"{where} can't be connected ({getattr(error, 'strerror', None) or error})")
    tls = writer.get_extra_info("ssl_object")
    writer.transport.abort()
    try:
        await writer.wait_closed()
    except OSError:
        pass  # the close below still happens
    if tls is not None and needs_http2 and tls.selected_alpn_protocol() != "h2":
        return Result(False, what, f"{where} does not choose HTTP/2 by ALPN")
    return Result(True, what, f"{where} {'connects' if tls is None else tls.version()}")


async def _api_server(name: str, access: ApiAccess, rights: Sequence[tuple[str, str, str]]) -> AsyncIterator[Result]:
    """Credentials, TLS, and what they may do."""
    from ..policy.api_client import ApiClient

    try:
        await access.renew()
    except AccessError as error:
        yield Result(False, f"{name} credentials", str(error))
        return
    dialled = await _dialled(f"{name} API server", *access.address, access.own_context())
    yield dialled
    if not dialled.ok:
        return
    client = ApiClient(access, timeout_s=DIAL_TIMEOUT_S)
    try:
        for right in rights:
            yield await _allowed(name, client, *right)
    finally:
        await client.close()


async def _allowed(name: str, client: Any, verb: str, group: str, resource: str) -> Result:
    """Ask a SelfSubjectAccessReview: may the agent do this? Where not to all objects, to which?"""
    from ..policy.api_client import ReviewError

    what = f"{name} may {verb} {resource}"
    attributes = {"verb": verb, "group": group, "resource": resource}
    try:
        status = await _asked(client, ACCESS_REVIEWS, "SelfSubjectAccessReview", {"resourceAttributes": attributes})
        if not isinstance(status.get("allowed"), bool):
            return Result(False, what, "the API server's SelfSubjectAccessReview is malformed")
        if status["allowed"]:
            return Result(True, what, "allowed")
        # A role that names them allows none in general, so its names have to be looked for.
        rules = await _asked(client, RULES_REVIEWS, "SelfSubjectRulesReview", {"namespace": "default"})
    except ReviewError as error:
        return Result(False, what, error.reason)
    names = _names(rules.get("resourceRules"), verb, group, resource)
    if not names:
        return Result(False, what, "denied to the agent's credentials")
    shown = ", ".join(names[:NAMES_SHOWN]) + (f" and {len(names) - NAMES_SHOWN} more" if names[NAMES_SHOWN:] else "")
    if resource == "groups" and EVERYBODYS_GROUP not in names:
        return Result(False, what, f"allowed for {shown} only, and not for {EVERYBODYS_GROUP}, which every user has")
    return Result(True, what, f"allowed for {shown} only")


async def _asked(client: Any, path: str, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    """The status of what the API server makes of an object. Raises ReviewError."""
    asked = {"apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": spec}
    status = (await client.create(path, asked)).get("status")
    return status if isinstance(status, dict) else {}


def _names(rules: Any, verb: str, group: str, resource: str) -> list[str]:
    """The names that some of a SelfSubjectRulesReview's rules allow this for, and nothing beside them."""
    found: dict[str, None] = {}
    for rule in rules if isinstance(rules, list) else ():
        fits = isinstance(rule, dict) and all(
            wanted in (rule.get(key) or ()) or "*" in (rule.get(key) or ())
            for key, wanted in (("verbs", verb), ("apiGroups", group), ("resources", resource))
        )
        if fits:
            found.update(dict.fromkeys(map(str, rule.get("resourceNames") or ())))
    return list(found)
