// Many tokens in bfloat16 with AMX: outputs are dequantized some pairs of blocks at a time, then multiplied in 2 x 2 tiles.
// Tiles are read one after the other, both of weights and of tokens, from what stays in the second-level cache.
#include "fields.h"
#include <cstring>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace moopt {
namespace amx {
namespace {

constexpr int64_t kPair = 2 * kRows;       // outputs, and tokens, of 2 x 2 tiles
constexpr int64_t kTile = 16 * 32;         // elements of a tile of bfloat16
constexpr int64_t kSums = 16 * 16;         // of a tile of float32
constexpr int64_t kWeights = 256 * 1024;   // bytes of weights that are multiplied by
constexpr int64_t kTokens = 128;           // tokens at a time
constexpr int64_t kAhead = 4 * 2 * kTile;  // elements of tokens that are fetched early

struct TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_a_row[16] = {};
  uint8_t rows[16] = {};
  constexpr TileConfig() {
    for (int i = 0; i < 8; i++) bytes_a_row[i] = 64, rows[i] = 16;
  }
};

thread_local Workspace t_row, t_weights;

// 16 outputs, as pairs of inputs [16][16][2] in every second tile.
template <int B> void dequantize(const Matrix& w, int64_t block, uint16_t* tile) {
  alignas(64) uint16_t p[32];
  for (int i = 0; i < 32; i++) p[i] = uint16_t(i / 2 + i % 2 * 16);
  const __m512i half = _mm512_set1_epi8(char(w.half)), top = _mm512_set1_epi8(char(w.top)), pairs = _mm512_load_si512(p);
  const __m512i one = _mm512_set1_epi32(0x3f800000), place = _mm512_set1_epi32(0x7f8000);
  const __m512 middle = _mm512_set1_ps(float(w.middle())), unit = _mm512_set1_ps(float(256 << w.shift));
  const uint8_t* codes = w.row_block(block);
  __m512 scale = _mm512_setzero_ps(), offset = scale;
  // A code whose place is that of a float's highest digits is 1 + code / 256, once the exponent is there; all but the last
  // rounding is exact.
  auto value = [&](__m512i placed) {
    return _mm512_fmsub_ps(_mm512_castsi512_ps(_mm512_ternarylogic_epi32(placed, place, one, 0xea)), scale, offset);
  };
  int64_t next = 0;
  for (int64_t k = 0; k < w.padded_k; k += kInputs, codes += B * kVectorBytes, tile += 2 * kTile) {
    if (k >= next) {
      const int64_t group = k / w.padded_group, at = (block * w.groups + group) * kRows;
      next = (group + 1) * w.padded_group;
      __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(w.scales + at)));
      scale = _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
      __m512 zero = w.zeros ? _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)(w.zeros + at)))) : middle;
      offset = _mm512_mul_ps(scale, zero);
      scale = _mm512_mul_ps(scale, unit);
      offset = _mm512_add_ps(offset, scale);
    }
    __m512i vectors[B];
    for (int v = 0; v < B; v++) vectors[v] = Vector512::load(codes + v * kVectorBytes);
    uint16_t* values = tile;
    each<kBlocks>([&](auto b) __attribute__((always_inline)) {
      __m512i q = codes_of<Vector512, B, b>(vectors);
      if (B == 8) q = _mm512_and_si512(_mm512_adds_epu8(q, half), top);
      __m512 k0 = value(_mm512_slli_epi32(q, 15)), k1 = value(_mm512_slli_epi32(q, 7));
      __m512 k2 = value(_mm512_srli_epi32(q, 1)), k3 = value(_mm512_srli_epi32(q, 9));
      _mm512_store_si512(values, _mm512_permutexvar_epi16(pairs, (__m512i)_mm512_cvtne2ps_pbh(k1, k0)));
      _mm512_store_si512(values + 32, _mm512_permutexvar_epi16(pairs, (__m512i)_mm512_cvtne2ps_pbh(k3, k2)));
      values += 64;
    });
  }
}

using Dequantize = void (*)(const Matrix&, int64_t, uint16_t*);
const Dequantize kDequantize[] = {dequantize<1>, dequantize<2>, dequantize<3>, dequantize<4>,
                                  dequantize<5>, dequantize<6>, dequantize<7>, dequantize<8>};

