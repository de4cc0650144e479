"""The syntax of what operators and clients write: cluster names, addresses, routes, paths, references to objects.

Every parser takes text and returns a value, or raises ValueError. The error's text describes the right form, and fits
behind a field's name. Nothing here resolves a name, opens a file or imports a module.
"""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple
from urllib.parse import urlsplit

__all__ = [
    "PEER_CHARS",
    "SOCKET_PATH_BYTES",
    "Address",
    "ConnectEntry",
    "IpAddress",
    "IpNetwork",
    "Route",
    "check_domain",
    "check_hub_url",
    "check_label",
    "check_route",
    "find_address",
    "fold_field_name",
    "has_dot_segments",
    "is_ip_address",
    "is_label",
    "is_loopback",
    "is_origin_form",
    "parse_address",
    "parse_authority",
    "parse_connect_entry",
    "parse_network",
    "parse_reference",
    "parse_route",
    "readable",
    "split_hub_url",
    "split_target",
    "without_plain_dots",
]

SOCKET_PATH_BYTES = 103
"""The longest path of a Unix socket. `sun_path` has 108 bytes on Linux and 104 on macOS, including the final NUL."""

PEER_CHARS = 200
"""The longest text of a peer in a log line or a response."""

# One RFC 1123 label as Kubernetes writes it: lower case, 63 bytes at most. fullmatch only: `$` would let "\n" through.
_LABEL = re.compile(rb"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")
LABEL_RULE = "one RFC 1123 label: 1 to 63 of a-z, 0-9 and '-', with a letter or digit at both ends"

# A "." or ".." between separators, each byte raw or percent-encoded. A target that decodes before it splits treats %2F
# as a separator. Some targets also treat a backslash as one, and some cut a segment at ";" or at a NUL. The pattern
# matches every segment that climbs in any of them.
_DOT_SEGMENT = re.compile(rb"(?:^|/|\\|%2f|%5c)(?:\.|%2e){1,2}(?:/|\\|;|%2f|%5c|%3b|%00|\Z)", re.IGNORECASE)
_NAME_CHARS = 253
_DOMAIN_CHARS = _NAME_CHARS - 64
"""A name has 253 characters (RFC 1035, section 2.3.4). A cluster's label and its dot take up to 64 of them."""
_ORIGIN_FORM = re.compile(rb"/[!-\"$-\[\]-~]*")  # visible ASCII without "#" and "\"
_FOLDED = bytes(byte if chr(byte).isalnum() and byte < 0x80 else ord("-") for byte in bytes(range(256)).lower())
_PLAIN_DOTS = re.compile(rb"(?:/\.)+(?=/)")

_HOST_NAME = re.compile(r"[A-Za-z0-9_](?:[-A-Za-z0-9_.]{0,251}[A-Za-z0-9_])?\.?")  # "_": names in compose files
_HOST_FIELD = re.compile(r"([^:\s]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?", re.ASCII)
_HUB_URL = re.compile(r"([Hh][Tt][Tt][Pp][Ss]?)://(\[[0-9A-Fa-f:.]+\]|[^\[\]:/?#@\s]+)(?::([0-9]{1,5}))?/?", re.ASCII)
_REFERENCE = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*(?:\.[^\W\d]\w*)*")
_AUTHORITY = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_](?:[-A-Za-z0-9_.]{0,251}[A-Za-z0-9_])?\.?):[0-9]{1,5}")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")
_PORTS = re.compile(r"([1-9][0-9]{0,4})(?:-([1-9][0-9]{0,4}))?")
_BRACKETED = re.compile(r"\[([^\[\]]*)\](/[0-9]{1,3})?")
_NETWORK = re.compile(r"[0-9A-Fa-f:.]+(?:/[0-9]{1,3})?")  # without a zone, and without a netmask
_VISIBLE_ASCII = re.compile(r"[!-~]*")
# Everything but visible ASCII, and "#": RFC 9112 section 3.2.1 has no fragment in a request target.
_UNFIT_TARGET = re.compile(rb"[^!-\"$-~]")


