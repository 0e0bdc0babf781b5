// Few tokens with AVX2 and BMI2: codes are spread to bytes by pdep and multiply activations of 16-bit words.
#include "kernels.h"
#include <cmath>
#include <cstring>
#include <immintrin.h>

namespace moopt {
namespace {

template <int Words, int Tokens>
void rows_of(const Matrix& w, const Activations& x, int64_t token, float* y, int64_t first, int64_t last) {
  const uint64_t mask = 0x0101010101010101ull * ((1u << w.bits) - 1);
  const __m256i half = _mm256_set1_epi8(char(w.half)), top = _mm256_set1_epi8(char(w.top));
  const __m128i shift = _mm_cvtsi64_si128(w.shift);
  const int64_t repeats = w.slices_per_group(), stride = w.row_blocks * kRows;
  const int16_t* words[Tokens][Words];
  for (int t = 0; t < Tokens; t++)
    for (int p = 0; p < Words; p++) words[t][p] = (const int16_t*)x.planes + ((token + t) * Words + p) * w.padded_k;

  for (int64_t i = first; i < last; i++) {
    const uint8_t* codes = w.row_block(i);
    __m256 total[Tokens][2];
    for (int t = 0; t < Tokens; t++) total[t][0] = total[t][1] = _mm256_setzero_ps();
    for (int64_t a = 0; a < w.slices; a++) {
      __m256i sum[Tokens][Words][4];
      for (int t = 0; t < Tokens; t++)
        for (int p = 0; p < Words; p++)
          for (int q = 0; q < 4; q++) sum[t][p][q] = _mm256_setzero_si256();
      for (int64_t k = a * w.slice; k < (a + 1) * w.slice; k += 4) {
        alignas(32) uint64_t eight[8];
        if (w.bits == 8) { // one 8-bit path for parents and their slices
          const __m256i* from = (const __m256i*)codes;
          _mm256_store_si256((__m256i*)eight, _mm256_and_si256(_mm256_adds_epu8(_mm256_loadu_si256(from), half), top));
          _mm256_store_si256((__m256i*)(eight + 4), _mm256_and_si256(_mm256_adds_epu8(_mm256_loadu_si256(from + 1), half), top));
        } else {
          for (int j = 0; j < 8; j++) {
            uint64_t v;
            memcpy(&v, codes + j * w.bits, 8);
            eight[j] = _pdep_u64(v, mask);
          }
        }
        codes += 8 * w.bits;
        for (int q = 0; q < 4; q++) {
          __m256i wide = _mm256_cvtepu8_epi16(_mm_set_epi64x((long long)eight[2 * q + 1], (long long)eight[2 * q]));
          for (int t = 0; t < Tokens; t++)
            for (int p = 0; p < Words; p++) {
              long long four;
              memcpy(&four, words[t][p] + k, 8);
              sum[t][p][q] = _mm256_add_epi32(sum[t][p][q], _mm256_madd_epi16(wide, _mm256_set1_epi64x(four)));
            }
        }
      }
      const int64_t at = (i * w.groups + a / repeats) * kRows;
      for (int t = 0; t < Tokens; t++)
        for (int h = 0; h < 2; h++) { // outputs 0-7, then 8-15
          __m256i zero = w.zeros ? _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(w.zeros + at + 8 * h)))
                                 : _mm256_set1_epi32(int(w.middle()));
          __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)(w.scales + at + 8 * h)));
          __m256 value = _mm256_setzero_ps();
          for (int p = 0; p < Words; p++) {
            __m256i s = _mm256_permute4x64_epi64(_mm256_hadd_epi32(sum[t][p][2 * h], sum[t][p][2 * h + 1]), 0xd8);
            __m256i offset = _mm256_mullo_epi32(zero, _mm256_set1_epi32(x.sums[((token + t) * Words + p) * w.slices + a]));
            s = _mm256_sub_epi32(_mm256_sll_epi32(s, shift), offset);
            value = _mm256_fmadd_ps(value, _mm256_set1_ps(4096.f), _mm256_cvtepi32_ps(s));
          }
          __m256 scale = _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
          __m256 step = _mm256_mul_ps(scale, _mm256_set1_ps(x.scales[(token + t) * w.slices + a]));
          total[t][h] = _mm256_fmadd_ps(step, value, total[t][h]);
        }
    }
    for (int t = 0; t < Tokens; t++)
      for (int h = 0; h < 2; h++) _mm256_storeu_ps(y + (token + t) * stride + i * kRows + 8 * h, total[t][h]);
  }
}

template <int Words>
void tokens_of(const Matrix& w, const Activations& x, int64_t tokens, float* y, int64_t first, int64_t last) {
  int64_t t = 0;
  for (; t + 2 <= tokens; t += 2) rows_of<Words, 2>(w, x, t, y, first, last);
  if (t < tokens) rows_of<Words, 1>(w, x, t, y, first, last);
}

void gemv(const Matrix& w, const Activations& x, int64_t tokens, float* y, int64_t first, int64_t last) {
  (x.wide ? tokens_of<2> : tokens_of<1>)(w, x, tokens, y, first, last);
}

void split(const Geometry& g, const float* padded, int64_t token, Activations& x) {
  const int words = x.wide ? 2 : 1;
  const float most = x.wide ? 8386559.f : 32512.f; // 2047 * 4096 + 2047
  int16_t* high = (int16_t*)x.planes + token * words * g.padded_k;
  int16_t* low = high + (words - 1) * g.padded_k;
  int32_t* sums = x.sums + token * words * g.slices;
  for (int64_t a = 0; a < g.slices; a++) {
    uint32_t peak_bits = 0; // by bits, so that infinity and NaN win
    for (int64_t k = a * g.slice; k < (a + 1) * g.slice; k++) {
      uint32_t u;
      memcpy(&u, padded + k, 4);
      u &= 0x7fffffff;
      peak_bits = u > peak_bits ? u : peak_bits;
    }
    float peak;
    memcpy(&peak, &peak_bits, 4);
    const bool finite = peak < __builtin_inff(), some = finite && peak > 1e-30f;
    x.scales[token * g.slices + a] = !finite ? __builtin_nanf("") : some ? peak / most : 0.f;
    const float inverse = some ? most / peak : 0.f;
    int32_t sum_high = 0, sum_low = 0;
    for (int64_t k = a * g.slice; k < (a + 1) * g.slice; k++) {
      int32_t v = some ? int32_t(lrintf(padded[k] * inverse)) : 0, h = x.wide ? (v + 2048) >> 12 : v;
      high[k] = int16_t(h);
      sum_high += h;
      if (x.wide) {
        low[k] = int16_t(v - h * 4096);
        sum_low += v - h * 4096;
      }
    }
    sums[a] = sum_high;
    if (x.wide) sums[g.slices + a] = sum_low;
  }
}

} // namespace

extern const Kernels kAvx2{"avx2", split, gemv};

} // namespace moopt
