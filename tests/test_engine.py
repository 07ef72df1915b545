"""Engine: what it says of itself, lists, sizes, dropout, streams, closing, and being light."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import child, noise, tiny_model

import pix2pix_fast
from pix2pix_fast import Engine, _core, backends, model
from pix2pix_fast import engine as module

MODEL = tiny_model()


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(MODEL, size=(32, 32)) as engine:
        yield engine


# What it says of itself


def test_info_and_stats() -> None:
    named = model.Model(MODEL.architecture, MODEL.tensors, {"name": "x", "direction": "BtoA"})
    with Engine(named, threads=1, size=(24, 40)) as engine:
        info = engine.info
        assert info["name"] == "x"
        assert info["direction"] == "BtoA"
        assert info["size"] == (24, 40)
        assert (info["in_channels"], info["out_channels"]) == (3, 3)
        assert (info["depth"], info["ngf"], info["norm"], info["dropout"]) == (3, 8, "image", None)
        assert (info["backend"], info["precision"], info["threads"]) == ("cpu", "f32", 1)
        assert info["isa"] in ("scalar", "avx2", "avx512", "avx512bf16", "amx")
        assert "digest" in info
        info["name"] = "changed"
        assert engine.info["name"] == "x"
        assert engine.stats["calls"] == 0
        assert engine.stats["p50_ms"] is None
        for _ in range(3):
            engine.translate(noise((20, 24, 3)))
        stats = engine.stats
        assert stats["calls"] == 3
        assert 0 < stats["p50_ms"] <= stats["p95_ms"]
        assert stats["workspace_bytes"] > 0
        assert "cpu" in repr(engine)
    assert "closed" in repr(engine)
    assert engine.stats["calls"] == 3
    assert engine.info["name"] == "x"


def test_numpys_integers_are_integers() -> None:
    arguments = {"threads": np.int64(1), "dropout": np.uint64(7), "size": (np.int32(32), np.int64(24))}
    with Engine(tiny_model(), **arguments) as engine:
        info = json.loads(json.dumps(engine.info))
    assert (info["threads"], info["dropout"], info["size"]) == (1, 7, [32, 24])


def test_size_comes_from_the_card() -> None:
    card = {"size": [48, 64]}
    made = model.Model(MODEL.architecture, MODEL.tensors, card)
    with Engine(made) as engine:
        assert engine.info["size"] == made.first_size() == (48, 64)
    with Engine(MODEL) as engine:
        assert engine.info["size"] == (256, 256)
    for size in ([8192, 8192], [65536, 65536], [65536, 999]):  # not to be believed
        made = model.Model(MODEL.architecture, MODEL.tensors, {"size": size})
        with Engine(made) as engine:
            assert engine.info["size"] == (256, 256)
    made = model.Model(MODEL.architecture, MODEL.tensors, {"size": [2048, 1024]})
    with Engine(made) as engine:  # dear to warm up for
        assert engine.info["size"] == (2048, 1024) and made.first_size() == (256, 256)
        assert engine.stats["workspace_bytes"] < 16 << 20


def test_a_name_that_is_no_model_gets_those_that_are() -> None:
    words = r"nor a model of the package \(edges2photo, facades_labels2photo\): 'facade'"
    with pytest.raises(FileNotFoundError, match=words):
        Engine("facade")


@pytest.mark.parametrize(("depth", "side"), [(6, 256), (7, 128), (8, 256), (9, 512)])
def test_size_of_a_model_without_a_card(depth: int, side: int) -> None:
    assert tiny_model(depth=depth, ngf=2).own_size() == (side, side)


def test_weights_may_lie_anywhere_in_memory(engine: Engine) -> None:
    """In a buffer behind a header of odd length, say: the C++ reads them as aligned numbers."""
    odd: dict[str, np.ndarray] = {}
    for name, value in MODEL.tensors.items():
        odd[name] = np.zeros(value.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(value.shape)
        odd[name][...] = value
        assert not odd[name].flags.aligned
    image = noise((20, 24, 3))
    with Engine(model.Model(MODEL.architecture, odd, {}), size=(32, 32)) as other:
        np.testing.assert_array_equal(other.translate(image), engine.translate(image))
    with pytest.raises(ValueError, match=r"'e1\.weight': expected numbers at multiples of 4 bytes"):
        _core.Engine(MODEL.layers("image"), odd, size=(32, 32))


def test_a_file_and_a_model_give_the_same(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    model.save(MODEL, path)
    image = noise((20, 24, 3))
    with Engine(path) as from_path, Engine(str(path)) as from_text:
        assert from_path.info["digest"]
        np.testing.assert_array_equal(from_path.translate(image), engine.translate(image))
        np.testing.assert_array_equal(from_text.translate(image), engine.translate(image))
    with Engine(MODEL) as again:  # the first engine did not use the caller's model up
        np.testing.assert_array_equal(again.translate(image), engine.translate(image))


def test_backends_say_what_is_missing(caplog: pytest.LogCaptureFixture) -> None:
    reasons = backends.available()
    assert reasons["cpu"] == ""
    assert reasons["cuda"] == _core.cuda()["missing"]
    assert "TensorRT" in reasons["tensorrt"]
    with caplog.at_level(logging.INFO, "pix2pix_fast"):
        assert backends.choose("auto").name == "cpu"
    assert "'cpu'" in caplog.text


def test_kernels_are_listed() -> None:
    ids = pix2pix_fast.kernels()
    assert any(name.startswith("scalar/conv4x4s2") for name in ids)
    assert all(name.count("/") == 1 for name in ids)


def test_at_most_ten_names() -> None:
    assert len(pix2pix_fast.__all__) <= 10
    assert all(hasattr(pix2pix_fast, name) for name in pix2pix_fast.__all__)


# Lists, batches, sizes


def test_any_size_keeps_its_size(engine: Engine) -> None:
    for h, w in [(1, 1), (1, 37), (37, 1), (2, 3), (8, 8), (9, 7), (64, 33), (110, 70)]:
        assert engine.translate(noise((h, w, 3))).shape == (h, w, 3)


def test_padding_is_reflection_at_right_and_bottom(engine: Engine) -> None:
    for h, w in [(13, 21), (3, 2), (2, 50)]:
        image = noise((h, w, 3))
        padded = np.pad(image, ((0, -h % 8), (0, -w % 8), (0, 0)), mode="reflect")
        np.testing.assert_array_equal(engine.translate(image), engine.translate(padded)[:h, :w])


def test_every_picture_of_a_batch_stands_alone(engine: Engine) -> None:
    batch = noise((7, 20, 24, 3))
    batch[2] = 255
    together = engine.translate(batch)
    for image, result in zip(batch, together, strict=True):
        np.testing.assert_array_equal(engine.translate(image), result)
    for result, alone in zip(engine.translate(list(batch)), together, strict=True):
        np.testing.assert_array_equal(result, alone)


def test_a_bad_picture_spoils_only_itself(engine: Engine) -> None:
    batch = noise((4, 20, 24, 3), "float32")
    want = engine.translate(batch)
    for bad in (np.nan, np.inf, -np.inf, 1e-42):
        spoilt = batch.copy()
        spoilt[1] = bad
        result = engine.translate(spoilt)
        np.testing.assert_array_equal(result[[0, 2, 3]], want[[0, 2, 3]])
        if not np.isfinite(bad):
            assert np.isnan(result[1]).all()  # seen, not smoothed into a plausible picture
    constant = engine.translate(np.full((16, 16, 3), 0.5, np.float32))
    assert np.isfinite(constant).all()


def test_one_bad_pixel_is_seen_everywhere() -> None:
    for room in _core.cpu()["runnable"]:
        core = _core.Engine(
            tiny_model().layers("image"), tiny_model().core_tensors("image"), isa=room, size=(24, 32)
        )
        picture = noise((1, 24, 32, 3), "float32")
        picture[0, 3, 4, 1] = np.nan
        result = np.zeros_like(picture)
        core.run(picture, result)
        assert np.isnan(result).all(), room


def test_an_out_may_be_another_picture_of_the_list(engine: Engine) -> None:
    a, b, c = (noise((16, 16, 3), seed=seed) for seed in range(3))
    want = [engine.translate(picture) for picture in (a, b, c)]
    results = engine.translate([a, b, c], out=[b, c, a])
    for result, expected in zip(results, want, strict=True):
        np.testing.assert_array_equal(result, expected)
    whole = np.stack([noise((16, 16, 3), seed=seed) for seed in range(4)])
    want = list(engine.translate(whole))
    results = engine.translate(list(whole), out=list(whole[::-1]))
    for result, expected in zip(results, want, strict=True):
        np.testing.assert_array_equal(result, expected)


def test_an_error_in_a_list_with_out_names_its_picture(engine: Engine) -> None:
    good, room = noise((16, 16, 3)), np.zeros((16, 16, 3), np.uint8)
    bad = np.zeros((16, 16, 7), np.uint8)
    with pytest.raises(ValueError, match=r"^image\[1\]: "):
        engine.translate([good, bad], out=[room, np.zeros_like(room)])
    assert not room.any()  # nothing half-written
    with pytest.raises((TypeError, ValueError), match=r"^image\[1\]: out: "):
        engine.translate([good, good], out=[room, np.zeros((8, 8, 3), np.uint8)])


def test_closing_during_private_timing_is_safe() -> None:
    """The core's own handle keeps the model alive through a call (it crashed)."""
    code = """
import threading, time
from pix2pix_fast import _core
from tiny import tiny_model
net = tiny_model()
for _ in range(20):
    core = _core.Engine(net.layers("image"), net.core_tensors("image"), size=(64, 64))
    thread = threading.Thread(target=lambda: core.timed(64, 64, 200))
    thread.start()
    time.sleep(0.002)
    core.close()
    thread.join()
print("alive")
"""
    assert child(code) == "alive"


