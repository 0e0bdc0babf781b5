// What the kernels share: how a matrix lies in memory, and which functions each instruction set offers.
//
// A matrix n x k is stored in superblocks of 16 outputs x 32 inputs, each `bits` vectors of 64 bytes (fields.h says where
// in them a code is); those of 16 outputs lie one after the other along k. Each group of inputs is filled up with zero
// codes to whole slices: a slice is what shares one scale of the activations. Scales and zeros are [n/16][groups][16].
//
// Functions here are static or always inlined: one that is shared and compiled for AVX-512 would fault on an older CPU.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <new>

namespace moopt {

constexpr int64_t kRows = 16;        // outputs of a superblock
constexpr int64_t kInputs = 32;      // inputs of a superblock
constexpr int64_t kBlocks = 8;       // of 16 x 4 codes in a superblock
constexpr int64_t kVectorBytes = 64; // a superblock has as many vectors as a code has bits
constexpr int64_t kLongGroup = 128;  // longer groups are cut into several slices
constexpr int64_t kSlice = 64;

enum Type : int { kBFloat16, kFloat16, kFloat32 };

static inline int64_t up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

struct Geometry {
  int64_t n, k, group;
  int64_t groups;       // of a row
  int64_t padded_group; // inputs of a group, filled up
  int64_t slice;        // inputs of a slice; divides padded_group
  int64_t slices;       // of a row
  int64_t padded_k;     // inputs of a row, filled up
  int64_t row_blocks;   // of 16 outputs

  [[gnu::always_inline]] int64_t slices_per_group() const { return padded_group / slice; }
  [[gnu::always_inline]] int64_t row_block_bytes(int64_t bits) const { return padded_k / kInputs * kVectorBytes * bits; }
};

static inline Geometry geometry(int64_t n, int64_t k, int64_t group) {
  Geometry g;
  g.n = n, g.k = k, g.group = group < k ? group : k;
  bool long_group = g.group > kLongGroup;
  g.padded_group = up(g.group, long_group ? kSlice : kInputs);
  g.slice = long_group ? kSlice : g.padded_group;
  g.groups = (k + g.group - 1) / g.group;
  int64_t last = k - (g.groups - 1) * g.group;
  g.slices = (g.groups - 1) * g.slices_per_group() + (last + g.slice - 1) / g.slice;
  g.padded_k = g.slices * g.slice;
  g.row_blocks = (n + kRows - 1) / kRows;
  return g;
}

// value = scale * ((code read << shift) - zero); an 8-bit code is read as min(code + half, 255) & top.
struct Matrix : Geometry {
  const uint8_t* codes;
  const uint16_t* scales; // bfloat16
  const uint8_t* zeros;   // null: middle
  int64_t bits, shift;
  uint8_t half, top;

  [[gnu::always_inline]] int64_t middle() const { return int64_t(1) << (bits + shift - 1); }
  [[gnu::always_inline]] const uint8_t* row_block(int64_t i) const { return codes + i * row_block_bytes(bits); }
};

// Memory that a thread keeps from call to call: fresh pages would cost more than a small product.
struct Workspace {
  void* data = nullptr;
  int64_t bytes = 0;

