"""Files that are streamed into a run before it starts, bounded by size, number, time, and for all clients together."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from supervisor.api.convert import MAX_FILES, file_mode, input_path
from supervisor.api.methods import Duplex
from supervisor.errors import Exhausted, InvalidRequest
from supervisor.model import InputFile
from supervisor.v1 import run_pb2 as pb

STALLED = "UPLOAD_STALLED"
BROKEN = "UPLOAD_BROKEN"
MAX_SILENCE_SECONDS = 60.0
"""How long a client may send nothing while it holds memory with half an upload."""

MAX_DISCARD_SECONDS = 2.0
"""How long the rest of a refused upload is read and thrown away.

An error that overtakes a client's writes is lost on grpc.aio clients: the failed write becomes their status.
"""


class UploadRoom:
    """How many bytes all uploads together may hold in memory, from their first chunk until their run begins."""

    def __init__(self, max_bytes: int) -> None:
        self._free = max_bytes

    @contextmanager
    def upload(self) -> Iterator[Upload]:
        """One upload's share, given back at the end or by `release`."""
        upload = Upload(self)
        try:
            yield upload
        finally:
            upload.release()

    def take(self, size: int) -> None:
        """Raises Exhausted when there is no room."""
        if size > self._free:
            raise Exhausted(
                "the files being sent into runs fill the memory set aside for them",
                reason="UPLOADS_FULL",
                retry_seconds=1.0,
            )
        self._free -= size

    def give(self, size: int) -> None:
        self._free += size


class Upload:
    """What one upload holds of its UploadRoom."""

    def __init__(self, room: UploadRoom) -> None:
        self._room = room
        self.size = 0

    def add(self, size: int) -> None:
        self._room.take(size)
        self.size += size

    def release(self) -> None:
        """Idempotent."""
        self._room.give(self.size)
        self.size = 0


@dataclass(slots=True)
class _OpenFile:
    sent_path: bytes
    path: bytes
    mode: int
    chunks: list[bytes] = field(default_factory=list)


async def receive_files(
    stream: Duplex[pb.RunRequest, pb.RunResponse], upload: Upload, max_bytes: int
) -> tuple[InputFile, ...]:
    """The files of the chunks up to `files_end`.

    Raises InvalidRequest for chunks out of order or silence, Exhausted when there are more than `max_bytes` of them.
    """
    try:
        return await _receive(stream, upload, max_bytes)
    except (InvalidRequest, Exhausted) as error:
        upload.release()
        if error.reason not in (STALLED, BROKEN):
            await _discard(stream)
        raise


async def _discard(stream: Duplex[pb.RunRequest, pb.RunResponse]) -> None:
    with suppress(TimeoutError, InvalidRequest):
        async with asyncio.timeout(MAX_DISCARD_SECONDS):
            while (message := await stream.read()) is not None and not message.HasField("files_end"):
                pass


async def _receive(
    stream: Duplex[pb.RunRequest, pb.RunResponse], upload: Upload, max_bytes: int
) -> tuple[InputFile, ...]:
    files: list[InputFile] = []
    current: _OpenFile | None = None
    while True:
        try:
            message = await asyncio.wait_for(stream.read(), MAX_SILENCE_SECONDS)
        except TimeoutError:
            raise InvalidRequest(
                f"nothing came for {MAX_SILENCE_SECONDS:g} s while files follow", reason=STALLED, field="file"
            ) from None
        kind = None if message is None else message.WhichOneof("message")
        if message is not None and kind == "files_end":
            if current is not None:
                raise InvalidRequest("files_end before the last chunk of a file", reason=BROKEN, field="files_end")
            return tuple(files)
        if message is None or kind != "file":
            raise InvalidRequest(
                "file chunks and files_end must follow `start` with files_follow", reason=BROKEN, field="files_end"
            )
        chunk = message.file
        if upload.size + len(chunk.data) > max_bytes:
            raise Exhausted(
                f"the files of a run have more than {max_bytes} bytes", reason="FILES_TOO_LARGE", field="file"
            )
        upload.add(len(chunk.data))
        if current is None:
            if len(files) >= MAX_FILES:
                raise InvalidRequest(f"more than {MAX_FILES} files", field="file")
            mode = file_mode(chunk.mode if chunk.HasField("mode") else None, "file.mode")
            current = _OpenFile(chunk.path, input_path(chunk.path, "file.path"), mode)
        elif chunk.path and chunk.path != current.sent_path:
            raise InvalidRequest("a chunk of another file before the last one of this", field="file.path")
        if chunk.data:
            current.chunks.append(chunk.data)
        if chunk.last:
            data = current.chunks[0] if len(current.chunks) == 1 else b"".join(current.chunks)
            files.append(InputFile(path=current.path, data=data, mode=current.mode))
            current = None
