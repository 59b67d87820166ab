// Products and convolutions in which every output is summed in one fixed order, whatever stands beside it.
//
// All three are the same sum: rows of weights over (channel, tap), applied at every position of time (of the rows of a
// matrix, for `linear`). Positions lie side by side in vectors, so that each lane adds the same terms in the same order:
//
//     total = 0
//     for each block of 64 channels:  total += sum over (channel, tap) in this order, one multiply-add after the other
//     y = total + bias
//
// Tiles, threads and the vectors used at the end change which outputs are computed together, never this order.

#pragma GCC optimize("no-associative-math")  // the order is what this file is about

#include "aot.h"

namespace {

constexpr int kBlock = 64;  // channels; blocks keep long sums as exact as pairwise ones would
constexpr int kRows = 6;    // outputs by kVectors vectors of positions are kept in registers
#ifdef __AVX512F__
constexpr int kLanes = 16, kVectors = 4;
#else
constexpr int kLanes = 8, kVectors = 2;
#endif
constexpr int kWide = kLanes * kVectors;
constexpr i64 kPacked = 256 * 1024;  // floats of the inputs that a task keeps at hand
constexpr i64 kGroup = 4 * kRows;   // rows whose weights are put in order at a time, where they have to be
typedef float vec __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));

// y(row, t) = bias + sum over c, k of weight(row, c, k) * x(c, t + k * dilation - lead), zero where x has no such t.
struct Sum {
  i64 units;                      // independent sums (batch rows, groups), one behind the other in x and y
  i64 groups;                     // units that follow one another have the weights of groups that follow one another
  i64 channels, taps, dilation, lead;
  i64 rows, phases, positions;    // `phases` rows share a channel of y: row r, position t -> element t * phases + r % phases
  i64 length, limit;              // elements of a channel in x, in y
  i64 x_channel, x_step, y_channel, y_step;  // strides
};

// out [R][V * kLanes] for packed x [channels][span] and w [R] rows of channels * taps.
template <int R, int V>
void tile(const Sum &s, const float *x, i64 span, const float *w, float *out) {
  const i64 stride = s.channels * s.taps;
  vec total[R][V] = {};
  for (i64 block = 0; block < s.channels; block += kBlock) {
    vec sum[R][V] = {};
    for (i64 c = block; c < std::min(block + kBlock, s.channels); ++c)
      for (i64 k = 0; k < s.taps; ++k) {
        const float *from = x + c * span + k * s.dilation, *factor = w + c * s.taps + k;
        vec in[V];
        for (int v = 0; v < V; ++v) in[v] = *reinterpret_cast<const vec *>(from + v * kLanes);
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
          for (int v = 0; v < V; ++v) sum[r][v] += in[v] * factor[r * stride];
      }
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v) total[r][v] += sum[r][v];
  }
  std::memcpy(out, total, sizeof total);
}

using Tile = void (*)(const Sum &, const float *, i64, const float *, float *);

template <int V>
Tile tile_of(i64 rows) {
  static constexpr Tile tiles[kRows] = {tile<1, V>, tile<2, V>, tile<3, V>, tile<4, V>, tile<5, V>, tile<6, V>};
  return tiles[rows - 1];
}

// Copies `count` positions of every channel, from `first` on, into to [channels][span]; the rest of span is zero.
void pack(const Sum &s, const float *x, i64 first, i64 count, float *to, i64 span) {
  const i64 before = std::min(std::max<i64>(-first, 0), count);
  const i64 stop = std::max(before, std::min(count, s.length - first));
  if (s.x_step == 1) {
    for (i64 c = 0; c < s.channels; ++c) {
      float *row = to + c * span;
      std::fill(row, row + before, 0.f);
      std::copy(x + c * s.x_channel + first + before, x + c * s.x_channel + first + stop, row + before);
      std::fill(row + stop, row + span, 0.f);
    }
    return;
  }
  std::fill(to, to + s.channels * span, 0.f);
  for (i64 c = 0; c < s.channels; c += 16)  // in pieces that stay in the nearest cache while they change direction
    for (i64 i = before; i < stop; ++i)
      for (i64 j = c; j < std::min(c + 16, s.channels); ++j) to[j * span + i] = x[j * s.x_channel + (first + i) * s.x_step];
}

void store(const Sum &s, const float *from, i64 width, i64 row, i64 t, float bias, float *y) {
  float *channel = y + row / s.phases * s.y_channel;
  const i64 phase = row % s.phases;
  const i64 count = std::min({width, s.positions - t, (s.limit - phase + s.phases - 1) / s.phases - t});
  for (i64 i = 0; i < count; ++i) channel[((t + i) * s.phases + phase) * s.y_step] = from[i] + bias;
}

