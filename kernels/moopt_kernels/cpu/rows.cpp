// Packing, slicing, quantizing and dequantizing, and float conversions. AVX2, BMI2 and F16C only.
#include "fields.h"
#include <cmath>
#include <cstring>
#include <immintrin.h>

namespace moopt::rows {
namespace {

uint64_t low_bits(int64_t bits) { return 0x0101010101010101ull * ((1u << bits) - 1); }

uint16_t bfloat16(float value) {
  uint32_t u;
  memcpy(&u, &value, 4);
  return value != value ? 0x7fc0 : uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

float from_bfloat16(uint16_t value) {
  uint32_t u = uint32_t(value) << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}

__m128i bfloat16(__m256 value) {
  __m256i u = _mm256_castps_si256(value), lsb = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  u = _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(lsb, _mm256_set1_epi32(0x7fff))), 16);
  __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
  u = _mm256_blendv_epi8(u, _mm256_set1_epi32(0x7fc0), nan);
  u = _mm256_permute4x64_epi64(_mm256_packus_epi32(u, u), 0xd8);
  return _mm256_castsi256_si128(u);
}

// 16 outputs x 16 inputs: four blocks, dword r of each the 4 codes of output r, to rows of 16 codes.
void transpose(const uint8_t blocks[4][64], uint8_t* to, int64_t stride) {
  for (int r = 0; r < 16; r += 4) {
    __m128i a = _mm_loadu_si128((const __m128i*)(blocks[0] + 4 * r)), b = _mm_loadu_si128((const __m128i*)(blocks[1] + 4 * r));
    __m128i c = _mm_loadu_si128((const __m128i*)(blocks[2] + 4 * r)), d = _mm_loadu_si128((const __m128i*)(blocks[3] + 4 * r));
    __m128i ab = _mm_unpacklo_epi32(a, b), cd = _mm_unpacklo_epi32(c, d);
    __m128i AB = _mm_unpackhi_epi32(a, b), CD = _mm_unpackhi_epi32(c, d);
    _mm_storeu_si128((__m128i*)(to + (r + 0) * stride), _mm_unpacklo_epi64(ab, cd));
    _mm_storeu_si128((__m128i*)(to + (r + 1) * stride), _mm_unpackhi_epi64(ab, cd));
    _mm_storeu_si128((__m128i*)(to + (r + 2) * stride), _mm_unpacklo_epi64(AB, CD));
    _mm_storeu_si128((__m128i*)(to + (r + 3) * stride), _mm_unpackhi_epi64(AB, CD));
  }
}

// A superblock from its blocks [8][64], whose codes are at the top of their bytes.
template <int Width> void pack_superblock(const uint8_t* blocks, __m256i half, uint8_t* packed) {
  for (int64_t side = 0; side < kVectorBytes; side += 32) {
    __m256i block[kBlocks];
    for (int64_t j = 0; j < kBlocks; j++) block[j] = _mm256_adds_epu8(Vector256::load(blocks + j * kVectorBytes + side), half);
    each<Width>([&](auto v) {
      _mm256_storeu_si256((__m256i*)(packed + v * kVectorBytes + side), join<Vector256, Packed<Width, v>>(block));
    });
  }
}

// Rows [16][padded_k] of codes, one byte each, to the superblocks of 16 outputs.
void pack_rows(const uint8_t* rows, int64_t padded_k, int64_t bits, uint8_t* packed) {
  const __m256i none = _mm256_setzero_si256();
  const __m128i up = _mm_cvtsi64_si128(8 - bits);
  with_width(bits, [&](auto width) {
    for (int64_t k = 0; k < padded_k; k += kInputs, packed += width * kVectorBytes) {
      alignas(64) uint8_t blocks[kBlocks][kVectorBytes];
      for (int64_t r = 0; r < kRows; r++) {
        alignas(32) uint8_t row[kInputs];
        _mm256_store_si256((__m256i*)row, _mm256_sll_epi16(Vector256::load(rows + r * padded_k + k), up));
        for (int64_t j = 0; j < kBlocks; j++) memcpy(blocks[j] + 4 * r, row + 4 * j, 4);
      }
      pack_superblock<width>(blocks[0], none, packed);
    }
  });
}

void unpack_rows(const uint8_t* packed, int64_t padded_k, int64_t bits, uint8_t* rows) {
  with_width(bits, [&](auto width) {
    for (int64_t k = 0; k < padded_k; k += kInputs, packed += width * kVectorBytes) {
      alignas(64) uint8_t blocks[kBlocks][kVectorBytes];
      for (int64_t side = 0; side < kVectorBytes; side += 32) {
        __m256i vectors[width];
        for (int64_t v = 0; v < width; v++) vectors[v] = Vector256::load(packed + v * kVectorBytes + side);
        each<kBlocks>([&](auto j) { _mm256_store_si256((__m256i*)(blocks[j] + side), codes_of<Vector256, width, j>(vectors)); });
      }
      transpose(blocks, rows + k, padded_k);
      transpose(blocks + 4, rows + k + 16, padded_k);
    }
  });
}

thread_local Workspace t_rows, t_wide, t_line;

struct Range {
  float low, high;
};

// Zero included; what is no number stays none, so that it is seen in what the codes stand for.
Range range(const float* x, int64_t count) {
  Range found{0, 0};
  float sum = 0; // of nothing but zeros and NaN
  for (int64_t i = 0; i < count; i++) {
    found.low = x[i] < found.low ? x[i] : found.low;
    found.high = x[i] > found.high ? x[i] : found.high;
    sum += x[i] != x[i] ? x[i] : 0.f;
  }
  return {found.low + sum, found.high + sum};
}

void codes_of(const float* x, int64_t count, float scale, float zero, int64_t bits, uint8_t* codes) {
  const __m256 s = _mm256_set1_ps(scale), z = _mm256_set1_ps(zero), most = _mm256_set1_ps(float((1 << bits) - 1));
  for (int64_t i = 0; i < count; i += 8) { // count is filled up to 8 by the caller
    __m256 v = _mm256_round_ps(_mm256_div_ps(_mm256_loadu_ps(x + i), s), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    v = _mm256_min_ps(_mm256_max_ps(_mm256_add_ps(v, z), _mm256_setzero_ps()), most);
    __m256i q = _mm256_cvtps_epi32(v);
    q = _mm256_permute4x64_epi64(_mm256_packus_epi32(q, q), 0xd8);
    __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(q), _mm_setzero_si128());
    _mm_storel_epi64((__m128i*)(codes + i), bytes);
  }
}

int64_t element_bytes(Type type) { return type == kFloat32 ? 4 : 2; }

} // namespace

