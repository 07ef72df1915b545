// The door to Python: module pix2pix_fast._core. The only file that knows pybind11: argument checks, GIL, exceptions.
// Contracts in words: pix2pix_fast/_core.pyi.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <unistd.h>

#include <chrono>

#include "backend.h"
#include "check.h"
#include "cpu/isa.h"
#include "cpu/peaks.h"
#include "cpu/probe.h"
#include "cpu/registry.h"
#include "yuv.h"
#ifdef P2P_CUDA
#include "cuda/driver_state.h"
#endif

namespace py = pybind11;
using namespace pybind11::literals;

namespace {

using p2p::text;

using FloatArray = py::array_t<float, py::array::c_style>;

// The GIL given up, and taken back for a while inside. A thread that wants it when the interpreter has begun to end is ended by
// Python with pthread_exit, or, from 3.14 on, sleeps for ever. An exit would unwind through destructors, which is
// std::terminate, and free buffers that the pool's threads still use; so here it sleeps with every Python. (pybind11's two
// classes do not, and look up the thread's state, which may be gone by then.)
thread_local PyThreadState* unlocked = nullptr;

void lock() {
  try {
    PyEval_RestoreThread(unlocked);
  } catch (...) {
    for (;;) pause();
  }
}

struct WithoutGil {
  WithoutGil() { unlocked = PyEval_SaveThread(); }
  ~WithoutGil() { lock(); }
};

struct WithGil {
  WithGil() { lock(); }
  ~WithGil() { unlocked = PyEval_SaveThread(); }
};

// Polls Python's signals about ten times a second: taking the GIL more often could cost a 5 ms switch interval each time.
class SignalCheck final : public p2p::Interrupt {
 public:
  bool requested() override {
    const auto now = std::chrono::steady_clock::now();
    if (now - last_ < std::chrono::milliseconds(100)) return false;
    last_ = now;
    const WithGil locked;
    return raised_ = PyErr_CheckSignals() != 0;
  }
  bool raised() const { return raised_; }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
  bool raised_ = false;
};

p2p::Layer layer_of(const py::dict& d) {
  const auto get = [&](const char* key) -> py::object {
    P2P_REQUIRE(d.contains(key), "layer: the key '", key, "' is missing");
    return d[key];
  };
  p2p::Layer l{};
  l.name = get("name").cast<std::string>();
  const std::string op = get("op").cast<std::string>();
  P2P_REQUIRE(op == "conv4x4s2" || op == "deconv4x4s2", "layer '", l.name, "': unknown op '", op,
              "', expected conv4x4s2 or deconv4x4s2");
  l.op = op == "conv4x4s2" ? p2p::LayerOp::kConv4x4s2 : p2p::LayerOp::kDeconv4x4s2;
  l.ci = get("ci").cast<int32_t>();
  l.co = get("co").cast<int32_t>();
  l.slope = get("slope").cast<float>();
  l.norm = get("norm").cast<bool>();
  l.eps = get("eps").cast<float>();
  l.skip = get("skip").cast<std::string>();
  l.dropout = get("dropout").cast<float>();
  l.tanh = get("tanh").cast<bool>();
  return l;
}

// Reads a mapping of arrays layer by layer and keeps only the latest layer's arrays alive.
class MappingSource final : public p2p::WeightSource {
 public:
  explicit MappingSource(py::object tensors) : tensors_(std::move(tensors)) {}

  p2p::LayerTensors fetch(const p2p::Layer& layer) override {
    const WithGil locked;
    held_.clear();
    const bool down = layer.op == p2p::LayerOp::kConv4x4s2;
    const py::ssize_t outer = down ? layer.co : layer.ci, inner = down ? layer.ci : layer.co;
    p2p::LayerTensors t{};
    t.weight = get(layer.name + ".weight", {outer, inner, 4, 4}, true);
    t.bias = get(layer.name + ".bias", {layer.co}, false);
    t.gamma = get(layer.name + ".norm.weight", {layer.co}, false);
    t.beta = get(layer.name + ".norm.bias", {layer.co}, false);
    return t;
  }

