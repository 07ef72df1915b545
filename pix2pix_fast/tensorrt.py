"""TensorRT through its Python API: the network from our layer list, a cache of engines, execution.

`Network` writes the layers, named e1..dN as everywhere; norms are mean, variance and affine, each
picture's own. Types are those of the tensors alone (strongly typed): weights and maps in the
precision asked for, statistics, tanh and pixels in float32. Only calls that tensorrt 10.15+, 11 and
tensorrt_rtx share. tests/test_tensorrt.py proves the network by evaluating it and lets the real
library build it. Read next: tensorrt_run.py, which runs engines.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from . import __version__
from .errors import BackendUnavailable, DeviceError
from .tensorfile import atomic_file, cache_folder, from_float32

if TYPE_CHECKING:
    from .backends import Options
    from .model import Model
    from .tensorrt_run import Executable

log = logging.getLogger("pix2pix_fast")

LAYOUT = 1  # of the network below: a change of it makes every cached engine stale
MAGIC = b"pix2pix_fast TensorRT engine\n"
LIBRARIES = ("tensorrt", "tensorrt_rtx")  # the first one that imports is taken
PRECISIONS = ("f32", "f16", "bf16")
BATCH_PIXELS = 4 << 20  # in one launch; larger batches go in parts
Size = tuple[int, int]
Progress = Callable[[int, int], object]


class Form(NamedTuple):
    """What decides the network beside the model.

    deconv: "native" or "phases", four 2x2 convolutions, interleaved; "" takes native, which the
        library refuses in bf16, so phases there.
    norm_layer: the library's normalization layer instead of reduce and elementwise.
    pixels: "float": `image` (n, ci, h, w) float32 in [-1, 1] -> `translation` (n, co, h, w);
        "uint8": (n, h, w, ci) 0..255 -> (n, h, w, co).
    """

    precision: str = "f32"
    deconv: str = ""
    norm: str = "image"
    norm_layer: bool = False
    pixels: str = "float"

    def checked(self) -> Form:
        for name, allowed in (
            ("precision", PRECISIONS),
            ("deconv", ("", "native", "phases")),
            ("pixels", ("float", "uint8")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected one of {allowed}, got {getattr(self, name)!r}")
        return self._replace(
            deconv=self.deconv or ("phases" if self.precision == "bf16" else "native")
        )


class Profile(NamedTuple):
    """Padded sizes that an engine takes: any from one tile to `most`, fastest at `best`."""

    best: Size
    most: Size
    batch: int = 1

    def holds(self, h: int, w: int) -> bool:
        return h <= self.most[0] and w <= self.most[1]

    @classmethod
    def around(cls, size: Size, multiple: int) -> Profile:
        """Best for `size`; each side up to 512, or the next power of two from its own."""
        h, w = (-(-length // multiple) * multiple for length in size)
        most = [max(512, 1 << (length - 1).bit_length()) for length in (h, w)]
        batch = min(max(BATCH_PIXELS // (most[0] * most[1]), 1), 16)
        return cls((h, w), (most[0], most[1]), batch)


# The network --------------------------------------------------------------------------------------


class Network:
    """Writes `model` into `network`, an INetworkDefinition of the library `trt`."""

    def __init__(self, trt: Any, network: Any, model: Model, form: Form) -> None:
        self.trt, self.network, self.model, self.form = trt, network, model, form
        self.tensors = model.core_tensors(form.norm)
        self.kept: list[np.ndarray] = []  # the library reads weights when it builds
        types = trt.DataType
        self.type = {"f32": types.FLOAT, "f16": types.HALF, "bf16": types.BF16}[form.precision]

    def write(self) -> None:
        types, a = self.trt.DataType, self.model.architecture
        if self.form.pixels == "uint8":
            x = self.network.add_input("image", types.UINT8, (-1, -1, -1, a.in_channels))
            x = self.cast(x, types.FLOAT, "image.float")
            x = self.elementwise("DIV", x, self.constant(127.5, "image.half"), "image.scaled")
            x = self.elementwise("SUB", x, self.constant(1.0, "image.one"), "image.signed")
            x = self.shuffle(x, "image.nchw", first=(0, 3, 1, 2))
        else:
            x = self.network.add_input("image", types.FLOAT, (-1, a.in_channels, -1, -1))
        if self.form.precision != "f32":
            x = self.cast(x, self.type, f"image.{self.form.precision}")
        x = self.unet(x)
        if self.form.pixels == "uint8":
            x = self.shuffle(x, "translation.nhwc", first=(0, 2, 3, 1))
            x = self.elementwise("SUM", x, self.constant(1.0, "levels.one"), "levels.positive")
            x = self.elementwise("PROD", x, self.constant(127.5, "levels.half"), "levels.scaled")
            x = self.unary("ROUND", x, "levels.rounded")
            x = self.elementwise("MAX", x, self.constant(0.0, "levels.black"), "levels.low")
            x = self.elementwise("MIN", x, self.constant(255.0, "levels.white"), "levels")
            x = self.cast(x, types.UINT8, "levels.uint8")
        x.name = "translation"
        self.network.mark_output(x)

    def unet(self, x: Any) -> Any:
        outputs: dict[str, Any] = {}
        kind = self.trt.ActivationType
        for layer in self.model.layers(self.form.norm):
            name = layer["name"]
            if layer["skip"]:
                x = self.concat([outputs[layer["skip"]], x], 1, f"{name}.concat")
            if layer["slope"] == 0.0:
                x = self.done(self.network.add_activation(x, kind.RELU), f"{name}.relu")
            elif layer["slope"] != 1.0:
                leaky = self.network.add_activation(x, kind.LEAKY_RELU)
                leaky.alpha = layer["slope"]
                x = self.done(leaky, f"{name}.leaky_relu")
            if layer["op"] == "conv4x4s2":
                x = self.conv(x, layer)
            elif self.form.deconv == "native":
                x = self.deconv(x, layer)
            else:
                x = self.deconv_phases(x, layer)
            last = name == f"d{self.model.architecture.depth}"
            if self.form.precision != "f32" and (layer["norm"] or last):
                x = self.cast(x, self.trt.DataType.FLOAT, f"{name}.f32")
            if layer["norm"]:
                x = self.norm(x, layer)
            if layer["tanh"]:
                x = self.done(self.network.add_activation(x, kind.TANH), f"{name}.tanh")
            if self.form.precision != "f32" and layer["norm"] and not last:
                x = self.cast(x, self.type, f"{name}.{self.form.precision}")
            outputs[name] = x
        return x

    def conv(self, x: Any, layer: dict[str, Any]) -> Any:
        name = layer["name"]
        kernel = self.weights(self.tensors[f"{name}.weight"], f"{name}.weight")
        conv = self.network.add_convolution_nd(x, layer["co"], (4, 4), kernel, **self.bias(layer))
        conv.stride_nd, conv.padding_nd = (2, 2), (1, 1)
        return self.done(conv, name)

    def deconv(self, x: Any, layer: dict[str, Any]) -> Any:
        name = layer["name"]
        kernel = self.weights(self.tensors[f"{name}.weight"], f"{name}.weight")  # (ci, co, 4, 4)
        deconv = self.network.add_deconvolution_nd(
            x, layer["co"], (4, 4), kernel, **self.bias(layer)
        )
        deconv.stride_nd, deconv.padding_nd = (2, 2), (1, 1)
        return self.done(deconv, name)

    def deconv_phases(self, x: Any, layer: dict[str, Any]) -> Any:
        """dst[2y + p] reads src[y - 1], src[y] through taps 3, 1 if p is 0, and src[y], src[y + 1]
        through taps 2, 0 if p is 1."""
        name, co = layer["name"], layer["co"]
        weight, bias = self.tensors[f"{name}.weight"], self.bias(layer)
        taps = ((3, 1), (2, 0))
        phases = []
        for p in (0, 1):
            for q in (0, 1):
                part = weight[:, :, taps[p]][:, :, :, taps[q]].transpose(1, 0, 2, 3)
                kernel = self.weights(np.ascontiguousarray(part), f"{name}.weight")
                conv = self.network.add_convolution_nd(x, co, (2, 2), kernel, **bias)
                conv.pre_padding, conv.post_padding = (1 - p, 1 - q), (p, q)
                phases.append(self.done(conv, f"{name}.phase{p}{q}"))
        y = self.concat(phases, 1, f"{name}.phases")  # (n, 2 2 co, h, w)
        # the sizes as a tensor, as two of them are not known before a picture comes
        shape = self.done(self.network.add_shape(x), f"{name}.shape")
        n = self.gather(shape, [0], f"{name}.n")
        hw = self.gather(shape, [2, 3], f"{name}.hw")
        split = self.concat([n, self.integers([2, 2, co], f"{name}.2x2"), hw], 0, f"{name}.split")
        y = self.shuffle(y, f"{name}.rows", shape=split, second=(0, 3, 4, 1, 5, 2))
        twice = self.elementwise("PROD", hw, self.integers([2, 2], f"{name}.two"), f"{name}.twice")
        whole = self.concat([n, self.integers([co], f"{name}.co"), twice], 0, f"{name}.whole")
        return self.shuffle(y, name, shape=whole)

    def norm(self, x: Any, layer: dict[str, Any]) -> Any:
        """In float32 whatever the maps are in: squares of f16 maps would overflow."""
        name, co = layer["name"], layer["co"]
        one, zero = np.ones(co, np.float32), np.zeros(co, np.float32)
        scale = self.constant(self.tensors.get(f"{name}.norm.weight", one), f"{name}.norm.weight")
        shift = self.constant(self.tensors.get(f"{name}.norm.bias", zero), f"{name}.norm.bias")
        axes = 1 << 2 | 1 << 3
        if self.form.norm_layer:
            norm = self.network.add_normalization_v2(x, scale, shift, axes)
            norm.epsilon = layer["eps"]
            return self.done(norm, f"{name}.norm")
        mean = self.average(x, axes, f"{name}.mean")
        centred = self.elementwise("SUB", x, mean, f"{name}.centred")
        square = self.elementwise("PROD", centred, centred, f"{name}.square")
        var = self.average(square, axes, f"{name}.var")
        eps = self.constant(layer["eps"], f"{name}.eps")
        safe = self.elementwise("SUM", var, eps, f"{name}.var_eps")
        deviation = self.unary("SQRT", safe, f"{name}.deviation")
        x = self.elementwise("DIV", centred, deviation, f"{name}.normed")
        x = self.elementwise("PROD", x, scale, f"{name}.scaled")
        return self.elementwise("SUM", x, shift, f"{name}.norm")

    # One layer of the library each

    def done(self, layer: Any, name: str) -> Any:
        """Name a layer and its output; the library answers None to what it does not take."""
        if layer is None:
            raise BackendUnavailable(f"{self.trt.__name__} {self.trt.__version__} refuses {name}")
        layer.name = name
        output = layer.get_output(0)
        output.name = name
        return output

    def elementwise(self, op: str, a: Any, b: Any, name: str) -> Any:
        kind = getattr(self.trt.ElementWiseOperation, op)
        return self.done(self.network.add_elementwise(a, b, kind), name)

    def unary(self, op: str, x: Any, name: str) -> Any:
        return self.done(self.network.add_unary(x, getattr(self.trt.UnaryOperation, op)), name)

    def average(self, x: Any, axes: int, name: str) -> Any:
        kind = self.trt.ReduceOperation.AVG
        return self.done(self.network.add_reduce(x, kind, axes, True), name)

    def cast(self, x: Any, kind: Any, name: str) -> Any:
        return self.done(self.network.add_cast(x, kind), name)

    def concat(self, parts: list[Any], axis: int, name: str) -> Any:
        layer = self.network.add_concatenation(parts)
        layer.axis = axis
        return self.done(layer, name)

    def gather(self, x: Any, items: list[int], name: str) -> Any:
        index = self.integers(items, f"{name}.index")
        return self.done(self.network.add_gather(x, index, 0), name)

    def shuffle(
        self,
        x: Any,
        name: str,
        *,
        first: tuple[int, ...] = (),
        shape: Any = None,
        second: tuple[int, ...] = (),
    ) -> Any:
        """Transpose, reshape to the sizes in the tensor `shape`, transpose."""
        layer = self.network.add_shuffle(x)
        if first:
            layer.first_transpose = first
        if shape is not None:
            layer.set_input(1, shape)
        if second:
            layer.second_transpose = second
        return self.done(layer, name)

    def constant(self, value: Any, name: str) -> Any:
        """float32 that fits (n, c, h, w) maps: a number, or one for each channel."""
        array = np.array(value, np.float32).reshape(1, -1, 1, 1)
        return self.done(
            self.network.add_constant(array.shape, self.raw(array, self.trt.DataType.FLOAT)), name
        )

    def integers(self, items: list[int], name: str) -> Any:
        raw = self.raw(np.array(items, np.int64), self.trt.DataType.INT64)
        return self.done(self.network.add_constant((len(items),), raw), name)

    def bias(self, layer: dict[str, Any]) -> dict[str, Any]:
        name = f"{layer['name']}.bias"
        if name not in self.tensors or layer["norm"]:  # a norm takes its own mean away
            return {}
        return {"bias": self.weights(self.tensors[name], name)}

    def weights(self, value: np.ndarray, name: str) -> Any:
        kind = self.form.precision.upper()
        return self.raw(from_float32(value, kind, f"model: tensor {name!r}"), self.type)

    def raw(self, array: np.ndarray, kind: Any) -> Any:
        self.kept.append(array)
        return self.trt.Weights(kind, array.ctypes.data, array.size)


def build(
    trt: Any,
    model: Model,
    form: Form,
    profile: Profile,
    *,
    capability: str = "",
    progress: Progress | None = None,
) -> bytes:
    """The serialized engine. `trt`: the library; `capability`: "8.9" builds for that GPU ahead of
    time, which only tensorrt_rtx can; `progress(done, steps)` is called while it is built, and what
    it raises ends the building. Errors: BackendUnavailable with the library's own words."""
    form = form.checked()
    complaints = deque[str](maxlen=4)
    logger = quiet_logger(trt, complaints)
    try:
        builder = trt.Builder(logger)
    except TypeError as error:  # pybind11's way to say that the library gave none
        why = "; ".join(complaints) or error
        raise BackendUnavailable(f"{trt.__name__} {trt.__version__} has no builder: {why}") from error
    definition = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    network = Network(trt, definition, model, form)
    network.write()
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # f32 means f32
    _profile(builder, config, model, form, profile)
    if capability:
        _aim(trt, config, capability)
    raised: list[BaseException] = []
    if progress is not None:
        config.progress_monitor = _monitor(trt, progress, raised)
    plan = builder.build_serialized_network(definition, config)
    if raised:
        raise raised[0]
    if plan is None:
        raise BackendUnavailable(
            f"{trt.__name__} {trt.__version__} does not build this network ({form}): "
            f"{'; '.join(complaints) or 'it does not say why'}"
        )
    return bytes(plan)


