// The large products: many rows through a linear layer or through experts, look-ups, convolutions of pictures.

#include "dense.h"

namespace {

// How a matrix is stored, of the arguments of a kernel.
i64 kind(const Arguments &a, const char *name) {
  constexpr const char *types[] = {"float32", "bfloat16", "float16", "int8", "uint8"};
  for (i64 kind = 0;; ++kind)
    if (!std::strcmp(a.type(name), types[kind])) return kind;
}

Matrix plain(const Arguments &a, const char *name) { return {a.get<void>(name), nullptr, nullptr, kind(a, name), 0, 0, 0}; }

bool none(const Arguments &a, const char *offsets) { return a.rank(offsets) == 1 && a.dim(offsets, 0) == 1; }

// codes `[.., out, in]`, in halves where they have 4 bits, scales `[.., out, groups]`, offsets as well, or `[1]`: none.
Matrix coded(const Arguments &a, const char *codes, const char *scales, const char *offsets, i64 in, i64 groups) {
  const bool shifted = !none(a, offsets);
  return {a.get<void>(codes), a.get<void>(scales), shifted ? a.get<void>(offsets) : nullptr, kind(a, codes), kind(a, scales),
          kind(a, offsets), in / groups};
}

// Why they do not fit one another; empty: they do.
std::string unfit(const Arguments &a, const char *codes, const char *scales, const char *offsets, i64 in) {
  const int last = a.rank(codes) - 1;
  const i64 bits = kind(a, codes) == kInt4 ? 4 : 8, groups = a.dim(scales, last), group = groups > 0 ? in / groups : 0;
  const auto wrong = [&](const char *name, const std::string &expected) {
    std::string found;
    for (int axis = 0; axis < a.rank(name); ++axis) found += (axis ? ", " : "") + std::to_string(a.dim(name, axis));
    return std::string(name) + " are " + a.type(name) + " [" + found + "], expected " + expected + " beside " +
           std::to_string(in) + " inputs";
  };
  if (a.dim(codes, last) != in * bits / 8) return wrong(codes, std::to_string(in * bits / 8) + " bytes a row");
  if (groups < 1 || in % groups || (bits == 4 && group % kBlock))
    return wrong(scales, bits == 4 ? "whole groups of a multiple of 32" : "whole groups");
  if (!none(a, offsets) && !a.same(offsets, scales)) return wrong(offsets, "the shape of the scales");
  return "";
}

void product(const Arguments &a, const Matrix &weight) {
  const i64 rows = a.rows(), in = a['K'], out = a['M'];
  ThreadPool pool(product_work(rows, in, out));
  product(pool, weight, a.get("bias"), a.get("x"), rows, in, out, a.get("y"), out);
}

KERNEL(linear, "x[*, K] weight:w[M, K] bias?[M] -> y[*, M] | 0 < K") {
  product(a, plain(a, "weight"));
  return 0;
}

KERNEL(linear_coded, "x[*, K] codes:q[M, c] scales:s[M, G] offsets:s[...] bias?[M] -> y[*, M] | 0 < K") {
  const std::string wrong = unfit(a, "codes", "scales", "offsets", a['K']);
  if (!wrong.empty()) return refuse("linear_coded: " + wrong);
  product(a, coded(a, "codes", "scales", "offsets", a['K'], a['G']));
  return 0;
}

// ---- look-ups ------------------------------------------------------------------------------------------------------

// y[i] = row ids[i] - first of the table, zeros where it has none and `first` is given (-1: it is not).
int look_up(const Arguments &a, const char *name, const Matrix &table, i64 rows, i64 width) {
  const int32_t *ids = a.get<int32_t>("ids"), given = *a.get<int32_t>("first");
  const i64 count = a.rows(), first = std::max(given, 0);
  float *y = a.get("y");
  for (i64 i = 0; i < count && given < 0; ++i)
    if (ids[i] < 0 || ids[i] >= rows)
      return refuse(std::string(name) + ": ids hold " + std::to_string(ids[i]) + ", but there are " + std::to_string(rows) +
                    " rows");
  for_ranges(count, width * 0.5, [&](i64 begin, i64 end) {
    for (i64 i = begin; i < end; ++i) {
      const i64 row = ids[i] - first;
      if (0 <= row && row < rows) widen_row(table, width, row, y + i * width);
      else std::fill_n(y + i * width, width, 0.f);
    }
  });
  return 0;
}

KERNEL(embedding, "ids:i[*] table:w[V, D] first:i[1] -> y[*, D]") {
  return look_up(a, "embedding", plain(a, "table"), a['V'], a['D']);
}

KERNEL(embedding_coded, "ids:i[*] codes:q[V, c] scales:s[V, G] offsets:s[...] width:i[D] first:i[1] -> y[*, D]") {
  const std::string wrong = unfit(a, "codes", "scales", "offsets", a['D']);
  if (!wrong.empty()) return refuse("embedding_coded: " + wrong);
  return look_up(a, "embedding_coded", coded(a, "codes", "scales", "offsets", a['D'], a['G']), a['V'], a['D']);
}

// ---- experts -------------------------------------------------------------------------------------------------------

int mix(const Arguments &a, const char *name, const Matrix &gate_up, const Matrix &down, i64 inner) {
  const Mixture mixture{gate_up, down, a['D'], inner, a['E'], a['k'], *a.get<int32_t>("first")};
  const int32_t *indices = a.get<int32_t>("indices");
  const std::string wrong = mixture.unfit(name, indices, a['N'] * a['k']);
  if (!wrong.empty()) return refuse(wrong);
  ThreadPool pool(mixture.work(a['N']));
  mixture.run(pool, a.get("x"), a['N'], a.get("weights"), indices, a.get("y"));
  return 0;
}

// first: the number of the first expert that is here, or -1: all are.
KERNEL(experts, "x[N, D] gate_up:w[E, D, 2*I] down:w[E, I, D] weights[N, k] indices:i[N, k] first:i[1] -> y[N, D]") {
  return mix(a, "experts", plain(a, "gate_up"), plain(a, "down"), a['I']);
}

KERNEL(experts_coded, "x[N, D] gate_up:q[E, 2*I, c] gate_up_scales:s[E, 2*I, G] gate_up_offsets:s[...] down:q[E, D, d] "
                      "down_scales:s[E, D, g] down_offsets:s[...] weights[N, k] indices:i[N, k] first:i[1] -> y[N, D]") {
  const i64 inner = a['I'];
  std::string wrong = unfit(a, "gate_up", "gate_up_scales", "gate_up_offsets", a['D']);
  if (wrong.empty()) wrong = unfit(a, "down", "down_scales", "down_offsets", inner);
  if (!wrong.empty()) return refuse("experts_coded: " + wrong);
  return mix(a, "experts_coded", coded(a, "gate_up", "gate_up_scales", "gate_up_offsets", a['D'], a['G']),
                     coded(a, "down", "down_scales", "down_offsets", inner, a['g']), inner);
}

// ---- convolution ---------------------------------------------------------------------------------------------------

// The output positions of a convolution with stride s see every s-th column of a picture. So that they lie side by side, the columns of
// a channel `[height, width]` are laid out as s planes, each with its share of the columns, inside of the zeros around:
//
//     plane[w % s][h][w / s] = x[h - padding][w - padding]
struct Picture {
  i64 channels, height, width, taps_h, taps_w, stride, padding, rows, columns;  // rows, columns: of output positions

