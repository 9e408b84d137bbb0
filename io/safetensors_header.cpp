// The header of a safetensors file, read as a stream of JSON events: only what the format allows is ever stored.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "io/safetensors.h"

namespace braid {
namespace {

struct FormatType {
  std::string_view name;
  int64_t size_bytes;
  std::optional<DType> dtype;
};

constexpr FormatType kTypes[] = {
    {"F64", 8, DType::f64},    {"F32", 4, DType::f32},       {"BF16", 2, DType::bf16},     {"F16", 2, DType::f16},
    {"I64", 8, DType::i64},    {"I32", 4, DType::i32},       {"U16", 2, DType::u16},       {"U8", 1, DType::u8},
    {"BOOL", 1, std::nullopt}, {"I8", 1, std::nullopt},      {"I16", 2, std::nullopt},     {"U32", 4, std::nullopt},
    {"U64", 8, std::nullopt},  {"F8_E4M3", 1, std::nullopt}, {"F8_E5M2", 1, std::nullopt}, {"F8_E8M0", 1, std::nullopt},
};

const FormatType* find_type(std::string_view name) {
  for (const FormatType& type : kTypes)
    if (type.name == name) return &type;
  return nullptr;
}

/// A name from the file, fit for a message of one line.
std::string shown(std::string_view text) {
  std::string out;
  for (char c : text.substr(0, 80)) out += static_cast<unsigned char>(c) < ' ' ? '?' : c;
  return '"' + out + (text.size() > 80 ? "...\"" : "\"");
}

/// Follows the one structure a header may have; anything else ends the parse with an Error.
class HeaderEvents : public nlohmann::json_sax<nlohmann::json> {
 public:
  HeaderEvents(std::string_view name, SafetensorsHeader& header) : name_(name), header_(header) {}

  bool start_object(size_t) override {
    if (place_ == Place::outside) place_ = Place::names;
    else if (place_ == Place::tensor_value) place_ = Place::tensor_keys;
    else if (place_ == Place::metadata_value) place_ = Place::metadata_keys;
    else refuse("an object");
    return true;
  }

  bool end_object() override {
    if (place_ == Place::tensor_keys) finish_entry();
    place_ = place_ == Place::names ? Place::outside : Place::names;
    return true;
  }

  bool key(std::string& key) override {
    if (place_ == Place::names) start_name(key);
    else if (place_ == Place::metadata_keys) start_metadata(key);
    else start_tensor_key(key);
    return true;
  }

  bool start_array(size_t) override {
    if (place_ == Place::shape_value) place_ = Place::shape_numbers;
    else if (place_ == Place::offsets_value) place_ = Place::offsets_numbers;
    else refuse("a list");
    return true;
  }

  bool end_array() override {
    place_ = Place::tensor_keys;
    return true;
  }

  bool string(std::string& text) override {
    if (place_ == Place::metadata_text) {
      header_.metadata[key_] = text;
      place_ = Place::metadata_keys;
    } else if (place_ == Place::dtype_value) {
      BRAID_CHECK(find_type(text), name_, ": tensor ", shown(entry_.name), " has unknown dtype ", shown(text));
      entry_.dtype_name = text;
      place_ = Place::tensor_keys;
    } else {
      refuse("a string");
    }
    return true;
  }

  bool number_unsigned(uint64_t value) override {
    const bool too_large = value > static_cast<uint64_t>(INT64_MAX);
    if (place_ == Place::shape_numbers) {
      BRAID_CHECK(!too_large, name_, ": tensor ", shown(entry_.name), " has a dimension of ", value);
      BRAID_CHECK(entry_.shape.rank() < Shape::kMaxRank, name_, ": tensor ", shown(entry_.name), " has more than ", Shape::kMaxRank, " dimensions");
      entry_.shape.push_back(static_cast<int64_t>(value));
    } else if (place_ == Place::offsets_numbers) {
      BRAID_CHECK(!too_large && num_offsets_ < 2, name_, ": tensor ", shown(entry_.name), " must have two data_offsets inside the file");
      (num_offsets_++ == 0 ? entry_.begin_bytes : entry_.end_bytes) = static_cast<int64_t>(value);
    } else {
      refuse("a number");
    }
    return true;
  }

  bool number_integer(int64_t value) override {
    if (place_ != Place::shape_numbers && place_ != Place::offsets_numbers) refuse("a number");
    fail(name_, ": tensor ", shown(entry_.name), " has a negative number in its ", place_ == Place::shape_numbers ? "shape" : "data_offsets", ": ",
         value);
  }
  bool number_float(double, const std::string&) override { refuse("a number with a fraction"); }
  bool null() override { refuse("null"); }
  bool boolean(bool) override { refuse("true or false"); }
  bool binary(nlohmann::json::binary_t&) override { refuse("binary data"); }
  bool parse_error(size_t position, const std::string&, const nlohmann::json::exception&) override {
    fail(name_, ": the header is not valid JSON at its byte ", position);
  }

