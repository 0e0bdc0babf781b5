// Few tokens with AVX-512 and VNNI: a block is unpacked by one instruction, mostly, and multiplies the activations'
// bytes. Codes are multiplied where they are in their bytes; what that makes the sums larger is taken off once a slice.
#include "fields.h"

namespace moopt {
namespace {

// Blocks whose codes are multiplied at the same place of their bytes share a sum. Of 8 bits there are two, to have enough
// in flight; of 1 and 2 bits fewer than places: one move of a vector brings several blocks down.
constexpr int sums_of(int width) { return width == 3 ? 3 : 2; }
constexpr int place_of_sum(int width, int sum) { return sum == 0 ? 0 : sum == 2 || width > 4 ? 8 - width : width; }
constexpr int sum_of(int width, int block) {
  const int place = place_of(width, block) % (2 * width);
  if (width == 8) return block % 2;
  int sum = 0;
  while (place_of_sum(width, sum) != place) sum++;
  return sum;
}

constexpr int64_t kAhead = 4096; // bytes of codes that are fetched early
constexpr int kPair = 2;         // of row blocks, which share what is broadcast

// Four inputs of an activation's byte, for every output.
__m512i four(const int8_t* plane) { return _mm512_set1_epi32(*(const int32_t*)plane); }

// Scales and zero points of a group of 16 outputs.
struct Ends {
  __m512 scale;
  __m512i zero;
};

Ends ends_of(const Matrix& w, int64_t row_block, int64_t group) {
  const int64_t at = (row_block * w.groups + group) * kRows;
  const __m512i scale = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(w.scales + at)));
  const __m512i zero = w.zeros ? _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)(w.zeros + at)))
                               : _mm512_set1_epi32(int(w.middle()));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(scale, 16)), zero};
}

// Asks for scales and zero points that the next pair of row blocks needs.
void fetch_ends(const Matrix& w, int64_t row_block, int64_t group) {
  const int64_t at = ((row_block + kPair) * w.groups + group) * kRows;
  _mm_prefetch((const char*)(w.scales + at), _MM_HINT_T1);
  if (w.zeros) _mm_prefetch((const char*)(w.zeros + at), _MM_HINT_T1);
}

// How far ahead of what is read a row block's codes are fetched: row blocks are read in pairs, side by side, so that after
// a block's end come those of the next pair, not what follows in memory.
struct Ahead {
  int64_t block, bytes = kAhead, turn;
  explicit Ahead(int64_t block) : block(block), turn(block - kAhead) {}
  int64_t at(int64_t read) {
    while (read >= turn) bytes += block, turn += block;
    return bytes;
  }
};

// A vector of codes; asks for one that is read later.
__m512i next_of(const uint8_t* codes, int64_t ahead) {
  _mm_prefetch((const char*)codes + ahead, _MM_HINT_T0);
  return Vector512::load(codes);
}

// Adds a slice's integer products, shifted, the zero points taken off and scaled; exact but for the last rounding.
template <int Planes>
__m512 add(__m512 total, const __m512i* sums, const Ends& ends, __m128i shift, const Activations& x, const Geometry& g,
           int64_t token, int64_t slice) {
  const int32_t* totals = x.sums + token * (Planes - 1) * g.slices + slice;
  const __m512i low = _mm512_add_epi32(_mm512_slli_epi32(sums[Planes - 2], 8), sums[Planes - 1]);
  const __m512i offset = _mm512_mullo_epi32(ends.zero, _mm512_set1_epi32(totals[(Planes - 2) * g.slices]));
  __m512 value = _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_sll_epi32(low, shift), offset));
  if (Planes == 3) {
    const __m512i offset = _mm512_mullo_epi32(ends.zero, _mm512_set1_epi32(totals[0]));
    const __m512i high = _mm512_sub_epi32(_mm512_sll_epi32(sums[0], shift), offset);
    value = _mm512_fmadd_ps(_mm512_cvtepi32_ps(high), _mm512_set1_ps(65536.f), value);
  }
  return _mm512_fmadd_ps(_mm512_mul_ps(ends.scale, _mm512_set1_ps(x.scales[token * g.slices + slice])), value, total);
}

