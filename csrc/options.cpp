#include "options.h"

#include <cstdlib>

namespace p2p {

const Environment& environment() {
  static const Environment values = [] {
    Environment e;
    if (const char* isa = std::getenv("P2P_ISA")) e.isa = isa;
    const auto on = [](const char* name, bool unset) {
      const char* value = std::getenv(name);
      return value && *value != '\0' ? *value != '0' : unset;
    };
    e.trace = on("P2P_TRACE", false);
    e.cuda_pdl = on("P2P_CUDA_PDL", false);
    e.cuda_cluster = on("P2P_CUDA_CLUSTER", true);
    return e;
  }();
  return values;
}

}  // namespace p2p
