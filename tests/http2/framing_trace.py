"""Traces one twin of the data plane on given bytes: its calls, each stream's bytes, its flow-control counts."""

from __future__ import annotations

from typing import Any

from agent.errors import WireError
from agent.http2.frames import frame

SETTINGS = frame(4, 0, 0)


class Trace:
    """A handler, and a plain reader for streams 1 and 3, that record their calls.

    stop_at: the number of the event at which the trace stops the reader.
    consumes: whether the users consume some of their bytes.
    """

    def __init__(
        self,
        twin: Any,
        *,
        window: int = 100_000,
        connection_window: int | None = None,
        preface: bool = False,
        stop_at: int = 0,
        consumes: bool = False,
    ) -> None:
        self.events: list[Any] = []
        self.bytes: dict[int, bytes] = {}
        self.pieces: list[bytes | memoryview] = []
        self.stop_at = stop_at
        self.consumes = consumes
        self.reader = twin.FrameReader(self, expect_preface=preface)
        self.reader.window = window if connection_window is None else connection_window
        self.readers: dict[int, Any] = {}
        for stream_id in (1, 3):
            self.bytes[stream_id] = b""
            self.readers[stream_id] = twin.StreamReader(Sink(self, stream_id), window=window)
        self.reader.streams.update(self.readers)

    def feed(self, *parts: bytes | memoryview) -> Trace:
        try:
            for part in parts:
                self.reader.feed(part)
        except WireError as error:
            self.events.append(("connection error", str(error), error.http2_code))
            self.reader.stop()
        return self

    def note(self, *event: Any) -> None:
        self.events.append(event)
        if len(self.events) == self.stop_at:
            self.reader.stop()

    def books(self) -> tuple[Any, ...]:
        streams = [
            (one.window, one.unreturned, one.unread, one.ended, one.closed, one.held) for one in self.readers.values()
        ]
        return self.events, self.bytes, self.reader.window, self.reader.unreturned, self.reader.stopped, streams

    def control_frame(self, kind: int, flags: int, stream_id: int, whole: bytes) -> None:
        self.note("control", kind, flags, stream_id, whole)

    def window_update(self, stream_id: int, increment: int) -> None:
        self.note("credit", stream_id, increment)

    def data_ended(self, stream_id: int) -> None:
        self.note("ended", stream_id)

    def stray_data(self, stream_id: int) -> None:
        self.note("stray", stream_id)

    def stream_error(self, stream_id: int, error: WireError) -> None:
        self.note("stream error", stream_id, str(error), error.http2_code)


class Sink:
    """One stream's."""

    def __init__(self, trace: Trace, stream_id: int) -> None:
        self.trace = trace
        self.stream_id = stream_id

    def data_received(self, data: bytes | memoryview) -> None:
        assert type(data) is bytes or (type(data) is memoryview and data.readonly)
        assert len(data)
        self.trace.bytes[self.stream_id] += data
        self.trace.pieces.append(data)
        reader = self.trace.readers[self.stream_id]
        if self.trace.consumes and len(data) % 3:
            reader.consumed(min(len(data), reader.unread))