 private:
  const float* get(const std::string& name, const std::vector<py::ssize_t>& shape, bool required) {
    if (!tensors_.contains(name)) {
      P2P_REQUIRE(!required, "tensor '", name, "' is missing");
      return nullptr;
    }
    const py::object value = tensors_[py::str(name)];
    P2P_REQUIRE(py::isinstance<FloatArray>(value), "tensor '", name, "': expected a C-contiguous float32 array, got ",
                py::str(py::type::of(value)).cast<std::string>());
    FloatArray array = value;
    P2P_REQUIRE((uintptr_t)array.data() % sizeof(float) == 0, "tensor '", name, "': expected numbers at multiples of 4 bytes");
    const std::vector<py::ssize_t> got(array.shape(), array.shape() + array.ndim());
    P2P_REQUIRE(got == shape, "tensor '", name, "': expected shape ", py::str(py::tuple(py::cast(shape))).cast<std::string>(),
                ", got ", py::str(py::tuple(py::cast(got))).cast<std::string>());
    held_.push_back(array);
    return array.data();
  }

  py::object tensors_;
  std::vector<FloatArray> held_;
};

p2p::ImageView view_of(const py::array& array, const char* name, int32_t channels, std::pair<float, float> range,
                       bool writeable) {
  P2P_REQUIRE(array.ndim() == 4, name, ": expected 4 dimensions (n, h, w, c), got ", array.ndim());
  P2P_REQUIRE(array.shape(3) == channels, name, ": the model has ", channels, " channels, the array ", array.shape(3));
  for (int axis = 0; axis < 3; ++axis)
    P2P_REQUIRE((axis == 0 || array.shape(axis) >= 1) && array.shape(axis) <= (1 << 24), name, ": axis ", axis,
                " has an impossible size ", array.shape(axis));
  P2P_REQUIRE(range.second > range.first, "value_range: expected low < high, got (", range.first, ", ", range.second, ")");
  p2p::ImageView v{};
  const py::dtype type = array.dtype();
  if (type.equal(py::dtype::of<uint8_t>())) v.type = p2p::PixelType::kU8;
  else if (type.equal(py::dtype::of<uint16_t>())) v.type = p2p::PixelType::kU16;
  else if (type.equal(py::dtype::of<float>())) v.type = p2p::PixelType::kF32;
  else P2P_REQUIRE(false, name, ": expected uint8, uint16 or float32, got ", py::str(type).cast<std::string>());
  P2P_REQUIRE(!writeable || array.writeable(), name, ": the array is read-only");
  v.data = (char*)array.data();
  v.n = (int32_t)array.shape(0);
  v.h = (int32_t)array.shape(1);
  v.w = (int32_t)array.shape(2);
  v.c = (int32_t)array.shape(3);
  v.stride_n = array.strides(0);
  v.stride_h = array.strides(1);
  v.stride_w = array.strides(2);
  v.stride_c = array.strides(3);
  v.low = range.first;
  v.high = range.second;
  return v;
}

// {"pointer", "shape": (n, h, w, c), "strides": in bytes, "dtype": "uint8" or "float32"} of the device's memory.
p2p::ImageView device_view_of(const py::dict& d, const char* name, int32_t channels, std::pair<float, float> range) {
  const auto shape = d["shape"].cast<std::vector<int64_t>>(), strides = d["strides"].cast<std::vector<int64_t>>();
  const auto type = d["dtype"].cast<std::string>();
  P2P_REQUIRE(shape.size() == 4 && strides.size() == 4, name, ": expected 4 dimensions (n, h, w, c), got ", shape.size());
  P2P_REQUIRE(shape[3] == channels, name, ": the model has ", channels, " channels, the array ", shape[3]);
  for (int axis = 0; axis < 3; ++axis)
    P2P_REQUIRE(shape[axis] >= (axis > 0) && shape[axis] <= (1 << 24), name, ": axis ", axis, " has an impossible size ",
                shape[axis]);
  P2P_REQUIRE(range.second > range.first, "value_range: expected low < high, got (", range.first, ", ", range.second, ")");
  P2P_REQUIRE(type == "uint8" || type == "float32", name, ": expected uint8 or float32, got ", type);
  const uintptr_t pointer = d["pointer"].cast<uintptr_t>();
  const int64_t bytes = type == "uint8" ? 1 : 4;
  bool aligned = pointer % bytes == 0;
  for (const int64_t stride : strides) aligned = aligned && stride % bytes == 0;
  P2P_REQUIRE(aligned, name, ": expected float32 at multiples of 4 bytes");
  P2P_REQUIRE(pointer || shape[0] == 0, name, ": a null pointer");
  return {(char*)pointer, bytes == 1 ? p2p::PixelType::kU8 : p2p::PixelType::kF32, (int32_t)shape[0], (int32_t)shape[1],
          (int32_t)shape[2], (int32_t)shape[3], strides[0], strides[1], strides[2], strides[3], range.first, range.second};
}

// What a DLPack capsule says, as dlpack.h 0.8 lays it out. The capsule stays the memory's owner: keep it while using it.
py::dict dlpack(const py::capsule& capsule) {
  struct Tensor {
    void* data;
    int32_t device_type, device_id, ndim;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t *shape, *strides;
    uint64_t byte_offset;
  };
  P2P_REQUIRE(std::string(capsule.name() ? capsule.name() : "") == "dltensor", "expected a DLPack capsule named 'dltensor'");
  const Tensor& t = *capsule.get_pointer<Tensor>();
  P2P_REQUIRE(t.ndim >= 0 && t.ndim <= 16 && t.lanes == 1 && t.bits % 8 == 0, "a DLPack tensor of an odd kind");
  std::vector<int64_t> shape(t.shape, t.shape + t.ndim), strides(t.ndim);
  int64_t dense = t.bits / 8;
  for (int32_t axis = t.ndim - 1; axis >= 0; --axis) {
    strides[axis] = t.strides ? t.strides[axis] * (t.bits / 8) : dense;
    dense *= shape[axis];
  }
  const char* kind = t.code == 0 ? "int" : t.code == 1 ? "uint" : t.code == 2 ? "float" : t.code == 4 ? "bfloat" : "other";
  return py::dict("pointer"_a = (uintptr_t)t.data + t.byte_offset, "device"_a = py::make_tuple(t.device_type, t.device_id),
                  "shape"_a = py::tuple(py::cast(shape)), "strides"_a = py::tuple(py::cast(strides)),
                  "dtype"_a = text(kind, (int)t.bits));
}

py::dict cuda() {
#ifdef P2P_CUDA
  p2p::cuda::DriverState state;
  {
    const WithoutGil released;
    state = p2p::cuda::driver_state();
  }
  py::list devices;
  for (const p2p::cuda::DeviceInfo& d : state.devices)
    devices.append(py::dict("name"_a = d.name, "capability"_a = text(d.major, ".", d.minor), "sms"_a = d.sms,
                            "memory_bytes"_a = d.memory_bytes));
  return py::dict("built"_a = true, "missing"_a = state.missing, "runtime"_a = state.runtime, "driver"_a = state.driver,
                  "devices"_a = devices);
#else
  return py::dict("built"_a = false, "missing"_a = p2p::kNoCuda, "runtime"_a = "", "driver"_a = "", "devices"_a = py::list());
#endif
}

class Engine {
 public:
  Engine(const std::vector<py::dict>& layers, const py::object& tensors, const std::string& precision, int threads,
         const std::string& isa, std::optional<uint64_t> dropout_seed, std::pair<int32_t, int32_t> size,
         const std::map<std::string, std::string>& kernels, const std::string& backend) {
    p2p::Network network;
    for (const py::dict& d : layers) network.layers.push_back(layer_of(d));
    P2P_REQUIRE(!layers.empty(), "layers: expected at least 4, got none");
    P2P_REQUIRE(precision == "f32" || precision == "bf16" || precision == "f16",
                "precision: expected 'f32', 'bf16' or 'f16', got '", precision, "'");
    P2P_REQUIRE(backend == "cpu" || backend == "cuda", "backend: expected 'cpu' or 'cuda', got '", backend, "'");
    P2P_REQUIRE(threads >= 0, "threads: expected 0 (all usable CPUs) or more, got ", threads);
    channels_in_ = network.layers.front().ci;
    channels_out_ = network.layers.back().co;
    MappingSource source(tensors);
    p2p::CompileOptions options;
    options.device = backend == "cuda" ? p2p::Device::kCuda : p2p::Device::kCpu;
    options.precision = precision == "f16"    ? p2p::Precision::kF16
                        : precision == "bf16" ? p2p::Precision::kBF16
                                              : p2p::Precision::kF32;
    options.threads = threads;
    options.isa = isa;
    options.dropout_seed = dropout_seed;
    options.kernels = kernels;
    options.h = size.first;
    options.w = size.second;
    const WithoutGil released;
    model_ = p2p::compile(std::move(network), source, options);
  }

