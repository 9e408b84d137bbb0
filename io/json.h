// JSON files with errors of one line, and values taken out of them with their type checked.
#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "io/file.h"

namespace braid {

using Json = nlohmann::json;

/// Parses JSON. Error "`name`: reason" (line and column included) when it is malformed, nested deeper than 64, or an object
/// repeats a key.
Json parse_json(std::string_view name, std::string_view text);
/// The content of a JSON file of at most `max_bytes`.
Json read_json(const Path& path, int64_t max_bytes = int64_t{64} << 20);
/// Atomically; indented by two blanks, with a final line end.
void write_json(const Path& path, const Json& value);

/// The value of `key` in `object`. T: int64_t, double (integers are taken too), bool, std::string, std::vector<int64_t>,
/// std::vector<std::string>, Json. Error "`name`: key must be an integer, got "8"" when it is absent or of another type.
template <class T>
T required(std::string_view name, const Json& object, const std::string& key);
/// `otherwise` when the key is absent or null.
template <class T>
T value_or(std::string_view name, const Json& object, const std::string& key, T otherwise) {
  if (object.is_object()) {
    const auto found = object.find(key);
    if (found == object.end() || found->is_null()) return otherwise;
  }
  return required<T>(name, object, key);
}

}  // namespace braid
