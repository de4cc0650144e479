"""Reads the heads of requests and responses: llhttp's verdict, and then the proxy's stricter verdict.

Both functions get one whole head, from its first byte to the empty line. So the result never depends on how the bytes
were split. Nothing here keeps state or touches a connection.

llhttp accepts the following, and this module rejects it:

- other protocols and versions in the request line
- targets that are not in origin-form, and dot segments
- missing or odd `Host` fields, and transfer codings
- statuses outside 100 to 599

A head can be read in two ways, with the same result: fast_parser.py reads plain heads, llhttp all others. If `fast` is
true, fast_parser.py is asked first. Each twin's default is its faster way, and the tests run both ways in both twins.
"""

from __future__ import annotations

import re

import httptools

from ..config.limits import ProxyLimits
from ..errors import AgentError
from ..syntax import has_dot_segments, is_origin_form, parse_authority, without_plain_dots
from .fast_parser import (
    PLAIN_METHODS,
    USES_FAST_PARSER,
    HeaderBlock,
    plain_host_end,
    plain_request_line,
    plain_status_line,
)
from .grpc import is_grpc
from .headers import COMMON_OPTIONS, NO_OPTIONS, Fields, drop_named, elements, is_protected, tokens
from .rules import (
    RULES,
    STRAYS,
    TOKEN,
    HeadError,
    Rule,
    broken_fields,
    broken_line,
    broken_status_line,
    framing_rule,
    stray_rule,
)

__all__ = [
    "CHUNKED",
    "METHODS",
    "UNFRAMED",
    "UNTIL_EOF",
    "UPGRADE_BODY_BYTES",
    "Fault",
    "Request",
    "Response",
    "bound_upgrade",
    "check_line",
    "check_line_so_far",
    "malformed_head",
    "parse_request",
    "parse_response",
    "switches_as_asked",
]

CHUNKED = -1
"""A body's length: unknown, chunk by chunk."""
UNTIL_EOF = -2
"""A response body's length: all until the connection ends."""
UNFRAMED = -3
"""A body's length, if the head has no framing."""

METHODS = frozenset(
    {
        b"GET",
        b"HEAD",
        b"POST",
        b"PUT",
        b"DELETE",
        b"OPTIONS",
        b"PATCH",
        b"COPY",
        b"LOCK",
        b"MKCOL",
        b"MOVE",
        b"PROPFIND",
        b"PROPPATCH",
        b"SEARCH",
        b"UNLOCK",
        b"BIND",
        b"REBIND",
        b"UNBIND",
        b"ACL",
        b"REPORT",
        b"MKACTIVITY",
        b"CHECKOUT",
        b"MERGE",
        b"M-SEARCH",
        b"NOTIFY",
        b"SUBSCRIBE",
        b"UNSUBSCRIBE",
        b"PURGE",
        b"MKCALENDAR",
        b"LINK",
        b"UNLINK",
        b"SOURCE",
        b"QUERY",
    }
)
CONNECT = b"CONNECT"
# TRACE would show its sender the credentials that the agent adds (RFC 9110, section 9.3.8).
REFUSED_METHODS = frozenset({CONNECT, b"TRACE"})
IDEMPOTENT = frozenset({b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"})  # RFC 9110, section 9.2.2
# These protocols turn a connection into another kind of HTTP, or TLS, for the next hop alone.
NEVER_UPGRADED = re.compile(rb"h2c|(?:http|tls)/.*", re.IGNORECASE)
# If these upgrades are impossible, the request is rejected, since its next bytes are never HTTP.
STRICT_UPGRADES = frozenset({b"websocket", b"spdy/3.1"})
UPGRADE_BODY_BYTES = 65536
"""The longest body before an upgrade. docker exec sends one of some hundred bytes."""
PLAIN_OPTIONS = frozenset({b"keep-alive", b"close", b"upgrade", b"te"})  # these options name no end-to-end field
# These names are no framing here. A CGI target would read them as framing, since it maps "-" to "_".
DISGUISED = frozenset({b"content_length", b"transfer_encoding"})
ZERO = b"0"[0]
MAX_LENGTH = 2**63 - 1
LENGTH_DIGITS = 19  # of the largest
METHOD_BYTES = 32
KEPT_BYTES = 4096  # of a head, on an idle connection
FEED_BYTES = 16384  # more than that at once, and a long field costs llhttp's callbacks quadratic time
LINE_EXTRA_BYTES = METHOD_BYTES + len("  HTTP/1.1")

PLAIN_LINE = re.compile(rb"(GET|POST|PUT|DELETE|PATCH|HEAD) (/[!-\"$-\[\]-~]*) HTTP/1\.([01])")
REQUEST_LINE = re.compile(rb"(" + TOKEN + rb") ([!-~]+) HTTP/([0-9])\.([0-9])")
NOT_IN_LINE = re.compile(rb"[^ -~]")
HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9._~-]|%[0-9A-Fa-f]{2})+)(?=:|\Z)")
MAX_PORT = 65535
PROTOCOL = re.compile(TOKEN + rb"(?:/" + TOKEN + rb")?")  # RFC 9110, section 7.8
# llhttp keeps a tab at a value's end, against RFC 9110, section 5.6.3. A line's beginning is left alone, because a line
# of white space must not become the empty line.
TRAILING_SPACE = re.compile(rb"(?<=[^\r\n\t ])[\t ]+(?=\r\n)")
STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: ([\t -~\x80-\xff]*))?\r\n")


