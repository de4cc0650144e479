"""Which proxy a hub is dialled through: what HTTPS_PROXY and NO_PROXY mean."""

from __future__ import annotations

import base64
import os
import subprocess
import sys

import pytest

from agent.errors import ConfigError
from agent.spoke.outbound_proxy import proxy_for
from agent.syntax import parse_address

PROXY = {"HTTPS_PROXY": "http://proxy:3128"}


def goes_through(address: str, no_proxy: str = "", **environ: str) -> bool:
    return proxy_for(parse_address(address), {**PROXY, "NO_PROXY": no_proxy, **environ}) is not None


@pytest.mark.parametrize(
    ("value", "url"),
    [
        ("http://proxy:3128", "http://proxy:3128"),
        ("proxy:3128", "http://proxy:3128"),
        ("proxy", "http://proxy:80"),
        ("https://proxy", "https://proxy:443"),
        ("http://[fd00::1]:8080/", "http://[fd00::1]:8080"),
        (" http://proxy:3128 ", "http://proxy:3128"),
        ("http://user:secret@proxy:3128", "http://proxy:3128"),
    ],
)
def test_a_url_or_an_address(value: str, url: str) -> None:
    proxy = proxy_for(parse_address("hub:8443"), {"HTTPS_PROXY": value})
    assert str(proxy) == url
    assert "secret" not in repr(proxy)


def test_credentials_are_basic_authentication() -> None:
    proxy = proxy_for(parse_address("hub:8443"), {"HTTPS_PROXY": "http://us%40er:p%3Ass%C3%A9@proxy:3128"})
    assert proxy is not None
    scheme, _, encoded = proxy.authorization.partition(" ")
    assert (scheme, base64.b64decode(encoded).decode()) == ("Basic", "us@er:p:ssé")


@pytest.mark.parametrize(
    "value",
    [
        "socks5://user:secret@proxy:1080",
        "http://user:secret@",
        "http://proxy:0",
        "http://user:secret@proxy:99999",
        "http://user:secret@pro xy:1",
        "http://user:secret@[::1:1",
    ],
)
def test_what_can_not_be_used_is_said_without_its_password(value: str) -> None:
    with pytest.raises(ConfigError) as wrong:
        proxy_for(parse_address("hub:8443"), {"https_proxy": value})
    assert wrong.value.field == "https_proxy"
    assert "secret" not in str(wrong.value)


def test_either_case_and_the_upper_one_first() -> None:
    hub = parse_address("hub:8443")
    assert proxy_for(hub, {}) is None
    assert proxy_for(hub, {"HTTPS_PROXY": "", "HTTP_PROXY": "http://other"}) is None
    assert str(proxy_for(hub, {"https_proxy": "http://low"})) == "http://low:80"
    assert str(proxy_for(hub, {"https_proxy": "http://low", "HTTPS_PROXY": "http://up"})) == "http://up:80"
    assert proxy_for(hub, {**PROXY, "no_proxy": "hub"}) is None
    assert proxy_for(hub, {**PROXY, "no_proxy": "hub", "NO_PROXY": "other"}) is not None


def test_loopback_is_never_dialled_through_a_proxy() -> None:
    assert not any(map(goes_through, ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1", "LOCALHOST:1"]))
    assert goes_through("128.0.0.1:1")


@pytest.mark.parametrize(
    ("no_proxy", "excepted", "others"),
    [
        ("*", ["hub.example.org:1", "10.0.0.1:1", "[fd00::1]:1"], []),
        ("example.org", ["example.org:1", "hub.example.org:1", "HUB.Example.Org.:1"], ["anexample.org:1", "org:1"]),
        (".example.org", ["hub.example.org:1", "a.b.example.org:1"], ["example.org:1", "anexample.org:1"]),
        ("*.example.org", ["hub.example.org:1"], ["example.org:1"]),
        ("hub.example.org:8443", ["hub.example.org:8443"], ["hub.example.org:443"]),
        ("10.1.2.3", ["10.1.2.3:1"], ["10.1.2.30:1", "x10.1.2.3:1"]),
        ("10.0.0.0/8, 192.168.0.0/16", ["10.9.9.9:1", "192.168.1.1:1"], ["11.0.0.1:1", "hub:1", "[fd00::1]:1"]),
        ("fd00::/8", ["[fd12::1]:1"], ["[fe80::1]:1", "10.0.0.1:1"]),
        ("[fd00::1]:8443 10.0.0.1:9", ["[fd00::1]:8443", "10.0.0.1:9"], ["[fd00::1]:1", "10.0.0.1:1"]),
        (" a , b,, ", ["a:1", "b:1"], ["c:1"]),
        ("10.0.0.0/99,/8,:,::::", [], ["10.0.0.1:1", "hub:1"]),
    ],
)
def test_no_proxy(no_proxy: str, excepted: list[str], others: list[str]) -> None:
    assert [address for address in excepted if goes_through(address, no_proxy)] == []
    assert [address for address in others if not goes_through(address, no_proxy)] == []


def test_print_config_names_the_proxies_in_force_and_no_password() -> None:
    hubs = [f"--hub-address={name}:8443" for name in ("hub", "other", "near")]
    command = [sys.executable, "-m", "agent", "run", *hubs, "--cluster-name=c1"]
    environ = {key: value for key, value in os.environ.items() if not key.startswith("AGENT_")}
    environ |= {"HTTPS_PROXY": "http://me:secret@proxy:3128", "NO_PROXY": "near"}
    done = subprocess.run([*command, "--print-config"], capture_output=True, text=True, check=True, env=environ)
    assert done.stdout.splitlines()[-2:] == [
        "# hub hub:8443 is dialled through http://proxy:3128  # HTTPS_PROXY",
        "# hub other:8443 is dialled through http://proxy:3128  # HTTPS_PROXY",
    ]
    assert "secret" not in done.stdout
    environ["HTTPS_PROXY"] = "socks5://me:secret@proxy:1080"
    for more in ("--print-config", "--route=/=http://a"):
        wrong = subprocess.run([*command, more], capture_output=True, text=True, env=environ, check=False)
        assert wrong.returncode == 2
        assert "HTTPS_PROXY" in wrong.stderr
        assert "secret" not in wrong.stderr
