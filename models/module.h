// Parameters and modules: a tree of named tensors.
#pragma once
#include <string>
#include <vector>

#include "autograd/tape.h"

namespace braid {

/// How a parameter's first values are drawn (design: mixers): normal(0, initializer_range), 1, 0, log U(0, 16), softplus^-1(dt).
enum class Init : uint8_t { normal, ones, zeros, a_log, dt_bias };

/// A named tensor that training changes.
struct Parameter {
  std::string name;  // in full: "model.layers.3.attn.q_proj.weight"
  Shape shape;
  Init init = Init::normal;
  Tensor value;    // the master: f32, or f64 in the oracle
  Tensor grad;     // like value; backward adds to it. Undefined: no gradient is wanted
  Tensor compute;  // bf16 copy of a matrix, refreshed after each change of value; undefined when value itself is used

  /// Weight decay applies to linear, convolution and embedding weights only.
  bool decays() const { return init == Init::normal; }
  /// The tensor to compute with; while a tape records, a leaf whose gradient lands in `grad`.
  Tensor use(Context& ctx) const {
    const Tensor& tensor = compute ? compute : value;
    return ctx.tape && grad ? ctx.tape->leaf(tensor, grad, this) : tensor;
  }
};

/// A part of a model. It holds Parameters and other Modules as members and names them to whoever asks. There is no virtual
/// forward: a recurrent mixer takes and returns a State, a norm does not.
class Module {
 public:
  Module() = default;
  Module(const Module&) = delete;  // parameters are known by their address
  Module& operator=(const Module&) = delete;

  /// Every parameter of this module and those below it, in the order they were declared.
  const std::vector<Parameter*>& parameters() const { return parameters_; }
  int64_t num_parameters() const;
  /// Throws Error when there is none of that name.
  Parameter& parameter(const std::string& name) const;

 protected:
  ~Module() = default;
  /// Names a Parameter member; its tensors are made later, by whoever owns the whole model.
  void declare(Parameter& parameter, const std::string& name, const Shape& shape, Init init = Init::normal);
  /// Lists the parameters of a Module member after those declared so far.
  void adopt(const Module& child);

 private:
  std::vector<Parameter*> parameters_;
};

/// Makes every parameter's `value` (dtype f32 or f64) on the context's device with first values drawn from `seed`: the same for any
/// device and order, because each parameter draws from a stream named by its own name.
void initialize(Context& ctx, const Module& module, DType dtype, double initializer_range, uint64_t seed);
/// Makes (zeroed) or clears every parameter's `grad`.
void zero_grads(Context& ctx, const Module& module);
/// Refreshes the bf16 copies that matrices are computed with (dtype bf16), or drops them (any other).
void set_compute_dtype(Context& ctx, const Module& module, DType dtype);

}  // namespace braid