def test_mixed_lists_keep_order_and_kind(engine: Engine) -> None:
    small, large = noise((20, 24, 3)), noise((33, 17, 3))
    mixed = [small, small, large, Image.fromarray(small), small.astype("uint16") * 257, small[None]]
    mixed += [large, small, small, small, small, small, noise((2, 20, 24, 3))]
    results = engine.translate(mixed)
    for image, result in zip(mixed, results, strict=True):
        assert type(result) is type(image)
        np.testing.assert_array_equal(np.asarray(result), np.asarray(engine.translate(image)))
    assert engine.translate([]) == []
    assert engine.translate(np.zeros((0, 20, 24, 3), np.uint8)).shape == (0, 20, 24, 3)


# Dropout


@pytest.fixture(scope="module")
def dropping() -> Iterator[Engine]:
    with Engine(tiny_model(dropout=("d1", "d2")), size=(32, 32), dropout=7) as engine:
        yield engine


def test_dropout_repeats_and_advances_by_frame(dropping: Engine) -> None:
    image = noise((20, 24, 3))
    frames = list(dropping.stream([image] * 6))
    assert len({frame.tobytes() for frame in frames}) == 6
    for results in (
        list(dropping.stream([image] * 6)),
        dropping.translate([image] * 6),
        list(dropping.translate(np.stack([image] * 6))),
    ):
        assert [result.tobytes() for result in results] == [frame.tobytes() for frame in frames]
    np.testing.assert_array_equal(dropping.translate(image), frames[0])
    grouped = list(dropping.stream([np.stack([image] * 2), np.stack([image] * 4)]))
    np.testing.assert_array_equal(np.concatenate(grouped), frames)


