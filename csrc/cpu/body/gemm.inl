// The one product of the engine: C[rows][panel] (+)= A[rows][k] * B[k][panel], on packed operands.
//
//   A  row blocks of at most kRowsMax rows: [k / chunk][row of the block][64-byte line]   (one broadcast per row and word)
//   B  [k / word][panel] floats, bf16 pairs or 24-bit numbers (fixed24.inl)               (one sequential stream)
//   C  [rows][panel] float32
//
// All accumulators stay in registers over the whole of k; vec.h counts them. B is prefetched 4 KB ahead, which the
// weight-streaming deep layers want (docs/decisions/001) and which costs the others nothing measurable. `ahead`: what will
// be read after B, brought into L2 at `ahead_bytes` (a multiple of 64) per chunk.

constexpr int kPanel = kPanelVecs * kWidth;  // output channels of a full panel
constexpr int kPrefetchBytes = 4096;
constexpr int32_t kWholeK = 40;  // log2 of more lines than there are

// Rows are cut into equal blocks: 121 rows are eleven blocks of 11, not ten of 12 and one of 1.
struct RowBlocks {
  int32_t count, base, longer;  // `longer` blocks have base + 1 rows, the others base
  explicit RowBlocks(int32_t rows) {
    count = (rows + kRowsMax - 1) / kRowsMax;
    base = rows / count;
    longer = rows % count;
  }
  int32_t size(int32_t block) const { return base + (block < longer ? 1 : 0); }
  int32_t start(int32_t block) const { return block * base + (block < longer ? block : longer); }
};

// Where a row of A lives inside its position's operand: line l (a chunk of k) of the row begins `offset(l)` bytes from its
// start, and `step` is from one vector of the line to the next. A line may be cut into pieces, so that rows alternate by less
// than a line.
struct RowPlace {
  int64_t block = 0;             // bytes to the row's block
  int32_t size = 0, index = 0;   // rows in the block, place in the block
  int32_t part_log2 = kWholeK;   // A may be cut along k, so that all positions of a part lie together: 2^this lines a part
  int64_t part_bytes = 0;        // from part to part
  int32_t piece = 64;            // bytes of a row that lie together
  int64_t step = 0;
  RowPlace() = default;
  RowPlace(const RowBlocks& blocks, int32_t row, int64_t part_lines, int32_t part_log2, int64_t part_bytes, int32_t piece,
           int32_t vector_bytes)
      : part_log2(part_log2), part_bytes(part_bytes), piece(piece) {
    const int32_t in_longer = blocks.longer * (blocks.base + 1);
    const int32_t at = row < in_longer ? row / (blocks.base + 1) : blocks.longer + (row - in_longer) / blocks.base;
    block = blocks.start(at) * part_lines * 64;
    size = blocks.size(at);
    index = row - blocks.start(at);
    step = piece < 64 ? (int64_t)size * piece : vector_bytes;
  }
  int64_t offset(int64_t line) const {
    return block + (line >> part_log2) * part_bytes + (line & ((1ll << part_log2) - 1)) * size * 64 + index * piece;
  }
};

template <class E, int kRows, int kVecs>
void gemm(const char* a, const char* b, int64_t chunks, float* c, int64_t stride_c, bool accumulate, const char* ahead,
          int64_t ahead_bytes) {
  constexpr int kWords = E::kChunk / E::kWord;    // words in a line: 16
  constexpr int kStep = kFixed<E> ? 4 / kVecs : 1;  // of them that are read together ...
  constexpr int kStepBytes = (int)stream_bytes<E>(kStep * kVecs);  // ... and their weights
  Vec acc[kRows][kVecs];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) acc[r][v] = zero();

  for (int64_t chunk = 0; chunk < chunks; ++chunk, ahead += ahead_bytes) {
    for (int64_t line = 0; line < ahead_bytes; line += 64) __builtin_prefetch(ahead + line, 0, 2);
#pragma GCC unroll 4
    for (int k = 0; k < kWords; k += kStep) {
      Vec weights[kStep * kVecs];
      if constexpr (kFixed<E>) {
        load24(b, weights);
      } else {
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) weights[v] = E::load_words(b + v * kWidth * 4);
      }
#pragma GCC unroll 4
      for (int offset = 0; offset < kStepBytes; offset += 64) __builtin_prefetch(b + offset + kPrefetchBytes);
      b += kStepBytes;
#pragma GCC unroll 4
      for (int word = 0; word < kStep; ++word)
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          const Vec x = E::broadcast_word(a + r * 64 + (k + word) * 4);
#pragma GCC unroll 4
          for (int v = 0; v < kVecs; ++v) acc[r][v] = E::multiply_add(x, weights[word * kVecs + v], acc[r][v]);
        }
    }
    a += kRows * 64;
  }

  // Sums of sums round less than one long sum: a product starts from zero and is added at the end.
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) {
      float* out = c + r * stride_c + v * kWidth;
      store(out, accumulate ? add(load(out), acc[r][v]) : acc[r][v]);
    }
}

using Gemm = void (*)(const char* a, const char* b, int64_t chunks, float* c, int64_t stride_c, bool accumulate,
                      const char* ahead, int64_t ahead_bytes);

template <class E, int kVecs>
inline Gemm gemm_of_rows(int32_t rows) {
  switch (rows) {
    case 1: return gemm<E, 1, kVecs>;
    case 2: return gemm<E, 2, kVecs>;
    case 3: return gemm<E, 3, kVecs>;
    case 4: return gemm<E, 4, kVecs>;
    case 5: return gemm<E, 5, kVecs>;
    case 6: return gemm<E, 6, kVecs>;
  }
  if constexpr (kRowsMax > 6) {
    switch (rows) {
      case 7: return gemm<E, 7, kVecs>;
      case 8: return gemm<E, 8, kVecs>;
      case 9: return gemm<E, 9, kVecs>;
      case 10: return gemm<E, 10, kVecs>;
      case 11: return gemm<E, 11, kVecs>;
      case 12: return gemm<E, 12, kVecs>;
    }
  }
  return nullptr;
}

template <class E>
inline Gemm choose_gemm(int32_t rows, int32_t vecs) {
  return vecs == kPanelVecs ? gemm_of_rows<E, kPanelVecs>(rows) : gemm_of_rows<E, 1>(rows);
}

inline int64_t align64(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// Panels cut the output channels; only the last may be narrower (one vector).
inline int32_t panels_of(int32_t co_stored) { return (co_stored + kPanel - 1) / kPanel; }
inline int32_t panel_vecs(int32_t co_stored, int32_t panel) {
  return (co_stored - panel * kPanel) >= kPanel ? kPanelVecs : (co_stored - panel * kPanel) / kWidth;
}
