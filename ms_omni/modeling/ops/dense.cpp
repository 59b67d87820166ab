// The large products: many rows through a linear layer or through experts, convolutions of pictures.

#include "in_order.h"
#include "numeric.h"

namespace {

using Space = std::unique_ptr<float[]>;
using Sources = std::vector<const float *>;
using Targets = std::vector<float *>;

// Pieces that the rows of a product are cut into, so that `panels` of columns keep all threads busy.
inline i64 row_pieces(i64 rows, i64 panels) {
  const i64 wanted = (4 * available_threads() + panels - 1) / std::max<i64>(panels, 1);
  return std::max<i64>(1, std::min(wanted, rows / (8 * kRows)));
}

constexpr i64 kUnpacked = 2;  // rows for which packing a weight takes longer than it saves

// V vectors of columns from `column` on, for R rows: the sums of `multiply`, with the weights turned in registers.
template <int R, int V>
void unpacked_tile(const float *const *x, const float *weight, i64 in, float *const *y, i64 column, const float *bias) {
  for (i64 begin = 0; begin < in; begin += kSum) {
    const i64 end = std::min(begin + kSum, in);
    vec sum[R][V] = {};
    i64 i = begin;
    for (; i + kLanes <= end; i += kLanes)
      MS_OMNI_UNROLL for (int v = 0; v < V; ++v) {
        vec t[kLanes];
        load_turned(weight + (column + v * kLanes) * in + i, in, t);
        MS_OMNI_UNROLL for (int s = 0; s < kLanes; ++s)
          MS_OMNI_UNROLL for (int r = 0; r < R; ++r) sum[r][v] = fma(x[r][i + s], t[s], sum[r][v]);
      }
    for (; i < end; ++i)
      for (int v = 0; v < V; ++v) {
        float step[kLanes];
        for (int lane = 0; lane < kLanes; ++lane) step[lane] = weight[(column + v * kLanes + lane) * in + i];
        for (int r = 0; r < R; ++r) sum[r][v] = fma(x[r][i], load(step), sum[r][v]);
      }
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v) {
        const i64 at = column + v * kLanes;
        const vec old = begin ? load(y[r] + at) : bias ? load(bias + at) : vec{};
        store(y[r] + at, old + sum[r][v]);
      }
  }
}

// Whole vectors of columns, for few rows.
template <int R>
void unpacked(const float *const *x, const float *weight, i64 in, float *const *y, i64 column, i64 columns, const float *bias) {
  const bool crowded = in % 1024 == 0;  // all rows of the weight then share a few places of the first cache
  while (columns >= 2 * kLanes && !crowded) {
    unpacked_tile<R, 2>(x, weight, in, y, column, bias);
    column += 2 * kLanes, columns -= 2 * kLanes;
  }
  for (; columns > 0; column += kLanes, columns -= kLanes) unpacked_tile<R, 1>(x, weight, in, y, column, bias);
}

KERNEL(linear, "x[*, K] weight[M, K] bias?[M] -> y[*, M] | 0 < K") {
  const i64 in = a['K'], out = a['M'], rows = a.rows();
  const float *weight = a.get("weight"), *bias = a.get("bias");
  Sources x(rows);
  Targets y(rows);
  for (i64 row = 0; row < rows; ++row) x[row] = a.get("x") + row * in, y[row] = a.get("y") + row * out;
  const i64 panels = (out + kWide - 1) / kWide, pieces = row_pieces(rows, panels);
  for_each(panels * pieces, 0.006 * rows * in * out, [&](i64 task) {
    const i64 column = task / pieces * kWide, columns = std::min<i64>(kWide, out - column);
    if (0 < rows && rows <= kUnpacked && columns % kLanes == 0)
      return (rows == 1 ? unpacked<1> : unpacked<2>)(x.data(), weight, in, y.data(), column, columns, bias);
    const i64 begin = rows * (task % pieces) / pieces, end = rows * (task % pieces + 1) / pieces;
    Space panel(new float[kDepth * kWide]);
    for (i64 i = 0; i < in; i += kDepth) {
      const i64 k = std::min(kDepth, in - i);
      pack_rows(weight + column * in + i, in, columns, k, panel.get(), kWide);
      multiply(x.data() + begin, end - begin, i, panel.get(), kWide, k, y.data() + begin, column, columns,
               bias ? bias + column : nullptr);
    }
  });
  return 0;
}

