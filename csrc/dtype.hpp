// dtype.hpp - the list of storage types, and how each becomes the compute type and comes back.
//
// Kernels compute in float or double only. A storage type is a struct, a row of the list, a widen and a narrow. These
// two are written over words of bits, one word or a register of them, so that they serve every instruction set and the
// GPU.
#pragma once

#include <stdint.h>

#include "anywhere.hpp"

namespace harken {

struct f16 {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};

//      name  C++ type  NumPy's name  computed in
#define HARKEN_STORAGE_TYPES(X)      \
  X(f64, double, "float64", double)  \
  X(f32, float, "float32", float)    \
  X(f16, f16, "float16", float)      \
  X(bf16, bf16, "bfloat16", float)

// Keys and values may also be integers, which a scale makes numbers of.
#define HARKEN_KEY_TYPES(X) HARKEN_STORAGE_TYPES(X) X(i8, int8_t, "int8", float)

enum class Type : int32_t {
#define HARKEN_NAME(name, cpp, numpy, compute) name,
  HARKEN_KEY_TYPES(HARKEN_NAME)
#undef HARKEN_NAME
      boolean,  // masks
  i64,          // lengths and positions
};

static HARKEN_ANYWHERE int64_t size_of(Type type) {
  switch (type) {
#define HARKEN_SIZE(name, cpp, numpy, compute) \
  case Type::name: return sizeof(cpp);
    HARKEN_KEY_TYPES(HARKEN_SIZE)
#undef HARKEN_SIZE
    case Type::boolean: return 1;
    case Type::i64: return 8;
  }
  return 0;
}

// The type that two are computed as: the one that holds both. A scaled integer takes the precision of what it meets.
static HARKEN_ANYWHERE Type wider(Type a, Type b) {
  if (a == b || b == Type::i8) return a;
  if (a == Type::i8) return b;
  return a == Type::f64 || b == Type::f64 ? Type::f64 : Type::f32;
}

static HARKEN_ANYWHERE const char* name_of(Type type) {
  switch (type) {
#define HARKEN_TEXT(name, cpp, numpy, compute) \
  case Type::name: return numpy;
    HARKEN_KEY_TYPES(HARKEN_TEXT)
#undef HARKEN_TEXT
    case Type::boolean: return "bool";
    case Type::i64: return "int64";
  }
  return "";
}

namespace {

// W: a 32-bit word, or a register of them. N: the float, or register of floats, of the same size.

template <class N, class W>
HARKEN_ANYWHERE N numbers(W words) {  // 3 -> 3.0f
  if constexpr (sizeof(W) == 4) {
    return N(words);
  } else {
    return __builtin_convertvector(words, N);
  }
}

template <class N, class W>
HARKEN_ANYWHERE N widen(bf16, W x) {
  return __builtin_bit_cast(N, x << 16);
}

template <class N, class W>
HARKEN_ANYWHERE W narrow(bf16, N value) {
  W x = __builtin_bit_cast(W, value);
  W rounded = (x + 0x7fffu + ((x >> 16) & 1u)) >> 16;  // to nearest, ties to even
  W quiet = (x >> 16) | 0x40u;
  return (x & 0x7fffffffu) > 0x7f800000u ? quiet : rounded;
}

// A subnormal of float16 is mantissa 2^-24. The usual trick, a shift and a multiplication, would pass through a
// subnormal of float32, which the kernels' floating point mode takes for zero; so it goes by way of an integer.
template <class N, class W>
HARKEN_ANYWHERE N widen(f16, W x) {
  W sign = (x & 0x8000u) << 16, magnitude = x & 0x7fffu;
  W normal = (magnitude << 13) + (112u << 23);
  W special = (magnitude << 13) | 0x7f800000u;
  W subnormal = __builtin_bit_cast(W, numbers<N>(magnitude) * 0x1p-24f);
  W bits = magnitude >= 0x7c00u ? special : magnitude < 0x400u ? subnormal : normal;
  return __builtin_bit_cast(N, bits | sign);
}

template <class N, class W>
HARKEN_ANYWHERE W narrow(f16, N value) {
  W x = __builtin_bit_cast(W, value);
  W sign = (x >> 16) & 0x8000u, magnitude = x & 0x7fffffffu;
  W shifted = magnitude - (112u << 23);
  W normal = (shifted + 0xfffu + ((shifted >> 13) & 1u)) >> 13;  // overflows into infinity by itself
  W subnormal =
      __builtin_bit_cast(W, __builtin_bit_cast(N, magnitude) + 0.5f) - 0x3f000000u;  // one ulp of 0.5 is 2^-24
  W bits = magnitude < 0x38800000u ? subnormal : normal;
  bits = magnitude >= 0x47800000u ? (W{} + 0x7c00u) : bits;
  bits = magnitude > 0x7f800000u ? (W{} + 0x7e00u) : bits;
  return bits | sign;
}

}  // namespace

}  // namespace harken
