// The kernels behind cpu.py; aot.h says how they are called. Arguments stand in the order of cpu.py.

#include "numeric.h"

namespace {

constexpr int kPanel = kLanes / 4;  // vectors per panel of a product's columns
constexpr int kTile = 6;            // rows that a product keeps in registers

template <class Function>
int elementwise(const Arguments &a, double nanoseconds, const Function &function) {
  const float *x = a.get(0);
  float *y = a.get(1);
  for_ranges(a.size(0), nanoseconds, [=](i64 begin, i64 end) {
    for (i64 i = begin; i < end; i += 64) {  // always whole blocks: equal bits for equal numbers, wherever they stand
      const i64 count = std::min<i64>(64, end - i);
      float block[64] = {};
      std::copy(x + i, x + i + count, block);
      for (float &value : block) value = function(value);
      std::copy(block, block + count, y + i);
    }
  });
  return 0;
}

// ---- products ------------------------------------------------------------------------------------------------------

// One row: c = a B, reading B `[k, n]` in order, because fetching it is what takes the time.
void product_row(const float *a, const float *b, float *c, i64 k, i64 n) {
  std::fill(c, c + n, 0.f);
  i64 i = 0;
  for (; i + 4 <= k; i += 4) {
    const float a0 = a[i], a1 = a[i + 1], a2 = a[i + 2], a3 = a[i + 3];
    const float *b0 = b + i * n, *b1 = b0 + n, *b2 = b1 + n, *b3 = b2 + n;
    for (i64 j = 0; j < n; ++j) c[j] += (a0 * b0[j] + a1 * b1[j]) + (a2 * b2[j] + a3 * b3[j]);
  }
  for (; i < k; ++i) add_scaled(c, b + i * n, a[i], n);
}

// Some rows: a panel of columns of C stays in registers while the panel of B passes by.
template <int Rows>
void product_tile(const float *const *a, const float *b, float *const *c, i64 k, i64 n) {
  constexpr int width = kPanel * kLanes;
  i64 j = 0;
  for (; j + width <= n; j += width) {
    vec sum[Rows][kPanel] = {};
    for (i64 i = 0; i < k; ++i) {
      const vec *panel = reinterpret_cast<const vec *>(b + i * n + j);
      for (int row = 0; row < Rows; ++row)
        for (int v = 0; v < kPanel; ++v) sum[row][v] += a[row][i] * panel[v];
    }
    for (int row = 0; row < Rows; ++row) std::memcpy(c[row] + j, sum[row], width * sizeof(float));
  }
  if (j == n) return;
  for (int row = 0; row < Rows; ++row) std::fill(c[row] + j, c[row] + n, 0.f);
  for (i64 i = 0; i < k; ++i)
    for (int row = 0; row < Rows; ++row) add_scaled(c[row] + j, b + i * n + j, a[row][i], n - j);
}

// c[row] = a[row] B for rows of length k, B `[k, n]`.
void product(const float *const *a, const float *b, float *const *c, i64 rows, i64 k, i64 n) {
  for (; rows >= kTile; rows -= kTile, a += kTile, c += kTile) product_tile<kTile>(a, b, c, k, n);
  switch (rows) {
    case 5: return product_tile<5>(a, b, c, k, n);
    case 4: return product_tile<4>(a, b, c, k, n);
    case 3: return product_tile<3>(a, b, c, k, n);
    case 2: return product_tile<2>(a, b, c, k, n);
    case 1: return product_row(a[0], b, c[0], k, n);
  }
}

// ---- entries: arguments and results as documented in __init__.py ---------------------------------------------------

KERNEL(linear) {  // x [..., in], weight [out, in], (bias [out]) -> [..., out]
  const i64 in = a.dim(1, 1), out = a.dim(1, 0), rows = a.size(a.count - 1) / std::max<i64>(out, 1);
  const float *x = a.get(0), *weight = a.get(1), *bias = a.count == 4 ? a.get(2) : nullptr;
  float *y = a.get(a.count - 1);
  for (i64 j = 0; j < out; ++j)
    for (i64 row = 0; row < rows; ++row)
      y[row * out + j] = dot(x + row * in, weight + j * in, in) + (bias ? bias[j] : 0.f);
  return 0;
}

KERNEL(rms_norm) {  // x [..., D], weight [D], eps
  const i64 d = a.dim(1, 0), rows = a.size(0) / std::max<i64>(d, 1);
  const float *weight = a.get(1), eps = *a.get(2);
  for_ranges(rows, d * 0.3, [&](i64 begin, i64 end) {
    for (i64 row = begin; row < end; ++row) {
      const float *x = a.get(0) + row * d;
      float *y = a.get(3) + row * d;
      const float scale = 1.f / std::sqrt(dot(x, x, d) / d + eps);
      for (i64 i = 0; i < d; ++i) y[i] = x[i] * scale * weight[i];
    }
  });
  return 0;
}

KERNEL(layer_norm) {  // x [..., D], weight [D], bias [D], eps
  const i64 d = a.dim(1, 0), rows = a.size(0) / std::max<i64>(d, 1);
  const float *weight = a.get(1), *bias = a.get(2), eps = *a.get(3);
  for_ranges(rows, d * 0.4, [&](i64 begin, i64 end) {
    for (i64 row = begin; row < end; ++row) {
      const float *x = a.get(0) + row * d;
      float *y = a.get(4) + row * d, mean = 0;
      for (i64 i = 0; i < d; ++i) mean += x[i];
      mean /= d;
      for (i64 i = 0; i < d; ++i) y[i] = x[i] - mean;
      const float scale = 1.f / std::sqrt(dot(y, y, d) / d + eps);
      for (i64 i = 0; i < d; ++i) y[i] = y[i] * scale * weight[i] + bias[i];
    }
  });
  return 0;
}

KERNEL(silu) {
  return elementwise(a, 0.4, [](float x) { return x * logistic(x); });
}

KERNEL(sigmoid) { return elementwise(a, 0.4, logistic); }

KERNEL(swiglu) {  // gate_up [..., 2I]
  const i64 n = a.dim(1, -1), rows = a.size(1) / std::max<i64>(n, 1);
  for_ranges(rows, n * 0.5, [&](i64 begin, i64 end) {
    for (i64 row = begin; row < end; ++row) gate(a.get(0) + row * 2 * n, a.get(1) + row * n, n);
  });
  return 0;
}

KERNEL(rotary) {  // x [..., H, D], cos and sin [..., D/2]
  const i64 heads = a.dim(0, -2), half = a.dim(1, -1), tokens = a.size(1) / std::max<i64>(half, 1);
  for_ranges(tokens, heads * half * 1.0, [&](i64 begin, i64 end) {
    for (i64 token = begin; token < end; ++token) {
      const float *cos = a.get(1) + token * half, *sin = a.get(2) + token * half;
      for (i64 head = 0; head < heads; ++head) {
        const float *low = a.get(0) + (token * heads + head) * 2 * half, *high = low + half;
        float *y = a.get(3) + (low - a.get(0));
        for (i64 i = 0; i < half; ++i) y[i] = low[i] * cos[i] - high[i] * sin[i];
        for (i64 i = 0; i < half; ++i) y[half + i] = high[i] * cos[i] + low[i] * sin[i];
      }
    }
  });
  return 0;
}

KERNEL(attention) {  // q [B, S, H, D], k and v [B, K, T, *], scale, (mask [B, S, T]) -> [B, S, H * D]
  const i64 queries = a.dim(0, 1), heads = a.dim(0, 2), d = a.dim(0, 3);
  const i64 kv_heads = a.dim(1, 1), total = a.dim(1, 2), dv = a.dim(2, 3), group = heads / kv_heads;
  const float scale = *a.get(3), *masks = a.count == 6 ? a.get(4) : nullptr;
  const i64 tasks = a.dim(0, 0) * queries * kv_heads;
  for_each(tasks, tasks * group * total * (d + dv) * 0.08, [&](i64 task) {
    const i64 head = task % kv_heads, token = task / kv_heads, batch = token / queries;
    const float *q = a.get(0) + (token * heads + head * group) * d, *mask = masks ? masks + token * total : nullptr;
    const float *k = a.get(1) + (batch * kv_heads + head) * total * d;
    const float *v = a.get(2) + (batch * kv_heads + head) * total * dv;
    float *y = a.get(a.count - 1) + (token * heads + head * group) * dv;
    std::vector<i64> keys;  // those that the mask leaves; all where it leaves none
    const float least = mask && total ? *std::max_element(mask, mask + total) - 1e8f : 0.f;
    for (i64 t = 0; t < total; ++t)
      if (!mask || mask[t] >= least) keys.push_back(t);
    const i64 n = keys.size();
    std::vector<float> scores(n * group);
    for (i64 i = 0; i < n; ++i)
      for (i64 g = 0; g < group; ++g)
        scores[g * n + i] = dot(q + g * d, k + keys[i] * d, d) * scale + (mask ? mask[keys[i]] : 0.f);
    for (i64 g = 0; g < group; ++g) {
      float *row = scores.data() + g * n, sum = 0;
      const float highest = n ? *std::max_element(row, row + n) : 0.f;
      for (i64 i = 0; i < n; ++i) sum += row[i] = exponential(row[i] - highest);
      for (i64 i = 0; i < n; ++i) row[i] /= sum;
    }
    std::fill(y, y + group * dv, 0.f);
    for (i64 i = 0; i < n; ++i)
      for (i64 g = 0; g < group; ++g) add_scaled(y + g * dv, v + keys[i] * dv, scores[g * n + i], dv);
  });
  return 0;
}

KERNEL(route_topk) {  // logits [N, E], [normalise] * k -> weights [N, k], indices [N, k]
  const i64 experts = a.dim(0, 1), k = a.dim(1, 0);
  const bool normalise = *a.get<int32_t>(1);
  for_ranges(a.dim(0, 0), experts * 4.0, [&](i64 begin, i64 end) {
    for (i64 row = begin; row < end; ++row)
      route(a.get(0) + row * experts, experts, k, normalise, a.get(2) + row * k, a.get<int32_t>(3) + row * k);
  });
  return 0;
}

KERNEL(experts) {  // x [N, D], gate_up [E, D, 2I], down [E, I, D], weights and indices [N, k], first [1] or -1 -> [N, D]
  const i64 n = a.dim(4, 0), k = a.dim(4, 1), d = a.dim(1, 1), inner = a.dim(2, 1), count = a.dim(1, 0), pairs = n * k;
  const int32_t *indices = a.get<int32_t>(4), given = *a.get<int32_t>(5), offset = std::max(given, 0);
  const auto here = [&](i64 pair) { return indices[pair] >= offset && indices[pair] - offset < count; };
  std::vector<i64> first(count + 1), order(pairs);  // pairs (token, place) sorted by expert, those that are here
  for (i64 pair = 0; pair < pairs; ++pair) {
    if (indices[pair] < 0 || (given < 0 && !here(pair))) return 1;
    if (here(pair)) ++first[indices[pair] - offset + 1];
  }
  for (i64 e = 0; e < count; ++e) first[e + 1] += first[e];
  std::vector<i64> free(first.begin(), first.end() - 1);
  for (i64 pair = 0; pair < pairs; ++pair)
    if (here(pair)) order[free[indices[pair] - offset]++] = pair;

  constexpr i64 batch = 8 * kTile;
  struct Task { i64 expert, begin, end; };
  std::vector<Task> tasks;
  for (i64 e = 0; e < count; ++e)
    for (i64 begin = first[e]; begin < first[e + 1]; begin += batch)
      tasks.push_back({e, begin, std::min(begin + batch, first[e + 1])});
  const double work = 3.0 * d * inner;
  std::unique_ptr<float[]> results(new float[pairs * d]);
  for_each(tasks.size(), work * (tasks.size() * 0.2 + first[count] * 0.03), [&](i64 index) {
    const Task task = tasks[index];
    const i64 rows = task.end - task.begin;
    std::unique_ptr<float[]> space(new float[rows * 3 * inner]);
    const float *from[batch];
    float *to[batch], *last[batch];
    for (i64 row = 0; row < rows; ++row) {
      from[row] = a.get(0) + order[task.begin + row] / k * d;
      to[row] = space.get() + row * 3 * inner;
      last[row] = results.get() + order[task.begin + row] * d;
    }
    product(from, a.get(1) + task.expert * d * 2 * inner, to, rows, d, 2 * inner);
    for (i64 row = 0; row < rows; ++row) {
      gate(to[row], to[row] + 2 * inner, inner);
      from[row] = to[row] + 2 * inner;
    }
    product(from, a.get(2) + task.expert * inner * d, last, rows, inner, d);
  });
  float *y = a.get(6);
  std::fill(y, y + n * d, 0.f);
  for (i64 pair = 0; pair < pairs; ++pair)
    if (here(pair)) add_scaled(y + pair / k * d, results.get() + pair * d, a.get(3)[pair], d);
  return 0;
}

KERNEL(scale_channels) {  // x [..., D], scale [D]
  const i64 d = a.dim(1, 0), rows = a.size(0) / std::max<i64>(d, 1);
  for_ranges(rows, d * 0.2, [&](i64 begin, i64 end) {
    for (i64 row = begin; row < end; ++row)
      for (i64 i = 0; i < d; ++i) a.get(2)[row * d + i] = a.get(0)[row * d + i] * a.get(1)[i];
  });
  return 0;
}

KERNEL(weighted_sum_rows) {  // x [R, D], index and weights [N, taps] -> [N, D]
  const i64 d = a.dim(0, 1), taps = a.dim(1, 1);
  const int32_t *index = a.get<int32_t>(1);
  for (i64 i = 0; i < a.size(1); ++i)
    if (index[i] < 0 || index[i] >= a.dim(0, 0)) return 1;
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

KERNEL(transpose) {  // x, [axis + 1 for each axis]
  const i64 rank = a.rank(0);
  std::vector<i64> shape(rank), strides(rank);
  for (i64 axis = 0; axis < rank; ++axis) {
    const i64 source = a.dim(1, axis) - 1;
    shape[axis] = a.dim(0, source);
    strides[axis] = a.size(0, source + 1);
  }
  float *y = a.get(2);
  copy_permuted(a.get(0), y, shape.data(), strides.data(), rank);
  return 0;
}

KERNEL(argmax) {  // x [..., V] -> int32 [...]
  const i64 size = a.dim(0, -1), rows = a.size(0) / std::max<i64>(size, 1);
  for (i64 row = 0; row < rows; ++row) {
    const float *x = a.get(0) + row * size;
    a.get<int32_t>(1)[row] = std::max_element(x, x + size) - x;
  }
  return 0;
}

KERNEL(draw) {  // logits [B, V], noise [B, 1], (temperature, top_k, top_p) -> int32 [B, 1]
  const float *settings = a.get(2);
  for (i64 row = 0; row < a.dim(0, 0); ++row)
    a.get<int32_t>(3)[row] = draw_one(a.get(0) + row * a.dim(0, 1), a.dim(0, 1), a.get(1)[row], settings[0],
                                      static_cast<i64>(settings[1]), settings[2]);
  return 0;
}

}  // namespace
