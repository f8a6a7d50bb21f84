"""The markers of a JPEG file, and the repair of files whose pixels are all there."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt8

MOST_SCANS = 500
"""Scans of a progressive JPEG; cameras write about 10, a file made to be slow has thousands."""

MOST_MENDED_SCANS = 32
"""Scans of a damaged file that is repaired; each is decoded on its own."""

MOST_STRAY_BYTES = 32
"""Bytes that may stand between the picture and the end marker. Cameras leave a few; where data
are damaged, the decoder loses its place and leaves more."""

END = b"\xff\xd9"

# Within coded data FF 00 is a byte of it and FF D0 to FF D7 restart it: no segments.
_NO_SEGMENT = {0x00, 0x01, *range(0xD0, 0xD8), 0xFF}
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
_ANY_MARKER = re.compile(rb"\xff[^\x00\xff]")

FRAME_MARKERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
SCAN_MARKERS = {*FRAME_MARKERS, 0xDA, 0xDD}
"""Headers of frames and scans, and the interval of restarts: what `Scans.see` looks at."""

Pixels = UInt8[np.ndarray, "_ _ 3"]


Segment = tuple[int, int, int, int]
"""A marker, where it stands, and the begin and end of its payload."""


def segments(content: bytes | memoryview) -> Iterator[Segment]:
    """The segments up to the end marker; a scan's is its header, without the coded data behind."""
    at, n = 2, len(content)
    while at + 4 <= n:
        # In a file in order, a marker stands where the segment before ended.
        if content[at] != 0xFF or content[at + 1] in _NO_SEGMENT:
            found = _MARKER.search(content, at)
            if found is None or found.end() + 2 > n:
                return
            at = found.start()
        marker = content[at + 1]
        if marker in (0xD8, 0xD9):
            return
        end = at + 2 + max(2, content[at + 2] << 8 | content[at + 3])
        yield marker, at, at + 4, end
        at = end


@dataclass
class Scans:
    """Which coefficients of which component the scans seen so far have brought."""

    progressive: bool = False
    ids: bytes = b""  # the components of the frame
    # for each the lowest bits that are still missing of its 64 coefficients; of one that no scan
    # has brought, nothing
    missing: dict[int, list[int]] = field(default_factory=dict)
    n: int = 0  # scans seen
    restarts: bool = False  # whether markers stand within the coded data
    one: bool = False  # whether the first scan holds the whole picture of a file that has only one

    def see(self, content: bytes | memoryview, segment: Segment) -> None:
        """Takes in one segment; any but a frame's or a scan's header changes nothing."""
        marker, _, begin, end = segment
        if marker == 0xDA and begin < end <= len(content):
            self.n += 1
            ids = bytes(content[begin + 1 : begin + 1 + 2 * content[begin] : 2])
            self.one = self.n == 1 and not self.progressive and len(ids) >= len(self.ids)
            if self.one:
                return
            first, last, bits = content[end - 3 : end] if self.progressive else (0, 63, 0)
            for number in ids:
                missing = self.missing.setdefault(number, [16] * 64)
                missing[first : last + 1] = [bits & 15] * len(missing[first : last + 1])
        elif marker == 0xDD:
            self.restarts = content[begin : begin + 2] != b"\0\0"
        elif marker in FRAME_MARKERS:
            self.progressive = marker in (0xC2, 0xCA)
            self.ids = bytes(content[begin + 6 : end : 3])

    @property
    def complete(self) -> bool:
        brought = (self.missing.get(number, [16]) for number in self.ids)
        return self.one or not any(map(any, brought))


def without_oddities(content: bytes) -> bytes:
    """The file without what libjpeg warns of in its headers and no pixel depends on: stray bytes
    between segments, comments, profiles and the like, an unknown JFIF version or Adobe color
    transform, scan parameters in a file that has no use for them."""
    scans, parts, at = Scans(), [content[:2]], 2
    for segment in segments(content):
        scans.see(content, segment)
        marker, start, begin, end = segment
        payload = bytearray(content[begin:end])
        if scans.n and marker != 0xDA:
            continue
        if marker == 0xDA:
            if scans.n > 1:
                parts.append(content[at:start])  # the scan before, and tables
            if not scans.progressive:
                payload[-3:] = b"\0\x3f\0"
        elif marker == 0xE0 and payload[:5] == b"JFIF\0":
            payload[5:6] = b"\1"
        elif marker == 0xEE and payload[:5] == b"Adobe":
            if len(payload) > 11 and payload[11] > 2:
                payload[11] = 2 if len(scans.ids) == 4 else 1
        elif marker == 0xFE or 0xE0 <= marker <= 0xEF:
            continue
        parts += [b"\xff", content[begin - 3 : begin], bytes(payload)]
        at = end
    return b"".join([*parts, content[at:]])


