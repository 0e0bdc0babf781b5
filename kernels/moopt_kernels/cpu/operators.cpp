// The torch operators of the CPU kernels: check, choose a path by the CPU and the number of tokens, spread over threads.
#include "kernels.h"
#include <atomic>
#include <cstring>
#include <optional>
#include <string>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <tuple>
#include <vector>

namespace {

using namespace moopt;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

enum Operation { kQuantizedLinear, kSlicedLinear, kQuantize, kRepack, kDequantize, kAttention, kOperations };
std::atomic<int64_t> g_calls[kOperations];

struct Machine {
  const Kernels* few;  // tokens
  int64_t few_tokens;  // how many are few, without AMX
  bool amx;            // for many
  const Attention* attention;
};

// Tokens up to which a way is the fastest, measured at 576, 1536 and 4096 square: the integer products beside AMX, and
// beside dequantizing for PyTorch's product; AMX beside that.
constexpr int64_t kFewBesideAmx = 7, kFewAvx512 = 64, kFewAvx2 = 16, kManyAmx = 1024;

Machine machine(const std::string& most) {
  __builtin_cpu_init();
  const bool avx512 = most != "avx2" && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  bool tiles = false;
#ifdef MOOPT_AMX
  tiles = avx512 && most != "avx512" && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("amx-bf16") && amx::permitted();
#endif
  return {avx512 ? &kAvx512 : &kAvx2, avx512 ? kFewAvx512 : kFewAvx2, tiles, avx512 ? &kAttentionAvx512 : &kAttentionAvx2};
}

Machine g_machine = machine("");

thread_local Workspace t_row, t_padded, t_planes, t_scales, t_sums, t_out, t_bias, t_packed;

Type type_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::BFloat16: return kBFloat16;
    case ScalarType::Half: return kFloat16;
    case ScalarType::Float: return kFloat32;
    default: STD_TORCH_CHECK(false, "Got an unsupported type; expected bfloat16, float16 or float32.");
  }
}

// Uninitialized, contiguous. Not torch::stable::empty, which costs as much as a small product.
Tensor empty(const std::vector<int64_t>& sizes, ScalarType type) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size() - 1; i > 0; i--) strides[i - 1] = strides[i] * (sizes[i] > 0 ? sizes[i] : 1);
  const int32_t dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  AtenTensorHandle made;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(sizes.size()), sizes.data(), strides.data(), dtype,
                                                         aoti_torch_device_type_cpu(), 0, &made));
  return Tensor(made);
}

Tensor dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

void check(const Geometry& g, const Tensor& codes, const Tensor& scales, const OptionalTensor& zeros, int64_t bits) {
  STD_TORCH_CHECK(bits >= 1 && bits <= 8, "Got the width ", bits, "; expected 1 to 8.");
  STD_TORCH_CHECK(codes.is_contiguous() && codes.numel() == g.row_blocks * g.row_block_bytes(bits), "Got ",
                  codes.numel(), " bytes of codes; expected ", g.row_blocks * g.row_block_bytes(bits),
                  ": these are not the codes of this layout, shape, width and group size.");
  STD_TORCH_CHECK(scales.is_contiguous() && scales.scalar_type() == ScalarType::BFloat16 &&
                  scales.numel() == g.row_blocks * g.groups * kRows, "Got scales of another shape or type than the layout's.");
  STD_TORCH_CHECK(!zeros || (zeros->is_contiguous() && zeros->numel() == scales.numel()), "Got zeros unlike the scales.");
}

Matrix matrix(const Geometry& g, const Tensor& codes, const Tensor& scales, const OptionalTensor& zeros, int64_t bits,
              int64_t shift, int64_t slice) {
  check(g, codes, scales, zeros, bits);
  Matrix w;
  (Geometry&)w = g;
  w.codes = (const uint8_t*)codes.data_ptr(), w.scales = (const uint16_t*)scales.data_ptr();
  w.zeros = zeros ? (const uint8_t*)zeros->data_ptr() : nullptr;
  w.bits = bits, w.shift = shift;
  w.half = slice < 8 ? uint8_t(1 << (7 - slice)) : 0, w.top = uint8_t(0xff << (8 - slice));
  return w;
}

int64_t grain(const Geometry& g) { return 1 + 32768 / (g.padded_k * kRows); }

