// flow.hpp - a problem of the host flows through the card: pieces go up, are computed and come down at the same time.
#pragma once

#include <functional>

#include "../problem.hpp"

namespace harken {

using Compute = std::function<void(const Problem&, void* stream)>;

// Does the problem lie on the host with all of its arrays, and is it large enough that this pays?
bool flows(const Problem& problem);

// Returns when the results are there. `compute` queues one piece, whose arrays lie on the card that is meant.
void flow(const Problem& problem, int card, const Compute& compute);

}  // namespace harken
