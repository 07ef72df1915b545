"""PyAV's frames to arrays and back: size, colour, orientation. See docs/video.md."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np

from . import _core
from .errors import BackendUnavailable, VideoError

# libswscale's numbers; PyAV 17's enumeration of the second row ends before them, but it takes an int
BT601, BT709, LIMITED, FULL = 5, 1, 1, 2
BILINEAR, FULL_CHR_H_INT, FULL_CHR_H_INP, ACCURATE_RND = 1 << 1, 1 << 13, 1 << 14, 1 << 18


def pyav() -> Any:
    """PyAV, or one sentence on how to get it."""
    try:
        import av
    except ImportError as error:
        raise BackendUnavailable(
            f"video needs PyAV ({error}): pip install 'pix2pix_fast[video]'"
        ) from error
    if int(av.__version__.split(".")[0]) > 18:  # other arguments of `open`, another FFmpeg
        raise BackendUnavailable(
            f"video needs PyAV 17.1 to 18, found {av.__version__}: pip install 'pix2pix_fast[video]'"
        )
    av.logging.set_level(None)
    return av


def said(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__)


class Converter:
    """Decoded frames -> upright RGB or gray arrays; one per thread, as it holds scaler contexts.

    libswscale resizes planes, our core turns them into RGB and back: exact, and twice as fast as
    libswscale's own exact conversion (256x256: 0.17 ms for 0.38, 0.15 for 0.33, on an AVX2 EPYC)."""

    def __init__(self) -> None:
        from av import VideoFrame
        from av.video.reformatter import VideoReformatter

        self._new: Any = VideoReformatter
        self._blank: Any = VideoFrame
        self._scalers: dict[Any, Any] = {}
        self._turns: dict[int, tuple[bool, bool, bool]] = {}
        # Without the two flags chroma is halved again on its way and grays come out tinted.
        self._flags = BILINEAR | ACCURATE_RND
        self._exact = self._flags | FULL_CHR_H_INT | FULL_CHR_H_INP

    def _scale(self, frame: Any, key: Any, **options: Any) -> Any:
        scaler = self._scalers.get(key)
        if scaler is None:
            scaler = self._scalers[key] = self._new()
        try:
            return scaler.reformat(frame, threads=1, **options)
        except (pyav().FFmpegError, ValueError) as error:  # libswscale, of extreme shapes
            raise VideoError(
                f"a picture of {frame.width}x{frame.height} cannot be resized to "
                f"{options['width']}x{options['height']} ({said(error)}); a fit of native needs no resizing"
            ) from error

    def orientation(self, frame: Any) -> tuple[bool, bool, bool]:
        """(transpose, then mirror left-right, then top-bottom) that makes a frame upright.

        Looked up once for each rotation that a clip has: a frame whose side_data was asked for is a
        cycle of references in PyAV and stays until the garbage collector comes (100 KB each)."""
        turn = self._turns.get(frame.rotation)
        if turn is None:
            turn = self._turns[frame.rotation] = orientation(frame)
        return turn

    def upright_size(self, frame: Any) -> tuple[int, int]:
        """(h, w) of a frame once it is upright."""
        size = (frame.height, frame.width)
        return size[::-1] if self.orientation(frame)[0] else size

    def array(self, frame: Any, channels: int, size: tuple[int, int] | None) -> np.ndarray:
        """(h, w) or (h, w, 3) uint8, full range, upright; size is (h, w), None the frame's own."""
        transposed, flip_x, flip_y = self.orientation(frame)
        h, w = size or self.upright_size(frame)
        if transposed:
            h, w = w, h
        kind = frame.format
        if kind.is_rgb or len(kind.components) < 3:
            array = self._from_rgb(frame, channels, h, w)
        else:
            array = self._from_yuv(frame, channels, h, w)
        if transposed:
            array = array.swapaxes(0, 1)
        if flip_x:
            array = array[:, ::-1]
        if flip_y:
            array = array[::-1]
        return np.ascontiguousarray(array)

    def _from_yuv(self, frame: Any, channels: int, h: int, w: int) -> np.ndarray:
        matrix, full = colours(frame)
        if frame.format.name not in PLANAR or (frame.height, frame.width) != (h, w):
            # Another size and subsampling; values keep matrix and range. libswscale takes yuvj for
            # full range whatever it is told, so both sides are told what is true.
            levels = FULL if full else LIMITED
            frame = self._scale(
                frame,
                (frame.format.name, frame.height, frame.width, h, w, full),
                width=w,
                height=h,
                format="yuv444p",
                interpolation=self._flags,
                src_colorspace=BT709,
                dst_colorspace=BT709,
                src_color_range=levels,
                dst_color_range=levels,
            )
        array = np.empty((h, w, 3)[: 2 if channels == 1 else 3], np.uint8)
        planes = frame.planes
        strides = [plane.line_size for plane in planes[:3]]
        chroma = PLANAR[frame.format.name]
        _core.yuv_to_rgb(planes[:3], strides, chroma, MATRICES[matrix], full, array)
        return array

    def _from_rgb(self, frame: Any, channels: int, h: int, w: int) -> np.ndarray:
        kind = "gray" if channels == 1 else "rgb24"
        matrix, full = colours(frame)
        made = self._scale(
            frame,
            (h, w, kind),
            width=w,
            height=h,
            format=kind,
            interpolation=self._exact,
            src_colorspace=matrix,
            src_color_range=FULL if full else LIMITED,
            dst_color_range=FULL,
        )
        array: np.ndarray = made.to_ndarray()
        return array

    def resized(self, picture: np.ndarray, h: int, w: int, channels: int = 3) -> np.ndarray:
        """A uint8 picture as (h, w, 3), or as (h, w) for one channel."""
        kind = "gray" if channels == 1 else "rgb24"
        made = self._scale(
            self._frame(picture),
            ("resize", picture.shape, kind),
            width=w,
            height=h,
            format=kind,
            interpolation=self._exact,
            src_color_range=FULL,
            dst_color_range=FULL,
        )
        array: np.ndarray = made.to_ndarray()
        return array

    def yuv(self, picture: np.ndarray, h: int, w: int) -> Any:
        """A uint8 picture as an (h, w) frame for the encoder: BT.709, limited range, 4:2:0."""
        if picture.shape[:2] == (h, w):
            frame = self._blank(w, h, "yuv420p")
            strides = [plane.line_size for plane in frame.planes]
            picture = np.ascontiguousarray(picture)
            _core.rgb_to_yuv(picture, frame.planes, strides, (1, 1), MATRICES[BT709], False)
        else:  # resizing and converting in one step: faster than resizing three full planes
            frame = self._scale(
                self._frame(picture),
                ("yuv", picture.shape, h, w),
                width=w,
                height=h,
                format="yuv420p",
                interpolation=self._flags,
                dst_colorspace=BT709,
                src_color_range=FULL,
                dst_color_range=LIMITED,
            )
        frame.colorspace, frame.color_range = BT709, LIMITED
        return frame

    @staticmethod
    def _frame(picture: np.ndarray) -> Any:
        from av import VideoFrame

        return VideoFrame.from_ndarray(picture, "gray" if picture.ndim == 2 else "rgb24")