// A type's bits of activations that few tokens are computed with: 16 of bfloat16 and float16, 24 of float32.
void few_tokens(const Matrix& w, const void* x, Type type, int64_t tokens, const float* bias, void* y) {
  const Kernels& kernels = *g_machine.few;
  const int64_t element = type == kFloat32 ? 4 : 2;
  float *row = t_row.get<float>(w.k), *padded = t_padded.get<float>(w.padded_k);
  Activations split{type == kFloat32, t_planes.get<int8_t>(tokens * 4 * w.padded_k), t_scales.get<float>(tokens * w.slices),
                    t_sums.get<int32_t>(tokens * 2 * w.slices)};
  for (int64_t m = 0; m < tokens; m++) {
    rows::widen((const char*)x + m * w.k * element, type, w.k, row);
    rows::pad(w, row, 4, padded);
    kernels.split(w, padded, m, split);
  }
  const int64_t stride = w.row_blocks * kRows;
  float* out = t_out.get<float>(tokens * stride);
  torch::stable::parallel_for(0, w.row_blocks, grain(w), [&](int64_t first, int64_t last) {
    kernels.gemv(w, split, tokens, out, first, last);
  });
  for (int64_t m = 0; m < tokens; m++) {
    float* from = out + m * stride;
    if (bias)
      for (int64_t i = 0; i < w.n; i++) from[i] += bias[i];
    rows::narrow(from, w.n, type, (char*)y + m * w.n * element);
  }
}

#ifdef MOOPT_AMX
void many_tokens(const Matrix& w, const uint16_t* x, int64_t tokens, const float* bias, uint16_t* y) {
  uint16_t* packed = t_packed.get<uint16_t>(amx::packed_elements(w, tokens));
  amx::pack(w, x, tokens, packed);
  torch::stable::parallel_for(0, amx::pairs(w), 1, [&](int64_t first, int64_t last) {
    amx::gemm(w, packed, tokens, bias, y, first, last);
  });
}
#endif

Tensor dequantized(const Matrix& w, ScalarType type) {
  Tensor values = empty({w.n, w.k}, type);
  const Type to = type_of(values);
  torch::stable::parallel_for(0, w.row_blocks, grain(w), [&](int64_t first, int64_t last) {
    rows::dequantize(w, to, values.data_ptr(), first, last);
  });
  return values;
}