template <int Width, int Block, int At> __m512i block_of(const __m512i* vectors, __m512i half, __m512i top) {
  const __m512i q = codes_of<Vector512, Width, Block, At>(vectors);
  return Width == 8 ? _mm512_and_si512(_mm512_adds_epu8(q, half), top) : q;
}

// Two row blocks; the last one of an odd number goes twice.
struct Pair {
  int64_t first, second;
  Pair(int64_t i, int64_t last) : first(i), second(i + 1 < last ? i + 1 : i) {}
  int64_t operator[](int r) const { return r ? second : first; }
};

// One token of 16 bits: codes are multiplied as they are unpacked.
template <int Width> void one_token(const Matrix& w, const Activations& x, int64_t token, float* y, const Pair& rows) {
  constexpr int Sums = sums_of(Width);
  const int64_t repeats = w.slices_per_group();
  const __m128i shift = _mm_cvtsi64_si128(w.shift);
  const __m512i half = _mm512_set1_epi8(char(w.half)), top = _mm512_set1_epi8(char(w.top));
  const int8_t* planes[] = {x.planes + 2 * token * w.padded_k, x.planes + (2 * token + 1) * w.padded_k};
  const uint8_t* codes[] = {w.row_block(rows[0]), w.row_block(rows[1])};
  __m512 total[] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  Ahead fetched(w.row_block_bytes(Width));
  for (int64_t a = 0, group = 0, left = repeats; a < w.slices; a++) {
    const int64_t ahead = fetched.at(codes[0] - w.row_block(rows[0]));
    __m512i sum[kPair][Sums][2];
    for (int r = 0; r < kPair; r++)
      for (int s = 0; s < Sums; s++) sum[r][s][0] = sum[r][s][1] = _mm512_setzero_si512();
    for (int64_t k = a * w.slice; k < (a + 1) * w.slice; k += kInputs) {
      __m512i vectors[kPair][Width];
      for (int r = 0; r < kPair; r++)
        for (int v = 0; v < Width; v++, codes[r] += kVectorBytes) vectors[r][v] = next_of(codes[r], ahead);
      each<kBlocks>([&](auto b) __attribute__((always_inline)) {
        constexpr int Sum = sum_of(Width, b);
        for (int r = 0; r < kPair; r++) {
          const __m512i q = block_of<Width, b, place_of_sum(Width, Sum)>(vectors[r], half, top);
          for (int p = 0; p < 2; p++) sum[r][Sum][p] = _mm512_dpbusd_epi32(sum[r][Sum][p], q, four(planes[p] + k + 4 * b));
        }
      });
    }
    for (int r = 0; r < kPair; r++) {
      for (int s = 1; s < Sums; s++)
        for (int p = 0; p < 2; p++)
          sum[r][0][p] = _mm512_add_epi32(sum[r][0][p], _mm512_srai_epi32(sum[r][s][p], place_of_sum(Width, s)));
      fetch_ends(w, rows[r], group);
      total[r] = add<2>(total[r], sum[r][0], ends_of(w, rows[r], group), shift, x, w, token, a);
    }
    if (--left == 0) group++, left = repeats;
  }
  for (int r = 0; r < kPair; r++) _mm512_storeu_ps(y + (token * w.row_blocks + rows[r]) * kRows, total[r]);
}

