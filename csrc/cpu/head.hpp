// head.hpp - one (batch, head) problem out of many: where its arrays begin and what holds for all of its rows.
#pragma once

#include "../mask.hpp"
#include "../problem.hpp"
#include "../score.hpp"

namespace harken {
namespace {

// A matrix in memory as it came: any type, any strides.
struct Matrix {
  char* data;
  Type type;
  int64_t row, col;

  char* at(int64_t i, int64_t j) const { return data + i * row + j * col; }
};

inline int64_t batch_offset(const Problem& p, const View& view, int64_t b) {
  int64_t offset = 0;
  for (int a = p.batch_axes - 1; a >= 0; --a) {
    offset += b % p.batch_shape[a] * view.batch[a];
    b /= p.batch_shape[a];
  }
  return offset;
}

inline Matrix matrix_at(const Problem& p, const View& view, int64_t b, int64_t h) {
  if (!view.data) return {nullptr, view.type, 0, 0};
  return {view.data + batch_offset(p, view, b) + h * view.head, view.type, view.row, view.col};
}

inline int64_t integer_at(const Problem& p, const View& view, int64_t b, int64_t otherwise) {
  return view.data ? *(const int64_t*)(view.data + batch_offset(p, view, b)) : otherwise;
}

inline double number_at(const Problem& p, const View& view, int64_t b, int64_t h, double otherwise) {
  return view.data ? *(const double*)(view.data + batch_offset(p, view, b) + h * view.head) : otherwise;
}

template <class T>
struct Head {
  Matrix Q, K, V, out, lse, weights, mask, bias;
  Sight sight;
  Modifiers<T> modifiers;
  double scale;              // of q.k, times log2 e
  double sink;               // times log2 e
  bool has_sink, cosine;
  int64_t queries;           // those below q_length
};

template <class T>
inline Head<T> head_at(const Problem& p, int64_t b, int64_t h) {
  Head<T> head;
  int64_t kv = h / (p.Hq / p.Hkv);
  head.Q = matrix_at(p, p.q, b, h);
  head.K = matrix_at(p, p.k, b, kv);
  head.V = matrix_at(p, p.v, b, kv);
  head.out = matrix_at(p, p.out, b, h);
  head.lse = matrix_at(p, p.lse, b, h);
  head.weights = matrix_at(p, p.weights, b, h);
  head.mask = matrix_at(p, p.mask, b, h);
  head.bias = matrix_at(p, p.bias, b, h);
  head.queries = integer_at(p, p.q_lengths, b, p.Lq);
  int64_t keys = integer_at(p, p.kv_lengths, b, p.Lk);
  head.sight = {integer_at(p, p.q_starts, b, keys - head.queries), keys, p.left, p.right};
  head.scale = number_at(p, p.scales, b, h, p.scale) * log2e;
  head.has_sink = p.sinks.data != nullptr;
  head.sink = number_at(p, p.sinks, b, h, 0) * log2e;
  head.cosine = p.score == Score::cosine;
  head.modifiers = {T(p.softcap * log2e), T(number_at(p, p.slopes, b, h, 0) * log2e), head.bias.data != nullptr,
                    p.slopes.data != nullptr};
  return head;
}

}  // namespace
}  // namespace harken
