// What is fuzzed: each function reads bytes as one kind of file. An Error is a good answer; a crash, another exception, or a message
// of more than one line is not. The same functions run under libFuzzer (BRAID_FUZZ) and in tests/io/fuzz_test.cpp.
#pragma once
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <string_view>

#include "core/error.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "io/token_dataset.h"

namespace braid::fuzz {

/// Whether the bytes were taken (false: refused with a proper Error). Ends the process on an improper one.
template <class Body>
bool accepted(Body&& body) {
  try {
    body();
    return true;
  } catch (const Error& error) {
    if (std::strchr(error.what(), '\n')) std::abort();
    return false;
  }
}

/// A file of this process with the given content.
inline Path file_with(std::string_view bytes) {
  static const Path path = std::filesystem::temp_directory_path() / ("braid-fuzz-" + std::to_string(getpid()));
  std::ofstream(path, std::ios::binary | std::ios::trunc).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  return path;
}

inline bool read_safetensors(std::string_view bytes) {
  const Path path = file_with(bytes);
  const bool taken = accepted([&] {
    const Safetensors file(path);
    unsigned sum = 0;
    for (const auto& entry : file.entries()) {
      if (!entry.dtype) continue;
      const Tensor tensor = file.get(entry.name);
      for (int64_t i = 0; i < tensor.nbytes(); ++i) sum += static_cast<unsigned>(tensor.raw()[i]);
    }
    [[maybe_unused]] static volatile unsigned kept;  // so that the reads are made
    kept = sum;
  });
  std::filesystem::remove(path);
  return taken;
}

inline bool read_config(std::string_view bytes) {
  return accepted([&] {
    const Json config = parse_json("config.json", bytes);
    static_cast<void>(required<int64_t>("config.json", config, "hidden_size"));
    static_cast<void>(value_or<double>("config.json", config, "norm_eps", 1e-6));
    static_cast<void>(value_or<bool>("config.json", config, "tie_word_embeddings", false));
    static_cast<void>(value_or<std::string>("config.json", config, "model_type", ""));
    static_cast<void>(value_or<std::vector<int64_t>>("config.json", config, "layers", {}));
  });
}

inline bool read_token_dataset(std::string_view bytes) {
  const Path path = file_with(bytes);
  const bool taken = accepted([&] { TokenDataset(path).verify(); });
  std::filesystem::remove(path);
  return taken;
}

}  // namespace braid::fuzz