// A slice of a row block, a byte a code: [inputs / 4][64], in `blocks` or where it is.
const uint8_t* unpacked(const Matrix& w, const uint8_t* codes, int64_t ahead, uint8_t* blocks) {
  if (w.bits == 8 && !w.half) return codes;
  uint8_t* to = blocks;
  const __m512i half = _mm512_set1_epi8(char(w.half)), top = _mm512_set1_epi8(char(w.top));
  with_width(w.bits, [&](auto width) {
    for (int64_t k = 0; k < w.slice; k += kInputs, codes += width * kVectorBytes, to += kBlocks * kVectorBytes) {
      __m512i vectors[width];
      for (int v = 0; v < width; v++) vectors[v] = next_of(codes + v * kVectorBytes, ahead);
      each<kBlocks>([&](auto b) __attribute__((always_inline)) {
        _mm512_store_si512(to + b * kVectorBytes, block_of<width, b, 0>(vectors, half, top));
      });
    }
  });
  return blocks;
}

// Several tokens, or 24 bits, share what is unpacked. Planes: bytes an activation is cut into, 2 (16 bits) or 3 (24).
template <int Planes, int Tokens>
void some_tokens(const Matrix& w, const Activations& x, int64_t token, float* y, const Pair& rows) {
  const int64_t repeats = w.slices_per_group(), slice_bytes = w.slice / kInputs * w.bits * kVectorBytes;
  const __m128i shift = _mm_cvtsi64_si128(w.shift);
  alignas(64) uint8_t room[kPair][kLongGroup / kInputs * kBlocks * kVectorBytes];
  __m512 total[kPair][Tokens];
  for (int r = 0; r < kPair; r++)
    for (int t = 0; t < Tokens; t++) total[r][t] = _mm512_setzero_ps();
  Ahead fetched(w.row_block_bytes(w.bits));
  for (int64_t a = 0, group = 0, left = repeats; a < w.slices; a++) {
    const int64_t ahead = fetched.at(a * slice_bytes);
    __m512i sum[kPair][Tokens][Planes];
    const uint8_t* blocks[kPair];
    for (int r = 0; r < kPair; r++) {
      blocks[r] = unpacked(w, w.row_block(rows[r]) + a * slice_bytes, ahead, room[r]);
      for (int t = 0; t < Tokens; t++)
        for (int p = 0; p < Planes; p++) sum[r][t][p] = _mm512_setzero_si512();
    }
    const int8_t* planes = x.planes + token * Planes * w.padded_k + a * w.slice;
    for (int64_t k = 0; k < w.slice; k += 4)
      for (int t = 0; t < Tokens; t++)
        for (int p = 0; p < Planes; p++)
          for (int r = 0; r < kPair; r++) {
            const __m512i q = _mm512_loadu_si512(blocks[r] + k * kRows);
            sum[r][t][p] = _mm512_dpbusd_epi32(sum[r][t][p], q, four(planes + (t * Planes + p) * w.padded_k + k));
          }
    for (int r = 0; r < kPair; r++) {
      const Ends ends = ends_of(w, rows[r], group);
      fetch_ends(w, rows[r], group);
      for (int t = 0; t < Tokens; t++) total[r][t] = add<Planes>(total[r][t], sum[r][t], ends, shift, x, w, token + t, a);
    }
    if (--left == 0) group++, left = repeats;
  }
  for (int r = 0; r < kPair; r++)
    for (int t = 0; t < Tokens; t++) _mm512_storeu_ps(y + ((token + t) * w.row_blocks + rows[r]) * kRows, total[r][t]);
}

using Product = void (*)(const Matrix&, const Activations&, int64_t, float*, const Pair&);

void gemv(const Matrix& w, const Activations& x, int64_t tokens, float* y, int64_t first, int64_t last) {
  Product one = some_tokens<3, 1>;
  if (!x.wide) with_width(w.bits, [&](auto width) { one = one_token<width>; });
  const Product wide[] = {one, some_tokens<3, 2>}, narrow[] = {one, some_tokens<2, 2>, some_tokens<2, 3>, some_tokens<2, 4>};
  const int64_t most = x.wide ? 2 : 4;
  for (int64_t t = 0; t < tokens; t += most) {
    const int64_t now = tokens - t < most ? tokens - t : most;
    const Product product = (x.wide ? wide : narrow)[now - 1];
    for (int64_t i = first; i < last; i += kPair) product(w, x, t, y, Pair(i, last));
  }
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