// 32 tokens (16 if not Two) x 32 outputs over `tiles` tiles of inputs. Loads come first: a product waits for nothing else.
template <bool Two> void multiply(const uint16_t* a, const uint16_t* b, int64_t tiles, float* sums) {
  _tile_zero(0);
  _tile_zero(1);
  if (Two) _tile_zero(2);
  if (Two) _tile_zero(3);
  for (int64_t t = 0; t < tiles; t++, a += 2 * kTile, b += 2 * kTile) {
    _tile_loadd(4, a, 64);
    _tile_loadd(6, b, 64);
    _tile_loadd(7, b + kTile, 64);
    if (Two) _tile_loadd(5, a + kTile, 64);
    for (int64_t i = 0; i < (Two ? 2 : 1) * kTile; i += 32) _mm_prefetch((const char*)(a + kAhead + i), _MM_HINT_T0);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if (Two) _tile_dpbf16ps(2, 5, 6);
    if (Two) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + kSums, 64);
  if (Two) _tile_stored(2, sums + 2 * kSums, 64);
  if (Two) _tile_stored(3, sums + 3 * kSums, 64);
}

// Where the products with 32 outputs go.
struct Columns {
  __mmask16 there[2];
  __m512 bias[2];
  uint16_t* y;
  int64_t n;

  Columns(const Matrix& w, int64_t pair, const float* every_bias, uint16_t* every_y) : y(every_y + pair * kPair), n(w.n) {
    for (int64_t b = 0; b < 2; b++) {
      const int64_t column = pair * kPair + b * kRows, count = n - column;
      there[b] = count >= kRows ? 0xffff : count > 0 ? __mmask16((1 << count) - 1) : 0;
      bias[b] = every_bias ? _mm512_maskz_loadu_ps(there[b], every_bias + column) : _mm512_setzero_ps();
    }
  }

  void store(const float* sums, int64_t token, int64_t past) const {
    uint16_t* to = y + token * n;
    for (int64_t m = 0; m < past - token && m < kPair; m++, to += n)
      for (int64_t b = 0; b < 2; b++) {
        const __m512 v = _mm512_load_ps(sums + (m / 16 * 2 + b) * kSums + m % 16 * 16);
        _mm256_mask_storeu_epi16(to + b * kRows, there[b], (__m256i)_mm512_cvtneps_pbh(_mm512_add_ps(v, bias[b])));
      }
  }
};

} // namespace

bool permitted() {
  static const bool granted = syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
  return granted;
}

int64_t pairs(const Geometry& g) { return (g.row_blocks + 1) / 2; }

int64_t packed_elements(const Geometry& g, int64_t tokens) { return up(tokens, kPair) * g.padded_k; }

// x [tokens][k] to tiles [tokens / 32][k / 32][2][16][32], filled up with zeros.
void pack(const Geometry& g, const uint16_t* x, int64_t tokens, uint16_t* packed) {
  const int64_t wide = g.padded_k;
  uint16_t* padded = t_row.get<uint16_t>(wide);
  memset(padded, 0, 2 * wide);
  for (int64_t m = 0; m < up(tokens, kPair); m++) {
    const uint16_t* row = padded;
    if (m == tokens) memset(padded, 0, 2 * wide);
    else if (m < tokens && wide == g.k) row = x + m * g.k;
    else if (m < tokens) rows::pad(g, x + m * g.k, 2, padded);
    uint16_t* to = packed + m / kPair * kPair * wide + m % kPair * 32;
    for (int64_t k = 0; k < wide; k += 32, to += 2 * kTile) _mm512_store_si512(to, _mm512_loadu_si512(row + k));
  }
}

void gemm(const Matrix& w, const uint16_t* packed, int64_t tokens, const float* bias, uint16_t* y, int64_t first,
          int64_t last) {
  const int64_t wide = w.padded_k, fit = kWeights / (2 * kPair * wide), most = fit > 1 ? fit : 1;
  const int64_t chunk = most < last - first ? most : last - first;
  uint16_t* weights = t_weights.get<uint16_t>(chunk * kPair * wide);
  alignas(64) float sums[4 * kSums];
  static constexpr TileConfig config;
  _tile_loadconfig(&config);
  for (int64_t p = first; p < last; p += chunk) {
    const int64_t past = last - p < chunk ? last : p + chunk;
    for (int64_t b = 2 * p; b < 2 * past; b++) {
      uint16_t* to = weights + (b / 2 - p) * kPair * wide + b % 2 * kTile;
      if (b < w.row_blocks) kDequantize[w.bits - 1](w, b, to);
      else for (int64_t k = 0; k < wide; k += 32, to += 2 * kTile) memset(to, 0, 2 * kTile);
    }
    for (int64_t start = 0; start < tokens; start += kTokens)
      for (int64_t q = p; q < past; q++) {
        const Columns columns(w, q, bias, y);
        for (int64_t m = start; m < tokens && m < start + kTokens; m += kPair) {
          (tokens - m > kRows ? multiply<true> : multiply<false>)(packed + m * wide, weights + (q - p) * kPair * wide, wide / 32, sums);
          columns.store(sums, m, tokens);
        }
      }
  }
  _tile_release();
}

} // namespace amx
} // namespace moopt
