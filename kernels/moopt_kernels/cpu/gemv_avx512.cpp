// Few tokens with AVX-512 VBMI and VNNI: unpack in three instructions, multiply the activations' bytes.
#include "kernels.h"
#include <immintrin.h>

namespace moopt {
namespace {

constexpr int64_t kAhead = 8192; // bytes that are fetched early

// Widths with an instruction of their own that widens them; every other is gathered by bytes.
constexpr int kAny = 0;

template <int Width> struct Unpack {
  const int64_t bytes; // of a block
  __m512i order, shifts, mask, half, top;

  explicit Unpack(const Matrix& w) : bytes(8 * w.bits) {
    alignas(64) uint8_t o[64], s[64];
    for (int i = 0; i < 64; i++) {
      o[i] = uint8_t(i % 8 < w.bits ? i / 8 * w.bits + i % 8 : 63);
      s[i] = uint8_t(i % 8 * w.bits);
    }
    order = _mm512_load_si512(o), shifts = _mm512_load_si512(s), mask = _mm512_set1_epi8(char((1 << w.bits) - 1));
    half = _mm512_set1_epi8(char(w.half)), top = _mm512_set1_epi8(char(w.top));
  }

  __m512i operator()(const uint8_t* p) const {
    if constexpr (Width == 8) return _mm512_and_si512(_mm512_adds_epu8(_mm512_loadu_si512(p), half), top);
    __m512i v;
    if constexpr (Width == 4) v = _mm512_cvtepu32_epi64(_mm256_loadu_si256((const __m256i*)p));
    else if constexpr (Width == 2) v = _mm512_cvtepu16_epi64(_mm_loadu_si128((const __m128i*)p));
    else v = _mm512_permutexvar_epi8(order, _mm512_loadu_si512(p));
    return _mm512_and_si512(_mm512_multishift_epi64_epi8(shifts, v), mask);
  }
};

__m512 scale_of(const uint16_t* scales) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)scales)), 16));
}

// Integer products of a slice, shifted and with the zero points taken off, as floats; exact but for the last rounding.
template <int Planes>
__m512 value_of(const __m512i* sums, __m512i zero, __m128i shift, const int32_t* totals, int64_t stride) {
  __m512i low = _mm512_add_epi32(_mm512_slli_epi32(sums[Planes - 2], 8), sums[Planes - 1]);
  __m512i offset = _mm512_mullo_epi32(zero, _mm512_set1_epi32(totals[(Planes - 2) * stride]));
  __m512 value = _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_sll_epi32(low, shift), offset));
  if (Planes == 2) return value;
  __m512i high = _mm512_sub_epi32(_mm512_sll_epi32(sums[0], shift), _mm512_mullo_epi32(zero, _mm512_set1_epi32(totals[0])));
  return _mm512_fmadd_ps(_mm512_cvtepi32_ps(high), _mm512_set1_ps(65536.f), value);
}

// Planes: bytes an activation is cut into, 2 (16 bits) or 3 (24 bits). Tokens share what is unpacked, blocks of
// outputs share what is broadcast.
template <int Width, int Planes, int Tokens, int Blocks>
void block_of(const Matrix& w, const Unpack<Width>& unpack, const Activations& x, int64_t token, float* y, int64_t i) {
  constexpr int Chains = Tokens * Planes * Blocks > 4 ? 1 : 2; // enough sums in flight to hide the latency
  const int64_t step = Width == kAny ? unpack.bytes : 8 * Width, repeats = w.slices_per_group();
  const __m128i shift = _mm_cvtsi64_si128(w.shift);
  const __m512i middle = _mm512_set1_epi32(int(w.middle()));
  const uint8_t* codes[Blocks];
  __m512 total[Blocks][Tokens];
  for (int r = 0; r < Blocks; r++) {
    codes[r] = w.row_block(i + r);
    for (int t = 0; t < Tokens; t++) total[r][t] = _mm512_setzero_ps();
  }
  const int8_t* planes = x.planes + token * Planes * w.padded_k;
  for (int64_t a = 0, group = 0, left = repeats; a < w.slices; a++) {
    __m512i sum[Blocks][Tokens][Chains][Planes];
    for (int r = 0; r < Blocks; r++)
      for (int t = 0; t < Tokens; t++)
        for (int c = 0; c < Chains; c++)
          for (int p = 0; p < Planes; p++) sum[r][t][c][p] = _mm512_setzero_si512();
    for (int64_t k = a * w.slice; k < (a + 1) * w.slice; k += 16) {
#pragma GCC unroll 4
      for (int b = 0; b < 4; b++) {
        __m512i q[Blocks];
        for (int r = 0; r < Blocks; r++) {
          if (Width == kAny || b * Width % 8 == 0) _mm_prefetch((const char*)codes[r] + kAhead, _MM_HINT_T0);
          q[r] = unpack(codes[r]);
          codes[r] += step;
        }
        for (int t = 0; t < Tokens; t++)
          for (int p = 0; p < Planes; p++) {
            __m512i four = _mm512_set1_epi32(*(const int32_t*)(planes + (t * Planes + p) * w.padded_k + k + 4 * b));
            for (int r = 0; r < Blocks; r++) sum[r][t][b % Chains][p] = _mm512_dpbusd_epi32(sum[r][t][b % Chains][p], q[r], four);
          }
      }
    }
    for (int r = 0; r < Blocks; r++) {
      const int64_t at = ((i + r) * w.groups + group) * kRows;
      const __m512i zero = w.zeros ? _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)(w.zeros + at))) : middle;
      const __m512 scale = scale_of(w.scales + at);
      for (int t = 0; t < Tokens; t++) {
        if (Chains == 2)
          for (int p = 0; p < Planes; p++) sum[r][t][0][p] = _mm512_add_epi32(sum[r][t][0][p], sum[r][t][Chains - 1][p]);
        const int32_t* totals = x.sums + (token + t) * (Planes - 1) * w.slices + a;
        const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(x.scales[(token + t) * w.slices + a]));
        total[r][t] = _mm512_fmadd_ps(both, value_of<Planes>(sum[r][t][0], zero, shift, totals, w.slices), total[r][t]);
      }
    }
    if (--left == 0) group++, left = repeats;
  }
  for (int r = 0; r < Blocks; r++)
    for (int t = 0; t < Tokens; t++) _mm512_storeu_ps(y + (token + t) * w.row_blocks * kRows + (i + r) * kRows, total[r][t]);
}

