"""A TCP proxy in front of Postgres that can cut connections silently: nothing passes any more, and neither end is told."""

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from tests.agents import until

_NAME = re.compile(rb"application_name\0([^\0]*)\0")


@dataclass(slots=True, eq=False)
class _Link:
    application: str = ""
    is_silent: bool = False


class Proxy:
    """A running proxy. `url` is the database's address through it."""

    def __init__(self, url: str) -> None:
        self._socket = f"{parse_qs(urlsplit(url).query)['host'][0]}/.s.PGSQL.5432"
        self._direct = url
        self._links: list[_Link] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._admits = True
        self.url = ""

    async def silence(self, application: str = "", *, and_new: bool = False) -> None:
        """Cut the open connections of one application, or of all, and with `and_new` those opened from now on as well."""
        found: list[_Link] = []

        def cut() -> bool:
            found.extend(link for link in self._links if not link.is_silent and application in ("", link.application))
            return bool(found)

        await until(cut)
        for link in found:
            link.is_silent = True
        self._admits = not and_new

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        link = _Link(is_silent=not self._admits)
        self._links.append(link)
        from_server, to_server = await asyncio.open_unix_connection(self._socket)
        with suppress(asyncio.CancelledError):
            await asyncio.gather(self._pump(link, reader, to_server), self._pump(link, from_server, writer))
        self._links.remove(link)
        for end in (writer, to_server):
            end.transport.abort()

    async def close(self) -> None:
        """End all connections."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _pump(self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while chunk := await reader.read(65_536):
                if named := _NAME.search(chunk):
                    link.application = named[1].decode()
                if not link.is_silent:
                    writer.write(chunk)
                    await writer.drain()
        if link.is_silent:  # that one end has gone must not reach the other
            await asyncio.Event().wait()
        writer.close()


@asynccontextmanager
async def proxied(url: str) -> AsyncGenerator[Proxy]:
    """Run a proxy in front of the database at a socket's address."""
    proxy = Proxy(url)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    parts = urlsplit(url)
    port = server.sockets[0].getsockname()[1]
    proxy.url = parts._replace(netloc=f"{parts.username}@127.0.0.1:{port}", query="").geturl()
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()
