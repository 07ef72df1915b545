#include "options.h"

#include <cstdlib>

namespace p2p {

const Environment& environment() {
  static const Environment values = [] {
    Environment e;
    if (const char* isa = std::getenv("P2P_ISA")) e.isa = isa;
    const auto on = [](const char* name) {
      const char* value = std::getenv(name);
      return value && *value != '\0' && *value != '0';
    };
    e.trace = on("P2P_TRACE");
    e.cuda_pdl = on("P2P_CUDA_PDL");
    return e;
  }();
  return values;
}

}  // namespace p2p
