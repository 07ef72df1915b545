"""What travels over the WebSocket: one binary message per frame, little-endian header first.

    frame    "P2P1" model:u8 form:u8 answer:u8 0:u8 width:u16 height:u16 number:u32       then pixels
    answer   "P2P1" model:u8 form:u8 0:u16 width:u16 height:u16 number:u32 dropped:u32
             engine_ms:f32 server_ms:f32                                                  then pixels

form and answer: 0 RGB rows, 1 JPEG, 2 PNG; a frame's answer says which form its answer shall have.
A frame's form may also be 3, runs of equal pixels in row order, each count:u16 R:u8 G:u8 B:u8: a
drawing is a few KB then, and raw pixels take milliseconds through a browser's and a socket's pipes.
number is the client's own and comes back unchanged; dropped counts this client's frames that a
newer one replaced; server_ms is from the frame's arrival to its answer, engine_ms is the part
inside the engine. Errors are text messages: {"error": "...", "number": N or null}.
"""

from __future__ import annotations

import re
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from itertools import islice
from typing import Any

import numpy as np

from .. import images

MAGIC = b"P2P1"
FRAME = struct.Struct("<4s4B2HI")  # 16 bytes
ANSWER = struct.Struct("<4s2B3H2I2f")  # 28 bytes
RGB, JPEG, PNG, RUNS = range(4)
FORMS = ("RGB", "JPEG", "PNG", "RUNS")
ANSWERS = FORMS[:3]
RUN = np.dtype([("count", "<u2"), ("colour", "u1", 3)])
MAX_SIDE = 1 << 14
MAX_SCANS = 100  # of a JPEG file: each may pass over the whole picture; encoders make about ten
MAX_PARTS = 1000  # segments of a JPEG file, chunks of a PNG file
_SEGMENT = re.compile(rb"\xff[\xc0-\xcf\xda-\xfe]")  # restart marks cost nothing


@dataclass(frozen=True)
class Frame:
    """One frame as it came: its header is sound, its pixels have not been looked at."""

    model: int
    form: int
    answer: int
    width: int
    height: int
    number: int
    pixels: memoryview | bytes = field(repr=False)  # a part of the message, not a copy
    arrived: float = field(default_factory=time.perf_counter)


class BadFrame(ValueError):
    """A message that is no frame of ours; `number` is the frame's, where it can be known."""

    def __init__(self, message: str, number: int | None = None) -> None:
        super().__init__(message)
        self.number = number