  i64 plane_rows() const { return height + 2 * padding; }
  i64 plane_columns() const { return (width + 2 * padding + stride - 1) / stride; }
  i64 channel_size() const { return stride * plane_rows() * plane_columns(); }

  void lay_out(const float *x, float *planes) const {
    const i64 across = plane_columns();
    std::fill_n(planes, channel_size(), 0.f);
    for (i64 h = 0; h < height; ++h)
      for (i64 first = 0; first < stride; ++first) {  // of the columns of a plane, inside of the zeros
        const i64 w = first + padding, from = w % stride * plane_rows() + h + padding;
        float *to = planes + from * across + w / stride;
        for (i64 column = first; column < width; column += stride) *to++ = x[h * width + column];
      }
  }

  // Where tap (c, h, w), one behind the other, finds what output position 0 sees.
  std::vector<i64> taps() const {
    std::vector<i64> offsets;
    for (i64 c = 0; c < channels; ++c)
      for (i64 h = 0; h < taps_h; ++h)
        for (i64 w = 0; w < taps_w; ++w)
          offsets.push_back(c * channel_size() + (w % stride * plane_rows() + h) * plane_columns() + w / stride);
    return offsets;
  }

  // panel[tap][j]: what output position first + j sees through a tap, kWide positions for each of `steps` taps. Behind `count`
  // positions anything may lie; behind the planes and the panel there is room for a vector.
  void pack(const float *planes, i64 first, i64 count, const i64 *taps, i64 steps, float *panel) const {
    i64 from[kWide], to[kWide], copies = 0;  // of a vector each; what one has too much is written over by the next
    for (i64 j = 0, row = first / columns, column = first % columns, n; j < count; j += n, ++row, column = 0) {
      n = std::min(columns - column, count - j);
      for (i64 at = 0; at < n; at += kLanes, ++copies) {
        from[copies] = row * stride * plane_columns() + column + at;
        to[copies] = j + at;
      }
    }
    for (i64 i = 0; i < steps; ++i, panel += kWide) {
      const float *plane = planes + taps[i];
      for (i64 copy = 0; copy < copies; ++copy) store(panel + to[copy], load(plane + from[copy]));
    }
  }
};

constexpr i64 kPlanes = 4 << 20;  // floats of the pictures that are laid out at a time

// settings: the lengths stand for the stride s and the padding + 1.
KERNEL(conv2d, "x[B, C, H, W] weight[M, C, h, w] bias[M] settings:i[s, p, g] -> "
               "y[B, M, (H + 2*(p - 1) - h) / s + 1, (W + 2*(p - 1) - w) / s + 1] | 0 < s, 0 < p, 0 < g, 0 < h, 0 < w") {
  const i64 out = a['M'], steps = a['C'] * a['h'] * a['w'], positions = a.size("y", 2), size = a['H'] * a['W'];
  const Picture picture{a['C'], a['H'], a['W'], a['h'], a['w'], a['s'], a['p'] - 1, a.dim("y", 2), a.dim("y", 3)};
  const float *x = a.get("x"), *bias = a.get("bias");
  const bool activated = a['g'] > 1;  // by gelu
  float *results = a.get("y");
  Sources weight(out);
  for (i64 m = 0; m < out; ++m) weight[m] = a.get("weight") + m * steps;
  Packed packed(out, steps);
  packed.pack(weight.data(), out, steps);
  ThreadPool pool(0.012 * a.size("y") * steps);
  const i64 panels = (positions + kWide - 1) / kWide, fair = a['B'] * panels / (4 * pool.size());
  const i64 together = std::max<i64>(1, std::min(kTogether, fair));
  const i64 groups = (panels + together - 1) / together, picture_size = picture.channels * picture.channel_size();
  const i64 units = std::max<i64>(1, std::min(a['B'], kPlanes / std::max<i64>(picture_size, 1)));
  const std::vector<i64> taps = picture.taps();
  Space<> planes(units * picture_size + kLanes);
  for (i64 begin = 0; begin < a['B']; begin += units) {
    const i64 count = std::min(units, a['B'] - begin);
    pool.run_ranges(count * picture.channels, picture.channel_size() * 1.0, [&](i64 first, i64 end) {
      for (i64 i = first; i < end; ++i)
        picture.lay_out(x + (begin * picture.channels + i) * size, planes.get() + i * picture.channel_size());
    });
    pool.run(count * groups, [&](i64 task) {
      const i64 unit = task / groups, first = task % groups * together * kWide;
      const i64 columns = std::min<i64>(together * kWide, positions - first);
      Targets y(out);
      for (i64 m = 0; m < out; ++m) y[m] = results + ((begin + unit) * out + m) * positions;
      Space<> space(together * kWide * kSum + kLanes);
      const auto pack = [&](i64 i, i64 k, float *panels) {
        for (i64 at = 0; at < columns; at += kWide)
          picture.pack(planes.get() + unit * picture_size, first + at, std::min<i64>(kWide, columns - at), taps.data() + i, k, panels + at * kSum);
      };
      multiply(packed, 0, out, steps, y.data(), first, columns, nullptr, pack, space.get());
      for (i64 m = 0; m < out; ++m) {
        float *made = y[m] + first;
        map(columns, made, [shift = bias[m]](vec x) { return x + shift; }, made);
        if (activated) map(columns, made, [](vec x) { return gaussian_linear(x); }, made);
      }
    });
  }
  return 0;
}

}  // namespace
