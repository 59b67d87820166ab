// The small kernels behind cpu.py; aot.h says how they are called.

#include "numeric.h"

namespace {

template <class Function>
int elementwise(const Arguments &a, double nanoseconds, const Function &function) {
  const float *x = a.get("x");
  float *y = a.get("y");
  for_ranges(a.rows(), nanoseconds, [&](i64 begin, i64 end) { map(end - begin, y + begin, function, x + begin); });
  return 0;
}

KERNEL(rms_norm, "x[*, D] weight[D] eps[1] -> y[*, D]") {
  const i64 d = a['D'];
  const float *x = a.get("x"), *weight = a.get("weight"), eps = *a.get("eps");
  float *y = a.get("y");
  for_ranges(a.rows(), d * 0.3, [&](i64 begin, i64 end) {
    for (i64 row = begin; row < end; ++row) rms_norm(x + row * d, weight, eps, y + row * d, d);
  });
  return 0;
}

KERNEL(layer_norm, "x[*, D] weight[D] bias[D] eps[1] -> y[*, D]") {
  const i64 d = a['D'];
  const float *x = a.get("x"), *weight = a.get("weight"), *bias = a.get("bias"), eps = *a.get("eps");
  float *y = a.get("y");
  for_ranges(a.rows(), d * 0.4, [&](i64 begin, i64 end) {
    for (i64 row = begin; row < end; ++row) layer_norm(x + row * d, weight, bias, eps, y + row * d, d);
  });
  return 0;
}

KERNEL(silu, "x[*] -> y[*]") { return elementwise(a, 0.4, sigmoid_linear); }

KERNEL(sigmoid, "x[*] -> y[*]") { return elementwise(a, 0.4, logistic); }

KERNEL(gelu, "x[*] -> y[*]") { return elementwise(a, 0.6, gaussian_linear); }

KERNEL(gelu_tanh, "x[*] -> y[*]") { return elementwise(a, 0.4, gaussian_tanh); }

KERNEL(swiglu, "gate_up[*, 2*I] -> y[*, I]") {
  const i64 n = a['I'];
  const float *gate_up = a.get("gate_up");
  float *y = a.get("y");
  for_ranges(a.rows(), n * 0.5, [&](i64 begin, i64 end) {
    for (i64 row = begin; row < end; ++row) {
      const float *gate = gate_up + row * 2 * n;
      activate(gate, gate + n, y + row * n, n);
    }
  });
  return 0;
}

KERNEL(rotary, "x[*, H, 2*D] cos[*, D] sin[*, D] -> y[*, H, 2*D]") {
  const i64 heads = a['H'], half = a['D'];
  const float *x = a.get("x"), *cos = a.get("cos"), *sin = a.get("sin");
  float *y = a.get("y");
  for_ranges(a.rows(), heads * half * 1.0, [&](i64 begin, i64 end) {
    for (i64 token = begin; token < end; ++token)
      for (i64 head = 0; head < heads; ++head) {
        const i64 at = (token * heads + head) * 2 * half;
        rotate(x + at, cos + token * half, sin + token * half, y + at, half);
      }
  });
  return 0;
}

KERNEL(route_topk, "logits[N, E] normalise:i[k] -> weights[N, k] indices:i[N, k] | 0 < k, k < E + 1") {
  const i64 experts = a['E'], k = a['k'];
  const bool normalise = *a.get<int32_t>("normalise");
  const float *logits = a.get("logits");
  float *weights = a.get("weights");
  int32_t *indices = a.get<int32_t>("indices");
  for_ranges(a['N'], experts * 4.0, [&](i64 begin, i64 end) {
    for (i64 row = begin; row < end; ++row)
      route(logits + row * experts, experts, k, normalise, weights + row * k, indices + row * k);
  });
  return 0;
}

KERNEL(scale_channels, "x[*, D] scale[D] -> y[*, D]") {
  const i64 d = a['D'];
  const float *x = a.get("x"), *scale = a.get("scale");
  float *y = a.get("y");
  for_ranges(a.rows(), d * 0.2, [&](i64 begin, i64 end) {
    for (i64 row = begin; row < end; ++row)
      for (i64 i = 0; i < d; ++i) y[row * d + i] = x[row * d + i] * scale[i];
  });
  return 0;
}

KERNEL(weighted_sum_rows, "x[R, D] index:i[N, t] weights[N, t] -> y[N, D]") {
  const i64 d = a['D'], taps = a['t'], count = a['N'] * taps, rows = a['R'];
  const float *x = a.get("x"), *weights = a.get("weights");
  const int32_t *index = a.get<int32_t>("index");
  for (i64 i = 0; i < count; ++i)
    if (index[i] < 0 || index[i] >= rows)
      return refuse("weighted_sum_rows: index holds " + std::to_string(index[i]) + ", expected 0 to " + std::to_string(rows - 1));
  float *sums = a.get("y");
  for_ranges(a['N'], taps * d * 0.3, [&](i64 begin, i64 end) {
    for (i64 row = begin; row < end; ++row) {
      float *y = sums + row * d;
      std::fill(y, y + d, 0.f);
      for (i64 i = row * taps; i < (row + 1) * taps; ++i) add_scaled(y, x + index[i] * d, weights[i], d);
    }
  });
  return 0;
}

// y `[shape of the axes]` = x with its axes in another order; strides: those of x for the axes of y.
void copy_permuted(const float *x, float *&y, const i64 *shape, const i64 *strides, i64 rank) {
  if (rank == 1 && strides[0] == 1) {
    y = std::copy(x, x + shape[0], y);
  } else if (rank == 1) {
    for (i64 i = 0; i < shape[0]; ++i) *y++ = x[i * strides[0]];
  } else {
    for (i64 i = 0; i < shape[0]; ++i) copy_permuted(x + i * strides[0], y, shape + 1, strides + 1, rank - 1);
  }
}

KERNEL(transpose, "x[...] order:i[...] -> y[...]") {  // order: told by its lengths, axis + 1 for each axis
  const i64 rank = a.rank("x");
  std::vector<i64> shape(rank), strides(rank), seen(rank);
  if (a.rank("order") != rank || a.rank("y") != rank) return refuse("transpose: the order is not one of the axes of x");
  for (i64 axis = 0; axis < rank; ++axis) {
    const i64 source = a.dim("order", axis) - 1;
    if (source < 0 || source >= rank || seen[source]++ || a.dim("y", axis) != a.dim("x", source))
      return refuse("transpose: the order is not one of the axes of x");
    shape[axis] = a.dim("x", source);
    strides[axis] = a.size("x", source + 1);
  }
  float *y = a.get("y");
  copy_permuted(a.get("x"), y, shape.data(), strides.data(), rank);
  return 0;
}

KERNEL(argmax, "x[*, V] -> y:i[*] | 0 < V") {
  const i64 size = a['V'], rows = a.rows();
  int32_t *y = a.get<int32_t>("y");
  for (i64 row = 0; row < rows; ++row) {
    const float *x = a.get("x") + row * size;
    y[row] = std::max_element(x, x + size) - x;
  }
  return 0;
}

struct Sampling { float temperature, top_k, top_p; };

KERNEL(draw, "logits[B, V] noise[B, 1] sampling[3] -> ids:i[B, 1] | 0 < V") {
  const auto [temperature, top_k, top_p] = *a.get<const Sampling>("sampling");
  const i64 size = a['V'], rows = a['B'];
  const float *logits = a.get("logits"), *noise = a.get("noise");
  for (i64 row = 0; row < rows; ++row)
    a.get<int32_t>("ids")[row] = draw_one(logits + row * size, size, noise[row], temperature, static_cast<i64>(top_k), top_p);
  return 0;
}

}  // namespace