def _monitor(trt: Any, progress: Progress, raised: list[BaseException]) -> Any:
    """The library's own progress, of its outermost phase. An exception must not cross the library:
    it goes into `raised`, and the building stops. That is how Ctrl-C ends it, too."""
    outer: dict[str, int] = {}

    def start(self: Any) -> None:
        trt.IProgressMonitor.__init__(self)

    def phase_start(self: Any, name: str, parent: str | None, steps: int) -> None:
        if not parent:
            outer[name] = steps

    def step_complete(self: Any, name: str, step: int) -> bool:
        try:
            if name in outer and not raised:
                progress(step + 1, outer[name])
        except BaseException as error:
            raised.append(error)
        return not raised

    def phase_finish(self: Any, name: str) -> None:
        outer.pop(name, None)

    calls = (phase_start, step_complete, phase_finish)
    parts = {"__init__": start} | {call.__name__: call for call in calls}
    return type("Progress", (trt.IProgressMonitor,), parts)()


def _profile(builder: Any, config: Any, model: Model, form: Form, profile: Profile) -> None:
    a = model.architecture

    def shape(n: int, h: int, w: int) -> tuple[int, ...]:
        return (n, h, w, a.in_channels) if form.pixels == "uint8" else (n, a.in_channels, h, w)

    least = shape(1, a.multiple, a.multiple)
    entry = builder.create_optimization_profile()
    entry.set_shape("image", least, shape(1, *profile.best), shape(profile.batch, *profile.most))
    config.add_optimization_profile(entry)


