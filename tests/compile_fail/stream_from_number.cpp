// A stream is not a number.
// expect: use of deleted function
#include "core/device.h"
#ifdef RIGHT
braid::Stream stream(braid::Device{}, nullptr);
#else
braid::Stream stream(0);
#endif
