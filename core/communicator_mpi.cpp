#include "core/communicator_mpi.h"

#define OMPI_SKIP_MPICXX  // the C interface is all that is used
#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <thread>
#include <type_traits>
#include <vector>

namespace braid {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kMaxMessageBytes = int64_t{1} << 30;  // MPI counts in int
constexpr int64_t kPieceBytes = int64_t{1} << 22;       // of a rank's part, reduced at a time: bounds the scratch
constexpr double kFarewellSeconds = 2;
constexpr double kHearingSeconds = 2;

/// One tag per operation: ranks that call different operations wait for each other until the timeout, and never mix up their bytes.
enum class Operation : int { all_reduce, reduce_scatter, all_gather, broadcast, point_to_point, barrier };

std::string_view name_of(Operation operation) {
  constexpr std::string_view kNames[] = {"all_reduce", "reduce_scatter", "all_gather", "broadcast", "send/receive", "barrier"};
  return kNames[static_cast<int>(operation)];
}

void check_mpi(int status, std::string_view what) {
  if (status == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(status, text, &length);
  fail(what, ": MPI says: ", std::string_view(text, static_cast<size_t>(length)));
}

template <class T>
auto widened(T value) {
  if constexpr (std::is_same_v<T, bf16>) return static_cast<float>(value);
  else return value;
}

/// into[i] = the parts' elements i put together in the order of the parts.
template <class T>
void reduce_parts(std::byte* into, const std::vector<std::byte*>& parts, int64_t count, Reduction reduction) {
  const auto part = [&](size_t rank) { return reinterpret_cast<const T*>(parts[rank]); };
  for (int64_t i = 0; i < count; ++i) {
    auto total = widened(part(0)[i]);
    for (size_t rank = 1; rank < parts.size(); ++rank) {
      const auto next = widened(part(rank)[i]);
      if (reduction == Reduction::sum) total = static_cast<decltype(total)>(total + next);
      else if (total < next || next != next) total = next;
    }
    reinterpret_cast<T*>(into)[i] = static_cast<T>(total);
  }
}

template <class Body>
void with_type(std::string_view operation, DType dtype, Body&& body) {
  switch (dtype) {
    case DType::f64:
      return body(double{});
    case DType::f32:
      return body(float{});
    case DType::bf16:
      return body(bf16{});
    case DType::i64:
      return body(int64_t{});
    case DType::i32:
      return body(int32_t{});
    default:
      fail(operation, ": the dtype must be f64, f32, bf16, i64 or i32, got ", dtype);
  }
}

/// A message under way or, when it comes in, awaited: MPI is asked to receive it once its size is known to be right, so that a rank that
/// calls with another size is found out before a byte lands in the wrong place. The tensor keeps the bytes until MPI has let go of them.
struct Message {
  MPI_Request request = MPI_REQUEST_NULL;
  int peer = 0;
  Operation tag{};
  std::byte* data = nullptr;
  int bytes = 0;
  bool incoming = false;
  Tensor holder;
};

class MpiCommunicator final : public Communicator {
 public:
  explicit MpiCommunicator(const MpiOptions& options) : options_(options), exceptions_before_(std::uncaught_exceptions()) {
    int initialized = 0;
    check_mpi(MPI_Initialized(&initialized), "mpi");
    BRAID_CHECK(!initialized, "mpi: one communicator per process, there was one before");
    int provided = 0;
    check_mpi(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided), "mpi");
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &data_), "mpi");
    check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &control_), "mpi");
    MPI_Comm_rank(data_, &rank_);
    MPI_Comm_size(data_, &size_);
    stopped_.resize(size_, false);
    blamed_.assign(size_, rank_);
  }

  ~MpiCommunicator() override {
    if (failed_ || std::uncaught_exceptions() > exceptions_before_) {
      // Ranks that have not stopped hang or are dead: they would keep MPI_Finalize waiting. Leaving without it makes mpirun end them.
      if (!take_leave()) return;
    }
    MPI_Finalize();
    // mpirun ends all ranks as soon as one exits with an error: the rank that was the first to stop is let go first, so that its reason is heard.
    if (was_told_) std::this_thread::sleep_for(std::chrono::duration<double>(kHearingSeconds));
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  void all_reduce(Context&, const Tensor& inout, Reduction reduction) override {
    check(Operation::all_reduce, "inout", inout);
    const int64_t part = (inout.numel() + size_ - 1) / size_;
    reduce(Operation::all_reduce, inout, part, reduction, part_of(inout, part, rank_));
    gather(Operation::all_reduce, inout, part);
  }

  void reduce_scatter(Context&, const Tensor& in, const Tensor& out) override {
    check(Operation::reduce_scatter, "in", in);
    check(Operation::reduce_scatter, "out", out);
    BRAID_CHECK(in.dtype() == out.dtype() && in.numel() == size_ * out.numel(), "reduce_scatter: out must hold 1/", size_, " of in, ", in.dtype(),
                " ", in.shape(), ", got ", out.dtype(), " ", out.shape());
    reduce(Operation::reduce_scatter, in, out.numel(), Reduction::sum, out.raw());
  }

  void all_gather(Context&, const Tensor& in, const Tensor& out) override {
    check(Operation::all_gather, "in", in);
    check(Operation::all_gather, "out", out);
    BRAID_CHECK(in.dtype() == out.dtype() && out.numel() == size_ * in.numel(), "all_gather: out must hold ", size_, " times in, ", in.dtype(), " ",
                in.shape(), ", got ", out.dtype(), " ", out.shape());
    if (in.nbytes() > 0) std::memmove(element(out, rank_ * in.numel()), in.raw(), static_cast<size_t>(in.nbytes()));
    gather(Operation::all_gather, out, in.numel());
  }

  void broadcast(Context&, const Tensor& inout, int root) override {
    check(Operation::broadcast, "inout", inout);
    BRAID_CHECK(root >= 0 && root < size_, "broadcast: root must be a rank below ", size_, ", got ", root);
    for (int peer = 0; peer < size_; ++peer) {
      if (rank_ == root && peer != root) post(Operation::broadcast, peer, false, inout, inout.raw(), inout.nbytes());
    }
    if (rank_ != root) post(Operation::broadcast, root, true, inout, inout.raw(), inout.nbytes());
    wait(Operation::broadcast, messages_);
  }

  void send(Context&, const Tensor& in, int to) override { transfer("send", in, to, false); }
  void receive(Context&, const Tensor& out, int from) override { transfer("receive", out, from, true); }

  void begin_group() override {
    BRAID_CHECK(!grouping_, "begin_group: a group is open already");
    grouping_ = true;
  }
  void end_group() override {
    BRAID_CHECK(grouping_, "end_group: no group is open");
    grouping_ = false;
    wait(Operation::point_to_point, group_);
  }

  void barrier() override {
    const Tensor token = bytes(size_);
    for (int peer = 0; peer < size_; ++peer) {
      if (peer == rank_) continue;
      post(Operation::barrier, peer, true, token, token.raw() + peer, 1);
      post(Operation::barrier, peer, false, token, token.raw() + rank_, 1);
    }
    wait(Operation::barrier, messages_);
  }

 private:
  void check(Operation operation, std::string_view argument, const Tensor& tensor) const {
    BRAID_CHECK(tensor && tensor.device().kind == DeviceKind::cpu && tensor.contiguous(), name_of(operation), ": ", argument,
                " must be a contiguous tensor of the CPU, got ",
                !tensor               ? "nothing"
                : tensor.contiguous() ? "one of a GPU"
                                      : "a strided one");
  }

  static std::byte* element(const Tensor& tensor, int64_t index) { return tensor.raw() + index * size_bytes(tensor.dtype()); }
  static Tensor bytes(int64_t count) { return Tensor::over(Storage::make(count, Stream()), 0, {count}, DType::u8); }

  /// Part `rank` of a tensor that is cut into parts of `part` elements, and its size: the last ones may be shorter or empty.
  static std::byte* part_of(const Tensor& tensor, int64_t part, int rank) { return element(tensor, std::min(rank * part, tensor.numel())); }
  static int64_t part_size(const Tensor& tensor, int64_t part, int rank) { return std::clamp<int64_t>(tensor.numel() - rank * part, 0, part); }
  /// Of `size` elements those from `begin` on, at most a piece.
  static int64_t rest(int64_t size, int64_t begin, int64_t piece) { return std::clamp<int64_t>(size - begin, 0, piece); }

  /// `out` = this rank's part of all ranks' `in`, put together in the order of ranks.
  void reduce(Operation operation, const Tensor& in, int64_t part, Reduction reduction, std::byte* out) {
    with_type(name_of(operation), in.dtype(), [](auto) {});  // refused before anything is sent
    const int64_t item = size_bytes(in.dtype()), piece = kPieceBytes / item, mine = part_size(in, part, rank_);
    const Tensor scratch = bytes(size_ * std::min(piece, mine) * item);
    for (int64_t begin = 0; begin < part; begin += piece) {
      const int64_t count = rest(mine, begin, piece);
      std::vector<std::byte*> parts(size_);
      for (int peer = 0; peer < size_; ++peer) {
        const int64_t theirs = rest(part_size(in, part, peer), begin, piece);
        parts[peer] = theirs > 0 ? part_of(in, part, peer) + begin * item : nullptr;
        if (peer == rank_) continue;
        post(operation, peer, false, in, parts[peer], theirs * item);
        parts[peer] = scratch.raw() + peer * count * item;
        post(operation, peer, true, scratch, parts[peer], count * item);
      }
      wait(operation, messages_);
      if (count == 0) continue;
      with_type(name_of(operation), in.dtype(), [&](auto type) { reduce_parts<decltype(type)>(out + begin * item, parts, count, reduction); });
    }
  }

  /// Every rank's part of `inout` to every other.
  void gather(Operation operation, const Tensor& inout, int64_t part) {
    const int64_t item = size_bytes(inout.dtype());
    for (int peer = 0; peer < size_; ++peer) {
      if (peer == rank_) continue;
      post(operation, peer, true, inout, part_of(inout, part, peer), part_size(inout, part, peer) * item);
      post(operation, peer, false, inout, part_of(inout, part, rank_), part_size(inout, part, rank_) * item);
    }
    wait(operation, messages_);
  }

  void transfer(std::string_view name, const Tensor& tensor, int peer, bool incoming) {
    check(Operation::point_to_point, incoming ? "out" : "in", tensor);
    BRAID_CHECK(peer >= 0 && peer < size_ && peer != rank_, name, ": the other rank must be below ", size_, " and not ", rank_, " itself, got ",
                peer);
    post(Operation::point_to_point, peer, incoming, tensor, tensor.raw(), tensor.nbytes());
    if (!grouping_) {
      wait(Operation::point_to_point, messages_);
      return;
    }
    group_.insert(group_.end(), messages_.begin(), messages_.end());
    messages_.clear();
  }

  /// Starts a transfer of `count` bytes, none at all when there are none: both sides know.
  void post(Operation operation, int peer, bool incoming, const Tensor& holder, std::byte* data, int64_t count) {
    BRAID_CHECK(!failed_, name_of(operation), ": an operation failed before; the ranks no longer work together");
    for (; count > 0; count -= kMaxMessageBytes, data += kMaxMessageBytes) {
      const int length = static_cast<int>(std::min(count, kMaxMessageBytes));
      Message message{.peer = peer, .tag = operation, .data = data, .bytes = length, .incoming = incoming, .holder = holder};
      const int tag = static_cast<int>(operation);
      if (!incoming) check_mpi(MPI_Isend(data, length, MPI_BYTE, peer, tag, data_, &message.request), name_of(operation));
      messages_.push_back(std::move(message));
    }
  }

  /// Until all messages have arrived. An Error leaves them under way, with their bytes kept: nobody may free what MPI still writes to.
  void wait(Operation operation, std::vector<Message>& messages) {
    const Clock::time_point start = Clock::now();
    std::vector<Message*> open;
    for (Message& message : messages) open.push_back(&message);
    for (int64_t polls = 0;; ++polls) {
      std::vector<bool> in_turn(size_, true);  // what comes from a rank is taken in the order it was sent
      std::erase_if(open, [&](Message* message) { return arrived(operation, *message, in_turn); });
      if (open.empty()) break;
      if (const int rank = newly_stopped(); rank >= 0) stop_after(operation, rank);
      if (std::chrono::duration<double>(Clock::now() - start).count() > options_.timeout_s)
        stop(operation, open[0]->peer, "did not answer for ", options_.timeout_s, " s; it hangs, or called another operation");
      if (polls > 200) std::this_thread::sleep_for(std::chrono::microseconds(50));
      else std::this_thread::yield();  // there may be more ranks than cores
    }
    messages.clear();
  }

  bool arrived(Operation operation, Message& message, std::vector<bool>& in_turn) {
    int flag = 0;
    if (message.incoming && message.request == MPI_REQUEST_NULL) {
      if (!in_turn[message.peer]) return false;
      MPI_Status status;
      const int tag = static_cast<int>(message.tag);
      check_mpi(MPI_Iprobe(message.peer, tag, data_, &flag, &status), name_of(operation));
      in_turn[message.peer] = flag;
      if (!flag) return false;
      int bytes = 0;
      MPI_Get_count(&status, MPI_BYTE, &bytes);
      if (bytes != message.bytes)
        stop(operation, message.peer, "must call it with a tensor of the same size, expected a message of ", message.bytes, " bytes, got ", bytes);
      check_mpi(MPI_Irecv(message.data, bytes, MPI_BYTE, message.peer, tag, data_, &message.request), name_of(operation));
    }
    check_mpi(MPI_Test(&message.request, &flag, MPI_STATUS_IGNORE), name_of(operation));
    return flag;
  }

  /// A rank that said that it stops; −1 when none did since the last call.
  int newly_stopped() {
    MPI_Status status;
    int flag = 0;
    if (MPI_Iprobe(MPI_ANY_SOURCE, 0, control_, &flag, &status) != MPI_SUCCESS || !flag) return -1;
    MPI_Recv(&blamed_[status.MPI_SOURCE], 1, MPI_INT, status.MPI_SOURCE, 0, control_, MPI_STATUS_IGNORE);
    stopped_[status.MPI_SOURCE] = true;
    return status.MPI_SOURCE;
  }

  [[noreturn]] void stop_after(Operation operation, int rank) {
    was_told_ = true;
    if (blamed_[rank] == rank || blamed_[rank] == rank_) stop(operation, rank, "stopped with an error");
    stop(operation, blamed_[rank], "stopped with an error or did not answer, says rank ", rank);
  }

  template <class... Parts>
  [[noreturn]] void stop(Operation operation, int blamed, const Parts&... parts) {
    failed_ = true;
    blamed_[rank_] = blamed;
    fail(name_of(operation), ": rank ", blamed, " ", parts..., " (this is rank ", rank_, " of ", size_, ")");
  }

  /// Tells all ranks that this one stops and waits a moment for them to do the same. True when all have.
  bool take_leave() {
    std::vector<MPI_Request> farewells(size_, MPI_REQUEST_NULL);
    for (int peer = 0; peer < size_; ++peer)
      if (peer != rank_) MPI_Isend(&blamed_[rank_], 1, MPI_INT, peer, 0, control_, &farewells[peer]);
    stopped_[rank_] = true;
    const auto all_stopped = [&] { return std::find(stopped_.begin(), stopped_.end(), false) == stopped_.end(); };
    const Clock::time_point start = Clock::now();
    while (!all_stopped() && std::chrono::duration<double>(Clock::now() - start).count() < kFarewellSeconds)
      if (newly_stopped() < 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    keep_forever(messages_);
    keep_forever(group_);
    return all_stopped();
  }
  /// MPI may write into them as long as the process lives.
  static void keep_forever(std::vector<Message>& messages) {
    if (!messages.empty()) static_cast<void>(new std::vector<Message>(std::move(messages)));  // NOLINT
  }

  MpiOptions options_;
  int exceptions_before_;
  MPI_Comm data_ = MPI_COMM_NULL, control_ = MPI_COMM_NULL;
  int rank_ = 0, size_ = 1;
  bool grouping_ = false, failed_ = false, was_told_ = false;
  std::vector<int> blamed_;        // whose fault each rank's stop was; this one's: its own, unless it waited in vain for another
  std::vector<bool> stopped_;      // ranks that said so
  std::vector<Message> messages_;  // of the operation at hand
  std::vector<Message> group_;     // sends and receives of the open group
};

}  // namespace

bool started_by_mpi() {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK"})
    if (std::getenv(name)) return true;
  return false;
}

std::unique_ptr<Communicator> make_mpi_communicator(const MpiOptions& options) { return std::make_unique<MpiCommunicator>(options); }

}  // namespace braid