  void run(const py::array& src, const py::array& dst, std::pair<float, float> range, uint64_t frame, bool alone) {
    const std::shared_ptr<p2p::CompiledModel> model = open();
    const p2p::ImageView in = view_of(src, "src", channels_in_, range, false);
    const p2p::ImageView out = view_of(dst, "dst", channels_out_, range, true);
    P2P_REQUIRE(in.n == out.n && in.h == out.h && in.w == out.w, "dst: expected the size of src, ", in.n, "x", in.h, "x",
                in.w, ", got ", out.n, "x", out.h, "x", out.w);
    SignalCheck signals;
    bool finished;
    {
      const WithoutGil released;
      finished = alone ? model->run_alone(in, out, frame, &signals) : model->run(in, out, frame, &signals);
    }
    if (!finished) {
      P2P_ASSERT(signals.raised());
      throw py::error_already_set();
    }
  }

  py::list timed(int32_t h, int32_t w, int32_t repeats) {
    P2P_REQUIRE(repeats >= 1 && repeats <= 1000, "repeats: expected 1 to 1000, got ", repeats);
    const std::shared_ptr<p2p::CompiledModel> model = open();
    std::vector<p2p::StepReport> found;
    {
      const WithoutGil released;
      found = model->timed(h, w, repeats);
    }
    return listed(found);
  }

