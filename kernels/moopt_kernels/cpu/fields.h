// Where the bits of every code are: the one definition that packing, slicing, products and dequantizing share.
//
// A superblock of 16 outputs x 32 inputs is 8 blocks of 64 codes (4 inputs of each output, one after the other), in as
// many vectors of 64 bytes as a code has bits. Byte i of a vector holds bits of code i of the blocks, so that whole
// vectors are all that packing and unpacking need. A vector has whole codes of as many blocks as fit, from its lowest
// bit on; what is left at the top of the vectors (3, 5, 6, 7 bits) makes up the last blocks:
//
//     3 bits: vectors 0-2 hold blocks 0-5; block 6 is the rest of vector 0 and a bit of vector 2, 7 that of 1 and 2.
//     4 bits: vector v holds the blocks 2 v and 2 v + 1.
//
// Everything here is always inlined, or a template of vectors that are a file's own: see kernels.h.
#pragma once
#include "kernels.h"
#include <immintrin.h>
#include <utility>

namespace moopt {

struct Bit {
  int vector, at;
};

constexpr Bit bit_of(int width, int block, int bit) {
  const int fields = 8 / width, used = fields * width, rest = 8 - used; // `used`: bits of a vector, and blocks, too
  if (block < used) return {block / fields, block % fields * width + bit};
  const int top = width / rest * rest, gathered = width - top; // bits that are the whole rest of some vectors, and others
  const int i = block - used, t = bit < gathered ? i * gathered + bit : bit - gathered;
  return bit < gathered ? Bit{top + t / rest, used + t % rest} : Bit{i + t / rest * rest, used + t % rest};
}

// Where unpacking leaves a block's codes within their bytes: where they are, or at the top.
constexpr int place_of(int width, int block) {
  const int fields = 8 / width;
  return block < fields * width ? block % fields * width : 8 - width;
}

// Consecutive bits `from` on of the bytes of a vector, which become those from `to` on of another.
struct Piece {
  int source, from, to, count;
};

struct Pieces {
  int count = 0;
  Piece piece[8] = {};

  constexpr void add(int source, int from, int to) {
    if (count > 0) {
      Piece& last = piece[count - 1];
      if (last.source == source && last.from + last.count == from && last.to + last.count == to) {
        last.count++;
        return;
      }
    }
    piece[count++] = {source, from, to, 1};
  }
};

// Of a block, from the vectors.
template <int Width, int Block> struct Unpacked {
  static constexpr Pieces pieces() {
    Pieces found;
    for (int bit = 0; bit < Width; bit++) {
      const Bit b = bit_of(Width, Block, bit);
      found.add(b.vector, b.at, place_of(Width, Block) + bit);
    }
    return found;
  }
};

// Of a vector, from blocks whose codes are at the top of their bytes.
template <int Width, int Vector> struct Packed {
  static constexpr Pieces pieces() {
    Pieces found;
    for (int at = 0; at < 8; at++)
      for (int i = 0; i < kBlocks * Width; i++) {
        const Bit b = bit_of(Width, i / Width, i % Width);
        if (b.vector == Vector && b.at == at) found.add(i / Width, 8 - Width + i % Width, at);
      }
    return found;
  }
};

// What the pieces make of their sources; bits that belong to none are anything.
template <class Vector, class Of, int Index = 0>
[[gnu::always_inline]] inline typename Vector::Type join(const typename Vector::Type* sources) {
  constexpr Pieces all = Of::pieces();
  constexpr Piece p = all.piece[Index];
  const auto part = Vector::template right<p.from - p.to>(sources[p.source]);
  if constexpr (Index + 1 == all.count) return part;
  else return Vector::select(((1 << p.count) - 1) << p.to, part, join<Vector, Of, Index + 1>(sources));
}

// A block's codes, moved from their place down to `at`: elsewhere zeros.
template <class Vector, int Width, int Block, int At = 0>
[[gnu::always_inline]] inline typename Vector::Type codes_of(const typename Vector::Type* vectors) {
  const auto joined = join<Vector, Unpacked<Width, Block>>(vectors);
  if constexpr (Width == 8) return joined;
  else return Vector::mask(Vector::template right<place_of(Width, Block) - At>(joined), ((1 << Width) - 1) << At);
}

template <class Function, int... I> [[gnu::always_inline]] inline void each(Function function, std::integer_sequence<int, I...>) {
  (function(std::integral_constant<int, I>()), ...);
}

// Calls a function with each of 0, 1, ... Count - 1 as a constant.
template <int Count, class Function> [[gnu::always_inline]] inline void each(Function function) {
  each(function, std::make_integer_sequence<int, Count>());
}

// Calls a function with a width as a constant.
template <class Function> [[gnu::always_inline]] inline void with_width(int64_t width, Function function) {
  each<8>([&](auto i) {
    if (width == i + 1) function(std::integral_constant<int, i + 1>());
  });
}

// Bits cross the border of neighbouring bytes when a vector is moved, and are masked off.
struct Vector256 {
  using Type = __m256i;
  [[gnu::always_inline]] static Type load(const uint8_t* p) { return _mm256_loadu_si256((const Type*)p); }
  [[gnu::always_inline]] static Type mask(Type v, int bits) { return _mm256_and_si256(v, _mm256_set1_epi8(char(bits))); }
  [[gnu::always_inline]] static Type select(int bits, Type a, Type b) { return _mm256_or_si256(mask(a, bits), mask(b, ~bits)); }
  template <int Count> [[gnu::always_inline]] static Type right(Type v) {
    if constexpr (Count == 0) return v;
    else if constexpr (Count < 0) return _mm256_slli_epi16(v, -Count);
    else return _mm256_srli_epi16(v, Count);
  }
};

#ifdef __AVX512BW__
struct Vector512 {
  using Type = __m512i;
  [[gnu::always_inline]] static Type load(const uint8_t* p) { return _mm512_loadu_si512(p); }
  [[gnu::always_inline]] static Type mask(Type v, int bits) { return _mm512_and_si512(v, _mm512_set1_epi8(char(bits))); }
  [[gnu::always_inline]] static Type select(int bits, Type a, Type b) {
    return _mm512_ternarylogic_epi32(_mm512_set1_epi8(char(bits)), a, b, 0xca);
  }
  template <int Count> [[gnu::always_inline]] static Type right(Type v) {
    if constexpr (Count == 0) return v;
    else if constexpr (Count < 0) return _mm512_slli_epi16(v, -Count);
    else return _mm512_srli_epi16(v, Count);
  }
};
#endif

} // namespace moopt
