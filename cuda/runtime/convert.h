// to = from, or to += from, between floating types on a device.
#pragma once
#include "core/device.h"

namespace braid::cuda {

void launch_convert(void* to, DType to_dtype, const void* from, DType from_dtype, int64_t count, bool add, Stream stream);

}  // namespace braid::cuda