  void run_on(const py::dict& src, const py::dict& dst, std::pair<float, float> range, uint64_t frame,
              std::optional<uintptr_t> stream) {
    const std::shared_ptr<p2p::CompiledModel> model = open();
    const p2p::ImageView in = device_view_of(src, "src", channels_in_, range);
    const p2p::ImageView out = device_view_of(dst, "dst", channels_out_, range);
    P2P_REQUIRE(in.n == out.n && in.h == out.h && in.w == out.w, "dst: expected the size of src, ", in.n, "x", in.h, "x",
                in.w, ", got ", out.n, "x", out.h, "x", out.w);
    const WithoutGil released;
    model->run_on(in, out, frame, stream);
  }

  std::vector<double> time_graph(int32_t n, int32_t h, int32_t w, int32_t repeats, int64_t flush_bytes) {
    P2P_REQUIRE(repeats >= 1 && repeats <= 100000, "repeats: expected 1 to 100000, got ", repeats);
    P2P_REQUIRE(flush_bytes >= 0, "flush_bytes: expected 0 or more, got ", flush_bytes);
    const std::shared_ptr<p2p::CompiledModel> model = open();
    const WithoutGil released;
    return model->timed_graph(n, h, w, repeats, flush_bytes);
  }

  int device() const { return open()->device(); }
  uintptr_t stream() const { return open()->stream(); }

  py::list plan(int32_t h, int32_t w) { return listed(open()->plan(h, w)); }

  static py::list listed(const std::vector<p2p::StepReport>& reports) {
    py::list steps;
    for (const p2p::StepReport& s : reports)
      steps.append(py::dict("layer"_a = s.layer, "kernel"_a = s.kernel, "hi"_a = s.hi, "wi"_a = s.wi, "ci"_a = s.ci,
                            "ho"_a = s.ho, "wo"_a = s.wo, "co"_a = s.co, "rows"_a = s.rows,
                            "tile_block"_a = s.tile_block, "macs"_a = s.macs, "direct_macs"_a = s.direct_macs,
                            "weight_bytes"_a = s.weight_bytes, "shared_bytes"_a = s.shared_bytes,
                            "estimate_us"_a = s.estimate_us, "measured_us"_a = s.measured_us));
    return steps;
  }

  py::dict activations(const py::array& src) {
    const std::shared_ptr<p2p::CompiledModel> model = open();
    const p2p::ImageView in = view_of(src, "src", channels_in_, {-1.0f, 1.0f}, false);
    P2P_REQUIRE(in.type == p2p::PixelType::kF32 && in.n == 1, "src: expected one float32 picture in [-1, 1]");
    std::vector<p2p::Activation> found;
    {
      const WithoutGil released;
      found = model->activations(in);
    }
    py::dict result;
    for (const p2p::Activation& a : found)
      result[py::str(a.layer)] = FloatArray({(py::ssize_t)1, (py::ssize_t)a.h, (py::ssize_t)a.w, (py::ssize_t)a.c},
                                            a.values.data());
    return result;
  }

