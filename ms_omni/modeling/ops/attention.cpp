// Softmax attention of many queries, in tiles: scores of a few rows by 256 keys exist at a time, whatever the lengths are.
//
//     for each block of queries (one head, or the query heads that share one):
//         for each tile of keys:  s = q k' + mask;  m' = max(m, s);  p = exp(s - m')
//                                 sum = sum exp(m - m') + p;  y = y exp(m - m') + p v        (Milakov & Gimelshein 2018)
//         y /= sum

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
void look(const Heads &h, i64 first, i64 count, i64 blocks, Sees *sight) {
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
void accumulate(i64 rows, i64 first_key, i64 count, float *scores, const Sees *const *sight, const float *const *mask,
                const i64 *visible, const float *values, i64 dv, float *const *y, float *m, float *sum) {
  const i64 padded = (count + kLanes - 1) / kLanes * kLanes;
  for (i64 r = 0; r < rows; ++r) {
    float *s = scores + r * kKeys;
    for (i64 t = 0; t < count; t += kWide) {
      const i64 stop = std::min<i64>(t + kWide, count);
      const Sees seen = sight[r][(first_key + t) / kWide];
      if (seen == kNone)
        std::fill(s + t, s + stop, -3e38f);
      else if (seen == kMixed && !mask[r])
        std::fill(s + std::max(t, visible[r] - first_key), s + stop, -3e38f);
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
  }
  for (i64 column = 0; column < dv; column += kWide) {
    const i64 columns = std::min<i64>(kWide, dv - column);
    tile_of<kKeys, 1>(rows, columns)(scores, values + column, dv, count, y, column, columns, false, nullptr);
  }
}

void attend(const Heads &h, i64 first, i64 queries) {
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

KERNEL(attention, "q[B, S, H, D] k[B, K, T, D] v[B, K, T, V] scale[1] mask?[B, S, T] -> y[B, S, H * V] | "
                  "0 < H, 0 < K, H / K * K = H") {
  const i64 queries = a['S'], heads = a['H'], kv_heads = a['K'], keys = a['T'], d = a['D'], dv = a['V'], group = heads / kv_heads;
  const float *q = a.get("q"), *masks = a.get("mask"), scale = *a.get("scale");
  float *k = a.get("k"), *v = a.get("v"), *y = a.get("y");
  const i64 tokens = a['B'] * queries;
  for_each(tokens * kv_heads, tokens * heads * keys * (d + dv) * 0.08, [&](i64 task) {
    const i64 head = task % kv_heads, token = task / kv_heads, cache = (token / queries * kv_heads + head) * keys;
    const float *mask = masks ? masks + token * keys : nullptr;
    const float least = mask && keys ? largest(mask, keys) + kExcluded : 0.f;
    Sight sight({k + cache * d, d}, {v + cache * dv, dv}, d, dv);  // what the mask leaves; all where it leaves none
    std::vector<float> added;
    for (i64 t = 0, begin; mask && t < keys; sight.add(begin, t)) {
      while (t < keys && !(mask[t] >= least)) ++t;
      for (begin = t; t < keys && mask[t] >= least; ++t) added.push_back(mask[t]);
    }
    if (!mask) sight.add(0, keys);
    const i64 query = token * heads + head * group;
    attend_query(q + query * d, group, sight, scale, mask ? added.data() : nullptr, y + query * dv);
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
  const float *q = a.get("q"), *masks = a.get("mask"), scale = *a.get("scale");
  float *k = a.get("k"), *v = a.get("v"), *y = a.get("y");
  std::vector<Piece> pieces;
  for (i64 batch = 0; batch < a['B']; ++batch)
    for (i64 head = 0; head < kv_heads; ++head) {
      const float *mask = masks ? masks + batch * queries * keys : nullptr;
      const i64 first = batch * queries * heads + head * group, cache = (batch * kv_heads + head) * keys;
      add_pieces(pieces, {q + first * d, mask, {k + cache * d, d}, {v + cache * dv, dv}, y + first * dv, queries, keys, group,
                          d, dv, heads * d, heads * dv, scale});
    }
  return run(pieces);
}

KERNEL(packed_attention, "q[N, H, D] k[N, H, D] v[N, H, D] scale[1] ends:i[n] -> y[N, H * D]") {  // ends: of the segments
  const i64 rows = a['N'], heads = a['H'], d = a['D'], step = heads * d;
  const float *q = a.get("q"), scale = *a.get("scale");
  float *k = a.get("k"), *v = a.get("v"), *y = a.get("y");
  std::vector<Piece> pieces;
  i64 begin = 0;
  for (i64 i = 0; i < a['n']; ++i) {
    const i64 end = a.get<int32_t>("ends")[i];
    if (end < begin || end > rows) return refuse(kSegments);
    for (i64 head = 0; head < heads; ++head) {
      const i64 at = begin * step + head * d;
      add_pieces(pieces, {q + at, nullptr, {k + at, step}, {v + at, step}, y + at, end - begin, end - begin, 1, d, d, step, step,
                          scale});
    }
    begin = end;
  }
  return begin == rows ? run(pieces) : refuse(kSegments);
}

// ---- keys and values in blocks -------------------------------------------------------------------------------------

// What the two kernels take: keys and values in P positions a block, n blocks a row; with scales they are int8, else float32.
#define MS_OMNI_PAGED                                                                                               \
  "q[B, S, H, D] keys:a[N, K, P, D] values:a[N, K, P, V] tables:i[B, n] first:i[B] lengths:i[B] scale[1] "            \
  "key_scales?[N, K, P, 1] value_scales?[N, K, P, 1] -> y[B, S, H * V] | 0 < H, 0 < K, H / K * K = H"

struct Paged {
  const i64 queries, heads, kv_heads, width, block, d, dv, group;
  const float *q, scale;
  void *keys, *values;
  float *key_scales, *value_scales, *y;
  const int32_t *tables, *first, *lengths;

  explicit Paged(const Arguments &a)
      : queries(a['S']), heads(a['H']), kv_heads(a['K']), width(a['n']), block(a['P']), d(a['D']), dv(a['V']), group(heads / kv_heads),
        q(a.get("q")), scale(*a.get("scale")), keys(a.get<void>("keys")), values(a.get<void>("values")),
        key_scales(a.get("key_scales")), value_scales(a.get("value_scales")), y(a.get("y")),
        tables(a.get<int32_t>("tables")), first(a.get<int32_t>("first")), lengths(a.get<int32_t>("lengths")) {}

  // Why keys and values are not what the scales say, or the numbers lead outside; empty: neither.
  std::string wrong(const char *kernel, const Arguments &a) const {
    const std::string type = key_scales ? "int8" : "float32";
    if (!key_scales != !value_scales) return std::string(kernel) + ": there are scales of keys or of values only";
    for (const char *name : {"keys", "values"})
      if (a.type(name) != type)
        return std::string(kernel) + ": " + name + " are " + a.type(name) + ", expected " + type +
               (key_scales ? " beside scales" : " without scales");
    const i64 rows = a['B'];
    const std::string found = misplaced(kernel, tables, lengths, rows, width, block, a['N']);
    for (i64 row = 0; row < rows && found.empty(); ++row)
      if (first[row] < 0 || first[row] >= lengths[row])
        return std::string(kernel) + ": first holds " + std::to_string(first[row]) + " for a length of " + std::to_string(lengths[row]);
    return found;
  }

  Sight seen(i64 row, i64 head) const {
    return {rows(keys, key_scales, d, row, head), rows(values, value_scales, dv, row, head), d, dv};
  }

 private:
  Rows rows(void *at, float *scales, i64 columns, i64 row, i64 head) const {
    return in_blocks(at, scales, columns, head, kv_heads, block, tables + row * width);
  }
};

KERNEL(paged_attention, MS_OMNI_PAGED) {  // each query by itself
  const Paged p(a);
  const std::string wrong = p.wrong("paged_attention", a);
  if (!wrong.empty()) return refuse(wrong);
  double keys = 0;
  for (i64 row = 0; row < a['B']; ++row) keys += p.lengths[row];
  for_each(a['B'] * p.queries * p.kv_heads, keys * p.queries * p.heads * (p.d + p.dv) * 0.08, [&](i64 task) {
    const i64 head = task % p.kv_heads, token = task / p.kv_heads, row = token / p.queries;
    Sight sight = p.seen(row, head);
    sight.add(0, std::min<i64>(p.first[row] + token % p.queries + 1, p.lengths[row]));
    const i64 query = token * p.heads + head * p.group;
    attend_query(p.q + query * p.d, p.group, sight, p.scale, nullptr, p.y + query * p.dv);
  });
  return 0;
}

KERNEL(paged_attention_tiles, MS_OMNI_PAGED ", P / 16 * 16 = P") {  // tiles of keys begin at multiples of kKeys of a row's positions
  const Paged p(a);
  const std::string wrong = p.wrong("paged_attention_tiles", a);
  if (!wrong.empty()) return refuse(wrong);
  std::vector<Piece> pieces;
  for (i64 row = 0; row < a['B']; ++row)
    for (i64 head = 0; head < p.kv_heads; ++head) {
      const i64 query = row * p.queries * p.heads + head * p.group;
      const Sight seen = p.seen(row, head);
      add_pieces(pieces, {p.q + query * p.d, nullptr, seen.keys, seen.values, p.y + query * p.dv, p.queries, p.lengths[row],
                          p.group, p.d, p.dv, p.heads * p.d, p.heads * p.dv, p.scale, p.first[row]});
    }
  return run(pieces);
}

// Of a cache that keeps codes: see codes.h.
KERNEL(encode_rows, "x[M, D] -> codes:a[M, D] scales[M, 1]") {
  if (std::strcmp(a.type("codes"), "int8")) return refuse(std::string("encode_rows: codes are ") + a.type("codes") + ", expected int8");
  const i64 d = a['D'];
  for_ranges(a['M'], d * 0.5, [&](i64 begin, i64 end) {
    for (i64 row = begin; row < end; ++row) encode(a.get("x") + row * d, d, a.get<int8_t>("codes") + row * d, a.get("scales")[row]);
  });
  return 0;
}

}  // namespace
