"""A wire between a device and its broker that a test can cut, stall and count."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress


class Forwarder:
    """Listens on `port` of this machine and passes bytes to and from `target`, another port of it."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.up = self.down = 0  # bytes passed to the target, and from it
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._left: int | None = None  # bytes down until it stalls by itself
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="forwarder", daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop
        ).result(10)
        self.port: int = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """End every connection with a reset, both ways; new ones are taken."""
        self._on_loop(self._abort)

    def stall(self) -> None:
        """Pass nothing on, and keep the connections: a network that has gone without a word."""
        self._on_loop(self._flowing.clear)

    def stall_after(self, count: int) -> None:
        """Pass so many more bytes from the target, not one more, and stall."""
        self._on_loop(lambda: setattr(self, "_left", count))

    @property
    def stalled(self) -> bool:
        return not self._flowing.is_set()

    def flow(self) -> None:
        """Pass on again."""
        self._on_loop(lambda: (setattr(self, "_left", None), self._flowing.set()))

    def close(self) -> None:
        """End connections, listener and thread."""
        asyncio.run_coroutine_threadsafe(self._finish(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _on_loop(self, action: Callable[[], None]) -> None:
        done = threading.Event()
        self._loop.call_soon_threadsafe(lambda: (action(), done.set()))
        assert done.wait(10)

    def _abort(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _finish(self) -> None:
        self._server.close()
        self._abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.target)
            self._writers.add(back)
            await asyncio.gather(self._pass(reader, back, "up"), self._pass(there, writer, "down"))
            self._writers.discard(back)
        except (OSError, asyncio.CancelledError):  # cancelled by `close`; asyncio would print what escapes from here
            writer.transport.abort()
        finally:
            self._writers.discard(writer)
            self._tasks.discard(task)

    def _split(self, data: bytes, way: str) -> tuple[bytes, bytes]:
        """What may pass now, and what has to wait."""
        if way == "up" or self._left is None:
            return data, b""
        now, later = data[: self._left], data[self._left :]
        self._left -= len(now)
        if self._left == 0:
            self._left = None
            self._flowing.clear()
        return now, later

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                while data:
                    await self._flowing.wait()
                    now, data = self._split(data, way)
                    setattr(self, way, getattr(self, way) + len(now))
                    writer.write(now)
                    await writer.drain()
        writer.close()
