// convolution.cpp - the arrays of harken.layers.Conv1D become a Convolution, which is cut for the threads, and runs.
#include <algorithm>
#include <initializer_list>
#include <new>

#include "../backend.hpp"
#include "../kept.hpp"
#include "../layers/layers.hpp"
#include "../parallel.hpp"
#include "errors.hpp"
#include "layers.hpp"

namespace harken {
namespace {

// Rows of a block: transposing weights is 3 % beside 512 of them, and 512 rows of 512 floats stay in an L2 cache of
// 2 MiB. 256 took 4 % longer, 1024 up to 7 %, 4096 up to 20 %.
constexpr int64_t most_rows = 512;
constexpr int64_t fewest_rows = 24;         // below, transposing the weights takes as long as the products
constexpr int64_t worth_a_thread = 400000;  // products, 5 us of one core: to wake another takes 1

// Positions of a sequence, and channels of a group on either side, for which the matrix engine takes less time: with
// 128 channels FMA's over its is 0.8 at 32 positions, 1.2 at 100; at 256 positions 1.0 with 32 channels, 1.06 with 64;
// 1.5 to 1.7 for large ones. It does not go by the batch, which no bit depends on.
constexpr int64_t engine_outputs = 64, engine_channels = 48;

PyArrayObject* array_of(const py::object& object, const char* name, int type, int axes) {
  auto* array = reinterpret_cast<PyArrayObject*>(object.ptr());
  if (!PyArray_Check(object.ptr()) || PyArray_TYPE(array) != type || PyArray_NDIM(array) != axes ||
      !PyArray_ISBEHAVED_RO(array)) {
    refuse(PyExc_TypeError, "%s is no aligned array of the type and %d axes", name, axes);
  }
  return array;
}

PyArrayObject* contiguous(const py::object& object, const char* name, int type, std::initializer_list<npy_intp> shape) {
  PyArrayObject* array = array_of(object, name, type, int(shape.size()));
  int axis = 0;
  for (npy_intp size : shape)
    if (PyArray_DIM(array, axis++) != size) refuse(PyExc_ValueError, "%s has another shape", name);
  if (!PyArray_IS_C_CONTIGUOUS(array)) refuse(PyExc_ValueError, "%s is not contiguous", name);
  return array;
}

// Few and even tasks: the fewest blocks of rows that keep all threads busy to 6/7 at least.
void cut(Convolution& p, int threads) {
  const int64_t rows = p.rows(), least = (rows + most_rows - 1) / most_rows;
  int64_t blocks = least;
  for (int64_t n = least; n < least + 2 * threads && (n == least || rows / n >= fewest_rows); ++n) {
    const int64_t turns = (n * p.panels + threads - 1) / threads, kept = blocks * p.panels;
    if (7 * n * p.panels >= 6 * turns * threads) {
      blocks = n;
      break;
    }
    if (n * p.panels * ((kept + threads - 1) / threads) > kept * turns) blocks = n;
  }
  p.block = (rows + blocks - 1) / blocks;
}

// verb(noun, task, scratch of a thread) for all tasks.
template <class Noun>
void compute_noun(void (*verb)(const Noun&, int64_t, char*), const Noun& noun, int64_t tasks, int threads,
                  char* scratch, int64_t scratch_bytes, double flops) {
  struct Call {
    void (*verb)(const Noun&, int64_t, char*);
    const Noun& noun;
    char* scratch;
    int64_t scratch_bytes;
  };
  const Call call = {verb, noun, scratch, scratch_bytes};
  compute(
      [](const void* context, int64_t task, int thread) {
        const auto& c = *static_cast<const Call*>(context);
        c.verb(c.noun, task, c.scratch + thread * c.scratch_bytes);
      },
      &call, tasks, threads, flops);
}

// On the matrix engine, group by group and part by part.
void convolve_on_engine(const Convolution& p, int threads, double products) {
  const Layers& layers = *chosen().layers;
  Stretch s = {p};
  const int64_t D = s.inputs() * p.K, window = (D * 4 + 63) / 64 * 64, windows = s.windows();
  const int64_t fit = std::max<int64_t>(Stretch::most_weights / (s.steps() * 32 * p.K) / 32 * 32, 32);
  const int64_t wide = std::min(p.channels(), fit), high = std::min(windows, Stretch::most_rows);
  const int64_t w_bytes = Stretch::tiles(wide) * s.w_tile_bytes();
  const Kept memory(size_t(w_bytes + s.x_bytes(high) + threads * window));
  if (!memory.at()) throw std::bad_alloc();
  s.w = memory.at();
  s.x = s.w + w_bytes;
  char* const scratch = s.x + s.x_bytes(high);
  auto run = [&](auto verb, int64_t tasks) { compute_noun(verb, s, tasks, threads, scratch, window, 2 * products); };
  for (s.group = 0; s.group < p.groups; ++s.group)
    for (s.col0 = 0; s.col0 < p.channels(); s.col0 += wide) {
      s.cols = std::min(wide, p.channels() - s.col0);
      run(layers.pack_taps, Stretch::tiles(s.cols));
      for (s.row0 = 0; s.row0 < windows; s.row0 += high) {
        s.rows = std::min(high, windows - s.row0);
        run(layers.pack_positions, (s.positions(s.rows) + Stretch::piece - 1) / Stretch::piece);
        run(layers.convolve_stretch, s.tasks());
      }
    }
}

}  // namespace

// x (B, L, C), whose strides are whole numbers but for the last; weight (O, C / groups, K), bias (O,) or None;
// y (B, out, O); lengths (B,) or None. `stream`: in the order of sums that any cut into chunks keeps.
void convolve(const py::object& x, const py::object& weight, const py::object& bias, const py::object& y,
              const py::object& lengths, int64_t stride, int64_t dilation, int64_t left, int64_t right, int64_t groups,
              bool stream) {
  const bool in_double =
      PyArray_Check(x.ptr()) && PyArray_TYPE(reinterpret_cast<PyArrayObject*>(x.ptr())) == NPY_DOUBLE;
  const int type = in_double ? NPY_DOUBLE : NPY_FLOAT;
  const int64_t size = in_double ? 8 : 4;
  PyArrayObject *from = array_of(x, "x", type, 3), *w = array_of(weight, "weight", type, 3);
  Convolution p = {};
  p.in_double = in_double;
  p.B = PyArray_DIM(from, 0), p.L = PyArray_DIM(from, 1), p.C = PyArray_DIM(from, 2);
  p.O = PyArray_DIM(w, 0), p.K = PyArray_DIM(w, 2);
  p.stride = stride, p.dilation = dilation, p.left = left, p.right = right, p.groups = groups;
  if (stride < 1 || dilation < 1 || left < 0 || right < 0 || groups < 1 || p.K < 1 || p.C < 1 || p.O < 1 ||
      p.C % groups || p.O % groups) {
    refuse(PyExc_ValueError, "the numbers of a convolution do not fit");
  }
  contiguous(weight, "weight", type, {p.O, p.C / groups, p.K});
  p.out = p.outputs(p.L);
  PyArrayObject* to = contiguous(y, "y", type, {p.B, p.out, p.O});
  if (!PyArray_ISWRITEABLE(to)) refuse(PyExc_ValueError, "y is read-only");
  const npy_intp* strides = PyArray_STRIDES(from);
  if (p.rows() == 0) return;
  if (p.L > 0 && (strides[0] % size || strides[1] % size || (strides[2] != size && p.C > 1))) {
    refuse(PyExc_ValueError, "the channels of x do not lie side by side");
  }
  p.x = PyArray_DATA(from), p.weight = PyArray_DATA(w), p.y = PyArray_DATA(to);
  p.bias = bias.is_none() ? nullptr : PyArray_DATA(contiguous(bias, "bias", type, {p.O}));
  if (!lengths.is_none())
    p.lengths = static_cast<const int64_t*>(PyArray_DATA(contiguous(lengths, "lengths", NPY_INT64, {p.B})));
  p.x_batch = strides[0] / size, p.x_step = strides[1] / size, p.x_row = stride * p.x_step;
  const Backend& backend = chosen();
  const bool for_engine = backend.engine && !stream && !in_double && !p.depthwise() && p.out >= engine_outputs &&
                          p.C / p.groups >= engine_channels && p.channels() >= engine_channels &&
                          p.K <= Stretch::most_taps;
  if (p.out == 1 && !p.padded() && !p.depthwise()) {  // a step of a stream: the sequences are the rows
    p.out = p.B, p.B = 1;
    p.x_row = p.x_batch;
  }

  const Tiling& tiling = backend.tiling[in_double];
  p.set_panels(tiling.lanes, tiling.queries / tiling.lanes);
  const double products = double(p.rows()) * double(p.O) * double(p.C / groups) * double(p.K);
  const double useful = products / worth_a_thread + 1;
  const int usable = usable_threads(0), wanted = useful < usable ? int(useful) : usable;
  if (for_engine) return convolve_on_engine(p, wanted, products);
  cut(p, wanted);
  const int threads = p.tasks() < wanted ? int(p.tasks()) : wanted;
  const int64_t bytes = p.scratch(tiling.queries);
  const Kept scratch(size_t(bytes) * size_t(threads));
  if (!scratch.at()) throw std::bad_alloc();
  compute_noun(backend.layers->convolve, p, p.tasks(), threads, scratch.at(), bytes, 2 * products);
}

}  // namespace harken
