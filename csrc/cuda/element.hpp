// element.hpp - one number out of an array of any storage type and strides, and back.
//
// Here storage types end. Elements are aligned to their size: a card reads no others, and staging sees to it.
#pragma once

#include "words.hpp"

namespace harken {
namespace {

template <class T, class S>
HARKEN_WORD T widened(const char* at) {
  if constexpr (__is_same(S, f16) || __is_same(S, bf16)) {
    return T(widen<float, uint32_t>(S{}, *(const uint16_t*)at));
  } else {
    return T(*(const S*)at);
  }
}

template <class T>
HARKEN_WORD T number_of(Type type, const char* at) {
  switch (type) {
#define HARKEN_READ(name, cpp, numpy, compute) \
  case Type::name: return widened<T, cpp>(at);
    HARKEN_KEY_TYPES(HARKEN_READ)
#undef HARKEN_READ
    case Type::boolean: return T(*at != 0);
    case Type::i64: return T(*(const int64_t*)at);
  }
  return T(0);
}

template <class T>
HARKEN_WORD T element(const Matrix& M, int64_t i, int64_t j) {
  const T x = number_of<T>(M.type, M.at(i, j));
  return M.scale.data ? x * M.scale.template at<T>(i, j) : x;
}

template <class T>
HARKEN_WORD T element(const Stored& M, int64_t i, int64_t j) {
  return element<T>(M.page(i), i, j);
}

template <class S, class T>
HARKEN_WORD void put_narrowed(char* at, T x) {
  if constexpr (__is_same(S, f16) || __is_same(S, bf16)) {
    *(uint16_t*)at = uint16_t(narrow<float, uint32_t>(S{}, float(x)));
  } else {
    *(S*)at = S(x);
  }
}

template <class T>
HARKEN_WORD void put_element(const Matrix& M, int64_t i, int64_t j, T x) {
  switch (M.type) {
#define HARKEN_WRITE(name, cpp, numpy, compute) \
  case Type::name: return put_narrowed<cpp>(M.at(i, j), x);
    HARKEN_STORAGE_TYPES(HARKEN_WRITE)
#undef HARKEN_WRITE
    default: return;
  }
}

}  // namespace
}  // namespace harken