Tensor torch_linear(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  using torch::stable::detail::from;
  StableIValue stack[3] = {from(x), from(weight), from(bias)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::linear", "", stack, TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

Tensor linear(const Tensor& input, const Matrix& w, const OptionalTensor& bias) {
  const Tensor x = dense(input);
  const Type type = type_of(x);
  const int64_t tokens = x.numel() / w.k;
  const bool tiles = g_machine.amx && type == kBFloat16 && tokens <= kManyAmx;
  const int64_t few = tiles ? kFewBesideAmx : g_machine.few_tokens;
  if (tokens > few && !tiles) return torch_linear(x, dequantized(w, x.scalar_type()), bias);
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = w.n;
  Tensor y = empty(shape, x.scalar_type());
  if (tokens == 0) return y;
  float* wide_bias = nullptr;
  if (bias) {
    STD_TORCH_CHECK(bias->numel() == w.n, "Got a bias of ", bias->numel(), " values; expected ", w.n, ".");
    wide_bias = t_bias.get<float>(up(w.n, 64));
    const Tensor flat = dense(*bias);
    rows::widen(flat.data_ptr(), type_of(flat), w.n, wide_bias);
  }
#ifdef MOOPT_AMX
  if (tokens > few) {
    many_tokens(w, (const uint16_t*)x.data_ptr(), tokens, wide_bias, (uint16_t*)y.data_ptr());
    return y;
  }
#endif
  few_tokens(w, x.data_ptr(), type, tokens, wide_bias, y.data_ptr());
  return y;
}

Tensor quantized_linear(const Tensor& x, const Tensor& codes, const Tensor& scales, const OptionalTensor& zeros,
                        const OptionalTensor& bias, int64_t n, int64_t bits, int64_t group, int64_t shift) {
  g_calls[kQuantizedLinear]++;
  return linear(x, matrix(geometry(n, x.size(x.dim() - 1), group), codes, scales, zeros, bits, shift, 8), bias);
}

Tensor sliced_linear(const Tensor& x, const Tensor& codes, const Tensor& scales, const OptionalTensor& zeros,
                     const OptionalTensor& bias, int64_t n, int64_t bits, int64_t group) {
  g_calls[kSlicedLinear]++;
  return linear(x, matrix(geometry(n, x.size(x.dim() - 1), group), codes, scales, zeros, 8, 0, bits), bias);
}

Tensor empty_codes(const Geometry& g, int64_t bits) {
  return empty({g.row_blocks * g.row_block_bytes(bits)}, ScalarType::Byte);
}

Tensor pack(const Tensor& plain, int64_t bits, int64_t group) {
  const Tensor codes = dense(plain);
  const Geometry g = geometry(codes.size(0), codes.size(1), group);
  Tensor packed = empty_codes(g, bits);
  torch::stable::parallel_for(0, g.row_blocks, grain(g), [&](int64_t first, int64_t last) {
    rows::pack(g, (const uint8_t*)codes.data_ptr(), bits, (uint8_t*)packed.data_ptr(), first, last);
  });
  return packed;
}

Tensor unpack(const Tensor& packed, int64_t n, int64_t k, int64_t bits, int64_t group) {
  const Geometry g = geometry(n, k, group);
  Tensor codes = empty({n, k}, ScalarType::Byte);
  torch::stable::parallel_for(0, g.row_blocks, grain(g), [&](int64_t first, int64_t last) {
    rows::unpack(g, (const uint8_t*)packed.data_ptr(), bits, (uint8_t*)codes.data_ptr(), first, last);
  });
  return codes;
}

Tensor unstream(const Tensor& plain, int64_t k, int64_t bits) {
  const Tensor packed = dense(plain);
  STD_TORCH_CHECK(packed.size(1) == (k * bits + 7) / 8, "Got rows of ", packed.size(1), " bytes; expected ", k, " codes of ",
                  bits, " bits.");
  Tensor codes = torch::stable::new_empty(packed, {packed.size(0), k});
  torch::stable::parallel_for(0, packed.size(0), 1 + 32768 / k, [&](int64_t first, int64_t last) {
    rows::unstream((const uint8_t*)packed.data_ptr(), k, bits, (uint8_t*)codes.data_ptr(), first, last);
  });
  return codes;
}

Tensor repack(const Tensor& parent, int64_t bits) {
  g_calls[kRepack]++;
  const int64_t superblocks = parent.numel() / (8 * kVectorBytes);
  Tensor packed = empty({superblocks * bits * kVectorBytes}, ScalarType::Byte);
  torch::stable::parallel_for(0, superblocks, 512, [&](int64_t first, int64_t last) {
    rows::repack((const uint8_t*)parent.data_ptr(), bits, (uint8_t*)packed.data_ptr(), first, last);
  });
  return packed;
}

std::tuple<Tensor, Tensor, Tensor> quantize(const Tensor& plain, int64_t bits, int64_t group, bool symmetric) {
  g_calls[kQuantize]++;
  const Tensor weight = dense(plain);
  const Geometry g = geometry(weight.size(0), weight.size(1), group);
  Tensor codes = empty_codes(g, bits);
  Tensor scales = empty({g.row_blocks, g.groups, kRows}, ScalarType::BFloat16);
  Tensor zeros = empty({symmetric ? 0 : g.row_blocks, g.groups, kRows}, ScalarType::Byte);
  rows::Quantized to{(uint8_t*)codes.data_ptr(), (uint16_t*)scales.data_ptr(), symmetric ? nullptr : (uint8_t*)zeros.data_ptr()};
  const Type type = type_of(weight);
  torch::stable::parallel_for(0, g.row_blocks, grain(g), [&](int64_t first, int64_t last) {
    rows::quantize(g, weight.data_ptr(), type, bits, to, first, last);
  });
  return {codes, scales, zeros};
}

Tensor dequantize(const Tensor& codes, const Tensor& scales, const OptionalTensor& zeros, int64_t n, int64_t k,
                  int64_t bits, int64_t group, int64_t shift, ScalarType dtype) {
  g_calls[kDequantize]++;
  return dequantized(matrix(geometry(n, k, group), codes, scales, zeros, bits, shift, 8), dtype);
}

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
    STD_TORCH_CHECK(bits == 2 || bits == 4 || bits == 8 || bits == 16, "Got the width ", bits, "; expected 2, 4, 8 or 16.");
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
        g_machine.attention->read(packed(i), count, type, to);
        g_machine.attention->read(recent(i), more, type, to + count * size * whole.element_size());
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

Tensor to_type(const Tensor& t, ScalarType as) { return t.scalar_type() == as ? t : torch::stable::to(t, as); }

Tensor torch_attention(const Tensor& q, const Side& keys, const Side& values, const OptionalTensor& mask, double scale, int64_t packed) {
  using torch::stable::detail::from;
  const ScalarType as = q.scalar_type() == ScalarType::BFloat16 ? ScalarType::BFloat16 : ScalarType::Float;
  const Tensor wide = to_type(q, as), k = keys.read(packed, as), v = values.read(packed, as);
  const OptionalTensor added = additive_mask(mask, q.size(0), q.size(2), k.size(2), as);
  StableIValue stack[8] = {from(wide), from(k), from(v), from(added), from(0.0), from(false),
                           from(std::optional<double>(scale)), from(q.size(1) != k.size(1))};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::scaled_dot_product_attention", "", stack, TORCH_ABI_VERSION));
  return to_type(torch::stable::detail::to<Tensor>(stack[0]), q.scalar_type());
}

Tensor kv_attention(const Tensor& query, const Tensor& k_codes, const Tensor& k_scales, const Tensor& k_lows,
                    const Tensor& v_codes, const Tensor& v_scales, const Tensor& v_lows, const Tensor& k_window,
                    const Tensor& v_window, const OptionalTensor& some_mask, double scale, int64_t packed, int64_t k_bits,
                    int64_t v_bits, int64_t group) {
  g_calls[kAttention]++;
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
      g_machine.attention->attend(head, (const char*)q.data_ptr() + i * bytes, type, 0, rows, (char*)out.data_ptr() + i * bytes);
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

STABLE_TORCH_LIBRARY_FRAGMENT(moopt, m) {
  m.def("cpu_pack(Tensor codes, int bits, int group_size) -> Tensor");
  m.def("cpu_unpack(Tensor packed, int n, int k, int bits, int group_size) -> Tensor");
  m.def("cpu_unstream(Tensor rows, int k, int bits) -> Tensor");
  m.def("cpu_repack(Tensor parent, int bits) -> Tensor");
  m.def("cpu_quantize(Tensor weight, int bits, int group_size, bool symmetric) -> (Tensor, Tensor, Tensor)");
  m.def("cpu_dequantize(Tensor codes, Tensor scales, Tensor? zeros, int n, int k, int bits, int group_size, int shift, "
        "ScalarType dtype) -> Tensor");
  m.def("cpu_kv_append(Tensor tokens, Tensor(a!) codes, Tensor(b!) scales, Tensor(c!) lows, int at, int bits, int group) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(moopt, CPU, m) {
  m.impl("quantized_linear_cpu", TORCH_BOX(&quantized_linear));
  m.impl("sliced_linear_cpu", TORCH_BOX(&sliced_linear));
  m.impl("cpu_pack", TORCH_BOX(&pack));
  m.impl("cpu_unpack", TORCH_BOX(&unpack));
  m.impl("cpu_unstream", TORCH_BOX(&unstream));
  m.impl("cpu_repack", TORCH_BOX(&repack));
  m.impl("cpu_quantize", TORCH_BOX(&quantize));
  m.impl("cpu_dequantize", TORCH_BOX(&dequantize));
  m.impl("kv_attention_cpu", TORCH_BOX(&kv_attention));
  m.impl("cpu_kv_append", TORCH_BOX(&kv_append));
}

extern "C" {
// How often each operation ran since this was last asked, in the order of `Operation`.
__attribute__((visibility("default"))) void moopt_take_calls(int64_t* counts) {
  for (int i = 0; i < kOperations; i++) counts[i] = g_calls[i].exchange(0);
}

// Use no more than an instruction set, "avx2" or "avx512", or all that there is: ""; returns what is used.
__attribute__((visibility("default"))) const char* moopt_limit(const char* most) {
  g_machine = machine(most);
  return g_machine.amx ? "amx" : g_machine.few->name;
}
}
