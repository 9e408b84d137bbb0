#include "io/json.h"

#include <set>
#include <type_traits>

#include "core/error.h"

namespace braid {
namespace {

constexpr int kMaxDepth = 64;
constexpr size_t kMaxShown = 60;

std::string shown(const Json& value) {
  std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (text.size() > kMaxShown) text = text.substr(0, kMaxShown) + "...";
  return text;
}

/// Refuses what the library would take without a word: deep nesting and repeated keys.
class Watcher {
 public:
  explicit Watcher(std::string_view name) : name_(name) {}
  bool operator()(int depth, Json::parse_event_t event, const Json& parsed) {
    using Event = Json::parse_event_t;
    if (event == Event::object_start || event == Event::array_start) {
      BRAID_CHECK(depth < kMaxDepth, name_, ": JSON is nested deeper than ", kMaxDepth);
      if (event == Event::object_start) keys_.emplace_back();
    }
    if (event == Event::key) {
      const auto& key = parsed.get_ref<const std::string&>();
      BRAID_CHECK(keys_.back().insert(key).second, name_, ": the key ", shown(parsed), " is repeated");
    }
    if (event == Event::object_end) keys_.pop_back();
    return true;
  }

 private:
  std::string_view name_;
  std::vector<std::set<std::string>> keys_;
};

template <class T>
constexpr std::string_view kind_of() {
  if constexpr (std::is_same_v<T, bool>) return "true or false";
  else if constexpr (std::is_same_v<T, int64_t>) return "an integer";
  else if constexpr (std::is_same_v<T, double>) return "a number";
  else if constexpr (std::is_same_v<T, std::string>) return "a string";
  else if constexpr (std::is_same_v<T, std::vector<int64_t>>) return "a list of integers";
  else return "a list of strings";
}

template <class T>
bool holds(const Json& value) {
  if constexpr (std::is_same_v<T, bool>) return value.is_boolean();
  else if constexpr (std::is_same_v<T, int64_t>)
    return value.is_number_unsigned() ? value.get<uint64_t>() <= uint64_t{INT64_MAX} : value.is_number_integer();
  else if constexpr (std::is_same_v<T, double>) return value.is_number();
  else if constexpr (std::is_same_v<T, std::string>) return value.is_string();
  else if constexpr (std::is_same_v<T, Json>) return true;
  else {
    if (!value.is_array()) return false;
    for (const Json& element : value)
      if (!holds<typename T::value_type>(element)) return false;
    return true;
  }
}

}  // namespace

Json parse_json(std::string_view name, std::string_view text) {
  try {
    Watcher watcher(name);
    return Json::parse(text.begin(), text.end(), std::ref(watcher));
  } catch (const Json::exception& error) {
    std::string reason = error.what();
    if (const size_t mark = reason.find("] "); mark != std::string::npos) reason.erase(0, mark + 2);
    for (char& c : reason)
      if (static_cast<unsigned char>(c) < ' ') c = ' ';
    fail(name, ": not valid JSON: ", reason);
  }
}

Json read_json(const Path& path, int64_t max_bytes) { return parse_json(path.string(), read_file(path, max_bytes)); }

void write_json(const Path& path, const Json& value) { write_file(path, value.dump(2, ' ', false, Json::error_handler_t::replace) + "\n"); }

template <class T>
T required(std::string_view name, const Json& object, const std::string& key) {
  BRAID_CHECK(object.is_object(), name, ": expected an object that holds ", key, ", got ", shown(object));
  const auto found = object.find(key);
  if constexpr (std::is_same_v<T, Json>) {
    BRAID_CHECK(found != object.end(), name, ": ", key, " is missing");
    return *found;
  } else {
    BRAID_CHECK(found != object.end(), name, ": ", key, " is missing; expected ", kind_of<T>());
    BRAID_CHECK(holds<T>(*found), name, ": ", key, " must be ", kind_of<T>(), ", got ", shown(*found));
    return found->get<T>();
  }
}

template int64_t required(std::string_view, const Json&, const std::string&);
template double required(std::string_view, const Json&, const std::string&);
template bool required(std::string_view, const Json&, const std::string&);
template std::string required(std::string_view, const Json&, const std::string&);
template std::vector<int64_t> required(std::string_view, const Json&, const std::string&);
template std::vector<std::string> required(std::string_view, const Json&, const std::string&);
template Json required(std::string_view, const Json&, const std::string&);

}  // namespace braid