PLANAR = {  # 8-bit formats of three planes -> how often (x, y) chroma is halved
    f"{kind}{sampling}p": halves
    for kind in ("yuv", "yuvj")
    for sampling, halves in (("420", (1, 1)), ("422", (1, 0)), ("440", (0, 1)), ("444", (0, 0)))
}
MATRICES = {  # libswscale's numbers -> (kr, kb)
    1: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
}
KNOWN = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}  # ITU-T H.273's numbers -> libswscale's


def colours(frame: Any) -> tuple[int, bool]:
    """(matrix in libswscale's numbers, full range) of a frame; unsaid: BT.709 from 720 lines."""
    unsaid = BT709 if frame.height >= 720 or frame.width >= 1280 else BT601
    full = frame.color_range == FULL or frame.format.name.startswith("yuvj")
    return KNOWN.get(int(frame.colorspace), unsaid), full


def is_known_matrix(frame: Any) -> bool:
    """Whether `colours` is right: 0 is RGB's, 2 and 3 say nothing."""
    return int(frame.colorspace) in {*KNOWN, 0, 2, 3}


def orientation(frame: Any) -> tuple[bool, bool, bool]:
    """As Converter.orientation, from the frame's display matrix."""
    with suppress(Exception):
        matrix = frame.side_data.get("DISPLAYMATRIX")
        if matrix is not None:
            a, b, _, c, d = (int(value) for value in np.frombuffer(bytes(matrix), np.int32)[:5])
            if abs(a) + abs(d) >= abs(b) + abs(c):
                return False, a < 0, d < 0
            return True, c < 0, b < 0
    return False, False, False
