"""Copying the sound of a video, as it is, beside frames that are written anew."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import TYPE_CHECKING

import av.error

from segformerpp.data.containers import av_reason, open_container, origin, video_stream
from segformerpp.data.video_sources import without_password

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import OutputContainer
    from av.packet import Packet

logger = logging.getLogger(__name__)


class Sound:
    """Copies sound into a container, as far as the video beside it has come."""

    def __init__(
        self,
        packets: Generator[Packet],
        streams: dict[int, AudioStream],
        container: OutputContainer,
    ) -> None:
        self._packets, self._streams, self._container = packets, streams, container
        self._next: Packet | None = next(packets, None)
        self._last: dict[int, int] = {}

    @classmethod
    @contextmanager
    def opened(cls, source: str, container: OutputContainer, shift: Fraction) -> Iterator[Sound]:
        """Add streams for all sound of a source that the container can hold."""
        name = without_password(source)
        with open_container(source) as given:
            begin = origin(given, video_stream(given, name)) + shift
            streams = {}
            for stream in given.streams.audio:
                if stream.codec_context.name in container.supported_codecs:
                    streams[stream.index] = container.add_stream_from_template(stream)
                else:
                    kind = stream.codec_context.name
                    logger.warning("%s: MP4 cannot hold its sound (%s): left out", name, kind)
            if shift and streams:
                given.seek(int(begin * 1_000_000), backward=True)

            def packets() -> Generator[Packet]:
                kept = [given.streams[index] for index in streams]
                ends = {
                    stream.index: (stream.start_time or 0) + stream.duration
                    for stream in kept
                    if stream.duration
                }
                try:
                    for packet in given.demux(kept) if kept else ():
                        if packet.dts is None or packet.pts is None:
                            continue
                        if shift and packet.pts * packet.time_base < begin:
                            continue
                        if packet.duration and (end := ends.get(packet.stream_index)):
                            # The last block of sound may reach beyond what is to be heard.
                            packet.duration = max(min(packet.duration, end - packet.pts), 1)
                        packet.pts -= round(begin / packet.time_base)
                        packet.dts -= round(begin / packet.time_base)
                        yield packet
                except av.error.FFmpegError as error:
                    logger.warning("%s: its sound ends early: %s", name, av_reason(error))

            yield cls(packets(), streams, container)

    def end(self, at: Fraction) -> None:
        """Copy what is heard before a time in seconds, which is the last of it."""
        while (packet := self._next) is not None and packet.pts is not None:
            left = round(at / packet.time_base) - packet.pts
            if left <= 0:
                break
            packet.duration = min(packet.duration or left, left)
            self._copy_next()

    def copy(self, until: Fraction | None) -> None:
        """Copy what is heard before a time in seconds, or all that is left."""
        while (packet := self._next) is not None:
            assert packet.dts is not None
            if until is not None and packet.dts * packet.time_base >= until:
                return
            self._copy_next()

    def _copy_next(self) -> None:
        packet = self._next
        assert packet is not None
        assert packet.dts is not None
        index, dts = packet.stream_index, packet.dts
        if dts > self._last.get(index, dts - 1):  # clocks of broken files jump back
            self._last[index] = dts
            packet.stream = self._streams[index]
            self._container.mux(packet)
        self._next = next(self._packets, None)
