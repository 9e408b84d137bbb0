// check and forward against the reference cases, and check on cases made wrong.
#include <cmath>
#include <cstring>
#include <limits>

#include "io/safetensors.h"
#include "tests/end_to_end/braid_program.h"

namespace braid::test {
namespace {

struct Copy {
  std::vector<NamedTensor> tensors;
  std::map<std::string, std::string> metadata;
  Tensor& get(const std::string& name) {
    return std::find_if(tensors.begin(), tensors.end(), [&](const NamedTensor& t) { return t.name == name; })->tensor;
  }
  void drop(const std::string& name) {
    std::erase_if(tensors, [&](const NamedTensor& t) { return t.name == name; });
  }
};

Copy read_case(const std::string& name) {
  const Safetensors file(Path(data_path("ops/" + name)));
  Copy copy{{}, file.metadata()};
  for (const auto& entry : file.entries()) copy.tensors.push_back({entry.name, file.get(entry.name)});
  return copy;
}

void write(const Workspace& space, const Copy& copy) {
  Context ctx(1);
  write_safetensors(ctx, space / "c.safetensors", copy.tensors, copy.metadata);
}

TEST(Check, EveryReferenceCasePasses) {
  const Workspace space;
  Words words = {"check"};
  size_t files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(data_path("ops"))) {
    words.push_back(entry.path().string());
    ++files;
  }
  ASSERT_EQ(files, 11u);
  words.insert(words.end(), {"--json", "v.json"});
  expect_done(braid_program(words, space));
  const Json verdict = parse_json("v", space.read("v.json"));
  EXPECT_TRUE(verdict["passed"].get<bool>());
  EXPECT_EQ(verdict["tensors"].size(), 64u);
}

TEST(Check, BraidsOwnOperatorsPassInEveryType) {
  const Workspace space;
  for (const char* dtype : {"f64", "f32", "bf16"})
    for (const char* name : {"gated_delta_rule", "retention", "attention_window", "short_conv", "linear_recurrence"})
      expect_done(braid_program({"check", data_path(std::string("ops/") + name + ".safetensors"), "--dtype", dtype}, space));
}

TEST(Check, OneWrongValueFailsAndSoDoesNaN) {
  const Workspace space;
  for (const char* name : {"o", "d_k", "d_beta", "final_state"}) {
    Copy copy = read_case("gated_delta_rule.safetensors");
    double* value = copy.get(name).data<double>() + 7;
    *value = -*value;
    write(space, copy);
    const ProgramResult wrong = braid_program({"check", "c.safetensors"}, space);
    EXPECT_EQ(wrong.status, 1) << name << wrong.out;
    EXPECT_NE(wrong.out.find("FAIL"), std::string::npos);
    *value = std::numeric_limits<double>::quiet_NaN();
    write(space, copy);
    EXPECT_EQ(braid_program({"check", "c.safetensors", "--tolerance", "1e9"}, space).status, 1) << name;
  }
}

TEST(Check, WhatATypeCannotHoldIsNoError) {
  const Workspace space;
  for (const DType dtype : {DType::f32, DType::f64}) {
    Context ctx(1);
    const auto filled = [&](double value, Shape shape) {
      return converted(ctx, from_vector<double>(ctx, std::vector<double>(shape.numel(), value), shape), dtype);
    };
    // d_initial_state = exp(−150), which float32 does not have.
    Copy copy{{{"x", filled(1, {1, 2})},
               {"log_decay", filled(-150, {1, 2})},
               {"initial_state", filled(1, {1, 2})},
               {"d_final_state", filled(1, {1, 2})},
               {"d_initial_state", filled(0, {1, 2})},
               {"cu_seqlens", from_vector<int64_t>(ctx, {0, 1}, {2})}},
              {{"op", "linear_recurrence"}}};
    write(space, copy);
    EXPECT_EQ(braid_program({"check", "c.safetensors"}, space).status, dtype == DType::f32 ? 0 : 1) << dtype;
  }
}

TEST(Check, ReadsWhatPyTorchsWriterAdds) {
  const Workspace space;
  Copy copy = read_case("retention.safetensors");
  copy.metadata["format"] = "pt";
  write(space, copy);
  expect_done(braid_program({"check", "c.safetensors"}, space));
}

TEST(Check, RefusesFilesThatCannotBeChecked) {
  const Workspace space;
  const auto refused = [&](const std::string& named, auto change, const char* name = "gated_delta_rule.safetensors") {
    Copy copy = read_case(name);
    change(copy);
    write(space, copy);
    expect_refused({"check", "c.safetensors"}, space, named);
  };
  refused("beta", [](Copy& c) { c.drop("beta"); });
  refused("cu_seqlens", [](Copy& c) { c.drop("cu_seqlens"); });
  refused("cu_seqlens", [](Copy& c) { c.get("cu_seqlens").data<int64_t>()[3] = 79; });
  refused("cu_seqlens", [](Copy& c) { c.get("cu_seqlens").data<int64_t>()[1] = 81; });
  refused("cu_seqlens", [](Copy& c) { c.get("cu_seqlens").data<int64_t>()[0] = 1; });
  refused("op", [](Copy& c) { c.metadata["op"] = "softmax"; });
  refused("qk_l2norm", [](Copy& c) { c.metadata["qk_l2norm"] = "perhaps"; });
  refused(
      "window", [](Copy& c) { c.metadata["window"] = "-3"; }, "attention.safetensors");
  refused(
      "activation", [](Copy& c) { c.metadata["activation"] = "relu"; }, "short_conv.safetensors");
  refused("scale", [](Copy& c) { c.metadata["scale"] = "large"; });
  refused("has no attribute scael, only scale, qk_l2norm", [](Copy& c) { c.metadata["scael"] = "1"; });
  refused("d_o", [](Copy& c) { c.drop("d_o"), c.drop("d_final_state"); });
  refused("got none", [](Copy& c) {
    for (const char* name : {"o", "final_state", "d_q", "d_k", "d_v", "d_beta", "d_log_decay", "d_initial_state"}) c.drop(name);
  });
  for (const std::string name : {"initial_state", "d_initial_state", "final_state"}) {
    write(space, read_case("gated_delta_rule.safetensors"));
    std::string bytes = space.read("c.safetensors");
    const std::string entry = '"' + name + R"(":{"dtype":")";
    bytes.replace(bytes.find(entry) + entry.size(), 3, "U64");
    space.write("c.safetensors", bytes);
    expect_refused({"check", "c.safetensors"}, space, name);
  }
}

TEST(Forward, ReferenceModelsMatch) {
  for (const std::string name : {"gla_hybrid", "gated_deltanet_hybrid"}) {
    const Workspace space;
    const std::string folder = data_path("models/" + name);
    expect_done(braid_program(
        {"forward", "--model", folder, "--tokens", folder + "/case.safetensors", "--out", "o.safetensors", "--grad", "--dtype", "f64"}, space));
    const Safetensors expected(Path(folder) / "case.safetensors"), given(space / "o.safetensors");
    Context ctx(1);
    for (const auto& entry : expected.entries()) {
      if (entry.name == "tokens" || entry.name == "cu_seqlens") continue;
      const auto a = to_vector<double>(ctx, given.get(entry.name)), b = to_vector<double>(ctx, expected.get(entry.name));
      ASSERT_EQ(a.size(), b.size()) << entry.name;
      double error = 0, reference = 0;
      for (size_t i = 0; i < a.size(); ++i) error += (a[i] - b[i]) * (a[i] - b[i]), reference += b[i] * b[i];
      EXPECT_LE(std::sqrt(error / reference), 1e-8) << name << " " << entry.name;
    }
  }
}

}  // namespace
}  // namespace braid::test
