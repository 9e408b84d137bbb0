// What an error says.
#pragma once
#include <string>

#include "core/error.h"

namespace braid::testing {

/// The message of the Error that `body` throws; empty when it throws none.
template <class Body>
std::string error_of(Body&& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace braid::testing
