"""A grammar of request and response heads: mostly right ones, with every variant that some parser lets pass.

Used by test_head_twins.py. All chance comes from the given generator, so a seed names a sequence of heads.
"""

from __future__ import annotations

import random

__all__ = ["hurt", "request_head", "response_head"]

METHODS = [
    b"GET",
    b"GET",
    b"GET",
    b"GET",
    b"POST",
    b"POST",
    b"PUT",
    b"HEAD",
    b"DELETE",
    b"OPTIONS",
    b"PROPFIND",
    b"get",
    b"G T",
    b"CONNECT",
    b"TRACE",
    b"PRI",
    b"FOO",
    b"A" * 32,
    b"A" * 33,
    b"",
    b"GE(T",
]
SEGMENTS = [
    b"a",
    b"b.c",
    b"",
    b".",
    b"..",
    b"...",
    b"%2e",
    b".%2E",
    b"%2e%2e",
    b"a%2fb",
    b".%2f",
    b".%5c..",
    b".;x",
    b"..;",
    b".%00",
    b"%2e%00",
    b"..%00",
    b"%",
    b"%zz",
    b"~u",
    b"a=b",
    b"a:80",
    b"*",
    b".a",
    b"a.",
]
ODD_TARGETS = [
    b"*",
    b"a",
    b"http://a/",
    b"HTTP://a:80/x",
    b"a:443",
    b"//",
    b"//a/b",
    b"/a#f",
    b"/a\\b",
    b"/\xc3\xa9",
    b"/a\x7f",
    b"/?",
    b"",
    b"/" + b"x" * 60,
    b"/" + b"x" * 70,
]
VERSIONS = [b"HTTP/1.1"] * 20 + [
    b"HTTP/1.0",
    b"HTTP/1.0",
    b"HTTP/1.2",
    b"HTTP/2.0",
    b"HTTP/0.9",
    b"HTTP/1.10",
    b"http/1.1",
    b"HTTP/1",
    b"HTTP/11",
    b"RTSP/1.0",
    b"ICE/1.0",
    b"",
]
SEPARATORS = [b" "] * 20 + [b"  ", b"\t", b"", b" \t"]
LINE_ENDS = [b"\r\n"] * 60 + [b"\n", b"\r", b"\r\r\n", b" \r\n", b"\t\r\n", b"\n\r"]
SPACES = [b" "] * 12 + [b"", b"\t", b"  ", b" \t", b"\x0b", b"\xa0"]
TAILS = [b""] * 14 + [b" ", b"\t", b"\t ", b" \t", b"\x0c", b"\0"]
COLONS = [b":"] * 24 + [b" :", b"\t:", b"", b"::", b"="]

HOSTS = [b"a"] * 10 + [
    b"a:80",
    b"[::1]:8",
    b"a:",
    b"",
    b"a,b",
    b"u@a",
    b"a b",
    b"a:99999",
    b"a:+1",
    b"a%20",
    b"a/b",
    b"\xff",
]
LENGTHS = [
    b"5",
    b"5",
    b"0",
    b"05",
    b"65536",
    b"65537",
    b"+5",
    b"-0",
    b"5,5",
    b"5, 5",
    b"0x5",
    b"5 5",
    b"5_0",
    b"5.0",
    b"",
    b"\xb2",
    b"9223372036854775807",
    b"9223372036854775808",
    b"18446744073709551615",
    b"18446744073709551616",
    b"0" * 19 + b"5",
    b"0" * 30,
    b"1" * 300,
]
CODINGS = [
    b"chunked",
    b"chunked",
    b"Chunked",
    b"CHUNKED",
    b"gzip",
    b"identity",
    b"xchunked",
    b"chunkedx",
    b"chunked, chunked",
    b"gzip, chunked",
    b"chunked, gzip",
    b"chunked;q=1",
    b"chunked ;a",
    b'"chunked"',
    b",chunked",
    b"chunked,",
    b"",
    b"chunked\0",
    b"chunk ed",
    b"trailers",
]
OPTIONS = [
    b"close",
    b"keep-alive",
    b"Keep-Alive",
    b"upgrade",
    b"Upgrade",
    b"keep-alive, Upgrade",
    b"te",
    b"X",
    b"x, close",
    b"host",
    b"Content-Length",
    b"Impersonate-User",
    b"impersonate_group",
    b"",
    b",",
    b"a b",
    b"upgrade, HTTP2-Settings",
]
PROTOCOLS = [
    b"websocket",
    b"WebSocket",
    b"SPDY/3.1",
    b"tcp",
    b"h2c",
    b"HTTP/2.0",
    b"TLS/1.0",
    b"http/1.1",
    b"DERP",
    b"websocket, foo",
    b"h2c, tcp",
    b"foo/1, bar/2",
    b"a b",
    b"a/b/c",
    b"",
    b",",
    b'"x"',
    b"tcp,,tcp",
    b"tailscale-control-protocol",
]
VALUES = [
    b"y",
    b"y",
    b"",
    b"a, b",
    b"x y",
    b"\x80\xff",
    b"a\tb",
    b"\0",
    b"a\0b",
    b"\x01",
    b"\x7f",
    b"a\rb",
    b"a\nb",
    b"a\r\n b",
    b"a\r\n\tb",
    b'"q"',
    b"z" * 40,
    b"a: b",
]
NAMES = [
    b"X",
    b"X-A",
    b"Accept",
    b"Cookie",
    b"Authorization",
    b"Content_Length",
    b"transfer_encoding",
    b"",
    b"X Y",
    b"(X)",
    b"X\xe9",
    b" X",
    b"\tX",
    b"X\0",
    b"HTTP2-Settings",
    b"Trailer",
    b"Keep-Alive",
    b"Proxy-Authorization",
    b"Via",
    b"Tunnel-Fault",
]
SPECIAL = {
    b"Host": HOSTS,
    b"Content-Length": LENGTHS,
    b"Transfer-Encoding": CODINGS,
    b"Connection": OPTIONS,
    b"Upgrade": PROTOCOLS,
    b"TE": [b"trailers", b"gzip", b"trailers;q=1", b"gzip, Trailers"],
    b"Expect": [b"100-continue", b"100-Continue", b"200-ok", b"100-continue, x", b""],
}
SPECIAL_NAMES = list(SPECIAL)
REASONS = [b" OK"] * 8 + [b"", b" ", b"  OK", b" a\tb", b" \xff", b" \0", b" \x01", b"\tOK", b"OK"]
STATUSES = [
    b"200",
    b"200",
    b"200",
    b"204",
    b"304",
    b"404",
    b"503",
    b"599",
    b"100",
    b"101",
    b"103",
    b"199",
    b"600",
    b"999",
    b"099",
    b"000",
    b"20",
    b"2000",
    b"+20",
    b"2 0",
    b"",
]
RESPONSE_VERSIONS = [b"HTTP/1.1"] * 12 + [
    b"HTTP/1.0",
    b"HTTP/1.2",
    b"HTTP/2.0",
    b"http/1.1",
    b"HTTP/1.",
    b"ICY",
    b"",
    b"\r\nHTTP/1.1",
]


