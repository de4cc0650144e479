"""The arguments of `forward`."""

from __future__ import annotations

import pytest

from agent.forward.addresses import parse_forward
from agent.syntax import check_hub_url, split_hub_url


@pytest.mark.parametrize(
    ("text", "local", "target"),
    [
        ("db:5432", ("127.0.0.1", 5432), ("db", 5432)),
        ("5433=db:5432", ("127.0.0.1", 5433), ("db", 5432)),
        ("0=[::1]:22", ("127.0.0.1", 0), ("::1", 22)),
        ("[::1]:80=10.0.0.1:443", ("::1", 80), ("10.0.0.1", 443)),
        (":80=db.prod.svc:1", ("", 80), ("db.prod.svc", 1)),
    ],
)
def test_a_forward_has_a_local_address_and_a_target(text: str, local: object, target: object) -> None:
    assert parse_forward(text) == (local, target)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "db",
        "db:",
        "db:0",
        "db:65536",
        "=db:1",
        "x=db:1",
        "65536=db:1",
        "1=2=db:1",
        "1=u@db:1",
        "1=db:1/",
        "1=[::1%25lo]:1",
    ],
)
def test_a_wrong_forward_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        parse_forward(text)


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("https://hub.example.com", (True, ("hub.example.com", 443))),
        ("HTTP://hub:8080/", (False, ("hub", 8080))),
        ("http://[::1]", (False, ("::1", 80))),
        ("https://[fd00::1]:8443", (True, ("fd00::1", 8443))),
    ],
)
def test_the_hub_s_url_gives_its_address(url: str, found: object) -> None:
    assert split_hub_url(check_hub_url(url)) == found


WRONG_URLS = [
    *("", "hub", "ftp://hub", "https://", "https://hub/x", "https://u:secret@hub"),
    *("http://hub:0", "http://hub:1?q", "http://hub:99999"),
]


@pytest.mark.parametrize("url", WRONG_URLS)
def test_a_wrong_url_is_an_error_that_does_not_show_it(url: str) -> None:
    with pytest.raises(ValueError, match="must be") as raised:
        check_hub_url(url)
    assert "secret" not in str(raised.value)
