// See fibers.h. One machine stack and a stack for each fiber of a cluster; a switch saves the six registers that a callee must
// keep.
#include "run.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#include "fibers.h"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace p2p::cuda::host {

Place place;
char* shared;

namespace {

constexpr int32_t kWarp = 32, kStackBytes = 64 << 10, kSharedMax = 227 << 10, kClusterMax = 8;

#if defined(__x86_64__)
extern "C" void p2p_fiber_switch(void** from, void* to);
asm(R"(
.text
.type p2p_fiber_switch, @function
p2p_fiber_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
struct Context {
  void* sp = nullptr;
  void start(char* stack, void (*entry)()) {
    void** top = (void**)(stack + kStackBytes);
    *--top = nullptr;  // keeps the entry's stack pointer at 8 modulo 16, as after a call
    *--top = (void*)entry;
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    sp = top;
  }
  static void change(Context& from, Context& to) { p2p_fiber_switch(&from.sp, to.sp); }
};
#else
struct Context {
  ucontext_t u;
  void start(char* stack, void (*entry)()) {
    getcontext(&u);
    u.uc_stack.ss_sp = stack;
    u.uc_stack.ss_size = kStackBytes;
    u.uc_link = nullptr;
    makecontext(&u, entry, 0);
  }
  static void change(Context& from, Context& to) { swapcontext(&from.u, &to.u); }
};
#endif

enum class State : uint8_t { kReady, kBarrier, kWarp, kCluster, kDone };

struct Copy {
  char* to;
  const void* from;
  bool valid;
};

struct Fiber {
  Context context;
  State state = State::kDone;
  std::vector<std::vector<Copy>> groups;  // committed, oldest first
  std::vector<Copy> open;
  bool waited = false;        // grid_wait was called
  uint32_t fenced = 0;        // time of the latest fence
  const void* arrived = nullptr;  // counter whose arrivals the next fence makes visible
  uint32_t cluster_arrived = 0, cluster_waited = 0;  // barriers of the cluster
};

struct Word {  // of shared memory
  uint32_t written = 0, read = 0;  // epochs
  int16_t writer = -1, reader = -1;  // reader -2: several
  // Cluster barriers: how many the latest user of this block, or of another one, had arrived at; -1: none.
  int16_t used_here = -1, used_there = -1;
  int16_t there = -1;  // that other block
};

struct Warp {
  std::array<void*, kWarp> lanes;
  int32_t arrived = 0, what = 0;
};

// Who wrote a word of global memory last.
struct Trace {
  uint32_t launch = 0, block = 0, epoch = 0, time = 0;
  int32_t thread = 0;
};

struct Free {
  void operator()(void* memory) const { free(memory); }
};

struct Region {
  const char *begin, *end;
  Memory memory;
  std::unique_ptr<Trace[], Free> traces;  // a word each; kOutput only
};

// A block's arrival at a counter: what it wrote before `time` is out, its other threads' writes before `epoch`.
struct Arrival {
  uint32_t block, time, epoch;
  int32_t thread;
};

// What this block has seen of another one, and from when on: its thread at once, the others after a barrier.
struct Seen {
  Arrival arrival;
  uint32_t epoch;
  int32_t thread;
};

struct Block {
  int32_t rank;            // in its cluster
  int32_t index[3];
  std::unique_ptr<char, Free> memory;  // shared
  char* stacks;
  std::array<Fiber, kThreads> fibers;
  std::array<Warp, kThreads / kWarp> warps;
  std::vector<Word> words = std::vector<Word>(kSharedMax / 4);
  std::vector<Seen> seen;
  uint32_t epoch, number;
  int32_t used_there;      // of its words
};

Context scheduler;
std::vector<std::unique_ptr<Block>> blocks;  // as many as the largest cluster so far
int32_t cluster_size;
Block* block;                                // the running one
std::vector<Region> regions;
std::unordered_map<const void*, std::vector<Arrival>> arrivals;  // of this launch, by counter
uint32_t launches, block_number, now;
bool trusting;
int32_t shared_size;
LayerKernel kernel;
const LayerArgs* arguments;
std::string failure;

Fiber& self() { return block->fibers[place.thread]; }

void pause(State state) {
  Fiber& fiber = self();
  fiber.state = state;
  Context::change(fiber.context, scheduler);
}

void entry() {
  kernel(*arguments);
  if (!self().waited) fail("a thread ends that never called grid_wait: its kernel may end before the one in front");
  for (const auto& group : self().groups)
    if (!group.empty()) fail("a thread ends with a copy that nobody waited for");
  if (self().cluster_arrived > self().cluster_waited) fail("a thread ends that arrived at a cluster barrier and never waited");
  pause(State::kDone);
  std::abort();
}

void land(const std::vector<Copy>& group) {
  for (const Copy& copy : group) {
    check_shared(copy.to, 16, true);
    if (copy.valid) std::memcpy(copy.to, copy.from, 16);
    else std::memset(copy.to, 0, 16);
  }
}

}  // namespace

void fail(const char* message) {
  failure = std::string(message) + " (thread " + std::to_string(place.thread) + ", block " + std::to_string(place.block[0]) +
            " " + std::to_string(place.block[1]) + " " + std::to_string(place.block[2]) + ")";
  Context::change(self().context, scheduler);
  std::abort();
}

namespace {

Region* region_of(const char* begin, int64_t bytes, bool write) {
  static size_t latest = 0;
  const auto holds = [&](const Region& r) {
    return begin >= r.begin && begin + bytes <= r.end && (!write || r.memory == Memory::kOutput);
  };
  if (latest < regions.size() && holds(regions[latest])) return &regions[latest];
  for (size_t i = 0; i < regions.size(); ++i)
    if (holds(regions[i])) return &regions[latest = i];
  return nullptr;
}

bool was_seen(const Trace& trace) {
  for (const Seen& s : block->seen) {
    const bool mine = s.thread == place.thread || s.epoch < block->epoch;
    const bool out = trace.time <= s.arrival.time && (trace.thread == s.arrival.thread || trace.epoch < s.arrival.epoch);
    if (s.arrival.block == trace.block && mine && out) return true;
  }
  return false;
}

// Orders between threads and blocks of one launch. Words only: bytes of pictures are written once and never read.
void check_order(Region& region, const char* begin, int64_t bytes, bool write, bool of_blocks) {
  for (int64_t w = (begin - region.begin) / 4; w < (begin - region.begin + bytes) / 4; ++w) {
    Trace& trace = region.traces[w];
    if (trace.launch == launches && trace.block == block->number) {
      if (trace.thread != place.thread && trace.epoch == block->epoch)
        fail("race: a word of global memory that another thread of the block writes, no barrier between");
    } else if (trace.launch == launches) {
      if (!was_seen(trace)) fail("race: a word of global memory that another block writes, no arrival and fence between");
      if (!write && !of_blocks) fail("reads what another block wrote without load_of_blocks: this SM's cache may be old");
    }
    if (write) trace = {launches, block->number, block->epoch, now, place.thread};
  }
}

}  // namespace

void check_global(const void* at, int64_t bytes, bool write, bool of_blocks) {
  if ((uintptr_t)at % bytes) fail("misaligned access to global memory");
  const Region* region = region_of((const char*)at, bytes, write);
  if (!region && trusting) return;
  if (!region) fail(write ? "write outside the buffers" : "read outside the buffers");
  if (!self().waited && region->memory != Memory::kConstant)
    fail(write ? "write before grid_wait" : "read before grid_wait of what another kernel may still write");
  if (write) ++now;
  if (region->traces && bytes >= 4) check_order(*(Region*)region, (const char*)at, bytes, write, of_blocks);
}

void wait_for_grid() { self().waited = true; }

// What the thread wrote, and what its block wrote in front of a barrier, is out; what arrived at the counter can be seen.
void fence_all() {
  Fiber& fiber = self();
  fiber.fenced = ++now;
  if (!fiber.arrived) return;
  for (const Arrival& arrival : arrivals[fiber.arrived]) block->seen.push_back({arrival, block->epoch, place.thread});
  fiber.arrived = nullptr;
}

uint32_t arrive_at(uint32_t* counter) {
  Fiber& fiber = self();
  if (!fiber.waited) fail("write before grid_wait");
  if ((uintptr_t)counter % 4) fail("misaligned access to global memory");
  if (!trusting && !region_of((const char*)counter, 4, true)) fail("write outside the buffers");
  arrivals[counter].push_back({block->number, fiber.fenced, block->epoch, place.thread});
  fiber.arrived = counter;
  return (*counter)++;
}

void check_shared(const void* at, int64_t bytes, bool write) {
  const int64_t offset = (const char*)at - shared;
  if (offset < 0 || offset + bytes > shared_size) fail("access outside shared memory");
  if (offset % bytes) fail("misaligned access to shared memory");
  const int16_t me = (int16_t)place.thread;
  const uint32_t epoch = block->epoch;
  for (int64_t w = offset / 4; w < (offset + bytes) / 4; ++w) {
    Word& word = block->words[w];
    if (word.used_there >= (int32_t)self().cluster_waited)
      fail("race: a word of shared memory that another block of the cluster writes, no cluster barrier between");
    word.used_here = (int16_t)self().cluster_arrived;
    if (word.written == epoch && word.writer != me) fail("race: a word of shared memory that another thread writes, no barrier between");
    if (write) {
      if (word.read == epoch && word.reader != me) fail("race: writes a word of shared memory that another thread reads, no barrier between");
      word.written = epoch;
      word.writer = me;
    } else {
      word.reader = word.read == epoch && word.reader != me ? -2 : me;
      word.read = epoch;
    }
  }
}

void barrier() { pause(State::kBarrier); }

int32_t rank_in_cluster() { return block->rank; }

void arrive_in_cluster() {
  if (self().cluster_arrived > self().cluster_waited) fail("a thread arrives twice at a cluster barrier");
  ++self().cluster_arrived;
}

void wait_for_cluster() {
  if (self().cluster_arrived == self().cluster_waited) fail("a thread waits at a cluster barrier where it has not arrived");
  pause(State::kCluster);
  ++self().cluster_waited;
}

char* in_block(const void* at, int64_t bytes, int32_t rank) {
  const int64_t offset = (const char*)at - shared;
  if (rank < 0 || rank >= cluster_size) fail("a block outside the cluster");
  if (offset < 0 || offset + bytes > shared_size) fail("access outside shared memory of a block of the cluster");
  if (offset % bytes) fail("misaligned access to shared memory of a block of the cluster");
  if (self().cluster_waited == 0) fail("shared memory of a block that may not have begun: no cluster barrier in front");
  Block& other = *blocks[rank];
  for (int64_t w = offset / 4; w < (offset + bytes) / 4; ++w) {
    Word& word = other.words[w];
    const bool mine = word.there == block->rank * kThreads + place.thread;
    if ((word.used_there >= (int32_t)self().cluster_waited && !mine) || (&other != block && word.used_here >= (int32_t)self().cluster_waited))
      fail("race: writes a word of another block's shared memory that is in use, no cluster barrier between");
    word.used_there = (int16_t)self().cluster_arrived;
    word.there = (int16_t)(block->rank * kThreads + place.thread);
  }
  other.used_there = std::max(other.used_there, (int32_t)self().cluster_arrived);
  if (std::all_of(other.fibers.begin(), other.fibers.end(), [](const Fiber& f) { return f.state == State::kDone; }))
    fail("shared memory of a block that has ended");
  return other.memory.get() + offset;
}

void issue_copy(char* to, const void* from, bool valid) {
  if (valid) check_global(from, 16, false, false);
  check_shared(to, 16, true);
  self().open.push_back({to, from, valid});
}
void commit_copies() {
  Fiber& fiber = self();
  fiber.groups.push_back(std::move(fiber.open));
  fiber.open.clear();
}
void wait_copies(int32_t pending) {
  Fiber& fiber = self();
  while ((int32_t)fiber.groups.size() > pending) {
    land(fiber.groups.front());
    fiber.groups.erase(fiber.groups.begin());
  }
}

void together(int32_t what, void* mine, void (*all)(void* const* lanes)) {
  Warp& warp = block->warps[place.thread / kWarp];
  if (warp.arrived > 0 && warp.what != what) fail("lanes of a warp are at different instructions");
  warp.what = what;
  warp.lanes[place.thread % kWarp] = mine;
  if (++warp.arrived < kWarp) {
    pause(State::kWarp);
    return;
  }
  all(warp.lanes.data());
  warp.arrived = 0;
  for (int32_t lane = 0; lane < kWarp; ++lane) {
    Fiber& fiber = block->fibers[place.thread / kWarp * kWarp + lane];
    if (fiber.state == State::kWarp) fiber.state = State::kReady;
  }
}

float half_table(uint16_t bits) {
  static const std::vector<float> table = [] {
    std::vector<float> t(1 << 16);
    for (int32_t i = 0; i < 1 << 16; ++i) t[i] = from_f16((uint16_t)i);
    return t;
  }();
  return table[bits];
}

// Lane l holds row l / 4, columns 2 (l % 4) and the next, of each matrix.
void ldmatrix_all(void* const* lanes) {
  for (int32_t lane = 0; lane < kWarp; ++lane)
    for (int32_t matrix = 0; matrix < 4; ++matrix)
      std::memcpy(&((Ldmatrix*)lanes[lane])->r[matrix], ((Ldmatrix*)lanes[8 * matrix + lane / 4])->row + lane % 4 * 4, 4);
}

namespace {

// The fragments of mma.m16n8k16, from the PTX manual: with g = lane / 4 and t = lane % 4,
//   a[i]: row g + 8 (i % 2), columns 2t + 8 (i / 2) and the next     b[i]: rows 2t + 8 i and the next, column g
//   d[i]: row g + 8 (i / 2), column 2t + i % 2
template <class Wide>
void mma_all(void* const* lanes, Wide wide) {
  float a[16][16], b[16][8], d[16][8];
  for (int32_t lane = 0; lane < kWarp; ++lane) {
    const Mma& m = *(Mma*)lanes[lane];
    const int32_t g = lane / 4, t = lane % 4;
    for (int32_t i = 0; i < 4; ++i) {
      a[g + i % 2 * 8][2 * t + i / 2 * 8] = wide((uint16_t)m.a[i]);
      a[g + i % 2 * 8][2 * t + i / 2 * 8 + 1] = wide((uint16_t)(m.a[i] >> 16));
      d[g + i / 2 * 8][2 * t + i % 2] = m.d[i];
    }
    for (int32_t i = 0; i < 2; ++i) {
      b[2 * t + 8 * i][g] = wide((uint16_t)m.b[i]);
      b[2 * t + 8 * i + 1][g] = wide((uint16_t)(m.b[i] >> 16));
    }
  }
  for (int32_t r = 0; r < 16; ++r)
    for (int32_t k = 0; k < 16; ++k)
      for (int32_t c = 0; c < 8; ++c) d[r][c] += a[r][k] * b[k][c];
  for (int32_t lane = 0; lane < kWarp; ++lane)
    for (int32_t i = 0; i < 4; ++i) ((Mma*)lanes[lane])->d[i] = d[lane / 4 + i / 2 * 8][2 * (lane % 4) + i % 2];
}

}  // namespace

void mma_f16_all(void* const* lanes) { mma_all(lanes, [](uint16_t v) { return half_table(v); }); }
void mma_bf16_all(void* const* lanes) { mma_all(lanes, [](uint16_t v) { return from_bf16(v); }); }

namespace {

void begin(Block& b) {
  std::fill(b.words.begin(), b.words.begin() + shared_size / 4, Word{});
  std::fill_n((uint32_t*)b.memory.get(), shared_size / 4, 0x7FFF7FFFu);  // NaN as f32, f16 and bf16
#if defined(__SANITIZE_ADDRESS__)  // the last block's frames, which never return, left their marks
  __asan_unpoison_memory_region(b.stacks, (size_t)kThreads * kStackBytes);
#endif
  b.epoch = 1;
  b.number = ++block_number;
  b.used_there = -1;
  b.seen.clear();
  for (int32_t t = 0; t < kThreads; ++t) {
    Fiber& fiber = b.fibers[t];
    fiber.state = State::kReady;
    fiber.groups.clear();
    fiber.open.clear();
    fiber.waited = false;
    fiber.fenced = 0;
    fiber.arrived = nullptr;
    fiber.cluster_arrived = fiber.cluster_waited = 0;
    fiber.context.start(b.stacks + (int64_t)t * kStackBytes, entry);
  }
  for (Warp& warp : b.warps) warp.arrived = 0;
}

int32_t count(const Block& b, State state) {
  return (int32_t)std::count_if(b.fibers.begin(), b.fibers.end(), [&](const Fiber& f) { return f.state == state; });
}

// Cluster barriers at which all threads have arrived; one that has ended counts as arrived.
uint32_t passed() {
  uint32_t least = UINT32_MAX;
  for (int32_t i = 0; i < cluster_size; ++i)
    for (const Fiber& fiber : blocks[i]->fibers)
      if (fiber.state != State::kDone) least = std::min(least, fiber.cluster_arrived);
  return least;
}

// As far as the block comes without the others of its cluster; false if that is nowhere.
bool run_ahead(Block& b, std::mt19937& random) {
  std::array<int32_t, kThreads / kWarp> warp_order;
  std::array<int32_t, kWarp> lane_order;
  for (size_t i = 0; i < warp_order.size(); ++i) warp_order[i] = (int32_t)i;
  for (int32_t i = 0; i < kWarp; ++i) lane_order[i] = i;
  block = &b;
  shared = b.memory.get();
  std::copy_n(b.index, 3, place.block);
  for (bool ran = false;; ran = true) {
    if (cluster_size > 1 || count(b, State::kCluster)) {
      const uint32_t free = passed();
      for (Fiber& fiber : b.fibers)
        if (fiber.state == State::kCluster && fiber.cluster_arrived <= free) fiber.state = State::kReady;
    }
    std::shuffle(warp_order.begin(), warp_order.end(), random);
    std::shuffle(lane_order.begin(), lane_order.end(), random);
    bool moved = false;
    for (int32_t warp : warp_order)
      for (bool more = true; more;) {
        more = false;
        for (int32_t lane : lane_order) {
          place.thread = warp * kWarp + lane;
          if (self().state != State::kReady) continue;
          more = moved = true;
          Context::change(scheduler, self().context);
          if (!failure.empty()) throw std::runtime_error(failure);
        }
      }
    if (count(b, State::kBarrier) == kThreads) {
      ++b.epoch;
      for (Fiber& fiber : b.fibers) fiber.state = State::kReady;
    } else if (!moved) {
      return ran;
    }
  }
}

// Its words were used by others up to a barrier at which one of its own threads must have waited before the last one ended.
void end(const Block& b) {
  for (const Fiber& fiber : b.fibers)
    if ((int32_t)fiber.cluster_waited > b.used_there) return;
  throw std::runtime_error("a block ends while another one of its cluster may still use its shared memory (block " +
                           std::to_string(b.index[0]) + " " + std::to_string(b.index[1]) + " " + std::to_string(b.index[2]) + ")");
}

// Blocks [first, first + cluster_size) of the grid.
void run_cluster(int64_t first, std::mt19937& random) {
  std::vector<Block*> order;
  for (int32_t rank = 0; rank < cluster_size; ++rank) {
    Block& b = *blocks[rank];
    const int64_t index = first + rank;
    b.rank = rank;
    b.index[0] = (int32_t)(index % place.blocks[0]);
    b.index[1] = (int32_t)(index / place.blocks[0] % place.blocks[1]);
    b.index[2] = (int32_t)(index / place.blocks[0] / place.blocks[1]);
    begin(b);
    order.push_back(&b);
  }
  for (bool moved = true; moved;) {
    moved = false;
    std::shuffle(order.begin(), order.end(), random);
    for (Block* b : order) {
      if (count(*b, State::kDone) == kThreads) continue;
      moved |= run_ahead(*b, random);
      if (count(*b, State::kDone) == kThreads) end(*b);
    }
  }
  for (const Block* b : order) {
    if (count(*b, State::kWarp)) throw std::runtime_error("a warp-wide instruction that some lanes never reach");
    if (count(*b, State::kBarrier)) throw std::runtime_error("a barrier that some threads never reach");
  }
}

}  // namespace

void allow(const void* begin, int64_t bytes, Memory memory) {
  if (!begin || bytes <= 0) return;
  Trace* traces = memory == Memory::kOutput ? (Trace*)calloc((bytes + 3) / 4, sizeof(Trace)) : nullptr;  // untouched: no memory
  regions.push_back({(const char*)begin, (const char*)begin + bytes, memory, std::unique_ptr<Trace[], Free>(traces)});
}
void forbid_all() { regions.clear(); }
void trust(bool all) { trusting = all; }

void run(const Launch& launch, uint32_t seed) {
  cluster_size = std::max(launch.args.cluster, 1);
  if (cluster_size > kClusterMax || launch.grid_x % cluster_size) throw std::runtime_error("a cluster that no device takes");
  while ((int32_t)blocks.size() < cluster_size) {
    blocks.push_back(std::make_unique<Block>());
    blocks.back()->stacks = (char*)mmap(nullptr, (int64_t)kThreads * kStackBytes, PROT_READ | PROT_WRITE,
                                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    blocks.back()->memory.reset((char*)aligned_alloc(128, kSharedMax));
  }
  kernel = kernel_of(launch);
  if (!kernel) throw std::runtime_error("there is no such kernel");
  arguments = &launch.args;
  failure.clear();
  ++launches;
  arrivals.clear();
  shared_size = shared_bytes(launch);
  if (shared_size > (launch.args.cluster ? kSharedMax : 48 << 10)) throw std::runtime_error("more shared memory than a block has");
  const int32_t grid[3] = {launch.grid_x, launch.grid_y, launch.grid_z};
  std::copy_n(grid, 3, place.blocks);
  std::mt19937 random(seed);
  std::vector<int64_t> order((int64_t)grid[0] * grid[1] * grid[2] / cluster_size);
  for (size_t i = 0; i < order.size(); ++i) order[i] = (int64_t)i;
  std::shuffle(order.begin(), order.end(), random);
  for (int64_t index : order) run_cluster(index * cluster_size, random);
}

}  // namespace p2p::cuda::host