def test_dropout_depends_on_the_seed_and_is_off_by_default() -> None:
    image = noise((20, 24, 3))
    net = tiny_model(dropout=("d1", "d2"))
    results = {}
    for seed in (None, 0, 1, 2**64 - 1):
        with Engine(net, size=(32, 32), dropout=seed) as engine:
            results[seed] = engine.translate(image).tobytes()
    assert len(set(results.values())) == 4
    with Engine(tiny_model(), size=(32, 32)) as engine:
        assert engine.translate(image).tobytes() == results[None]


# Streams


def test_stream_is_lazy_ordered_and_bounded(engine: Engine) -> None:
    pulled = 0

    def source() -> Iterator[np.ndarray]:
        nonlocal pulled
        for index in range(20):
            pulled += 1
            yield noise((20, 24, 3), seed=index)

    stream = engine.stream(source())
    time.sleep(0.01)
    assert pulled == 0
    for index, result in enumerate(stream):
        assert pulled <= index + module.STREAM_LOOK_AHEAD
        want = engine.translate(noise((20, 24, 3), seed=index))
        np.testing.assert_array_equal(result, want)
        time.sleep(0.001 * (index % 3))
    assert pulled == 20


def test_stream_reads_pictures_that_share_one_buffer(engine: Engine) -> None:
    def source() -> Iterator[np.ndarray]:
        buffer = np.empty((20, 24, 3), np.uint8)
        for index in range(12):
            buffer[...] = noise((20, 24, 3), seed=index)
            yield buffer

    for index, result in enumerate(engine.stream(source())):
        want = engine.translate(noise((20, 24, 3), seed=index))
        np.testing.assert_array_equal(result, want)