class Damaged(Exception):
    """Not all pixels of the file are there; the text is the reason."""


def mended(content: bytes, decode: Callable[[bytes], Pixels]) -> tuple[bytes, str]:
    """The picture's scans, and an end marker right behind, of a file that is not in order; and what
    was wrong with it. Raises Damaged.

    Every scan is decoded up to its own end. Bytes that the decoder leaves over are cut out where
    they are stray; they are not where the decoder has lost its place in damaged or foreign data.
    The headers of `content` are in order; `decode` raises ValueError for whatever is odd.
    """
    scans, whole, at, stray = Scans(), b"", 0, False
    for segment in segments(content):
        scans.see(content, segment)
        marker, _, _, begin = segment
        if marker != 0xDA:
            continue
        if scans.n > MOST_MENDED_SCANS:
            raise Damaged(f"more than {MOST_MENDED_SCANS} scans")
        pattern = _MARKER if scans.restarts else _ANY_MARKER
        following = pattern.search(content, begin)
        end = following.start() if following else len(content)
        while end > begin and content[end - 1] == 0xFF:  # bytes that fill up to a marker
            end -= 1
        whole, at = whole + content[at:end], end
        closed = following is not None and following.group() == END
        # A trailer of any length may follow a picture that was never closed.
        most = len(content) if scans.complete and not closed else MOST_STRAY_BYTES
        kept = _without_stray_bytes(whole, len(whole) - (end - begin), most, decode)
        stray, whole = stray or len(kept) < len(whole), kept
        if scans.complete:
            faults = ["stray bytes"] * stray if closed else ["no end marker"]
            return whole + END, ", ".join(faults)
    raise Damaged("its last scans are missing" if scans.n else "it has no scan")


def _without_stray_bytes(
    content: bytes, begin: int, most: int, decode: Callable[[bytes], Pixels]
) -> bytes:
    """The file without what follows its last scan, whose coded data begin at `begin`."""
    end, reason = len(content), ""
    while fault := _fault(content[:end], decode):
        extra = re.search(r"(\d+) extraneous bytes before marker 0xd9", fault)
        if extra is None:
            raise Damaged(fault)
        end, reason = end - int(extra[1]), fault
    if end == len(content):
        return content
    while not _fault(content[: end - 1], decode):  # the decoder had read ahead
        end -= 1
    stray = content[end:]
    filling = len(set(stray)) == 1
    # Where the decoder has read filling, or another picture, for data, more of it follows; text
    # and the like never hold the byte FF, which coded data do every few hundred bytes.
    lost = len(set(content[end - 2 : end + 1])) == 1 or b"\xff\x00" in stray
    recent = content[max(end - 2048, begin) : end]
    lost |= b"\xff" not in recent and len(recent) > 1024 and len(set(recent)) > 16
    few = filling or len(stray) <= most
    if lost or not few or not _is_padded(content[:end], decode):
        raise Damaged(reason)
    return content[:end]


def _fault(scans: bytes, decode: Callable[[bytes], Pixels]) -> str:
    try:
        decode(scans + END)
    except ValueError as error:
        return str(error)
    return ""


def _is_padded(content: bytes, decode: Callable[[bytes], Pixels]) -> bool:
    """Whether the bits of a scan's last byte that no pixel needs are ones, as encoders write them.

    Three in four places at which a decoder that has lost its way comes to its end are not.
    """
    # The last blocks; the rest of a large picture need not be kept.
    pixels = decode(content + END)[-64:].copy()
    if content.endswith(b"\xff\x00"):
        return True
    for bit in range(7):
        changed = content[:-1] + bytes([content[-1] ^ 1 << bit])
        try:
            if not np.array_equal(decode(changed + END)[-64:], pixels):
                return True
        except ValueError:
            return True
        if not content[-1] >> bit & 1:
            return False
    return True
