"""PROXY headers: both versions, every split, seeded damage."""

from __future__ import annotations

import random
import struct

import pytest

from agent.errors import AgentError
from agent.hub.proxy_protocol import (
    MAX_BYTES,
    SIGNATURE,
    MalformedHeader,
    ProxyHeader,
    crc32c,
    looks_like_header,
    parse_header,
)

IPV4 = bytes([192, 0, 2, 1, 198, 51, 100, 7]) + struct.pack("!HH", 56324, 443)
IPV6 = (
    bytes.fromhex("20010db8000000000000000000000001")
    + bytes.fromhex("20010db8000000000000000000000002")
    + struct.pack("!HH", 56324, 443)
)
MAPPED = bytes(10) + b"\xff\xff" + IPV4[:4] + bytes(10) + b"\xff\xff" + IPV4[4:8] + struct.pack("!HH", 1, 2)
UNIX = b"/run/a".ljust(108, b"\0") + b"/run/b".ljust(108, b"\0")


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


def v2(family: int, body: bytes, *, command: int = 0x21, checked: bool = False) -> bytes:
    """A header of version 2. checked: with a CRC32c behind the body."""
    if checked:
        body += tlv(3, bytes(4))
    header = SIGNATURE + struct.pack("!BBH", command, family, len(body)) + body
    return header[:-4] + crc32c(header).to_bytes(4) if checked else header


FROM_V4 = ("192.0.2.1", 56324, 443, False)
FROM_V6 = ("2001:db8::1", 56324, 443, False)
NOBODY = ("", 0, 0, False)
ITSELF = ("", 0, 0, True)

