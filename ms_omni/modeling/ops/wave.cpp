// The vocoder's convolutions and snakes, alone and as whole residual units.
//
// A block of time is taken through all of a unit while it is in a near cache. Every output is summed in one order (see
// gemm.h), whatever the block, the thread and the piece of the stream that it is computed in.

#include "gemm.h"

namespace {


constexpr i64 kNear = 64 * 1024;  // floats of a unit's input that are kept at hand

inline auto snake(float alpha, float beta) {  // the exponentials of one channel, as a function of its elements
  const float turn = std::exp(alpha), height = 1.f / (std::exp(beta) + 1e-9f);
  return [=](vec x) { return fma(height, squared_sine(x * turn), x); };
}

KERNEL(snake_beta, "x[B, C, T] alpha[C] beta[C] -> y[B, C, T] | 0 < C") {
  const i64 channels = a['C'], length = a['T'];
  const float *x = a.get("x"), *alpha = a.get("alpha"), *beta = a.get("beta");
  float *y = a.get("y");
  for_ranges(a['B'] * channels, length * 0.4, [&](i64 begin, i64 end) {
    for (i64 row = begin; row < end; ++row) {
      const i64 c = row % channels;
      map(length, y + row * length, snake(alpha[c], beta[c]), x + row * length);
    }
  });
  return 0;
}

// c[r][t ..] = (begins ? start[r] : c) + sum over channels and taps of w[channel, tap][r] x, positions side by side.
template <int R, int V>
void dilated_tile(const float *w, const float *x, i64 span, i64 channels, i64 taps, i64 dilation, float *c, i64 width,
                  const float *start) {
  vec sum[R][V] = {};
  for (i64 channel = 0; channel < channels; ++channel, x += span) {
    const float *from = x;
    for (i64 tap = 0; tap < taps; ++tap, from += dilation, w += kRows) {
      vec in[V];
      MS_OMNI_UNROLL for (int v = 0; v < V; ++v) in[v] = load(from + v * kLanes);
      MS_OMNI_UNROLL for (int r = 0; r < R; ++r)
        MS_OMNI_UNROLL for (int v = 0; v < V; ++v) sum[r][v] = fma(w[r], in[v], sum[r][v]);
    }
  }
  MS_OMNI_UNROLL for (int r = 0; r < R; ++r)
    MS_OMNI_UNROLL for (int v = 0; v < V; ++v) {
      float *to = c + r * width + v * kLanes;
      store(to, (start ? all(start[r]) : load(to)) + sum[r][v]);
    }
}

using DilatedTile = void (*)(const float *, const float *, i64, i64, i64, i64, float *, i64, const float *);

template <int V, int... R>
DilatedTile dilated_tile_of(i64 rows, std::integer_sequence<int, R...>) {
  static constexpr DilatedTile tiles[] = {dilated_tile<R + 1, V>...};
  return tiles[rows - 1];
}

// y [M][width] for `count` positions of x [C][span], in whole vectors; w [M][C * taps], packed where it is used.
void convolve(const float *x, i64 span, i64 channels, const float *w, const float *bias, i64 out, i64 taps, i64 dilation,
              float *y, i64 width, i64 count) {
  constexpr auto all_rows = std::make_integer_sequence<int, kRows>();
  const i64 group = std::max<i64>(kSum / taps, 1);  // channels that are summed before they are added to the rest
  Space<> packed(kRows * group * taps + kLanes);
  for (i64 row = 0; row < out; row += kRows) {
    const i64 rows = std::min<i64>(kRows, out - row);
    const DilatedTile wide = dilated_tile_of<kAcross>(rows, all_rows), narrow = dilated_tile_of<1>(rows, all_rows);
    for (i64 c = 0; c < channels; c += group) {
      const i64 some = std::min(group, channels - c);
      const float *from[kRows];
      for (i64 r = 0; r < rows; ++r) from[r] = w + ((row + r) * channels + c) * taps;
      pack_block(from, rows, some * taps, packed.get());
      for (i64 t = 0; t < count;) {
        const bool whole = count - t > kLanes;
        (whole ? wide : narrow)(packed.get(), x + c * span + t, span, some, taps, dilation, y + row * width + t, width,
                                c ? nullptr : bias + row);
        t += whole ? kWide : kLanes;
      }
    }
  }
}

// settings: the lengths stand for the dilation d and the number of groups g.
KERNEL(conv1d, "x[B, C, T] weight[M, c, W] bias[M] settings:i[d, g] -> y[B, M, T - (W - 1) * d] | "
               "0 < c, 0 < M, 0 < W, 0 < d, 0 < g, c * g = C, M / g * g = M") {
  const i64 dilation = a['d'], groups = a['g'], outputs = a['M'] / groups, channels = a['c'], taps = a['W'], length = a['T'];
  const i64 units = a['B'] * groups, reach = (taps - 1) * dilation, positions = length - reach;
  const float *sound = a.get("x"), *weight = a.get("weight"), *bias = a.get("bias");
  float *y = a.get("y");
  const i64 block = std::max<i64>(std::min(kNear / channels, positions) / kWide * kWide, kWide);
  const i64 blocks = (positions + block - 1) / block, span = reach + block;
  const i64 shares = std::max<i64>(units * blocks, 1);
  const i64 wanted = (4 * available_threads() + shares - 1) / shares;  // pieces of the outputs
  const i64 pieces = std::max<i64>(1, std::min(wanted, outputs / (8 * kRows)));
  for_each(units * blocks * pieces, 0.007 * units * outputs * positions * channels * taps, [&](i64 task) {
    const i64 unit = task / (blocks * pieces), start = task / pieces % blocks * block, group = unit % groups;
    const i64 first = outputs * (task % pieces) / pieces, count = outputs * (task % pieces + 1) / pieces - first;
    const i64 wide = std::min(block, positions - start), whole = (wide + kWide - 1) / kWide * kWide;
    const float *x = sound + unit * channels * length + start;
    Space<> in(channels * span), out(count * block);
    for (i64 c = 0; c < channels; ++c) {
      float *to = std::copy(x + c * length, x + c * length + wide + reach, in.get() + c * span);
      std::fill(to, in.get() + c * span + reach + whole, 0.f);
    }
    const i64 row = group * outputs + first;
    convolve(in.get(), span, channels, weight + row * channels * taps, bias + row, count, taps, dilation, out.get(), block, wide);
    for (i64 m = 0; m < count; ++m)
      std::copy(out.get() + m * block, out.get() + m * block + wide, y + (unit * outputs + first + m) * positions + start);
  });
  return 0;
}

// x + conv(snake(conv(snake(before and x)))); the length of settings stands for the dilation d.
KERNEL(residual_unit, "x[B, C, T] before[B, C, R] alpha[C] beta[C] weight[C, C, W] bias[C] last_alpha[C] last_beta[C] "
                      "last_weight[C, C, 1] last_bias[C] settings:i[d] -> y[B, C, T] | 0 < C, 0 < W, 0 < d, (W - 1) * d = R") {
  const i64 channels = a['C'], length = a['T'], reach = a['R'], taps = a['W'], dilation = a['d'];
  const float *sound = a.get("x"), *before_it = a.get("before"), *alpha = a.get("alpha"), *beta = a.get("beta");
  const float *weight = a.get("weight"), *bias = a.get("bias"), *last_alpha = a.get("last_alpha"), *last_beta = a.get("last_beta");
  const float *last_weight = a.get("last_weight"), *last_bias = a.get("last_bias");
  float *results = a.get("y");
  const i64 fair = (length + available_threads() - 1) / available_threads();
  const i64 most = std::min(kNear / channels, fair) / kWide * kWide, block = std::max<i64>(most, kWide);
  const i64 blocks = (length + block - 1) / block, span = reach + block;
  for_each(a['B'] * blocks, 0.007 * a.size("x") * channels * (taps + 1), [&](i64 task) {
    const i64 unit = task / blocks, start = task % blocks * block, count = std::min(block, length - start);
    const i64 whole = (count + kWide - 1) / kWide * kWide;
    const float *x = sound + unit * channels * length, *before = before_it + unit * channels * reach;
    Space<> in(channels * span), hidden(channels * block), out(channels * block);
    for (i64 c = 0; c < channels; ++c) {
      float *to = in.get() + c * span;
      const i64 old = std::max<i64>(reach - start, 0);  // of the positions start - reach .. start + count
      std::copy(before + c * reach + reach - old, before + (c + 1) * reach, to);
      std::copy(x + c * length + start - (reach - old), x + c * length + start + count, to + old);
      map(reach + count, to, snake(alpha[c], beta[c]), to);
      std::fill(to + reach + count, to + reach + whole, 0.f);
    }
    convolve(in.get(), span, channels, weight, bias, channels, taps, dilation, hidden.get(), block, count);
    for (i64 c = 0; c < channels; ++c) {
      float *row = hidden.get() + c * block;
      std::fill(row + count, row + whole, 0.f);
      map(count, row, snake(last_alpha[c], last_beta[c]), row);
    }
    convolve(hidden.get(), block, channels, last_weight, last_bias, channels, 1, 1, out.get(), block, count);
    for (i64 c = 0; c < channels; ++c) {
      const float *from = x + c * length + start, *change = out.get() + c * block;
      float *y = results + (unit * channels + c) * length + start;
      for (i64 t = 0; t < count; ++t) y[t] = from[t] + change[t];
    }
  });
  return 0;
}

// Output t * stride + p sums what inputs t, t - 1, ... give through the taps p, p + stride, ...: first the products
// z[t][m, tap] of every input with every tap, as one matrix product, then their sums. `trim` outputs are left out at both
// ends. settings: the lengths stand for the stride s and trim + 1.
KERNEL(conv_transpose1d, "x[B, C, T] weight[C, M, W] bias[M] settings:i[s, t] -> y[B, M, (T - 1) * s + W - 2 * (t - 1)] | "
                         "0 < T, 0 < M, 0 < W, 0 < s, 0 < t") {
  const i64 channels = a['C'], length = a['T'], outputs = a['M'], width = a['W'], limit = a.dim("y", 2);
  const i64 stride = a['s'], trim = a['t'] - 1, older = (width - 1) / stride, times = length + older;
  const float *sound = a.get("x"), *weight = a.get("weight"), *bias = a.get("bias");
  float *results = a.get("y");
  constexpr i64 block = 96 / kRows * kRows;
  const i64 fair = std::max<i64>(outputs / (4 * available_threads()), 1);  // outputs whose columns fill panels together
  const i64 group = std::max<i64>(std::min(4 * kWide / width, fair), 1), groups = (outputs + group - 1) / group;
  const i64 rows = times + older;
  const i64 wanted = (4 * available_threads() + groups - 1) / groups;
  const i64 pieces = std::max<i64>(1, std::min(wanted, times / block));
  std::vector<Packed> packed;  // row r of A is input r - older of all channels, zero where there is none
  for (i64 unit = 0; unit < a['B']; ++unit) packed.emplace_back(rows, channels);
  const i64 blocks = (rows + kRows - 1) / kRows;
  for_each(a['B'] * blocks, 0.3 * a['B'] * rows * channels, [&](i64 task) {
    const i64 row = task % blocks * kRows, low = std::max<i64>(row - older, 0), high = std::min(row - older + kRows, length);
    const float *x = sound + task / blocks * channels * length;
    float *to = packed[task / blocks].block(row);
    std::fill(to, to + kRows * channels, 0.f);
    for (i64 c = 0; c < channels && low < high; ++c)
      std::copy(x + c * length + low, x + c * length + high, to + c * kRows + low - (row - older));
  });
  for_each(a['B'] * groups * pieces, 0.007 * a['B'] * times * outputs * width * channels, [&](i64 task) {
    const i64 unit = task / (groups * pieces), first = task / pieces % groups * group, count = std::min(group, outputs - first);
    const auto border = [&](i64 piece) { return std::min(times * piece / pieces / kRows * kRows, times); };
    const i64 begin = border(task % pieces), end = task % pieces + 1 == pieces ? times : border(task % pieces + 1);
    const i64 columns = count * width, padded = (columns + kWide - 1) / kWide * kWide;
    Space<> panels(channels * padded), z((older + block) * padded);
    pack_columns(weight + first * width, outputs * width, columns, channels, panels.get(), kWide, channels * kWide);
    std::vector<float *> to(older + block);
    for (i64 i = 0; i < older + block; ++i) to[i] = z.get() + i * padded;
    for (i64 row = begin; row < end + older; row += block) {  // z of the `older` rows before is kept
      const i64 some = std::min(block, end + older - row);
      for (i64 i = 0; i < channels; i += kSum)
        for (i64 column = 0; column < columns; column += kWide) {
          const i64 wide = std::min<i64>(kWide, columns - column), steps = std::min(kSum, channels - i);
          const float *panel = panels.get() + column * channels + i * kWide;
          for (i64 r = 0; r < some; r += kRows)
            tile_of<1, kRows>(std::min<i64>(kRows, some - r), wide)(packed[unit].at(row + r, i), panel, kWide, steps,
                                                                  to.data() + older + r, column, wide, i == 0, nullptr);
        }
      for (i64 m = 0; m < count; ++m)
        for (i64 i = std::max<i64>(begin + older - row, 0); i < some; ++i) {
          const i64 at = (row + i - older) * stride - trim;  // of the first of `stride` outputs
          const i64 low = std::max<i64>(-at, 0), high = std::min(stride, limit - at);
          float *y = results + (unit * outputs + first + m) * limit + at;
          for (i64 p = low; p < high; ++p) y[p] = bias[first + m];
          for (i64 j = 0; j * stride < width; ++j) {
            const float *from = to[older + i - j] + m * width + j * stride;
            const i64 stop = std::min(high, width - j * stride);
            for (i64 p = low; p < stop; ++p) y[p] += from[p];
          }
        }
      std::copy(to[some], to[some] + older * padded, z.get());
    }
  });
  return 0;
}

}  // namespace
