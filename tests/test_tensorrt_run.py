"""Execution of TensorRT engines: on the fake driver and library the pictures must be the CPU engine's,
every byte must come back, and each failure must say what failed. No GPU has run it."""
# ruff: noqa: E402  (torch may be missing: the imports come after the skip)

from __future__ import annotations

import json
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import fake_driver
import fake_tensorrt
from click.testing import CliRunner
from fake_driver import Cuda
from model_files import random_model
from tiny import noise

from pix2pix_fast import BackendUnavailable, Engine, ForkError, backends, cli, tensorrt
from pix2pix_fast import model as model_file
from pix2pix_fast.architecture import Architecture
from pix2pix_fast.errors import DeviceError
from pix2pix_fast.tensorrt import Driver

MODEL = random_model(Architecture(depth=3, ngf=4, in_channels=3, out_channels=2), seed=1)
SIZE = (24, 32)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Cuda]:
    """A machine with a fake GPU and library; at the end everything must have been given back."""
    fake = Cuda()
    monkeypatch.setenv("P2P_TRT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tensorrt, "driver", lambda: Driver(fake))
    trt = fake_tensorrt.library(fake)
    monkeypatch.setattr(tensorrt, "library", lambda gpu=None: trt)
    fake.trt = trt  # type: ignore[attr-defined]
    yield fake
    assert fake.left() == {}


@pytest.fixture(scope="module")
def want() -> Iterator[Callable[..., Any]]:
    """The CPU engine's answer."""
    with Engine(MODEL, backend="cpu", size=SIZE) as engine:
        yield engine.translate


def on_gpu(**options: Any) -> Engine:
    return Engine(MODEL, backend="tensorrt", size=SIZE, **options)


def assert_same(got: np.ndarray, wanted: np.ndarray) -> None:
    """Within 1 level of 8 bits, and almost always equal: float32 sums in another order."""
    assert got.shape == wanted.shape and got.dtype == wanted.dtype
    if got.dtype == np.uint8:
        difference = np.abs(got.astype(int) - wanted)
        assert difference.max() <= 1 and np.count_nonzero(difference) <= 1 + 0.001 * got.size
    else:
        scale = 65535 if got.dtype == np.uint16 else 1
        # one step of float16 for what is returned in it
        bound = 1e-3 if got.dtype == np.float16 else 1e-4
        assert np.abs(got.astype(float) - wanted.astype(float)).max() <= bound * scale


# Pictures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float64", "float16"])
def test_every_kind_of_pixels(cuda: Cuda, want: Any, dtype: str) -> None:
    with on_gpu() as engine:
        for call in range(4):  # plain, captured, and twice the graph
            picture = noise((*SIZE, 3), dtype, seed=call)
            assert_same(engine.translate(picture), want(picture))


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (24, 32), (25, 31), (40, 8), (100, 70)])
def test_any_size_is_padded_and_cropped(cuda: Cuda, want: Any, size: tuple[int, int]) -> None:
    with on_gpu() as engine:
        for dtype in ("uint8", "float32"):
            picture = noise((*size, 3), dtype)
            assert_same(engine.translate(picture), want(picture))


def test_sizes_in_turn_never_show_the_last_one(cuda: Cuda, want: Any) -> None:
    """Buffers shrink and grow, graphs are dropped and made again."""
    with on_gpu() as engine:
        for size in [(24, 32), (8, 8), (24, 32), (24, 32), (24, 32), (56, 40), (8, 8), (8, 8), (8, 8)]:
            picture = noise((*size, 3), seed=size[0])
            assert_same(engine.translate(picture), want(picture))