void widen(const void* from, Type type, int64_t count, float* to) {
  if (type == kFloat32) {
    memcpy(to, from, 4 * count);
    return;
  }
  const uint16_t* half = (const uint16_t*)from;
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    __m128i v = _mm_loadu_si128((const __m128i*)(half + i));
    __m256 wide = type == kFloat16 ? _mm256_cvtph_ps(v)
                                   : _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
    _mm256_storeu_ps(to + i, wide);
  }
  for (; i < count; i++) to[i] = type == kFloat16 ? _cvtsh_ss(half[i]) : from_bfloat16(half[i]);
}

void narrow(const float* from, int64_t count, Type type, void* to) {
  if (type == kFloat32) {
    memcpy(to, from, 4 * count);
    return;
  }
  uint16_t* half = (uint16_t*)to;
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    __m256 v = _mm256_loadu_ps(from + i);
    _mm_storeu_si128((__m128i*)(half + i), type == kFloat16 ? _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT) : bfloat16(v));
  }
  for (; i < count; i++) half[i] = type == kFloat16 ? _cvtss_sh(from[i], _MM_FROUND_TO_NEAREST_INT) : bfloat16(from[i]);
}

void pad(const Geometry& g, const void* row, int64_t bytes_each, void* padded) {
  if (g.padded_group == g.group && g.padded_k == g.k) {
    memcpy(padded, row, bytes_each * g.k);
    return;
  }
  memset(padded, 0, bytes_each * g.padded_k);
  for (int64_t i = 0; i < g.groups; i++) {
    int64_t count = g.k - i * g.group < g.group ? g.k - i * g.group : g.group;
    memcpy((char*)padded + i * g.padded_group * bytes_each, (const char*)row + i * g.group * bytes_each, count * bytes_each);
  }
}

