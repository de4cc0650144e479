"""The cluster of a CONNECT: from the user name of a proxy URL, or from `Tunnel-Cluster`."""

from __future__ import annotations

import base64
import contextlib
import random

import pytest

from agent.errors import Refused
from agent.hub.connect_clusters import cluster_of
from agent.messages import RequestHead
from agent.syntax import is_label


def basic(user: str) -> tuple[bytes, bytes]:
    return b"Proxy-Authorization", b"Basic " + base64.b64encode(user.encode())


def field(cluster: str) -> tuple[bytes, bytes]:
    return b"Tunnel-Cluster", cluster.encode()


def connect(*fields: tuple[bytes, bytes]) -> RequestHead:
    return RequestHead("CONNECT", b"db:5432", "1.1", [(b"Host", b"c9.example"), *fields])


@pytest.mark.parametrize(
    "fields",
    [
        (basic("c1:token"),),
        (basic("c1:"),),
        (basic("c1:a:b"),),
        ((b"PROXY-AUTHORIZATION", b"bAsIc  " + base64.b64encode(b"c1:")),),
        (field("c1"),),
        ((b"tunnel-cluster", b"c1"),),
        (basic("c1:"), field("c1")),
        (basic(":token"), field("c1")),
        (field("c1"), field("c1")),
    ],
)
def test_one_source_or_two_that_agree_name_the_cluster(fields: tuple[tuple[bytes, bytes], ...]) -> None:
    assert cluster_of(connect(*fields)) == "c1"


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ((), 407),
        ((basic(":token"),), 407),
        ((basic("c1"),), 407),
        ((basic("C1:"),), 407),
        ((basic("c1.example:"),), 407),
        ((basic("c1\n:"),), 407),
        (((b"Proxy-Authorization", b"Basic"),), 407),
        (((b"Proxy-Authorization", b""),), 407),
        (((b"Proxy-Authorization", b"Basic c1:"),), 407),
        (((b"Proxy-Authorization", b"Bearer YzE6"),), 407),
        ((basic("c1:"), basic("c1:")), 407),
        ((basic("c1"), field("c1")), 407),
        ((basic("c1:"), field("c2")), 400),
        ((field("c1"), field("c2")), 400),
        ((field("C1"),), 400),
        ((field(""),), 400),
        ((field("c1,c2"),), 400),
    ],
)
def test_no_source_or_a_malformed_one_is_407_and_two_that_differ_are_400(
    fields: tuple[tuple[bytes, bytes], ...], status: int
) -> None:
    with pytest.raises(Refused) as caught:
        cluster_of(connect(*fields))
    assert caught.value.status == status
    assert caught.value.fault == "client"


@pytest.mark.parametrize("seed", range(3))
def test_any_bytes_name_a_label_or_are_refused(seed: int) -> None:
    choice = random.Random(seed)
    for _ in range(2000):
        value = bytearray(basic(choice.choice(["c1:", "c1:t", ":t", "a-b:\u00e9"]))[1])
        for _ in range(choice.randint(0, 3)):
            value[choice.randrange(len(value))] = choice.choice(b" =:+/c1BY\t\x80\xff\0")
        request = connect((b"Proxy-Authorization", bytes(value)))
        found = b""
        with contextlib.suppress(Refused):
            found = cluster_of(request).encode()
        assert found == b"" or is_label(found)
