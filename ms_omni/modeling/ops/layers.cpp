// Whole layers on many rows: those of an encoder, and those of a decoder that reads a prompt. They do what the cells do operator by
// operator, without a launch and without new threads between.

#include "decoder.h"
#include "dense.h"
#include "tiles.h"

namespace {

// y = a + b; y may be one of them.
void add(ThreadPool &pool, const float *a, const float *b, float *y, i64 n) {
  pool.run_ranges(n, 0.3, [&](i64 begin, i64 end) {
    map(end - begin, y + begin, [](vec a, vec b) { return a + b; }, a + begin, b + begin);
  });
}

// ---- encoders ------------------------------------------------------------------------------------------------------

// joined: q makes queries, keys and values one behind the other. activation: gelu, gelu_tanh, silu.
#define MS_OMNI_ENCODER(_)                                                                                                 \
  _(i64, joined) _(i64, heads) _(i64, head_dim) _(i64, inner) _(i64, activation) _(double, scale) _(double, eps)           \
  _(i64, layers)

#define MS_OMNI_ENCODER_LAYER(_)                                                                                           \
  _(const float *, norm) _(const float *, norm_bias) _(Matrix, q) _(Matrix, k) _(Matrix, v)                                \
  _(const float *, q_bias) _(const float *, k_bias) _(const float *, v_bias) _(Matrix, out) _(const float *, out_bias)     \
  _(const float *, mlp_norm) _(const float *, mlp_norm_bias)                                                              \
  _(Matrix, fc1) _(const float *, fc1_bias) _(Matrix, fc2) _(const float *, fc2_bias)

#define MS_OMNI_PROJECTOR(_)                                                                                               \
  _(const float *, norm) _(const float *, norm_bias) _(Matrix, fc1) _(const float *, fc1_bias) _(Matrix, fc2)              \
  _(const float *, fc2_bias) _(i64, norm_width) _(i64, inner) _(i64, activation) _(double, eps)

STRUCT(Encoder, MS_OMNI_ENCODER);
NAMES(Encoder, Encoder, MS_OMNI_ENCODER)
STRUCT(EncoderLayer, MS_OMNI_ENCODER_LAYER);
NAMES(EncoderLayer, EncoderLayer, MS_OMNI_ENCODER_LAYER)
STRUCT(Projector, MS_OMNI_PROJECTOR);
NAMES(Projector, Projector, MS_OMNI_PROJECTOR)

constexpr double kActivationWork = 0.6;  // nanoseconds for a number

template <class Function>
void activate_rows(ThreadPool &pool, float *x, i64 n, const Function &function) {
  pool.run_ranges(n, kActivationWork, [&](i64 begin, i64 end) { map(end - begin, x + begin, function, x + begin); });
}

void activate_rows(ThreadPool &pool, i64 activation, float *x, i64 n) {  // by a constant, so that it is compiled in place
  if (activation == 0) activate_rows(pool, x, n, [](vec x) { return gaussian_linear(x); });
  else if (activation == 1) activate_rows(pool, x, n, [](vec x) { return gaussian_tanh(x); });
  else activate_rows(pool, x, n, [](vec x) { return sigmoid_linear(x); });
}

void norm_rows(ThreadPool &pool, const float *x, const float *weight, const float *bias, float eps, float *y, i64 rows, i64 width) {
  pool.run_ranges(rows, width * 0.4, [&](i64 begin, i64 end) {
    for (i64 row = begin; row < end; ++row) layer_norm(x + row * width, weight, bias, eps, y + row * width, width);
  });
}

// Layers in a row; ends: of the segments, within which rows attend to one another; cos, sin: of `rotary`, where they take them.
KERNEL(encoder_layers, "x[N, D] ends:i[n] table:l[t] cos?[N, d] sin?[N, d] -> y[N, D]") {
  Table t(a.get<i64>("table"), a['t']);
  const auto s = t.next<Encoder>();
  const EncoderLayer *layers = t.next<EncoderLayer>(s.layers);
  const i64 rows = a['N'], width = a['D'], d = s.head_dim, all_heads = s.heads * d, step = 3 * all_heads;
  const float *cos = a.get("cos"), *sin = a.get("sin"), *x = a.get("x");
  if (!t.read() || s.layers < 1 || s.heads < 1 || d < 1 || s.inner < 1 || s.activation < 0 || s.activation > 2)
    return refuse("encoder_layers: the table does not describe layers");
  if (!cos != !sin || (cos && 2 * a['d'] != d)) return refuse("encoder_layers: cos and sin are not of half a head, " + std::to_string(d) + " / 2");
  double work = product_work(rows, width, step) + product_work(rows, all_heads, width) + 2 * product_work(rows, width, s.inner);
  Space<> normed(rows * width), qkv(rows * step), attended(rows * all_heads), hidden(rows * s.inner), made(rows * width);
  std::vector<Piece> pieces;
  for (i64 i = 0, begin = 0, end; i < a['n'] || begin < rows; ++i, begin = end) {
    end = i < a['n'] ? a.get<int32_t>("ends")[i] : -1;
    if (end < begin || end > rows) return refuse("encoder_layers: the segments do not cover the rows of x");
    for (i64 head = 0; head < s.heads; ++head) {
      float *q = qkv.get() + begin * step + head * d;
      add_pieces(pieces, {q, nullptr, {q + all_heads, step}, {q + 2 * all_heads, step}, attended.get() + begin * all_heads + head * d,
                          end - begin, end - begin, 1, d, d, step, all_heads, static_cast<float>(s.scale)});
    }
  }
  ThreadPool pool(s.layers * (work + pieces_work(pieces)));
  float *y = a.get("y");
  for (const EncoderLayer *l = layers; l < layers + s.layers; ++l, x = y) {
    norm_rows(pool, x, l->norm, l->norm_bias, s.eps, normed.get(), rows, width);
    if (s.joined) {
      product(pool, l->q, l->q_bias, normed.get(), rows, width, step, qkv.get(), step);
    } else {
      product(pool, l->q, l->q_bias, normed.get(), rows, width, all_heads, qkv.get(), step);
      product(pool, l->k, l->k_bias, normed.get(), rows, width, all_heads, qkv.get() + all_heads, step);
      product(pool, l->v, l->v_bias, normed.get(), rows, width, all_heads, qkv.get() + 2 * all_heads, step);
    }
    if (cos)
      pool.run_ranges(rows, 2.0 * all_heads, [&](i64 begin, i64 end) {
        for (i64 row = begin; row < end; ++row)
          for (float *head = qkv.get() + row * step, *stop = head + 2 * all_heads; head < stop; head += d)
            rotate(head, cos + row * d / 2, sin + row * d / 2, head, d / 2);
      });
    run(pool, pieces);
    product(pool, l->out, l->out_bias, attended.get(), rows, all_heads, width, made.get(), width);
    add(pool, x, made.get(), y, rows * width);
    norm_rows(pool, y, l->mlp_norm, l->mlp_norm_bias, s.eps, normed.get(), rows, width);
    product(pool, l->fc1, l->fc1_bias, normed.get(), rows, width, s.inner, hidden.get(), s.inner);
    activate_rows(pool, s.activation, hidden.get(), rows * s.inner);
    product(pool, l->fc2, l->fc2_bias, hidden.get(), rows, s.inner, width, made.get(), width);
    add(pool, y, made.get(), y, rows * width);
  }
  return 0;
}

// y = fc2(activation(fc1(norm(x)))): m numbers of x, which are one row or several, for each row of y.
KERNEL(projector, "x[N, D] table:l[t] in:i[m] out:i[O] -> y[N * D / m, O] | 0 < m") {
  Table t(a.get<i64>("table"), a['t']);
  const auto p = t.next<Projector>();
  const i64 all = a['N'] * a['D'], in = a['m'], rows = all / in;
  if (!t.read() || p.norm_width < 1 || p.inner < 1 || p.activation < 0 || p.activation > 2)
    return refuse("projector: the table does not describe a projector");
  if (all % in || a['D'] != p.norm_width)
    return refuse("projector: rows of x hold " + std::to_string(a['D']) + " numbers, expected " + std::to_string(p.norm_width) +
                  ", and in all a multiple of " + std::to_string(in));
  ThreadPool pool(product_work(rows, in, p.inner) + product_work(rows, p.inner, a['O']));
  Space<> normed(all), hidden(rows * p.inner);
  norm_rows(pool, a.get("x"), p.norm, p.norm_bias, p.eps, normed.get(), all / p.norm_width, p.norm_width);
  product(pool, p.fc1, p.fc1_bias, normed.get(), rows, in, p.inner, hidden.get(), p.inner);
  activate_rows(pool, p.activation, hidden.get(), rows * p.inner);
  product(pool, p.fc2, p.fc2_bias, hidden.get(), rows, p.inner, a['O'], a.get("y"), a['O']);
  return 0;
}

// ---- prompts -------------------------------------------------------------------------------------------------------

// Layers [begin, end) on the tokens [start, start + count) of one row; finish: and the final norm.
#define MS_OMNI_CHUNK(_) _(i64, begin) _(i64, end) _(i64, start) _(i64, count) _(i64, finish)

STRUCT(Chunk, MS_OMNI_CHUNK);
NAMES(Chunk, Chunk, MS_OMNI_CHUNK)

class Reader {
 public:
  // single: of one token alone, which attends as a step does.
  Reader(const Stack &stack, const Chunk &chunk, const Cached &cache, const float *cos, const float *sin, bool single)
      : s_(stack), chunk_(chunk), cache_(cache), cos_(cos), sin_(sin), single_(single), rows_(chunk.count), width_(stack.width),
        group_(stack.heads / stack.kv_heads), queries_(stack.heads * stack.d), keys_(stack.kv_heads * stack.d),
        tables_(cache.tables, cache.tables + cache.width), normed_(rows_ * width_), q_(rows_ * queries_), k_(rows_ * keys_),
        v_(rows_ * keys_), attended_(rows_ * queries_), made_(rows_ * width_) {}

