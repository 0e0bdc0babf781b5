// Tensors for the operators: made, made dense, checked. What is refused becomes Python's ValueError or IndexError.
#pragma once
#include "kernels.h"
#include <optional>
#include <sstream>
#include <stdexcept>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <vector>

namespace {

using namespace moopt;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

template <class Error = std::invalid_argument, class... Parts> [[noreturn, gnu::noinline]] void refuse(const Parts&... parts) {
  std::ostringstream text;
  ((text << parts), ...);
  throw Error(text.str());
}

Type type_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::BFloat16: return kBFloat16;
    case ScalarType::Half: return kFloat16;
    case ScalarType::Float: return kFloat32;
    default: refuse("Got an unsupported type; expected bfloat16, float16 or float32.");
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

Tensor to_type(const Tensor& t, ScalarType as) { return t.scalar_type() == as ? t : torch::stable::to(t, as); }

} // namespace
