// Many tokens in bfloat16 with AMX: some pairs of blocks of outputs are dequantized into the second-level cache, then 32
// tokens after the other are multiplied by all of them in 2 x 2 tiles. Nothing is read that was not fetched early.
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
constexpr int64_t kWeights = 768 * 1024;   // bytes of weights that are multiplied by
constexpr int64_t kDeep = 64;              // tiles of inputs at a time: the sums of more are kept between
constexpr int64_t kAhead = 4 * 2 * kTile;  // elements of weights that are fetched early
constexpr int64_t kPage = 1024;            // rows whose lengths are multiples of it share the sets of a cache

struct TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_a_row[16] = {};
  uint8_t rows[16] = {};
  constexpr TileConfig() {
    for (int i = 0; i < 8; i++) bytes_a_row[i] = 64, rows[i] = 16;
  }
};

thread_local Workspace t_rows, t_weights, t_sums;

// 16 outputs of the inputs from `start` to `end`, as pairs of inputs [16][16][2] in every second tile.
template <int B> void dequantize(const Matrix& w, int64_t block, int64_t start, int64_t end, uint16_t* tile) {
  alignas(64) uint16_t p[32];
  for (int i = 0; i < 32; i++) p[i] = uint16_t(i / 2 + i % 2 * 16);
  const __m512i half = _mm512_set1_epi8(char(w.half)), top = _mm512_set1_epi8(char(w.top)), pairs = _mm512_load_si512(p);
  const __m512i one = _mm512_set1_epi32(0x3f800000), place = _mm512_set1_epi32(0x7f8000);
  const __m512 middle = _mm512_set1_ps(float(w.middle())), unit = _mm512_set1_ps(float(256 << w.shift));
  const uint8_t* codes = w.row_block(block) + start / kInputs * B * kVectorBytes;
  __m512 scale = _mm512_setzero_ps(), offset = scale;
  // A code whose place is that of a float's highest digits is 1 + code / 256, once the exponent is there; all but the last
  // rounding is exact.
  auto value = [&](__m512i placed) {
    return _mm512_fmsub_ps(_mm512_castsi512_ps(_mm512_ternarylogic_epi32(placed, place, one, 0xea)), scale, offset);
  };
  int64_t next = start;
  for (int64_t k = start; k < end; k += kInputs, codes += B * kVectorBytes, tile += 2 * kTile) {
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

using Dequantize = void (*)(const Matrix&, int64_t, int64_t, int64_t, uint16_t*);
const Dequantize kDequantize[] = {dequantize<1>, dequantize<2>, dequantize<3>, dequantize<4>,
                                  dequantize<5>, dequantize<6>, dequantize<7>, dequantize<8>};

// Adds 32 tokens (16 if not Two) x 32 outputs over `tiles` tiles of inputs. Loads come first: a product waits for nothing else.
template <bool Two>
void multiply(const uint16_t* a, const uint16_t* b, int64_t tiles, int64_t stride, bool fresh, const uint16_t* soon, float* sums) {
  if (fresh) {
    _tile_zero(0);
    _tile_zero(1);
    if (Two) _tile_zero(2);
    if (Two) _tile_zero(3);
  } else {
    _tile_loadd(0, sums, 64);
    _tile_loadd(1, sums + kSums, 64);
    if (Two) _tile_loadd(2, sums + 2 * kSums, 64);
    if (Two) _tile_loadd(3, sums + 3 * kSums, 64);
  }
  for (int64_t t = 0; t < tiles; t++, a += 32, b += 2 * kTile) {
    _tile_loadd(4, a, 2 * stride);
    _tile_loadd(6, b, 64);
    _tile_loadd(7, b + kTile, 64);
    if (Two) _tile_loadd(5, a + 16 * stride, 2 * stride);
    for (int64_t i = 0; i < 2 * kTile; i += 32) _mm_prefetch((const char*)(b + kAhead + i), _MM_HINT_T0);
    if (soon)
      for (int64_t i = 0; i < kPair; i++) _mm_prefetch((const char*)(soon + t * 32 + i * stride), _MM_HINT_T1);
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

// Where the products of some tokens with 32 outputs go.
struct Results {
  uint16_t* y;
  int64_t n, rows;
  __mmask32 there;
  __m512 bias[2];

  Results(const Matrix& w, int64_t pair, const float* every_bias, uint16_t* every_y, int64_t token, int64_t tokens) : n(w.n) {
    const int64_t column = pair * kPair, columns = n - column < kPair ? n - column : kPair;
    y = every_y + token * n + column;
    rows = tokens - token < kPair ? tokens - token : kPair;
    there = uint32_t((uint64_t(1) << columns) - 1);
    for (int64_t b = 0; b < 2; b++)
      bias[b] = every_bias ? _mm512_maskz_loadu_ps(__mmask16(there >> 16 * b), every_bias + column + 16 * b) : _mm512_setzero_ps();
  }

  void fetch() const {
    for (int64_t m = 0; m < rows; m++) __builtin_prefetch(y + m * n, 1, 2);
  }

  void store(const float* sums) const {
    for (int64_t m = 0; m < rows; m++) {
      const float* from = sums + m / 16 * 2 * kSums + m % 16 * 16;
      const __m512 low = _mm512_add_ps(_mm512_load_ps(from), bias[0]), high = _mm512_add_ps(_mm512_load_ps(from + kSums), bias[1]);
      _mm512_mask_storeu_epi16(y + m * n, there, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
  }
};

} // namespace

bool permitted() {
  static const bool granted = syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
  return granted;
}

int64_t pairs(const Geometry& g) { return (g.row_blocks + 1) / 2; }

Inputs inputs(const Geometry& g, const uint16_t* x, int64_t tokens) {
  const bool folded = g.padded_k % kPage == 0, whole = g.padded_k == g.k && !folded;
  Inputs found{x, nullptr, g.padded_k + (folded ? 32 : 0), whole ? tokens / kPair * kPair : 0};
  const int64_t rows = up(tokens, kPair) - found.copied_from;
  uint16_t* copy = t_rows.get<uint16_t>(rows * found.stride);
  for (int64_t r = 0; r < rows; r++) {
    const int64_t token = found.copied_from + r;
    if (token < tokens) rows::pad(g, x + token * g.k, 2, copy + r * found.stride);
    else memset(copy + r * found.stride, 0, 2 * g.padded_k);
  }
  found.copy = copy;
  return found;
}

void gemm(const Matrix& w, const Inputs& x, int64_t tokens, const float* bias, uint16_t* y, int64_t first, int64_t last) {
  const int64_t tiles = w.padded_k / 32, parts = (tiles + kDeep - 1) / kDeep, deep = (tiles + parts - 1) / parts;
  const int64_t fit = kWeights / (4 * kTile * deep), chunk = fit < last - first ? fit : last - first;
  const int64_t panel = 2 * kTile * deep, kept = parts == 1 ? 0 : 4 * kSums * chunk;
  uint16_t* weights = t_weights.get<uint16_t>(panel * chunk);
  float* sums = t_sums.get<float>(4 * kSums * chunk + kept * (up(tokens, kPair) / kPair));
  static constexpr TileConfig config;
  _tile_loadconfig(&config);
  for (int64_t p = first; p < last; p += chunk) {
    const int64_t past = last - p < chunk ? last : p + chunk;
    for (int64_t t = 0; t < tiles; t += deep) {
      const int64_t end = t + deep < tiles ? t + deep : tiles;
      for (int64_t b = 2 * p; b < 2 * past; b++) {
        uint16_t* to = weights + (b / 2 - p) * panel + b % 2 * kTile;
        if (b < w.row_blocks) kDequantize[w.bits - 1](w, b, 32 * t, 32 * end, to);
        else for (int64_t i = t; i < end; i++, to += 2 * kTile) memset(to, 0, 2 * kTile);
      }
      for (int64_t m = 0; m < tokens; m += kPair)
        for (int64_t q = p; q < past; q++) {
          const Results results(w, q, bias, y, m, tokens);
          const uint16_t *a = x.row(m) + 32 * t, *soon = nullptr;
          if (q == past - 1 && m + kPair < tokens) soon = x.row(m + kPair) + 32 * t;
          float* sum = sums + m / kPair * kept + (q - p) * 4 * kSums;
          if (end == tiles) results.fetch();
          (tokens - m > kRows ? multiply<true> : multiply<false>)(a, weights + (q - p) * panel, end - t, x.stride, t == 0, soon, sum);
          if (end == tiles) results.store(sum);
        }
    }
  }
  _tile_release();
}

} // namespace amx
} // namespace moopt
