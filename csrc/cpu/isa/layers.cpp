// layers.cpp - compiled once per instruction set, with its flags: the layers around attention, and their table.
//
// The same wall as around isa.cpp: internal linkage, no standard library, one exported symbol.
#include "../../layers/layers.hpp"

#include "../../backend.hpp"

#include HARKEN_ISA_HEADER

#include "../layers/convolution.hpp"
#include "../layers/linear.hpp"
#include "../layers/matrix_convolution.hpp"
#include "../layers/matrix_linear.hpp"
#include "../layers/normalization.hpp"
#include "../layers/pointwise.hpp"
#include "../layers/recurrence.hpp"
#include "../layers/rotation.hpp"
#include "../layers/split_linear.hpp"

namespace harken {

extern const Layers HARKEN_ISA_LAYERS;
const Layers HARKEN_ISA_LAYERS = {activate,       convolve,  pack_positions, pack_taps,       convolve_stretch,
                                  multiply,       pack_rows, pack_weight,    multiply_panels, pack_beside,
                                  multiply_split, normalize, recurrent,      rotate};

}  // namespace harken
