#include "cuda/kernels/linear_recurrence/tiles.h"

namespace braid::cuda {

Tensor make_exchange(Context& ctx, int64_t tiles, int64_t blocks, int channels, TileExchange& exchange) {
  exchange = {nullptr, nullptr, nullptr, tiles, blocks};
  if (tiles == 1) return {};
  constexpr int64_t kTicketBytes = 256;
  const int64_t groups = (tiles + kGroupTiles - 1) / kGroupTiles, width = blocks * channels;
  const int64_t map_bytes = tiles * width * static_cast<int64_t>(sizeof(uint64_t)),
                state_bytes = groups * width * static_cast<int64_t>(sizeof(float));
  const Tensor memory = Tensor::empty(ctx, {kTicketBytes + map_bytes + state_bytes}, DType::u8);
  backend_of(ctx.device()).fill(memory.raw(), 0xff, static_cast<size_t>(memory.nbytes()), ctx.stream());
  exchange.next_ticket = reinterpret_cast<unsigned*>(memory.raw());
  exchange.maps = reinterpret_cast<uint64_t*>(memory.raw() + kTicketBytes);
  exchange.states = reinterpret_cast<unsigned*>(memory.raw() + kTicketBytes + map_bytes);
  return memory;
}

}  // namespace braid::cuda
