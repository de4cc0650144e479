"""Target: the exact parts of a URL, and strings that are no URLs."""

from __future__ import annotations

import pytest

from agent import Target


@pytest.mark.parametrize(
    ("url", "scheme", "host", "port", "path"),
    [
        ("http://a", "http", "a", 80, b"/"),
        ("https://a", "https", "a", 443, b"/"),
        ("http://a?b", "http", "a", 80, b"/?b"),
        ("https://a:8/x?", "https", "a", 8, b"/x?"),
        ("h2://a/x", "h2", "a", 443, b"/x"),
        ("h2c://a", "h2c", "a", 80, b"/"),
        ("h2c://[::1]:50051/x", "h2c", "::1", 50051, b"/x"),
        ("http://[::1]:80/y//z?q=1?/..", "http", "::1", 80, b"/y//z?q=1?/.."),
        ("http://A.Example/%2F%zz", "http", "a.example", 80, b"/%2F%zz"),
        ('http://a/"<>|{}`^\\', "http", "a", 80, b'/"<>|{}`^\\'),
    ],
)
def test_a_target_is_its_url_to_the_letter(url: str, scheme: str, host: str, port: int, path: bytes) -> None:
    target = Target(url)
    assert (target.scheme, target.host, target.port, target.path) == (scheme, host, port, path)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "a",
        "/a",
        "//a/b",
        "ftp://a/",
        "http://",
        "http:///x",
        "h3://a/",
        "h2",
        "h2cc://a",
        "HTTP://a/",
        "http://u@a/",
        "http://u:p@a/",
        "http://a/#f",
        "http://a#f",
        "http://a/ b",
        "http://a /b",
        "http://a/\n",
        "http://a\n/",
        "http://a/\x7f",
        "http://a/\xe4",
        "http://\xe4/",
        "http://a:70000/",
        "http://a:x/",
        "http://[::1/",
        "http://?x",
    ],
)
def test_what_is_no_such_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the text differs with the fault
        Target(url)


@pytest.mark.parametrize(
    ("url", "asked", "http2", "http_scheme", "authority"),
    [
        ("http://a", True, False, "http", b"a"),
        ("https://a", False, False, "https", b"a"),
        ("https://a", True, True, "https", b"a"),
        ("h2://a:443", False, True, "https", b"a"),
        ("h2c://a:80", False, True, "http", b"a"),
        ("h2c://a:443", False, True, "http", b"a:443"),
    ],
)
def test_the_scheme_decides_about_http2(url: str, asked: bool, http2: bool, http_scheme: str, authority: bytes) -> None:
    target = Target(url, http2=asked)
    assert (target.http2, target.http_scheme, target.authority) == (http2, http_scheme, authority)
    assert target.with_path(b"/x").http2 == target.with_identity("i").http2 == http2
    assert target.for_upgrade().http2 == (http2 and not url.startswith("https:"))


def test_an_app_needs_no_url() -> None:
    app = object()
    assert Target(app=app).app is app
