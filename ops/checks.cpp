#include "ops/checks.h"

namespace braid {
namespace {

bool matches(const Tensor& tensor, std::initializer_list<Dim> dims) {
  if (!tensor.defined() || tensor.rank() != static_cast<int>(dims.size())) return false;
  int i = 0;
  for (const Dim& dim : dims) {
    if (dim.extent != Dim::kAny && dim.extent != tensor.size(i)) return false;
    ++i;
  }
  return true;
}

void check(std::string_view op, std::string_view argument, const Tensor& tensor, std::initializer_list<Dim> dims, bool right_dtype,
           std::string_view wanted_dtype) {
  if (right_dtype && matches(tensor, dims)) return;
  std::ostringstream expected;
  expected.imbue(std::locale::classic());
  expected << '[';
  for (const Dim& dim : dims) {
    expected << (&dim == dims.begin() ? "" : ", ") << dim.letter;
    if (dim.extent != Dim::kAny) expected << " = " << dim.extent;
  }
  expected << ']';
  if (!tensor.defined()) fail(op, ": ", argument, " must be ", wanted_dtype, " ", expected.str(), ", got nothing");
  fail(op, ": ", argument, " must be ", wanted_dtype, " ", expected.str(), ", got ", tensor.dtype(), " ", tensor.shape());
}

}  // namespace

void check_tensor(std::string_view op, std::string_view argument, const Tensor& tensor, std::initializer_list<Dim> dims, DType dtype) {
  check(op, argument, tensor, dims, tensor.defined() && tensor.dtype() == dtype, to_string(dtype));
}

void check_tensor(std::string_view op, std::string_view argument, const Tensor& tensor, std::initializer_list<Dim> dims) {
  const bool floating = tensor.defined() && is_floating(tensor.dtype()) && tensor.dtype() != DType::f16;
  check(op, argument, tensor, dims, floating, "floating");
}

}  // namespace braid