  double work() const {
    double work = 0;
    for (i64 i = chunk_.begin; i < chunk_.end; ++i) {
      const Layer &l = s_.layer(i);
      work += product_work(rows_, width_, 2 * (queries_ + keys_) + 3 * l.inner);
      if (l.experts) work += mixture(l).work(rows_) + rows_ * l.experts * 4.0;
      work += 0.012 * rows_ * s_.heads * (chunk_.start + rows_) * (2 * s_.d + 32);
    }
    return work;
  }

  // x `[count, width]` becomes what the last of the layers makes of it.
  void run(ThreadPool &pool, float *x) {
    for (i64 i = chunk_.begin; i < chunk_.end; ++i) {
      const Layer &l = s_.layer(i);
      norm(pool, x, l.input_norm);
      attend(pool, l, cache_.buffers[i]);
      add(pool, x, made_.get(), x, rows_ * width_);
      norm(pool, x, l.post_norm);
      if (l.experts) mix(pool, l);
      else dense(pool, l, made_.get());
      add(pool, x, made_.get(), x, rows_ * width_);
    }
  }

 private:
  Mixture mixture(const Layer &l) const { return {l.experts_gate_up, l.experts_down, width_, l.expert_inner, l.experts, l.top_k}; }

  void norm(ThreadPool &pool, const float *x, const float *weight) {
    pool.run_ranges(rows_, width_ * 0.3, [&](i64 begin, i64 end) {
      for (i64 row = begin; row < end; ++row) rms_norm(x + row * width_, weight, s_.eps(), normed_.get() + row * width_, width_);
    });
  }

