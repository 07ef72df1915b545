"""A film's planes to RGB and back: against a float64 reference, and against libswscale."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tiny import child

from pix2pix_fast import _core

SIZES = [(1, 1), (1, 2), (2, 1), (2, 2), (3, 3), (5, 8), (16, 17), (33, 34), (64, 50)]
CHROMA = [(1, 1), (1, 0), (0, 1), (0, 0)]
MATRICES = {"601": (0.299, 0.114), "709": (0.2126, 0.0722), "2020": (0.2627, 0.0593)}

# float32 sums of at most five terms below 2^10, each product rounded to 2^-24 of itself: 5 * 2^-14
# and less, far below this. Beyond it of a tie both neighbours are right.
FLOAT = 1e-3


def planes_of(h: int, w: int, chroma: tuple[int, int], seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    small = (-(-h // 2 ** chroma[1]), -(-w // 2 ** chroma[0]))
    return [rng.integers(0, 256, shape, np.uint8) for shape in ((h, w), small, small)]


def flat(planes: list[np.ndarray], margin: int) -> tuple[list[np.ndarray], list[int]]:
    """As PyAV hands planes out: bytes in a row, lines longer than the picture."""
    wide = [np.pad(plane, ((0, 0), (0, margin)), constant_values=77) for plane in planes]
    return [plane.ravel() for plane in wide], [plane.shape[1] for plane in wide]


def levels(full: bool) -> tuple[float, float, float]:
    return (1.0, 0.0, 1.0) if full else (219 / 255, 16.0, 224 / 255)


def grow(plane: np.ndarray, size: int, axis: int, centred: bool) -> np.ndarray:
    """Twice as many rows (between two, centred) or columns (in line with the even ones)."""
    index = np.arange(size)
    near = index // 2
    weight = 0.25 if centred else 0.5
    far = np.where(index % 2, near + 1, near - 1 if centred else near)
    far = np.clip(far, 0, plane.shape[axis] - 1)
    return (1 - weight) * plane.take(near, axis) + weight * plane.take(far, axis)


def exact_rgb(planes: list[np.ndarray], chroma: Any, k: Any, full: bool) -> np.ndarray:
    (kr, kb), (luma, black, scale) = k, levels(full)
    y, u, v = (plane.astype(float) for plane in planes)
    h, w = y.shape
    if chroma[1]:
        u, v = (grow(plane, h, 0, True) for plane in (u, v))
    if chroma[0]:
        u, v = (grow(plane, w, 1, False) for plane in (u, v))
    y, u, v = (y - black) / luma, (u - 128) / scale, (v - 128) / scale
    r, b = y + (2 - 2 * kr) * v, y + (2 - 2 * kb) * u
    g = (y - kr * r - kb * b) / (1 - kr - kb)
    return np.clip(np.stack([r, g, b], 2), 0, 255)


def exact_yuv(rgb: np.ndarray, chroma: Any, k: Any, full: bool) -> list[np.ndarray]:
    (kr, kb), (luma, black, scale) = k, levels(full)
    r, g, b = (rgb[..., c].astype(float) for c in range(3))
    y = kr * r + (1 - kr - kb) * g + kb * b
    u, v = (b - y) / (2 - 2 * kb) * scale + 128, (r - y) / (2 - 2 * kr) * scale + 128
    planes = [y * luma + black]
    for plane in (u, v):
        if chroma[1]:  # the mean of two rows; an odd last one stands alone
            rows = np.concatenate([plane, plane[-1:]]) if len(plane) % 2 else plane
            plane = (rows[::2] + rows[1::2]) / 2
        if chroma[0]:
            w = plane.shape[1]
            wide = np.pad(plane, ((0, 0), (1, 1)), "edge")
            plane = (wide[:, :w] + 2 * wide[:, 1 : w + 1] + wide[:, 2 : w + 2])[:, ::2] / 4
        planes.append(plane)
    return [np.clip(plane, 0, 255) for plane in planes]


@pytest.mark.parametrize("chroma", CHROMA)
@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", MATRICES)
def test_both_ways_round_the_exact_value(matrix: str, full: bool, chroma: tuple[int, int]) -> None:
    k = MATRICES[matrix]
    for seed, (h, w) in enumerate(SIZES):
        planes = planes_of(h, w, chroma, seed)
        room = np.full((h + 1, w, 3), 77, np.uint8)
        rgb = room[:h]
        _core.yuv_to_rgb(*flat(planes, seed), chroma, k, full, rgb)
        assert np.abs(rgb - exact_rgb(planes, chroma, k, full)).max() <= 0.5 + FLOAT
        assert (room[h] == 77).all()  # nothing behind the picture is touched
        picture = np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8)
        buffers, strides = flat(planes, seed)
        _core.rgb_to_yuv(picture, buffers, strides, chroma, k, full)
        for plane, buffer, stride in zip(
            exact_yuv(picture, chroma, k, full), buffers, strides, strict=True
        ):
            got = buffer.reshape(-1, stride)
            assert np.abs(got[:, : plane.shape[1]] - plane).max() <= 0.5 + FLOAT
            assert (got[:, plane.shape[1] :] == 77).all()  # nothing beside the picture is touched


@pytest.mark.parametrize("full", [False, True])
def test_gray(full: bool) -> None:
    planes = planes_of(9, 7, (1, 1), 3)
    gray = np.zeros((9, 7), np.uint8)
    _core.yuv_to_rgb(*flat(planes, 2), (1, 1), MATRICES["601"], full, gray)
    luma, black, _ = levels(full)
    expected = np.clip((planes[0].astype(float) - black) / luma, 0, 255)
    assert np.abs(gray - expected).max() <= 0.5 + FLOAT
    buffers, strides = flat(planes, 2)
    _core.rgb_to_yuv(gray, buffers, strides, (1, 1), MATRICES["601"], full)
    got = [buffer.reshape(-1, stride)[:, :-2] for buffer, stride in zip(buffers, strides, strict=True)]
    assert np.abs(got[0] - (gray * luma + black)).max() <= 0.5 + FLOAT
    assert (got[1] == 128).all() and (got[2] == 128).all()


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", ["601", "709"])
def test_against_libswscale(matrix: str, full: bool) -> None:
    """On 4:4:4 nothing is interpolated: both may round once, and libswscale's tables have 13 bits
    per factor and may err by 2^-13 * 255 of each of two differences more: within 1 level of ours."""
    av: Any = pytest.importorskip("av")
    from pix2pix_fast.video_frames import BT601, BT709, FULL, LIMITED

    rng = np.random.default_rng(1)
    rgb = rng.integers(0, 256, (32, 32, 3), np.uint8)
    k, number = MATRICES[matrix], BT601 if matrix == "601" else BT709
    frame = av.VideoFrame(32, 32, "yuv444p")
    strides = [plane.line_size for plane in frame.planes]
    _core.rgb_to_yuv(rgb, frame.planes, strides, (0, 0), k, full)
    ours = np.empty_like(rgb)
    _core.yuv_to_rgb(frame.planes, strides, (0, 0), k, full, ours)
    theirs = frame.reformat(
        format="rgb24",
        src_colorspace=number,
        src_color_range=FULL if full else LIMITED,
        dst_color_range=FULL,
        interpolation="ACCURATE_RND",
    ).to_ndarray()
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    # and the way there and back costs 8-bit rounding only: half a level each of Y, U and V
    scale = 1 if full else 255 / 219
    assert np.abs(ours.astype(int) - rgb).max() <= np.ceil(0.5 * scale * (1 + 2) + 0.5)


def test_nothing_is_read_behind_a_picture_or_a_plane() -> None:
    """Each ends where a page begins that cannot be read."""
    child("""