  template <class T> [[gnu::always_inline]] T* get(int64_t count) {
    const int64_t wanted = up(count * int64_t(sizeof(T)), 64);
    if (wanted > bytes) {
      free(data);
      data = aligned_alloc(64, wanted);
      bytes = data ? wanted : 0;
      if (!data) throw std::bad_alloc();
    }
    return (T*)data;
  }
  [[gnu::always_inline]] ~Workspace() { free(data); }
};

// Activations as integers: x = scale * integer, a scale for each slice, in two (three) signed bytes, or one (two) words.
struct Activations {
  bool wide;       // 24 bits, not 16
  int8_t* planes;  // [tokens][planes][padded_k]
  float* scales;   // [tokens][slices]
  int32_t* sums;   // [tokens][wide ? 2 : 1][slices], of the integers, high part first
};

// y[token][16 * row block ...] for row blocks first to last; y's rows are row_blocks * 16 apart.
struct Kernels {
  const char* name;
  void (*split)(const Geometry&, const float* padded, int64_t token, Activations&);
  void (*gemv)(const Matrix&, const Activations&, int64_t tokens, float* y, int64_t first, int64_t last);
};

namespace rows { // AVX2, BMI2, F16C
void widen(const void* from, Type type, int64_t count, float* to);
void narrow(const float* from, int64_t count, Type type, void* to);
void pad(const Geometry& g, const void* row, int64_t bytes_each, void* padded);
void pack(const Geometry& g, const uint8_t* codes, int64_t bits, uint8_t* packed, int64_t first, int64_t last);
void unpack(const Geometry& g, const uint8_t* packed, int64_t bits, uint8_t* codes, int64_t first, int64_t last);
void unstream(const uint8_t* packed, int64_t k, int64_t bits, uint8_t* codes, int64_t first, int64_t last);
void repack(const uint8_t* parent, int64_t bits, uint8_t* packed, int64_t first, int64_t last);
void dequantize(const Matrix& w, Type type, void* values, int64_t first, int64_t last);
void dequantize_rows(const Matrix& w, const int64_t* chosen, Type type, void* values, int64_t first, int64_t last);
struct Quantized {
  uint8_t* codes;   // as `pack` leaves them
  uint16_t* scales; // [n/16][groups][16]
  uint8_t* zeros;   // null: symmetric
};
void quantize(const Geometry& g, const void* weight, Type type, int64_t bits, Quantized to, int64_t first, int64_t last);
} // namespace rows

extern const Kernels kAvx2, kAvx512;

// Keys or values of one head as a cache holds them: value = code * scale + low.
struct Tokens {
  const uint8_t* codes;          // [tokens][size * bits / 8], least significant bit first; at 16 bits the values
  const uint16_t *scales, *lows; // float16; [tokens / group][size], where group is 0 [tokens]
  int64_t bits, group, size;
  Type type; // of the values, at 16 bits

  [[gnu::always_inline]] int64_t row_bytes() const { return bits == 16 ? size * (type == kFloat32 ? 4 : 2) : size * bits / 8; }
};

// A head of one sequence: `packed` tokens in the stores, then those of the windows, `length` in all.
struct Head {
  Tokens keys, values, key_window, value_window;
  int64_t packed, length, queries;
  float scale;         // of logits
  const uint8_t* mask; // [queries][length]; null: the newest tokens are the queries', each sees itself and what came before
};

// Attention of `rows` rows from `row` on, q and out [rows][size]; row r is of query r % queries.
// And the first `count` tokens themselves, [count][size].
struct Attention {
  void (*attend)(const Head&, const void* q, Type type, int64_t row, int64_t rows, void* out);
  void (*read)(const Tokens&, int64_t count, Type type, void* values);
};
extern const Attention kAttentionAvx2, kAttentionAvx512;

namespace tokens { // AVX2, BMI2, F16C
struct Packed {
  uint8_t* codes; // as `Tokens` has them
  uint16_t *scales, *lows;
  int64_t bits, group, size;
};
// Packs tokens [count][size], whole groups, behind the first `at`.
void append(const Packed& store, int64_t at, const void* from, Type type, int64_t count);
} // namespace tokens

namespace amx {
bool permitted(); // asks the system for the tiles, once
// Rows of 32 tokens lie one after the other: where they are, or in a copy that is filled up with zeros.
struct Inputs {
  const uint16_t *x, *copy;
  int64_t stride, copied_from; // elements from row to row; the first token of the copy

  [[gnu::always_inline]] const uint16_t* row(int64_t token) const {
    return token < copied_from ? x + token * stride : copy + (token - copied_from) * stride;
  }
};
Inputs inputs(const Geometry& g, const uint16_t* x, int64_t tokens); // good until the thread asks again
void gemm(const Matrix& w, const Inputs& x, int64_t tokens, const float* bias, uint16_t* y, int64_t first,
          int64_t last); // pairs of blocks
int64_t pairs(const Geometry& g);
} // namespace amx

} // namespace moopt
