"""The door of the C++ module by itself: what would be read or written beyond an array is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tiny import tiny_model

from pix2pix_fast import _core
from pix2pix_fast.errors import BackendUnavailable

MODEL = tiny_model()
LAYERS, TENSORS = MODEL.layers("image"), dict(MODEL.core_tensors("image"))


def engine(layers: Any = LAYERS, tensors: Any = TENSORS, **options: Any) -> Any:
    return _core.Engine(layers, tensors, **{"size": (8, 8), **options})


WEIGHT = TENSORS["e2.weight"]


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: engine([]), "layers: expected at least 4, got none"),
        (lambda: engine([{"name": "e1"}]), "layer: the key 'op' is missing"),
        (lambda: engine([{**LAYERS[0], "op": "conv"}]), "'e1': unknown op 'conv'"),
        (lambda: engine(precision="f8"), "precision: expected 'f32', 'bf16' or 'f16', got 'f8'"),
        (lambda: engine(backend="tpu"), "backend: expected 'cpu' or 'cuda', got 'tpu'"),
        (lambda: engine(threads=-1), "threads: expected 0 .* got -1"),
        (lambda: engine(threads=1025), "threads must be 1 to 1024, got 1025"),
        *(
            (lambda tensors=tensors: engine(tensors={**TENSORS, **tensors}), words)
            for tensors, words in (
                ({"e2.weight": WEIGHT.astype(float)}, "'e2.weight': expected a C-contiguous float32"),
                ({"e2.weight": np.asfortranarray(WEIGHT)}, "'e2.weight': expected a C-contiguous"),
                ({"e2.weight": WEIGHT[1:]}, r"'e2.weight': expected shape \(16, 8, 4, 4\), got \(15,"),
                ({"e2.norm.weight": np.ones(15, np.float32)}, "'e2.norm.weight': expected shape"),
                ({"e2.norm.bias": np.ones(15, np.float32)}, "'e2.norm.bias': expected shape"),
                ({"e1.bias": np.ones(7, np.float32)}, "'e1.bias': expected shape"),
            )
        ),
        (
            lambda: engine(tensors={k: v for k, v in TENSORS.items() if k != "d1.weight"}),
            "tensor 'd1.weight' is missing",
        ),
    ],
)
def test_what_makes_no_engine(made: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        made()


def test_bf16_needs_its_instructions() -> None:
    with pytest.raises(BackendUnavailable, match="'bf16' needs .* the room in use is 'scalar'"):
        engine(precision="bf16", isa="scalar")


def picture(*shape: int, dtype: Any = np.uint8) -> np.ndarray:
    return np.zeros(shape or (1, 8, 8, 3), dtype)


READ_ONLY = picture()
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    ("src", "dst", "words"),
    [
        (picture(8, 8, 3), picture(), "src: expected 4 dimensions .* got 3"),
        (picture(1, 8, 8, 4), picture(), "src: the model has 3 channels, the array 4"),
        (picture(), picture(1, 8, 8, 2), "dst: the model has 3 channels, the array 2"),
        (picture(1, 0, 8, 3), picture(1, 0, 8, 3), "src: axis 1 has an impossible size 0"),
        (picture(1, 8, 0, 3), picture(1, 8, 0, 3), "src: axis 2 has an impossible size 0"),
        (np.broadcast_to(np.uint8(0), (1, 1, (1 << 24) + 1, 3)), picture(), "src: axis 2"),
        (picture(dtype=np.int32), picture(), "src: expected uint8, uint16 or float32, got int32"),
        (picture(dtype=">u2"), picture(), "src: expected uint8, uint16 or float32, got >u2"),
        (READ_ONLY, READ_ONLY, "dst: the array is read-only"),
        *(
            (picture(), picture(*shape), "dst: expected the size of src, 1x8x8, got")
            for shape in ((2, 8, 8, 3), (1, 7, 8, 3), (1, 8, 7, 3))
        ),
    ],
)
def test_pictures_that_do_not_fit(src: np.ndarray, dst: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        engine().run(src, dst)


def test_numbers_that_are_out_of_range() -> None:
    core = engine()
    for pair in ((1.0, 1.0), (1.0, 0.0), (0.0, np.nan)):
        with pytest.raises(ValueError, match="value_range: expected low < high"):
            core.run(picture(), picture(), value_range=pair)
    for repeats in (0, 1001):
        with pytest.raises(ValueError, match="repeats: expected 1 to 1000"):
            core.timed(8, 8, repeats)


def kernel(h: int = 4, w: int = 4, weight: Any = (5, 2, 4, 4), **options: Any) -> Any:
    arrays = {
        name: np.zeros(value, np.float32) if name in ("skip", "bias", "scale", "shift") else value
        for name, value in options.items()
    }
    src = np.zeros((h, w, 2), np.float32)
    name = arrays.pop("name", "scalar/conv4x4s2_direct_f32")
    return _core.run_kernel(name, src, np.zeros(weight, np.float32), **arrays)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weight": (5, 2, 4, 3)}, "weight: expected 4x4 taps"),
        ({"weight": (5, 2, 3, 4)}, "weight: expected 4x4 taps"),
        ({"weight": (5, 2, 16)}, "weight: "),
        ({"weight": (5, 3, 4, 4)}, "weight: expected 2 input channels, got 3"),
        ({"name": "scalar/deconv4x4s2_direct_f32"}, "weight: expected 2 input channels, got 5"),
        ({"skip": (3, 4, 1)}, "skip: expected the size of src"),
        ({"skip": (4, 3, 1)}, "skip: expected the size of src"),
        ({"bias": 4}, "bias: expected 5 values"),
        ({"scale": 1, "shift": 2}, "scale and shift: expected 2 values"),
        ({"scale": 2, "shift": 1}, "scale and shift: expected 2 values"),
        ({"scale": 2}, "scale and shift: expected 2 values"),
        ({"h": 3}, "a convolution needs even sizes, got 3x4"),
        ({"w": 3}, "a convolution needs even sizes, got 4x3"),
        ({"h": 0}, "sizes must be positive"),
        ({"threads": 0}, "threads must be 1..64"),
        ({"threads": 65}, "threads must be 1..64"),
    ],
)
def test_kernels_get_what_fits(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        kernel(**options)