// ---- experts -------------------------------------------------------------------------------------------------------

constexpr i64 kFew = 2;  // rows for which a matrix passes by once; with more it is packed and kept near

// c[row] = a[row] B for a whole B `[k, n]`.
void product(const Sources &a, const float *b, const Targets &c, i64 k, i64 n, float *panel) {
  if (static_cast<i64>(a.size()) <= kFew) return product_in_order(a.data(), a.size(), k, b, n, c.data(), n);
  for (i64 column = 0; column < n; column += kWide) {
    const i64 columns = std::min<i64>(kWide, n - column);
    for (i64 i = 0; i < k; i += kDepth) {
      const float *from = b + i * n + column;
      const i64 steps = std::min(kDepth, k - i);
      const bool direct = a.size() <= 2 * kRows && columns % kLanes == 0;  // read as often as packing would
      if (!direct) pack_columns(from, n, columns, steps, panel, kWide);
      multiply(a.data(), a.size(), i, direct ? from : panel, direct ? n : kWide, steps, c.data(), column, columns);
    }
  }
}

// first: the number of the first expert that is here, or -1: all are.
KERNEL(experts, "x[N, D] gate_up[E, D, 2*I] down[E, I, D] weights[N, k] indices:i[N, k] first:i[1] -> y[N, D]") {
  const i64 n = a['N'], k = a['k'], d = a['D'], inner = a['I'], count = a['E'], pairs = n * k;
  const float *x = a.get("x"), *gate_up = a.get("gate_up"), *down = a.get("down"), *weights = a.get("weights");
  const int32_t *indices = a.get<int32_t>("indices"), given = *a.get<int32_t>("first"), offset = std::max(given, 0);
  float *sums = a.get("y");
  const auto here = [&](i64 pair) { return indices[pair] >= offset && indices[pair] - offset < count; };
  std::vector<i64> first(count + 1), order(pairs);  // pairs (token, place) sorted by expert, those that are here
  for (i64 pair = 0; pair < pairs; ++pair) {
    if (indices[pair] < 0 || (given < 0 && !here(pair)))
      return refuse("experts: indices hold " + std::to_string(indices[pair]) + ", but there are " + std::to_string(count) +
                    " experts");
    if (here(pair)) ++first[indices[pair] - offset + 1];
  }
  for (i64 e = 0; e < count; ++e) first[e + 1] += first[e];
  std::vector<i64> free(first.begin(), first.end() - 1);
  for (i64 pair = 0; pair < pairs; ++pair)
    if (here(pair)) order[free[indices[pair] - offset]++] = pair;

  constexpr i64 batch = 32 * kRows;
  struct Task { i64 expert, begin, end; };
  std::vector<Task> tasks;
  for (i64 e = 0; e < count; ++e)
    for (i64 begin = first[e]; begin < first[e + 1]; begin += batch)
      tasks.push_back({e, begin, std::min(begin + batch, first[e + 1])});
  std::stable_sort(tasks.begin(), tasks.end(), [](const Task &left, const Task &right) {
    return left.end - left.begin > right.end - right.begin;  // the largest first: no thread is left with one at the end
  });
  Space results(new float[pairs * d]);
  for_each(tasks.size(), 3.0 * d * inner * (tasks.size() * 0.1 + first[count] * 0.01), [&](i64 index) {
    const Task task = tasks[index];
    const i64 rows = task.end - task.begin;
    Space panel(new float[kDepth * kWide]), hidden(new float[rows * 2 * inner]);
    Sources from(rows);
    Targets to(rows);
    for (i64 row = 0; row < rows; ++row) {
      from[row] = x + order[task.begin + row] / k * d;
      to[row] = hidden.get() + row * 2 * inner;
    }
    product(from, gate_up + task.expert * d * 2 * inner, to, d, 2 * inner, panel.get());
    for (i64 row = 0; row < rows; ++row) {
      float *gate = to[row], *up = gate + inner;
      activate(gate, up, gate, inner);
      from[row] = gate;
      to[row] = results.get() + order[task.begin + row] * d;
    }
    product(from, down + task.expert * inner * d, to, inner, d, panel.get());
  });
  for_ranges(n, k * d * 0.2, [&](i64 begin, i64 end) {
    for (i64 token = begin; token < end; ++token) {
      float *y = sums + token * d;
      std::fill(y, y + d, 0.f);
      for (i64 pair = token * k; pair < (token + 1) * k; ++pair) {
        if (!here(pair)) continue;
        add_scaled(y, results.get() + pair * d, weights[pair], d);
      }
    }
  });
  return 0;
}

