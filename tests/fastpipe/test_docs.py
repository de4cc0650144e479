"""Every Python example of docs/fastpipe.md, and the README's of fastpipe, as a reader would type them."""

from __future__ import annotations

import ast
import asyncio
import inspect
import pathlib
import re

import pytest

import fastpipe

ROOT = pathlib.Path(__file__).parents[2]


def examples(name: str) -> list[str]:
    path = ROOT / name
    if not path.exists():
        pytest.skip(f"{name} is in the repository only")
    return re.findall(r"(?s)```python\n(.*?)```", path.read_text(encoding="utf-8"))


async def typed(source: str, **names: object) -> dict[str, object]:
    """Run source that may await at its top level. Returns the names that it has bound."""
    code = compile(source, "docs", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    names |= {"asyncio": asyncio, "fastpipe": fastpipe}
    result = eval(code, names)
    if inspect.iscoroutine(result):
        await result
    return names


def test_whole_programs_run(capsys):
    programs = [text for name in ("README.md", "docs/fastpipe.md") for text in examples(name)]
    programs = [text for text in programs if "asyncio.run(main())" in text]
    assert len(programs) == 3
    for text in programs:
        exec(compile(text, "docs", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out == "b'HELLO\\n'\n{'hello': 'world'}\n{'hello': 'world'}\n"


async def test_parts_do_what_the_text_around_them_says(recorder, run_turns):
    transports, by_hand, streams, listener, *_ = examples("docs/fastpipe.md")

    protocol = recorder()
    names = await typed(transports, MyProtocol=lambda: protocol)
    await run_turns()
    assert protocol.log == [("connection_made",), ("data_received", b"hello")]
    names["client"].close()
    await run_turns()

    buffer = bytearray(3)
    names = await typed(by_hand, buffer=buffer)
    assert (names["a"].read(), names["b"].read()) == (b"", b"")
    names["a"].abort()
    names["b"].abort()

    names = await typed(streams)
    assert names["line"] == b"GET\n"
    for writer in (names["writer"], names["their_writer"]):
        writer.close()
        await writer.wait_closed()

    asked = listener.replace("    ...\n", "    writer.write(b'line\\n')\n    answer = await reader.readline()\n")
    assert asked != listener
    names = await typed(asked)
    assert names["answer"] == b"LINE\n"


async def test_the_example_of_aiohttp_is_answered():
    aiohttp = pytest.importorskip("aiohttp")
    from aiohttp import web

    [example] = [text for text in examples("docs/fastpipe.md") if "PipeConnector" in text]

    async def handler(request: web.BaseRequest) -> web.WebSocketResponse:
        answer = web.WebSocketResponse()
        await answer.prepare(request)
        async for message in answer:
            await answer.send_str(message.data.upper())
        return answer

    replies = "        await ws.send_str('hello')\n        got = await ws.receive_str()\n"
    asked = example.replace("        ...\n", replies)
    assert asked != example
    async with await fastpipe.Listener().create_server(web.Server(handler)) as listener:
        names = await typed(asked, aiohttp=aiohttp, listener=listener)
    assert names["got"] == "HELLO"


@pytest.mark.parametrize(
    ("prefix", "host"), [("/c1", "hub.example.com"), ("", "c1.tunnel.example.com")], ids=["path", "host"]
)
async def test_the_example_behind_a_hub_has_the_public_links(prefix, host):
    pytest.importorskip("fastapi")
    httpx = pytest.importorskip("httpx")
    from fastpipe.asgi import serve
    from fastpipe.httpx import PipeTransport

    [example] = [text for text in examples("docs/fastpipe.md") if "FastAPI" in text]
    names: dict[str, object] = {"__name__": "hello"}
    exec(compile(example, "docs", "exec"), names)
    fields = {"Host": host, "X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https"}
    if prefix:
        fields["X-Forwarded-Prefix"] = prefix
    async with (
        serve(names["app"], trust_forwarded_fields=True) as listener,
        httpx.AsyncClient(transport=PipeTransport(listener), base_url="http://app") as client,
    ):
        response = await client.get("/hello", headers=fields)
        assert response.json() == {"user": "203.0.113.9", "here": f"https://{host}{prefix}/hello"}
        assert f"'{prefix}/openapi.json'" in (await client.get("/docs", headers=fields)).text