  void attend(ThreadPool &pool, const Layer &l, const Buffers &to) {
    product(pool, l.q, l.q_bias, normed_.get(), rows_, width_, queries_, q_.get(), queries_);
    product(pool, l.k, l.k_bias, normed_.get(), rows_, width_, keys_, k_.get(), keys_);
    product(pool, l.v, l.v_bias, normed_.get(), rows_, width_, keys_, v_.get(), keys_);
    pool.run_ranges(rows_, (queries_ + 2 * keys_) * 1.0, [&](i64 begin, i64 end) {
      for (i64 row = begin; row < end; ++row) place(l, to, row);
    });
    const float scale = 1.0 / std::sqrt(static_cast<double>(s_.d));
    std::vector<Piece> pieces;
    for (i64 head = 0; head < s_.kv_heads; ++head) {
      const Rows keys = buffer(to.keys, to.key_scales, head), values = buffer(to.values, to.value_scales, head);
      const i64 first = head * group_ * s_.d;
      if (single_) {
        VisibleKeys sight(keys, values, s_.d, s_.d);
        sight.add(0, chunk_.start + 1);
        attend_query(q_.get() + first, group_, sight, scale, nullptr, attended_.get() + first);
      } else {
        add_pieces(pieces, {q_.get() + first, nullptr, keys, values, attended_.get() + first, rows_, chunk_.start + rows_, group_, s_.d,
                            s_.d, queries_, queries_, scale, chunk_.start});
      }
    }
    ::run(pool, pieces);
    product(pool, l.o, l.o_bias, attended_.get(), rows_, queries_, width_, made_.get(), width_);
  }

  // Norms and rotation of a token's queries and keys, and its keys and values into the cache.
  void place(const Layer &l, const Buffers &to, i64 row) {
    for (i64 head = 0; head < s_.heads; ++head) turn(q_.get() + row * queries_ + head * s_.d, l.q_norm, row);
    for (i64 head = 0; head < s_.kv_heads; ++head) {
      float *k = k_.get() + row * keys_ + head * s_.d;
      turn(k, l.k_norm, row);
      buffer(to.keys, to.key_scales, head).put(chunk_.start + row, k, s_.d);
      buffer(to.values, to.value_scales, head).put(chunk_.start + row, v_.get() + row * keys_ + head * s_.d, s_.d);
    }
  }

