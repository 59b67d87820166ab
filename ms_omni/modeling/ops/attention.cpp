// Softmax attention: of every query by itself (attention.h) and of many in tiles (tiles.h).

#include "tiles.h"

namespace {

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
    VisibleKeys visible({k + cache * d, d}, {v + cache * dv, dv}, d, dv);  // what the mask leaves; all where it leaves none
    std::vector<float> added;
    for (i64 t = 0, begin; mask && t < keys; visible.add(begin, t)) {
      while (t < keys && !(mask[t] >= least)) ++t;
      for (begin = t; t < keys && mask[t] >= least; ++t) added.push_back(mask[t]);
    }
    if (!mask) visible.add(0, keys);
    const i64 query = token * heads + head * group;
    attend_query(q + query * d, group, visible, scale, mask ? added.data() : nullptr, y + query * dv);
  });
  return 0;
}

constexpr char kSegments[] = "packed_attention: the segments do not cover the rows of q";

int run(const std::vector<Piece> &pieces) {
  ThreadPool pool(pieces_work(pieces));
  run(pool, pieces);
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

  VisibleKeys visible_keys(i64 row, i64 head) const {
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
    VisibleKeys visible = p.visible_keys(row, head);
    visible.add(0, std::min<i64>(p.first[row] + token % p.queries + 1, p.lengths[row]));
    const i64 query = token * p.heads + head * p.group;
    attend_query(p.q + query * p.d, p.group, visible, p.scale, nullptr, p.y + query * p.dv);
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
      const VisibleKeys visible = p.visible_keys(row, head);
      add_pieces(pieces, {p.q + query * p.d, nullptr, visible.keys, visible.values, p.y + query * p.dv, p.queries, p.lengths[row],
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