def is_label(name: bytes) -> bool:
    """Whether `name` is one RFC 1123 label: no dots, no percent-escapes, no upper case."""
    return _LABEL.fullmatch(name) is not None


def check_label(name: str) -> str:
    """`name`, where it is one RFC 1123 label. Raises ValueError."""
    if not (name.isascii() and is_label(name.encode("ascii"))):
        raise ValueError(f"must be {LABEL_RULE}, not {name!r}")
    return name


def check_domain(name: str) -> str:
    """`name` in lower case without its trailing dot, if it is a DNS name that a label fits before. Raises ValueError.

    An IPv4 address is no DNS name, so the last label must not be a number (RFC 1123, section 2.1).
    """
    domain = name.lower().removesuffix(".")
    labels = domain.split(".")
    is_name = name.isascii() and all(is_label(label.encode("ascii")) for label in labels)
    if not is_name or labels[-1].isdigit() or len(domain) > _DOMAIN_CHARS:
        rule = f"must be a DNS name of at most {_DOMAIN_CHARS} characters, as tunnel.example.com"
        raise ValueError(f"{rule}, not {name!r}")
    return domain


def has_dot_segments(path: bytes) -> bool:
    """Whether a raw path has a `.` or `..` segment in any spelling that a target may read as one.

    path: before any percent-decoding, without its query.
    """
    # Nearly every path ends here, and the slow pattern is skipped. (`in` would first try each operand as a number.)
    if path.find(b"/.") < 0 and path.find(b"%") < 0 and path.find(b"\\") < 0 and not path.startswith(b"."):
        return False
    return _DOT_SEGMENT.search(path) is not None


def without_plain_dots(path: bytes) -> bytes:
    """Remove the plain `.` segments of a raw path: exactly one raw dot between raw slashes, or at the end.

    path: before any percent-decoding, without its query. `/a/./b` is `/a/b`, and `/a/.` is `/a/` (RFC 3986, section
    5.2.4). Other spellings of a dot segment stay, for `has_dot_segments` to find.
    """
    if path.find(b"/.") < 0:
        return path
    path = _PLAIN_DOTS.sub(b"", path)
    return path[:-1] if path.endswith(b"/.") else path


def split_target(target: bytes) -> tuple[bytes, bytes]:
    """Split a raw request target in origin-form into (path, query). Raises ValueError.

    The path starts with "/". It has no dot segments in any spelling. The query is empty or starts with "?".
    """
    path, mark, query = target.partition(b"?")
    if not path.startswith(b"/") or _UNFIT_TARGET.search(target):
        raise ValueError("must be a path in visible ASCII, without a fragment")
    if has_dot_segments(path):
        raise ValueError("must have no '.' or '..' segment")
    return path, mark + query


class Address(NamedTuple):
    """A host and a port. host: a name, an IPv4 or an IPv6 address without brackets, or "" for every interface."""

    host: str
    port: int

    def __str__(self) -> str:
        """HOST:PORT, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str, *, listen: bool = False) -> Address:
    """Parse `HOST:PORT` or `[IPv6]:PORT`. Raises ValueError.

    listen: an address to listen on rather than to dial. Then port 0 (a free port) and an empty host (every interface)
    are right too.
    """
    ports = "0 (a free one) to 65535" if listen else "1 to 65535"
    wrong = ValueError(f"must be HOST:PORT with a port from {ports}, an IPv6 address in brackets, not {text!r}")
    host, colon, port_text = text.rpartition(":")
    if not colon or not (port_text.isascii() and port_text.isdigit() and len(port_text) <= 5):
        raise wrong
    port = int(port_text)
    if not (0 if listen else 1) <= port <= 65535:
        raise wrong
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not _is_ipv6(host):
            raise wrong
    elif not (host == "" and listen) and not _HOST_NAME.fullmatch(host):
        raise wrong
    return Address(host, port)


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def is_ip_address(host: str) -> bool:
    """Whether `host` is an IPv4 or IPv6 address, and no name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a listener on `host`: a loopback address, or `localhost`. Resolves nothing."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")  # IPv4-mapped addresses (RFC 4291, section 2.5.5.2)


