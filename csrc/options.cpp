#include "options.h"

#include <cstdlib>

namespace p2p {

const Environment& environment() {
  static const Environment values = [] {
    Environment e;
    if (const char* isa = std::getenv("P2P_ISA")) e.isa = isa;
    if (const char* trace = std::getenv("P2P_TRACE")) e.trace = *trace != '\0' && *trace != '0';
    return e;
  }();
  return values;
}

}  // namespace p2p