GOOD = {
    "v1-tcp4": (b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n", FROM_V4),
    "v1-tcp6": (b"PROXY TCP6 2001:DB8::1 2001:db8::2 56324 443\r\n", FROM_V6),
    "v1-tcp6-long": (
        b"PROXY TCP6 2001:0db8:0000:0000:0000:0000:0000:0001 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 56324 443\r\n",
        FROM_V6,
    ),
    "v1-tcp6-mapped": (b"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:198.51.100.7 56324 443\r\n", FROM_V4),
    "v1-ports": (b"PROXY TCP4 192.0.2.1 198.51.100.7 0 65535\r\n", ("192.0.2.1", 0, 65535, False)),
    "v1-unknown": (b"PROXY UNKNOWN\r\n", NOBODY),
    "v1-unknown-more": (b"PROXY UNKNOWN ffff::1 ?? \0 65535\r\n", NOBODY),
    "v1-unknown-longest": (b"PROXY UNKNOWN".ljust(105, b"x").replace(b"Nx", b"N ", 1) + b"\r\n", NOBODY),
    "v2-tcp4": (v2(0x11, IPV4), FROM_V4),
    "v2-tcp6": (v2(0x21, IPV6), FROM_V6),
    "v2-tcp6-mapped": (v2(0x21, MAPPED), ("192.0.2.1", 1, 2, False)),
    "v2-udp": (v2(0x12, IPV4), NOBODY),
    "v2-unix": (v2(0x31, UNIX), NOBODY),
    "v2-unix-tlv": (v2(0x31, UNIX + tlv(5, b"id"), checked=True), NOBODY),
    "v2-unspecified": (v2(0x00, b""), NOBODY),
    "v2-unspecified-more": (v2(0x00, b"any"), NOBODY),
    "v2-local": (v2(0x00, b"", command=0x20), ITSELF),
    "v2-local-family": (v2(0x11, IPV4, command=0x20), ITSELF),
    "v2-local-short": (v2(0x21, b"short", command=0x20), ITSELF),
    "v2-tlvs": (v2(0x11, IPV4 + tlv(1, b"h2") + tlv(4, b"") + tlv(0xEA, b"\1vpce-08d2bf15fac5001c9")), FROM_V4),
    "v2-crc": (v2(0x11, IPV4, checked=True), FROM_V4),
    "v2-crc-tlvs": (v2(0x21, IPV6 + tlv(2, b"hub.example"), checked=True), FROM_V6),
    "v2-longest": (v2(0x11, IPV4 + tlv(4, bytes(MAX_BYTES - 16 - 12 - 3 - 7)), checked=True), FROM_V4),
}

LINE = "PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n"
MISSING = "the connection must begin with a PROXY header"
WRONG = {
    "http": (b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", MISSING),
    "tls": (b"\x16\x03\x01\x02\x00", MISSING),
    "http2": (b"PRI * HTTP/2.0\r\n\r\n", MISSING),
    "lower": (LINE.lower().encode(), MISSING),
    "blank-line": (b"\r\n" + LINE.encode(), MISSING),
    "v1-no-words": (b"PROXY \r\n", "TCP4, TCP6 or UNKNOWN"),
    "v1-protocol": (LINE.replace("TCP4", "UDP4").encode(), "TCP4, TCP6 or UNKNOWN"),
    "v1-unknown-word": (b"PROXY UNKNOWNS\r\n", "TCP4, TCP6 or UNKNOWN"),
    "v1-lf": (LINE.replace("\r", "").encode(), "CRLF"),
    "v1-cr": (LINE.replace(" 443", "\r 443").encode(), "CRLF"),
    "v1-too-long": (b"PROXY UNKNOWN ".ljust(106, b"x") + b"\r\n", "107"),
    "v1-endless": (b"PROXY UNKNOWN ".ljust(5000, b"x"), "107"),
    "v1-few-words": (LINE.replace(" 443", "").encode(), "two addresses"),
    "v1-many-words": (LINE.replace(" 443", " 443 1").encode(), "two addresses"),
    "v1-spaces": (LINE.replace(" 443", "  443").encode(), "two addresses"),
    "v1-trailing-space": (LINE.replace("443", "443 ").encode(), "two addresses"),
    "v1-tab": (LINE.replace(" 443", "\t443").encode(), "two addresses"),
    "v1-address": (LINE.replace("192.0.2.1", "192.0.2.256").encode(), "IPv4"),
    "v1-leading-zero": (LINE.replace("192.0.2.1", "192.0.2.01").encode(), "IPv4"),
    "v1-short-address": (LINE.replace("192.0.2.1", "192.1").encode(), "IPv4"),
    "v1-name": (LINE.replace("192.0.2.1", "localhost").encode(), "IPv4"),
    "v1-family": (LINE.replace("192.0.2.1", "::1").encode(), "IPv4"),
    "v1-destination": (LINE.replace("198.51.100.7", "x").encode(), "IPv4"),
    "v1-family-6": (LINE.replace("TCP4", "TCP6").encode(), "IPv6"),
    "v1-zone": (b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n", "IPv6"),
    "v1-port": (LINE.replace("443", "65536").encode(), "65535"),
    "v1-long-port": (LINE.replace("443", "4" * 40).encode(), "65535"),
    "v1-port-zeros": (LINE.replace("443", "0443").encode(), "65535"),
    "v1-port-sign": (LINE.replace("443", "+443").encode(), "65535"),
    "v1-port-digits": (LINE.replace("443", "４").encode(), "65535"),
    "v2-version": (v2(0x11, IPV4, command=0x11), "version 1"),
    "v2-command": (v2(0x11, IPV4, command=0x22), "command 2"),
    "v2-family": (v2(0x41, IPV4), "0x41"),
    "v2-protocol": (v2(0x13, IPV4), "0x13"),
    "v2-short": (v2(0x11, IPV4[:-1]), "too few"),
    "v2-short-6": (v2(0x21, IPV4), "too few"),
    "v2-short-unix": (v2(0x31, UNIX[1:]), "too few"),
    "v2-too-long": (SIGNATURE + struct.pack("!BBH", 0x21, 0x11, MAX_BYTES - 15), "4096"),
    "v2-local-too-long": (SIGNATURE + struct.pack("!BBH", 0x20, 0x00, 0xFFFF), "4096"),
    "v2-tlv-head": (v2(0x11, IPV4 + b"\1\0"), "truncated"),
    "v2-tlv-value": (v2(0x11, IPV4 + b"\1\0\3ab"), "truncated"),
    "v2-crc": (v2(0x11, IPV4 + tlv(3, b"abcd")), "CRC32c is wrong"),
    "v2-crc-length": (v2(0x11, IPV4 + tlv(3, b"abc")), "4 bytes"),
    "v2-two-crcs": (v2(0x11, IPV4 + tlv(3, b"abcd"), checked=True), "CRC32c"),
}


def verdict(data: bytes) -> ProxyHeader | str | None:
    try:
        return parse_header(data)
    except MalformedHeader as error:
        return error.rule


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("behind", [b"", b"\r\n", b"GET / HTTP/1.1\r\n", b"\x16\x03\x01", SIGNATURE, b"\0" * 5000])
def test_a_header_is_read_to_its_end_and_no_further(name: str, behind: bytes) -> None:
    header, expected = GOOD[name]
    assert parse_header(header + behind) == (len(header), *expected)


@pytest.mark.parametrize("name", GOOD)
def test_each_part_of_a_header_waits_for_the_rest(name: str) -> None:
    header, _ = GOOD[name]
    assert [verdict(header[:length]) for length in range(len(header))] == [None] * len(header)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_header_is_refused_with_its_rule(name: str) -> None:
    data, rule = WRONG[name]
    with pytest.raises(AgentError) as caught:
        parse_header(data)
    assert isinstance(caught.value, MalformedHeader)
    assert rule in caught.value.rule
    assert str(caught.value).isascii()
    assert (caught.value.limit == "limits.proxy_header_bytes") is (rule == "4096")


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_header_stays_wrong_whatever_follows(name: str) -> None:
    data, _ = WRONG[name]
    assert_stable([data[:length] for length in range(len(data) + 1)] + [data + b"\r\n" * 3000])


def assert_stable(longer_and_longer: list[bytes]) -> None:
    """The first verdict on some bytes is also that on all longer ones. Until then the size of a header is unknown."""
    first: ProxyHeader | str | None = None
    for data in longer_and_longer:
        found = verdict(data)
        if first is None:
            first = found
            assert not isinstance(found, ProxyHeader) or 0 < found.size <= min(len(data), MAX_BYTES)
        elif isinstance(first, str):
            assert isinstance(found, str), data
        else:
            assert found == first, data


@pytest.mark.parametrize("seed", range(12))
def test_damage_gives_one_verdict_however_the_bytes_are_split(seed: int) -> None:
    random_ = random.Random(seed)
    samples = [header for header, _ in GOOD.values() if len(header) < 1000] + [data for data, _ in WRONG.values()]
    for _ in range(100):
        data = bytearray(random_.choice(samples)[:400])
        for _ in range(random_.randrange(1, 4)):
            place = random_.randrange(len(data) + 1)
            match random_.randrange(5):
                case 0 if place < len(data):
                    data[place] ^= 1 << random_.randrange(8)
                case 1:
                    data[place:place] = random_.randbytes(random_.randrange(1, 9))
                case 2:
                    del data[place : place + random_.randrange(1, 9)]
                case 3:
                    data[place:place] = random_.choice([b"\r\n", b"\n", b" ", b"\0", b"PROXY ", SIGNATURE, b"\xff"])
                case _:
                    data[place:] = random_.choice(samples)[:400][place:]
        behind = random_.randbytes(random_.randrange(200))
        whole = bytes(data) + behind
        assert_stable([whole[:length] for length in range(len(whole) + 1)])


@pytest.mark.parametrize("seed", range(4))
def test_one_flipped_bit_anywhere_is_caught_by_the_crc(seed: int) -> None:
    """Or it changes how the header is framed, and then something else is wrong or missing."""
    header = v2(0x11, IPV4 + tlv(2, b"hub.example"), checked=True)
    whole = parse_header(header)
    random_ = random.Random(seed)
    for bit in random_.sample(range(14 * 8, len(header) * 8), 100):
        damaged = bytearray(header)
        damaged[bit // 8] ^= 1 << bit % 8
        found = verdict(bytes(damaged))
        if damaged[-7:-4] == header[-7:-4]:
            assert found != whole


def test_the_crc_is_castagnolis() -> None:
    """The examples of RFC 3720, section B.4."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E


@pytest.mark.parametrize("data", [b"PROXY ", LINE.encode(), SIGNATURE, v2(0x11, IPV4), b"\r", b"\r\n\r\n\0"])
def test_a_header_is_recognised_by_its_first_bytes(data: bytes) -> None:
    assert looks_like_header(data)


@pytest.mark.parametrize("data", [b"", b"P", b"PROXY", b"PROPFIND /", b"\x16\x03\x01", b"\r\nGET /", b"\n"])
def test_other_first_bytes_are_no_header(data: bytes) -> None:
    assert not looks_like_header(data)
