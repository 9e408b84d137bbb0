#include "models/state.h"

#include <algorithm>

#include "core/context.h"
#include "core/owner.h"

namespace braid {
namespace {

constexpr std::string_view kCaches = "key and value caches";

}  // namespace

void KvCache::append(Context& ctx, const Tensor& k, const Tensor& v, int64_t keep) {
  if (keep >= 0 && length() > keep) begin_ = end_ - keep;
  const int64_t rows = k.size(0);
  if (end_ + rows > capacity()) make_room(ctx, k, v, rows);
  copy_into(ctx, k_.slice(0, end_, end_ + rows), k);
  copy_into(ctx, v_.slice(0, end_, end_ + rows), v);
  end_ += rows;
}

void KvCache::make_room(Context& ctx, const Tensor& like_k, const Tensor& like_v, int64_t rows) {
  constexpr int64_t kSmallest = 16;
  const int64_t live = length();
  Tensor to_k = k_, to_v = v_;
  // With room for twice what is needed the live rows lie behind the middle: moving them to the front does not overlap.
  if (capacity() < 2 * (live + rows)) {
    Shape shape_k = like_k.shape(), shape_v = like_v.shape();
    shape_k.set(0, std::max(kSmallest, 2 * (live + rows)));
    shape_v.set(0, shape_k[0]);
    const WithOwner owner(kCaches);
    to_k = Tensor::empty(ctx, shape_k, like_k.dtype());
    to_v = Tensor::empty(ctx, shape_v, like_v.dtype());
  }
  if (live > 0) {
    copy_into(ctx, to_k.slice(0, 0, live), k());
    copy_into(ctx, to_v.slice(0, 0, live), v());
  }
  k_ = to_k;
  v_ = to_v;
  begin_ = 0;
  end_ = live;
}

void KvCache::make_ring(Context& ctx, int64_t capacity, int64_t next_position) {
  if (!k_) return;
  BRAID_CHECK(capacity > 0 && length() <= next_position, "kv cache: a ring must have room, and ", length(), " rows end before position ",
              next_position);
  if (length() > capacity) begin_ = end_ - capacity;
  const int64_t live = length(), first = next_position - live;
  Shape shape_k = k_.shape(), shape_v = v_.shape();
  shape_k.set(0, capacity);
  shape_v.set(0, capacity);
  const WithOwner owner(kCaches);
  const Tensor to_k = Tensor::empty(ctx, shape_k, k_.dtype()), to_v = Tensor::empty(ctx, shape_v, v_.dtype());
  for (int64_t done = 0; done < live;) {
    const int64_t row = (first + done) % capacity, rows = std::min(live - done, capacity - row);
    copy_into(ctx, to_k.slice(0, row, row + rows), k().slice(0, done, done + rows));
    copy_into(ctx, to_v.slice(0, row, row + rows), v().slice(0, done, done + rows));
    done += rows;
  }
  k_ = to_k;
  v_ = to_v;
  begin_ = 0;
  end_ = capacity;
}

KvCache KvCache::clone(Context& ctx) const {
  KvCache copy = *this;
  if (k_) {
    copy.k_ = copied(ctx, k_);
    copy.v_ = copied(ctx, v_);
  }
  return copy;
}

int64_t State::bytes() const {
  int64_t total = 0;
  for (const LayerState& layer : layers) {
    if (layer.recurrent) total += layer.recurrent.nbytes();
    for (const Tensor& tail : layer.conv)
      if (tail) total += tail.nbytes();
    for (const KvCache& cache : layer.kv) total += cache.bytes();
  }
  return total;
}

State State::clone(Context& ctx) const {
  State copy(*this);
  const auto own = [&](Tensor& tensor) {
    if (tensor) tensor = copied(ctx, tensor);
  };
  for (LayerState& layer : copy.layers) {
    own(layer.recurrent);
    for (Tensor& tail : layer.conv) own(tail);
    for (KvCache& cache : layer.kv) cache = cache.clone(ctx);
  }
  own(copy.device_positions);
  return copy;
}

}  // namespace braid
