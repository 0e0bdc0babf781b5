// The torch operators of the packed cache: attention over it and appending to it. Included by operators.cpp.
#pragma once
#include "tensors.h"

namespace {

const Attention* g_attention = nullptr; // the path of this CPU

// Where a tensor [B, H, room, ...] keeps its head i of all B * H.
template <class T> T* head_of(const Tensor& t, int64_t i) {
  return (T*)((char*)t.data_ptr() + i * t.size(2) * t.size(3) * t.element_size());
}

// Keys or values of all heads: the store and the window behind it.
struct Side {
  Tensor codes, scales, lows, window;
  int64_t bits, group;

  Side(const Tensor& codes, const Tensor& scales, const Tensor& lows, const Tensor& window, int64_t bits, int64_t group)
      : codes(dense(codes)), scales(dense(scales)), lows(dense(lows)), window(dense(window)), bits(bits), group(group) {
    if (bits != 2 && bits != 4 && bits != 8 && bits != 16) refuse("Got the width ", bits, "; expected 2, 4, 8 or 16.");
  }

  Tokens packed(int64_t i) const {
    return {head_of<uint8_t>(codes, i), head_of<uint16_t>(scales, i), head_of<uint16_t>(lows, i), bits, group,
            window.size(3), bits == 16 ? type_of(codes) : kFloat32};
  }
  Tokens recent(int64_t i) const { return {head_of<uint8_t>(window, i), nullptr, nullptr, 16, 0, window.size(3), type_of(window)}; }

  // All tokens, B x H x T x D.
  Tensor read(int64_t count, ScalarType as) const {
    const int64_t batch = window.size(0), heads = window.size(1), more = window.size(2), size = window.size(3);
    Tensor whole = empty({batch, heads, count + more, size}, as);
    const Type type = type_of(whole);
    torch::stable::parallel_for(0, batch * heads, 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; i++) {
        char* to = head_of<char>(whole, i);
        g_attention->read(packed(i), count, type, to);
        g_attention->read(recent(i), more, type, to + count * size * whole.element_size());
      }
    });
    return whole;
  }
};

// So many rows, queries of the heads that share keys, are a matrix product for which keys and values are widened once.
constexpr int64_t kManyRows = 32;

// What PyTorch's attention adds to logits: nothing, or the smallest number where a query may not look.
template <class T> void hide(const uint8_t* may, int64_t sequences, int64_t queries, int64_t length, T lowest, T* added) {
  for (int64_t i = 0; i < sequences * queries; i++, added += length) {
    const int64_t seen = length - queries + i + 1;
    if (may)
      for (int64_t t = 0; t < length; t++) added[t] = may[i * length + t] ? T(0) : lowest;
    else
      for (int64_t t = 0; t < length; t++) added[t] = t < seen ? T(0) : lowest;
  }
}

Tensor additive_mask(const OptionalTensor& mask, int64_t batch, int64_t queries, int64_t length, ScalarType as) {
  const float lowest = -3.3895314e38f; // of bfloat16
  uint16_t narrow;
  rows::narrow(&lowest, 1, kBFloat16, &narrow);
  const int64_t sequences = mask ? batch : 1;
  Tensor added = empty({sequences, 1, queries, length}, as);
  const uint8_t* may = mask ? (const uint8_t*)mask->data_ptr() : nullptr;
  if (as == ScalarType::Float) hide(may, sequences, queries, length, lowest, (float*)added.data_ptr());
  else hide(may, sequences, queries, length, narrow, (uint16_t*)added.data_ptr());
  return added;
}

Tensor torch_attention(const Tensor& q, const Side& keys, const Side& values, const OptionalTensor& mask, double scale, int64_t packed) {
  using torch::stable::detail::from;
  const ScalarType as = q.scalar_type() == ScalarType::BFloat16 ? ScalarType::BFloat16 : ScalarType::Float;
  const Tensor wide = to_type(q, as), k = keys.read(packed, as), v = values.read(packed, as);
  const bool causal = !mask && q.size(2) == k.size(2); // needs no mask, which is as large as all logits of a head
  OptionalTensor added;
  if (!causal) added = additive_mask(mask, q.size(0), q.size(2), k.size(2), as);
  StableIValue stack[8] = {from(wide), from(k), from(v), from(added), from(0.0), from(causal),
                           from(std::optional<double>(scale)), from(q.size(1) != k.size(1))};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::scaled_dot_product_attention", "", stack, TORCH_ABI_VERSION));
  return to_type(torch::stable::detail::to<Tensor>(stack[0]), q.scalar_type());
}

Tensor kv_attention(const Tensor& query, const Tensor& k_codes, const Tensor& k_scales, const Tensor& k_lows,
                    const Tensor& v_codes, const Tensor& v_scales, const Tensor& v_lows, const Tensor& k_window,
                    const Tensor& v_window, const OptionalTensor& some_mask, double scale, int64_t packed, int64_t k_bits,
                    int64_t v_bits, int64_t group) {
  const Tensor q = dense(query);
  const Side keys(k_codes, k_scales, k_lows, k_window, k_bits, group), values(v_codes, v_scales, v_lows, v_window, v_bits, 0);
  const OptionalTensor mask = some_mask ? OptionalTensor(dense(*some_mask)) : OptionalTensor();
  const int64_t batch = q.size(0), heads = k_window.size(1), queries = q.size(2), rows = q.size(1) / heads * queries;
  const int64_t length = packed + k_window.size(2);
  if (rows >= kManyRows) return torch_attention(q, keys, values, mask, scale, packed);
  Tensor out = empty({batch, q.size(1), queries, q.size(3)}, q.scalar_type());
  const Type type = type_of(q);
  const int64_t bytes = rows * q.size(3) * q.element_size();
  torch::stable::parallel_for(0, batch * heads, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) {
      const uint8_t* may = mask ? (const uint8_t*)mask->data_ptr() + i / heads * queries * length : nullptr;
      const Head head{keys.packed(i), values.packed(i), keys.recent(i), values.recent(i), packed, length, queries, float(scale), may};
      g_attention->attend(head, (const char*)q.data_ptr() + i * bytes, type, 0, rows, (char*)out.data_ptr() + i * bytes);
    }
  });
  return out;
}

void kv_append(const Tensor& plain, Tensor codes, Tensor scales, Tensor lows, int64_t at, int64_t bits, int64_t group) {
  const Tensor from = dense(plain);
  const Type type = type_of(from);
  torch::stable::parallel_for(0, from.size(0) * from.size(1), 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) {
      const tokens::Packed store{head_of<uint8_t>(codes, i), head_of<uint16_t>(scales, i), head_of<uint16_t>(lows, i), bits,
                                 group, from.size(3)};
      tokens::append(store, at, head_of<char>(from, i), type, from.size(2));
    }
  });
}

} // namespace
