// Softmax attention of one query: all its heads that read the same keys and values, which pass by once for all of them.

#pragma once

#include "codes.h"
#include "in_order.h"
#include "numeric.h"
#include "products.h"

namespace {

// Keys or values `[positions, width]` of one sequence and head: side by side, or in blocks of positions whose numbers a table
// says. step: numbers from one position to the next; block_step: from one block of the pool to the next. Numbers are float32
// or, where there are codes, int8 with a scale for each position.
struct Rows {
  float *at;
  i64 step;
  const int32_t *table = nullptr;
  i64 block = 0, block_step = 0;
  int8_t *codes = nullptr;
  float *scales = nullptr;  // of positions as far apart as codes of as many steps

  i64 place(i64 position) const {
    return table ? table[position / block] * block_step + position % block * step : position * step;
  }
  // How many of the positions [position, end) lie side by side from the first on.
  i64 together(i64 position, i64 end) const {
    return table ? std::min(end - position, block - position % block) : end - position;
  }

  void put(i64 position, const float *x, i64 width) const {
    const i64 i = place(position);
    if (codes) encode(x, width, codes + i, scales[i / step]);
    else std::copy(x, x + width, at + i);
  }
  // n positions that lie side by side, as float32 rows of this width and `distance` apart: where they are, or in `space`.
  const float *numbers(i64 position, i64 n, i64 width, float *space, i64 &distance) const {
    const i64 i = place(position);
    distance = codes ? width : step;
    if (!codes) return at + i;
    for (i64 row = 0; row < n; ++row) decode(codes + i + row * step, scales[i / step + row], width, space + row * width);
    return space;
  }
};

// Those of a head in a pool `[blocks, K, block, width]` of float32 or, with scales `[blocks, K, block]`, of codes; table: the numbers
// of the sequence's blocks.
inline Rows in_blocks(void *pool, float *scales, i64 width, i64 head, i64 heads, i64 block, const int32_t *table) {
  const i64 first = head * block;
  Rows rows{nullptr, width, table, block, heads * block * width};
  if (scales) rows.codes = static_cast<int8_t *>(pool) + first * width, rows.scales = scales + first;
  else rows.at = static_cast<float *>(pool) + first * width;
  return rows;
}

// Why tables `[rows, width]` of blocks and lengths `[rows]` of sequences do not fit one another or a pool of so many blocks;
// empty: they do.
template <class Integer>
std::string misplaced(const char *kernel, const Integer *tables, const Integer *lengths, i64 rows, i64 width, i64 block,
                      i64 blocks) {
  const auto outside = [=](const char *name, i64 found, i64 first, i64 last) {
    return std::string(kernel) + ": " + name + " hold " + std::to_string(found) + ", expected " + std::to_string(first) + " to " +
           std::to_string(last);
  };
  for (i64 i = 0; i < rows; ++i)
    if (lengths[i] < 1 || lengths[i] > width * block) return outside("lengths", lengths[i], 1, width * block);
  for (i64 i = 0; i < rows * width; ++i)
    if (tables[i] < 0 || tables[i] >= blocks) return outside("tables", tables[i], 0, blocks - 1);
  return "";
}

// The keys and values that a query sees, in the order of their positions. Where they lie, and what lies between them,
// leaves no trace in the order of its sums.
class VisibleKeys {
 public:
  struct Run { i64 keys, values, n; };  // offsets of what lies side by side

  const Rows keys, values;
  const i64 d, dv;

  VisibleKeys(const Rows &keys, const Rows &values, i64 d, i64 dv) : keys(keys), values(values), d(d), dv(dv) {}

  // Positions [begin, end) too, behind those before.
  void add(i64 begin, i64 end) {
    for (i64 n; begin < end; begin += n) {
      n = keys.together(begin, end);
      runs_.push_back({keys.place(begin), values.place(begin), n});
      n_ += n;
    }
  }

  i64 n() const { return n_; }
  const std::vector<Run> &runs() const { return runs_; }

 private:
  std::vector<Run> runs_;
  i64 n_ = 0;
};

// y[row] = a[row] V for the values of all runs: the sums of `product_in_order`.
inline void weighted_sum(const float *const *a, i64 rows, const VisibleKeys &s, float *const *y) {
  Floats space(s.n() > kSum ? rows * s.dv : 0);
  std::vector<float *> to(y, y + rows);
  for (i64 row = 0; row < rows; ++row) std::fill(y[row], y[row] + s.dv, 0.f);
  i64 i = 0;  // position among the visible ones
  for (const auto &run : s.runs())
    for (i64 done = 0, n; done < run.n; done += n, i += n) {
      n = std::min(run.n - done, kSum - i % kSum);
      const i64 place = run.values + done * s.dv;
      if (s.values.codes) add_range(a, rows, i, i + n, s.values.codes + place, s.dv, to.data(), s.dv);
      else add_range(a, rows, i, i + n, s.values.at + place, s.dv, to.data(), s.dv);
      if ((i + n) % kSum && i + n < s.n()) continue;
      for (i64 row = 0; row < rows && !space.empty(); ++row) {  // a sum ends: to the others, and the next one begins
        if (to[row] != y[row]) map(s.dv, y[row], [](vec old, vec sum) { return old + sum; }, y[row], to[row]);
        to[row] = space.data() + row * s.dv;
        std::fill(to[row], to[row] + s.dv, 0.f);
      }
    }
}

// q `[heads, d]`; mask: one number per visible position, or null -> y `[heads, dv]`
inline void attend_query(const float *q, i64 heads, const VisibleKeys &s, float scale, const float *mask, float *y) {
  Floats scores(heads * s.n());
  std::vector<const float *> from(heads);
  std::vector<float *> to(heads);
  float *at = scores.data();
  for (const auto &run : s.runs()) {
    const Product scored{{}, nullptr, s.n(), at};
    if (s.keys.codes)
      dot_block(q, heads, s.d, scored, s.keys.codes + run.keys, Scales(s.keys.scales + run.keys / s.d, s.d, run.n), 0, run.n);
    else
      dot_block(q, heads, s.d, scored, s.keys.at + run.keys, Scales(s.d), 0, run.n);
    at += run.n;
  }
  for (i64 head = 0; head < heads; ++head) {
    float *row = scores.data() + head * s.n();
    if (mask) map(s.n(), row, [=](vec x, vec mask) { return x * scale + mask; }, row, mask);
    else map(s.n(), row, [=](vec x) { return x * scale; }, row);
    softmax(row, s.n());
    if (s.values.codes) {  // a value is its code times the scale of its position, which may as well be the weight's
      float *weights = row;
      for (const auto &run : s.runs()) {
        const float *scales = s.values.scales + run.values / s.dv;
        map(run.n, weights, [](vec x, vec scale) { return x * scale; }, weights, scales);
        weights += run.n;
      }
    }
    from[head] = row, to[head] = y + head * s.dv;
  }
  weighted_sum(from.data(), heads, s, to.data());
}

}  // namespace
