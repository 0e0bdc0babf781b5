// Few tokens with AVX2: the even and the odd inputs of a block's codes become words and multiply activations of 16 bits,
// which lie in the order 0, 2, 1, 3 of each four inputs.
#include "fields.h"
#include <cmath>
#include <cstring>

namespace moopt {
namespace {

// A slice of 8 of a row block's outputs, a byte a code: blocks[inputs / 4][32].
void unpack(const Matrix& w, const uint8_t* codes, uint8_t* blocks) {
  const __m256i half = _mm256_set1_epi8(char(w.half)), top = _mm256_set1_epi8(char(w.top));
  with_width(w.bits, [&](auto width) {
    for (int64_t k = 0; k < w.slice; k += kInputs, codes += width * kVectorBytes) {
      __m256i vectors[width];
      for (int v = 0; v < width; v++) vectors[v] = Vector256::load(codes + v * kVectorBytes);
      each<kBlocks>([&](auto b) __attribute__((always_inline)) {
        __m256i q = codes_of<Vector256, width, b>(vectors);
        if (width == 8) q = _mm256_and_si256(_mm256_adds_epu8(q, half), top);
        _mm256_store_si256((__m256i*)blocks, q);
        blocks += 32;
      });
    }
  });
}

// Tokens share what is unpacked. Words: 1 (16 bits) or 2 (24 bits).
template <int Words, int Tokens>
void rows_of(const Matrix& w, const Activations& x, int64_t token, float* y, int64_t first, int64_t last) {
  const __m128i shift = _mm_cvtsi64_si128(w.shift);
  const __m256i even = _mm256_set1_epi16(255);
  const int64_t repeats = w.slices_per_group(), stride = w.row_blocks * kRows, slice_bytes = w.slice / kInputs * w.bits * kVectorBytes;
  const int16_t* words[Tokens][Words];
  for (int t = 0; t < Tokens; t++)
    for (int p = 0; p < Words; p++) words[t][p] = (const int16_t*)x.planes + ((token + t) * Words + p) * w.padded_k;

  alignas(32) uint8_t blocks[kLongGroup / kInputs * kBlocks * 32];
  for (int64_t j = 2 * first; j < 2 * last; j++) { // 8 outputs
    const int64_t i = j / 2, side = j % 2 * 8;
    const uint8_t* codes = w.row_block(i) + side * 4;
    __m256 total[Tokens];
    for (int t = 0; t < Tokens; t++) total[t] = _mm256_setzero_ps();
    for (int64_t a = 0; a < w.slices; a++, codes += slice_bytes) {
      unpack(w, codes, blocks);
      __m256i sum[Tokens][Words][2];
      for (int t = 0; t < Tokens; t++)
        for (int p = 0; p < Words; p++) sum[t][p][0] = sum[t][p][1] = _mm256_setzero_si256();
      for (int64_t k = 0; k < w.slice; k += 4) {
        const __m256i q = _mm256_load_si256((const __m256i*)(blocks + k * 8));
        const __m256i half[2] = {_mm256_and_si256(q, even), _mm256_srli_epi16(q, 8)};
        for (int t = 0; t < Tokens; t++)
          for (int p = 0; p < Words; p++)
            for (int h = 0; h < 2; h++) {
              const __m256i two = _mm256_set1_epi32(*(const int32_t*)(words[t][p] + a * w.slice + k + 2 * h));
              sum[t][p][h] = _mm256_add_epi32(sum[t][p][h], _mm256_madd_epi16(half[h], two));
            }
      }
      const int64_t at = (i * w.groups + a / repeats) * kRows + side;
      const __m256i zero = w.zeros ? _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(w.zeros + at)))
                                   : _mm256_set1_epi32(int(w.middle()));
      const __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)(w.scales + at)));
      const __m256 scale = _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
      for (int t = 0; t < Tokens; t++) {
        __m256 value = _mm256_setzero_ps();
        for (int p = 0; p < Words; p++) {
          const __m256i s = _mm256_sll_epi32(_mm256_add_epi32(sum[t][p][0], sum[t][p][1]), shift);
          const __m256i offset = _mm256_mullo_epi32(zero, _mm256_set1_epi32(x.sums[((token + t) * Words + p) * w.slices + a]));
          value = _mm256_fmadd_ps(value, _mm256_set1_ps(4096.f), _mm256_cvtepi32_ps(_mm256_sub_epi32(s, offset)));
        }
        const __m256 step = _mm256_mul_ps(scale, _mm256_set1_ps(x.scales[(token + t) * w.slices + a]));
        total[t] = _mm256_fmadd_ps(step, value, total[t]);
      }
    }
    for (int t = 0; t < Tokens; t++) _mm256_storeu_ps(y + (token + t) * stride + i * kRows + side, total[t]);
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
    for (int64_t i = a * g.slice; i < (a + 1) * g.slice; i++) {
      const int64_t k = i / 4 * 4 + i % 2 * 2 + i % 4 / 2; // where this input's place is
      int32_t v = some ? int32_t(lrintf(padded[i] * inverse)) : 0, h = x.wide ? (v + 2048) >> 12 : v;
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

extern "C" __attribute__((visibility("default"))) const void* moopt_few_avx2() { return &kAvx2; }

} // namespace moopt