class Fault(AgentError):
    """The proxy rejects a request's head: the fault of the client. The proxy's response closes the connection.

    Attributes:
        status, reason, fields: of that response.
        rule: the name of the rule that the head broke, for the log, or "".
        limit: the setting that the head exceeded, for the log, or "".
    """

    def __init__(
        self,
        status: int,
        reason: str,
        *,
        fields: Fields | None = None,
        rule: str = "",
        limit: str = "",
    ) -> None:
        super().__init__(reason)
        self.limit = limit
        self.status = status
        self.reason = reason
        self.fields = fields or []
        self.rule = rule


def malformed_head(rule: Rule) -> Fault:
    """Return the response to a request head that breaks `rule`."""
    return Fault(400, f"malformed request head: {rule.text}", rule=rule.name)


def malformed_line(rule: Rule) -> Fault:
    """Return the response to a request line that breaks `rule`."""
    return Fault(400, f"malformed request line: {rule.text}", rule=rule.name)


class _Collector:
    """Receives one head's fields from httptools. complete: the head's end was reached."""

    __slots__ = ("complete", "lines")

    # If httptools misses one of these callbacks, it pays for an exception.
    on_message_begin = on_url = on_status = on_body = on_message_complete = on_chunk_header = on_chunk_complete = None

    def __init__(self, lines: HeaderBlock) -> None:
        self.lines = lines
        self.complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.lines.add(name, value.rstrip(b" \t"))  # llhttp keeps the white space at a value's end

    def on_headers_complete(self) -> None:
        self.complete = True


def ask_llhttp(parser_type: type, head: bytes, lines: HeaderBlock) -> bool:
    """Feed a head to a fresh parser, which fills `lines`. Returns whether it took the head. Raises ValueError where it
    broke off before the fields were complete."""
    collector = _Collector(lines)
    parser = parser_type(collector)
    if head.find(b"\t") >= 0:
        head = TRAILING_SPACE.sub(b"", head)
    try:
        if len(head) <= FEED_BYTES:
            parser.feed_data(head)
        else:
            for start in range(0, len(head), FEED_BYTES):
                parser.feed_data(head[start : start + FEED_BYTES])
    except httptools.HttpParserUpgrade:
        pass  # the whole head was read, and its fields decide about an upgrade
    except httptools.HttpParserError as error:
        if not collector.complete:
            raise ValueError("malformed head") from error
        return False
    return True


