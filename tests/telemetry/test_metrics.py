"""The metrics page, read back by Prometheus' own parser."""

from __future__ import annotations

import subprocess
import sys
from bisect import bisect_left

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from agent.errors import ConfigError
from agent.messages import Target
from agent.proxy import Proxy, RequestMetrics, Upstreams
from agent.runtime.histogram import BOUNDS_S, Histogram
from agent.telemetry.health import HealthServer
from agent.telemetry.metrics import Metric, MetricsPage


def durations(*seconds: float) -> Histogram:
    made = Histogram()
    for each in seconds:
        made.add(each)
    return made


METRICS = [
    Metric("things", "counter", "Things.", ("kind",), [(("a",), 3), (('b"\n\\',), 4)]),
    Metric("level", "gauge", "A level.", (), [((), 2.5)]),
    Metric("wait_seconds", "histogram", "Waits.", ("stage",), [(("head",), durations(0.0001, 0.002, 99.0))]),
]


def samples(page: bytes) -> dict[tuple[str, ...], float]:
    found = {}
    for family in text_string_to_metric_families(page.decode()):
        for sample in family.samples:
            found[sample.name, *sample.labels.values()] = sample.value
    return found


def test_counters_gauges_and_histograms_are_read_back() -> None:
    content_type, page = MetricsPage(lambda: METRICS).render("")
    assert content_type.startswith("text/plain; version=")
    found = samples(page)
    assert found["fastpipe_agent_things_total", "a"] == 3
    assert found["fastpipe_agent_things_total", 'b"\n\\'] == 4
    assert found["fastpipe_agent_level",] == 2.5
    assert found["fastpipe_agent_wait_seconds_count", "head"] == 3
    assert found["fastpipe_agent_wait_seconds_sum", "head"] == pytest.approx(99.0021)
    assert found["fastpipe_agent_wait_seconds_bucket", "0.0001", "head"] == 1  # a bound is in its own range
    assert found["fastpipe_agent_wait_seconds_bucket", "60.0", "head"] == 2
    assert found["fastpipe_agent_wait_seconds_bucket", "+Inf", "head"] == 3


@given(st.lists(st.floats(0, 1e4)))
def test_each_time_is_in_every_range_that_reaches_it(times: list[float]) -> None:
    cumulative = durations(*times).cumulative
    assert len(cumulative) == len(BOUNDS_S) + 1
    assert cumulative[-1] == len(times)
    for bound, count in zip(BOUNDS_S, cumulative, strict=False):
        assert count == sum(each <= bound for each in times)
    assert list(BOUNDS_S) == sorted(set(BOUNDS_S))
    assert bisect_left(BOUNDS_S, 75.0) == len(BOUNDS_S)


@given(st.lists(st.floats(0, 1e4)), st.lists(st.floats(0, 1e4)))
def test_two_histograms_add_up(some: list[float], more: list[float]) -> None:
    one, other = durations(*some), durations(*more)
    both = one + other
    assert both.cumulative == durations(*some, *more).cumulative
    assert both.sum_s == one.sum_s + other.sum_s
    both.add(1.0)
    assert one.cumulative[-1] == len(some)


async def test_what_requests_took_is_counted_by_the_sweep_and_kept_by_nobody() -> None:
    metrics = RequestMetrics()
    proxy = Proxy(route=lambda head: Target("http://h"), upstreams=Upstreams(), metrics={"memory": metrics})
    for _ in range(5000):
        metrics.at_once.add(0.5)
    proxy._sweep(0.0)
    assert metrics.at_once._recent == []
    metrics.at_once.add(0.5)
    assert metrics.stages["whole"].cumulative[-1] == 5001
    assert metrics.stages["head"].sum_s == pytest.approx(2500.5)


def test_nothing_is_counted_twice_by_asking_twice() -> None:
    page = MetricsPage(lambda: METRICS)
    first, again = (samples(page.render("")[1]) for _ in range(2))
    ours = {key: value for key, value in first.items() if key[0].startswith("fastpipe_agent_")}
    assert ours == {key: value for key, value in again.items() if key[0].startswith("fastpipe_agent_")}


async def test_the_page_is_served_in_the_format_that_is_asked_for() -> None:
    server = HealthServer(lambda: True, MetricsPage(lambda: METRICS).render)
    port = await server.start("127.0.0.1", 0)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            plain = await client.get("/metrics")
            assert plain.status_code == 200
            assert b"fastpipe_agent_things_total" in plain.content
            assert b"process_cpu_seconds_total" in plain.content
            accept = {"Accept": "application/openmetrics-text;version=1.0.0"}
            open_metrics = await client.get("/metrics", headers=accept)
            assert open_metrics.headers["Content-Type"].startswith("application/openmetrics-text")
            assert open_metrics.text.endswith("# EOF\n")
            assert (await client.head("/metrics")).status_code == 200
    finally:
        await server.close()


async def test_without_metrics_there_is_no_page() -> None:
    server = HealthServer(lambda: True)
    port = await server.start("127.0.0.1", 0)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            assert (await client.get("/metrics")).status_code == 404
    finally:
        await server.close()


def test_without_the_extra_the_setting_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ConfigError, match=r"memory_comm\.enable_metrics.*fastpipe-agent\[metrics\]"):
        MetricsPage(list)


def test_prometheus_is_not_imported_before_a_page_is_wanted() -> None:
    program = "import sys, agent.spoke.agent; print('prometheus_client' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert output.stdout == "False\n"
