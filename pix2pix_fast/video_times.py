"""A film's times, where the file's own are not what they should be: one line from 0 on."""

from __future__ import annotations

from fractions import Fraction
from math import ceil
from typing import Any

JUMP = 1  # seconds back that are no mistake in one packet: another recording begins
GAP = 3600  # seconds on that no film waits


class Clock:
    """Moves packets to one line of time for all streams, which begins at 0.

    Recordings that were joined begin again in the middle, or hours later. From such a jump on all streams are moved
    by what it takes. They do not jump in the same packet, so the shift of before stays at hand for a
    stream that is not yet there, and for the rest of the film where one packet was wrong."""

    def __init__(self, origin: Fraction) -> None:
        self._shift = self._before = -origin
        self._due: dict[int, Fraction] = {}  # by stream: when its next packet was expected
        self._end: dict[int, Fraction] = {}  # by stream: of what it has shown
        self.jumped = False

    def move(self, packet: Any) -> None:
        shift = self._shift
        if packet.dts is not None:
            dts, index = packet.dts * packet.time_base, packet.stream_index
            due = self._due.get(index, dts + shift)
            pts = dts if packet.pts is None else packet.pts * packet.time_base
            wait = min(max(pts - dts, Fraction(0)), Fraction(JUMP))  # from being decoded to being shown
            if abs(dts + shift - due) > JUMP and abs(dts + self._before - due) <= JUMP:
                shift, self._shift, self._before = self._before, self._before, shift
            elif not due - JUMP <= dts + shift <= due + GAP:
                # not before what is there has been shown: Matroska has no decoding times, and FFmpeg's
                # guess at them is no longer the early one after the jump
                begin = max(due, self._end.get(index, due) - wait)
                self._before, self._shift = shift, begin - dts
                shift, self.jumped = self._shift, True
            self._due[index] = dts + shift + (packet.duration or 0) * packet.time_base
            self._end[index] = max(self._due[index] + wait, self._end.get(index, due))
        shift_by(packet, shift)


def shift_by(packet: Any, seconds: Fraction) -> None:
    ticks = round(seconds / packet.time_base)
    packet.pts = None if packet.pts is None else packet.pts + ticks
    packet.dts = None if packet.dts is None else packet.dts + ticks


def refine(packet: Any) -> None:
    """Give a packet ticks of at most a millisecond: AVI's are as long as its packets of sound."""
    finer = ceil(packet.time_base * 1000)
    packet.pts = None if packet.pts is None else packet.pts * finer
    packet.dts = None if packet.dts is None else packet.dts * finer
    packet.duration = (packet.duration or 0) * finer
    packet.time_base = packet.time_base / finer


class FrameTimes:
    """When frames are shown, in ticks: FFmpeg's rule (guess_correct_pts) and a little more.

    A frame has a time of its own and one by the order of packets. The one that went backwards less
    often is right; None where there is no right one. AVI keeps no times: there, FFmpeg takes the
    first for the second, so it begins with a fault."""

    def __init__(self, container: str) -> None:
        self._faults = {"pts": int(container == "avi"), "dts": 0}
        self._last: dict[str, int] = {}
        self._delay: int | None = None  # dts minus pts of a first frame, which both must show

    def of(self, frame: Any) -> int | None:
        times = {"pts": frame.pts, "dts": frame.dts}
        for name, ticks in times.items():
            if ticks is not None:
                self._faults[name] += ticks <= self._last.get(name, ticks - 1)
                self._last[name] = ticks
        pts, dts = frame.pts, frame.dts
        if self._delay is None and dts is not None:
            self._delay = 0 if pts is None else dts - pts
        if pts is not None and self._faults["pts"] <= self._faults["dts"]:
            return int(pts)
        return None if dts is None else int(dts - (self._delay or 0))