void pack(const Geometry& g, const uint8_t* codes, int64_t bits, uint8_t* packed, int64_t first, int64_t last) {
  uint8_t* rows = t_rows.get<uint8_t>(kRows * g.padded_k);
  for (int64_t i = first; i < last; i++) {
    for (int64_t r = 0; r < kRows; r++) {
      uint8_t* row = rows + r * g.padded_k;
      if (i * kRows + r < g.n) pad(g, codes + (i * kRows + r) * g.k, 1, row);
      else memset(row, 0, g.padded_k);
    }
    pack_rows(rows, g.padded_k, bits, packed + i * g.row_block_bytes(bits));
  }
}

void unpack(const Geometry& g, const uint8_t* packed, int64_t bits, uint8_t* codes, int64_t first, int64_t last) {
  uint8_t* rows = t_rows.get<uint8_t>(kRows * g.padded_k);
  for (int64_t i = first; i < last; i++) {
    unpack_rows(packed + i * g.row_block_bytes(bits), g.padded_k, bits, rows);
    for (int64_t r = 0; r < kRows && i * kRows + r < g.n; r++)
      for (int64_t j = 0; j < g.groups; j++) {
        int64_t count = g.k - j * g.group < g.group ? g.k - j * g.group : g.group;
        memcpy(codes + (i * kRows + r) * g.k + j * g.group, rows + r * g.padded_k + j * g.padded_group, count);
      }
  }
}

// The file's rows, k codes of so many bits one after the other, as a byte each.
void unstream(const uint8_t* packed, int64_t k, int64_t bits, uint8_t* codes, int64_t first, int64_t last) {
  const uint64_t mask = low_bits(bits);
  const int64_t bytes = (k * bits + 7) / 8;
  for (int64_t i = first; i < last; i++) {
    const uint8_t* from = packed + i * bytes;
    uint8_t* to = codes + i * k;
    for (int64_t j = 0; j < k; j += 8) {
      const int64_t at = j / 8 * bits, left = bytes - at, count = k - j < 8 ? k - j : 8;
      uint64_t v = 0;
      memcpy(&v, from + at, left < 8 ? left : 8);
      v = _pdep_u64(v, mask);
      memcpy(to + j, &v, count);
    }
  }
}

// MatGPTQ's slice of 8-bit superblocks: round half up, saturate, keep the top bits.
void repack(const uint8_t* parent, int64_t bits, uint8_t* packed, int64_t first, int64_t last) {
  const __m256i half = _mm256_set1_epi8(bits < 8 ? char(1 << (7 - bits)) : 0);
  with_width(bits, [&](auto width) {
    for (int64_t i = first; i < last; i++) {
      const uint8_t *blocks = parent + i * kBlocks * kVectorBytes, *soon = blocks + 4 * kBlocks * kVectorBytes;
      for (int64_t j = 0; j < kBlocks; j++) _mm_prefetch((const char*)soon + j * kVectorBytes, _MM_HINT_T0);
      pack_superblock<width>(blocks, half, packed + i * width * kVectorBytes);
    }
  });
}

