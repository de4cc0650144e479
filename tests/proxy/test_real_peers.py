"""The proxy between clients and servers that nobody here wrote: curl, httpx, aiohttp; nginx, http.server."""

from __future__ import annotations

import asyncio
import hashlib
import http.server
import shutil
import threading

import aiohttp
import httpx
import pytest


@pytest.fixture
def carrier() -> str:
    return "tcp"


async def curl(*arguments: str) -> tuple[bytes, bytes]:
    program = shutil.which("curl")
    if program is None:
        pytest.fail("curl is missing: apt-get install curl")
    process = await asyncio.create_subprocess_exec(
        program, "-sS", "--max-time", "20", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return output, errors


@pytest.fixture
def big_digest() -> str:
    return hashlib.sha256(bytes(range(256)) * 4096 * 64).hexdigest()


@pytest.mark.loops("uvloop")
async def test_curl_to_nginx(stack, nginx, tmp_path, big_digest):
    async with stack(nginx["url"]) as h:
        url = f"http://127.0.0.1:{h.port}"
        assert (await curl(url + "/", url + "/1k"))[0] == b"OK" + b"x" * 1024
        assert (await curl("-o", "/dev/null", "-w", "%{http_code}", url + "/missing"))[0] == b"404"
        assert (await curl("-I", url + "/1k"))[0].lower().count(b"content-length: 1024") == 1
        assert (await curl("-0", url + "/1k"))[0] == b"x" * 1024
        assert (await curl("-r", "0-9", url + "/1k"))[0] == b"x" * 10
        await curl("-o", str(tmp_path / "big"), url + "/big")
        assert hashlib.sha256((tmp_path / "big").read_bytes()).hexdigest() == big_digest
        for framing in ([], ["-H", "Transfer-Encoding: chunked"], ["-H", "Expect: 100-continue"]):
            await curl("-T", str(tmp_path / "big"), *framing, url + "/upload/big")
            stored = nginx["root"] / "put" / "upload" / "big"
            assert hashlib.sha256(stored.read_bytes()).hexdigest() == big_digest
            stored.unlink()


async def test_httpx_and_aiohttp_to_nginx(stack, nginx):
    async with stack(nginx["url"]) as h:
        url = f"http://127.0.0.1:{h.port}"
        async with httpx.AsyncClient(trust_env=False) as client:
            answers = await asyncio.gather(*(client.get(url + "/1k") for _ in range(20)))
            assert [answer.content for answer in answers] == [b"x" * 1024] * 20
            assert (await client.head(url + "/1k")).headers["content-length"] == "1024"
            cached = {"If-None-Match": answers[0].headers["etag"]}
            assert (await client.get(url + "/1k", headers=cached)).status_code == 304
        async with aiohttp.ClientSession() as session:
            for _ in range(5):
                async with session.get(url + "/1k") as answer:
                    assert await answer.read() == b"x" * 1024
        await asyncio.sleep(0)


class Plain(http.server.BaseHTTPRequestHandler):
    """HTTP/1.0, ended by closing, as the standard library does by default."""

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"until the end")

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(201)
        self.end_headers()
        self.wfile.write(body[::-1])

    def log_message(self, *_):
        pass


async def test_http_server_answers_until_its_end(stack):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Plain) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            async with stack(f"http://127.0.0.1:{server.server_address[1]}") as h:
                url = f"http://127.0.0.1:{h.port}"
                async with httpx.AsyncClient(trust_env=False) as client:
                    for _ in range(3):
                        assert (await client.get(url)).text == "until the end"
                        assert (await client.post(url, content=b"abc")).content == b"cba"
                assert (await curl("-0", url))[0] == b"until the end"
        finally:
            server.shutdown()
            thread.join()