def _aim(trt: Any, config: Any, capability: str) -> None:
    if capability not in _targets(trt):
        raise BackendUnavailable(
            f"{trt.__name__} {trt.__version__} does not build for compute capability {capability}"
            f" ahead of time; it knows {', '.join(_targets(trt)) or 'only the GPU that is there'}"
        )
    config.num_compute_capabilities = 1
    config.set_compute_capability(_targets(trt)[capability], 0)


def _targets(trt: Any) -> dict[str, Any]:
    """ "8.9" -> what the library calls it, of those that it can build for without having one."""
    known = getattr(getattr(trt, "ComputeCapability", None), "__members__", {})
    return {f"{name[2:-1]}.{name[-1]}": v for name, v in known.items() if name.startswith("SM")}


def quiet_logger(trt: Any, complaints: deque[str]) -> Any:
    """The library's messages to our logger; its errors are kept for the exception as well."""

    def start(self: Any) -> None:
        trt.ILogger.__init__(self)

    def write(self: Any, severity: Any, message: str) -> None:
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
            complaints.append(" ".join(message.split())[:300])
        else:
            log.debug("%s: %s", trt.__name__, message)

    return type("Log", (trt.ILogger,), {"__init__": start, "log": write})()


# What is here -------------------------------------------------------------------------------------