def test_a_slow_source_does_not_hold_results_back(engine: Engine) -> None:
    """A live source gives one picture at a time: the first result must not wait for the fourth."""
    pulled: list[float] = []

    def source() -> Iterator[np.ndarray]:
        for _ in range(4):
            time.sleep(0.25)
            pulled.append(time.perf_counter())
            yield noise((20, 24, 3))

    next(engine.stream(source()))
    assert len(pulled) <= 2


def test_stream_errors_name_the_frame(engine: Engine) -> None:
    image = noise((20, 24, 3))
    stream = engine.stream([image, image, image[0, 0], image])
    assert [next(stream).shape, next(stream).shape] == [image.shape] * 2
    with pytest.raises(ValueError, match=r"^frame 2: expected axes"):
        next(stream)
    assert list(stream) == []
    with pytest.raises(FileNotFoundError, match="frame 1: No such file or directory: 'no.png'"):
        list(engine.stream([image, "no.png"]))
    with pytest.raises(TypeError, match="frame 0: expected .* got list"):
        list(engine.stream([[image]]))


def test_an_error_of_the_source_comes_after_the_frames_before_it(engine: Engine) -> None:
    class Own(Exception):
        def __init__(self, a: int, b: int) -> None:
            super().__init__(a, b)

    def source() -> Iterator[np.ndarray]:
        yield noise((20, 24, 3))
        yield noise((20, 24, 3))
        raise Own(1, 2)

    stream = engine.stream(source())
    next(stream)
    next(stream)
    with pytest.raises(Own):
        next(stream)


def test_closing_a_stream_stops_the_work(engine: Engine) -> None:
    pulled = 0

    def source() -> Iterator[np.ndarray]:
        nonlocal pulled
        while True:
            pulled += 1
            yield noise((64, 64, 3))

    before = threading.active_count()
    stream: Any = engine.stream(source())
    next(stream)
    stream.close()
    at_close = pulled
    calls = engine.stats["calls"]
    deadline = time.perf_counter() + 5
    while threading.active_count() > before and time.perf_counter() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before
    assert pulled == at_close
    assert engine.stats["calls"] <= calls + 1
    image = noise((20, 24, 3))
    assert engine.translate(image).shape == image.shape


def test_two_streams_at_once(engine: Engine) -> None:
    ones = [noise((20, 24, 3), seed=index) for index in range(8)]
    twos = [noise((28, 16, 3), seed=index) for index in range(8)]
    for one, two, a, b in zip(ones, twos, engine.stream(ones), engine.stream(twos), strict=True):
        np.testing.assert_array_equal(a, engine.translate(one))
        np.testing.assert_array_equal(b, engine.translate(two))