class Request:
    """A checked request head without its target. It is immutable, because kept-alive clients send the same one again.

    Attributes:
        method, is_1_0: of the request line.
        block: all bytes after that line, or b"" if they are too long to keep.
        host: its `Host` value, or b"" if an HTTP/1.0 client sent none.
        fields: end-to-end, in order, without Host and Content-Length.
        length: bytes of body, or CHUNKED.
        has_length: the head has a Content-Length.
        keep_alive: the client wants to send further requests.
        upgrade: the protocols of its `Upgrade`, in order and spelling, joined by ", ", or b"".
        expects_continue: it waits for a 100.
        takes_trailers: it has `TE: trailers`.
        is_grpc: its Content-Type is gRPC's.
        name, received: method and fields as the policy gets them, the latter with `Host`.
        has_urls: a field is in WITH_URLS.
        is_connect: the method is CONNECT, and the target a host and a port. Nothing follows it as a request.
        peer, scheme, public_host, prefix, request_id: as `forwarding.receive` notes them, b"" or "" for unknown.
        forwarding: the forwarding fields to write, or b"".
        unreported, reported: `fields` without a trusted hub's report, and the report's lines. Or [] and b"".
        given, tail: the policy's last fields, and the bytes that a target gets of them after its `Host`. None before.
    """

    __slots__ = (
        "block",
        "expects_continue",
        "fields",
        "forwarding",
        "given",
        "has_length",
        "has_urls",
        "host",
        "is_1_0",
        "is_connect",
        "is_grpc",
        "keep_alive",
        "length",
        "method",
        "name",
        "peer",
        "prefix",
        "prefix_text",
        "public_host",
        "received",
        "reported",
        "request_id",
        "scheme",
        "tail",
        "takes_trailers",
        "unreported",
        "upgrade",
    )

    method: bytes
    name: str
    received: Fields
    block: bytes
    given: Fields | None
    tail: bytes
    is_1_0: bool
    is_connect: bool
    host: bytes
    fields: Fields
    length: int
    has_length: bool
    keep_alive: bool
    upgrade: bytes
    expects_continue: bool
    takes_trailers: bool
    is_grpc: bool
    has_urls: bool
    peer: str
    scheme: str
    public_host: str
    prefix: bytes
    prefix_text: str
    request_id: bytes
    forwarding: bytes
    unreported: Fields
    reported: bytes


class Response:
    """A checked response head. It is immutable, because a target sends the same one many times per second.

    Attributes:
        status: of the status line.
        lines: status line and end-to-end fields as they are sent on, in order, each with its CRLF. No Content-Length.
        line_bytes: the length of the status line.
        length: bytes of body, CHUNKED or UNTIL_EOF, by the head alone. The request may rule out a body.
        content_length: the target's value, or -1. digits: its canonical form.
        keep_alive: the target keeps the connection open.
        upgrade: the protocol of a 101, as the target spells it.
        block: the whole head as received, or b"" if it is too long to keep.
        framing, closing, written: the bytes last written to a client, with their length and `Connection`, or b"".
        http2_fields: the same for a client by HTTP/2, with the `http2_length` that they were made for, or None.
        fault: the value of `Tunnel-Fault` on a failure, or b"".
        has_urls: a field is in WITH_URLS.
    """

    __slots__ = (
        "block",
        "closing",
        "content_length",
        "digits",
        "fault",
        "framing",
        "has_urls",
        "http2_fields",
        "http2_length",
        "keep_alive",
        "length",
        "line_bytes",
        "lines",
        "status",
        "upgrade",
        "written",
    )

    block: bytes
    framing: int
    http2_length: int
    http2_fields: Fields | None
    closing: bytes
    written: bytes
    status: int
    lines: bytes
    line_bytes: int
    length: int
    content_length: int
    digits: bytes
    fault: bytes
    keep_alive: bool
    upgrade: bytes
    has_urls: bool


def check_line_so_far(line: bytes, limits: ProxyLimits) -> None:
    """Check as much of a request line as has come, without its CRLF. Raises Fault where no rest could mend it."""
    line_bytes = limits.target_bytes + LINE_EXTRA_BYTES
    unfit = NOT_IN_LINE.search(line, 0, line_bytes)
    if unfit is not None and unfit.start() <= METHOD_BYTES:
        raise malformed_line(STRAYS.get(unfit.group(), RULES["line-byte"]))
    if len(line) > METHOD_BYTES and line.find(b" ", 0, METHOD_BYTES + 1) < 0:
        raise malformed_line(RULES["method-length"])
    if unfit is not None:
        raise malformed_line(STRAYS.get(unfit.group(), RULES["line-byte"]))
    if len(line) > line_bytes:
        raise Fault(414, "request target too long", limit="limits.target_bytes")


