// number.hpp - F as one number: the verbs of lanes.hpp as a thread of a GPU says them.
#pragma once

#include <math.h>

#include "../anywhere.hpp"

namespace harken {
namespace {

HARKEN_ANYWHERE float max(float a, float b) { return fmaxf(a, b); }  // NaN only of two
HARKEN_ANYWHERE double max(double a, double b) { return fmax(a, b); }
HARKEN_ANYWHERE float absolute(float x) { return fabsf(x); }
HARKEN_ANYWHERE double absolute(double x) { return fabs(x); }
HARKEN_ANYWHERE float exp2(float x) { return exp2f(x); }  // CUDA: 2 units in the last place, subnormals and all
HARKEN_ANYWHERE double exp2(double x) { return ::exp2(x); }
HARKEN_ANYWHERE float tanh(float x) { return tanhf(x); }
HARKEN_ANYWHERE double tanh(double x) { return ::tanh(x); }
HARKEN_ANYWHERE bool any(bool truth) { return truth; }

}  // namespace
}  // namespace harken

// What a score is, who may look and how states add up, in these words.
#include "../head.hpp"
#include "../softmax.hpp"