def test_stream_of_paths(engine: Engine, tmp_path: Path) -> None:
    for index in range(5):
        Image.fromarray(noise((20, 24, 3), seed=index)).save(tmp_path / f"{index}.png")
    results = list(engine.stream(sorted(tmp_path.iterdir())))
    for index, result in enumerate(results):
        want = engine.translate(noise((20, 24, 3), seed=index))
        np.testing.assert_array_equal(np.asarray(result), want)


# Closing


def test_close_is_idempotent_and_happens_on_leaving() -> None:
    with Engine(MODEL, size=(8, 8)) as engine:
        pass
    engine.close()
    engine.close()
    with pytest.raises(ValueError, match="closed"):
        engine.translate(noise((8, 8, 3)))


def test_close_waits_for_calls_in_flight() -> None:
    engine = Engine(MODEL, size=(512, 512))
    image = noise((512, 512, 3))
    want = engine.translate(image)
    results: list[np.ndarray] = []
    refused: list[str] = []
    started = threading.Barrier(5)

    def work() -> None:
        started.wait()
        try:
            while True:
                results.append(engine.translate(image))
        except ValueError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    started.wait()
    time.sleep(0.05)
    engine.close()
    in_flight = tuple(engine._calls)
    for thread in threads:
        thread.join()
    assert not in_flight
    assert refused == ["this Engine is closed"] * 4
    assert all(np.array_equal(result, want) for result in results)


def test_opening_and_closing_gives_everything_back() -> None:
    """Memory, threads and descriptors after many engines are what they were after a few.

    In a process of its own, where no thread of another test can end meanwhile. The kernel lists a
    thread for a moment after it was joined, hence the smallest of some readings.
    """
    code = """
import time, numpy, psutil
from pix2pix_fast import Engine
from tiny import tiny_model
process, model, image = psutil.Process(), tiny_model(), numpy.zeros((32, 32, 3), numpy.uint8)

def held(cycles):
    for _ in range(cycles):
        with Engine(model, size=(32, 32), threads=2) as engine:
            engine.translate(image)
    threads = []
    for _ in range(20):
        threads.append(process.num_threads())
        time.sleep(0.01)
    return process.memory_info().rss, min(threads), process.num_fds()

print(*held(30), *held(200))
"""
    memory, threads, files, *after = map(int, child(code).split())
    assert after[0] - memory < 1 << 20
    assert after[1:] == [threads, files]


# Being light


def test_import_loads_numpy_only() -> None:
    heavy = ["torch", "PIL", "safetensors", "click", "rich", "concurrent.futures", "asyncio"]
    loaded = child(
        "import sys, pix2pix_fast; print(*(m for m in sys.modules if '.' not in m or m in "
        f"{heavy}))"
    ).split()
    assert "numpy" in loaded
    assert not set(heavy) & set(loaded)


def test_numpy_pictures_need_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    model.save(MODEL, path)
    code = f"""
import sys, numpy as np, pix2pix_fast
with pix2pix_fast.Engine({str(path)!r}) as engine:
    list(engine.stream([engine.translate(np.zeros((20, 24, 3), np.uint8))]))
print(*sorted({{"torch", "PIL", "click", "rich"}} & set(sys.modules)))
"""
    assert child(code) == ""


def test_a_translated_path_needs_no_torch(tmp_path: Path) -> None:
    path, picture = tmp_path / "tiny.safetensors", tmp_path / "a.png"
    model.save(MODEL, path)
    Image.fromarray(noise((20, 24, 3))).save(picture)
    code = f"""
import sys, pix2pix_fast
print(pix2pix_fast.Engine({str(path)!r}).translate({str(picture)!r}).size, "torch" in sys.modules)
"""
    assert child(code) == "(24, 20) False"