def test_batches_go_in_parts(cuda: Cuda, want: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three pictures in a launch: 7 are 3, 3 and 1; each has its own statistics."""
    monkeypatch.setattr(tensorrt, "BATCH_PIXELS", 3 * 512 * 512)
    batch = noise((7, 20, 32, 3))
    batch[1] //= 8
    with on_gpu() as engine:
        for dtype in (np.uint8, np.float32):
            pictures = batch.astype(dtype) / 255 if dtype == np.float32 else batch
            pictures = pictures.astype(dtype)
            before = cuda.calls.count("cuStreamSynchronize")
            assert_same(engine.translate(pictures), want(pictures))
            assert cuda.calls.count("cuStreamSynchronize") - before == 3


def test_strides_and_out(cuda: Cuda, want: Any) -> None:
    picture = noise((48, 64, 3))[::-2, ::2]
    copy = picture.copy()
    out = np.full((24, 64, 2), 7, np.uint8)[:, ::2]
    with on_gpu() as engine:
        assert engine.translate(picture, out=out) is out
        assert_same(out, want(copy))
        assert engine.translate(copy, out=np.empty((24, 32, 2), np.float32)).dtype == np.float32
    assert np.array_equal(picture, copy)


def test_range_and_nan(cuda: Cuda, want: Any) -> None:
    picture = noise((*SIZE, 3), "float32") * 20 - 10
    with on_gpu() as engine:
        got = engine.translate(picture, value_range=(-10, 10))
        assert np.abs(got - want(picture, value_range=(-10, 10))).max() < 20 * 1e-4
        picture[3, 4] = np.nan
        assert np.isnan(engine.translate(picture, value_range=(-10, 10))).all()  # as on a CPU


def test_pictures_and_streams_through_the_api(cuda: Cuda, want: Any) -> None:
    frames = [noise((*SIZE, 3), seed=k) for k in range(6)]
    with on_gpu() as engine:
        for got, frame in zip(engine.stream(frames), frames, strict=True):
            assert_same(got, want(frame))
        both = engine.translate(frames[:2])
        assert_same(both[1], want(frames[1]))


@pytest.mark.parametrize("precision", ["f16", "bf16"])
def test_low_precisions_say_so_and_stay_near(cuda: Cuda, want: Any, precision: Any) -> None:
    picture = noise((*SIZE, 3))
    with on_gpu(precision=precision) as engine:
        assert engine.info["precision"] == precision
        difference = np.abs(engine.translate(picture).astype(float) - want(picture))
        assert 0 < difference.mean() < 4  # the fake rounds the weights alone


def test_stored_statistics(cuda: Cuda) -> None:
    source = random_model(replace(MODEL.architecture, norm="running", trained_norm=""), seed=2)
    picture = noise((*SIZE, 3))
    for norm in ("image", "running"):
        with (
            Engine(source, backend="cpu", norm=norm, size=SIZE) as cpu,  # type: ignore[arg-type]
            Engine(source, backend="tensorrt", norm=norm, size=SIZE) as gpu,  # type: ignore[arg-type]
        ):
            assert_same(gpu.translate(picture), cpu.translate(picture))


# Streams, graphs, threads -------------------------------------------------------------------------


def test_the_first_call_launches_a_graph(cuda: Cuda) -> None:
    """The constructor has warmed up and captured: a call is one copy in, one launch, one wait."""
    with on_gpu() as engine:
        cuda.calls.clear()
        engine.translate(noise((*SIZE, 3)))
        assert cuda.calls == ["cuCtxPushCurrent_v2", "cuGraphLaunch", "cuStreamSynchronize", "cuCtxPopCurrent_v2"]
        assert cuda.contexts[0]._stream in cuda.streams and cuda.contexts[0]._stream != 0
        assert engine.stats["calls"] == 1


def test_a_library_that_cannot_be_captured_runs_plainly(
    cuda: Cuda, want: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for function in ("cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphInstantiateWithFlags"):
        cuda.fail = {function: (0, 900)}
        if function == "cuStreamEndCapture":  # the stream is left capturing: the call itself fails
            continue
        caplog.clear()
        with caplog.at_level(logging.INFO, "pix2pix_fast"), on_gpu() as engine:
            picture = noise((*SIZE, 3))
            assert_same(engine.translate(picture), want(picture))
            tries = cuda.calls.count(function)
            assert_same(engine.translate(picture), want(picture))
            assert cuda.calls.count(function) == tries  # asked once
        assert f"without a CUDA graph: the NVIDIA driver failed: {function}" in caplog.text
    cuda.fail = {}


def test_the_callers_context_stays_current(cuda: Cuda) -> None:
    """Of another GPU, say: whatever an engine does, and where it fails."""
    cuda.pushed().append(33)
    with on_gpu() as engine:
        assert cuda.pushed() == [33]
        engine.translate(noise((*SIZE, 3)))
        assert cuda.pushed() == [33]
        cuda.fail = {"cuGraphLaunch": (0, 999)}
        with pytest.raises(DeviceError):
            engine.translate(noise((*SIZE, 3)))
        assert cuda.pushed() == [33]
        cuda.fail = {}
    assert cuda.pushed() == [33] and not cuda.left()


def test_threads_have_contexts_of_their_own(cuda: Cuda, want: Any) -> None:
    """The fake refuses a context in two streams, and a thread without the device's context."""
    sizes = [(24, 32), (8, 8), (30, 20)]
    pictures = [noise((*sizes[k % 3], 3), seed=k) for k in range(24)]
    wanted = [want(picture) for picture in pictures]
    barrier = threading.Barrier(4)
    with on_gpu() as engine, ThreadPoolExecutor(4) as pool:

        def work(first: int) -> list[np.ndarray]:
            barrier.wait()
            return [engine.translate(picture) for picture in pictures[first::4]]

        for first, results in enumerate(pool.map(work, range(4))):
            for got, one in zip(results, wanted[first::4], strict=True):
                assert_same(got, one)
        assert 1 <= len(cuda.contexts) <= 4
        assert engine.stats["calls"] == 24
        streams = [context._stream for context in cuda.contexts]
        assert len(set(streams)) == len(streams)


def test_larger_pictures_get_another_engine_once(cuda: Cuda, want: Any) -> None:
    """Up to 512 a side at first, then the next power of two; both orders of sides may alternate."""
    wide, tall = noise((16, 600, 3)), noise((600, 16, 3))
    with on_gpu() as engine:
        assert len(cuda.trt.plans) == 1  # type: ignore[attr-defined]
        for _ in range(2):
            for picture in (wide, tall, noise((16, 700, 3)), noise((*SIZE, 3))):
                assert_same(engine.translate(picture), want(picture))
        assert len(cuda.trt.plans) == 3  # type: ignore[attr-defined]


def test_sizes_grow_in_many_threads_at_once(cuda: Cuda, want: Any) -> None:
    """A profile that another thread has just changed must not be taken for one's own."""
    pictures = [noise((16, 600, 3)), noise((600, 16, 3))] * 4
    wanted = [want(picture) for picture in pictures[:2]] * 4
    with on_gpu() as engine, ThreadPoolExecutor(8) as pool:
        for got, one in zip(pool.map(engine.translate, pictures), wanted, strict=True):
            assert_same(got, one)


def test_two_engines_keep_apart(cuda: Cuda, want: Any) -> None:
    first, second = on_gpu(), on_gpu()
    picture = noise((*SIZE, 3))
    first.close()
    assert_same(second.translate(picture), want(picture))
    second.close()
    second.close()
    with pytest.raises(ValueError, match="closed"):
        second.translate(picture)


def test_a_forked_child_is_refused(cuda: Cuda) -> None:
    with on_gpu() as engine:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                engine.translate(noise((*SIZE, 3)))
            except ForkError as error:
                os.write(write, str(error).encode())
            os._exit(0)
        os.waitpid(child, 0)
        assert b"open an Engine there" in os.read(read, 1000)


# What the stats, info and cache say ---------------------------------------------------------------


def test_info_and_stats(cuda: Cuda) -> None:
    with on_gpu() as engine:
        assert engine.info["backend"] == "tensorrt" and engine.info["isa"] == "sm_89"
        assert engine.info["precision"] == "f32"
        # in and out of 24 x 32 pixels, and what the library keeps
        assert engine.stats["workspace_bytes"] == 4096 + 24 * 32 * (3 + 2)
        assert backends.available()["tensorrt"] == ""


def test_the_engine_is_built_once_for_all_processes(cuda: Cuda, tmp_path: Path) -> None:
    for _ in range(3):
        on_gpu().close()
    assert len(cuda.trt.plans) == 1  # type: ignore[attr-defined]
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_an_engine_that_the_library_refuses_is_built_again(
    cuda: Cuda, want: Any, caplog: pytest.LogCaptureFixture
) -> None:
    on_gpu().close()
    cuda.trt.plans.clear()  # type: ignore[attr-defined]  # as after an update in place
    picture = noise((*SIZE, 3))
    with on_gpu() as engine:
        assert_same(engine.translate(picture), want(picture))
    assert "is refused by tensorrt; building again" in caplog.text


def test_a_cache_that_cannot_be_written_is_a_warning(
    cuda: Cuda, want: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("P2P_TRT_CACHE", str(tmp_path / "file" / "cache"))
    picture = noise((*SIZE, 3))
    with on_gpu() as engine:
        assert_same(engine.translate(picture), want(picture))
    assert "the engine is not kept" in caplog.text and "P2P_TRT_CACHE" in caplog.text


def test_a_user_without_a_home_loses_nothing(
    cuda: Cuda, want: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    for name in ("P2P_TRT_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 9)  # nobody in the list of users
    picture = noise((*SIZE, 3))
    with on_gpu() as engine:
        assert_same(engine.translate(picture), want(picture))
    assert "the engine is not kept" in caplog.text and "P2P_TRT_CACHE names one" in caplog.text
    model_file.save(MODEL, tmp_path / "net.safetensors")
    done = CliRunner().invoke(cli.main, ["build-trt", str(tmp_path / "net.safetensors")])
    assert done.exit_code == 1 and "P2P_TRT_CACHE names one" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_failed_build_leaves_no_file(
    cuda: Cuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = fake_tensorrt.library(cuda, words="no tactic for e3")
    monkeypatch.setattr(tensorrt, "library", lambda gpu=None: broken)
    with pytest.raises(BackendUnavailable, match="does not build this network.*no tactic for e3"):
        on_gpu()
    assert not list(tmp_path.rglob("*.engine*"))


# Failures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "code", "error", "words"),
    [
        ("cuStreamCreate", 999, DeviceError, r"cuStreamCreate answers CUDA_ERROR_UNKNOWN \(999\)"),
        ("cuMemAlloc_v2", 2, MemoryError, r"the GPU or its page-locked memory is full"),
        ("cuMemAllocHost_v2", 2, MemoryError, r"full \(cuMemAllocHost_v2\)"),
        ("cuMemcpyHtoDAsync_v2", 999, DeviceError, "cuMemcpyHtoDAsync_v2 answers"),
        ("cuMemcpyDtoHAsync_v2", 999, DeviceError, "cuMemcpyDtoHAsync_v2 answers"),
        ("cuStreamSynchronize", 999, DeviceError, "cuStreamSynchronize answers"),
    ],
)
def test_a_failing_driver_at_the_start_and_later(
    cuda: Cuda, want: Any, function: str, code: int, error: Any, words: str
) -> None:
    """The error says which call; nothing is lost, and the next call has a new context."""
    cuda.fail = {function: (0, code)}
    with pytest.raises(error, match=words):
        on_gpu()
    cuda.fail = {}
    assert cuda.left() == {}
    picture = noise((48, 48, 3))  # another size: buffers grow
    with on_gpu() as engine:
        for works in range(3):
            cuda.fail = {function: (works, code)}
            for _ in range(3):
                try:
                    assert_same(engine.translate(picture), want(picture))
                except error as caught:
                    assert re.search(words, str(caught))
            cuda.fail = {}
            assert_same(engine.translate(picture), want(picture))
            assert_same(engine.translate(picture), want(picture))


def test_a_library_that_refuses_shape_address_or_run(
    cuda: Cuda, want: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = fake_tensorrt.IExecutionContext
    picture = noise((*SIZE, 3))
    with on_gpu() as engine:
        for method, words in (
            ("set_input_shape", r"refuses the shape \(1, 8, 8, 3\)"),
            ("set_tensor_address", "refuses the address of 'image'"),
            ("execute_async_v3", "could not run the network"),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(kind, method, lambda *_: False)
                with pytest.raises(DeviceError, match=words):
                    engine.translate(noise((8, 8, 3)))
            assert_same(engine.translate(picture), want(picture))
    monkeypatch.setattr(
        fake_tensorrt.ICudaEngine, "create_execution_context", lambda self: None
    )
    with pytest.raises(BackendUnavailable, match="too little GPU memory"):
        on_gpu()


def test_a_runtime_or_builder_that_does_not_come(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """pybind11 raises TypeError where the library gives a null pointer, as without a GPU."""

    def none(*_: Any) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    for name in ("Builder", "Runtime"):
        with monkeypatch.context() as patch:
            patch.setattr(cuda.trt, name, none)  # type: ignore[attr-defined]
            with pytest.raises(BackendUnavailable, match=f"has no {name.lower()}: pybind11"):
                on_gpu()


def test_a_library_that_never_loads_its_own_engine(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda.trt.Runtime, "deserialize_cuda_engine", lambda *_: None)  # type: ignore[attr-defined]
    with pytest.raises(BackendUnavailable, match="built an engine for Card and does not load it"):
        on_gpu()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"dropout": 3}, BackendUnavailable, "dropout=3: TensorRT has no seeded dropout"),
        ({"tune": True}, BackendUnavailable, "choose kernels of the cpu back-end"),
        ({"precision": "f8"}, ValueError, "precision: expected one of"),
        ({"norm": "running"}, ValueError, "stored statistics"),
    ],
)
def test_what_it_does_not_do(cuda: Cuda, options: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        on_gpu(**options)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (100, "the driver is there and finds none"),
        (35, "needs a working NVIDIA driver: cuInit answers"),
    ],
)
def test_a_driver_that_does_not_start(code: int, words: str) -> None:
    fake = Cuda()
    fake.fail = {"cuInit": (0, code)}
    with pytest.raises(BackendUnavailable, match=words):
        Driver(fake)


# The fake itself, and the verb --------------------------------------------------------------------


def test_a_missing_wait_would_be_seen(cuda: Cuda, want: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = noise((*SIZE, 3))
    with on_gpu() as engine, monkeypatch.context() as patch:
        patch.setattr(Cuda, "_cuStreamSynchronize", lambda *_: 0)
        assert not np.array_equal(engine.translate(picture), want(picture))


def test_a_pointer_passed_as_an_int_would_be_seen(cuda: Cuda) -> None:
    driver = Driver(cuda)
    with pytest.raises(AssertionError, match="cuMemFree_v2: CUdeviceptr from 123"):
        driver("cuMemFree_v2", 123)


HEADERS = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")), *Path("/usr/local").glob("cuda-*")]


def test_the_prototypes_are_those_of_cuda_h() -> None:
    header = next((h for f in HEADERS if (h := f / "include" / "cuda.h").is_file()), None)
    if header is None:
        pytest.skip("no CUDA headers on this machine")
    text = re.sub(r"/\*.*?\*/", "", header.read_text(errors="replace"), flags=re.DOTALL)
    plain = {new: old for old, new in re.findall(r"#define (cu\w+)\s+(cu\w+)$", text, re.MULTILINE)}
    for function, kinds in fake_driver.TYPES.items():
        name = plain.get(function, function)
        found = re.search(rf"CUresult CUDAAPI {name}\(([^)]*)\)", text)
        assert found, function
        assert [c_type(one) for one in found[1].split(",")] == kinds, function


def c_type(declaration: str) -> str:
    """ "const void*" from "const void *srcHost"."""
    return re.sub(r"\s*\*\s*", "*", re.sub(r"\w+$", "", declaration.strip())).strip()


def test_the_verb_fills_the_cache(cuda: Cuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `build-trt` builds is what the engine for such pictures finds."""
    model_file.save(MODEL, tmp_path / "net.safetensors")
    arguments = ["build-trt", str(tmp_path / "net.safetensors"), "--size", "24x32", "--json"]
    done = CliRunner().invoke(cli.main, arguments)
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert Path(facts["output"]).parent == tmp_path / "cache"
    assert facts["bytes"] == Path(facts["output"]).stat().st_size
    assert len(cuda.trt.plans) == 1  # type: ignore[attr-defined]
    with Engine(tmp_path / "net.safetensors", backend="tensorrt", size=SIZE) as engine:
        engine.translate(noise((*SIZE, 3)))
    assert len(cuda.trt.plans) == 1  # type: ignore[attr-defined]
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("P2P_TRT_CACHE", str(tmp_path / "file" / "cache"))
    done = CliRunner().invoke(cli.main, arguments)
    assert done.exit_code == 1 and "Not a directory" in done.stderr
