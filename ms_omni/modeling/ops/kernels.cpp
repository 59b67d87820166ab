// The kernels behind cpu.py; aot.h says how they are called. Arguments stand in the order of cpu.py.

#include "numeric.h"

namespace {

template <class Function>
int elementwise(const Arguments &a, double nanoseconds, const Function &function) {
  for_ranges(a.size(0), nanoseconds, [&](i64 begin, i64 end) {
    map(end - begin, a.get(1) + begin, function, a.get(0) + begin);
  });
  return 0;
}

KERNEL(rms_norm, "x[*, D] weight[D] eps[1] -> [*, D]") {
  const i64 d = a.dim(1, 0), rows = a.size(0) / std::max<i64>(d, 1);
  for_ranges(rows, d * 0.3, [&](i64 begin, i64 end) {
    for (i64 row = begin; row < end; ++row) rms_norm(a.get(0) + row * d, a.get(1), *a.get(2), a.get(3) + row * d, d);
  });
  return 0;
}

KERNEL(layer_norm, "x[*, D] weight[D] bias[D] eps[1] -> [*, D]") {
  const i64 d = a.dim(1, 0), rows = a.size(0) / std::max<i64>(d, 1);
  for_ranges(rows, d * 0.4, [&](i64 begin, i64 end) {
    for (i64 row = begin; row < end; ++row)
      layer_norm(a.get(0) + row * d, a.get(1), a.get(2), *a.get(3), a.get(4) + row * d, d);
  });
  return 0;
}

KERNEL(silu, "x[*] -> [*]") { return elementwise(a, 0.4, sigmoid_linear); }

KERNEL(sigmoid, "x[*] -> [*]") { return elementwise(a, 0.4, logistic); }

KERNEL(gelu, "x[*] -> [*]") { return elementwise(a, 0.6, gaussian_linear); }

KERNEL(gelu_tanh, "x[*] -> [*]") { return elementwise(a, 0.4, gaussian_tanh); }

KERNEL(swiglu, "gate_up[*, 2*I] -> [*, I]") {
  const i64 n = a.dim(1, -1), rows = a.size(1) / std::max<i64>(n, 1);
  for_ranges(rows, n * 0.5, [&](i64 begin, i64 end) {
    for (i64 row = begin; row < end; ++row) {
      const float *gate = a.get(0) + row * 2 * n;
      activate(gate, gate + n, a.get(1) + row * n, n);
    }
  });
  return 0;
}

KERNEL(rotary, "x[*, H, 2*D] cos[*, D] sin[*, D] -> [*, H, 2*D]") {
  const i64 heads = a.dim(0, -2), half = a.dim(1, -1), tokens = a.size(1) / std::max<i64>(half, 1);
  for_ranges(tokens, heads * half * 1.0, [&](i64 begin, i64 end) {
    for (i64 token = begin; token < end; ++token) {
      const float *cos = a.get(1) + token * half, *sin = a.get(2) + token * half;
      for (i64 head = 0; head < heads; ++head) {
        const i64 at = (token * heads + head) * 2 * half;
        rotate(a.get(0) + at, cos, sin, a.get(3) + at, half);
      }
    }
  });
  return 0;
}

KERNEL(route_topk, "logits[N, E] normalise:i[k] -> [N, k] :i[N, k] | 0 < k, k < E + 1") {
  const i64 experts = a.dim(0, 1), k = a.dim(1, 0);
  const bool normalise = *a.get<int32_t>(1);
  for_ranges(a.dim(0, 0), experts * 4.0, [&](i64 begin, i64 end) {
    for (i64 row = begin; row < end; ++row)
      route(a.get(0) + row * experts, experts, k, normalise, a.get(2) + row * k, a.get<int32_t>(3) + row * k);
  });
  return 0;
}

KERNEL(scale_channels, "x[*, D] scale[D] -> [*, D]") {
  const i64 d = a.dim(1, 0), rows = a.size(0) / std::max<i64>(d, 1);
  for_ranges(rows, d * 0.2, [&](i64 begin, i64 end) {
    for (i64 row = begin; row < end; ++row)
      for (i64 i = 0; i < d; ++i) a.get(2)[row * d + i] = a.get(0)[row * d + i] * a.get(1)[i];
  });
  return 0;
}

KERNEL(weighted_sum_rows, "x[R, D] index:i[N, t] weights[N, t] -> [N, D]") {
  const i64 d = a.dim(0, 1), taps = a.dim(1, 1);
  const int32_t *index = a.get<int32_t>(1);
  for (i64 i = 0; i < a.size(1); ++i)
    if (index[i] < 0 || index[i] >= a.dim(0, 0))
      return refuse("weighted_sum_rows: index holds " + std::to_string(index[i]) + ", expected 0 to " +
                    std::to_string(a.dim(0, 0) - 1));
  for_ranges(a.dim(1, 0), taps * d * 0.3, [&](i64 begin, i64 end) {
    for (i64 row = begin; row < end; ++row) {
      float *y = a.get(3) + row * d;
      std::fill(y, y + d, 0.f);
      for (i64 i = row * taps; i < (row + 1) * taps; ++i) add_scaled(y, a.get(0) + index[i] * d, a.get(2)[i], d);
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

KERNEL(transpose, "x[...] order:i[...] -> [...]") {  // order: told by its lengths, axis + 1 for each axis
  const i64 rank = a.rank(0);
  std::vector<i64> shape(rank), strides(rank), seen(rank);
  if (a.rank(1) != rank || a.rank(2) != rank) return refuse("transpose: the order is not one of the axes of x");
  for (i64 axis = 0; axis < rank; ++axis) {
    const i64 source = a.dim(1, axis) - 1;
    if (source < 0 || source >= rank || seen[source]++ || a.dim(2, axis) != a.dim(0, source))
      return refuse("transpose: the order is not one of the axes of x");
    shape[axis] = a.dim(0, source);
    strides[axis] = a.size(0, source + 1);
  }
  float *y = a.get(2);
  copy_permuted(a.get(0), y, shape.data(), strides.data(), rank);
  return 0;
}

KERNEL(argmax, "x[*, V] -> :i[*] | 0 < V") {
  const i64 size = a.dim(0, -1), rows = a.size(0) / std::max<i64>(size, 1);
  for (i64 row = 0; row < rows; ++row) {
    const float *x = a.get(0) + row * size;
    a.get<int32_t>(1)[row] = std::max_element(x, x + size) - x;
  }
  return 0;
}

KERNEL(draw, "logits[B, V] noise[B, 1] settings[3] -> :i[B, 1] | 0 < V") {  // settings: temperature, top_k, top_p
  const float *settings = a.get(2);
  for (i64 row = 0; row < a.dim(0, 0); ++row)
    a.get<int32_t>(3)[row] = draw_one(a.get(0) + row * a.dim(0, 1), a.dim(0, 1), a.get(1)[row], settings[0],
                                      static_cast<i64>(settings[1]), settings[2]);
  return 0;
}

}  // namespace
