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

// A convolution of pictures `[C, H, W]`, whose weights are packed once; activated: followed by gelu.
class Convolution {
 public:
  Convolution(const Picture &picture, i64 out, const float *weight, const float *bias, bool activated)
      : picture_(picture), out_(out), steps_(picture.channels * picture.taps_h * picture.taps_w), positions_(picture.rows * picture.columns),
        bias_(bias), activated_(activated), taps_(picture.taps()), packed_(out, steps_) {
    Sources rows(out);
    for (i64 m = 0; m < out; ++m) rows[m] = weight + m * steps_;
    packed_.pack(rows.data(), out, steps_);
  }

  i64 size() const { return out_ * positions_; }  // of what becomes of one picture
  double work(i64 pictures) const { return (0.012 * steps_ + (activated_ ? 0.6 : 0)) * size() * pictures; }

  // y `[count, M, rows, columns]` of x `[count, C, H, W]`.
  void run(ThreadPool &pool, const float *x, i64 count, float *y) {
    const i64 panels = (positions_ + kWide - 1) / kWide, fair = count * panels / (4 * pool.size());
    const i64 together = std::max<i64>(1, std::min(kTogether, fair)), groups = (panels + together - 1) / together;
    const i64 size = picture_.height * picture_.width, picture_size = picture_.channels * picture_.channel_size();
    const i64 units = std::max<i64>(1, std::min(count, kPlanes / std::max<i64>(picture_size, 1)));
    Space<> planes(units * picture_size + kLanes);
    for (i64 begin = 0; begin < count; begin += units) {
      const i64 now = std::min(units, count - begin);
      pool.run_ranges(now * picture_.channels, picture_.channel_size() * 1.0, [&](i64 first, i64 end) {
        for (i64 i = first; i < end; ++i)
          picture_.lay_out(x + (begin * picture_.channels + i) * size, planes.get() + i * picture_.channel_size());
      });
      pool.run(now * groups, [&](i64 task) {
        const i64 unit = task / groups, first = task % groups * together * kWide;
        const i64 columns = std::min<i64>(together * kWide, positions_ - first);
        Targets rows(out_);
        for (i64 m = 0; m < out_; ++m) rows[m] = y + ((begin + unit) * out_ + m) * positions_;
        Space<> space(together * kWide * kSum + kLanes);
        const auto pack = [&](i64 i, i64 k, float *panels) {
          for (i64 at = 0; at < columns; at += kWide)
            picture_.pack(planes.get() + unit * picture_size, first + at, std::min<i64>(kWide, columns - at), taps_.data() + i, k,
                          panels + at * kSum);
        };
        multiply(packed_, 0, out_, steps_, rows.data(), first, columns, nullptr, pack, space.get());
        for (i64 m = 0; m < out_; ++m) {
          float *row = rows[m] + first;
          const float shift = bias_[m];
          if (activated_) map(columns, row, [shift](vec x) { return gaussian_linear(x + shift); }, row);
          else map(columns, row, [shift](vec x) { return x + shift; }, row);
        }
      });
    }
  }

 private:
  Picture picture_;
  i64 out_, steps_, positions_;
  const float *bias_;
  bool activated_;
  std::vector<i64> taps_;
  Packed packed_;
};

// settings: the lengths stand for the stride s and the padding + 1.
KERNEL(conv2d, "x[B, C, H, W] weight[M, C, h, w] bias[M] settings:i[s, p] -> "
               "y[B, M, (H + 2*(p - 1) - h) / s + 1, (W + 2*(p - 1) - w) / s + 1] | 0 < s, 0 < p, 0 < h, 0 < w") {
  const Picture picture{a['C'], a['H'], a['W'], a['h'], a['w'], a['s'], a['p'] - 1, a.dim("y", 2), a.dim("y", 3)};
  Convolution convolution(picture, a['M'], a.get("weight"), a.get("bias"), false);
  ThreadPool pool(convolution.work(a['B']));
  convolution.run(pool, a.get("x"), a['B'], a.get("y"));
  return 0;
}

// Three convolutions with stride 2 and padding 1, each followed by gelu, for as many pictures at a time as stay near; for one of each
// thread at least, as the last convolution has few columns.
KERNEL(downsample, "x[B, C, H, W] weight1[M, C, h, w] bias1[M] weight2[M, M, h, w] bias2[M] weight3[M, M, h, w] bias3[M] -> "
                   "y[B, M, (H - 1) / 8 + 1, (W - 1) / 8 + 1] | 0 < H, 0 < W, 2 < h, h < 4, 2 < w, w < 4") {
  const i64 pictures = a['B'];
  i64 channels = a['C'], height = a['H'], width = a['W'];
  std::vector<Convolution> layers;
  double work = 0;
  for (const char *number : {"1", "2", "3"}) {
    const Picture picture{channels, height, width, 3, 3, 2, 1, (height - 1) / 2 + 1, (width - 1) / 2 + 1};
    const std::string weight = std::string("weight") + number, bias = std::string("bias") + number;
    layers.emplace_back(picture, a['M'], a.get(weight.c_str()), a.get(bias.c_str()), true);
    work += layers.back().work(pictures);
    channels = a['M'], height = picture.rows, width = picture.columns;
  }
  ThreadPool pool(work);
  const i64 near = std::min(pictures, std::max(pool.size(), kPlanes / std::max<i64>(layers[0].size(), 1)));
  Space<> first(near * layers[0].size()), second(near * layers[1].size());
  for (i64 begin = 0; begin < pictures; begin += near) {
    const i64 count = std::min(near, pictures - begin);
    layers[0].run(pool, a.get("x") + begin * a['C'] * a['H'] * a['W'], count, first.get());
    layers[1].run(pool, first.get(), count, second.get());
    layers[2].run(pool, second.get(), count, a.get("y") + begin * layers[2].size());
  }
  return 0;
}

}  // namespace
