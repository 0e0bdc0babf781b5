// Attention over a packed cache with AVX-512, and VBMI where there is that: see attention.h.
#include "kernels.h"
#include <immintrin.h>

namespace moopt {
namespace {

using Floats = __m512;
constexpr int64_t kLanes = 16;
constexpr int kVectors = 4; // of channels that are summed at a time

Floats load(const float* p) { return _mm512_loadu_ps(p); }
void store(float* p, Floats v) { _mm512_storeu_ps(p, v); }
Floats set(float v) { return _mm512_set1_ps(v); }
Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
Floats larger(Floats a, Floats b) { return _mm512_max_ps(a, b); }
Floats nearest(Floats v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
Floats times_power_of_two(Floats v, Floats n) { return _mm512_scalef_ps(v, n); }
float sum(Floats v) { return _mm512_reduce_add_ps(v); }
float largest(Floats v) { return _mm512_reduce_max_ps(v); }

// The sums of four vectors, and `offset` added.
void store_sums(const Floats v[4], float offset, float* to) {
  const Floats ab = _mm512_add_ps(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
  const Floats cd = _mm512_add_ps(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
  const Floats all = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
  const __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  _mm_storeu_ps(to, _mm_add_ps(quarter, _mm_set1_ps(offset)));
}

// Codes to floats, relative to the middle; below 8 bits through a table of 16, of which an index takes its lowest four bits alone.
template <int Bits> struct Codes {
  static constexpr int kBits = Bits;
  static Floats at(const uint8_t* p) {
    constexpr float half = float((1 << Bits) - 1) / 2;
    if constexpr (Bits == 8)
      return _mm512_sub_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p))), set(half));
    __m512i index;
    if constexpr (Bits == 4) {
#ifdef __AVX512VBMI__
      const __m512i from = _mm512_set_epi64(0x3c00000038, 0x3400000030, 0x2c00000028, 0x2400000020, 0x1c00000018,
                                            0x1400000010, 0x0c00000008, 0x0400000000);
      index = _mm512_multishift_epi64_epi8(from, _mm512_set1_epi64(*(const int64_t*)p));
#else
      const __m512i from = _mm512_set_epi32(28, 24, 20, 16, 12, 8, 4, 0, 28, 24, 20, 16, 12, 8, 4, 0);
      const __m512i low = _mm512_set1_epi32(((const int32_t*)p)[0]);
      index = _mm512_srlv_epi32(_mm512_mask_set1_epi32(low, 0xff00, ((const int32_t*)p)[1]), from);
#endif
    } else {
      const __m512i from = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
      index = _mm512_srlv_epi32(_mm512_set1_epi32(*(const int32_t*)p), from);
    }
    const __m512i codes = _mm512_and_si512(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                                           _mm512_set1_epi32((1 << Bits) - 1));
    const Floats table = _mm512_sub_ps(_mm512_cvtepi32_ps(codes), set(half));
    return _mm512_permutexvar_ps(index, table);
  }
};

struct BFloat16 {
  static constexpr int kBits = 16;
  static Floats at(const uint8_t* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
  }
};

struct Float16 {
  static constexpr int kBits = 16;
  static Floats at(const uint8_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
};

struct Float32 {
  static constexpr int kBits = 32;
  static Floats at(const uint8_t* p) { return _mm512_loadu_ps(p); }
};

} // namespace
} // namespace moopt

#include "attention.h"

namespace moopt {
extern const Attention kAttentionAvx512{attend, read};
}
