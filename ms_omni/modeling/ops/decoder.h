// A decoder stack on a few rows: what `DecoderLayer` and `Decoder` do, product after product, without a launch between.

#pragma once

#include "attention.h"

namespace {

// The structs that cpu_fused.py fills, by the names that it asks for here (`Struct` in cpu_kernel.py). A table is some of
// them one behind the other, 64 bits a member. A pointer is null where a layer has no such parameter.
#define MS_OMNI_LAYER(_) /* the weights of `LayerWeights` in fused.py, and sizes; gate, up, down: or the shared expert's */ \
  _(const float *, input_norm) _(Matrix, q) _(Matrix, k) _(Matrix, v) _(Matrix, o)                                           \
  _(const float *, q_bias) _(const float *, k_bias) _(const float *, v_bias) _(const float *, o_bias)                       \
  _(const float *, q_norm) _(const float *, k_norm) _(const float *, post_norm)                                             \
  _(Matrix, gate) _(Matrix, up) _(Matrix, down) _(Matrix, shared_gate) _(Matrix, router)                                    \
  _(Matrix, experts_gate_up) _(Matrix, experts_down)                                                                        \
  _(i64, inner) _(i64, experts) _(i64, top_k) _(i64, expert_inner) _(i64, normalise)

#define MS_OMNI_STACK(_) \
  _(i64, width) _(i64, heads) _(i64, kv_heads) _(i64, head_dim) _(double, eps) _(const float *, norm) _(i64, layers)

STRUCT(Layer, MS_OMNI_LAYER);
STRUCT(Sizes, MS_OMNI_STACK);
NAMES(Layer, Layer, MS_OMNI_LAYER)
NAMES(Sizes, Stack, MS_OMNI_STACK)

// Reads a table from its begin to its end. What would lie behind the end is zeros, and the table is not whole.
class Table {
 public:
  Table(const i64 *at, i64 size) : at_(at), end_(at + size) {}

  template <class Struct>
  Struct next() {
    Struct found{};
    if (const Struct *from = next<Struct>(1)) found = *from;
    return found;
  }

  // `count` of them; null: there are not so many.
  template <class Struct>
  const Struct *next(i64 count) {
    constexpr i64 size = sizeof(Struct) / sizeof(i64);
    whole_ &= 0 <= count && count <= (end_ - at_) / size;
    const i64 *from = at_;
    at_ += whole_ ? count * size : 0;
    return whole_ ? reinterpret_cast<const Struct *>(from) : nullptr;
  }

  bool read() const { return whole_ && at_ == end_; }  // all of it, and no more

 private:
  const i64 *at_, *end_;
  bool whole_ = true;
};

// Keys and values `[blocks, K, block, D]` of one layer, see `in_blocks`.
struct Buffers {
  void *keys, *values;
  float *key_scales = nullptr, *value_scales = nullptr;
};

#define MS_OMNI_CACHE(_) _(i64, blocks) _(i64, block) _(i64, width) _(i64, scaled)

STRUCT(Cache, MS_OMNI_CACHE);
NAMES(Cache, Cache, MS_OMNI_CACHE)

// The cache of a table: the struct, the keys of each layer and the values of each, then their scales if they are codes (scaled), the
// positions that each row has (the new ones included), the numbers of each row's blocks.
struct Cached : Cache {
  std::vector<Buffers> buffers;  // of each layer
  const i64 *lengths = nullptr, *tables = nullptr;

  Cached(Table &t, i64 layers, i64 rows) : Cache(t.next<Cache>()) {
    const auto counts = [](i64 x) { return 0 < x && x <= INT32_MAX; };
    const bool sized = counts(blocks) && counts(block) && counts(width) && counts(block * width);
    void *const *keys = t.next<void *>(layers), *const *values = t.next<void *>(layers);
    float *const *key_scales = scaled ? t.next<float *>(layers) : nullptr;
    float *const *value_scales = scaled ? t.next<float *>(layers) : nullptr;
    lengths = t.next<i64>(rows), tables = t.next<i64>(sized ? rows * width : -1);
    for (i64 i = 0; tables && i < layers; ++i)
      buffers.push_back(scaled ? Buffers{keys[i], values[i], key_scales[i], value_scales[i]} : Buffers{keys[i], values[i]});
  }
};

// Where the rows stand: row n is new token n % fresh of batch row n / fresh, whose last one is at position length - 1.
struct Place {
  i64 rows, fresh;
  const float *cos, *sin;        // `[rows, D / 2]`
  std::vector<int32_t> lengths;  // `[B]`: positions of each batch row, the new ones included
  std::vector<int32_t> tables;   // `[B, width]`: the numbers of its blocks
  i64 width, block;
};

// One matrix of one expert: `[in, out]`, or as codes `[out, in]`.
struct Expert {
  const Matrix &w;
  i64 number, in, out;

