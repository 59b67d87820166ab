// The operators of fused.py: whole steps of generation in one launch.

#include "decoder.h"

namespace {

// head: the numbers or codes of the output layer; the table says what else there is of it. table: the output layer, a stack and
// its layers, the cache, the keys of each layer and the values of each, then their scales if they are codes (scaled), positions
// that each row has (the new one included), the numbers of each row's blocks -> logits, hidden
KERNEL(decoder_step, "x[B, 1, D] cos[B, 1, d] sin[B, 1, d] head:a[V, h] table:l[n] -> logits[B, 1, V] hidden[B, 1, D]") {
  Table t(a.get<i64>("table"), a['n']);
  Matrix head = t.next<Matrix>();
  Stack stack(t);
  const i64 batch = a['B'], vocabulary = a['V'];
  const Cached cache(t, stack.layers(), batch);
  if (!t.read() || !stack.sound()) return refuse("decoder_step: the table does not describe a stack");
  const std::string wrong = misfit("decoder_step", stack, a['D'], a['d'], cache, batch);
  if (!wrong.empty()) return refuse(wrong);
  ThreadPool pool(stack.work(batch) + 0.1 * vocabulary * stack.width);
  Floats x(a.get("x"), a.get("x") + batch * stack.width);
  const Place place{batch, 1, a.get("cos"), a.get("sin"), {cache.lengths, cache.lengths + batch},
                    {cache.tables, cache.tables + batch * cache.width}, cache.width, cache.block};
  stack.run(pool, x.data(), place, cache.buffers.data());
  float *hidden = a.get("hidden");
  for (i64 row = 0; row < batch; ++row) stack.finish(x.data() + row * stack.width, hidden + row * stack.width);
  head.numbers = a.get<void>("head");
  multiply(pool, hidden, batch, stack.width, {{head, nullptr, vocabulary, a.get("logits")}});
  return 0;
}

#define MS_OMNI_FRAME(_) /* sampling, the predictor's tables */                                  \
  _(i64, sampled) _(double, temperature) _(i64, top_k) _(double, top_p)                           \
  _(i64, vocabulary) _(i64, first_vocabulary) _(const float *, cos) _(const float *, sin) _(Matrix, first_embedding)

STRUCT(Frame, MS_OMNI_FRAME);
NAMES(Frame, Frame, MS_OMNI_FRAME)

// One id of a row of logits `[vocabulary]`.
int32_t choose(const Frame &f, const float *logits, float noise) {
  if (!f.sampled) return std::max_element(logits, logits + f.vocabulary) - logits;
  return draw_one(logits, f.vocabulary, noise, f.temperature, f.top_k, f.top_p);
}

// table: a stack and its layers, the frame, embeddings and heads -> codes, the sum of their embeddings
KERNEL(code_frame, "hidden[B, 1, D] code:i[B, 1] noise[B, r] table:l[n] -> codes:i[B, r + 1] sum[B, 1, D] | 0 < r") {
  Table t(a.get<i64>("table"), a['n']);
  Stack stack(t);
  const Frame f = t.next<Frame>();
  const i64 batch = a['B'], residuals = a['r'], width = stack.width, half = stack.d / 2, vocabulary = f.vocabulary;
  const Matrix *embeddings = t.next<Matrix>(residuals), *heads = t.next<Matrix>(residuals);

  if (!t.read() || !stack.sound() || vocabulary <= 0)
    return refuse("code_frame: the table does not describe a predictor of " + std::to_string(residuals) + " codes");
  if (width != a['D'])
    return refuse("code_frame: hidden is " + std::to_string(a['D']) + " wide, expected " + std::to_string(width));

  const i64 positions = residuals + 1, kept = batch * stack.kv_heads * positions * stack.d;
  Floats store(2 * kept * stack.layers()), turns(4 * batch * half);
  Floats x(2 * batch * width), hidden(batch * width), logits(batch * vocabulary);
  std::vector<Buffers> buffers;
  for (i64 layer = 0; layer < stack.layers(); ++layer)
    buffers.push_back({store.data() + 2 * layer * kept, store.data() + (2 * layer + 1) * kept});
  std::vector<int32_t> tables(batch);  // a block per row
  std::iota(tables.begin(), tables.end(), 0);
  ThreadPool pool(stack.work(batch) * residuals + 0.1 * vocabulary * width * residuals);

  int32_t *codes = a.get<int32_t>("codes");
  float *sum = a.get("sum");
  for (i64 row = 0; row < batch; ++row) {  // the first pass reads two tokens: the talker's state and code 0
    const int32_t code = a.get<int32_t>("code")[row];
    if (code < 0 || code >= f.first_vocabulary)
      return refuse("code_frame: code is " + std::to_string(code) + ", expected 0 to " + std::to_string(f.first_vocabulary - 1));
    const float *state = a.get("hidden") + row * width;
    float *embedding = x.data() + (2 * row + 1) * width;
    std::copy(state, state + width, embedding - width);
    widen_row(f.first_embedding, width, code, embedding);
    std::copy(embedding, embedding + width, sum + row * width);
    codes[row * positions] = code;
  }
  for (i64 group = 0; group < residuals; ++group) {
    const i64 fresh = group == 0 ? 2 : 1, start = group == 0 ? 0 : group + 1, rows = batch * fresh;
    float *turn = turns.data();
    for (const float *table : {f.cos, f.sin})
      for (i64 row = 0; row < rows; ++row, turn += half)
        std::copy_n(table + (start + row % fresh) * half, half, turn);
    const std::vector<int32_t> lengths(batch, start + fresh);
    stack.run(pool, x.data(), {rows, fresh, turns.data(), turns.data() + rows * half, lengths, tables, 1, positions}, buffers.data());
    for (i64 row = 0; row < batch; ++row)
      stack.finish(x.data() + (fresh * row + fresh - 1) * width, hidden.data() + row * width);
    multiply(pool, hidden.data(), batch, width, {{heads[group], nullptr, vocabulary, logits.data()}});
    for (i64 row = 0; row < batch; ++row) {
      const int32_t code = choose(f, logits.data() + row * vocabulary, a.get("noise")[row * residuals + group]);
      float *embedding = x.data() + row * width;
      widen_row(embeddings[group], width, code, embedding);
      add_scaled(sum + row * width, embedding, 1.f, width);
      if (!all_finite(logits.data() + row * vocabulary, vocabulary)) sum[row * width] = NAN;  // seen by whoever reads the sum
      codes[row * positions + group + 1] = code;
    }
  }
  return 0;
}

}  // namespace
