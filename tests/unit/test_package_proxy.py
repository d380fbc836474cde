"""The nodes' way out: what it passes, to whom, and through what; all on the loopback address."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from lab import package_proxy
from lab.package_hosts import hosts_in, package_hosts
from lab.package_proxy import Egress, allowed, origin_head, parse_request

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def _serve(handler: Handler) -> tuple[asyncio.Server, int]:
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


async def _ask(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    return answer


async def _origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer with what was asked."""
    head = await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + head)
    await writer.drain()
    writer.close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package_proxy, "getproxies", dict)


def test_only_listed_hosts_and_those_below_them() -> None:
    hosts = ["pypi.org", "pythonhosted.org"]

    assert allowed("pypi.org", hosts)
    assert allowed("files.pythonhosted.org", hosts)
    assert not allowed("notpypi.org", hosts)
    assert not allowed("pypi.org.example.com", hosts)
    assert not allowed("", hosts)


def test_requests_are_read() -> None:
    assert parse_request(b"CONNECT pypi.org:443 HTTP/1.1\r\n\r\n") == ("CONNECT", "pypi.org", 443, "")
    assert parse_request(b"GET http://deb.debian.org/a/b?c=d HTTP/1.1\r\n\r\n") == (
        "GET",
        "deb.debian.org",
        80,
        "/a/b?c=d",
    )
    for line in (b"GET /local HTTP/1.1", b"POST http://pypi.org/ HTTP/1.1", b"GET ftp://pypi.org/ HTTP/1.1"):
        with pytest.raises(ValueError, match=r"\S"):
            parse_request(line + b"\r\n\r\n")


def test_origin_sees_a_path_and_no_proxy_headers() -> None:
    head = b"GET http://h/p HTTP/1.1\r\nHost: h\r\nProxy-Connection: keep-alive\r\nConnection: keep-alive\r\n\r\n"

    assert origin_head(head, "GET", "/p") == b"GET /p HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"


def test_get_and_connect_reach_the_origin() -> None:
    async def scenario() -> tuple[bytes, bytes]:
        origin, origin_port = await _serve(_origin)
        proxy, proxy_port = await _serve(Egress(["127.0.0.1"]).serve)
        got = await _ask(proxy_port, f"GET http://127.0.0.1:{origin_port}/x HTTP/1.1\r\nHost: h\r\n\r\n".encode())
        tunnel = f"CONNECT 127.0.0.1:{origin_port} HTTP/1.1\r\n\r\n".encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy_port)
        writer.write(tunnel)
        established = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"through\r\n\r\n")
        connected = established + await asyncio.wait_for(reader.read(), 5)
        writer.close()
        origin.close()
        proxy.close()
        return got, connected

    got, connected = asyncio.run(scenario())

    assert got == b"HTTP/1.1 200 OK\r\n\r\nGET /x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    assert connected.startswith(b"HTTP/1.1 200 Connection established\r\n\r\n")
    assert connected.endswith(b"through\r\n\r\n")


def test_others_are_refused_with_the_reason() -> None:
    async def scenario() -> list[bytes]:
        proxy, port = await _serve(Egress(["pypi.org"]).serve)
        requests = [b"CONNECT 127.0.0.1:1 HTTP/1.1\r\n\r\n", b"GET /local HTTP/1.1\r\n\r\n", b"nonsense\r\n\r\n"]
        answers = [await _ask(port, request) for request in requests]
        proxy.close()
        return answers

    forbidden, local, nonsense = asyncio.run(scenario())

    assert forbidden.startswith(b"HTTP/1.1 403")
    assert b"does not reach 127.0.0.1" in forbidden
    assert local.startswith(b"HTTP/1.1 400")
    assert nonsense.startswith(b"HTTP/1.1 400")


def test_unreachable_origin_is_a_bad_gateway() -> None:
    async def scenario() -> bytes:
        proxy, port = await _serve(Egress(["127.0.0.1"]).serve)
        answer = await _ask(port, b"CONNECT 127.0.0.1:1 HTTP/1.1\r\n\r\n")
        proxy.close()
        return answer

    assert asyncio.run(scenario()).startswith(b"HTTP/1.1 502")


def test_the_machines_own_proxy_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []

    async def upstream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await _origin(reader, writer)

    async def scenario() -> bytes:
        server, upstream_port = await _serve(upstream)
        monkeypatch.setattr(
            package_proxy, "getproxies", lambda: {"http": f"http://user:p%40ss@127.0.0.1:{upstream_port}"}
        )
        proxy, port = await _serve(Egress(["deb.debian.org"]).serve)
        answer = await _ask(port, b"GET http://deb.debian.org/x HTTP/1.1\r\n\r\n")
        server.close()
        proxy.close()
        return answer

    answer = asyncio.run(scenario())

    assert asked[0].startswith(b"CONNECT deb.debian.org:80 HTTP/1.1\r\n")
    assert b"Proxy-Authorization: Basic dXNlcjpwQHNz\r\n" in asked[0]
    assert b"GET /x HTTP/1.1" in answer


def test_hosts_come_from_the_machines_own_settings(tmp_path: Path) -> None:
    config = tmp_path / "pip.conf"
    config.write_text("[global]\nindex-url = https://me:secret@index.example/simple\n# extra = https://no.example\n")
    engines = tmp_path / "engines.yaml"
    engines.write_text("url: https://wheels.example/cpu\n")
    environment = {
        "HOME": str(tmp_path),
        "PIP_CONFIG_FILE": str(config),
        "PIP_EXTRA_INDEX_URL": "https://extra.example/simple",
        "CLUSTER_EGRESS_HOSTS": "added.example, ",
    }

    hosts = package_hosts(engines, False, environment)

    assert {"index.example", "wheels.example", "extra.example", "added.example", "pypi.org"} <= set(hosts)
    assert "no.example" not in hosts
    assert "huggingface.co" not in hosts
    assert "huggingface.co" in package_hosts(engines, True, environment)


def test_file_addresses_name_no_host() -> None:
    assert hosts_in(["file:///opt/index https://a.example./x"]) == {"a.example"}
