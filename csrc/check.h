// Checks at the borders. P2P_REQUIRE: the caller's mistake (std::invalid_argument, a ValueError in Python).
// P2P_ASSERT: our own invariant (std::logic_error); cheap enough to stay on outside kernels.
#pragma once
#include <cstdint>
#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>

namespace p2p {

// Each has an exception of its own in Python: BackendUnavailable, ForkError, MemoryError.
struct BackendUnavailable : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct ForkError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct OutOfMemory : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

#define P2P_REQUIRE(condition, ...) \
  do {                              \
    if (!(condition)) throw std::invalid_argument(::p2p::text(__VA_ARGS__)); \
  } while (0)

#define P2P_ASSERT(condition)                                                           \
  do {                                                                                  \
    if (!(condition))                                                                   \
      throw std::logic_error(::p2p::text("internal error: ", #condition, " at ", __FILE__, ":", __LINE__)); \
  } while (0)

// Every size passes through here: the product of non-negative factors, refused when it leaves 63 bits.
inline int64_t checked_product(std::initializer_list<int64_t> factors) {
  int64_t product = 1;
  for (int64_t f : factors) {
    P2P_REQUIRE(f >= 0, "negative size ", f);
    P2P_REQUIRE(!__builtin_mul_overflow(product, f, &product), "size overflows 64 bits");
  }
  return product;
}

inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }
inline int32_t divide_up(int32_t value, int32_t by) { return (value + by - 1) / by; }

}  // namespace p2p
