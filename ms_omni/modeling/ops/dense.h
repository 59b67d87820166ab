// Linear layers and mixtures of experts for many rows, whatever their matrices are stored as.

#pragma once

#include "amx.h"
#include "few_rows.h"
#include "in_order.h"
#include "numeric.h"
#include "thread_pool.h"

namespace {

using Sources = std::vector<const float *>;
using Targets = std::vector<float *>;

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
    else pack_columns(static_cast<const Bfloat16 *>(m.numbers) + at, out, columns, k, panels, kWide, kSum * kWide);
  }
#ifdef MS_OMNI_AMX
  void pack(i64 column, i64 columns, i64 i, i64 k, TilePanels &panels) const {
    if (!straight) return panels.pack(m, in, first + column, columns, i, k);
    panels.pack_columns(static_cast<const Bfloat16 *>(m.numbers) + (first + i) * out + column, out, columns, k);
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

// What it takes, in nanoseconds: for half of a processor's speed.
inline double product_work(i64 rows, i64 in, i64 out) { return (0.012 * rows + 0.06) * in * out; }

// y = x w^T + bias for x `[rows, in]`, w `[out, in]` as it is stored. bias: null for none; distance: from one row of y to the next.
inline void product(ThreadPool &pool, const Matrix &w, const float *bias, const float *x, i64 rows, i64 in, i64 out, float *y,
                    i64 distance) {
  Sources from(rows);
  Targets to(rows);
  for (i64 row = 0; row < rows; ++row) from[row] = x + row * in, to[row] = y + row * distance;
  const i64 panels = (out + kWide - 1) / kWide, together = std::max<i64>(1, std::min(kTogether, panels / (4 * pool.size())));
  const i64 groups = (panels + together - 1) / together;
  const auto columns_of = [&](i64 group) { return std::min<i64>(together * kWide, out - group * together * kWide); };
  with_rows(w, in, [&](auto *kind) {
    using Rows = std::remove_pointer_t<decltype(kind)>;
    if (std::is_same_v<Rows, PackedRows> && suits_few_rows(w, rows, in) && out % kLanes == 0) {
      const FewRows few(from.data(), rows, in);
      return pool.run(groups, [&](i64 group) {
        const i64 column = group * together * kWide;
        few.multiply(w, column, to.data(), column, columns_of(group), bias ? bias + column : nullptr);
      });
    }
    constexpr i64 block = Rows::kBlock;
    for (i64 first = 0; first < rows; first += kBatch) {
      const i64 count = std::min(kBatch, rows - first), blocks = (count + block - 1) / block;
      Rows a(count, in);
      pool.run(blocks, [&](i64 i) { a.pack(from.data() + first, i * block, std::min((i + 1) * block, count)); });
      const i64 wanted = (4 * pool.size() + groups - 1) / std::max<i64>(groups, 1);
      const i64 pieces = std::max<i64>(1, std::min(wanted, blocks / 8));
      pool.run(groups * pieces, [&](i64 task) {
        const i64 piece = task % pieces, begin = blocks * piece / pieces * block;
        const i64 end = std::min(blocks * (piece + 1) / pieces * block, count), column = task / pieces * together * kWide;
        a.multiply(Columns{w, in, out, 0, false}, from.data() + first, begin, end, to.data() + first, column, columns_of(task / pieces),
                   bias);
      });
    }
  });
}

// ---- experts -------------------------------------------------------------------------------------------------------

constexpr i64 kFew = 16;  // rows for which a matrix `[in, out]` passes by once; with more it is packed and kept near

// c[row] = a[row] B for the whole matrix B `[k, n]` of an expert, or codes `[n, k]`.
inline void product(const Sources &a, const Matrix &b, i64 expert, const Targets &c, i64 k, i64 n) {
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

// A mixture of experts: pairs (row, slot) with the numbers and the weights of experts, `[rows, slots]` both.
struct Mixture {
  Matrix gate_up, down;
  i64 width, inner, experts, slots;
  i64 given = -1;  // the number of the first expert that is here, or -1: all are

  bool here(int32_t index) const { return index >= offset() && index - offset() < experts; }
  i64 offset() const { return std::max<i64>(given, 0); }

  // Why the indices are not those of experts; empty: they are.
  std::string unfit(const char *kernel, const int32_t *indices, i64 pairs) const {
    for (i64 pair = 0; pair < pairs; ++pair)
      if (indices[pair] < 0 || (given < 0 && !here(indices[pair])))
        return std::string(kernel) + ": indices hold " + std::to_string(indices[pair]) + ", but there are " + std::to_string(experts) +
               " experts";
    return "";
  }

  double work(i64 rows) const { return 3.0 * width * inner * (0.1 * std::min(experts, rows * slots) + 0.01 * rows * slots); }

  // y[row] = the sum of what its experts make of x[row], x and y `[rows, width]`.
  void run(ThreadPool &pool, const float *x, i64 rows, const float *weights, const int32_t *indices, float *y) const {
    const i64 pairs = rows * slots;
    std::vector<i64> first(experts + 1), order(pairs);  // pairs sorted by expert, those that are here
    for (i64 pair = 0; pair < pairs; ++pair)
      if (here(indices[pair])) ++first[indices[pair] - offset() + 1];
    for (i64 e = 0; e < experts; ++e) first[e + 1] += first[e];
    std::vector<i64> free(first.begin(), first.end() - 1);
    for (i64 pair = 0; pair < pairs; ++pair)
      if (here(indices[pair])) order[free[indices[pair] - offset()]++] = pair;

    const i64 fair = first[experts] / (2 * pool.size()) / kRows * kRows;  // where one expert has most of the rows
    const i64 batch = std::max<i64>(8 * kRows, std::min<i64>(fair, 240 / kRows * kRows));
    struct Task { i64 expert, begin, end; };
    std::vector<Task> tasks;
    for (i64 e = 0; e < experts; ++e)
      for (i64 begin = first[e]; begin < first[e + 1]; begin += batch)
        tasks.push_back({e, begin, std::min(begin + batch, first[e + 1])});
    std::stable_sort(tasks.begin(), tasks.end(), [](const Task &left, const Task &right) {
      return left.end - left.begin < right.end - right.begin;  // the last, which are taken first, are the largest: no thread ends with one
    });
    Space<> results(pairs * width);
    pool.run(tasks.size(), [&](i64 index) {
      const Task task = tasks[index];
      const i64 count = task.end - task.begin;
      Space<> hidden(count * 2 * inner);
      Sources from(count);
      Targets to(count);
      for (i64 row = 0; row < count; ++row) {
        from[row] = x + order[task.begin + row] / slots * width;
        to[row] = hidden.get() + row * 2 * inner;
      }
      product(from, gate_up, task.expert, to, width, 2 * inner);
      for (i64 row = 0; row < count; ++row) {
        float *gate = to[row], *up = gate + inner;
        activate(gate, up, gate, inner);
        from[row] = gate;
        to[row] = results.get() + order[task.begin + row] * width;
      }
      product(from, down, task.expert, to, inner, width);
    });
    pool.run_ranges(rows, slots * width * 0.2, [&](i64 begin, i64 end) {
      for (i64 row = begin; row < end; ++row) {
        std::fill_n(y + row * width, width, 0.f);
        for (i64 pair = row * slots; pair < (row + 1) * slots; ++pair)
          if (here(indices[pair])) add_scaled(y + row * width, results.get() + pair * width, weights[pair], width);
      }
    });
  }
};

}  // namespace
