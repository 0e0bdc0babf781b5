// Packing of keys and values as a cache takes them: the numbers of attention/cache.py, operation by operation.
#include "kernels.h"
#include <cstring>
#include <immintrin.h>

namespace moopt::tokens {
namespace {

thread_local Workspace t_wide, t_spans;

constexpr float kMost = 65504; // of float16

// NaN stays NaN in all of these, as it does in PyTorch.
float least(float a, float b) { return a < b || a != a ? a : b; }
float greatest(float a, float b) { return a > b || a != a ? a : b; }
float clamped(float a) { return a < -kMost ? -kMost : a > kMost ? kMost : a; }

// From the smallest and largest value to what the cache keeps, rounded to float16, and back to floats.
void span(int64_t count, float most, float* low, float* high_then_scale, uint16_t* lows, uint16_t* scales) {
  for (int64_t i = 0; i < count; i++) low[i] = clamped(low[i]);
  rows::narrow(low, count, kFloat16, lows);
  rows::widen(lows, kFloat16, count, low);
  for (int64_t i = 0; i < count; i++) {
    const float range = high_then_scale[i] - low[i];
    high_then_scale[i] = clamped((range < 1e-5f ? 1e-5f : range) / most);
  }
  rows::narrow(high_then_scale, count, kFloat16, scales);
  rows::widen(scales, kFloat16, count, high_then_scale);
}

void codes_of(const float* x, int64_t size, const float* low, const float* scale, int64_t bits, uint8_t* to) {
  const uint64_t mask = 0x0101010101010101ull * ((1u << bits) - 1);
  const __m256 most = _mm256_set1_ps(float((1 << bits) - 1));
  for (int64_t c = 0; c < size; c += 8, to += bits) {
    __m256 v = _mm256_div_ps(_mm256_sub_ps(_mm256_loadu_ps(x + c), _mm256_loadu_ps(low + c)), _mm256_loadu_ps(scale + c));
    v = _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256i q = _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(v, _mm256_setzero_ps()), most));
    q = _mm256_permute4x64_epi64(_mm256_packus_epi32(q, q), 0xd8);
    const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(q), _mm_setzero_si128());
    const uint64_t eight = _pext_u64(uint64_t(_mm_cvtsi128_si64(bytes)), mask);
    memcpy(to, &eight, bits);
  }
}

} // namespace

void append(const Packed& store, int64_t at, const void* from, Type type, int64_t count) {
  const int64_t size = store.size, step = store.group ? store.group : 1, row = size * store.bits / 8;
  const float most = float((1 << store.bits) - 1);
  float* x = t_wide.get<float>(step * size);
  float *low = t_spans.get<float>(2 * size), *scale = low + size;
  for (int64_t t = at; t < at + count; t += step) {
    rows::widen((const char*)from + (t - at) * size * (type == kFloat32 ? 4 : 2), type, step * size, x);
    memcpy(low, x, 4 * size);
    memcpy(scale, x, 4 * size);
    for (int64_t j = 1; j < step; j++)
      for (int64_t c = 0; c < size; c++) {
        const float v = x[j * size + c];
        low[c] = least(v, low[c]), scale[c] = greatest(v, scale[c]);
      }
    if (store.group) span(size, most, low, scale, store.lows + t / step * size, store.scales + t / step * size);
    else {
      for (int64_t c = 1; c < size; c++) {
        low[0] = least(low[c], low[0]), scale[0] = greatest(scale[c], scale[0]);
      }
      span(1, most, low, scale, store.lows + t, store.scales + t);
      for (int64_t c = 1; c < size; c++) low[c] = low[0], scale[c] = scale[0];
    }
    for (int64_t j = 0; j < step; j++) codes_of(x + j * size, size, low, scale, store.bits, store.codes + (t + j) * row);
  }
}

} // namespace moopt::tokens
