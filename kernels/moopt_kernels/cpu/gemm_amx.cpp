// Many tokens in bfloat16 with AMX: a panel of 64 outputs is dequantized, then multiplied in 2 x 2 tiles.
#include "kernels.h"
#include <cstring>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace moopt {


namespace amx {
namespace {

constexpr int64_t kPanelBlocks = 4; // of 16 outputs
constexpr int64_t kWhole = 2048;    // so many inputs are summed in one go; of more, kDepth at a time, so that a panel
constexpr int64_t kDepth = 1024;    // stays in the second-level cache
constexpr int64_t kTile = 16 * 32;  // elements of a tile of bfloat16
constexpr int64_t kSums = 16 * 16;

struct TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_a_row[16] = {};
  uint8_t rows[16] = {};
  TileConfig() {
    for (int i = 0; i < 8; i++) bytes_a_row[i] = 64, rows[i] = 16;
  }
};

thread_local Workspace t_row, t_panel, t_sums;

// Two vectors of floats to bfloat16, a in the low and b in the high half of each lane.
__m512i interleave(__m512 a, __m512 b) {
  __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(a));
  __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(b));
  return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

template <int B> __m512i unpacked(const uint8_t* p, __m512i order, __m512i shifts, __m512i mask, __m512i half, __m512i top) {
  if constexpr (B == 8) return _mm512_and_si512(_mm512_adds_epu8(_mm512_loadu_si512(p), half), top);
  __m512i v = _mm512_permutexvar_epi8(order, _mm512_loadu_si512(p));
  return _mm512_and_si512(_mm512_multishift_epi64_epi8(shifts, v), mask);
}

// 16 outputs x inputs from to past, as pairs of inputs: values[input / 2][16][2].
template <int B> void dequantize(const Matrix& w, int64_t block, int64_t from, int64_t past, uint16_t* values) {
  alignas(64) uint8_t o[64], s[64];
  for (int i = 0; i < 64; i++) o[i] = uint8_t(i % 8 < B ? i / 8 * B + i % 8 : 63), s[i] = uint8_t(i % 8 * B);
  const __m512i order = _mm512_load_si512(o), shifts = _mm512_load_si512(s), mask = _mm512_set1_epi8(char((1 << B) - 1));
  const __m512i half = _mm512_set1_epi8(char(w.half)), top = _mm512_set1_epi8(char(w.top)), byte = _mm512_set1_epi32(255);
  const __m512 middle = _mm512_set1_ps(float(w.middle())), unit = _mm512_set1_ps(float(1 << w.shift));
  const uint8_t* codes = w.row_block(block) + from / 4 * 8 * B;
  __m512 scale = _mm512_setzero_ps(), offset = scale;
  int64_t next = from;
  for (int64_t k = from; k < past; k += 16) {
    if (k >= next) {
      const int64_t group = k / w.padded_group, at = (block * w.groups + group) * kRows;
      next = (group + 1) * w.padded_group;
      __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(w.scales + at)));
      scale = _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
      __m512 zero = w.zeros ? _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)(w.zeros + at)))) : middle;
      offset = _mm512_mul_ps(scale, zero);
      scale = _mm512_mul_ps(scale, unit);
    }
#pragma GCC unroll 4
    for (int b = 0; b < 4; b++, codes += 8 * B, values += 64) {
      __m512i q = unpacked<B>(codes, order, shifts, mask, half, top);
      __m512 k0 = _mm512_fmsub_ps(_mm512_cvtepi32_ps(_mm512_and_si512(q, byte)), scale, offset);
      __m512 k1 = _mm512_fmsub_ps(_mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(q, 8), byte)), scale, offset);
      __m512 k2 = _mm512_fmsub_ps(_mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(q, 16), byte)), scale, offset);
      __m512 k3 = _mm512_fmsub_ps(_mm512_cvtepi32_ps(_mm512_srli_epi32(q, 24)), scale, offset);
      _mm512_store_si512(values, interleave(k0, k1));
      _mm512_store_si512(values + 32, interleave(k2, k3));
    }
  }
  if (past % 32) memset(values, 0, 8 * 64); // half a tile's inputs are missing
}

using Dequantize = void (*)(const Matrix&, int64_t, int64_t, int64_t, uint16_t*);
const Dequantize kDequantize[] = {dequantize<1>, dequantize<2>, dequantize<3>, dequantize<4>,
                                  dequantize<5>, dequantize<6>, dequantize<7>, dequantize<8>};