  void turn(float *x, const float *weight, i64 row) const {
    const i64 half = s_.d / 2;
    if (weight) rms_norm(x, weight, s_.eps(), x, s_.d);
    rotate(x, cos_ + row * half, sin_ + row * half, x, half);
  }

  Rows buffer(void *at, float *scales, i64 head) const {
    return in_blocks(at, scales, s_.d, head, s_.kv_heads, cache_.block, tables_.data());
  }

  void dense(ThreadPool &pool, const Layer &l, float *y) {
    gate_ = Space<>(rows_ * l.inner), up_ = Space<>(rows_ * l.inner);
    product(pool, l.gate, nullptr, normed_.get(), rows_, width_, l.inner, gate_.get(), l.inner);
    product(pool, l.up, nullptr, normed_.get(), rows_, width_, l.inner, up_.get(), l.inner);
    pool.run_ranges(rows_ * l.inner, kActivationWork, [&](i64 begin, i64 end) {
      activate(gate_.get() + begin, up_.get() + begin, gate_.get() + begin, end - begin);
    });
    product(pool, l.down, nullptr, gate_.get(), rows_, l.inner, width_, y, width_);
  }

  // Experts, and the shared one where there is one.
  void mix(ThreadPool &pool, const Layer &l) {
    const Space<> logits(rows_ * l.experts), weights(rows_ * l.top_k);
    const Space<int32_t> indices(rows_ * l.top_k);
    product(pool, l.router, nullptr, normed_.get(), rows_, width_, l.experts, logits.get(), l.experts);
    pool.run_ranges(rows_, l.experts * 4.0, [&](i64 begin, i64 end) {
      for (i64 row = begin; row < end; ++row)
        route(logits.get() + row * l.experts, l.experts, l.top_k, l.normalise, weights.get() + row * l.top_k, indices.get() + row * l.top_k);
    });
    mixture(l).run(pool, normed_.get(), rows_, weights.get(), indices.get(), made_.get());
    if (!l.shared_gate.numbers) return;
    const Space<> shared(rows_ * width_), gates(rows_);
    dense(pool, l, shared.get());
    product(pool, l.shared_gate, nullptr, normed_.get(), rows_, width_, 1, gates.get(), 1);
    for (i64 row = 0; row < rows_; ++row) {
      const float gate = logistic(all(gates[row]))[0];
      map(width_, made_.get() + row * width_, [=](vec sum, vec shared) { return sum + shared * gate; }, made_.get() + row * width_,
          shared.get() + row * width_);
    }
  }

  const Stack &s_;
  const Chunk chunk_;
  const Cached &cache_;
  const float *cos_, *sin_;
  const bool single_;
  const i64 rows_, width_, group_, queries_, keys_;
  const std::vector<int32_t> tables_;
  Space<> normed_, q_, k_, v_, attended_, made_, gate_, up_;
};

// table: a stack and its layers, the cache of one row, the chunk. What lies behind its tokens is padding: zeros come of it.
KERNEL(decoder_chunk, "x[1, S, D] cos[1, S, d] sin[1, S, d] table:l[n] -> y[1, S, D]") {
  Table t(a.get<i64>("table"), a['n']);
  const Stack stack(t);
  const Cached cache(t, stack.layers(), 1);
  const Chunk chunk = t.next<Chunk>();
  if (!t.read() || !stack.sound() || chunk.begin < 0 || chunk.begin > chunk.end || chunk.end > stack.layers())
    return refuse("decoder_chunk: the table does not describe a stack");
  const std::string wrong = misfit("decoder_chunk", stack, a['D'], a['d'], cache, 1);
  if (!wrong.empty()) return refuse(wrong);
  if (chunk.count < 1 || chunk.count > a['S'] || chunk.start < 0 || chunk.start + chunk.count != *cache.lengths)
    return refuse("decoder_chunk: " + std::to_string(chunk.count) + " tokens from " + std::to_string(chunk.start) + " on do not end where the cache of " +
                  std::to_string(*cache.lengths) + " positions does, or are not in x");
  const i64 numbers = chunk.count * stack.width;
  float *y = a.get("y");
  std::copy_n(a.get("x"), numbers, y);
  std::fill(y + numbers, y + a['S'] * stack.width, 0.f);
  Reader reader(stack, chunk, cache, a.get("cos"), a.get("sin"), a['S'] == 1);
  ThreadPool pool(reader.work());
  reader.run(pool, y);
  for (i64 row = 0; chunk.finish && row < chunk.count; ++row) stack.finish(y + row * stack.width, y + row * stack.width);
  return 0;
}

}  // namespace
