// The large products: many rows through a linear layer or through experts, convolutions of pictures.

#include "amx.h"
#include "few_rows.h"
#include "in_order.h"
#include "numeric.h"
#include "team.h"

namespace {

using Sources = std::vector<const float *>;
using Targets = std::vector<float *>;

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

// Columns of a matrix, packed: as columns of m `[.., in, out]` or, transposed, as rows of m `[.., out, in]`, from row `first` on.
struct Columns {
  Matrix m;
  i64 in, out, first;
  bool straight;

  // panels: inputs [i, i + k) of columns [column, column + columns).
  void pack(i64 column, i64 columns, i64 i, i64 k, float *panels) const {
    if (!straight) return pack_turned(m, in, first + column, columns, i, k, panels);
    const i64 at = (first + i) * out + column;
    if (m.kind == kFloat32) pack_columns(static_cast<const float *>(m.numbers) + at, out, columns, k, panels, kWide, kSum * kWide);
    else pack_columns(static_cast<const Half *>(m.numbers) + at, out, columns, k, panels, kWide, kSum * kWide);
  }
#ifdef MS_OMNI_AMX
  void pack(i64 column, i64 columns, i64 i, i64 k, TilePanels &panels) const {
    if (!straight) return panels.pack(m, in, first + column, columns, i, k);
    panels.pack_columns(static_cast<const Half *>(m.numbers) + (first + i) * out + column, out, columns, k);
  }
#endif
};

// Rows of A for products in float32; `TileRows` are those for products of tiles.
class PackedRows {
 public:
  static constexpr i64 kBlock = kRows;

  PackedRows(i64 count, i64 k) : packed_(count, k), k_(k) {}

  void pack(const float *const *rows, i64 begin, i64 end) { packed_.pack(rows + begin, end - begin, k_, begin); }

  void multiply(const Columns &b, const float *const *, i64 begin, i64 end, float *const *c, i64 column, i64 columns,
                const float *start) const {
    Space<> space((columns + kWide - 1) / kWide * kWide * kSum);
    const auto pack = [&](i64 i, i64 k, float *panels) { b.pack(column, columns, i, k, panels); };
    ::multiply(packed_, begin, end, k_, c, column, columns, start, pack, space.get());
  }

