#include "models/module.h"

#include <cmath>

#include "core/owner.h"
#include "ops/random_fill.h"

namespace braid {
namespace {

/// FNV-1a: a stable number for a parameter's name.
uint64_t name_hash(const std::string& name) {
  uint64_t hash = 14695981039346656037ull;
  for (unsigned char c : name) hash = (hash ^ c) * 1099511628211ull;
  return hash;
}

double draw(Init init, Random& random) {
  switch (init) {
    case Init::normal:  // drawn where they will live
      break;
    case Init::ones:
      return 1;
    case Init::zeros:
      return 0;
    case Init::a_log:
      return std::log(16 * (1 - random.uniform()));  // log U(0, 16], never log 0
    case Init::dt_bias: {
      const double dt = std::exp(random.uniform(std::log(1e-3), std::log(0.1)));
      return dt + std::log(-std::expm1(-dt));  // softplus^-1
    }
  }
  return 0;
}

}  // namespace

int64_t Module::num_parameters() const {
  int64_t count = 0;
  for (const Parameter* parameter : parameters_) count += parameter->shape.numel();
  return count;
}

Parameter& Module::parameter(const std::string& name) const {
  for (Parameter* parameter : parameters_)
    if (parameter->name == name) return *parameter;
  fail("model: there is no parameter '", name, "'");
}

void Module::declare(Parameter& parameter, const std::string& name, const Shape& shape, Init init) {
  parameter.name = name;
  parameter.shape = shape;
  parameter.init = init;
  parameters_.push_back(&parameter);
}

void Module::adopt(const Module& child) { parameters_.insert(parameters_.end(), child.parameters_.begin(), child.parameters_.end()); }

void initialize(Context& ctx, const Module& module, DType dtype, double initializer_range, uint64_t seed) {
  const WithOwner owner(kOwnerParameters);
  for (Parameter* parameter : module.parameters()) {
    const RandomKey key = split_key(seed, name_hash(parameter->name));
    Random random(key.seed, key.stream);
    if (parameter->init == Init::normal) {
      const Tensor values = Tensor::empty(ctx, parameter->shape, DType::f32);
      fill_normal(ctx, values, key, initializer_range);
      parameter->value = converted(ctx, values, dtype);
      continue;
    }
    std::vector<float> values(parameter->shape.numel());
    for (float& value : values) value = static_cast<float>(draw(parameter->init, random));
    parameter->value = converted(ctx, from_vector(ctx, values, parameter->shape), dtype);
  }
}

void zero_grads(Context& ctx, const Module& module) {
  const WithOwner owner(kOwnerGradients);
  for (Parameter* parameter : module.parameters()) {
    if (parameter->grad) fill_zero(ctx, parameter->grad);
    else parameter->grad = Tensor::zeros(ctx, parameter->shape, parameter->value.dtype());
  }
}

void set_compute_dtype(Context& ctx, const Module& module, DType dtype) {
  const WithOwner owner(kOwnerCopies);
  for (Parameter* parameter : module.parameters()) {
    const bool is_matrix = parameter->shape.rank() == 2 && parameter->init == Init::normal;
    if (dtype != DType::bf16 || !is_matrix) parameter->compute = {};
    else if (parameter->compute) convert_into(ctx, parameter->compute, parameter->value, false);
    else parameter->compute = converted(ctx, parameter->value, DType::bf16);
  }
}

}  // namespace braid
