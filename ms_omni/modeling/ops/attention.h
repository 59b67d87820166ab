// Softmax attention of one query: all its heads that read the same keys and values, which pass by once for all of them.

#pragma once

#include "numeric.h"
#include "products.h"

namespace {

// Keys `[n, d]` and values `[n, dv]` of the positions that a query sees, side by side, so that the others leave no trace
// in the order of its sums.
struct Sight {
  const float *keys, *values;
  i64 n, d, dv;

  // at: the positions, ascending. They are copied where others lie between them.
  Sight(const float *keys, const float *values, const std::vector<i64> &at, i64 d, i64 dv) : n(at.size()), d(d), dv(dv) {
    const bool apart = n > 0 && at.back() - at.front() >= n;
    if (apart) copies_.reserve(n * (d + dv));
    for (i64 i = 0; apart && i < n; ++i) copies_.insert(copies_.end(), keys + at[i] * d, keys + (at[i] + 1) * d);
    for (i64 i = 0; apart && i < n; ++i) copies_.insert(copies_.end(), values + at[i] * dv, values + (at[i] + 1) * dv);
    const i64 first = n > 0 ? at[0] : 0;
    this->keys = apart ? copies_.data() : keys + first * d;
    this->values = apart ? copies_.data() + n * d : values + first * dv;
  }

 private:
  std::vector<float> copies_;
};

// q `[heads, d]`; mask: one number per position seen, or null -> y `[heads, dv]`
inline void attend_query(const float *q, i64 heads, const Sight &s, float scale, const float *mask, float *y) {
  std::vector<float> scores(heads * s.n);
  std::vector<const float *> from(heads);
  std::vector<float *> to(heads);
  dot_block(q, heads, s.d, Product<float>{s.keys, nullptr, s.n, scores.data()}, 0, s.n);
  for (i64 head = 0; head < heads; ++head) {
    float *row = scores.data() + head * s.n;
    if (mask) map(s.n, row, [=](vec x, vec mask) { return x * scale + mask; }, row, mask);
    else map(s.n, row, [=](vec x) { return x * scale; }, row);
    soften(row, s.n);
    from[head] = row, to[head] = y + head * s.dv;
  }
  product_in_order(from.data(), heads, s.n, s.values, s.dv, to.data(), s.dv);
}

}  // namespace
