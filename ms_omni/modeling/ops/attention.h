// Softmax attention of one query: all its heads that read the same keys and values, which pass by once for all of them.

#pragma once

#include "in_order.h"
#include "numeric.h"
#include "products.h"

namespace {

// Keys or values `[positions, width]` of one sequence and head: side by side, or in blocks of positions whose numbers a table
// says. step: floats from one position to the next; block_step: from one block of the pool to the next.
struct Rows {
  float *at;
  i64 step;
  const int32_t *table = nullptr;
  i64 block = 0, block_step = 0;

  float *operator[](i64 position) const {
    if (!table) return at + position * step;
    return at + table[position / block] * block_step + position % block * step;
  }
  // How many of the positions [position, end) lie side by side from the first on.
  i64 together(i64 position, i64 end) const {
    return table ? std::min(end - position, block - position % block) : end - position;
  }
};

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
class Sight {
 public:
  struct Run { const float *keys, *values; i64 n; };  // side by side

  const i64 d, dv;

  Sight(const Rows &keys, const Rows &values, i64 d, i64 dv) : d(d), dv(dv), keys_(keys), values_(values) {}

  // Positions [begin, end) too, behind those before.
  void add(i64 begin, i64 end) {
    for (i64 n; begin < end; begin += n) {
      n = keys_.together(begin, end);
      runs_.push_back({keys_[begin], values_[begin], n});
      n_ += n;
    }
  }

  i64 n() const { return n_; }
  const std::vector<Run> &runs() const { return runs_; }

 private:
  Rows keys_, values_;
  std::vector<Run> runs_;
  i64 n_ = 0;
};

// y[row] = a[row] V for the values of all runs: the sums of `product_in_order`.
inline void weigh(const float *const *a, i64 rows, const Sight &s, float *const *y) {
  std::vector<float> space(s.n() > kSum ? rows * s.dv : 0);
  std::vector<float *> to(y, y + rows);
  for (i64 row = 0; row < rows; ++row) std::fill(y[row], y[row] + s.dv, 0.f);
  i64 i = 0;  // position among those seen
  for (const auto &run : s.runs())
    for (i64 done = 0, n; done < run.n; done += n, i += n) {
      n = std::min(run.n - done, kSum - i % kSum);
      add_range(a, rows, i, i + n, run.values + done * s.dv, s.dv, to.data(), s.dv);
      if ((i + n) % kSum && i + n < s.n()) continue;
      for (i64 row = 0; row < rows && !space.empty(); ++row) {  // a sum ends: to the others, and the next one begins
        if (to[row] != y[row]) map(s.dv, y[row], [](vec old, vec sum) { return old + sum; }, y[row], to[row]);
        to[row] = space.data() + row * s.dv;
        std::fill(to[row], to[row] + s.dv, 0.f);
      }
    }
}

// q `[heads, d]`; mask: one number per position seen, or null -> y `[heads, dv]`
inline void attend_query(const float *q, i64 heads, const Sight &s, float scale, const float *mask, float *y) {
  std::vector<float> scores(heads * s.n());
  std::vector<const float *> from(heads);
  std::vector<float *> to(heads);
  float *at = scores.data();
  for (const auto &run : s.runs()) {
    dot_block(q, heads, s.d, Product{{}, nullptr, s.n(), at}, run.keys, Scales(s.d), 0, run.n);
    at += run.n;
  }
  for (i64 head = 0; head < heads; ++head) {
    float *row = scores.data() + head * s.n();
    if (mask) map(s.n(), row, [=](vec x, vec mask) { return x * scale + mask; }, row, mask);
    else map(s.n(), row, [=](vec x) { return x * scale; }, row);
    soften(row, s.n());
    from[head] = row, to[head] = y + head * s.dv;
  }
  weigh(from.data(), heads, s, to.data());
}

}  // namespace
