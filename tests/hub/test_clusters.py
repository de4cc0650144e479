"""The cluster of a request, by path, by host and by a parser, and the path that its agent gets."""

from __future__ import annotations

import contextlib
import logging
import pathlib
import random

import pytest
import trustme

from agent.errors import PolicyError, Redirected, Refused
from agent.hub.clusters import ByHost, ByParser, ByPath, Clusters, host_name, warn_of_certificate
from agent.messages import RequestHead

DOMAIN = "tunnel.example.com"


def head(target: bytes = b"/", host: str = "hub", method: str = "GET", prefix: str = "") -> RequestHead:
    return RequestHead(method, target, "1.1", [(b"Host", host.encode())], host=host, prefix=prefix)


def refusal(clusters: Clusters, request: RequestHead) -> tuple[int, str]:
    with pytest.raises(Refused) as caught:
        clusters.locate(request)
    return caught.value.status, caught.value.reason


# -- by path


@pytest.mark.parametrize("target", [b"/c1", b"/c1/", b"/c1/docs?q=/c2/", b"/c1?q=/c2/", b"/c1//c2", b"/c1?/c2"])
def test_the_first_segment_is_the_cluster_and_the_agent_gets_the_path_unchanged(target: bytes) -> None:
    located = ByPath().locate(head(target))
    assert located == ("c1", b"", b"/c1", target[3:4] != b"/")


@pytest.mark.parametrize("target", [b"/c10", b"/c1x", b"/c1?", b"/c1"])
def test_a_name_alone_is_read_to_its_end_after_a_request_for_a_shorter_one(target: bytes) -> None:
    clusters = ByPath()
    for shorter in (b"/c/docs", b"/c1/docs"):
        clusters.locate(head(shorter))
    assert clusters.locate(head(target)) == ByPath().locate(head(target))
    assert refusal(clusters, head(b"/c1.")) == refusal(ByPath(), head(b"/c1."))


@pytest.mark.parametrize("target", [b"/", b"//c1/", b"/?/c1", b"/C1/", b"/c%31/", b"/.well-known/x", b"/-c/", b"/c.1/"])
def test_a_path_without_a_label_is_a_404_with_a_hint(target: bytes) -> None:
    status, reason = refusal(ByPath(), head(target))
    assert status == 404
    assert "the first segment of the path must be a cluster's name" in reason