def parse(message: bytes, multiples: Sequence[int], max_pixels: int) -> Frame:
    """Read a frame's header and check every field of it. Raises BadFrame.

    multiples: of each model, what its sizes are padded to; max_pixels counts the padding, which is
    what costs time and memory.
    """
    if len(message) < FRAME.size:
        raise BadFrame(
            f"frame: expected a header of {FRAME.size} bytes, got {len(message)} bytes in all"
        )
    magic, model, form, answer, zero, width, height, number = FRAME.unpack_from(message)
    if magic != MAGIC:
        raise BadFrame(f"frame: expected it to begin with {MAGIC.decode()}, got {magic.hex()}")
    if model >= len(multiples):
        raise BadFrame(f"model: expected 0 to {len(multiples) - 1}, got {model}", number)
    for name, value, known in (("form", form, FORMS), ("answer", answer, ANSWERS)):
        if value >= len(known):
            raise BadFrame(f"{name}: expected 0 to {len(known) - 1}, got {value}", number)
    if zero:
        raise BadFrame(f"header: expected 0 in its byte 7, got {zero}", number)
    if not width or not height:
        raise BadFrame(f"size: expected at least 1 x 1 pixel, got {width} x {height}", number)
    wide, high = (-(-side // multiples[model]) * multiples[model] for side in (width, height))
    if max(width, height) > MAX_SIDE or wide * high > max_pixels:
        raise BadFrame(
            f"size: expected at most {max_pixels} pixels and {MAX_SIDE} a side, got "
            f"{width} x {height}, padded to {wide} x {high} for this model; make it smaller",
            number,
        )
    pixels = memoryview(message)[FRAME.size :]
    if form == RGB and len(pixels) != width * height * 3:
        raise BadFrame(
            f"pixels: expected {width * height * 3} bytes for {width} x {height} RGB, "
            f"got {len(pixels)}",
            number,
        )
    if form == RUNS and (len(pixels) % RUN.itemsize or len(pixels) > width * height * RUN.itemsize):
        raise BadFrame(
            f"pixels: expected runs of {RUN.itemsize} bytes, at most {width * height} of them, "
            f"got {len(pixels)} bytes",
            number,
        )
    return Frame(model, form, answer, width, height, number, pixels)


def decode(frame: Frame) -> np.ndarray:
    """The pixels (h, w, 3) uint8 of a frame. Raises BadFrame for anything but what its header
    announces; a picture file's size and the number of its parts are checked before it is decoded."""
    if frame.form == RGB:
        array = np.frombuffer(frame.pixels, np.uint8)
        return array.reshape(frame.height, frame.width, 3)
    if frame.form == RUNS:
        runs = np.frombuffer(frame.pixels, RUN)
        total, expected = int(runs["count"].sum(dtype=np.int64)), frame.width * frame.height
        if total != expected:
            raise BadFrame(f"pixels: expected runs of {expected}, got {total}", frame.number)
        channels = [np.repeat(runs["colour"][:, channel], runs["count"]) for channel in range(3)]
        return np.stack(channels, axis=-1).reshape(frame.height, frame.width, 3)
    from PIL import Image

    data = _bare(frame)
    try:
        with Image.open(BytesIO(data), formats=[FORMS[frame.form]]) as header:
            size = header.size
    except MemoryError:
        raise
    except Exception:  # Pillow's decoders raise nearly anything on damaged files
        raise BadFrame(
            f"pixels: expected a {FORMS[frame.form]} file, got something else or a damaged one",
            frame.number,
        ) from None
    if size != (frame.width, frame.height):
        raise BadFrame(
            f"pixels: expected {frame.width} x {frame.height} as the header says, "
            f"got a {FORMS[frame.form]} file of {size[0]} x {size[1]}",
            frame.number,
        )
    try:
        pixels = np.asarray(images.open_picture(data).convert("RGB"))
    except ValueError as error:
        text = str(error).removeprefix("image: ")
        raise BadFrame(f"pixels: {text[:200]}", frame.number) from None
    if pixels.shape[:2] != (frame.height, frame.width):
        raise BadFrame(
            f"pixels: expected {frame.width} x {frame.height} as the header says, got a file that "
            "its EXIF turns on its side; turn its pixels, or leave EXIF out",
            frame.number,
        )
    return pixels


def _bare(frame: Frame) -> bytes:
    """A picture file without what may cost a decoder seconds or much memory beside its pixels.

    A megabyte of empty parts takes seconds to walk, and a PNG file's texts and profiles may unpack to
    64 MiB: of its chunks only the critical ones are kept. Raises BadFrame for too many parts.
    """
    data = bytes(frame.pixels)
    if frame.form == JPEG:
        if data.count(b"\xff\xda") > MAX_SCANS:
            raise BadFrame(
                f"pixels: expected a JPEG file of at most {MAX_SCANS} scans, got more; "
                "save it as an ordinary one",
                frame.number,
            )
        if len(list(islice(_SEGMENT.finditer(data), MAX_PARTS + 1))) <= MAX_PARTS:
            return data
    else:
        kept, at = [data[:8]], 8  # the signature
        for _ in range(MAX_PARTS):
            end = at + 12 + int.from_bytes(data[at : at + 4], "big")
            if data[at + 4 : at + 5].isupper():
                kept.append(data[at:end])
            at = end
            if at >= len(data):
                return b"".join(kept)
    raise BadFrame(
        f"pixels: expected a {FORMS[frame.form]} file of at most {MAX_PARTS} parts, got more; "
        "save it without its metadata",
        frame.number,
    )


def encode(frame: Frame, picture: np.ndarray, engine_ms: float, dropped: int) -> bytes:
    """The answer to `frame`: picture (h, w, 3) uint8 in the form that it asked for."""
    height, width = picture.shape[:2]
    if frame.answer == RGB:
        pixels: Any = picture.tobytes()
    else:
        from PIL import Image

        file = BytesIO()
        values = {"quality": 92} if frame.answer == JPEG else {"compress_level": 1}
        Image.fromarray(picture).save(file, FORMS[frame.answer], **values)
        pixels = file.getvalue()
    server_ms = (time.perf_counter() - frame.arrived) * 1e3
    header = ANSWER.pack(
        MAGIC,
        frame.model,
        frame.answer,
        0,
        width,
        height,
        frame.number,
        min(dropped, 2**32 - 1),
        engine_ms,
        server_ms,
    )
    message: bytes = header + pixels
    return message