  // y = x times outputs [begin, begin + n), of rows `distance` apart.
  void multiply(const std::vector<const float *> &x, i64 begin, i64 n, float *y, i64 distance) const {
    const i64 rows = x.size();
    if (w.kind == kFloat32) return in_order(static_cast<const float *>(w.numbers), x, begin, n, y, distance);
    if (w.kind == kBfloat16) return in_order(static_cast<const Bfloat16 *>(w.numbers), x, begin, n, y, distance);
    Floats together(rows > 1 ? rows * in : 0);
    for (i64 row = 0; rows > 1 && row < rows; ++row) std::copy_n(x[row], in, together.data() + row * in);
    Inputs inputs(rows > 1 ? together.data() : x[0], rows, in);
    inputs.write_for(w);
    inputs.multiply({w, nullptr, distance, y, false, number * out + begin}, 0, n);
  }

 private:
  template <class W>
  void in_order(const W *w, const std::vector<const float *> &x, i64 begin, i64 n, float *y, i64 distance) const {
    std::vector<float *> to(x.size());
    for (size_t row = 0; row < to.size(); ++row) to[row] = y + row * distance;
    product_in_order(x.data(), to.size(), in, w + number * in * out + begin, out, to.data(), n);
  }
};

class Stack {
 public:
  const i64 width, heads, kv_heads, d;

  explicit Stack(Table &t) : Stack(t.next<Sizes>(), t) {}

  // Whether the sizes can be those of a stack; what the addresses point to has been compared with them in Python.
  bool sound() const {
    bool sound = width > 0 && kv_heads > 0 && heads > 0 && heads % kv_heads == 0 && d > 0 && d % 2 == 0;
    for (const auto &l : layers_) sound &= l.experts ? 0 < l.top_k && l.top_k <= l.experts && l.expert_inner > 0 : l.inner > 0;
    return sound;
  }

  i64 layers() const { return layers_.size(); }
  const Layer &layer(i64 i) const { return layers_[i]; }
  float eps() const { return eps_; }

  // Estimate for `rows` rows, in nanoseconds.
  double work(i64 rows) const {
    double weights = 0;
    for (const auto &l : layers_) {
      const i64 pairs = l.experts ? std::min(rows * l.top_k, l.experts) : 0;
      weights += width * (2. * (heads + kv_heads) * d + 3. * l.inner + 3. * pairs * l.expert_inner + l.experts);
    }
    return weights * (0.1 + 0.02 * rows);
  }

  // x `[rows, width]` becomes the output of the last layer before the final norm.
  void run(ThreadPool &pool, float *x, const Place &place, const Buffers *buffers) {
    normed_.resize(place.rows * width);
    for (i64 i = 0; i < layers(); ++i) {
      attend(pool, layers_[i], x, place, buffers[i]);
      norm_rows(x, layers_[i].post_norm, place.rows);
      if (layers_[i].experts) mix(pool, layers_[i], x, place.rows);
      else dense(pool, layers_[i], x, place.rows);
    }
  }

  // y = the final norm of x, one row.
  void finish(const float *x, float *y) const { rms_norm(x, norm_, eps_, y, width); }

 private:
  Stack(const Sizes &s, Table &t) : width(s.width), heads(s.heads), kv_heads(s.kv_heads), d(s.head_dim), eps_(s.eps), norm_(s.norm) {
    if (const auto *layers = t.next<Layer>(s.layers)) layers_.assign(layers, layers + s.layers);
  }

  void norm_rows(const float *x, const float *weight, i64 rows) {
    for (i64 row = 0; row < rows; ++row) rms_norm(x + row * width, weight, eps_, normed_.data() + row * width, width);
  }