def check_line(line: bytes, limits: ProxyLimits, serves_connect: bool = False) -> tuple[bytes, bytes, bytes]:
    """Check a request line without its CRLF. serves_connect: CONNECT is allowed, with a target in authority-form.

    Returns (method, target without its `.` segments, minor version "0" or "1"). Raises Fault.
    """
    match = PLAIN_LINE.fullmatch(line)
    if match is not None and len(line) <= limits.target_bytes and line.find(b"/.") < 0 and line.find(b"%") < 0:
        return match.groups()  # type: ignore[return-value]  # nearly every request takes this way
    check_line_so_far(line, limits)
    match = REQUEST_LINE.fullmatch(line)
    if match is None:
        raise malformed_line(broken_line(line))
    method, target, major, minor = match.groups()
    if major != b"1" or minor not in (b"0", b"1"):
        raise Fault(505, "only HTTP/1.0 and HTTP/1.1 are spoken here")
    if len(target) > limits.target_bytes:
        raise Fault(414, "request target too long", limit="limits.target_bytes")
    if method == CONNECT and serves_connect:
        try:
            parse_authority(target.decode("ascii"))
        except ValueError:
            raise malformed_line(RULES["target-authority"]) from None
        return method, target, minor
    if method in REFUSED_METHODS:
        raise Fault(405, f"{method.decode()} is not served here", fields=[(b"Allow", ALLOW)])
    if method not in METHODS:
        raise Fault(501, "unknown method")
    if target == b"*":
        if method != b"OPTIONS":
            raise malformed_line(RULES["target-asterisk"])
    elif target[:1] != b"/":
        raise malformed_line(RULES["target-form"])
    elif not is_origin_form(target):
        raise malformed_line(RULES["target-byte"])
    elif target.find(b"%") >= 0 or target.find(b"/.") >= 0:
        path, mark, query = target.partition(b"?")
        path = without_plain_dots(path)
        if has_dot_segments(path):
            raise malformed_line(RULES["dot-segment"])
        target = path + mark + query
    return method, target, minor


ALLOW = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"


def parse_request(
    head: bytes,
    limits: ProxyLimits,
    last: Request | None = None,
    fast: bool = USES_FAST_PARSER,
    serves_connect: bool = False,
    known_fields: int = 0,
) -> tuple[Request, bytes]:
    """Check one request head, from its request line to its empty line. Return it, and its target without `.` segments.

    The checks after the request line use only its method and version, so a repeated head is checked once.

    Args:
        last: the connection's previous head. It is returned if all but the target is the same.
        fast: ask fast_parser.py first.
        serves_connect: CONNECT is allowed.
        known_fields: the number of fields that were cut off the head, which count too.

    Raises:
        Fault: the head breaks a rule or exceeds a limit.
    """
    text = head
    line_end = head.index(b"\r\n")
    method_end = plain_request_line(head, limits.target_bytes) if fast else 0
    method = text[:method_end]
    name = PLAIN_METHODS.get(method)
    if name is not None:
        target = text[method_end + 1 : line_end - 9]
        is_1_0 = text[line_end - 1] == ZERO
    else:
        method, target, minor = check_line(head[:line_end], limits, serves_connect)
        name = method.decode()
        is_1_0 = minor == b"0"
    block = head[line_end:]
    if last is not None and block == last.block and method == last.method and is_1_0 == last.is_1_0:
        return last, target
    lines, taken = HeaderBlock(), True
    if not fast or not lines.read(head, line_end + 2, False):
        lines = HeaderBlock()
        try:
            taken = ask_llhttp(httptools.HttpRequestParser, head, lines)
        except ValueError as error:
            raise malformed_head(broken_fields(head, line_end + 2)) from error
    if lines.count + known_fields > limits.request_fields:
        raise Fault(431, "too many header fields", limit="limits.request_fields")
    if block.find(b"_") >= 0 and _is_disguised(lines.fields):
        raise malformed_head(RULES["framing-disguised"])

    special = lines.special
    request = Request()
    request.method = method
    request.name = name
    request.block = block if len(block) <= KEPT_BYTES else b""
    request.given = None
    request.tail = b""
    request.is_1_0 = is_1_0
    request.fields = lines.fields
    request.has_urls = lines.has_urls
    request.is_grpc = is_grpc(request.fields)
    request.peer = request.public_host = ""
    request.scheme = "http"
    request.prefix_text = ""
    request.prefix = request.request_id = request.forwarding = request.reported = b""
    request.unreported = []
    request.upgrade = b""
    request.expects_continue = request.takes_trailers = request.is_connect = False
    _set_host(request, special.pop(b"host", None), fast)
    request.length = 0
    request.has_length = False
    request.keep_alive = not is_1_0
    if special or not taken:
        _set_framing(request, special)
        if not taken:
            raise malformed_head(RULES["head"])
        _set_connection(request, special)
    if method == CONNECT:
        _set_connect(request, special)
    request.received = [(b"Host", request.host), *request.fields] if request.host else request.fields
    return request, target


def _set_connect(request: Request, special: dict[bytes, list[bytes]]) -> None:
    """RFC 9110, section 9.3.6: no body. The policy gets the credentials that name a cluster.

    No further request follows on the connection, since what the client sends next may be the tunnel's first bytes.
    """
    if request.length != 0:
        raise malformed_head(RULES["connect-body"])
    request.is_connect = True
    request.keep_alive = False
    request.upgrade = b""
    credentials = special.get(b"proxy-authorization", [])
    request.fields = [*request.fields, *[(b"Proxy-Authorization", value) for value in credentials]]


