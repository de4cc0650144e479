"""Heads of a grammar get one verdict and one response, by each parser and twin and in any split.

There are four ways to read a head: fast_parser.py first or llhttp at once, compiled or as source. This module loads
the source beside the extensions, under its own names. With FASTPIPE_NO_EXTENSIONS both twins are the source, so two
ways remain.
"""

from __future__ import annotations

import collections
import importlib.util
import os
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import agent.proxy
from agent.messages import Target
from agent.proxy import ProxyLimits

from .head_grammar import hurt, request_head, response_head

HEADS = int(os.environ.get("FASTPIPE_INPUTS", "50000"))  # `make fuzz`: a million
BLOCKS = 10
LIMITS = ProxyLimits(target_bytes=64, request_head_bytes=600, request_fields=6, response_head_bytes=600)
BEHIND = b"GET /behind"
"""Follows each head: what comes behind a head must not matter to it."""
TARGET = Target("http://t:1")


class Twin:
    """One twin's modules. parse_request and parse_response take `fast`."""

    def __init__(self, load: Any) -> None:
        self.rules = load("rules")
        self.plain = load("fast_parser")
        self.heads = load("heads")
        self.chunked = load("chunked")
        self.readers = load("readers")
        self.rewrite = load("head_writer")

    def request(self, data: bytes, fast: bool, parts: list[bytes] | None = None) -> tuple[Any, ...]:
        """The verdict on a request's bytes: a response, or the parsed request and the head for its target."""
        reader = self.readers.RequestHeadReader(LIMITS)
        try:
            head = None
            for part in parts or [data]:
                head, _ = reader.take(part)
                if head is not None:
                    break
            if head is None:
                return "unfinished", bytes(reader.begun)
            request, target = self.heads.parse_request(head, LIMITS, None, fast)
        except self.heads.Fault as fault:
            return fault.status, fault.reason, fault.rule, fault.fields
        seen = {name: getattr(request, name) for name in request.__slots__ if name not in ("block", "given", "tail")}
        out = self.rewrite.head_for_target(request, target, request.fields, TARGET, b"1").as_http1()
        return "request", head, target, seen, out

    def response(self, data: bytes, fast: bool, parts: list[bytes] | None = None) -> tuple[Any, ...]:
        """The verdict on a response's bytes: an error for the client, or the parsed response and the client's head."""
        try:
            if parts is None and fast is not self.plain.USES_FAST_PARSER:
                end = data.find(b"\r\n\r\n", 0, LIMITS.response_head_bytes)
                if end < 0:
                    parts = [data]
                else:
                    return self._read(self.heads.parse_response(data[: end + 4], fast))
            reader = self.readers.ResponseHeadReader(LIMITS)
            response = None
            for part in parts or [data]:
                response, _ = reader.take(part)
                if response is not None:
                    break
        except self.rules.HeadError as error:
            return str(error), error.rule
        return ("unfinished", bytes(reader.begun)) if response is None else self._read(response)

    def _read(self, response: Any) -> tuple[Any, ...]:
        unwritten = ("block", "framing", "closing", "written")
        seen = {name: getattr(response, name) for name in response.__slots__ if name not in unwritten}
        return "response", seen, self.rewrite.head_for_client(response, response.length, b"close")


def load_source(name: str) -> ModuleType:
    """A module of the proxy from its source, with the modules that it imports from their source, too."""
    full = f"agent.proxy.{name}"
    found = SOURCES.get(full)
    if found is None:
        folder = Path(agent.proxy.__file__).parent
        spec = importlib.util.spec_from_file_location(full, folder / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        found = importlib.util.module_from_spec(spec)
        kept = {each: sys.modules.get(each) for each in SOURCES}
        sys.modules.update(SOURCES)
        try:
            spec.loader.exec_module(found)
        finally:
            for each, module in kept.items():
                if module is not None:
                    sys.modules[each] = module
        SOURCES[full] = found
    return found


SOURCES: dict[str, ModuleType] = {}
IMPORTED = Twin(lambda name: importlib.import_module(f"agent.proxy.{name}"))
"""The twin that runs: compiled, unless FASTPIPE_NO_EXTENSIONS is set."""
PYTHON = Twin(load_source) if IMPORTED.plain.USES_FAST_PARSER else IMPORTED


def splits(chance: random.Random, data: bytes) -> list[bytes]:
    """The bytes one by one, or cut in up to four places."""
    if chance.random() < 0.15:
        return [data[i : i + 1] for i in range(len(data))]
    cuts = sorted({chance.randrange(1, len(data)) for _ in range(chance.randrange(1, 5))}) if len(data) > 1 else []
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def one_verdict(read: str, chance: random.Random, data: bytes) -> tuple[Any, ...]:
    """The verdict on these bytes, the same by each way."""
    verdict: tuple[Any, ...] = getattr(IMPORTED, read)(data, IMPORTED.plain.USES_FAST_PARSER)
    other = getattr(IMPORTED, read)(data, not IMPORTED.plain.USES_FAST_PARSER)
    assert other == verdict, data
    twin = chance.choice((IMPORTED, PYTHON))
    assert getattr(twin, read)(data, twin.plain.USES_FAST_PARSER, splits(chance, data)) == verdict, data
    if PYTHON is not IMPORTED:
        assert getattr(PYTHON, read)(data, False) == verdict, data
        if chance.random() < 0.2:  # byte by byte in Python, that takes its time
            assert getattr(PYTHON, read)(data, True) == verdict, data
    return verdict


def test_both_twins_are_what_they_are_taken_for() -> None:
    assert PYTHON.heads.__file__.endswith(".py")
    assert PYTHON.heads.parse_request.__module__ == "agent.proxy.heads"
    assert not PYTHON.plain.USES_FAST_PARSER
    assert PYTHON.readers.parse_response is PYTHON.heads.parse_response
    if PYTHON is not IMPORTED:
        assert not IMPORTED.heads.__file__.endswith(".py")
        assert sys.modules["agent.proxy.heads"] is IMPORTED.heads


@pytest.mark.parametrize("seed", range(BLOCKS))
def test_every_way_reads_a_request_head_alike(seed: int) -> None:
    chance = random.Random(seed)
    ends: collections.Counter[Any] = collections.Counter()
    for _ in range(HEADS // BLOCKS * 3 // 5):
        data = request_head(chance)
        if chance.random() < 0.2:
            data = hurt(chance, data)
        ends[one_verdict("request", chance, data + BEHIND)[0]] += 1
    assert ends["request"] > sum(ends.values()) // 5, ends
    assert {400, 405, 414, 417, 501, 505, "unfinished"} <= set(ends), ends


@pytest.mark.parametrize("seed", range(BLOCKS))
def test_every_way_reads_a_response_head_alike(seed: int) -> None:
    chance = random.Random(1000 + seed)
    ends: collections.Counter[Any] = collections.Counter()
    for _ in range(HEADS // BLOCKS * 2 // 5):
        data = response_head(chance)
        if chance.random() < 0.2:
            data = hurt(chance, data)
        verdict = one_verdict("response", chance, data + BEHIND)
        ends[verdict[0] if verdict[0] in ("response", "unfinished") else verdict[1]] += 1
    assert ends["response"] > sum(ends.values()) // 5, ends
    assert {"bare-lf", "status-range", "length-repeated", "length-with-coding", "folded-line"} <= set(ends), ends