class Gpu(NamedTuple):
    name: str
    capability: str  # "9.0"
    driver: str  # the newest CUDA that the driver speaks, "13.0"


def missing() -> str:
    """ "" where TensorRT can run, else what it lacks and the cure. The quick questions first."""
    try:
        gpu = driver().gpu()
        library(gpu)
    except BackendUnavailable as error:
        return str(error)
    return ""


def library(gpu: Gpu | None = None) -> Any:
    """The tensorrt or tensorrt_rtx module, and if `gpu` is given one that serves it."""
    reasons = []
    for name in LIBRARIES:
        try:
            trt = importlib.import_module(name)
            trt.INetworkDefinition.add_normalization_v2  # noqa: B018  the youngest name we need
            if gpu is None or name == "tensorrt" or gpu.capability in _targets(trt):
                return trt
            reasons.append(
                f"{name} does not serve {gpu.name} (compute capability {gpu.capability})"
            )
        except ModuleNotFoundError as error:
            reasons.append(f"no module {error.name}")
        except (ImportError, OSError) as error:  # bindings without their libraries
            reasons.append(f"{name} does not load ({error})")
        except AttributeError:
            reasons.append(f"{name} is older than 10.15")
    raise BackendUnavailable(
        f"TensorRT is not installed for this machine: {'; '.join(reasons)}. For RTX cards: "
        "pip install 'pix2pix_fast[tensorrt]'; for data-centre GPUs: pip install tensorrt"
    )