  py::dict stats() {
    const p2p::ModelStats s = open()->stats();
    return py::dict("calls"_a = s.calls, "workspace_bytes"_a = s.workspace_bytes, "weight_bytes"_a = s.weight_bytes,
                    "load_seconds"_a = s.load_seconds, "isa"_a = s.isa, "threads"_a = s.threads,
                    "precision"_a = p2p::precision_name(s.precision));
  }

  void close() { model_.reset(); }

 private:
  // Shared with the call: close() in another thread must not pull the model away.
  std::shared_ptr<p2p::CompiledModel> open() const {
    P2P_REQUIRE(model_, "the engine is closed");
    return model_;
  }

  std::shared_ptr<p2p::CompiledModel> model_;
  int32_t channels_in_ = 0, channels_out_ = 0;
};

py::list kernel_ids() {
  py::list ids;
  for (const p2p::cpu::Kernel* kernel : p2p::cpu::all_kernels()) ids.append(kernel->id);
  return ids;
}

py::dict cpu() {
  py::list runnable;
  for (p2p::cpu::Isa isa : p2p::cpu::runnable_isas()) runnable.append(p2p::cpu::isa_name(isa));
  return py::dict("name"_a = p2p::cpu::cpu_name(), "isa"_a = p2p::cpu::isa_name(p2p::cpu::resolve_isa("")),
                  "runnable"_a = runnable, "cores"_a = p2p::cpu::usable_cpus());
}

py::dict peaks(const std::string& isa, const std::string& precision, int threads) {
  P2P_REQUIRE(precision == "f32" || precision == "bf16", "precision: expected 'f32' or 'bf16', got '", precision, "'");
  P2P_REQUIRE(threads >= 0 && threads <= 1024, "threads: expected 0 to 1024, got ", threads);
  const p2p::cpu::Isa room = p2p::cpu::resolve_isa(isa);
  if (precision == "bf16" && room < p2p::cpu::Isa::kAvx512Bf16)
    throw p2p::BackendUnavailable(text("precision 'bf16' needs the room avx512bf16 or amx, not ", p2p::cpu::isa_name(room)));
  p2p::Peaks found;
  {
    const WithoutGil released;
    p2p::cpu::ThreadPool pool(threads ? threads : p2p::cpu::usable_cpus());
    found = p2p::cpu::measured_peaks(room, precision == "bf16" ? p2p::cpu::DType::kBF16 : p2p::cpu::DType::kF32, pool);
  }
  return py::dict("flops"_a = found.flops, "bytes_per_second"_a = found.bytes_per_second);
}

py::dict run_kernel(const std::string& kernel, const FloatArray& src, const FloatArray& weight,
                    const std::optional<FloatArray>& skip, const std::optional<FloatArray>& bias,
                    const std::optional<FloatArray>& scale, const std::optional<FloatArray>& shift, float slope, bool tanh,
                    int tile_block, int threads, int repeats) {
  P2P_REQUIRE(src.ndim() == 3 && weight.ndim() == 4, "src: expected (h, w, c), weight: (.., .., 4, 4)");
  P2P_REQUIRE(weight.shape(2) == 4 && weight.shape(3) == 4, "weight: expected 4x4 taps");
  P2P_REQUIRE(!skip || (skip->ndim() == 3 && skip->shape(0) == src.shape(0) && skip->shape(1) == src.shape(1)),
              "skip: expected the size of src");
  p2p::cpu::ProbeInput in{};
  in.kernel = kernel;
  const bool down = kernel.find("/conv4x4s2") != std::string::npos;
  in.hi = (int)src.shape(0);
  in.wi = (int)src.shape(1);
  in.ci0 = (int)(skip ? skip->shape(2) : src.shape(2));
  in.ci1 = (int)(skip ? src.shape(2) : 0);
  in.co = (int)weight.shape(down ? 0 : 1);
  const int ci = in.ci0 + in.ci1;
  P2P_REQUIRE(weight.shape(down ? 1 : 0) == ci, "weight: expected ", ci, " input channels, got ", weight.shape(down ? 1 : 0));
  P2P_REQUIRE(!bias || bias->size() == in.co, "bias: expected ", in.co, " values");
  P2P_REQUIRE(!scale || (scale->size() == ci && shift && shift->size() == ci), "scale and shift: expected ", ci, " values");
  in.src0 = skip ? skip->data() : src.data();
  in.src1 = skip ? src.data() : nullptr;
  if (scale) {
    in.scale0 = scale->data();
    in.shift0 = shift->data();
    in.scale1 = scale->data() + in.ci0;
    in.shift1 = shift->data() + in.ci0;
  }
  in.weight = weight.data();
  in.bias = bias ? bias->data() : nullptr;
  in.slope = slope;
  in.tanh = tanh;
  in.tile_block = tile_block;
  in.threads = threads;
  in.repeats = repeats;
  p2p::cpu::ProbeOutput out;
  {
    const WithoutGil released;
    out = p2p::cpu::probe(in);
  }
  const py::ssize_t ho = down ? in.hi / 2 : in.hi * 2, wo = down ? in.wi / 2 : in.wi * 2;
  return py::dict("dst"_a = FloatArray({ho, wo, (py::ssize_t)in.co}, out.dst.data()),
                  "scale"_a = FloatArray((py::ssize_t)out.scale.size(), out.scale.data()),
                  "shift"_a = FloatArray((py::ssize_t)out.shift.size(), out.shift.data()), "seconds"_a = out.seconds,
                  "macs"_a = out.macs, "weight_bytes"_a = out.weight_bytes, "phases"_a = out.phases, "stat_blocks"_a = out.stat_blocks);
}

// Planes as PyAV hands them out: one-dimensional buffers with a line size.
class Planes {
 public:
  Planes(const py::sequence& buffers, const std::vector<int64_t>& strides, std::pair<int32_t, int32_t> size,
         std::pair<int32_t, int32_t> chroma, std::pair<float, float> k, bool full, bool writeable) {
    P2P_REQUIRE(buffers.size() == 3 && strides.size() == 3, "planes: expected three and their strides, got ",
                buffers.size(), " and ", strides.size());
    P2P_REQUIRE(size.first >= 1 && size.second >= 1 && size.first <= (1 << 16) && size.second <= (1 << 16),
                "size: expected 1 to 65536, got ", size.first, " x ", size.second);
    P2P_REQUIRE((chroma.first | 1) == 1 && (chroma.second | 1) == 1, "chroma: expected 0 or 1 twice, got ", chroma.first,
                ", ", chroma.second);
    P2P_REQUIRE(k.first > 0 && k.second > 0 && k.first + k.second < 1, "k: expected kr, kb > 0 and kr + kb < 1, got ",
                k.first, ", ", k.second);
    uint8_t* start[3];
    for (int i = 0; i < 3; ++i) {
      held_.push_back(py::reinterpret_borrow<py::buffer>(buffers[i]).request(writeable));
      P2P_REQUIRE(held_[i].ndim == 1 && held_[i].strides[0] == held_[i].itemsize, "plane ", i,
                  ": expected a contiguous buffer of one dimension");
      const int64_t rows = i ? (size.first + chroma.second) >> chroma.second : size.first;
      const int64_t columns = i ? (size.second + chroma.first) >> chroma.first : size.second;
      const int64_t bytes = held_[i].size * held_[i].itemsize;
      P2P_REQUIRE(strides[i] >= columns && strides[i] <= (1 << 24) && (rows - 1) * strides[i] + columns <= bytes, "plane ",
                  i, ": expected ", rows, " rows of ", columns, " bytes, got a stride of ", strides[i], " and ", bytes,
                  " bytes in all");
      start[i] = (uint8_t*)held_[i].ptr;
    }
    planes = {start[0],   start[1],     start[2],     strides[0], strides[1], strides[2], size.first,
              size.second, chroma.first, chroma.second, k.first,    k.second,   full};
  }
  p2p::YuvPlanes planes;