def _is_disguised(fields: Fields) -> bool:
    return any(name.lower() in DISGUISED for name, _ in fields)


def _set_connection(request: Request, special: dict[bytes, list[bytes]]) -> None:
    """Read the request's connection fields: hop-by-hop names, keep-alive, upgrade."""
    options = _options(special)
    if options:
        if any(map(is_protected, options)):
            raise malformed_head(RULES["connection-names"])
        if not options <= PLAIN_OPTIONS:
            request.fields = drop_named(request.fields, options)
        request.keep_alive = (not request.is_1_0 or b"keep-alive" in options) and b"close" not in options
    if b"te" in special:
        request.takes_trailers = b"trailers" in tokens(special[b"te"])
    if request.is_1_0:
        return
    if b"expect" in special:
        if tokens(special[b"expect"]) != [b"100-continue"]:
            raise Fault(417, "unknown expectation")
        request.expects_continue = request.length != 0
    if b"upgrade" in special and b"upgrade" in options:
        request.upgrade = b", ".join(
            [
                protocol
                for protocol in elements(special[b"upgrade"])
                if PROTOCOL.fullmatch(protocol) and not NEVER_UPGRADED.fullmatch(protocol)
            ]
        )
        if request.upgrade:
            bound_upgrade(request, UPGRADE_BODY_BYTES, "upgrade-body")


def bound_upgrade(request: Request, body_bytes: int, rule: str) -> None:
    """Remove the upgrade if the request's body is chunked or longer than `body_bytes`. It is then a plain request.

    Raises Fault with `rule` if the request may become a WebSocket or SPDY.
    """
    if 0 <= request.length <= body_bytes:
        return
    if not STRICT_UPGRADES.isdisjoint(request.upgrade.lower().split(b", ")):
        raise malformed_head(RULES[rule])
    request.upgrade = b""


def switches_as_asked(response: Response, request: Request) -> bool:
    """Whether a 101 names one of the protocols that the request asked for (RFC 9110, section 7.8)."""
    return response.upgrade.lower() in request.upgrade.lower().split(b", ") if response.upgrade else False


def _set_host(request: Request, hosts: list[bytes] | None, fast: bool) -> None:
    """RFC 9112, section 3.2: one valid Host on 1.1, at most one on 1.0."""
    if hosts is None:
        if not request.is_1_0:
            raise malformed_head(RULES["host-missing"])
        request.host = b""
    elif len(hosts) != 1:
        raise malformed_head(RULES["host-repeated"])
    elif not _is_host(hosts[0], fast):
        raise malformed_head(RULES["host-value"])
    else:
        request.host = hosts[0]


def _is_host(value: bytes, fast: bool) -> bool:
    """RFC 9110, section 7.2: a host and perhaps a port, which may be empty (RFC 3986, section 3.2.3)."""
    end = plain_host_end(value) if fast else 0
    if not end:
        match = HOST.match(value)
        if match is None:
            return False
        end = match.end()
    port = value[end + 1 :]
    return not port or (len(port) <= 5 and port.isdigit() and int(port) <= MAX_PORT)


def _set_framing(request: Request, special: dict[bytes, list[bytes]]) -> None:
    """RFC 9112, section 6: no body, Content-Length or chunked, and never a doubt."""
    lengths, codings = special.get(b"content-length"), special.get(b"transfer-encoding")
    if codings is None and lengths is None:
        return
    length = _body_length(lengths, codings, request.is_1_0)
    if length == UNFRAMED:
        rule = framing_rule(lengths, codings, request.is_1_0) or RULES["head"]
        if rule.name == "coding-unknown":
            raise Fault(501, rule.text, rule=rule.name)
        raise malformed_head(rule)
    request.length = length
    request.has_length = length >= 0


def _body_length(lengths: list[bytes] | None, codings: list[bytes] | None, is_1_0: bool) -> int:
    """Return the body's length by the values of its framing fields, CHUNKED, or UNFRAMED if they break a rule."""
    if codings is not None:
        if lengths is None and not is_1_0 and len(codings) == 1 and codings[0].lower() == b"chunked":
            return CHUNKED
    elif lengths is not None and len(lengths) == 1 and len(lengths[0]) <= LENGTH_DIGITS and lengths[0].isdigit():
        length = int(lengths[0])
        if length <= MAX_LENGTH:
            return length
    return UNFRAMED