// weights(group, first row, rows, space) gives the weights of some rows, [rows][channels][taps], in place or in `space`.
template <class Weights>
void compute(const Sum &s, const float *x, const float *bias, float *y, const Weights &weights) {
  const i64 reach = (s.taps - 1) * s.dilation, room = kPacked / std::max<i64>(s.channels, 1) - reach;
  const i64 block = std::min(std::max<i64>(room / kWide, 1) * kWide, (s.positions + kLanes - 1) / kLanes * kLanes);
  if (s.units * s.rows * s.positions == 0) return;
  const i64 blocks = (s.positions + block - 1) / block, pieces = s.units * blocks;
  const double work = 0.03 * s.units * s.rows * std::max<i64>(s.positions, kLanes) * s.channels * s.taps + 200.0 * pieces;
  const i64 wanted = work < 2e5 ? 1 : (4 * available_threads() + pieces - 1) / pieces;  // tasks per piece of x
  const i64 chunk = std::max<i64>((s.rows + wanted - 1) / wanted + kGroup - 1, kGroup) / kGroup * kGroup;
  const i64 chunks = (s.rows + chunk - 1) / chunk, span = (block + kWide - 1) / kWide * kWide + reach;
  for_each(pieces * chunks, work, [&](i64 task) {
    const i64 piece = task / chunks, unit = piece / blocks, start = piece % blocks * block;
    const i64 stop = std::min(start + block, s.positions), first_row = task % chunks * chunk;
    std::unique_ptr<float[]> packed(new float[s.channels * span]), space;
    pack(s, x + unit * s.channels * s.length, start - s.lead, stop - start + reach, packed.get(), span);
    float out[kRows * kWide], *to = y + unit * (s.rows / s.phases) * s.limit;
    for (i64 group = first_row; group < std::min(first_row + chunk, s.rows); group += kGroup) {
      const i64 end = std::min({group + kGroup, first_row + chunk, s.rows});
      const float *w = weights(unit % s.groups, group, end - group, space);
      for (i64 row = group; row < end; row += kRows)
        for (i64 t = start; t < stop;) {
          const i64 rows = std::min<i64>(kRows, end - row), left = stop - t;
          const int vectors = left > kLanes * 2 ? kVectors : left > kLanes ? 2 : 1;
          const Tile run = vectors == 1 ? tile_of<1>(rows) : vectors == 2 ? tile_of<2>(rows) : tile_of<kVectors>(rows);
          run(s, packed.get() + t - start, span, w + (row - group) * s.channels * s.taps, out);
          for (i64 r = 0; r < rows; ++r) {
            const i64 channel = (unit % s.groups * s.rows + row + r) / s.phases;
            store(s, out + r * vectors * kLanes, vectors * kLanes, row + r, t, bias ? bias[channel] : 0.f, to);
          }
          t += vectors * kLanes;
        }
    }
  });
}

KERNEL(stable_linear) {  // x [..., K], weight [M, K], (bias [M]) -> [..., M]
  const i64 in = a.dim(1, 1), out = a.dim(1, 0), n = a.size(a.count - 1) / std::max<i64>(out, 1);
  const float *weight = a.get(1);
  const Sum s{1, 1, in, 1, 1, 0, out, 1, n, n, n, 1, in, 1, out};
  compute(s, a.get(0), a.count == 4 ? a.get(2) : nullptr, a.get(a.count - 1),
          [=](i64, i64 row, i64, auto &) { return weight + row * in; });
  return 0;
}

KERNEL(conv1d) {  // x [B, C, T], weight [M, C / groups, W], bias [M], [dilation, groups] -> [B, M, *]
  const i64 dilation = a.dim(3, 0), groups = a.dim(3, 1), rows = a.dim(1, 0) / groups;
  const i64 channels = a.dim(1, 1), taps = a.dim(1, 2), length = a.dim(0, 2), out = a.dim(4, 2);
  const float *weight = a.get(1);
  const Sum s{a.dim(0, 0) * groups, groups, channels, taps, dilation, 0, rows, 1, out, length, out, length, 1, out, 1};
  compute(s, a.get(0), a.get(2), a.get(4),
          [=](i64 group, i64 row, i64, auto &) { return weight + (group * rows + row) * channels * taps; });
  return 0;
}

// Output t * stride + p sums weight tap p + j * stride times input t - j over j: one row of weights per (channel, p).
KERNEL(conv_transpose1d) {  // x [B, C, T], weight [C, M, W], bias [M], [stride] -> [B, M, (T - 1) * stride + W]
  const i64 stride = a.dim(3, 0), channels = a.dim(1, 0), width = a.dim(1, 2), taps = (width + stride - 1) / stride;
  const i64 length = a.dim(0, 2), out = a.dim(4, 2), all = a.dim(1, 1) * width, rows = a.dim(1, 1) * stride;
  const float *weight = a.get(1);
  const Sum s{a.dim(0, 0), 1, channels, taps, 1, taps - 1, rows, stride, length + taps - 1, length, out, length, 1, out, 1};
  compute(s, a.get(0), a.get(2), a.get(4), [=](i64, i64 first, i64 count, std::unique_ptr<float[]> &space) {
    if (!space) space.reset(new float[kGroup * channels * taps]);
    const i64 begin = first / stride * width, end = std::min((first + count - 1) / stride * width + width, all);
    for (i64 block = 0; block < channels; block += kBlock) {  // few enough channels to stay in the nearest cache
      for (i64 c = block + kBlock; c < std::min(block + 2 * kBlock, channels); ++c)
        for (i64 i = begin; i < end; i += 16) __builtin_prefetch(weight + c * all + i);
      for (i64 row = 0; row < count; ++row)
        for (i64 j = 0; j < taps; ++j) {
          const i64 tap = (first + row) % stride + j * stride, from = (first + row) / stride * width + tap;
          float *to = space.get() + row * channels * taps + taps - 1 - j;
          for (i64 c = block; c < std::min(block + kBlock, channels); ++c)
            to[c * taps] = tap < width ? weight[c * all + from] : 0.f;
        }
    }
    return static_cast<const float *>(space.get());
  });
  return 0;
}

}  // namespace