class Driver:
    """The few functions of the NVIDIA driver that execution needs; each raises on an error."""

    def __init__(self, cuda: Any) -> None:
        self.cuda = cuda
        version = ctypes.c_int()
        code = cuda.cuInit(0)
        cuda.cuDriverGetVersion(ctypes.byref(version))
        self.version = f"{version.value // 1000}.{version.value % 1000 // 10}"
        if code == 100:
            raise BackendUnavailable(
                "TensorRT needs an NVIDIA GPU: the driver is there and finds none; look at "
                "CUDA_VISIBLE_DEVICES and at the container's GPU option"
            )
        if code:
            raise BackendUnavailable(
                f"TensorRT needs a working NVIDIA driver: cuInit answers {self.words(code)}; "
                "nvidia-smi should say more"
            )
        self.device = ctypes.c_int()
        self("cuDeviceGet", ctypes.byref(self.device), 0)

    def __call__(self, function: str, *arguments: Any) -> None:
        code = getattr(self.cuda, function)(*arguments)
        if code == 2:
            raise MemoryError(f"the GPU or its page-locked memory is full ({function})")
        if code:
            raise DeviceError(f"the NVIDIA driver failed: {function} answers {self.words(code)}")

    def words(self, code: int) -> str:
        name = ctypes.c_char_p()
        self.cuda.cuGetErrorName(code, ctypes.byref(name))
        return f"{(name.value or b'error').decode()} ({code})"

    def gpu(self) -> Gpu:
        text, number = ctypes.create_string_buffer(256), ctypes.c_int()
        self("cuDeviceGetName", text, 256, self.device)
        parts = []
        for attribute in (75, 76):  # COMPUTE_CAPABILITY_MAJOR, _MINOR
            self("cuDeviceGetAttribute", ctypes.byref(number), attribute, self.device)
            parts.append(number.value)
        return Gpu(text.value.decode(errors="replace"), f"{parts[0]}.{parts[1]}", self.version)

    def retain(self) -> ctypes.c_void_p:
        """The device's primary context, which TensorRT uses as well."""
        return self.new("cuDevicePrimaryCtxRetain", self.device)

    @contextmanager
    def current(self, context: ctypes.c_void_p) -> Iterator[None]:
        """Makes `context` this thread's, and the earlier one again at the end: other libraries of the
        caller's may be at work on another GPU."""
        self("cuCtxPushCurrent_v2", context)
        try:
            yield
        finally:
            with suppress(DeviceError):
                self.new("cuCtxPopCurrent_v2")

    def new(self, function: str, *arguments: Any) -> ctypes.c_void_p:
        """What a function returns through its first argument."""
        handle = ctypes.c_void_p()
        self(function, ctypes.byref(handle), *arguments)
        return handle


