// The ranks of an MPI job (mpirun) as a Communicator of CPU tensors. Only in builds where CMake found MPI: link braid_mpi and see
// BRAID_WITH_MPI.
#pragma once
#include "core/communicator.h"

namespace braid {

struct MpiOptions {
  double timeout_s = 1800;  // an operation that another rank keeps waiting for this long is an Error; a checkpoint must fit into it
};

/// Whether this process was started by mpirun (or another launcher of MPI) as one of its ranks.
bool started_by_mpi();

/// All ranks of the job. MPI is initialised by this call and finalised at the end of the communicator's life: one per process.
///
/// Sums have the same bits on every rank, in every run and for any number of messages: element i is ((x_0 + x_1) + x_2) + … in the order
/// of ranks, in its own type (bf16: in float32, rounded once). A NaN of any rank is the maximum.
///
/// Collectives are done when the call returns, inside a group too; sends and receives of a group are carried out together by end_group.
/// A rank that leaves with an exception makes the operations the others wait in Errors that name it; so does one that does not answer
/// within the timeout. (A rank that is killed ends the job: mpirun sees to that.)
std::unique_ptr<Communicator> make_mpi_communicator(const MpiOptions& options = {});

}  // namespace braid