template <int Width, int Planes, int Tokens>
void rows_of(const Matrix& w, const Activations& x, int64_t token, float* y, int64_t first, int64_t last) {
  constexpr int Blocks = Tokens == 1 && Planes == 2 ? 2 : 1;
  const Unpack<Width> unpack(w);
  int64_t i = first;
  for (; i + Blocks <= last; i += Blocks) block_of<Width, Planes, Tokens, Blocks>(w, unpack, x, token, y, i);
  for (; i < last; i++) block_of<Width, Planes, Tokens, 1>(w, unpack, x, token, y, i);
}

template <int Width> void tokens_of(const Matrix& w, const Activations& x, int64_t tokens, float* y, int64_t first, int64_t last) {
  int64_t t = 0;
  if (x.wide) {
    for (; t + 2 <= tokens; t += 2) rows_of<Width, 3, 2>(w, x, t, y, first, last);
    if (t < tokens) rows_of<Width, 3, 1>(w, x, t, y, first, last);
    return;
  }
  for (; t + 4 <= tokens; t += 4) rows_of<Width, 2, 4>(w, x, t, y, first, last);
  if (tokens - t == 3) rows_of<Width, 2, 3>(w, x, t, y, first, last);
  if (tokens - t == 2) rows_of<Width, 2, 2>(w, x, t, y, first, last);
  if (tokens - t == 1) rows_of<Width, 2, 1>(w, x, t, y, first, last);
}

void gemv(const Matrix& w, const Activations& x, int64_t tokens, float* y, int64_t first, int64_t last) {
  const auto function = w.bits == 8 ? tokens_of<8> : w.bits == 4 ? tokens_of<4> : w.bits == 2 ? tokens_of<2> : tokens_of<kAny>;
  function(w, x, tokens, y, first, last);
}

// The largest magnitude by its bits, so that infinity and NaN win.
float largest(const float* x, int64_t count) {
  __m512i most = _mm512_setzero_si512();
  for (int64_t k = 0; k < count; k += 16)
    most = _mm512_max_epu32(most, _mm512_and_si512(_mm512_loadu_si512(x + k), _mm512_set1_epi32(0x7fffffff)));
  uint32_t found = _mm512_reduce_max_epu32(most);
  return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(int(found))));
}

void split(const Geometry& g, const float* padded, int64_t token, Activations& x) {
  const int planes = x.wide ? 3 : 2;
  const float most = x.wide ? 127 * 65536.f : 32639.f; // rounding up must not leave the highest byte
  int8_t* low = x.planes + (token * planes + planes - 1) * g.padded_k;
  int8_t *mid = low - g.padded_k, *high = mid - g.padded_k;
  int32_t* sums = x.sums + token * (planes - 1) * g.slices;
  for (int64_t a = 0; a < g.slices; a++) {
    const float peak = largest(padded + a * g.slice, g.slice);
    const bool finite = peak < __builtin_inff(), some = finite && peak > 1e-30f;
    x.scales[token * g.slices + a] = !finite ? __builtin_nanf("") : some ? peak / most : 0.f;
    const __m512 inverse = _mm512_set1_ps(some ? most / peak : 0.f);
    __m512i sum = _mm512_setzero_si512(), sum_high = sum;
    for (int64_t k = a * g.slice; k < (a + 1) * g.slice; k += 16) {
      __m512i v = some ? _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(padded + k), inverse)) : _mm512_setzero_si512();
      if (x.wide) {
        __m512i h = _mm512_srai_epi32(_mm512_add_epi32(v, _mm512_set1_epi32(32896)), 16);
        _mm_storeu_si128((__m128i*)(high + k), _mm512_cvtepi32_epi8(h));
        sum_high = _mm512_add_epi32(sum_high, h);
        v = _mm512_sub_epi32(v, _mm512_slli_epi32(h, 16));
      }
      __m512i h = _mm512_srai_epi32(_mm512_add_epi32(v, _mm512_set1_epi32(128)), 8);
      _mm_storeu_si128((__m128i*)(mid + k), _mm512_cvtepi32_epi8(h));
      _mm_storeu_si128((__m128i*)(low + k), _mm512_cvtepi32_epi8(_mm512_sub_epi32(v, _mm512_slli_epi32(h, 8))));
      sum = _mm512_add_epi32(sum, v);
    }
    if (x.wide) sums[a] = _mm512_reduce_add_epi32(sum_high);
    sums[(planes - 2) * g.slices + a] = _mm512_reduce_add_epi32(sum);
  }
}

} // namespace

extern const Kernels kAvx512{"avx512", split, gemv};

} // namespace moopt
