// Attention over a packed cache in float32, for vectors of any length: a tile of tokens at a time, codes become floats as
// they are read (in a buffer, where a head is no multiple of some vectors). A key's scale is taken into the query, a
// value's into the weight, so that codes are multiplied as they are.
//
// Included by attention_avx2.cpp and attention_avx512.cpp, which first define kLanes, Floats and what one does with them.
#pragma once
#include "kernels.h"
#include <cstring>

namespace moopt {
namespace {

constexpr int64_t kTile = 64; // tokens
constexpr int64_t kRoom = kTile + 4;
constexpr int64_t kMostRows = 4; // of queries that share what is widened
constexpr float kLowest = -3.4028234663852886e38f; // not infinity: a row that may look nowhere is not NaN

thread_local Workspace t_tile, t_rows, t_sums, t_line;

// `count` rows of `size` elements to floats, rows `wide` apart and filled up with zeros.
template <class Format> void widen_rows(const uint8_t* from, int64_t count, int64_t size, int64_t wide, float* to) {
  if (size == wide) size *= count, count = 1;
  for (int64_t t = 0; t < count; t++, from += size * Format::kBits / 8, to += wide) {
    const int64_t whole = size / kLanes * kLanes;
    const uint8_t* at = from;
#pragma GCC unroll 4
    for (int64_t c = 0; c < whole; c += kLanes, at += kLanes * Format::kBits / 8) store(to + c, Format::at(at));
    if (whole == size) continue;
    uint8_t rest[kLanes * 4] = {};
    memcpy(rest, from + whole * Format::kBits / 8, (size - whole) * Format::kBits / 8);
    store(to + whole, Format::at(rest));
  }
}

// Calls a function of a format with that of codes.
template <class Function> void with_codes(const Tokens& s, Function function) {
  if (s.bits == 2) function(Codes<2>());
  else if (s.bits == 4) function(Codes<4>());
  else function(Codes<8>());
}

void widen(const Tokens& s, int64_t first, int64_t count, int64_t wide, float* to) {
  const uint8_t* from = s.codes + first * s.row_bytes();
  if (s.bits < 16) with_codes(s, [&](auto format) { widen_rows<decltype(format)>(from, count, s.size, wide, to); });
  else (s.type == kBFloat16 ? widen_rows<BFloat16> : s.type == kFloat16 ? widen_rows<Float16> : widen_rows<Float32>)(
      from, count, s.size, wide, to);
}

// Whether codes can be multiplied as they are read; others go through a buffer.
bool direct(const Tokens& s) { return s.bits < 16 && s.size % (kVectors * kLanes) == 0; }

// Asks for tokens that are read soon.
void fetch(const Tokens& s, int64_t first, int64_t count) {
  for (int64_t b = first * s.row_bytes(); b < (first + count) * s.row_bytes(); b += 64) __builtin_prefetch(s.codes + b);
}

float middle(const Tokens& s) { return float((1 << s.bits) - 1) / 2; }

// `count` scales from `first` on, and beside them what a code in the middle stands for: codes are widened relative to it,
// so that sums of codes and sums of lows do not cancel each other.
void spans(const Tokens& s, int64_t first, int64_t count, float* scales, float* centers) {
  const int64_t filled = up(count, kLanes);
  widen_rows<Float16>((const uint8_t*)(s.scales + first), 1, count, filled, scales);
  widen_rows<Float16>((const uint8_t*)(s.lows + first), 1, count, filled, centers);
  for (int64_t i = 0; i < filled; i += kLanes) store(centers + i, fma(load(scales + i), set(middle(s)), load(centers + i)));
}

// e to the x, x at most 0, to about one unit in the last place (Cephes' expf); NaN stays NaN.
Floats exponential(Floats x) {
  x = larger(set(-87.f), x);
  const Floats n = nearest(x * set(1.44269504088896341f));
  x = fma(n, set(-0.693359375f), x);
  x = fma(n, set(2.12194440e-4f), x);
  Floats y = set(1.9875691500e-4f);
  y = fma(y, x, set(1.3981999507e-3f));
  y = fma(y, x, set(8.3334519073e-3f));
  y = fma(y, x, set(4.1665795894e-2f));
  y = fma(y, x, set(1.6666665459e-1f));
  y = fma(y, x, set(5.0000001201e-1f));
  return times_power_of_two(fma(y, x * x, x + set(1.f)), n);
}

// What Rows rows have found so far: sums of weights, of weighted centers (both spread over lanes) and of weighted codes.
// Arrays are [Rows][wide], but for weights: [Rows][kRoom].
template <int Rows> struct Running {
  const Head& head;
  const int64_t row, wide;
  float *tile, *line, *weights; // of the tile at hand
  float *q, *folded, *sums;
  float q_sum[Rows], peak[Rows], shrink[kLanes] = {};
  Floats total[Rows], center[Rows];

  Running(const Head& head, const void* from, Type type, int64_t row) : head(head), row(row), wide(up(head.keys.size, kLanes)) {
    const int64_t size = head.keys.size;
    tile = t_tile.get<float>(kRoom * wide), line = t_line.get<float>(2 * (wide > kRoom ? wide : kRoom + kLanes));
    float* rows = t_rows.get<float>(Rows * (2 * wide + kRoom));
    q = rows, folded = q + Rows * wide, weights = folded + Rows * wide, sums = t_sums.get<float>(Rows * wide);
    memset(q, 0, Rows * wide * 4);
    memset(sums, 0, Rows * wide * 4);
    for (int r = 0; r < Rows; r++) {
      rows::widen((const char*)from + r * size * (type == kFloat32 ? 4 : 2), type, size, q + r * wide);
      Floats all = set(0.f);
      for (int64_t c = 0; c < wide; c += kLanes) {
        const Floats scaled = load(q + r * wide + c) * set(head.scale);
        store(q + r * wide + c, scaled);
        all = all + scaled;
      }
      q_sum[r] = sum(all), peak[r] = kLowest, total[r] = center[r] = set(0.f);
    }
  }

  // Products of the rows at `by` and tokens `first` to `past`, stored from `from` on, four tokens at a time.
  template <class Format>
  void multiply(const uint8_t* from, int64_t pitch, const float* by, int64_t first, int64_t past, const float* offset) {
    for (int64_t t = first; t < past; t += 4) {
      const uint8_t* token[4];
      for (int64_t j = 0; j < 4; j++) token[j] = from + (t + j < past ? t + j : past - 1) * pitch;
      Floats dots[Rows][4];
      for (int r = 0; r < Rows; r++)
        for (int j = 0; j < 4; j++) dots[r][j] = set(0.f);
      for (int64_t c = 0; c < wide; c += kLanes) {
        Floats key[4];
        for (int j = 0; j < 4; j++) key[j] = Format::at(token[j] + c * Format::kBits / 8);
        for (int r = 0; r < Rows; r++) {
          const Floats x = load(by + r * wide + c);
          for (int j = 0; j < 4; j++) dots[r][j] = fma(x, key[j], dots[r][j]);
        }
      }
      for (int r = 0; r < Rows; r++) store_sums(dots[r], offset[r], weights + r * kRoom + t);
    }
  }

  // Takes the scales of a group of tokens into the queries; what its centers add to logits goes to `offset`.
  void fold(const Tokens& keys, int64_t group, float* offset) {
    float *scales = line, *centers = line + wide;
    spans(keys, group * keys.size, keys.size, scales, centers);
    Floats added[4];
    for (int r = 0; r < 4; r++) added[r] = set(0.f);
    for (int64_t c = 0; c < wide; c += kLanes)
      for (int r = 0; r < Rows; r++) {
        const Floats x = load(q + r * wide + c);
        store(folded + r * wide + c, x * load(scales + c));
        added[r] = fma(x, load(centers + c), added[r]);
      }
    store_sums(added, 0.f, offset);
  }

  template <class Format> void look_at(const Tokens& keys, const uint8_t* from, int64_t pitch, int64_t first, int64_t count) {
    float offset[4] = {};
    if (keys.bits == 16 || keys.group == 0) return multiply<Format>(from, pitch, q, 0, count, offset);
    for (int64_t t = 0, next; t < count; t = next) {
      const int64_t group = (first + t) / keys.group, past = (group + 1) * keys.group - first;
      next = past < count ? past : count;
      fold(keys, group, offset);
      multiply<Format>(from, pitch, folded, t, next, offset);
    }
  }

  // Logits of `count` tokens of the store from `first` on, to `weights`.
  void look(const Tokens& keys, int64_t first, int64_t count) {
    if (direct(keys)) with_codes(keys, [&](auto format) {
        look_at<decltype(format)>(keys, keys.codes + first * keys.row_bytes(), keys.row_bytes(), first, count);
      });
    else {
      widen(keys, first, count, wide, tile);
      look_at<Float32>(keys, (const uint8_t*)tile, wide * 4, first, count);
    }
    if (keys.bits == 16 || keys.group) return;
    float *scales = line, *centers = line + kRoom + kLanes;
    spans(keys, first, count, scales, centers);
    for (int r = 0; r < Rows; r++)
      for (int64_t t = 0; t < count; t++) weights[r * kRoom + t] = weights[r * kRoom + t] * scales[t] + q_sum[r] * centers[t];
  }

  // What a row may not look at, tokens from `at` on.
  void hide(int r, int64_t at, int64_t count) {
    const int64_t query = (row + r) % head.queries, seen = head.length - head.queries + query + 1 - at;
    float* w = weights + r * kRoom;
    if (head.mask) {
      const uint8_t* may = head.mask + query * head.length + at;
      for (int64_t t = 0; t < count; t++) w[t] = may[t] ? w[t] : kLowest;
    } else
      for (int64_t t = seen < 0 ? 0 : seen; t < count; t++) w[t] = kLowest;
  }

  // Logits to weights, relative to the highest logit so far; `shrink` is what earlier weights are worth by now.
  void weigh(int64_t at, int64_t count) {
    const int64_t filled = up(count, kLanes);
    for (int r = 0; r < Rows; r++) {
      float* w = weights + r * kRoom;
      hide(r, at, count);
      for (int64_t t = count; t < filled; t++) w[t] = kLowest;
      Floats most = set(peak[r]);
      for (int64_t t = 0; t < filled; t += kLanes) most = larger(most, load(w + t));
      const float higher = largest(most);
      shrink[r] = peak[r] - higher, peak[r] = higher;
    }
    store(shrink, exponential(load(shrink)));
    for (int r = 0; r < Rows; r++) {
      float* w = weights + r * kRoom;
      total[r] = total[r] * set(shrink[r]), center[r] = center[r] * set(shrink[r]);
      for (int64_t t = 0; t < filled; t += kLanes) store(w + t, exponential(load(w + t) - set(peak[r])));
      for (int64_t t = count; t < filled; t++) w[t] = 0;
      for (int64_t t = 0; t < filled; t += kLanes) total[r] = total[r] + load(w + t);
    }
  }

  // Adds `count` tokens, stored from `from` on, by their weights, to Vectors vectors of channels.
  template <class Format, int Vectors> void add(const uint8_t* from, int64_t pitch, int64_t channel, int64_t count) {
    Floats all[Rows][Vectors];
    for (int r = 0; r < Rows; r++)
      for (int v = 0; v < Vectors; v++)
        all[r][v] = load(sums + r * wide + channel + v * kLanes) * set(shrink[r]);
    const uint8_t* token = from + channel * Format::kBits / 8;
    for (int64_t t = 0; t < count; t++, token += pitch) {
      Floats weight[Rows];
      for (int r = 0; r < Rows; r++) weight[r] = set(weights[r * kRoom + t]);
      for (int v = 0; v < Vectors; v++) {
        const Floats value = Format::at(token + v * kLanes * Format::kBits / 8);
        for (int r = 0; r < Rows; r++) all[r][v] = fma(weight[r], value, all[r][v]);
      }
    }
    for (int r = 0; r < Rows; r++)
      for (int v = 0; v < Vectors; v++) store(sums + r * wide + channel + v * kLanes, all[r][v]);
  }

  // Values of `count` tokens of the store from `first` on, by their weights.
  void gather(const Tokens& values, int64_t first, int64_t count) {
    if (values.bits < 16) {
      float *scales = line, *centers = line + kRoom + kLanes;
      spans(values, first, count, scales, centers);
      for (int r = 0; r < Rows; r++)
        for (int64_t t = 0; t < up(count, kLanes); t += kLanes) {
          const Floats w = load(weights + r * kRoom + t);
          center[r] = fma(w, load(centers + t), center[r]);
          store(weights + r * kRoom + t, w * load(scales + t));
        }
    }
    if (direct(values)) with_codes(values, [&](auto format) {
        for (int64_t c = 0; c < wide; c += kVectors * kLanes)
          add<decltype(format), kVectors>(values.codes + first * values.row_bytes(), values.row_bytes(), c, count);
      });
    else {
      widen(values, first, count, wide, tile);
      int64_t c = 0;
      for (; c + kVectors * kLanes <= wide; c += kVectors * kLanes) add<Float32, kVectors>((const uint8_t*)tile, wide * 4, c, count);
      for (; c < wide; c += kLanes) add<Float32, 1>((const uint8_t*)tile, wide * 4, c, count);
    }
  }

  void pass(const Tokens& keys, const Tokens& values, int64_t at, int64_t count) {
    for (int64_t first = 0; first < count; first += kTile) {
      const int64_t tokens = count - first < kTile ? count - first : kTile;
      fetch(values, first, tokens);
      look(keys, first, tokens);
      fetch(keys, first + tokens, count - first - tokens < kTile ? count - first - tokens : kTile);
      weigh(at + first, tokens);
      gather(values, first, tokens);
    }
  }
};

template <int Rows> void attend_rows(const Head& head, const void* q, Type type, int64_t row, void* out) {
  Running<Rows> running(head, q, type, row);
  running.pass(head.keys, head.values, 0, head.packed);
  running.pass(head.key_window, head.value_window, head.packed, head.length - head.packed);
  const int64_t size = head.keys.size;
  for (int r = 0; r < Rows; r++) {
    float* found = running.sums + r * running.wide;
    const Floats center = set(sum(running.center[r])), part = set(1 / sum(running.total[r]));
    for (int64_t c = 0; c < running.wide; c += kLanes) store(found + c, (load(found + c) + center) * part);
    rows::narrow(found, size, type, (char*)out + r * size * (type == kFloat32 ? 4 : 2));
  }
}

void attend(const Head& head, const void* q, Type type, int64_t row, int64_t rows, void* out) {
  constexpr void (*of[])(const Head&, const void*, Type, int64_t, void*) = {attend_rows<1>, attend_rows<2>, attend_rows<3>,
                                                                            attend_rows<4>};
  const int64_t bytes = head.keys.size * (type == kFloat32 ? 4 : 2);
  for (int64_t r = 0; r < rows; r += kMostRows) {
    const int64_t some = rows - r < kMostRows ? rows - r : kMostRows;
    of[some - 1](head, (const char*)q + r * bytes, type, row + r, (char*)out + r * bytes);
  }
}

// Codes of the tile, `count` tokens from `first` on, to values.
void scale(const Tokens& s, int64_t first, int64_t count, int64_t wide, float* tile) {
  float* scales = t_line.get<float>(2 * wide > 2 * kTile ? 2 * wide : 2 * kTile);
  float* centers = scales + (s.group ? wide : kTile);
  if (s.group == 0) spans(s, first, count, scales, centers);
  for (int64_t t = 0; t < count; t++) {
    if (s.group && (t == 0 || (first + t) % s.group == 0)) spans(s, (first + t) / s.group * s.size, s.size, scales, centers);
    float* row = tile + t * wide;
    for (int64_t c = 0; c < wide; c += kLanes) {
      const Floats by = s.group ? load(scales + c) : set(scales[t]), center = s.group ? load(centers + c) : set(centers[t]);
      store(row + c, fma(load(row + c), by, center));
    }
  }
}

void read(const Tokens& from, int64_t count, Type type, void* values) {
  const int64_t size = from.size, wide = up(size, kLanes), bytes = size * (type == kFloat32 ? 4 : 2);
  if (from.bits == 16 && from.type == type) {
    memcpy(values, from.codes, count * bytes);
    return;
  }
  float* tile = t_tile.get<float>(kRoom * wide);
  for (int64_t first = 0; first < count; first += kTile) {
    const int64_t tokens = count - first < kTile ? count - first : kTile;
    widen(from, first, tokens, wide, tile);
    if (from.bits < 16) scale(from, first, tokens, wide, tile);
    for (int64_t t = 0; t < tokens; t++) rows::narrow(tile + t * wide, size, type, (char*)values + (first + t) * bytes);
  }
}

} // namespace
} // namespace moopt
