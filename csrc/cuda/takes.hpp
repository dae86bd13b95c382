// takes.hpp - what kernels that copy tiles take: dot products, numbers of one type, rows that copies of 16 bytes find.
#pragma once

#include "../mask.hpp"
#include "kernels.hpp"
#include "layout.hpp"

namespace harken {
namespace {

constexpr int64_t most_blocks = (int64_t(1) << 31) - 1;

// Does every row begin at a multiple of 16 bytes, its numbers side by side? Where it is to be staged it will.
inline bool lies_well(const Problem& p, const View& view, int64_t heads, int64_t rows, int64_t channels) {
  if (p.batches == 0 || heads == 0 || rows == 0 || channels == 0) return true;
  int64_t bits = reinterpret_cast<intptr_t>(view.data);
  for (int axis = 0; axis < p.batch_axes; ++axis) bits |= p.batch_shape[axis] > 1 ? view.batch[axis] : 0;
  bits |= (heads > 1 ? view.head : 0) | (rows > 1 ? view.row : 0);
  return bits % chunk_bytes == 0 && (channels <= 1 || view.col == size_of(view.type));
}

// Do keys and values lie in pages, or in a ring, which is one?
inline bool paged(const Problem& p) { return p.pages.table.data || p.pages.origins.data; }

// What the problem asks that none of them does; null: nothing.
inline const char* lacks_of_tiles(const Problem& p) {
  const Type type = p.type;
  const int64_t numbers = chunk_bytes / size_of(type);
  if (p.q.type != type || p.k.type != type || p.v.type != type || p.out.type != type)
    return "takes q, k, v of one type";
  if (p.score != Score::dot) return "takes dot products alone";
  if (p.weights.data) return "gives no weights";
  if (p.D > 256 || p.Dv > 256) return "takes at most 256 channels";
  if (p.D % numbers != 0 || p.Dv % numbers != 0 || p.D == 0)
    return numbers == 8 ? "takes channels in multiples of 8" : "takes channels in multiples of 4";
  if (p.bias.data && p.bias.type != type && p.bias.type != Type::f32)
    return type == Type::f32 ? "takes a bias of float32" : "takes a bias of q's type or of float32";
  if (!lies_well(p, p.q, p.Hq, p.Lq, p.D) || !lies_well(p, p.k, p.Hkv, p.Lk, p.D) ||
      !lies_well(p, p.v, p.Hkv, p.Lk, p.Dv) || !lies_well(p, p.out, p.Hq, p.Lq, p.Dv))
    return "takes rows at multiples of 16 bytes";
  return nullptr;
}

// The same of those for numbers of 2 bytes.
inline const char* lacks_of_halves(const Problem& p) {
  if (p.type != Type::f16 && p.type != Type::bf16) return "takes float16 and bfloat16 alone";
  return lacks_of_tiles(p);
}

// A kernel of one block a tile.
inline const char* lacks_of_grid(const Grid& grid) {
  return grid.blocks > most_blocks ? "takes 2^31 tiles at most" : nullptr;
}

// body(Form) for the type and the channels of a problem of halves, where To64 is the form for up to 64 of them.
template <template <class> class To64, template <class> class To128, template <class> class To256, class Body>
auto formed_of_halves(const Problem& p, Body body) {
  const auto of_type = [&](auto type) {
    using S = decltype(type);
    const int64_t channels = most(p.D, p.Dv);
    if (channels <= 64) return body(To64<S>{});
    return channels <= 128 ? body(To128<S>{}) : body(To256<S>{});
  };
  return p.type == Type::f16 ? of_type(f16{}) : of_type(bf16{});
}

}  // namespace
}  // namespace harken