@pytest.mark.parametrize(
    ("target", "location"), [(b"/c1", b"/c1/"), (b"/c1?a=/b", b"/c1/?a=/b"), (b"/c1?", b"/c1/?"), (b"/c1/", b"")]
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_a_name_alone_is_redirected_to_the_root(target: bytes, location: bytes, method: str) -> None:
    clusters, request = ByPath(), head(target, method=method)
    located = clusters.locate(request)
    if location and method != "POST":
        with pytest.raises(Redirected) as caught:
            clusters.check_root(request, located)
        assert caught.value.location == location
    else:
        clusters.check_root(request, located)


@pytest.mark.parametrize("target", [b"/c12", b"/c1x", b"/c1?", b"/c1-", b"/c", b"/c1_", b"/c1?/", b"/"])
def test_an_earlier_request_changes_no_cluster(target: bytes) -> None:
    fresh, used = ByPath(), ByPath()
    assert used.locate(head(b"/c1/")).cluster == "c1"

    def found(clusters: ByPath) -> object:
        try:
            return clusters.locate(head(target))
        except Refused as refused:
            return refused.status

    assert found(used) == found(fresh)


def test_a_redirect_keeps_the_prefix_of_a_proxy_in_front() -> None:
    clusters, request = ByPath(), head(b"/c1?x", prefix="/tunnel")
    with pytest.raises(Redirected) as caught:
        clusters.check_root(request, clusters.locate(request))
    assert caught.value.location == b"/tunnel/c1/?x"


@pytest.mark.parametrize(("target", "method", "asked"), [
    (b"/", "GET", True), (b"/?x", "HEAD", True), (b"/", "POST", False), (b"//", "GET", False), (b"/X/", "GET", False)
])  # fmt: skip
def test_only_the_root_has_a_page(target: bytes, method: str, asked: bool) -> None:
    found: list[RequestHead] = []
    assert refusal(ByPath(found.append), head(target, method=method))[0] == 404
    assert bool(found) == asked


# -- by host


@pytest.mark.parametrize(
    "host",
    [
        "c1.tunnel.example.com",
        "c1.tunnel.example.com:8443",
        "c1.tunnel.example.com.",
        "c1.tunnel.example.com.:443",
        "C1.Tunnel.EXAMPLE.com",
        "c1.tunnel.example.com:",
    ],
)
@pytest.mark.parametrize("target", [b"/", b"/docs?q", b"/?", b"/c2/x", b"//x"])
def test_the_first_label_of_the_host_is_the_cluster(host: str, target: bytes) -> None:
    assert ByHost(DOMAIN).locate(head(target, host)) == ("c1", b"/c1" + target, b"", False)


def test_a_label_of_an_international_name_is_a_cluster() -> None:
    assert ByHost(DOMAIN).locate(head(b"/", "xn--bcher-kva.tunnel.example.com"))[0] == "xn--bcher-kva"


@pytest.mark.parametrize(
    "host",
    [
        "",
        "hub",
        "127.0.0.1",
        "127.0.0.1:8080",
        "[::1]",
        "[::1]:8080",
        "[fe80::1.tunnel.example.com]",
        "example.com",
        "c1.example.com",
        "c1.other.example.com",
        "a.c1.tunnel.example.com",
        "c1..tunnel.example.com",
        "c1.tunnel.example.com..",
        "c1.tunnel.example.com.evil.com",
        "c1.eviltunnel.example.com",
        "tunnel.example.com.evil.com",
        "c1.tunnel.example.com:80:80",
        "\u212a.tunnel.example.com",
        "b\xfccher.tunnel.example.com",
    ],
)
def test_another_host_is_a_421(host: str) -> None:
    status, reason = refusal(ByHost(DOMAIN), head(b"/c1/", host))
    assert (status, DOMAIN in reason) == (421, True)


@pytest.mark.parametrize("host", [
    "tunnel.example.com", "TUNNEL.example.com.:8080", ".tunnel.example.com", "c_1.tunnel.example.com",
    "-c.tunnel.example.com", "c%31.tunnel.example.com", f"{'a' * 64}.tunnel.example.com",
])  # fmt: skip
def test_the_domain_itself_and_no_label_are_a_404_with_a_hint(host: str) -> None:
    status, reason = refusal(ByHost(DOMAIN), head(b"/c1/", host))
    assert (status, "as in <cluster>.tunnel.example.com" in reason) == (404, True)


@pytest.mark.parametrize(("host", "status"), [("localhost", 404), ("localhost.x", 421), ("c1.x", 421)])
def test_a_domain_of_one_label_is_told_apart(host: str, status: int) -> None:
    assert refusal(ByHost("localhost"), head(b"/", host))[0] == status
    assert ByHost("localhost").locate(head(b"/", "c1.localhost:80")).cluster == "c1"


def test_by_host_nothing_is_redirected() -> None:
    clusters, request = ByHost(DOMAIN), head(b"/", "c1.tunnel.example.com")
    clusters.check_root(request, clusters.locate(request))


@pytest.mark.parametrize("seed", range(20))
def test_a_host_names_a_cluster_or_is_refused(seed: int) -> None:
    rng = random.Random(seed)
    parts = [
        "c1",
        "C1",
        ".",
        "..",
        "tunnel",
        "example",
        "com",
        DOMAIN,
        "." + DOMAIN,
        ":",
        ":80",
        "[",
        "]",
        "xn--",
        "%",
        "-",
    ]
    clusters = ByHost(DOMAIN)
    for _ in range(500):
        host = "".join(rng.choices(parts, k=rng.randint(0, 6)))
        with contextlib.suppress(Refused):
            located = clusters.locate(head(b"/x", host))
            bare = host.lower().partition(":")[0]
            assert bare in (f"{located.cluster}.{DOMAIN}", f"{located.cluster}.{DOMAIN}.")
            assert located.path == b"/%b/x" % located.cluster.encode()


@pytest.mark.parametrize(("host", "name"), [
    ("Hub:80", "hub"), ("hub.", "hub"), ("hub.:", "hub"), ("[::1]:80", "[::1]"), ("[::1]", "[::1]"), ("", "")
])  # fmt: skip
def test_the_name_in_a_host_is_plain(host: str, name: str) -> None:
    assert host_name(host) == name


# -- by a parser


@pytest.mark.parametrize(
    ("target", "path", "stripped"),
    [
        (b"/docs?q", b"/c1/docs?q", b""),
        (b"/", b"/c1/", b""),
        (b"/c1/docs", b"/c1/docs", b"/c1"),
        (b"/c1", b"/c1", b"/c1"),
        (b"/c1?q", b"/c1?q", b"/c1"),
        (b"/c10/x", b"/c1/c10/x", b""),
        (b"//c1/x", b"/c1//c1/x", b""),
    ],
)
def test_a_name_alone_is_put_before_the_path_unless_it_is_there(target: bytes, path: bytes, stripped: bytes) -> None:
    located = ByParser(lambda request: "c1").locate(head(target))
    assert (located.cluster, located.path or target, located.stripped) == ("c1", path, stripped)


@pytest.mark.parametrize(
    ("target", "own", "stripped"),
    [
        (b"/t/acme/docs?q", b"/docs?q", b"/t/acme"),
        (b"/t/acme/docs?q", b"/docs?other", b"/t/acme"),
        (b"/t/acme/docs?q=/docs", b"/docs", b"/t/acme"),
        (b"/t/acme/", b"/", b"/t/acme"),
        (b"/docs", b"/docs", b""),
        (b"/docs", b"/other", b""),
        (b"/t/acme", b"/", b""),
        (b"/x?y=/docs", b"/docs", b""),
        (b"//evil.example/docs", b"/docs", b""),  # as a prefix it would name another host
        (b"/t//docs", b"/docs", b""),
        (b"/t;Path=x/docs", b"/docs", b""),
    ],
)
def test_a_pair_has_the_path_and_the_rest_of_the_clients_is_stripped(
    target: bytes, own: bytes, stripped: bytes
) -> None:
    for given in (own, own.decode()):
        parser = ByParser(lambda request, path=given: ("c1", path))  # type: ignore[misc]
        assert parser.locate(head(target)) == ("c1", b"/c1" + own, stripped, False)


@pytest.mark.parametrize(
    "path",
    [
        b"", b"docs", b"http://h/", b"*", b"/a b", b"/a\r\nX: y", b"/a\0", b"/a\n", b"/\xc3\xbc", b"/a#b", b"/a\\b",
        b"/../c2/", b"/a/%2e%2E/b", b"/./a", "/\xfc", "/\u212a", None, 3, bytearray(b"/a"),
    ],
)  # fmt: skip
def test_a_path_that_is_no_request_target_is_the_parsers_fault(path: object) -> None:
    with pytest.raises(PolicyError, match="cluster_parser must give a name and a path"):
        ByParser(lambda request: ("c1", path)).locate(head())  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize("found", [None, 3, b"c1", ("c1",), (b"c1", b"/"), ("c1", b"/", b""), ["c1", b"/"]])
def test_what_names_no_cluster_is_the_parsers_fault(found: object) -> None:
    with pytest.raises(PolicyError, match="cluster_parser must give a cluster's name"):
        ByParser(lambda request: found).locate(head())  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize("name", ["", "../c1", "b\xfccher", "\udcff", "c1/x", "C1"])
def test_a_name_that_is_no_label_is_found_for_nobody(name: str) -> None:
    assert ByParser(lambda request: name).locate(head()).cluster == name


# -- the certificate


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.mark.parametrize(
    ("names", "warned"),
    [
        (["*.tunnel.example.com"], False),
        (["hub.example.com", "tunnel.example.com", "a.b", "c.d", "*.TUNNEL.example.com"], False),
        (["*.example.com"], True),
        (["tunnel.example.com", "c1.tunnel.example.com"], True),
        (["127.0.0.1"], True),
    ],
)
def test_a_certificate_without_the_domain_is_a_warning(
    names: list[str], warned: bool, authority: trustme.CA, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "cert.pem"
    authority.issue_cert(*names).private_key_and_cert_chain_pem.write_to_path(path)
    warn_of_certificate(DOMAIN, str(path))
    records = [(record.levelno, record.__dict__.get("missing")) for record in caplog.records]
    assert records == ([(logging.WARNING, "DNS:*.tunnel.example.com")] if warned else [])


def test_by_path_and_without_tls_no_certificate_is_needed(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_certificate("", "/nowhere")
    warn_of_certificate(DOMAIN, "")
    assert not caplog.records