def parse_response(head: bytes, fast: bool = USES_FAST_PARSER) -> Response:
    """Check one response head, from its status line to its empty line. Raises HeadError.

    fast: ask fast_parser.py first.
    """
    response = Response()
    response.block = head if len(head) <= KEPT_BYTES else b""
    response.framing = 0
    response.http2_length, response.http2_fields = 0, None
    response.closing = response.written = response.upgrade = response.digits = response.fault = b""
    response.length = UNTIL_EOF
    response.content_length = -1
    line_end = plain_status_line(head) if fast else 0
    lines = HeaderBlock()
    if line_end and lines.read(head, line_end + 2, True) and _options(lines.special) <= PLAIN_OPTIONS:
        text = head
        is_1_0 = False
        response.status = (text[9] - ZERO) * 100 + (text[10] - ZERO) * 10 + text[11] - ZERO
        response.line_bytes = line_end + 2
        response.lines = lines.block
    else:
        lines, is_1_0 = _ask_about_response(head, response)
    response.has_urls = lines.has_urls
    special = lines.special
    options = _options(special)
    response.keep_alive = (not is_1_0 or b"keep-alive" in options) and b"close" not in options
    if b"upgrade" in special:
        response.upgrade = b",".join(elements(special[b"upgrade"]))
    if response.status >= 400 and b"tunnel-fault" in special:
        response.fault = special[b"tunnel-fault"][0]
    lengths, codings = special.get(b"content-length"), special.get(b"transfer-encoding")
    if codings is not None or lengths is not None:
        response.length = _body_length(lengths, codings, is_1_0)
        if response.length == UNFRAMED:
            raise HeadError(framing_rule(lengths, codings, is_1_0) or RULES["head"])
        if lengths is not None:
            response.content_length = response.length
            response.digits = lengths[0].lstrip(b"0") or b"0"
    return response


def response_fields(response: Response) -> Fields:
    """The end-to-end fields that are sent on, in order."""
    lines = response.lines[response.line_bytes :].split(b"\r\n")
    return [(name, value) for name, _, value in (line.partition(b": ") for line in lines if line)]


def with_fields(response: Response, fields: Fields) -> Response:
    """The same response with other end-to-end fields. The fields were checked."""
    made = Response()
    made.status, made.line_bytes = response.status, response.line_bytes
    made.lines = response.lines[: response.line_bytes] + b"".join(
        [name + b": " + value + b"\r\n" for name, value in fields]
    )
    made.length, made.content_length, made.digits = response.length, response.content_length, response.digits
    made.keep_alive, made.upgrade, made.fault = response.keep_alive, response.upgrade, response.fault
    made.has_urls = response.has_urls
    made.framing = 0
    made.http2_length, made.http2_fields = 0, None
    made.block = made.closing = made.written = b""  # it is written once
    return made


def _options(special: dict[bytes, list[bytes]]) -> frozenset[bytes]:
    """Return all names in `Connection` lines, in lower case."""
    values = special.get(b"connection")
    if values is None:
        return NO_OPTIONS
    known = COMMON_OPTIONS.get(values[0]) if len(values) == 1 else None
    return known if known is not None else frozenset(tokens(values))


def _ask_about_response(head: bytes, response: Response) -> tuple[HeaderBlock, bool]:
    """Read a response's head by llhttp, with its version. Raises HeadError."""
    lines = HeaderBlock()
    match = STATUS_LINE.match(head)
    taken = False
    if match is not None:
        try:
            taken = ask_llhttp(httptools.HttpResponseParser, head, lines)
        except ValueError:
            pass
    if match is None or not taken:
        raise HeadError(_broken_response(head))
    minor, status, reason = match.groups()
    line = b"HTTP/1.1 %b %b\r\n" % (status, reason or b"")
    options = _options(lines.special)
    fields = lines.fields if options <= PLAIN_OPTIONS else drop_named(lines.fields, options)
    response.status = int(status)
    response.line_bytes = len(line)
    response.lines = b"".join([line, *(name + b": " + value + b"\r\n" for name, value in fields)])
    return lines, minor == b"0"


def _broken_response(head: bytes) -> Rule:
    """The rule that a response head breaks: the one that is found first where the head comes byte by byte."""
    rule = RULES["not-http1"] if not head.startswith(b"HTTP/1.") else stray_rule(head, 0, len(head))
    return rule or broken_status_line(head) or broken_fields(head, head.index(b"\r\n") + 2)