 private:
  Packed packed_;
  i64 k_;
};

// function(Rows()), with the class of rows that a product with m is made with.
template <class Function>
void with_rows(const Matrix &m, i64 in, const Function &function) {
#ifdef MS_OMNI_AMX
  if (suits_tiles(m, in)) return function(static_cast<TileRows *>(nullptr));
#endif
  function(static_cast<PackedRows *>(nullptr));
}

constexpr i64 kBatch = 672;  // rows that share the packing of a weight; whole blocks

// y = x w^T + bias for x `[rows, in]`, w `[out, in]` as it is stored. bias: null for none.
void product(const Matrix &w, const float *bias, const float *x, i64 rows, i64 in, i64 out, float *y) {
  Sources from(rows);
  Targets to(rows);
  for (i64 row = 0; row < rows; ++row) from[row] = x + row * in, to[row] = y + row * out;
  Team team((0.012 * rows + 0.06) * in * out);
  const i64 panels = (out + kWide - 1) / kWide, together = std::max<i64>(1, std::min(kTogether, panels / (4 * team.size())));
  const i64 groups = (panels + together - 1) / together;
  const auto columns_of = [&](i64 group) { return std::min<i64>(together * kWide, out - group * together * kWide); };
  with_rows(w, in, [&](auto *kind) {
    using Rows = std::remove_pointer_t<decltype(kind)>;
    if (std::is_same_v<Rows, PackedRows> && suits_few_rows(w, rows, in) && out % kLanes == 0) {
      const FewRows few(from.data(), rows, in);
      return team.run(groups, [&](i64 group) {
        const i64 column = group * together * kWide;
        few.multiply(w, column, to.data(), column, columns_of(group), bias ? bias + column : nullptr);
      });
    }
    constexpr i64 block = Rows::kBlock;
    for (i64 first = 0; first < rows; first += kBatch) {
      const i64 count = std::min(kBatch, rows - first), blocks = (count + block - 1) / block;
      Rows a(count, in);
      team.run(blocks, [&](i64 i) { a.pack(from.data() + first, i * block, std::min((i + 1) * block, count)); });
      const i64 wanted = (4 * team.size() + groups - 1) / std::max<i64>(groups, 1);
      const i64 pieces = std::max<i64>(1, std::min(wanted, blocks / 8));
      team.run(groups * pieces, [&](i64 task) {
        const i64 piece = task % pieces, begin = blocks * piece / pieces * block;
        const i64 end = std::min(blocks * (piece + 1) / pieces * block, count), column = task / pieces * together * kWide;
        a.multiply(Columns{w, in, out, 0, false}, from.data() + first, begin, end, to.data() + first, column, columns_of(task / pieces),
                   bias);
      });
    }
  });
}

KERNEL(linear, "x[*, K] weight:w[M, K] bias?[M] -> y[*, M] | 0 < K") {
  product(plain(a, "weight"), a.get("bias"), a.get("x"), a.rows(), a['K'], a['M'], a.get("y"));
  return 0;
}

KERNEL(linear_coded, "x[*, K] codes:q[M, c] scales:s[M, G] offsets:s[...] bias?[M] -> y[*, M] | 0 < K") {
  const std::string wrong = unfit(a, "codes", "scales", "offsets", a['K']);
  if (!wrong.empty()) return refuse("linear_coded: " + wrong);
  const Matrix weight = coded(a, "codes", "scales", "offsets", a['K'], a['G']);
  product(weight, a.get("bias"), a.get("x"), a.rows(), a['K'], a['M'], a.get("y"));
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

constexpr i64 kFew = 16;  // rows for which a matrix `[in, out]` passes by once; with more it is packed and kept near

// c[row] = a[row] B for the whole matrix B `[k, n]` of an expert, or codes `[n, k]`.
void product(const Sources &a, const Matrix &b, i64 expert, const Targets &c, i64 k, i64 n) {
  const i64 rows = a.size();
  const bool straight = b.kind == kFloat32 || b.kind == kBfloat16;
  with_rows(b, k, [&](auto *kind) {
    using Rows = std::remove_pointer_t<decltype(kind)>;
    if constexpr (std::is_same_v<Rows, PackedRows>) {
      if (straight && rows <= kFew) return with_numbers(b, [&](auto *numbers) {
        if constexpr (sizeof *numbers > 1) product_in_order(a.data(), rows, k, numbers + expert * k * n, n, c.data(), n);
      });
      if (!straight && suits_few_rows(b, rows, k) && n % kLanes == 0)
        return FewRows(a.data(), rows, k).multiply(b, expert * n, c.data(), 0, n, nullptr);
    }
    Rows from(rows, k);
    from.pack(a.data(), 0, rows);
    const Columns columns{b, k, n, expert * (straight ? k : n), straight};
    for (i64 column = 0; column < n; column += kTogether * kWide)
      from.multiply(columns, a.data(), 0, rows, c.data(), column, std::min(kTogether * kWide, n - column), nullptr);
  });
}

int mix(const Arguments &a, const char *name, const Matrix &gate_up, const Matrix &down, i64 inner) {
  const i64 n = a['N'], k = a['k'], d = a['D'], count = a['E'], pairs = n * k;
  const float *x = a.get("x"), *weights = a.get("weights");
  const int32_t *indices = a.get<int32_t>("indices"), given = *a.get<int32_t>("first"), offset = std::max(given, 0);
  float *sums = a.get("y");
  const auto here = [&](i64 pair) { return indices[pair] >= offset && indices[pair] - offset < count; };
  std::vector<i64> first(count + 1), order(pairs);  // pairs (token, place) sorted by expert, those that are here
  for (i64 pair = 0; pair < pairs; ++pair) {
    if (indices[pair] < 0 || (given < 0 && !here(pair)))
      return refuse(std::string(name) + ": indices hold " + std::to_string(indices[pair]) + ", but there are " + std::to_string(count) +
                    " experts");
    if (here(pair)) ++first[indices[pair] - offset + 1];
  }
  for (i64 e = 0; e < count; ++e) first[e + 1] += first[e];
  std::vector<i64> free(first.begin(), first.end() - 1);
  for (i64 pair = 0; pair < pairs; ++pair)
    if (here(pair)) order[free[indices[pair] - offset]++] = pair;

  const i64 fair = first[count] / (2 * available_threads()) / kRows * kRows;  // where one expert has most of the rows
  const i64 batch = std::max<i64>(8 * kRows, std::min<i64>(fair, 240 / kRows * kRows));
  struct Task { i64 expert, begin, end; };
  std::vector<Task> tasks;
  for (i64 e = 0; e < count; ++e)
    for (i64 begin = first[e]; begin < first[e + 1]; begin += batch)
      tasks.push_back({e, begin, std::min(begin + batch, first[e + 1])});
  std::stable_sort(tasks.begin(), tasks.end(), [](const Task &left, const Task &right) {
    return left.end - left.begin > right.end - right.begin;  // the largest first: no thread is left with one at the end
  });
  Space<> results(pairs * d);
  for_each(tasks.size(), 3.0 * d * inner * (tasks.size() * 0.1 + first[count] * 0.01), [&](i64 index) {
    const Task task = tasks[index];
    const i64 rows = task.end - task.begin;
    Space<> hidden(rows * 2 * inner);
    Sources from(rows);
    Targets to(rows);
    for (i64 row = 0; row < rows; ++row) {
      from[row] = x + order[task.begin + row] / k * d;
      to[row] = hidden.get() + row * 2 * inner;
    }
    product(from, gate_up, task.expert, to, d, 2 * inner);
    for (i64 row = 0; row < rows; ++row) {
      float *gate = to[row], *up = gate + inner;
      activate(gate, up, gate, inner);
      from[row] = gate;
      to[row] = results.get() + order[task.begin + row] * d;
    }
    product(from, down, task.expert, to, inner, d);
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
  Packed packed(out, steps);
  packed.pack(weight.data(), out, steps);
  const i64 panels = (positions + kWide - 1) / kWide, fair = a['B'] * panels / (4 * available_threads());
  const i64 together = std::max<i64>(1, std::min(kTogether, fair));
  const i64 groups = (panels + together - 1) / together;
  for_each(a['B'] * groups, 0.012 * a.size("y") * steps, [&](i64 task) {
    const i64 unit = task / groups, first = task % groups * together * kWide;
    const i64 count = std::min<i64>(together * kWide, positions - first);
    Targets y(out);
    for (i64 m = 0; m < out; ++m) y[m] = results + (unit * out + m) * positions;
    Space<> space(together * kWide * kSum);
    const auto pack = [&](i64 i, i64 k, float *panels) {
      for (i64 at = 0; at < count; at += kWide)
        picture.pack(x + unit * size, first + at, std::min<i64>(kWide, count - at), i, k, panels + at * kSum);
    };
    multiply(packed, 0, out, steps, y.data(), first, count, nullptr, pack, space.get());
    for (i64 m = 0; m < out; ++m)
      for (i64 j = first; j < first + count; ++j) y[m][j] += bias[m];
  });
  return 0;
}

}  // namespace
