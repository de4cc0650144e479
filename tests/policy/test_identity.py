"""A client can't claim identity headers in any spelling, and nothing runs unauthenticated by accident."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import ConfigError
from agent.messages import RequestHead, Target
from agent.policy.identity import Anonymous, is_identity_header
from agent.policy.router import AppRouter, KubernetesRouter, StaticRouter
from agent.policy.selection import UNAUTHENTICATED, select_policy

CLAIMS = [
    b"Impersonate-User",
    b"impersonate-user",
    b"IMPERSONATE-GROUP",
    b"Impersonate-Uid",
    b"Impersonate-Extra-scopes",
    b"iMpErSoNaTe-Extra-acme.com%2Fproject",
    b"Impersonate_User",
    b"impersonate_group",
    b"Impersonate.User",
    b"Impersonate-",
    b"Impersonate-Anything-To-Come",
    b"X-Remote-User",
    b"x-remote-user",
    b"X_Remote_User",
    b"X-Remote_User",
    b"x_REMOTE-group",
    b"X-Remote-Group",
    b"X-Remote-Uid",
    b"X-Remote-Extra-scopes",
    b"x_remote_extra_acme",
    b"X.Remote.User",
]
HARMLESS = [
    b"Host",
    b"Authorization",
    b"X-Request-Id",
    b"X-Remote-Addr",
    b"X-Remote",
    b"X-Remote-Username",
    b"X-Forwarded-For",
    b"Impersonate",
    b"Impersonated-User",
    b"If-Match",
    b"X-Impersonate-User",
    b"I",
    b"x",
    b"",
]


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claimed_identity_is_removed(name: bytes) -> None:
    kept = [(b"Host", b"h"), (b"Authorization", b"Bearer own"), (b"X-A", b"1"), (b"X-A", b"2")]
    head = RequestHead("GET", b"/", "1.1", [kept[0], (name, b"admin"), *kept[1:], (name, b"system:masters")], conn_id=3)
    found = Anonymous().process(head, Target("http://h"))
    assert found.headers == kept
    assert (found.method, found.target, found.version, found.conn_id) == ("GET", b"/", "1.1", 3)


@pytest.mark.parametrize("name", HARMLESS)
def test_other_headers_stay(name: bytes) -> None:
    head = RequestHead("GET", b"/", "1.1", [(name, b"v")])
    assert Anonymous().process(head, Target("http://h")) is head


@settings(deadline=None)  # the machine may be busy
@given(name=st.sampled_from(CLAIMS), upper=st.integers(min_value=0), marks=st.lists(st.sampled_from(b"-_.~!")))
def test_no_case_or_mark_hides_a_claim(name: bytes, upper: int, marks: list[int]) -> None:
    spelled = bytearray()
    for number, byte in enumerate(name):
        letter = chr(byte)
        if letter in "-_." and number < len(marks):
            spelled.append(marks[number])
        else:
            spelled += (letter.upper() if upper >> number & 1 else letter.lower()).encode()
    assert is_identity_header(bytes(spelled))


# The parts of an agent ------------------------------------------------------------------------------------------


class OwnProcessor:
    def process(self, request: RequestHead, target: Target) -> RequestHead:
        return request


class OwnRouter:
    def route(self, request: RequestHead) -> Target:
        return Target("http://h")


@pytest.mark.parametrize("in_cluster", [False, True])
@pytest.mark.parametrize("router", [None, KubernetesRouter("c1")], ids=["no router", "KubernetesRouter"])
def test_kubernetes_paths_are_never_served_unauthenticated(
    router: KubernetesRouter | None, in_cluster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if in_cluster:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    else:
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigError) as caught:
        select_policy(cluster="c1", router=router)
    assert ("in a cluster" if in_cluster else "outside a cluster") in str(caught.value)
    assert "--route" in str(caught.value)


def test_with_a_processor_kubernetes_is_the_default() -> None:
    processor = OwnProcessor()
    router, found = select_policy(cluster="c1", request_processor=processor)
    assert isinstance(router, KubernetesRouter)
    assert found is processor


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({"routes": [("/", "http://h")]}, StaticRouter),
        ({"router": OwnRouter()}, OwnRouter),
        ({"router": OwnRouter(), "routes": [("/", "http://h")]}, OwnRouter),
    ],
)
def test_unauthenticated_is_said_once_as_a_warning(
    arguments: dict[str, object], kind: type, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        router, processor = select_policy(cluster="c1", **arguments)  # type: ignore[arg-type]
    assert isinstance(router, kind)
    assert isinstance(processor, Anonymous)
    assert [(record.levelname, record.message) for record in caplog.records] == [("WARNING", UNAUTHENTICATED)]


def test_routes_with_a_processor_warn_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    processor = OwnProcessor()
    _, found = select_policy(cluster="c1", routes=[("/", "http://h")], request_processor=processor)
    assert found is processor
    assert not caplog.records


def test_an_app_gets_every_path_without_the_clusters_name() -> None:
    app = object()
    router, processor = select_policy(cluster="c1", app=app)
    assert isinstance(router, AppRouter)
    target = router.route(RequestHead("GET", b"/c1/a%2Fb?c", "1.1", []))
    assert target.app is app
    assert target.path == b"/a%2Fb?c"
    assert isinstance(processor, Anonymous)


def test_no_cluster_and_nothing_to_route_by_is_an_error() -> None:
    with pytest.raises(ConfigError, match="route"):
        select_policy(cluster=None, request_processor=OwnProcessor())