// Tiles of 32 (16 if not `two`) tokens x 32 outputs, summed over `depth` tiles of inputs onto sums.
void multiply(const uint16_t* a, int64_t a_stride, const uint16_t* b, int64_t b_stride, int64_t depth, bool first,
              bool two, float* sums, int64_t sums_stride) {
  float* below = sums + sums_stride;
  if (first) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, sums, 64);
    _tile_loadd(1, sums + kSums, 64);
    if (two) {
      _tile_loadd(2, below, 64);
      _tile_loadd(3, below + kSums, 64);
    }
  }
  for (int64_t t = 0; t < depth; t++, a += kTile, b += kTile) {
    _tile_loadd(4, a, 64);
    _tile_loadd(6, b, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, b + b_stride, 64);
    _tile_dpbf16ps(1, 4, 7);
    if (!two) continue;
    _tile_loadd(5, a + a_stride, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + kSums, 64);
  if (two) {
    _tile_stored(2, below, 64);
    _tile_stored(3, below + kSums, 64);
  }
}

} // namespace

bool permitted() {
  static const bool granted = syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
  return granted;
}

int64_t panels(const Geometry& g) { return (g.row_blocks + kPanelBlocks - 1) / kPanelBlocks; }

int64_t packed_elements(const Geometry& g, int64_t tokens) { return up(tokens, 16) * up(g.padded_k, 32); }

// x [tokens][k] to tiles [tokens / 16][k / 32][16][32], filled up with zeros.
void pack(const Geometry& g, const uint16_t* x, int64_t tokens, uint16_t* packed) {
  const int64_t wide = up(g.padded_k, 32);
  uint16_t* row = t_row.get<uint16_t>(wide);
  memset(row, 0, 2 * wide);
  for (int64_t m = 0; m < up(tokens, 16); m++) {
    if (m < tokens) rows::pad(g, x + m * g.k, 2, row);
    else memset(row, 0, 2 * wide);
    uint16_t* to = packed + m / 16 * 16 * wide + m % 16 * 32;
    for (int64_t k = 0; k < wide; k += 32) _mm512_store_si512(to + k * 16, _mm512_load_si512(row + k));
  }
}

void gemm(const Matrix& w, const uint16_t* packed, int64_t tokens, const float* bias, uint16_t* y, int64_t first,
          int64_t last) {
  const int64_t wide = up(w.padded_k, 32), strips = (tokens + 15) / 16, step = wide <= kWhole ? wide : kDepth;
  uint16_t* values = t_panel.get<uint16_t>(kPanelBlocks * step * 16);
  float* out = t_sums.get<float>(strips * kPanelBlocks * kSums);
  alignas(64) TileConfig config;
  _tile_loadconfig(&config);
  for (int64_t p = first; p < last; p++) {
    const int64_t blocks = w.row_blocks - p * kPanelBlocks < kPanelBlocks ? w.row_blocks - p * kPanelBlocks : kPanelBlocks;
    if (blocks % 2) memset(values + blocks * step * 16, 0, step * 32);
    for (int64_t from = 0; from < w.padded_k; from += step) {
      const int64_t past = w.padded_k - from < step ? w.padded_k : from + step, depth = (past - from + 31) / 32;
      for (int64_t b = 0; b < blocks; b++)
        kDequantize[w.bits - 1](w, p * kPanelBlocks + b, from, past, values + b * step * 16);
      for (int64_t m = 0; m < strips; m += 2)
        for (int64_t b = 0; b < blocks; b += 2)
          multiply(packed + m * 16 * wide + from * 16, 16 * wide, values + b * step * 16, step * 16, depth, from == 0,
                   m + 1 < strips, out + (m * kPanelBlocks + b) * kSums, kPanelBlocks * kSums);
    }
    const int64_t column = p * kPanelBlocks * kRows;
    __mmask16 there[kPanelBlocks];
    __m512 added[kPanelBlocks];
    for (int64_t b = 0; b < blocks; b++) {
      const int64_t columns = w.n - column - b * kRows;
      there[b] = columns >= kRows ? 0xffff : __mmask16((1 << columns) - 1);
      added[b] = bias ? _mm512_maskz_loadu_ps(there[b], bias + column + b * kRows) : _mm512_setzero_ps();
    }
    for (int64_t m = 0; m < tokens; m++)
      for (int64_t b = 0; b < blocks; b++) {
        const __m512 v = _mm512_load_ps(out + (m / 16 * kPanelBlocks + b) * kSums + m % 16 * 16);
        const __m256i rounded = (__m256i)_mm512_cvtneps_pbh(_mm512_add_ps(v, added[b]));
        _mm256_mask_storeu_epi16(y + m * w.n + column + b * kRows, there[b], rounded);
      }
  }
  _tile_release();
}

} // namespace amx
} // namespace moopt