// ---- convolution ---------------------------------------------------------------------------------------------------

// panel[(c, h, w)][j]: what output position first + j of one picture sees through tap (h, w) of channel c.
struct Picture {
  i64 channels, height, width, taps_h, taps_w, stride, padding, columns;

  void pack(const float *x, i64 first, i64 count, i64 step, i64 steps, float *panel) const {
    for (i64 i = step; i < step + steps; ++i, panel += kWide) {
      const i64 c = i / (taps_h * taps_w), h = i / taps_w % taps_h - padding, w = i % taps_w - padding;
      const float *plane = x + c * height * width;
      std::fill(panel, panel + kWide, 0.f);
      for (i64 j = 0, row = first / columns, column = first % columns; j < count; ++row, column = 0) {
        const i64 stop = std::min(columns, column + count - j), y = row * stride + h;
        if (y >= 0 && y < height) {
          const i64 from = std::max(column, (-w + stride - 1) / stride), last = std::min(stop, (width - w + stride - 1) / stride);
          const float *source = plane + y * width + w;
          for (i64 at = from; at < last; ++at) panel[j + at - column] = source[at * stride];
        }
        j += stop - column;
      }
    }
  }
};

// settings: the lengths stand for the stride s and the padding + 1.
KERNEL(conv2d, "x[B, C, H, W] weight[M, C, h, w] bias[M] settings:i[s, p] -> "
               "y[B, M, (H + 2*(p - 1) - h) / s + 1, (W + 2*(p - 1) - w) / s + 1] | 0 < s, 0 < p, 0 < h, 0 < w") {
  const i64 out = a['M'], steps = a['C'] * a['h'] * a['w'], positions = a.size("y", 2), size = a.size("x", 1);
  const Picture picture{a['C'], a['H'], a['W'], a['h'], a['w'], a['s'], a['p'] - 1, a.dim("y", 3)};
  const float *x = a.get("x"), *bias = a.get("bias");
  float *results = a.get("y");
  Sources weight(out);
  for (i64 m = 0; m < out; ++m) weight[m] = a.get("weight") + m * steps;
  const i64 panels = (positions + kWide - 1) / kWide;
  for_each(a['B'] * panels, 0.006 * a.size("y") * steps, [&](i64 task) {
    const i64 unit = task / panels, first = task % panels * kWide, count = std::min<i64>(kWide, positions - first);
    Targets y(out);
    for (i64 m = 0; m < out; ++m) y[m] = results + (unit * out + m) * positions;
    Space panel(new float[kDepth * kWide]);
    for (i64 i = 0; i < steps; i += kDepth) {
      const i64 k = std::min(kDepth, steps - i);
      picture.pack(x + unit * size, first, count, i, k, panel.get());
      multiply(weight.data(), out, i, panel.get(), kWide, k, y.data(), first, count);
    }
    for (i64 m = 0; m < out; ++m)
      for (i64 j = first; j < first + count; ++j) y[m][j] += bias[m];
  });
  return 0;
}

}  // namespace