def _cased(chance: random.Random, name: bytes) -> bytes:
    return (name, name, name.lower(), name.upper())[chance.randrange(4)]


def _field(chance: random.Random) -> bytes:
    kind = chance.random()
    if kind < 0.5:
        name = chance.choice(SPECIAL_NAMES[1:] if kind < 0.45 else SPECIAL_NAMES)
        values = SPECIAL[name]
        value = values[0] if kind < 0.15 else chance.choice(values)
    elif kind < 0.6:
        name, value = chance.choice(NAMES), chance.choice(VALUES)
    else:
        name, value = b"X-Plain", b"y"
    return _line(chance, _cased(chance, name), value)


def _line(chance: random.Random, name: bytes, value: bytes) -> bytes:
    if chance.random() < 0.7:
        return name + b": " + value + b"\r\n"
    parts = (name, chance.choice(COLONS), chance.choice(SPACES), value, chance.choice(TAILS), chance.choice(LINE_ENDS))
    return b"".join(parts)


def _fields(chance: random.Random, lines: list[bytes]) -> bytes:
    lines += [_field(chance) for _ in range(chance.choice((0, 0, 1, 1, 2, 3)))]
    if chance.random() < 0.1:
        lines.append(chance.choice(lines) if lines else b"")
    chance.shuffle(lines)
    return b"".join(lines)


def _target(chance: random.Random) -> bytes:
    if chance.random() < 0.12:
        return chance.choice(ODD_TARGETS)
    path = b"".join(b"/" + chance.choice(SEGMENTS) for _ in range(chance.choice((1, 1, 2, 3))))
    if chance.random() < 0.5:
        path = b"/plain"
    return path + chance.choice((b"", b"", b"", b"?a=/../b", b"?.", b"?%2e", b"?a#b"))


def request_head(chance: random.Random) -> bytes:
    """A request head, from what may come before it to its empty line, or to where that should be."""
    line = chance.choice(METHODS) + chance.choice(SEPARATORS) + _target(chance) + chance.choice(SEPARATORS)
    if chance.random() < 0.6:
        line = b"POST /p "
    before = chance.choice((b"\r\n", b"\r\n" * 9, b"\n", b"\r", b" ")) if chance.random() < 0.04 else b""
    host = [_line(chance, b"Host", b"a")] if chance.random() < 0.95 else []
    version = chance.choice(VERSIONS) if chance.random() < 0.5 else b"HTTP/1.1"
    end = chance.choice(LINE_ENDS) if chance.random() < 0.2 else b"\r\n"
    return before + line + version + end + _fields(chance, host) + _empty(chance)


def response_head(chance: random.Random) -> bytes:
    """A response head, to its empty line, or to where that should be."""
    line = b"HTTP/1.1 200 OK\r\n"
    if chance.random() < 0.5:
        line = chance.choice(RESPONSE_VERSIONS) + chance.choice(SEPARATORS) + chance.choice(STATUSES)
        line += chance.choice(REASONS) + chance.choice(LINE_ENDS)
    return line + _fields(chance, []) + _empty(chance)


def _empty(chance: random.Random) -> bytes:
    return chance.choice((b"\n", b"\r", b"\t\r\n", b" \r\n\r\n", b"")) if chance.random() < 0.03 else b"\r\n"


def hurt(chance: random.Random, head: bytes) -> bytes:
    """The head with one byte changed, taken out or put in."""
    at = chance.randrange(len(head))
    sign = bytes([chance.choice((*b'\0\t\n\x0b\r ",./:;\\\x7f\x80\xff', chance.randrange(256)))])
    match chance.randrange(3):
        case 0:
            return head[:at] + sign + head[at + 1 :]
        case 1:
            return head[:at] + head[at + 1 :]
    return head[:at] + sign + head[at:]
