"""Cleans a request of forwarding fields, and writes the proxy's: who asks, by which scheme, host, port and prefix.

    from a user             all are dropped             For, Proto, Host, Port, Prefix and X-Request-Id are written
    from a trusted proxy    all are believed            the same, with the proxy's address appended to For
    from a trusted hub      all are kept                Prefix gets what a route cut
    from another hub        all are dropped             Prefix is the cluster's path

A field counts in every spelling: case, and any mark in place of "-". Servers that pass fields as CGI variables treat
"_" as "-" (RFC 3875, section 4.1.18). Only the exact spelling is believed.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

from ..syntax import find_address, fold_field_name
from .headers import Fields
from .heads import Request
from .origin import NO_HOST, ClientOrigin, HubOrigin, Origin

__all__ = ["Report", "is_forwarding_field", "receive", "receive_reported"]


_NAMES = frozenset(
    {
        b"cf-connecting-ip",
        b"cf-connecting-ipv6",
        b"cf-pseudo-ipv4",
        b"cf-visitor",
        b"client-ip",
        b"cloudfront-forwarded-proto",
        b"cloudfront-viewer-address",
        b"cluster-client-ip",
        b"fastly-client-ip",
        b"fly-client-ip",
        b"forwarded",
        b"forwarded-for",
        b"forwarded-for-ip",
        b"front-end-https",
        b"http-x-forwarded-for",
        b"proxy-client-ip",
        b"true-client-ip",
        b"wl-proxy-client-ip",
        b"x-appengine-remote-addr",
        b"x-appengine-user-ip",
        b"x-arr-clientcert",
        b"x-arr-ssl",
        b"x-azure-clientip",
        b"x-azure-socketip",
        b"x-client-ip",
        b"x-cluster-client-ip",
        b"x-envoy-external-address",
        b"x-envoy-original-path",
        b"x-forwarded",
        b"x-host",
        b"x-http-host-override",
        b"x-original-forwarded-for",
        b"x-original-host",
        b"x-original-uri",
        b"x-original-url",
        b"x-originating-ip",
        b"x-proxyuser-ip",
        b"x-real-ip",
        b"x-remote-addr",
        b"x-remote-ip",
        b"x-request-id",
        b"x-rewrite-url",
        b"x-scheme",
        b"x-sucuri-clientip",
        b"x-url-scheme",
    }
)
_BEGINNINGS = (b"x-forwarded-", b"x-client-cert", b"x-ssl-", b"ssl-client-")

FOR = b"x-forwarded-for"
PROTO = b"x-forwarded-proto"
HOST = b"x-forwarded-host"
PORT = b"x-forwarded-port"
PREFIX = b"x-forwarded-prefix"
REQUEST_ID = b"x-request-id"
FORWARDED = b"forwarded"
REWRITTEN = frozenset({FOR, PROTO, HOST, PORT, PREFIX, REQUEST_ID, FORWARDED})
"""Fields of a trusted proxy that the proxy writes itself, with what it believes. `Forwarded` is dropped, because two
forms of one fact can contradict each other."""

PREFIX_BYTES = 1024
_PREFIX = re.compile(rb"(?:/(?!\.{0,2}(?:/|\Z))(?:[A-Za-z0-9._~!$&'()*+,=:@-]|%[0-9A-Fa-f]{2})+)+")
_ENCODED_DOT_OR_SLASH = re.compile(rb"%(?:2[ef]|5c|00)", re.IGNORECASE)
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._~:/+=@-]{1,128}")
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~-]+)(?::[0-9]{1,5})?")
HOST_BYTES = 261
ADDRESS_BYTES = 80  # IPv6 with a zone, in brackets with a port
MOST_HOPS = 32
"""Addresses of X-Forwarded-For that are read, from its end."""

_NOTED: dict[bytes, bool] = {}  # whether a field is one of forwarding, since the same few names repeat
_NOTED_NAMES, _NOTED_BYTES = 512, 64

KEPT_BYTES = 1024
"""The most bytes of values whose lines or facts are kept. The requests of a connection mostly have equal ones."""


def is_forwarding_field(name: bytes) -> bool:
    """Whether a field reports a request's way or id, in any case or spelling."""
    plain = fold_field_name(name)
    return plain in _NAMES or plain.startswith(_BEGINNINGS)


def receive(request: Request, origin: Origin) -> None:
    """Take the forwarding fields off a new request, and note the facts that `origin` may report by them."""
    fields = request.fields
    kept: Fields | None = None
    found: Fields | None = None
    for at, field in enumerate(fields):
        name = field[0]
        is_forwarding = _NOTED.get(name)
        if is_forwarding is None:
            is_forwarding = _note(name)
        if not is_forwarding:
            if kept is not None:
                kept.append(field)
        elif found is None:
            kept, found = fields[:at], [field]
        else:
            found.append(field)
    if kept is not None:
        request.fields = kept
        request.received = [(b"Host", request.host), *kept] if request.host else kept
    if isinstance(origin, HubOrigin):
        _from_hub(request, origin, found or [])
    else:
        _from_client(request, origin, found or [])


