"""Engine(backend="cuda") on a machine without a GPU: csrc/cuda's host files over a fake CUDA runtime
(cuda_host/cudart.cpp), the kernels as fibers. Each test runs its pictures in a fresh process."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import textwrap
from pathlib import Path

import fake_cuda
import pytest
from fake_cuda import CSRC, HOST

HEAD = """
import threading
import numpy as np
from PIL import Image
from pix2pix_fast import Engine, _core, backends
from pix2pix_fast.errors import BackendUnavailable, ForkError
from tiny import noise, tiny_model
import fake_device
from fake_device import Array, DLPackArray, Stream, counts

def db(got, wanted, width):
    error = np.mean((np.asarray(got, float) - np.asarray(wanted, float)) ** 2)
    return 10 * np.log10(width ** 2 / max(error, 1e-30))

def close(got, wanted):  # 8-bit pictures of a CPU engine and of a CUDA engine in f32
    return np.abs(np.asarray(got, int) - np.asarray(wanted, int)).max() <= 1

def fails(call, error, *words):
    try:
        call()
    except error as caught:
        assert all(word in str(caught) for word in words), str(caught)
    else:
        raise AssertionError(f"expected {error}")
"""


@pytest.fixture(scope="module")
def built(cuda_host: ctypes.CDLL, tmp_path_factory: pytest.TempPathFactory) -> Path:
    shim = Path(str(cuda_host._name)).parent
    return fake_cuda.build(tmp_path_factory.mktemp("fake_cuda"), shim)


def passes(built: Path, code: str, **extra: str) -> str:
    """Runs `code` behind HEAD; what it wrote to stderr."""
    done = fake_cuda.run(built, HEAD + textwrap.dedent(code), **extra)
    assert done.returncode == 0, done.stderr
    return done.stderr


# dB against the CPU's f32; on these nets of few channels bf16 is held to f16's
CODE_NETS = """
    floors = {"f32": 90, "f16": 45, "bf16": 45}
    for depth, ci, co, ngf, size in [(3, 3, 3, 8, (1, 16, 24)), (3, 1, 2, 12, (3, 13, 37)), (4, 3, 3, 16, (1, 32, 48))]:
        model = tiny_model(depth, ci, co, ngf)
        u8 = noise((*size, ci))
        f32 = noise((*size, ci), "float32")
        with Engine(model, backend="cpu", size=(16, 16)) as cpu:
            wanted, wanted_f32 = cpu.translate(u8), cpu.translate(f32)
        for precision, floor in floors.items():
            with Engine(model, backend="cuda", precision=precision, size=(16, 16)) as cuda:
                assert cuda.info["precision"] == precision and cuda.info["isa"] == "sm_90 fibers"
                got = cuda.translate(u8)
                assert got.shape == wanted.shape
                for image in range(len(got)):  # statistics are each picture's own
                    assert db(got[image], wanted[image], 255) >= floor
                assert db(cuda.translate(f32), wanted_f32, 1) >= floor
                for _ in range(2):
                    assert np.array_equal(cuda.translate(u8), got)
    print(counts()["clusters"])
    with Engine(tiny_model(), backend="cuda", size=(8, 8)) as cuda:
        assert cuda.info["precision"] == "f16"
    with Engine(tiny_model(), size=(8, 8)) as auto:
        assert auto.info["backend"] == "cpu"