def find_address(text: str) -> IpAddress | None:
    """Return the IP address in `text`, or None. An IPv4-mapped IPv6 address is the IPv4 one, and a zone is cut off."""
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found


def parse_network(text: str) -> IpNetwork:
    """Parse an IP address or a CIDR, such as `10.0.0.0/8` or `fd00::/8`. Raises ValueError.

    A network of IPv4-mapped IPv6 addresses is the IPv4 one.
    """
    rule = "must be IP addresses or networks without host bits, as 10.0.0.0/8 or fd00::/8 (names are not resolved)"
    wrong = ValueError(f"{rule}, not {text!r}")
    if not _NETWORK.fullmatch(text):
        raise wrong
    try:
        found = ipaddress.ip_network(text)
    except ValueError:
        raise wrong from None
    if isinstance(found, ipaddress.IPv6Network) and found.subnet_of(_MAPPED):
        first = found.network_address.ipv4_mapped
        assert first is not None
        return ipaddress.IPv4Network((first, found.prefixlen - 96))
    return found


def parse_authority(text: str) -> Address:
    """Parse the target of a CONNECT, `HOST:PORT` with an IPv6 address in brackets. Raises ValueError.

    RFC 9110, section 9.3.6: the port is never left out. A zone, user information and percent-encoding are wrong.
    """
    if not _AUTHORITY.fullmatch(text) or ".." in text:
        raise ValueError("must be HOST:PORT, an IPv6 address in brackets")
    return parse_address(text)


class ConnectEntry(NamedTuple):
    """An entry of `connect_allow`: a name or a network, and the ports of it.

    name: in lower case without a trailing dot, with `*.` before it for every name below. "" for a network.
    network: None for a name.
    """

    name: str
    network: IpNetwork | None
    first_port: int
    last_port: int

    def __str__(self) -> str:
        ports = str(self.first_port) if self.first_port == self.last_port else f"{self.first_port}-{self.last_port}"
        if self.network is None:
            return f"{self.name}:{ports}"
        host = str(self.network.network_address if self.network.num_addresses == 1 else self.network)
        return f"[{host}]:{ports}" if ":" in host else f"{host}:{ports}"

    def has_port(self, port: int) -> bool:
        """Whether the entry is for this port."""
        return self.first_port <= port <= self.last_port

    def has_name(self, name: str) -> bool:
        """Whether the entry is for this name. name: in lower case without a trailing dot."""
        if self.name.startswith("*."):
            return name.endswith(self.name[1:]) and len(name) >= len(self.name)
        return name == self.name


def parse_connect_entry(text: str) -> ConnectEntry:
    """Parse `NAME:PORTS`, `*.NAME:PORTS` or `NETWORK:PORTS`. PORTS is a port, or the first and last. Raises ValueError.

    An IPv6 address is in brackets. An IPv6 network may be.
    """
    host, colon, ports_text = text.rpartition(":")
    ports = _PORTS.fullmatch(ports_text)
    if not colon or ports is None:
        raise ValueError(f"must end with a port or a range, as db.prod.svc:5432 or *.svc:1-65535, not {text!r}")
    first = int(ports[1])
    last = int(ports[2] or first)
    if not first <= last <= 65535:
        raise ValueError(f"must have ports from 1 to 65535, the lower one first, not {text!r}")
    bracketed = _BRACKETED.fullmatch(host)
    if bracketed is not None:
        host = bracketed[1] + (bracketed[2] or "")
        if ":" not in host:
            raise ValueError(f"must have brackets around IPv6 only, not {text!r}")
    elif ":" in host and "/" not in host:
        raise ValueError(f"must have an IPv6 address in brackets, not {text!r}")
    if bracketed is not None or "/" in host or is_ip_address(host):
        return ConnectEntry("", parse_network(host), first, last)
    name = host.lower().removesuffix(".")
    below = name.removeprefix("*.")
    is_number = _NUMBER.fullmatch(below.rpartition(".")[2]) is not None  # an odd spelling of an address: 127.1
    if is_number or not _HOST_NAME.fullmatch(below) or ".." in below or len(below) > _NAME_CHARS:
        rule = "must have a DNS name, *. and a DNS name, an IP address or a network before its port"
        raise ValueError(f"{rule}, not {text!r}")
    return ConnectEntry(name, None, first, last)


