#include "registry.h"

#include "../check.h"

namespace p2p::cpu {

// One line a room. Rooms of another processor family are not compiled (CMakeLists.txt).
#if defined(P2P_ROOM_X86)
#if defined(P2P_ROOM_AMX)
namespace amx { extern const KernelTable kTable; }
#endif
namespace avx512bf16 { extern const KernelTable kTable; }
namespace avx512 { extern const KernelTable kTable; }
namespace avx2 { extern const KernelTable kTable; }
#endif
namespace scalar { extern const KernelTable kTable; }

namespace {

struct Room {
  Isa isa;
  const KernelTable* table;
};

const Room kRooms[] = {
#if defined(P2P_ROOM_X86)
#if defined(P2P_ROOM_AMX)
    {Isa::kAmx, &amx::kTable},
#endif
    {Isa::kAvx512Bf16, &avx512bf16::kTable},
    {Isa::kAvx512, &avx512::kTable},
    {Isa::kAvx2, &avx2::kTable},
#endif
    {Isa::kScalar, &scalar::kTable},
};

}  // namespace

std::vector<const Kernel*> kernels_for(Isa isa) {
  std::vector<const Kernel*> found;
  for (const Room& room : kRooms)
    if (room.isa <= isa) found.insert(found.end(), room.table->kernels, room.table->kernels + room.table->count);
  return found;
}

std::vector<const Kernel*> all_kernels() { return kernels_for(Isa::kAmx); }

const Kernel& kernel_by_id(const std::string& id) {
  for (const Kernel* kernel : all_kernels()) {
    if (id != kernel->id) continue;
    resolve_isa(id.substr(0, id.find('/')));
    return *kernel;
  }
  P2P_REQUIRE(false, "unknown kernel '", id, "': pix2pix_fast.kernels() lists them");
  return *all_kernels().front();
}

Isa room_of(const Kernel& kernel) {
  for (const Room& room : kRooms)
    for (int32_t i = 0; i < room.table->count; ++i)
      if (room.table->kernels[i] == &kernel) return room.isa;
  P2P_ASSERT(false);
  return Isa::kScalar;
}

const Kernel* find_kernel(Isa isa, Op op, Algorithm algorithm, DType dtype) {
  for (const Kernel* kernel : kernels_for(isa))
    if (kernel->op == op && kernel->algorithm == algorithm && kernel->dtype == dtype) return kernel;
  return nullptr;
}

const Kernel* plain_kernel(Isa isa, DType dtype) {
  const Kernel* direct = find_kernel(isa, Op::kConv, Algorithm::kDirect, dtype);
  for (const Room& room : kRooms)
    if (dtype == DType::kF32 && room.isa == room_of(*direct) && room.table->plain) return room.table->plain;
  return direct;
}

}  // namespace p2p::cpu
