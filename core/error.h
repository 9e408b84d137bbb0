// The one exception type of Braid and the way to raise it.
#pragma once
#include <sstream>
#include <stdexcept>
#include <string>

namespace braid {

/// Every error Braid reports. The message is one line: who complains, about what, what was expected, what was given.
struct Error : std::runtime_error {
  using runtime_error::runtime_error;
};

/// Throws Error with the parts streamed one after the other.
template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  message.imbue(std::locale::classic());
  (message << ... << parts);
  throw Error(message.str());
}

}  // namespace braid

/// BRAID_CHECK(condition, parts...): fail(parts...) unless the condition holds; the parts are evaluated only then.
#define BRAID_CHECK(condition, ...)               \
  do {                                            \
    if (!(condition)) ::braid::fail(__VA_ARGS__); \
  } while (false)