class Route(NamedTuple):
    """Sends requests below `prefix` to `url`. Neither has a trailing slash, except for the prefix "/".

    host: the Host that the target gets. `client` is the client's own, and `target` is the URL's. Anything else is a
        host with perhaps a port.
    strip_prefix: the target's path is without the prefix.
    rewrite: fields that name URLs are mapped between the target's paths and the public ones.
    http2: an https target may choose HTTP/2. None: by `target_http2`.
    """

    prefix: str
    url: str
    host: str = "client"
    strip_prefix: bool = True
    rewrite: bool = True
    http2: bool | None = None

    @property
    def is_short(self) -> bool:
        """Whether `PREFIX=URL` gives the same route."""
        return self == (self.prefix, self.url, _default_host(self.url), True, True, None)


def _default_host(url: str) -> str:
    """A target over TLS expects its own name, and other targets compare Host with the browser's Origin."""
    return "target" if url.startswith(("https:", "h2:")) else "client"


def parse_route(text: str) -> Route:
    """`PREFIX=URL`, as `/api=http://127.0.0.1:9000/v1`. Raises ValueError."""
    prefix, equals, url = text.partition("=")
    if not equals:
        raise ValueError("must be PREFIX=URL, as /api=http://127.0.0.1:9000")
    return check_route(prefix, url)


def check_route(
    prefix: str,
    url: str,
    host: str | None = None,
    strip_prefix: bool = True,
    rewrite: bool = True,
    http2: bool | None = None,
) -> Route:
    """Check the parts of a route and remove trailing slashes. Raises ValueError.

    host: None for the default, which is `target` for https and h2, and `client` for http and h2c.
    The error never quotes the URL, since it may hold a password.
    """
    where = f"the prefix {prefix!r}"
    if not prefix.startswith("/") or not _VISIBLE_ASCII.fullmatch(prefix) or "?" in prefix or "#" in prefix:
        raise ValueError(f"{where} must be a path that starts with '/', in visible ASCII, without '?' and '#'")
    if has_dot_segments(prefix.encode("ascii")):
        raise ValueError(f"{where} must have no '.' or '..' segment")
    where = f"the URL for {prefix}"
    if not _VISIBLE_ASCII.fullmatch(url) or "\\" in url:
        raise ValueError(f"{where} must be visible ASCII without backslashes")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        rule = "must have a port from 1 to 65535, or none, and an IPv6 address in brackets"
        raise ValueError(f"{where} {rule}") from None
    if parts.scheme not in ("http", "https", "h2", "h2c") or not parts.hostname:
        raise ValueError(f"{where} must be http://HOST[:PORT][/PATH], or the same with https, h2 or h2c")
    if "@" in parts.netloc:
        raise ValueError(f"{where} must hold no user info")
    if "?" in url:
        raise ValueError(f"{where} must hold no query")
    if "#" in url:
        raise ValueError(f"{where} must hold no fragment")
    if port == 0 or parts.netloc.endswith(":"):
        raise ValueError(f"{where} must have a port from 1 to 65535, or none")
    bracketed = "[" in parts.netloc
    if "%" in parts.hostname or not (_is_ipv6 if bracketed else _HOST_NAME.fullmatch)(parts.hostname):
        raise ValueError(f"{where} must have a host name, an IPv4 address, or an IPv6 address in brackets")
    if has_dot_segments(parts.path.encode("ascii")):
        raise ValueError(f"{where} must have no '.' or '..' segment")
    if host is not None and host.lower() in ("client", "target"):
        host = host.lower()
    elif host is not None and not _is_host(host):
        raise ValueError(
            f"the host for {prefix} must be client, target, or a host name with perhaps a port, not {host!r}"
        )
    if http2 is not None and parts.scheme != "https":
        raise ValueError(f"http2 for {prefix} must be set only with an https URL: the scheme {parts.scheme} decides")
    url = f"{parts.scheme}{url[len(parts.scheme) :].rstrip('/')}"
    return Route(prefix.rstrip("/") or "/", url, host or _default_host(url), strip_prefix, rewrite, http2)