class Report:
    """The forwarding fields at the end of a head from a trusted hub. Its next heads mostly end with the same bytes.

    Attributes:
        ending: these bytes, from the CRLF before the first field.
        host: the `Host` beside them.
        count: the number of the fields.
        fields, lines: those that the target gets, the latter with a CRLF behind each.
        facts: all that the hub reports.
    """

    __slots__ = ("count", "ending", "facts", "fields", "host", "lines")

    def __init__(self, ending: bytes, host: bytes, count: int, facts: _Facts) -> None:
        self.ending = ending
        self.host = host
        self.count = count
        self.facts = facts
        self.fields = facts.fields
        self.lines = b"".join([name + b": " + value + b"\r\n" for name, value in facts.fields])

    @staticmethod
    def of(ending: bytes, request: Request, given: Fields) -> Report | None:
        """Return the report of a request with this head's end. None if fields before it are a part of the report.

        given: the request's fields, as the hub sent them.
        """
        found = [field for field in given if is_forwarding_field(field[0])]
        parts = [line.partition(b": ") for line in ending.split(b"\r\n")[1:]]
        facts = _facts(tuple(found), request.host)
        if not facts.has_host or [(name, value) for name, _, value in parts] != found:
            return None
        return Report(ending, request.host, len(found), facts)


def receive_reported(request: Request, report: Report) -> bool:
    """Note a report's facts for a new request, whose head was read without the report.

    Returns False if the request has another host, or has more forwarding fields. Then it is unchanged.
    """
    fields = request.fields
    if request.host != report.host:
        return False
    for field in fields:
        name = field[0]
        is_forwarding = _NOTED.get(name)
        if is_forwarding is None:
            is_forwarding = _note(name)
        if is_forwarding:
            return False
    facts = report.facts
    request.unreported, request.reported = fields, report.lines
    request.fields = fields + report.fields
    request.received = [(b"Host", request.host), *request.fields]
    request.peer, request.scheme, request.public_host = facts.peer, facts.scheme, facts.public_host
    request.request_id = facts.request_id
    _set_prefix(request, facts.prefix)
    return True


def _note(name: bytes) -> bool:
    """Whether a field is one of forwarding, remembered by the sender's spelling."""
    is_forwarding = is_forwarding_field(name)
    if len(name) <= _NOTED_BYTES:
        if len(_NOTED) >= _NOTED_NAMES:
            _NOTED.clear()
        _NOTED[name] = is_forwarding
    return is_forwarding


def _from_client(request: Request, origin: ClientOrigin, found: Fields) -> None:
    """Note who asks, and write the fields that are the same for every target."""
    peer, scheme, host, named_port = origin.peer, origin.scheme, request.host, 0
    chain = b""
    if origin.is_trusted and found:
        said = _exact(found)
        _keep(request, [field for field in found if field[0].lower() not in REWRITTEN and _is_exact(field[0])])
        peer, chain = _peer_of_chain(said.get(FOR, b""), origin)
        if said.get(PROTO) in (b"http", b"https"):
            scheme = said[PROTO].decode()
        if len(said.get(HOST, b"")) <= HOST_BYTES and _HOST.fullmatch(said.get(HOST, b"")):
            host = said[HOST]
        named_port = _port(said.get(PORT, b""))
        _set_prefix(request, _prefix(said.get(PREFIX, b"")))
        request.request_id = _request_id(said.get(REQUEST_ID, b""))
    request.peer, request.scheme = peer, scheme
    write = _kept_lines if len(host) + len(chain) <= KEPT_BYTES else _lines
    request.forwarding, request.public_host = write(chain or peer.encode(), scheme, host, named_port, origin.port)


def _lines(chain: bytes, scheme: str, host: bytes, named_port: int, own_port: int) -> tuple[bytes, str]:
    """The lines that the edge writes, and the host as text."""
    out = [b"X-Forwarded-For: ", chain, b"\r\n"] if chain else []
    out += [b"X-Forwarded-Proto: ", scheme.encode()]
    port = named_port or own_port
    if host:
        out += [b"\r\nX-Forwarded-Host: ", host]
        # The port that the user sees: a port mapping in front may hide the socket's.
        port = named_port or _port_of(host) or (443 if scheme == "https" else 80)
    if port:
        out.append(b"\r\nX-Forwarded-Port: %d" % port)
    out.append(b"\r\n")
    return b"".join(out), host.decode("ascii")


