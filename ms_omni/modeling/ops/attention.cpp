// Softmax attention of many queries, in tiles: scores of 6 rows by 256 keys exist at a time, whatever the lengths are.
//
//     for each block of queries (one head, or the query heads that share one):
//         for each tile of keys:  s = q k' + mask;  m' = max(m, s);  p = exp(s - m')
//                                 sum = sum exp(m - m') + p;  y = y exp(m - m') + p v        (Milakov & Gimelshein 2018)
//         y /= sum

#include "attention.h"

namespace {

constexpr i64 kKeys = 256;          // of a tile; a multiple of kWide
constexpr i64 kQueryRows = 256;     // (query, head) rows that share the packing of a tile
constexpr float kExcluded = -1e8f;  // a key whose mask is this far below the largest of its row is out of sight

struct Heads {  // one kv head of one sequence, with the query heads that read it
  const float *q, *k, *v, *mask;    // mask [queries][keys] or null
  float *y;
  i64 queries, keys, group, d, dv;  // query heads of a group lie side by side
  i64 q_step, k_step, v_step, y_step;  // floats from one query or key to the next
  float scale;
};

enum Sees : char { kNone, kAll, kMixed };  // what a query sees of kWide keys

// sight[query][block of keys]; a query that may see nothing sees everything alike, so blocks are compared with its best.
void look(const Heads &h, i64 first, i64 count, i64 blocks, Sees *sight) {
  for (i64 i = 0; i < count; ++i, sight += blocks) {
    if (!h.mask) {
      std::fill(sight, sight + blocks, kAll);
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

// One tile of keys for up to kRows rows. scores [kRows][kKeys] holds q k'; y, m and sum are the rows' own.
void accumulate(i64 rows, i64 first_key, i64 count, float *scores, const Sees *const *sight,
                const float *const *mask, const float *values, i64 dv, float *const *y, float *m, float *sum) {
  const i64 padded = (count + kLanes - 1) / kLanes * kLanes;
  const float *from[kRows];
  for (i64 r = 0; r < rows; ++r) {
    float *s = scores + r * kKeys;
    for (i64 t = 0; t < count; t += kWide) {
      const i64 stop = std::min<i64>(t + kWide, count);
      const Sees seen = sight[r][(first_key + t) / kWide];
      if (seen == kNone)
        std::fill(s + t, s + stop, -3e38f);
      else if (seen == kMixed)
        for (i64 i = t; i < stop; ++i) s[i] += mask[r][first_key + i];
    }
    std::fill(s + count, s + padded, -3e38f);
    const float top = std::max(m[r], largest(s, padded)), fade = exponential(all(m[r] - top))[0];
    vec added = {};
    for (i64 i = 0; i < padded; i += kLanes) {
      const vec p = exponential(load(s + i) - top);
      store(s + i, p);
      added += p;
    }
    sum[r] = fma(sum[r], fade, total(added));
    m[r] = top;
    for (i64 i = 0; i < dv; i += kLanes) store(y[r] + i, load(y[r] + i) * fade);
    from[r] = s;
  }
  for (i64 column = 0; column < dv; column += kWide) {
    const i64 columns = std::min<i64>(kWide, dv - column);
    tile_of(rows, columns)(from, 0, values + column, dv, count, y, column, columns, false, nullptr);
  }
}

void attend(const Heads &h, i64 first, i64 queries) {
  const i64 rows = queries * h.group, dv = (h.dv + kLanes - 1) / kLanes * kLanes, blocks = (h.keys + kWide - 1) / kWide;
  std::unique_ptr<float[]> keys(new float[h.d * kKeys]), values(new float[kKeys * dv]), q(new float[rows * h.d]),
      y(new float[rows * dv]());
  std::vector<float> m(rows, -3e38f), sum(rows, 0.f), scores(kRows * kKeys);
  std::vector<Sees> sights(queries * blocks);
  look(h, first, queries, blocks, sights.data());
  std::vector<const float *> q_rows(rows), masks(rows);
  std::vector<const Sees *> sight(rows);
  std::vector<float *> y_rows(rows);
  for (i64 row = 0; row < rows; ++row) {
    const i64 query = row / h.group;
    const float *from = h.q + (first + query) * h.q_step + row % h.group * h.d;
    for (i64 i = 0; i < h.d; ++i) q[row * h.d + i] = from[i] * h.scale;
    q_rows[row] = q.get() + row * h.d;
    y_rows[row] = y.get() + row * dv;
    sight[row] = sights.data() + query * blocks;
    masks[row] = h.mask ? h.mask + (first + query) * h.keys : nullptr;
  }
  float *targets[kRows];
  for (int r = 0; r < kRows; ++r) targets[r] = scores.data() + r * kKeys;
  for (i64 key = 0; key < h.keys; key += kKeys) {
    const i64 count = std::min(kKeys, h.keys - key);
    bool packed = false;
    for (i64 row = 0; row < rows; row += kRows) {
      const i64 n = std::min<i64>(kRows, rows - row);
      bool seen[kKeys / kWide] = {}, any = false;
      for (i64 b = 0; b * kWide < count; ++b)
        for (i64 r = row; r < row + n; ++r) any |= seen[b] |= sight[r][key / kWide + b] != kNone;
      if (!any) continue;
      if (!packed) {
        pack_rows(h.k + key * h.k_step, h.k_step, count, h.d, keys.get(), kKeys);
        pack_columns(h.v + key * h.v_step, h.v_step, h.dv, count, values.get(), dv);
        packed = true;
      }
      for (i64 b = 0; b * kWide < count; ++b) {
        const i64 columns = (std::min<i64>(kWide, count - b * kWide) + kLanes - 1) / kLanes * kLanes;
        if (seen[b])
          tile_of(n, columns)(q_rows.data() + row, 0, keys.get() + b * kWide, kKeys, h.d, targets, b * kWide, columns,
                              true, nullptr);
      }
      accumulate(n, key, count, scores.data(), sight.data() + row, masks.data() + row, values.get(), dv,
                 y_rows.data() + row, m.data() + row, sum.data() + row);
    }
  }
  for (i64 row = 0; row < rows; ++row) {
    float *to = h.y + (first + row / h.group) * h.y_step + row % h.group * h.dv;
    const float factor = sum[row] > 0 ? 1.f / sum[row] : 0.f;
    for (i64 i = 0; i < h.dv; ++i) to[i] = y_rows[row][i] * factor;
  }
}

KERNEL(attention, "q[B, S, H, D] k[B, K, T, D] v[B, K, T, V] scale[1] mask?[B, S, T] -> y[B, S, H * V] | "
                  "0 < H, 0 < K, H / K * K = H") {
  const i64 queries = a['S'], heads = a['H'], kv_heads = a['K'], keys = a['T'], d = a['D'], dv = a['V'], group = heads / kv_heads;
  const float *q = a.get("q"), *k = a.get("k"), *v = a.get("v"), *masks = a.get("mask"), scale = *a.get("scale");
  float *y = a.get("y");
  const i64 tokens = a['B'] * queries;
  for_each(tokens * kv_heads, tokens * heads * keys * (d + dv) * 0.08, [&](i64 task) {
    const i64 head = task % kv_heads, token = task / kv_heads, cache = (token / queries * kv_heads + head) * keys;
    const float *mask = masks ? masks + token * keys : nullptr;
    const float least = mask && keys ? largest(mask, keys) + kExcluded : 0.f;
    std::vector<i64> at;  // what the mask leaves; all where it leaves none
    std::vector<float> added;
    for (i64 t = 0; t < keys; ++t)
      if (!mask || mask[t] >= least) at.push_back(t), added.push_back(mask ? mask[t] : 0.f);
    const i64 query = token * heads + head * group;
    attend_query(q + query * d, group, Sight(k + cache * d, v + cache * dv, at, d, dv), scale, mask ? added.data() : nullptr,
                 y + query * dv);
  });
  return 0;
}

struct Piece { Heads heads; i64 first, queries; };

void add_pieces(std::vector<Piece> &pieces, const Heads &heads) {
  const i64 most = std::max<i64>(kQueryRows / heads.group, 1), parts = (heads.queries + most - 1) / most;
  for (i64 i = 0; i < parts; ++i) {
    const i64 begin = heads.queries * i / parts, end = heads.queries * (i + 1) / parts;
    pieces.push_back({heads, begin, end - begin});
  }
}

constexpr char kSegments[] = "packed_attention: the segments do not cover the rows of q";

int run(std::vector<Piece> &pieces) {
  double work = 0;
  for (const Piece &piece : pieces)
    work += 0.012 * piece.queries * piece.heads.group * piece.heads.keys * (piece.heads.d + piece.heads.dv + 32);
  for_each(pieces.size(), work, [&](i64 i) {  // late queries see more keys: they go first
    const Piece &piece = pieces[pieces.size() - 1 - i];
    attend(piece.heads, piece.first, piece.queries);
  });
  return 0;
}

KERNEL(attention_tiles, "q[B, S, H, D] k[B, K, T, D] v[B, K, T, V] scale[1] mask?[B, S, T] -> y[B, S, H * V] | "
                        "0 < H, 0 < K, H / K * K = H") {
  const i64 queries = a['S'], heads = a['H'], kv_heads = a['K'], keys = a['T'], d = a['D'], dv = a['V'], group = heads / kv_heads;
  const float *q = a.get("q"), *k = a.get("k"), *v = a.get("v"), *masks = a.get("mask"), scale = *a.get("scale");
  float *y = a.get("y");
  std::vector<Piece> pieces;
  for (i64 batch = 0; batch < a['B']; ++batch)
    for (i64 head = 0; head < kv_heads; ++head) {
      const float *mask = masks ? masks + batch * queries * keys : nullptr;
      const i64 first = batch * queries * heads + head * group, cache = (batch * kv_heads + head) * keys;
      add_pieces(pieces, {q + first * d, k + cache * d, v + cache * dv, mask, y + first * dv, queries, keys, group, d, dv,
                          heads * d, d, dv, heads * dv, scale});
    }
  return run(pieces);
}

KERNEL(packed_attention, "q[N, H, D] k[N, H, D] v[N, H, D] scale[1] ends:i[n] -> y[N, H * D]") {  // ends: of the segments
  const i64 rows = a['N'], heads = a['H'], d = a['D'], step = heads * d;
  const float *q = a.get("q"), *k = a.get("k"), *v = a.get("v"), scale = *a.get("scale");
  float *y = a.get("y");
  std::vector<Piece> pieces;
  i64 begin = 0;
  for (i64 i = 0; i < a['n']; ++i) {
    const i64 end = a.get<int32_t>("ends")[i];
    if (end < begin || end > rows) return refuse(kSegments);
    for (i64 head = 0; head < heads; ++head) {
      const i64 at = begin * step + head * d;
      add_pieces(pieces, {q + at, k + at, v + at, nullptr, y + at, end - begin, end - begin, 1, d, d, step, step, step, step, scale});
    }
    begin = end;
  }
  return begin == rows ? run(pieces) : refuse(kSegments);
}

}  // namespace
