// Softmax attention of many queries, in tiles: scores of a few rows by 256 keys exist at a time, whatever the lengths are.
//
//     for each block of queries (one head, or the query heads that share one):
//         for each tile of keys:  s = q k' + mask;  m' = max(m, s);  p = exp(s - m')
//                                 sum = sum exp(m - m') + p;  y = y exp(m - m') + p v        (Milakov & Gimelshein 2018)
//         y /= sum

#pragma once

#include "attention.h"

namespace {

constexpr i64 kKeys = 256;          // of a tile; a multiple of kWide
constexpr i64 kQueryRows = 252;     // (query, head) rows that share the packing of a tile; whole blocks of 6 and of 14
constexpr float kExcluded = -1e8f;  // a key whose mask is this far below the largest of its row is out of sight

struct Heads {  // one kv head of one sequence, with the query heads that read it
  const float *q, *mask;            // mask [queries][keys] or null
  Rows k, v;
  float *y;
  i64 queries, keys, group, d, dv;  // query heads of a group lie side by side
  i64 q_step, y_step;               // floats from one query to the next
  float scale;
  i64 position = -1;                // of the first query, which sees no key behind its own; -1: all see all

  // Keys that a query sees, as far as there is no mask.
  i64 visible(i64 query) const { return position < 0 ? keys : std::min(position + query + 1, keys); }
};

enum Sees : char { kNone, kAll, kMixed };  // what a query sees of kWide keys

// sight[query][kWide keys]; a query that may see nothing sees everything alike, so keys are compared with its best.
inline void look(const Heads &h, i64 first, i64 count, i64 blocks, Sees *sight) {
  for (i64 i = 0; i < count; ++i, sight += blocks) {
    if (!h.mask) {
      const i64 visible = h.visible(first + i), whole = h.position < 0 ? blocks : visible / kWide;
      std::fill(sight, sight + whole, kAll);
      std::fill(sight + whole, sight + blocks, kNone);
      if (whole * kWide < visible && whole < blocks) sight[whole] = kMixed;
      continue;
    }
    const float *row = h.mask + (first + i) * h.keys, least = *std::max_element(row, row + h.keys) + kExcluded;
    for (i64 b = 0; b < blocks; ++b) {
      bool none = true, everything = true;
      for (i64 t = b * kWide; t < std::min<i64>((b + 1) * kWide, h.keys); ++t) {
        none &= row[t] < least;
        everything &= row[t] == 0.f;
      }
      sight[b] = none ? kNone : everything ? kAll : kMixed;
    }
  }
}

// One tile of keys for up to kRows rows. scores [kRows][kKeys] holds q k'; y, m and sum are the rows' own. Of what a row sees
// in part its mask tells, or how many keys are visible to it.
inline void accumulate(i64 rows, i64 first_key, i64 count, float *scores, const Sees *const *sight, const float *const *mask,
                const i64 *visible, const float *values, i64 dv, float *const *y, float *m, float *sum) {
  const i64 padded = (count + kLanes - 1) / kLanes * kLanes;
  float tops[kRows], fades[kRows];
  for (i64 r = 0; r < rows; ++r) {  // step by step for all rows: within one, each step waits for the last
    float *s = scores + r * kKeys;
    for (i64 t = 0; t < count; t += kWide) {
      const i64 stop = std::min<i64>(t + kWide, count);
      const Sees seen = sight[r][(first_key + t) / kWide];
      if (seen == kAll) continue;
      if (seen == kNone)
        std::fill(s + t, s + stop, -3e38f);
      else if (!mask[r])
        std::fill(s + std::max(t, visible[r] - first_key), s + stop, -3e38f);
      else
        for (i64 i = t; i < stop; ++i) s[i] += mask[r][first_key + i];
    }
    std::fill(s + count, s + padded, -3e38f);
    tops[r] = std::max(m[r], largest(s, padded));
    fades[r] = m[r] - tops[r];
    m[r] = tops[r];
  }
  map(rows, fades, exponential, fades);
  for (i64 r = 0; r < rows; ++r) {
    float *s = scores + r * kKeys;
    const float top = tops[r], fade = fades[r];
    vec added = {};
    for (i64 i = 0; i < padded; i += kLanes) {
      const vec p = exponential(load(s + i) - top);
      store(s + i, p);
      added += p;
    }
    sum[r] = fma(sum[r], fade, total(added));
    for (i64 i = 0; i < dv; i += kLanes) store(y[r] + i, load(y[r] + i) * fade);
  }
  for (i64 column = 0; column < dv; column += kWide) {
    const i64 columns = std::min<i64>(kWide, dv - column);
    tile_of<kKeys, 1>(rows, columns)(scores, values + column, dv, count, y, column, columns, false, nullptr);
  }
}

inline void attend(const Heads &h, i64 first, i64 queries) {
  const i64 rows = queries * h.group, dv = (h.dv + kLanes - 1) / kLanes * kLanes;
  const i64 last = h.visible(first + queries - 1), blocks = (last + kWide - 1) / kWide;  // nobody sees a key behind
  Space<> keys(h.d * kKeys), values(kKeys * dv), q(rows * h.d), widened(h.k.codes ? kKeys * std::max(h.d, h.dv) : 0);
  Floats y(rows * dv), m(rows, -3e38f), sum(rows, 0.f), scores(kRows * kKeys);
  std::vector<Sees> sights(queries * blocks);
  look(h, first, queries, blocks, sights.data());
  std::vector<const float *> q_rows(rows), masks(rows);
  std::vector<const Sees *> sight(rows);
  std::vector<i64> visible(rows);
  std::vector<float *> y_rows(rows);
  for (i64 row = 0; row < rows; ++row) {
    const i64 query = row / h.group;
    const float *from = h.q + (first + query) * h.q_step + row % h.group * h.d;
    for (i64 i = 0; i < h.d; ++i) q[row * h.d + i] = from[i] * h.scale;
    q_rows[row] = q.get() + row * h.d;
    y_rows[row] = y.data() + row * dv;
    sight[row] = sights.data() + query * blocks;
    masks[row] = h.mask ? h.mask + (first + query) * h.keys : nullptr;
    visible[row] = h.visible(first + query);
  }
  Packed packed_q(rows, h.d);
  packed_q.pack(q_rows.data(), rows, h.d);
  float *targets[kRows];
  for (int r = 0; r < kRows; ++r) targets[r] = scores.data() + r * kKeys;
  for (i64 key = 0; key < last; key += kKeys) {
    const i64 count = std::min(kKeys, last - key);
    bool packed = false;
    for (i64 row = 0; row < rows; row += kRows) {
      const i64 n = std::min<i64>(kRows, rows - row);
      bool seen[kKeys / kWide] = {}, any = false;
      for (i64 b = 0; b * kWide < count; ++b)
        for (i64 r = row; r < row + n; ++r) any |= seen[b] |= sight[r][key / kWide + b] != kNone;
      if (!any) continue;
      if (!packed) {
        for (i64 t = 0, together, apart; t < count; t += together) {
          together = h.k.together(key + t, key + count);
          const float *k = h.k.numbers(key + t, together, h.d, widened.get(), apart);
          pack_rows(k, apart, together, h.d, keys.get() + t, kKeys);
          const float *v = h.v.numbers(key + t, together, h.dv, widened.get(), apart);
          pack_columns(v, apart, h.dv, together, values.get() + t * dv, dv, 0);
        }
        packed = true;
      }
      for (i64 b = 0; b * kWide < count; ++b) {
        const i64 columns = (std::min<i64>(kWide, count - b * kWide) + kLanes - 1) / kLanes * kLanes;
        if (seen[b])
          tile_of<1, kRows>(n, columns)(packed_q.at(row, 0), keys.get() + b * kWide, kKeys, h.d, targets, b * kWide, columns,
                                        true, nullptr);
      }
      accumulate(n, key, count, scores.data(), sight.data() + row, masks.data() + row, visible.data() + row, values.get(),
                 dv, y_rows.data() + row, m.data() + row, sum.data() + row);
    }
  }
  for (i64 row = 0; row < rows; ++row) {
    float *to = h.y + (first + row / h.group) * h.y_step + row % h.group * h.dv;
    const float factor = sum[row] > 0 ? 1.f / sum[row] : 0.f;
    for (i64 i = 0; i < h.dv; ++i) to[i] = y_rows[row][i] * factor;
  }
}

// Queries of some heads; late ones see more keys, and the last pieces are taken first.
struct Piece { Heads heads; i64 first, queries; };

inline void add_pieces(std::vector<Piece> &pieces, const Heads &heads) {
  const i64 most = std::max<i64>(kQueryRows / heads.group, 1), parts = (heads.queries + most - 1) / most;
  for (i64 i = 0; i < parts; ++i) {
    const i64 begin = heads.queries * i / parts, end = heads.queries * (i + 1) / parts;
    pieces.push_back({heads, begin, end - begin});
  }
}

// What they take, in nanoseconds.
inline double pieces_work(const std::vector<Piece> &pieces) {
  double work = 0;
  for (const Piece &piece : pieces)
    work += 0.012 * piece.queries * piece.heads.group * piece.heads.keys * (piece.heads.d + piece.heads.dv + 32);
  return work;
}

inline void run(ThreadPool &pool, const std::vector<Piece> &pieces) {
  pool.run(pieces.size(), [&](i64 i) { attend(pieces[i].heads, pieces[i].first, pieces[i].queries); });
}

}  // namespace