def driver() -> Driver:
    """Raises BackendUnavailable where there is no driver or no GPU."""
    name = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"
    try:
        cuda = ctypes.CDLL(name)
    except OSError:
        raise BackendUnavailable(
            f"TensorRT needs an NVIDIA GPU and its driver, and {name} is not there; install the "
            "driver (in a container: start it with its GPU option)"
        ) from None
    return Driver(cuda)


# The cache ----------------------------------------------------------------------------------------


def fingerprint(model: Model, norm: str) -> str:
    """SHA-256 of the layers and of the weights that are built in; a model's `digest` would not
    notice tensors that were replaced after loading."""
    tensors = model.core_tensors(norm)
    result = hashlib.sha256(json.dumps(model.layers(norm)).encode())
    for name in tensors:
        result.update(name.encode() + b"\0")
        result.update(np.ascontiguousarray(tensors[name]).data)
    return result.hexdigest()


def cache_key(trt: Any, gpu: Gpu, digest: str, form: Form, profile: Profile) -> dict[str, Any]:
    """Everything that decides an engine's bytes or whether it may run."""
    return {
        "layout": LAYOUT,
        "pix2pix_fast": __version__,
        "library": [trt.__name__, trt.__version__],
        "gpu": list(gpu),
        "model": digest,
        "form": list(form.checked()),
        "profile": [list(profile.best), list(profile.most), profile.batch],
    }