 private:
  enum class Place {
    outside,
    names,
    metadata_value,
    metadata_keys,
    metadata_text,
    tensor_value,
    tensor_keys,
    dtype_value,
    shape_value,
    shape_numbers,
    offsets_value,
    offsets_numbers,
  };

  [[noreturn]] void refuse(std::string_view what) const {
    fail(name_, ": the header holds ", what, " where the format has none", key_.empty() ? "" : ", at ", key_.empty() ? "" : shown(key_));
  }

  void start_name(const std::string& key) {
    key_ = key;
    BRAID_CHECK(names_.emplace(key, 0).second, name_, ": the name ", shown(key), " is repeated");
    entry_ = {};
    entry_.name = key;
    has_dtype_ = has_shape_ = has_offsets_ = false;
    num_offsets_ = 0;
    place_ = key == "__metadata__" ? Place::metadata_value : Place::tensor_value;
  }

  void start_metadata(const std::string& key) {
    key_ = key;
    BRAID_CHECK(!header_.metadata.contains(key), name_, ": the metadata key ", shown(key), " is repeated");
    place_ = Place::metadata_text;
  }

  void start_tensor_key(const std::string& key) {
    bool* seen = key == "dtype" ? &has_dtype_ : key == "shape" ? &has_shape_ : key == "data_offsets" ? &has_offsets_ : nullptr;
    BRAID_CHECK(seen, name_, ": tensor ", shown(entry_.name), " has the unknown key ", shown(key));
    BRAID_CHECK(!*seen, name_, ": tensor ", shown(entry_.name), " repeats ", key);
    *seen = true;
    place_ = key == "dtype" ? Place::dtype_value : key == "shape" ? Place::shape_value : Place::offsets_value;
  }

  void finish_entry() {
    const std::string what = std::string(name_) + ": tensor " + shown(entry_.name);
    BRAID_CHECK(has_dtype_ && has_shape_ && has_offsets_, what, " must have dtype, shape and data_offsets");
    BRAID_CHECK(num_offsets_ == 2 && entry_.begin_bytes <= entry_.end_bytes, what, " must have two data_offsets that do not fall");
    const FormatType& type = *find_type(entry_.dtype_name);
    int64_t bytes = type.size_bytes;
    for (int64_t extent : entry_.shape)
      BRAID_CHECK(!__builtin_mul_overflow(bytes, extent, &bytes), what, " has shape ", entry_.shape, ", more elements than can be counted");
    const int64_t given = entry_.end_bytes - entry_.begin_bytes;
    BRAID_CHECK(given == bytes, what, " of ", type.name, ' ', entry_.shape, " must have ", bytes, " bytes, data_offsets give ", given);
    entry_.dtype = type.dtype;
    header_.entries.push_back(std::move(entry_));
    entry_ = {};
  }

  std::string_view name_;
  SafetensorsHeader& header_;
  Place place_ = Place::outside;
  std::string key_;
  std::map<std::string, int> names_;
  Safetensors::Entry entry_;
  bool has_dtype_ = false, has_shape_ = false, has_offsets_ = false;
  int num_offsets_ = 0;
};

/// Sorted ranges must follow each other from 0 to the end without gap or overlap.
void check_ranges(std::string_view name, const std::vector<Safetensors::Entry>& entries, int64_t data_bytes) {
  int64_t end = 0;
  for (const Safetensors::Entry& entry : entries) {
    BRAID_CHECK(entry.end_bytes <= data_bytes, name, ": tensor ", shown(entry.name), " ends at byte ", entry.end_bytes, " of ", data_bytes,
                " bytes of data");
    BRAID_CHECK(entry.begin_bytes >= end, name, ": tensor ", shown(entry.name), " overlaps another; it begins at byte ", entry.begin_bytes);
    BRAID_CHECK(entry.begin_bytes == end, name, ": bytes ", end, " to ", entry.begin_bytes, " of the data belong to no tensor");
    end = entry.end_bytes;
  }
  BRAID_CHECK(end == data_bytes, name, ": the file has ", data_bytes, " bytes of data, its tensors ", end);
}

}  // namespace

SafetensorsHeader parse_safetensors_header(std::string_view name, std::string_view json, int64_t data_bytes) {
  BRAID_CHECK(json.starts_with('{'), name, ": the header is not a JSON object");
  SafetensorsHeader header;
  HeaderEvents events(name, header);
  nlohmann::json::sax_parse(json.begin(), json.end(), &events);
  std::sort(header.entries.begin(), header.entries.end(),
            [](const auto& a, const auto& b) { return std::tie(a.begin_bytes, a.end_bytes, a.name) < std::tie(b.begin_bytes, b.end_bytes, b.name); });
  check_ranges(name, header.entries, data_bytes);
  return header;
}

}  // namespace braid