"""


# Where deep layers run in clusters (an H100, an RTX 50, where a block has less shared memory), and where not:
# an older GPU; a build for older ones alone, whose stream kernels are empty; told not to.
DEVICES = {
    "9.0": ({}, True),
    "12.0": ({"P2P_FAKE_CAPABILITY": "120", "P2P_FAKE_SHARED": "99"}, True),
    "8.0": ({"P2P_FAKE_CAPABILITY": "80"}, False),
    "9.0 by PTX of 8.0": ({"P2P_FAKE_PTX": "80"}, False),
    "9.0 without clusters": ({"P2P_CUDA_CLUSTER": "0"}, False),
}


@pytest.mark.parametrize("device", DEVICES)
def test_nets_equal_the_cpu_in_every_precision(built: Path, device: str) -> None:
    extra, clusters = DEVICES[device]
    capability = extra.get("P2P_FAKE_CAPABILITY", "90")
    code = HEAD + textwrap.dedent(CODE_NETS.replace("sm_90", f"sm_{capability}"))
    if device not in ("9.0", "8.0"):
        code = code.replace('"f32": 90, "f16": 45, "bf16": 45', '"f16": 45')
    done = fake_cuda.run(built, code, **extra)
    assert done.returncode == 0, done.stderr
    assert (int(done.stdout) > 0) == clusters


def test_every_kind_of_picture(built: Path) -> None:
    passes(
        built,
        """
        model = tiny_model(3)
        cpu = Engine(model, backend="cpu", size=(8, 8))
        cuda = Engine(model, backend="cuda", precision="f32", size=(8, 8))
        x = noise((20, 12, 3))
        wanted = cpu.translate(x)
        assert close(cuda.translate(x), wanted)
        assert close(cuda.translate(x[:, ::-1].copy()[:, ::-1]), wanted)  # negative strides
        chw = np.ascontiguousarray(x.transpose(2, 0, 1))
        assert close(cuda.translate(chw, layout="CHW"), wanted.transpose(2, 0, 1))
        assert close(cuda.translate(Image.fromarray(x)), wanted)
        gray = x[..., 0]
        assert close(cuda.translate(gray), cpu.translate(gray))
        assert close(cuda.translate(np.dstack([x, gray])), wanted)  # alpha is dropped
        u16 = noise((9, 8, 3), "uint16")
        far = np.abs(cuda.translate(u16).astype(int) - cpu.translate(u16))
        assert far.max() <= 20  # of 65535
        for dtype in ("float16", "float32", "float64"):
            pixels = (noise((9, 8, 3), "float32") * 5 - 2).astype(dtype)
            ours, theirs = (e.translate(pixels, value_range=(-2, 3)) for e in (cuda, cpu))
            assert ours.dtype == dtype and db(ours, theirs, 5) > 60
        out = np.zeros((20, 12, 3), np.float32)
        assert cuda.translate(x, out=out) is out and np.abs(out * 255 - wanted).max() < 1
        many = [x, Image.fromarray(x), chw[0]]
        for ours, theirs in zip(cuda.translate(many), cpu.translate(many)):
            assert close(ours, theirs)
        frames = [noise((16, 8, 3), seed=i) for i in range(6)]
        for ours, theirs in zip(cuda.stream(frames), cpu.stream(frames), strict=True):
            assert close(ours, theirs)
        assert cuda.translate(np.zeros((0, 8, 8, 3), np.uint8)).shape == (0, 8, 8, 3)
        """,
    )


def test_dropout_and_running_statistics(built: Path) -> None:
    passes(
        built,
        """
        model = tiny_model(4, dropout=("d1", "d2"))
        x = noise((2, 32, 16, 3))
        with Engine(model, backend="cpu", dropout=7, size=(16, 16)) as cpu:
            wanted = cpu.translate(x)
            frames = list(cpu.stream([x[0], x[0], x[0]]))
        assert not np.array_equal(frames[0], frames[1])
        with Engine(model, backend="cuda", precision="f32", dropout=7, size=(16, 16)) as cuda:
            assert close(cuda.translate(x), wanted)
            for ours, theirs in zip(cuda.stream([x[0], x[0], x[0]]), frames, strict=True):
                assert close(ours, theirs)
            stream = Stream()
            two = [Array(x[:1], stream), Array(x[:1], stream)]
            results = cuda.translate(two)  # frames 0 and 1: the second may not overtake the first
            stream.finish()
            for result, theirs in zip(results, frames):
                assert close(result.get()[0], theirs)
        with Engine(model, backend="cuda", precision="f32", size=(16, 16)) as cuda:
            assert not close(cuda.translate(x), wanted)
        from dataclasses import replace
        from pix2pix_fast.model import Model
        tensors = dict(model.tensors)
        for name in [n for n in tensors if n.endswith("norm.weight")]:
            size = tensors[name].shape
            tensors[name.replace("weight", "mean")] = noise(size, "float32", seed=3) - 0.5
            tensors[name.replace("weight", "var")] = noise(size, "float32", seed=4) + 0.5
        running = Model(replace(model.architecture, norm="running"), tensors, {})
        with Engine(running, backend="cpu", norm="running", size=(16, 16)) as cpu:
            wanted = cpu.translate(x)
        with Engine(running, backend="cuda", norm="running", precision="f32", size=(16, 16)) as cuda:
            assert close(cuda.translate(x), wanted)
        """,
    )


def test_threads_sizes_and_the_end(built: Path) -> None:
    passes(
        built,
        """
        cuda = Engine(tiny_model(3), backend="cuda", size=(8, 8))
        pictures = [noise((8 * h, 16, 3), seed=h) for h in range(1, 9)]
        alone = [cuda.translate(p) for p in pictures]
        assert counts()["graphs"] <= 4  # sizes beyond the cache gave their graphs back
        assert counts()["graph_launches"] == 1 + 8 and cuda.stats["calls"] == 8
        held = fake_device.device_bytes()
        for p, wanted in zip(pictures, alone):
            assert np.array_equal(cuda.translate(p), wanted)
        assert fake_device.device_bytes() == held
        wrong = []
        def work(start):
            for i in range(6):
                at = (start + i) % 4
                if not np.array_equal(cuda.translate(pictures[at]), alone[at]):
                    wrong.append(at)
        threads = [threading.Thread(target=work, args=(i,)) for i in (0, 0, 2)]
        [t.start() for t in threads], [t.join() for t in threads]
        assert not wrong
        assert counts()["graphs"] <= 4
        plan = cuda._core.plan(16, 16)
        assert [s["layer"] for s in plan] == ["e1", "e2", "e3", "d1", "d2", "d3"]
        assert plan[1]["kernel"].startswith("cuda/conv_") and plan[1]["macs"] > 0
        assert all(s["measured_us"] > 0 for s in cuda._core.timed(16, 16, 2))
        assert len(cuda._core.time_graph(2, 16, 16, 3)) == 3
        def waits(repeats):
            before = counts()["waits"]
            assert len(cuda._core.time_graph(1, 16, 16, repeats, 1 << 20)) == repeats
            return counts()["waits"] - before
        assert waits(2) == waits(5)  # none between two passes: a launch would count as time of the device
        cuda.close()
        assert fake_device.device_bytes() == 0 and counts()["graphs"] == 0
        fails(lambda: cuda.translate(pictures[0]), ValueError, "closed")
        """,
    )


def test_big_batches_are_split(built: Path, tmp_path: Path) -> None:
    """Into launches of 4 megapixels, as if these were 512 pixels."""
    small = fake_cuda.with_fault(
        built, tmp_path, "cuda_model.cpp", "kBatchPixels = 1ll << 22", "kBatchPixels = 1ll << 9"
    )
    passes(
        small,
        """
        model = tiny_model(3, dropout=("d1",))
        x = noise((5, 16, 16, 3))
        with Engine(model, backend="cpu", dropout=3, size=(8, 8)) as cpu:
            wanted = cpu.translate(x)
        cuda = Engine(model, backend="cuda", dropout=3, precision="f32", size=(8, 8))
        before = counts()["graph_launches"]
        assert close(cuda.translate(x), wanted)
        assert counts()["graph_launches"] == before + 3  # 2, 2 and 1 pictures
        stream = Stream()
        result = cuda.translate(Array(x, stream))
        stream.finish()
        assert close(result.get(), wanted)

        import signal  # Ctrl-C is seen between two launches
        many = np.repeat(x, 800, axis=0)
        signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        before = counts()["graph_launches"]
        fails(lambda: cuda.translate(many), KeyboardInterrupt)
        assert 0 < counts()["graph_launches"] - before < 2000
        assert close(cuda.translate(x), wanted)
        """,
    )


def test_activations_equal_the_cpu(built: Path) -> None:
    passes(
        built,
        """
        model = tiny_model(3)
        x = noise((1, 13, 9, 3), "float32") * 2 - 1
        found = [
            Engine(model, backend=b, precision=p, size=(8, 8))._core.activations(x)
            for b, p in (("cpu", "f32"), ("cuda", "f32"), ("cuda", "f16"))
        ]
        for ours, far in ((found[1], 2e-3), (found[2], 2e-2)):  # raw, also where stream kernels would norm
            assert ours.keys() == found[0].keys()
            for layer, wanted in found[0].items():
                assert ours[layer].shape == wanted.shape
                assert np.abs(ours[layer] - wanted).max() < far * np.abs(wanted).max(), layer
        """,
    )


def test_pictures_in_device_memory(built: Path) -> None:
    passes(
        built,
        """
        model = tiny_model(3)
        cuda = Engine(model, backend="cuda", precision="f32", size=(8, 8))
        host = noise((2, 16, 24, 3))
        wanted = cuda.translate(host)
        stream, other = Stream(), Stream()

        image = Array(host, stream)
        result = cuda.translate(image)
        assert isinstance(result, Array) and result.shape == host.shape
        assert stream.pending() and not np.array_equal(result.get(), wanted)  # not done: on his stream
        stream.finish()
        assert np.array_equal(result.get(), wanted)

        # Two streams share the buffers of one size; the second waits for the first.
        first, second = cuda.translate(image), cuda.translate(Array(host[::-1], other))
        other.finish()
        assert np.array_equal(second.get(), wanted[::-1])
        assert np.array_equal(first.get(), wanted)

        chw = np.ascontiguousarray(host.transpose(0, 3, 1, 2))
        for layout, pixels in [("CHW", chw), ("CHW", host.transpose(0, 3, 1, 2)), ("HWC", chw.transpose(0, 2, 3, 1))]:
            result = cuda.translate(Array(pixels, stream), layout=layout)
            stream.finish()
            assert np.array_equal(result.get(), wanted.transpose(0, 3, 1, 2) if layout == "CHW" else wanted)

        floats = (host / 255).astype(np.float32)
        out = Array(np.zeros(host.shape, np.uint8), stream)
        assert cuda.translate(Array(floats, stream), out=out) is out
        stream.finish()
        assert close(out.get(), wanted)
        batch, later = Array(host, stream), Array(host, stream)
        later.pointer = batch.pointer + host[0].nbytes  # a part of the batch would be read after it is written
        try:
            cuda.translate(batch, out=later)
            raise AssertionError("taken")
        except ValueError as error:
            assert "overlaps the batch" in str(error)
        assert cuda.translate(batch, out=batch) is batch
        mixed = [Array(host[0], stream), host[1].copy()]
        cuda.translate(mixed, out=mixed)
        stream.finish()
        assert np.array_equal(mixed[0].get(), wanted[0]) and np.array_equal(mixed[1], wanted[1])
        assert np.array_equal(batch.get(), wanted)
        result = cuda.translate(Array(floats * 4 - 1, stream), value_range=(-1, 3))
        stream.finish()
        assert np.abs((result.get() + 1) / 4 - wanted / 255).max() < 1 / 255
        gray = Array(host[0, :, :, 0], stream)
        result = cuda.translate(gray)
        stream.finish()
        assert np.array_equal(result.get(), cuda.translate(host[0, :, :, 0]))

        unnamed = Array(host)  # no stream: the result is there when the call returns
        assert np.array_equal(cuda.translate(unnamed).get(), wanted)
        source, out = DLPackArray(Array(host)), Array(np.zeros_like(host))
        assert cuda.translate(source, out=out) is out and np.array_equal(out.get(), wanted)
        assert source.asked == [cuda._core.stream]
        fails(lambda: cuda.translate(source), TypeError, "out=", "(2, 16, 24, 3)")
        fails(lambda: cuda.translate(Array(host.astype(np.float64))), TypeError, "uint8 or float32", "f8")
        fails(lambda: cuda.translate(image, out=np.zeros_like(host)), TypeError, "out:", "device memory")
        fails(lambda: cuda.translate(image, out=Array(host[0])), ValueError, "out:", "(2, 16, 24, 3)")
        fails(lambda: list(cuda.stream([image])), TypeError, "frame 0", "translate()")
        lying = Array(host)
        lying.pointer = np.zeros(host.size, np.uint8).ctypes.data
        fails(lambda: cuda.translate(lying), ValueError, "memory of the host")
        with Engine(model, backend="cpu", size=(8, 8)) as cpu:
            fails(lambda: cpu.translate(source), ValueError, "memory of the CPU")
            fails(lambda: cpu.translate(image), TypeError, "expected a path")
        cuda.close()
        """,
    )


def test_torch_tensors_on_the_gpu(built: Path) -> None:
    """Over a stand-in for torch: CHW by habit, its current stream, no waiting, new memory by torch."""
    passes(
        built,
        """
        import sys
        model = tiny_model(3, ci=3, co=1)
        cuda = Engine(model, backend="cuda", precision="f32", size=(8, 8))
        host = noise((2, 16, 24, 3))
        wanted = cuda.translate(host)
        stream = Stream()
        torch = sys.modules["torch"] = fake_device.fake_torch(stream)
        nchw, nhwc = np.ascontiguousarray(host.transpose(0, 3, 1, 2)), host
        for array, layout in ((nchw, None), (nhwc.transpose(0, 3, 1, 2), None), (nhwc, "HWC")):
            result = cuda.translate(torch.Tensor(Array(array)), layout=layout)
            assert isinstance(result, torch.Tensor) and result.dtype == "torch.uint8" and stream.pending()
            stream.finish()
            got = result.array.get()
            assert np.array_equal(got if layout else got.transpose(0, 2, 3, 1), wanted)
        half = torch.Tensor(Array(nchw.astype(np.float16)))
        fails(lambda: cuda.translate(half), TypeError, "uint8 or float32", "float16")
        """,
    )


def test_dependent_launch_gives_the_same_bits(built: Path) -> None:
    code = """
        cuda = Engine(tiny_model(3), backend="cuda", size=(16, 16))
        got = cuda.translate(noise((3, 16, 16, 3)))
        print(got.sum(), got[1, 2].tolist(), counts()["edges"])
    """
    outputs = []
    old = {"P2P_FAKE_CAPABILITY": "89"}  # neither programmatic launch nor clusters
    for extra in ({}, {"P2P_CUDA_PDL": "1"}, {"P2P_CUDA_CLUSTER": "0"}, {"P2P_CUDA_PDL": "1", **old}):
        done = fake_cuda.run(built, HEAD + textwrap.dedent(code), **extra)
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout.rsplit(maxsplit=1))
    assert outputs[0][0] == outputs[1][0] and outputs[2][0] == outputs[3][0]
    assert [edges.strip() for _, edges in outputs] == ["0", "10", "0", "0"]  # two graphs of six kernels


def test_the_trace_names_every_kernel(built: Path) -> None:
    said = passes(
        built,
        """
        cuda = Engine(tiny_model(3), backend="cuda", size=(16, 16))
        x = noise((2, 16, 16, 3))
        stream = Stream()
        result = cuda.translate(Array(x, stream))
        stream.finish()
        assert np.array_equal(result.get(), cuda.translate(x))
        assert counts()["graph_launches"] == 0
        """,
        P2P_TRACE="1",
    )
    words = ("sm_90 fibers, 2 x 16x16", "e1   cuda/first_64x64_f16", "e2   cuda/conv_stream_64x32_f16",
             "d1   cuda/deconv_stream_16x32_f16", "d3   cuda/last_patch_64x16_f16")  # fmt: skip
    for word in words:
        assert word in said


def test_a_forked_child_is_told_so(built: Path) -> None:
    passes(
        built,
        """
        import os
        cuda = Engine(tiny_model(3), backend="cuda", size=(8, 8))
        x = noise((8, 8, 3))
        wanted = cuda.translate(x)
        child = os.fork()
        if child == 0:
            try:
                fails(lambda: cuda.translate(x), ForkError, "open the engine in the child")
                fails(lambda: cuda._core.plan(8, 8), ForkError)
                cuda.stats
                cuda.close()
                fails(lambda: Engine(tiny_model(3), backend="cuda"), BackendUnavailable, "does not start")
                Engine(tiny_model(3), backend="cpu", size=(8, 8)).translate(x)
            except BaseException as error:
                print(repr(error))
                os._exit(1)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert np.array_equal(cuda.translate(x), wanted)
        """,
    )


def test_too_little_memory(built: Path) -> None:
    passes(
        built,
        """
        cuda = Engine(tiny_model(3, ngf=16), backend="cuda", precision="f32", size=(8, 8))
        for h in (56, 64, 72, 80):  # each alone fits, all four do not: the cache gives way
            cuda.translate(noise((h, 64, 3)))
        fails(lambda: cuda.translate(noise((512, 512, 3))), MemoryError, "cudaMalloc", "out of memory")
        cuda.translate(noise((8, 8, 3)))
        """,
        P2P_FAKE_MEMORY=str(2 << 20),
    )


STATES = {
    "no driver": {"P2P_FAKE_ERROR": "35", "P2P_FAKE_DRIVER": "0"},
    "driver too old: the NVIDIA driver speaks CUDA 12.2, this build needs 13.0": {
        "P2P_FAKE_ERROR": "35", "P2P_FAKE_DRIVER": "12020"},
    "no device": {"P2P_FAKE_ERROR": "100"},
    "no device: ": {"P2P_FAKE_DEVICES": "0"},
    "CUDA does not start: cudaErrorOfTheFake": {"P2P_FAKE_ERROR": "3"},
    "'fibers' has compute capability 6.1; the kernels need 7.5": {"P2P_FAKE_CAPABILITY": "61"},
}  # fmt: skip


@pytest.mark.parametrize("said", STATES)
def test_each_driver_state_has_its_sentence(built: Path, said: str) -> None:
    passes(
        built,
        f"""
        said = {said!r}
        assert said in backends.available()["cuda"] and said in _core.cuda()["missing"]
        fails(lambda: Engine(tiny_model(3), backend="cuda"), BackendUnavailable, "backend 'cuda' cannot run", said)
        assert Engine(tiny_model(3), size=(8, 8)).info["backend"] == "cpu"
        """,
        **STATES[said],
    )


def test_what_a_gpu_lacks_is_refused_by_name(built: Path) -> None:
    passes(
        built,
        """
        fails(lambda: Engine(tiny_model(3), backend="cuda", precision="bf16"), BackendUnavailable, "bf16", "8.0", "7.5")
        assert Engine(tiny_model(3), backend="cuda", size=(8, 8)).info["precision"] == "f16"
        fails(lambda: Engine(tiny_model(3), backend="cuda", tune=True), ValueError, "tune")
        fails(lambda: Engine(tiny_model(3), backend="cpu", precision="f16"), BackendUnavailable, "f16")
        """,
        P2P_FAKE_CAPABILITY="75",
    )
    passes(
        built,
        """
        fails(lambda: Engine(tiny_model(3), backend="cuda"), BackendUnavailable,
              "no kernels for 'fibers' (sm_89)", "P2P_CUDA_ARCHITECTURES=89")
        """,
        P2P_FAKE_CAPABILITY="89", P2P_FAKE_IMAGE="209",
    )  # fmt: skip


# What the host side must not forget; without each of them the strict runtime gives a wrong picture or
# ends the process.
FAULTS = {
    "no wait for the graph": (
        "executable.cpp",
        "  P2P_CUDA_CALL(cudaStreamSynchronize, stream_.get());\n  for",
        "  for",
    ),
    "counters that start as they come": (
        "executable.cpp",
        "  P2P_CUDA_CALL(cudaMemsetAsync, counters_.data(), 0, (size_t)counters_.size(), stream_.get());\n",
        "",
    ),
    "kernels without an edge": (
        "executable.cpp",
        "dependent ? nullptr : before, dependent || !before ? 0 : 1, &params",
        "i == 3 ? nullptr : before, i == 3 || !before ? 0 : 1, &params",
    ),
    "streams that do not wait for each other": (
        "executable.cpp",
        "  P2P_CUDA_CALL(cudaStreamWaitEvent, stream, done_.get(), 0);",
        "",
    ),
    "a node without its cluster": ("executable.cpp", "    if (launch.args.cluster) {\n", "    if (i == 99) {\n"),
    "shared memory that nobody allowed": (
        "cuda_model.cpp",
        "P2P_CUDA_CALL(cudaFuncSetAttribute, kernel,",
        "if (!kernel) P2P_CUDA_CALL(cudaFuncSetAttribute, kernel,",
    ),
    "buffers freed under the caller's stream": (
        "executable.cpp",
        "  if (done_.get()) cudaEventSynchronize(done_.get());\n",
        "",
    ),
    "weights that are still on their way": (
        "cuda_model.cpp",
        "    P2P_CUDA_CALL(cudaStreamSynchronize, nullptr);\n",
        "",
    ),
    "a graph that is gone when its nodes are told new pictures": (
        "executable.cpp",
        "  return built;\n",
        "  built.graph = Graph();\n  return built;\n",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_forgotten_step_shows(built: Path, fault: str, tmp_path: Path) -> None:
    code = """
        model = tiny_model(3)
        x, y = noise((2, 16, 24, 3)), noise((2, 16, 24, 3), seed=1)
        with Engine(model, backend="cpu", size=(8, 8)) as cpu:
            wanted, wanted_y = cpu.translate(x), cpu.translate(y)
        cuda = Engine(model, backend="cuda", precision="f32", size=(16, 24))
        for _ in range(4):
            assert close(cuda.translate(x), wanted)
        one, two = Stream(), Stream()
        late, early = cuda.translate(Array(x, one)), cuda.translate(Array(y, two))
        two.finish()
        assert close(early.get(), wanted_y) and close(late.get(), wanted)
        cuda.translate(Array(x, one))
        cuda.close()
        one.finish()
        # A layer in clusters with more shared memory than a kernel has unasked.
        deep = tiny_model(2, ngf=128)
        Engine(deep, backend="cuda", size=(16, 16)).translate(noise((16, 16, 3)))
        assert counts()["clusters"] > 0
    """
    assert fake_cuda.run(built, HEAD + textwrap.dedent(code)).returncode == 0
    broken = fake_cuda.with_fault(built, tmp_path, *FAULTS[fault])
    assert fake_cuda.run(broken, HEAD + textwrap.dedent(code)).returncode != 0


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if not shutil.which("g++"):
        pytest.skip("needs g++")
    library = tmp_path_factory.mktemp("plans") / "plans.so"
    sources = [HOST / "plan_check.cpp", CSRC / "cuda/network.cpp", CSRC / "model.cpp", CSRC / "arena.cpp"]
    subprocess.run(
        ["g++", "-std=c++20", "-O1", "-fPIC", "-shared", f"-I{CSRC / 'cuda'}", *map(str, sources),
         "-o", str(library)], check=True)  # fmt: skip
    return ctypes.CDLL(str(library))


# planted in the plan of a net of depth 5; "" and "clusters" are plans as they are
HAZARDS = {
    "": "",
    "a kernel that waits for none": "step 4 writes the map of step 4 while step 1, which it has not waited for",
    "a kernel that waits too early": "step 6 reads the map of step 5 while step 5, which it has not waited for",
    "a map over a skip": "step 3 overwrites the map of step 1 that step 8 is to read",
    "a map over its own input": "step 2 overwrites its own map of step 1",
    "clusters": "",
    "a cluster's map over a skip": "step 4 overwrites the map of step 2 that step 7 is to read",
    "a cluster's map normed again": "step 4 stores a normalised map, and its readers would norm it again",
    "two kernels at once": "step 2 writes the statistics of step 2 while step 1, which it has not waited for",
}


@pytest.mark.parametrize("planted", HAZARDS)
def test_a_plan_is_checked_for_hazards(plans: ctypes.CDLL, planted: str) -> None:
    said = ctypes.create_string_buffer(300)
    plans.p2p_plan_check(planted.encode(), said, 300)
    assert HAZARDS[planted] in said.value.decode()
    assert (said.value == b"") == (planted in ("", "clusters"))


def test_plans_of_many_sizes_have_no_hazard(plans: ctypes.CDLL) -> None:
    said = ctypes.create_string_buffer(300)
    for dtype in range(3):
        for depth, ngf in ((2, 3), (5, 16), (8, 64)):
            for n, h, w in ((1, 1, 1), (1, 256, 256), (5, 31, 64), (16, 64, 64), (1, 512, 1024)):
                for shared in (0, 99 << 10, 227 << 10):
                    plans.p2p_plan_of(depth, ngf, dtype, n, h, w, 132, shared, said, 300)
                    assert said.value == b"", (dtype, depth, ngf, n, h, w, shared)


def test_the_real_runtime_says_no_driver(tmp_path: Path) -> None:
    """csrc/cuda/driver_state.cpp with NVIDIA's own static runtime, on a machine without a driver."""
    nvcc = shutil.which("nvcc")
    if not nvcc or not shutil.which("g++"):
        pytest.skip("needs nvcc")
    if Path("/dev/nvidiactl").exists():
        pytest.skip("there is a driver")
    (tmp_path / "main.cpp").write_text(
        '#include <cstdio>\n#include "driver_state.h"\n'
        'int main() { std::puts(p2p::cuda::driver_state().missing.c_str()); }\n'
    )
    subprocess.run(
        [nvcc, "-std=c++20", "-Wno-deprecated-gpu-targets", f"-I{CSRC / 'cuda'}", "main.cpp",
         str(CSRC / "cuda/driver_state.cpp"), "-o", "state"], check=True, cwd=tmp_path)  # fmt: skip
    done = subprocess.run([tmp_path / "state"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("no driver: this machine has no NVIDIA driver")