def folder() -> Path:
    return cache_folder("P2P_TRT_CACHE", "tensorrt")


def cached(
    trt: Any,
    gpu: Gpu,
    model: Model,
    form: Form,
    profile: Profile,
    *,
    digest: str = "",
    progress: Progress | None = None,
) -> tuple[bytes, Path | None]:
    """The engine and its file in the cache, built and kept there if it is not; a file that does not fit
    its key or its digest is built again, one that cannot be kept is a warning (None: nowhere to keep
    it). `digest`: `fingerprint`, where it is known."""
    key = cache_key(trt, gpu, digest or fingerprint(model, form.norm), form, profile)
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]
    try:
        path = folder() / f"{name}.engine"
    except OSError as error:
        log.warning("the engine is not kept: %s", error)
        return build(trt, model, form, profile, progress=progress), None
    plan = _read(path, key)
    if plan is None:
        log.info("building a TensorRT engine, which takes a while: %s", path)
        plan = build(trt, model, form, profile, progress=progress)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as stream:
                stream.write(MAGIC + json.dumps(key).encode() + b"\n")
                stream.write(hashlib.sha256(plan).hexdigest().encode() + b"\n" + plan)
        except OSError as error:
            log.warning("the engine is not kept (%s); P2P_TRT_CACHE names another folder", error)
    return plan, path


def _read(path: Path, key: Mapping[str, Any]) -> bytes | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("%s cannot be read (%s); building again", path, error)
        return None
    head = data.split(b"\n", 3)
    with suppress(ValueError):
        if data.startswith(MAGIC) and len(head) == 4:
            if json.loads(head[1]) != key:
                log.warning("%s was built for something else; building again", path)
                return None
            if hashlib.sha256(head[3]).hexdigest().encode() == head[2]:
                return head[3]
    log.warning("%s is damaged; building again", path)
    return None


def compile_tensorrt(model: Model, options: Options, release: bool = False) -> Executable:
    """For backends.py. "auto" is f32. Errors: BackendUnavailable."""
    from .tensorrt_run import Executable

    cuda = driver()
    return Executable(library(cuda.gpu()), cuda, model, options)


# Ahead of time: `pix2pix-fast build-trt`


def prepare(
    model: Model,
    *,
    precision: Literal["f32", "f16", "bf16"] = "f32",
    norm: Literal["image", "running"] = "image",
    size: Size | None = None,
    deconv: str = "",
    pixels: str = "uint8",
    capability: str = "",
    target: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Build the engine that Engine(backend="tensorrt") will look for into this machine's cache; or,
    with `target`, the plain engine into that file, for `capability` if no GPU is here. Errors:
    ValueError for a wrong option, BackendUnavailable, OSError where it cannot be written."""
    form = Form(precision, deconv, norm, pixels=pixels).checked()
    given = size or model.first_size()
    profile = Profile.around((given[0], given[1]), model.architecture.multiple)
    if target is None:
        if capability:
            raise ValueError("capability: the cache is for this machine's GPU; give a target too")
        gpu = driver().gpu()
        folder().mkdir(parents=True, exist_ok=True)  # this time, not keeping it is an error
        path = cached(library(gpu), gpu, model, form, profile, progress=progress)[1]
        if path is None or not path.exists():
            raise OSError(f"{path} could not be written; P2P_TRT_CACHE names another folder")
        return path
    plan = build(library(), model, form, profile, capability=capability, progress=progress)
    with atomic_file(target) as stream:
        stream.write(plan)
    return Path(target)
