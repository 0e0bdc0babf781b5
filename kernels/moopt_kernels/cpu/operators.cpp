// The torch operators of the CPU kernels: check, choose a path by the CPU and the number of tokens, spread over threads.
#include "attention_operators.h"
#include "tensors.h"
#include <atomic>
#include <string>
#include <tuple>

namespace {

enum Operation { kQuantizedLinear, kSlicedLinear, kQuantize, kRepack, kDequantize, kAttention, kOperations };
std::atomic<int64_t> g_calls[kOperations];

struct Paths {
  const Kernels* few = nullptr; // tokens
  const Attention* attention = nullptr;
};

struct Machine : Paths {
  int64_t few_tokens = 0; // how many are few, without AMX
  bool amx = false;       // for many
};

// Tokens up to which a way is the fastest. Measured at 576, 1536 and 4096 square beside AMX, at 576 and 1536 for the other
// two: the integer products beside AMX, and beside dequantizing for PyTorch's product; AMX beside that.
constexpr int64_t kFewBesideAmx = 7, kFewAvx512 = 64, kFewAvx2 = 16, kManyAmx = 1024;

#ifdef MOOPT_AVX512
Paths g_avx2; // lent by a library of its own
#else
Paths g_avx2{&kAvx2, &kAttentionAvx2};
#endif

bool has_bfloat16_products() {
#if defined(__x86_64__) || defined(__i386__)
  return __builtin_cpu_supports("avx512bf16");
#else
  return true;
#endif
}

// No paths where this CPU needs those for AVX2 and nobody has lent them yet.
Machine machine(const std::string& most) {
#ifdef MOOPT_AVX512
  __builtin_cpu_init();
  if (most != "avx2" && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    bool tiles = false;
#ifdef MOOPT_AMX
    tiles = most != "avx512" && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("amx-bf16") && amx::permitted();
#endif
    return {{&kAvx512, &kAttentionAvx512}, kFewAvx512, tiles};
  }
#endif
  return {g_avx2, kFewAvx2, false};
}

Machine g_machine; // chosen by `moopt_limit`

thread_local Workspace t_row, t_padded, t_planes, t_scales, t_sums, t_out, t_bias;

Geometry shaped(int64_t n, int64_t k, int64_t group) {
  if (n < 1 || k < 1 || group < 1) refuse("Got a matrix of ", n, " x ", k, " in groups of ", group, "; expected at least 1 of each.");
  return geometry(n, k, group);
}

void check_codes(const Geometry& g, const Tensor& codes, int64_t bits) {
  if (bits < 1 || bits > 8) refuse("Got the width ", bits, "; expected 1 to 8.");
  if (codes.scalar_type() != ScalarType::Byte || !codes.is_contiguous() || codes.numel() != g.row_blocks * g.row_block_bytes(bits))
    refuse("Got ", codes.numel(), " codes; expected ", g.row_blocks * g.row_block_bytes(bits),
           " bytes: these are not the codes of this layout, shape, width and group size.");
}

void check(const Geometry& g, const Tensor& codes, const Tensor& scales, const OptionalTensor& zeros, int64_t bits) {
  check_codes(g, codes, bits);
  if (scales.scalar_type() != ScalarType::BFloat16 || !scales.is_contiguous() || scales.numel() != g.row_blocks * g.groups * kRows)
    refuse("Got scales of another shape or type than the layout's.");
  if (zeros && (zeros->scalar_type() != ScalarType::Byte || !zeros->is_contiguous() || zeros->numel() != scales.numel()))
    refuse("Got zeros unlike the scales; expected bytes of their shape.");
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
  const amx::Inputs inputs = amx::inputs(w, x, tokens);
  torch::stable::parallel_for(0, amx::pairs(w), 1, [&](int64_t first, int64_t last) {
    amx::gemm(w, inputs, tokens, bias, y, first, last);
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

// Multiplied in float32: float16, whose range weights would leave, and bfloat16 where the CPU has no products of it.
Tensor many_through_torch(const Tensor& x, const Matrix& w, const OptionalTensor& bias) {
  using torch::stable::detail::from;
  const ScalarType type = x.scalar_type();
  const bool narrow = type == ScalarType::BFloat16 && has_bfloat16_products();
  const ScalarType wide = narrow ? type : ScalarType::Float;
  const Tensor inputs = to_type(x, wide), weight = dequantized(w, wide);
  OptionalTensor added;
  if (bias) added = to_type(*bias, wide);
  StableIValue stack[3] = {from(inputs), from(weight), from(added)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::linear", "", stack, TORCH_ABI_VERSION));
  return to_type(torch::stable::detail::to<Tensor>(stack[0]), type);
}

Tensor linear(const Tensor& input, const Matrix& w, const OptionalTensor& bias) {
  const Tensor x = dense(input);
  const Type type = type_of(x);
  if (bias && bias->numel() != w.n) refuse("Got a bias of ", bias->numel(), " values; expected ", w.n, ".");
  const int64_t tokens = x.numel() / w.k;
  const bool tiles = g_machine.amx && type == kBFloat16 && tokens <= kManyAmx;
  const int64_t few = tiles ? kFewBesideAmx : g_machine.few_tokens;
  if (tokens > few && !tiles) return many_through_torch(x, w, bias);
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = w.n;
  Tensor y = empty(shape, x.scalar_type());
  if (tokens == 0) return y;
  float* wide_bias = nullptr;
  if (bias) {
    wide_bias = t_bias.get<float>(up(w.n, 64));
    const int64_t each = bias->element_size();
    const Tensor flat = dense(each == 2 || each == 4 ? *bias : to_type(*bias, ScalarType::Float));
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
  return linear(x, matrix(shaped(n, x.size(x.dim() - 1), group), codes, scales, zeros, bits, shift, 8), bias);
}

Tensor sliced_linear(const Tensor& x, const Tensor& codes, const Tensor& scales, const OptionalTensor& zeros,
                     const OptionalTensor& bias, int64_t n, int64_t bits, int64_t group) {
  g_calls[kSlicedLinear]++;
  return linear(x, matrix(shaped(n, x.size(x.dim() - 1), group), codes, scales, zeros, 8, 0, bits), bias);
}

Tensor empty_codes(const Geometry& g, int64_t bits) {
  return empty({g.row_blocks * g.row_block_bytes(bits)}, ScalarType::Byte);
}

Tensor pack(const Tensor& plain, int64_t bits, int64_t group) {
  const Tensor codes = dense(plain);
  const Geometry g = shaped(codes.size(0), codes.size(1), group);
  Tensor packed = empty_codes(g, bits);
  torch::stable::parallel_for(0, g.row_blocks, grain(g), [&](int64_t first, int64_t last) {
    rows::pack(g, (const uint8_t*)codes.data_ptr(), bits, (uint8_t*)packed.data_ptr(), first, last);
  });
  return packed;
}

Tensor unpack(const Tensor& packed, int64_t n, int64_t k, int64_t bits, int64_t group) {
  const Geometry g = shaped(n, k, group);
  check_codes(g, packed, bits);
  Tensor codes = empty({n, k}, ScalarType::Byte);
  torch::stable::parallel_for(0, g.row_blocks, grain(g), [&](int64_t first, int64_t last) {
    rows::unpack(g, (const uint8_t*)packed.data_ptr(), bits, (uint8_t*)codes.data_ptr(), first, last);
  });
  return codes;
}

Tensor unstream(const Tensor& plain, int64_t k, int64_t bits) {
  const Tensor packed = dense(plain);
  if (k < 1 || packed.size(1) != (k * bits + 7) / 8)
    refuse("Got rows of ", packed.size(1), " bytes; expected ", k, " codes of ", bits, " bits.");
  Tensor codes = torch::stable::new_empty(packed, {packed.size(0), k});
  torch::stable::parallel_for(0, packed.size(0), 1 + 32768 / k, [&](int64_t first, int64_t last) {
    rows::unstream((const uint8_t*)packed.data_ptr(), k, bits, (uint8_t*)codes.data_ptr(), first, last);
  });
  return codes;
}

Tensor repack(const Tensor& parent, int64_t n, int64_t k, int64_t group, int64_t bits) {
  g_calls[kRepack]++;
  const Geometry g = shaped(n, k, group);
  check_codes(g, parent, 8);
  Tensor packed = empty_codes(g, bits);
  torch::stable::parallel_for(0, parent.numel() / (8 * kVectorBytes), 512, [&](int64_t first, int64_t last) {
    rows::repack((const uint8_t*)parent.data_ptr(), bits, (uint8_t*)packed.data_ptr(), first, last);
  });
  return packed;
}

std::tuple<Tensor, Tensor, Tensor> quantize(const Tensor& plain, int64_t bits, int64_t group, bool symmetric) {
  g_calls[kQuantize]++;
  const Tensor weight = dense(plain);
  const Geometry g = shaped(weight.size(0), weight.size(1), group);
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
  return dequantized(matrix(shaped(n, k, group), codes, scales, zeros, bits, shift, 8), dtype);
}

// Of the matrix, or of the `slice` highest bits of an 8-bit one: `chosen` rows [m], as [m, k].
Tensor dequantize_rows(const Tensor& codes, const Tensor& scales, const OptionalTensor& zeros, const Tensor& chosen, int64_t n,
                       int64_t k, int64_t bits, int64_t group, int64_t shift, int64_t slice, ScalarType dtype) {
  g_calls[kDequantize]++;
  const Matrix w = matrix(shaped(n, k, group), codes, scales, zeros, bits, shift, slice);
  const Tensor wanted = dense(to_type(chosen, ScalarType::Long));
  const int64_t* row = (const int64_t*)wanted.data_ptr();
  for (int64_t i = 0; i < wanted.numel(); i++)
    if (row[i] < 0 || row[i] >= n) refuse<std::out_of_range>("Got the row ", row[i], "; expected 0 to ", n - 1, ".");
  Tensor values = empty({wanted.numel(), k}, dtype);
  const Type type = type_of(values);
  torch::stable::parallel_for(0, wanted.numel(), grain(w), [&](int64_t first, int64_t last) {
    rows::dequantize_rows(w, row, type, values.data_ptr(), first, last);
  });
  return values;
}

Tensor attention(const Tensor& query, const Tensor& k_codes, const Tensor& k_scales, const Tensor& k_lows,
                 const Tensor& v_codes, const Tensor& v_scales, const Tensor& v_lows, const Tensor& k_window,
                 const Tensor& v_window, const OptionalTensor& mask, double scale, int64_t packed, int64_t k_bits, int64_t v_bits,
                 int64_t group) {
  g_calls[kAttention]++;
  return kv_attention(query, k_codes, k_scales, k_lows, v_codes, v_scales, v_lows, k_window, v_window, mask, scale, packed,
                      k_bits, v_bits, group);
}

} // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(moopt, m) {
  m.def("cpu_pack(Tensor codes, int bits, int group_size) -> Tensor");
  m.def("cpu_unpack(Tensor packed, int n, int k, int bits, int group_size) -> Tensor");
  m.def("cpu_unstream(Tensor rows, int k, int bits) -> Tensor");
  m.def("cpu_repack(Tensor parent, int n, int k, int group_size, int bits) -> Tensor");
  m.def("cpu_quantize(Tensor weight, int bits, int group_size, bool symmetric) -> (Tensor, Tensor, Tensor)");
  m.def("cpu_dequantize(Tensor codes, Tensor scales, Tensor? zeros, int n, int k, int bits, int group_size, int shift, "
        "ScalarType dtype) -> Tensor");
  m.def("cpu_dequantize_rows(Tensor codes, Tensor scales, Tensor? zeros, Tensor rows, int n, int k, int bits, int group_size, "
        "int shift, int slice, ScalarType dtype) -> Tensor");
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
  m.impl("cpu_dequantize_rows", TORCH_BOX(&dequantize_rows));
  m.impl("kv_attention_cpu", TORCH_BOX(&attention));
  m.impl("cpu_kv_append", TORCH_BOX(&kv_append));
}

extern "C" {
// How often each operation ran since this was last asked, in the order of `Operation`.
__attribute__((visibility("default"))) void moopt_take_calls(int64_t* counts) {
  for (int i = 0; i < kOperations; i++) counts[i] = g_calls[i].exchange(0);
}

// Use no more than an instruction set, "avx2" or "avx512", or all that there is: ""; returns what is used. Where that is
// AVX2, and it has not been lent, returns "" and changes nothing.
__attribute__((visibility("default"))) const char* moopt_limit(const char* most) {
  const Machine found = machine(most);
  if (!found.few) return "";
  g_machine = found, g_attention = found.attention;
  return found.amx ? "amx" : found.few->name;
}

// The path for AVX2, from a library of its own.
__attribute__((visibility("default"))) void moopt_lend(const void* few, const void* attention) {
  g_avx2 = {(const Kernels*)few, (const Attention*)attention};
}
}