  void attend(ThreadPool &pool, const Layer &l, float *x, const Place &place, const Buffers &to) {
    const i64 rows = place.rows, queries = heads * d, keys = kv_heads * d;
    q_.resize(rows * queries), k_.resize(rows * keys), v_.resize(rows * keys), mixed_.resize(rows * queries);
    norm_rows(x, l.input_norm, rows);
    multiply(pool, normed_.data(), rows, width,
                {{l.q, l.q_bias, queries, q_.data()}, {l.k, l.k_bias, keys, k_.data()}, {l.v, l.v_bias, keys, v_.data()}});
    const i64 tasks = rows / place.fresh * kv_heads;
    i64 positions = 8 * rows;
    for (const i64 length : place.lengths) positions += length;
    const auto task = [&](i64 i) { attend_head(l, place, to, i / kv_heads, i % kv_heads); };
    if (positions * d * heads < 20'000)  // less than it takes to share it
      for (i64 i = 0; i < tasks; ++i) task(i);
    else
      pool.run(tasks, task);
    multiply(pool, mixed_.data(), rows, queries, {{l.o, l.o_bias, width, x, true}});
  }

  // The new tokens of one batch row and kv head: norms, rotation, storing, attention.
  void attend_head(const Layer &l, const Place &place, const Buffers &to, i64 batch, i64 head) {
    const i64 group = heads / kv_heads;
    const float scale = 1.f / std::sqrt(static_cast<float>(d));
    const auto rows = [&](void *at, float *scales) {
      return in_blocks(at, scales, d, head, kv_heads, place.block, place.tables.data() + batch * place.width);
    };
    const Rows keys = rows(to.keys, to.key_scales), values = rows(to.values, to.value_scales);
    for (i64 fresh = 0; fresh < place.fresh; ++fresh) {
      const i64 row = batch * place.fresh + fresh, position = place.lengths[batch] - place.fresh + fresh;
      const float *cos = place.cos + row * d / 2, *sin = place.sin + row * d / 2;
      float *k = k_.data() + (row * kv_heads + head) * d, *q = q_.data() + (row * heads + head * group) * d;
      norm_and_rotate(k, l.k_norm, cos, sin);
      keys.put(position, k, d);
      values.put(position, v_.data() + (row * kv_heads + head) * d, d);
      for (i64 g = 0; g < group; ++g) norm_and_rotate(q + g * d, l.q_norm, cos, sin);
      VisibleKeys visible(keys, values, d, d);
      visible.add(0, position + 1);
      attend_query(q, group, visible, scale, nullptr, mixed_.data() + (row * heads + head * group) * d);
    }
  }

  void norm_and_rotate(float *x, const float *weight, const float *cos, const float *sin) const {
    if (weight) rms_norm(x, weight, eps_, x, d);
    rotate(x, cos, sin, x, d / 2);
  }

  void dense(ThreadPool &pool, const Layer &l, float *x, i64 rows) {
    gate_.resize(rows * l.inner), up_.resize(rows * l.inner);
    multiply(pool, normed_.data(), rows, width,
                {{l.gate, nullptr, l.inner, gate_.data()}, {l.up, nullptr, l.inner, up_.data()}});
    activate(gate_.data(), up_.data(), gate_.data(), rows * l.inner);
    multiply(pool, gate_.data(), rows, l.inner, {{l.down, nullptr, width, x, true}});
  }

  // Experts, and the shared one where there is one.
  void mix(ThreadPool &pool, const Layer &l, float *x, i64 rows) {
    logits_.resize(rows * l.experts);
    multiply(pool, normed_.data(), rows, width, {{l.router, nullptr, l.experts, logits_.data()}});
    weights_.resize(rows * l.top_k), indices_.resize(rows * l.top_k);
    for (i64 row = 0; row < rows; ++row)
      route(logits_.data() + row * l.experts, l.experts, l.top_k, l.normalise, weights_.data() + row * l.top_k,
            indices_.data() + row * l.top_k);
    if (l.shared_gate.numbers) share(pool, l, x, rows);
    group(l, rows);
    widen_experts(pool, l);
    narrow_experts(pool, l);
    for (i64 pair = 0; pair < rows * l.top_k; ++pair)
      add_scaled(x + pair / l.top_k * width, results_.data() + pair * width, weights_[pair], width);
  }

  void share(ThreadPool &pool, const Layer &l, float *x, i64 rows) {
    gate_.resize(rows * l.inner), up_.resize(rows * l.inner), results_.resize(rows * width);
    multiply(pool, normed_.data(), rows, width,
                {{l.gate, nullptr, l.inner, gate_.data()}, {l.up, nullptr, l.inner, up_.data()}});
    activate(gate_.data(), up_.data(), gate_.data(), rows * l.inner);
    multiply(pool, gate_.data(), rows, l.inner, {{l.down, nullptr, width, results_.data()}});
    logits_.resize(rows);
    multiply(pool, normed_.data(), rows, width, {{l.shared_gate, nullptr, 1, logits_.data()}});
    for (i64 row = 0; row < rows; ++row)
      add_scaled(x + row * width, results_.data() + row * width, logistic(all(logits_[row]))[0], width);
  }

  // Pairs (row, place) ordered by expert: those of the u-th expert in use are pairs_[first_[u] .. first_[u + 1]).
  void group(const Layer &l, i64 rows) {
    const i64 count = rows * l.top_k;
    pairs_.resize(count);
    for (i64 pair = 0; pair < count; ++pair) pairs_[pair] = pair;
    std::stable_sort(pairs_.begin(), pairs_.end(), [&](i64 a, i64 b) { return indices_[a] < indices_[b]; });
    first_.clear();
    for (i64 i = 0; i < count; ++i)
      if (i == 0 || indices_[pairs_[i]] != indices_[pairs_[i - 1]]) first_.push_back(i);
    used_ = first_.size();
    first_.push_back(count);
  }

  // Outputs of a matrix that one task makes: whole cache lines, and enough tasks for the thread pool. Codes lie output by output, so that
  // small tasks read them in long runs too and threads end together.
  i64 panel(const ThreadPool &pool, const Matrix &w, i64 outputs) const {
    const i64 each = w.kind == kInt8 || w.kind == kInt4 ? 16 : 4;
    const i64 wanted = std::max<i64>(1, each * pool.size() / std::max<i64>(used_, 1));
    return std::max<i64>(64, (outputs / wanted + 63) / 64 * 64);
  }

  // hidden_ [pair] = silu(gate) * up
  void widen_experts(ThreadPool &pool, const Layer &l) {
    const i64 inner = l.expert_inner, step = panel(pool, l.experts_gate_up, inner), panels = (inner + step - 1) / step;
    hidden_.resize(pairs_.size() * inner);
    pool.run(used_ * panels, [&](i64 task) {
      const i64 use = task / panels, begin = task % panels * step, n = std::min(step, inner - begin);
      const i64 rows = first_[use + 1] - first_[use];
      const i64 *pairs = pairs_.data() + first_[use];
      Floats made(rows * 2 * n);
      std::vector<const float *> from(rows);
      for (i64 row = 0; row < rows; ++row) from[row] = normed_.data() + pairs[row] / l.top_k * width;
      const Expert from_expert{l.experts_gate_up, indices_[pairs[0]], width, 2 * inner};
      if (n == inner) {  // both lie side by side, there and here
        from_expert.multiply(from, 0, 2 * n, made.data(), 2 * n);
      } else {
        from_expert.multiply(from, begin, n, made.data(), 2 * n);
        from_expert.multiply(from, inner + begin, n, made.data() + n, 2 * n);
      }
      for (i64 row = 0; row < rows; ++row) {
        const float *gate = made.data() + row * 2 * n;
        activate(gate, gate + n, hidden_.data() + pairs[row] * inner + begin, n);
      }
    });
  }

  // results_ [pair] = hidden_ [pair] down
  void narrow_experts(ThreadPool &pool, const Layer &l) {
    const i64 inner = l.expert_inner, step = panel(pool, l.experts_down, width), panels = (width + step - 1) / step;
    results_.resize(pairs_.size() * width);
    pool.run(used_ * panels, [&](i64 task) {
      const i64 use = task / panels, begin = task % panels * step, n = std::min(step, width - begin);
      const i64 rows = first_[use + 1] - first_[use];
      const i64 *pairs = pairs_.data() + first_[use];
      Floats made(rows * n);
      std::vector<const float *> from(rows);
      for (i64 row = 0; row < rows; ++row) from[row] = hidden_.data() + pairs[row] * inner;
      Expert{l.experts_down, indices_[pairs[0]], inner, width}.multiply(from, begin, n, made.data(), n);
      for (i64 row = 0; row < rows; ++row)
        std::copy_n(made.data() + row * n, n, results_.data() + pairs[row] * width + begin);
    });
  }

  float eps_;
  const float *norm_;
  std::vector<Layer> layers_;
  Floats normed_, q_, k_, v_, mixed_, gate_, up_, logits_, weights_, hidden_, results_;
  std::vector<int32_t> indices_;
  std::vector<i64> pairs_, first_;
  i64 used_ = 0;
};

// Why x of this width, cos of half a head and a cache do not fit a stack; empty: they do.
inline std::string misfit(const char *kernel, const Stack &stack, i64 width, i64 half, const Cached &cache, i64 rows) {
  if (stack.width != width || stack.d != 2 * half)
    return std::string(kernel) + ": x and cos are not as wide as the stack, " + std::to_string(stack.width) + " and half of " +
           std::to_string(stack.d);
  return misplaced(kernel, cache.tables, cache.lengths, rows, cache.width, cache.block, cache.blocks);
}

}  // namespace