def check_hub_url(url: str) -> str:
    """Return `url` if it is http://HOST[:PORT] or https://HOST[:PORT], without a slash behind it. Raises ValueError.

    The error never quotes the URL, since it may hold a password.
    """
    wrong = ValueError("must be http://HOST[:PORT] or https://HOST[:PORT], without user info, path and query")
    match = _HUB_URL.fullmatch(url)
    if match is None:
        raise wrong
    scheme, host, port = match.groups()
    try:
        parse_address(f"{host}:{port or 80}")
    except ValueError:
        raise wrong from None
    return f"{scheme.lower()}://{host}" + (f":{port}" if port else "")


def split_hub_url(url: str) -> tuple[bool, Address]:
    """Return (whether it is https, the address to dial) of a checked hub's URL."""
    scheme, _, authority = url.partition("://")
    is_tls = scheme == "https"
    host = authority if authority.endswith("]") else authority.rpartition(":")[0] or authority
    port = authority[len(host) + 1 :] or ("443" if is_tls else "80")
    return is_tls, parse_address(f"{host}:{port}")


def _is_host(text: str) -> bool:
    """Whether a Host field may have this text: a name, an IPv4 or bracketed IPv6 address, perhaps with a port."""
    match = _HOST_FIELD.fullmatch(text)
    if match is None:
        return False
    name, port = match.groups()
    if port and not 1 <= int(port) <= 65535:
        return False
    if name.startswith("["):
        return _is_ipv6(name[1:-1])
    return _HOST_NAME.fullmatch(name) is not None and ".." not in name


def is_origin_form(target: bytes) -> bool:
    """Whether a request target is a path in visible ASCII, without a fragment and backslashes (RFC 9112, 3.2.1)."""
    return _ORIGIN_FORM.fullmatch(target) is not None


def fold_field_name(name: bytes) -> bytes:
    """Return a field's name in lower case, with "-" for each byte that is not a letter or digit.

    Servers that pass fields as CGI variables treat "_" as "-" (RFC 3875, section 4.1.18), and some treat any mark so.
    A field that must not pass in one spelling must not pass in another.
    """
    return name.translate(_FOLDED)


def readable(text: str | bytes, most: int = PEER_CHARS) -> str:
    """Return a peer's text for a log line or a response: one line of at most `most` printable characters."""
    text = text[:most].decode("latin-1") if isinstance(text, bytes) else text[:most]
    return "".join(char if char.isprintable() else " " for char in text).strip()


def parse_reference(text: str) -> tuple[str, str]:
    """Split `package.module:name` into (module, name). Both may be dotted. Raises ValueError."""
    if not _REFERENCE.fullmatch(text):
        raise ValueError(f"must be module:name, as mypackage.web:app, not {text!r}")
    module, _, name = text.partition(":")
    return module, name
