// Attention over a packed cache with AVX2 and F16C: see attention.h.
#include "kernels.h"
#include <immintrin.h>

namespace moopt {
namespace {

using Floats = __m256;
constexpr int64_t kLanes = 8;
constexpr int kVectors = 2; // of channels that are summed at a time

Floats load(const float* p) { return _mm256_loadu_ps(p); }
void store(float* p, Floats v) { _mm256_storeu_ps(p, v); }
Floats set(float v) { return _mm256_set1_ps(v); }
Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
Floats larger(Floats a, Floats b) { return _mm256_max_ps(a, b); }
Floats nearest(Floats v) { return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

Floats times_power_of_two(Floats v, Floats n) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_mul_ps(v, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}

float sum(Floats v) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}

float largest(Floats v) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}

// The sums of four vectors, and `offset` added.
void store_sums(const Floats v[4], float offset, float* to) {
  const Floats all = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
  const __m128 half = _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
  _mm_storeu_ps(to, _mm_add_ps(half, _mm_set1_ps(offset)));
}

// Codes to floats, relative to the middle.
template <int Bits> struct Codes {
  static constexpr int kBits = Bits;
  static Floats at(const uint8_t* p) {
    const Floats half = set(float((1 << Bits) - 1) / 2);
    if constexpr (Bits == 8)
      return _mm256_sub_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p))), half);
    const __m256i from = _mm256_mullo_epi32(_mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0), _mm256_set1_epi32(Bits));
    const int32_t eight = Bits == 4 ? *(const int32_t*)p : *(const uint16_t*)p;
    const __m256i codes = _mm256_srlv_epi32(_mm256_set1_epi32(eight), from);
    return _mm256_sub_ps(_mm256_cvtepi32_ps(_mm256_and_si256(codes, _mm256_set1_epi32((1 << Bits) - 1))), half);
  }
};

struct BFloat16 {
  static constexpr int kBits = 16;
  static Floats at(const uint8_t* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
  }
};

struct Float16 {
  static constexpr int kBits = 16;
  static Floats at(const uint8_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
};

struct Float32 {
  static constexpr int kBits = 32;
  static Floats at(const uint8_t* p) { return _mm256_loadu_ps((const float*)p); }
};

} // namespace
} // namespace moopt

#include "attention.h"

namespace moopt {
extern const Attention kAttentionAvx2{attend, read};

extern "C" __attribute__((visibility("default"))) const void* moopt_attention_avx2() { return &kAttentionAvx2; }
}
