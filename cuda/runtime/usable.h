// Whether there is a GPU to compute on: what commands ask before they choose a device.
#pragma once

namespace braid::cuda {

/// Whether device `index` exists and this build has code for it.
bool has_code_for(int index);

/// Whether the first device can be used. False without a driver.
bool has_usable_device();

}  // namespace braid::cuda