namespace {

// The codes [16][padded_k] of a row block, sliced.
[[gnu::noinline]] const uint8_t* block_codes(const Matrix& w, int64_t block) {
  uint8_t* rows = t_rows.get<uint8_t>(kRows * w.padded_k);
  unpack_rows(w.row_block(block), w.padded_k, w.bits, rows);
  const __m256i half = _mm256_set1_epi8(char(w.half)), top = _mm256_set1_epi8(char(w.top));
  if (w.half)
    for (int64_t b = 0; b < kRows * w.padded_k; b += 32) {
      __m256i* q = (__m256i*)(rows + b);
      _mm256_store_si256(q, _mm256_and_si256(_mm256_adds_epu8(_mm256_load_si256(q), half), top));
    }
  return rows;
}

// Row `r` of the matrix, from the codes of its block.
[[gnu::noinline]] void dequantize_row(const Matrix& w, const uint8_t* rows, int64_t r, Type type, void* values) {
  const uint8_t* row = rows + r % kRows * w.padded_k;
  float* out = t_line.get<float>(w.padded_k + 8);
  const float step = float(1 << w.shift);
  for (int64_t j = 0; j < w.groups; j++) {
    int64_t at = (r / kRows * w.groups + j) * kRows + r % kRows, count = w.k - j * w.group < w.group ? w.k - j * w.group : w.group;
    float s = from_bfloat16(w.scales[at]), z = w.zeros ? float(w.zeros[at]) : float(w.middle());
    const __m256 scale = _mm256_set1_ps(s * step), offset = _mm256_set1_ps(s * z);
    for (int64_t c = 0; c < count; c += 8) { // the last eight run over into the next group, written after
      __m256i q = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(row + j * w.padded_group + c)));
      _mm256_storeu_ps(out + j * w.group + c, _mm256_fmsub_ps(_mm256_cvtepi32_ps(q), scale, offset));
    }
  }
  narrow(out, w.k, type, values);
}

} // namespace

void dequantize(const Matrix& w, Type type, void* values, int64_t first, int64_t last) {
  for (int64_t i = first; i < last; i++) {
    const uint8_t* rows = block_codes(w, i);
    for (int64_t r = i * kRows; r < (i + 1) * kRows && r < w.n; r++)
      dequantize_row(w, rows, r, type, (char*)values + r * w.k * element_bytes(type));
  }
}

void dequantize_rows(const Matrix& w, const int64_t* chosen, Type type, void* values, int64_t first, int64_t last) {
  for (int64_t i = first; i < last; i++)
    dequantize_row(w, block_codes(w, chosen[i] / kRows), chosen[i], type, (char*)values + i * w.k * element_bytes(type));
}

// The numbers of quantize/reference.py, operation by operation.
void quantize(const Geometry& g, const void* weight, Type type, int64_t bits, Quantized to, int64_t first, int64_t last) {
  uint8_t* rows = t_rows.get<uint8_t>(kRows * g.padded_k);
  float *wide = t_wide.get<float>(g.k), *x = t_line.get<float>(g.padded_k);
  const float most = float((1 << bits) - 1), middle = float(1 << (bits - 1));
  for (int64_t i = first; i < last; i++) {
    memset(rows, 0, kRows * g.padded_k);
    for (int64_t r = 0; r < kRows; r++) {
      if (i * kRows + r < g.n) {
        widen((const char*)weight + (i * kRows + r) * g.k * element_bytes(type), type, g.k, wide);
        pad(g, wide, 4, x);
      }
      for (int64_t j = 0; j < g.groups; j++) {
        int64_t at = (i * g.groups + j) * kRows + r, start = j * g.padded_group;
        if (i * kRows + r >= g.n) {
          to.scales[at] = 0;
          if (to.zeros) to.zeros[at] = 0;
          continue;
        }
        int64_t count = g.padded_k - start < g.padded_group ? g.padded_k - start : g.padded_group;
        Range found = range(x + start, count);
        float widest = -found.low > found.high ? -found.low : found.high;
        float scale = to.zeros ? (found.high - found.low) / most : widest / (middle - 1);
        to.scales[at] = bfloat16(scale < 1e-8f ? 1e-8f : scale);
        scale = from_bfloat16(to.scales[at]);
        float zero = to.zeros ? nearbyintf(-found.low / scale) : middle;
        zero = zero > 0 ? zero > most ? most : zero : 0; // also of NaN
        if (to.zeros) to.zeros[at] = uint8_t(zero);
        codes_of(x + start, count, scale, zero, bits, rows + r * g.padded_k + start);
      }
    }
    pack_rows(rows, g.padded_k, bits, to.codes + i * g.row_block_bytes(bits));
  }
}

} // namespace moopt::rows
