"""A run's standard streams in the daemon: pipes that are read up to a limit and written as fast as they are read.

The event loop does the waiting; nothing here holds more than one chunk beyond what its user keeps.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable

CHUNK_BYTES = 1 << 16


class OutputReader:
    """Reads one stream of a run. `limit` bytes are handed on, exactly; one more calls `on_over`, once.

    `pause` and `resume` are for a consumer slower than the run: the pipe then fills and the program waits.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        fd: int,
        limit: int | None,
        on_data: Callable[[bytes], None],
        on_over: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._fd = fd
        self._left = limit
        self._on_data = on_data
        self._on_over = on_over
        self._watched = False
        self._closed = False
        self.truncated = False
        os.set_blocking(fd, False)
        self.resume()

    def pause(self) -> None:
        if self._watched:
            self._loop.remove_reader(self._fd)
            self._watched = False

    def resume(self) -> None:
        if not self._watched and not self._closed and not self.truncated:
            self._loop.add_reader(self._fd, self._on_readable)
            self._watched = True

    def _on_readable(self) -> None:
        self._read_once()

    def _read_once(self) -> bool:
        """False when there is nothing more to read now, or ever."""
        size = CHUNK_BYTES if self._left is None else min(CHUNK_BYTES, self._left + 1)
        try:
            data = os.read(self._fd, size)
        except BlockingIOError:
            return False
        except OSError:  # EIO: a terminal whose last user is gone
            data = b""
        if not data:
            self.pause()
            return False
        if self._left is not None:
            if len(data) > self._left:
                self.truncated = True
                self.pause()
                data = data[: self._left]
            self._left -= len(data)
        if data:
            self._on_data(data)
        if self.truncated:
            self._on_over()
            return False
        return True

    def drain(self) -> None:
        """Takes what is still in the pipe; for after the last process of the run is gone."""
        while not self._closed and not self.truncated and self._read_once():
            pass

    @property
    def pending(self) -> bool:
        """Whether it is paused with more to come."""
        return not self._watched and not self._closed and not self.truncated

    def close(self) -> None:
        if not self._closed:
            self.pause()
            self._closed = True
            os.close(self._fd)


class InputWriter:
    """Writes a run's standard input. The program may close its end at any time; what is left is then dropped."""

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int, *, is_terminal: bool = False) -> None:
        self._loop = loop
        self._fd = fd
        self._is_terminal = is_terminal
        self._closed = False
        self._writable: asyncio.Future[None] | None = None
        os.set_blocking(fd, False)

    async def write(self, data: bytes) -> None:
        """Returns when all of it is in the pipe, or the other end is closed."""
        view = memoryview(data)
        while view and not self._closed:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:
                await self._wait()
            except OSError:
                self.close()

    async def _wait(self) -> None:
        self._writable = self._loop.create_future()
        self._loop.add_writer(self._fd, self._on_writable)
        try:
            await self._writable
        finally:
            if not self._closed:
                self._loop.remove_writer(self._fd)
            self._writable = None

    def _on_writable(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    def end(self) -> None:
        """End of file for the program: closes a pipe, types Ctrl-D into a terminal."""
        if self._is_terminal:
            with contextlib.suppress(OSError):
                os.write(self._fd, b"\x04")
        else:
            self.close()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._loop.remove_writer(self._fd)
            os.close(self._fd)
            self._on_writable()