_kept_lines = functools.lru_cache(maxsize=1024)(_lines)


class _Facts(NamedTuple):
    """A trusted hub's report. fields: those that the target gets unchanged. has_host: the user sent a Host."""

    fields: Fields
    peer: str
    scheme: str
    public_host: str
    prefix: bytes
    request_id: bytes
    has_host: bool


def _from_hub(request: Request, origin: HubOrigin, found: Fields) -> None:
    """Note what a trusted hub reports. The target gets its fields, except those that the agent writes."""
    if not origin.is_trusted:
        request.public_host = request.host.decode("ascii")
        _set_prefix(request, origin.prefix.encode())
        return
    size = 0
    for field in found:
        size += len(field[1])
    read = _kept_facts if size + len(request.host) <= KEPT_BYTES else _facts
    facts = read(tuple(found), request.host)
    if not facts.has_host:
        request.host, request.received = b"", request.fields
    _keep(request, facts.fields)
    request.peer, request.scheme, request.public_host = facts.peer, facts.scheme, facts.public_host
    request.request_id = facts.request_id
    _set_prefix(request, facts.prefix)


def _facts(found: tuple[tuple[bytes, bytes], ...], host: bytes) -> _Facts:
    said = _exact(list(found))
    fields = [field for field in found if field[0].lower() not in (PREFIX, REQUEST_ID) and _is_exact(field[0])]
    has_host = host != NO_HOST or said.get(HOST) == NO_HOST
    public_host = host if has_host else b""
    if len(said.get(HOST, b"")) <= HOST_BYTES and _HOST.fullmatch(said.get(HOST, b"")):
        public_host = said[HOST]
    return _Facts(
        fields,
        _address(said.get(FOR, b"").partition(b",")[0].strip()),
        "https" if said.get(PROTO) == b"https" else "http",
        public_host.decode("ascii"),
        _prefix(said.get(PREFIX, b"")),
        _request_id(said.get(REQUEST_ID, b"")),
        has_host,
    )


_kept_facts = functools.lru_cache(maxsize=1024)(_facts)


def _set_prefix(request: Request, prefix: bytes) -> None:
    request.prefix, request.prefix_text = prefix, prefix.decode("ascii")


def _exact(found: Fields) -> dict[bytes, bytes]:
    """The values by lower-case name. Repeated lines are one list, and of other fields the last line counts."""
    values: dict[bytes, bytes] = {}
    for name, value in found:
        lower = name.lower()
        values[lower] = values[FOR] + b", " + value if lower == FOR and FOR in values else value
    return values


def _is_exact(name: bytes) -> bool:
    return name.lower() == fold_field_name(name)


def _keep(request: Request, fields: Fields) -> None:
    if fields:
        request.fields = request.fields + fields
        request.received = [(b"Host", request.host), *request.fields] if request.host else request.fields


def _peer_of_chain(value: bytes, origin: ClientOrigin) -> tuple[str, bytes]:
    """The user's address, and the addresses from there to here.

    The last address that no trusted proxy has is the user's. A user can write anything before it, so that is dropped.
    """
    chain = [origin.peer]
    for part in reversed(value.rsplit(b",", MOST_HOPS)) if value else ():
        if len(chain) > 1 and not origin.trusts(chain[0]):
            break
        address = _address(part.strip())
        if not address:
            break
        chain.insert(0, address)
    return chain[0], ", ".join(chain).encode()


def _address(value: bytes) -> str:
    """An IP address, perhaps with a port and in brackets, as plain text without a zone. "" for anything else."""
    return _kept_address(value) if len(value) <= ADDRESS_BYTES else ""  # the cache must hold no long value


@functools.lru_cache(maxsize=4096)
def _kept_address(value: bytes) -> str:
    text = value.decode("latin-1")
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    address = find_address(text)
    return "" if address is None else str(address)


def _port_of(host: bytes) -> int:
    name, colon, port = host.rpartition(b":")
    return _port(port) if colon and not name.endswith(b":") and b"]" not in port else 0


def _port(value: bytes) -> int:
    return int(value) if value.isdigit() and len(value) <= 5 and 0 < int(value) <= 65535 else 0


def _prefix(value: bytes) -> bytes:
    """A path without a trailing slash, or b"" if it can't be a prefix."""
    return _kept_prefix(value) if len(value) <= PREFIX_BYTES else b""  # as for addresses


@functools.lru_cache(maxsize=4096)
def _kept_prefix(value: bytes) -> bytes:
    prefix = value.rstrip(b"/")
    if _PREFIX.fullmatch(prefix) is None or _ENCODED_DOT_OR_SLASH.search(prefix):
        return b""
    return prefix


def _request_id(value: bytes) -> bytes:
    return value if _REQUEST_ID.fullmatch(value) else b""
