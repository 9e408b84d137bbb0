#include "core/context.h"

namespace braid {

Context::Context(int num_threads) : pool_(std::make_shared<ThreadPool>(num_threads)) {}

}  // namespace braid