 private:
  std::vector<py::buffer_info> held_;
};

using ByteArray = py::array_t<uint8_t, py::array::c_style>;

int32_t channels_of(const ByteArray& array, const char* name, const p2p::YuvPlanes& p) {
  const bool gray = array.ndim() == 2;
  P2P_REQUIRE((gray || (array.ndim() == 3 && array.shape(2) == 3)) && array.shape(0) == p.h && array.shape(1) == p.w, name,
              ": expected (", p.h, ", ", p.w, ") or (", p.h, ", ", p.w, ", 3)");
  return gray ? 1 : 3;
}

void yuv_to_rgb(const py::sequence& planes, const std::vector<int64_t>& strides, std::pair<int32_t, int32_t> chroma,
                std::pair<float, float> k, bool full, ByteArray dst) {
  P2P_REQUIRE(dst.ndim() >= 2 && dst.writeable(), "dst: expected a writeable picture");
  const Planes held(planes, strides, {(int32_t)dst.shape(0), (int32_t)dst.shape(1)}, chroma, k, full, false);
  const int32_t channels = channels_of(dst, "dst", held.planes);
  uint8_t* to = dst.mutable_data();
  const WithoutGil released;
  p2p::yuv_to_rgb(held.planes, channels, to);
}

void rgb_to_yuv(const ByteArray& src, const py::sequence& planes, const std::vector<int64_t>& strides,
                std::pair<int32_t, int32_t> chroma, std::pair<float, float> k, bool full) {
  P2P_REQUIRE(src.ndim() >= 2, "src: expected a picture");
  const Planes held(planes, strides, {(int32_t)src.shape(0), (int32_t)src.shape(1)}, chroma, k, full, true);
  const int32_t channels = channels_of(src, "src", held.planes);
  const uint8_t* from = src.data();
  const WithoutGil released;
  p2p::rgb_to_yuv(from, channels, held.planes);
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "The C++ engine of pix2pix_fast. Use pix2pix_fast.Engine; this module is its door.";

  py::register_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const p2p::BackendUnavailable& e) {
      const py::object type = py::module_::import("pix2pix_fast.errors").attr("BackendUnavailable");
      py::set_error(type, e.what());
    } catch (const p2p::ForkError& e) {
      py::set_error(py::module_::import("pix2pix_fast.errors").attr("ForkError"), e.what());
    } catch (const p2p::OutOfMemory& e) {
      py::set_error(PyExc_MemoryError, e.what());
    }
  });

  m.def("kernels", &kernel_ids);
  m.def("cpu", &cpu);
  m.def("cuda", &cuda);
  m.def("dlpack", &dlpack, "capsule"_a);
  m.def("peaks", &peaks, py::kw_only(), "isa"_a = "", "precision"_a = "f32", "threads"_a = 0);
  m.def("run_kernel", &run_kernel, "kernel"_a, "src"_a.noconvert(), "weight"_a.noconvert(), py::kw_only(),
        "skip"_a = py::none(), "bias"_a = py::none(), "scale"_a = py::none(), "shift"_a = py::none(), "slope"_a = 1.0f,
        "tanh"_a = false, "tile_block"_a = -1, "threads"_a = 1, "repeats"_a = 0);

  m.def("yuv_to_rgb", &yuv_to_rgb, "planes"_a, "strides"_a, "chroma"_a, "k"_a, "full"_a, "dst"_a.noconvert());
  m.def("rgb_to_yuv", &rgb_to_yuv, "src"_a.noconvert(), "planes"_a, "strides"_a, "chroma"_a, "k"_a, "full"_a);

  py::class_<Engine>(m, "Engine")
      .def(py::init<const std::vector<py::dict>&, const py::object&, const std::string&, int, const std::string&,
                    std::optional<uint64_t>, std::pair<int32_t, int32_t>, const std::map<std::string, std::string>&,
                    const std::string&>(),
           "layers"_a, "tensors"_a, py::kw_only(), "precision"_a = "f32", "threads"_a = 0, "isa"_a = "",
           "dropout_seed"_a = py::none(), "size"_a = std::make_pair(256, 256),
           "kernels"_a = std::map<std::string, std::string>(), "backend"_a = "cpu")
      .def("run", &Engine::run, "src"_a, "dst"_a, py::kw_only(), "value_range"_a = std::make_pair(0.0f, 1.0f),
           "frame"_a = 0, "alone"_a = false)
      .def("run_on", &Engine::run_on, "src"_a, "dst"_a, py::kw_only(), "value_range"_a = std::make_pair(0.0f, 1.0f),
           "frame"_a = 0, "stream"_a = py::none())
      .def("time_graph", &Engine::time_graph, "n"_a, "h"_a, "w"_a, "repeats"_a = 10, "flush_bytes"_a = 0)
      .def_property_readonly("device", &Engine::device)
      .def_property_readonly("stream", &Engine::stream)
      .def("plan", &Engine::plan, "h"_a, "w"_a)
      .def("timed", &Engine::timed, "h"_a, "w"_a, "repeats"_a = 10)
      .def("activations", &Engine::activations, "src"_a)
      .def("stats", &Engine::stats)
      .def("close", &Engine::close);
}