import ctypes, mmap
import numpy as np
from pix2pix_fast import _core

page = mmap.PAGESIZE
memory = mmap.mmap(-1, 2 * page)
start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + page), ctypes.c_size_t(page), 0) == 0

def at_the_end(size):
    return np.frombuffer(memory, np.uint8, size, page - size)

k = 0.299, 0.114
for w in (1, 2, 5, 33):
    half = (w + 1) // 2
    planes, strides = [np.zeros(2 * w, np.uint8), *np.zeros((2, half), np.uint8)], [w, half, half]
    for channels in (1, 3):
        shape = (2, w, 3)[: 2 + (channels > 1)]
        _core.rgb_to_yuv(at_the_end(2 * w * channels).reshape(shape), planes, strides, (1, 1), k, True)
        for place in range(3):
            edge = planes.copy()
            edge[place] = at_the_end(planes[place].size)
            _core.yuv_to_rgb(edge, strides, (1, 1), k, True, np.zeros(shape, np.uint8))
""")


def test_what_does_not_fit_is_refused() -> None:
    k, rgb = MATRICES["601"], np.zeros((4, 4, 3), np.uint8)
    planes, strides = flat(planes_of(4, 4, (1, 1), 0), 0)
    for args, told in (
        ((planes[:2], strides[:2], (1, 1), k, False, rgb), "expected three"),
        ((planes, [3, 2, 2], (1, 1), k, False, rgb), "plane 0: expected 4 rows of 4 bytes"),
        ((planes, strides, (0, 0), k, False, rgb), "plane 1: expected 4 rows of 4 bytes"),
        ((planes, [-4, 2, 2], (1, 1), k, False, rgb), "plane 0"),
        ((planes, [4, 1 << 40, 2], (1, 1), k, False, rgb), "plane 1"),
        ((planes, strides, (2, 1), k, False, rgb), "chroma: expected 0 or 1"),
        ((planes, strides, (1, -1), k, False, rgb), "chroma: expected 0 or 1"),
        *(
            ((planes, strides, (1, 1), wrong, False, rgb), "k: expected")
            for wrong in ((0.6, 0.5), (0.5, 0.5), (0, 0.1), (0.1, 0))
        ),
        (([planes[0][::2], *planes[1:]], strides, (1, 1), k, False, rgb), "plane 0: expected a contiguous"),
        (([planes[0].reshape(4, 4), *planes[1:]], strides, (1, 1), k, False, rgb), "plane 0: expected a"),
        ((planes, strides, (1, 1), k, False, rgb[:0]), "size: expected 1 to 65536, got 0 x 4"),
        ((planes, strides, (1, 1), k, False, np.zeros((4, 4, 4), np.uint8)), "dst: expected"),
        ((planes, strides, (1, 1), k, False, np.zeros(4, np.uint8)), "dst: expected"),
    ):
        with pytest.raises(ValueError, match=told):
            _core.yuv_to_rgb(*args)
    with pytest.raises((ValueError, BufferError)):
        _core.rgb_to_yuv(rgb, [bytes(plane) for plane in planes], strides, (1, 1), k, False)
