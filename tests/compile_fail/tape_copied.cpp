// A tape is not copied: its nodes and slots belong together.
// expect: use of deleted function
#include "autograd/tape.h"
#ifdef RIGHT
void take(braid::Tape&) {}
#else
void take(braid::Tape) {}
#endif
void give(braid::Tape& tape) { take(tape); }
