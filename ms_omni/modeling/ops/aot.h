// What every file of kernels needs: the calling convention of MindSpore's ops.Custom(..., "aot"), and threads.
//
// Every entry gets contiguous arrays: its inputs in the order of the Python call and its outputs behind them. Data is
// float32, indices int32, and constants (eps, scale, axes) come as small arrays. All of them are compared with the entry's
// signature (signature.h) before it runs, values that say where to read or write by the entry itself; what does not fit is
// refused with a reason, which Python asks for (cpu_kernel.py). Small work runs in the calling thread;
// large work is split over threads that live for one call: they cost about 20 us, and no waiting pool competes with
// MindSpore's.

#pragma once

#include <pthread.h>
#include <sched.h>
#ifdef __aarch64__
#include <sys/auxv.h>
#endif
// The compiler knows matrix units (clang before 17 writes its macros with one underscore less); has_tiles() says whether this
// process may use them.
#if defined(__AVX512F__) && defined(__linux__) && \
    ((defined(__AMX_TILE__) && defined(__AMX_BF16__)) || (defined(__AMXTILE__) && defined(__AMXBF16__)))
#define MS_OMNI_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define MS_OMNI_VNNI  // the compiler knows products of bytes; has_vnni() says whether this processor does
#endif

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "signature.h"

namespace {

// ---- arguments -----------------------------------------------------------------------------------------------------

// Those of a call, by the names and letters of the kernel's signature.
class Arguments {
 public:
  Arguments(void **data, const Shapes &given, const Signature &signature) : data_(data), given_(given), signature_(signature) {}

  template <class T = float>
  T *get(const char *name) const {  // null: it was left out
    const int place = signature_.place(name);
    return place < 0 ? nullptr : static_cast<T *>(data_[place]);
  }
  i64 operator[](char letter) const { return signature_.length(letter); }
  i64 rows() const { return signature_.rows(); }
  const char *type(const char *name) const { return given_.types[signature_.place(name)]; }
  i64 rank(const char *name) const { return given_.ranks[signature_.place(name)]; }
  i64 dim(const char *name, int axis) const { return given_.shapes[signature_.place(name)][axis]; }
  bool same(const char *left, const char *right) const {  // shapes
    bool same = rank(left) == rank(right);
    for (int axis = 0; same && axis < rank(left); ++axis) same = dim(left, axis) == dim(right, axis);
    return same;
  }
  i64 size(const char *name, int first = 0) const {  // of its axes from `first` on
    i64 total = 1;
    for (int axis = first; axis < rank(name); ++axis) total *= dim(name, axis);
    return total;
  }

 private:
  void **data_;
  const Shapes &given_;
  const Signature &signature_;
};

constexpr int kRefused = 1;

inline std::string &refusal() {  // why the last call was refused
  static std::string reason;
  return reason;
}

inline std::mutex &refusing() {
  static std::mutex mutex;
  return mutex;
}

inline int refuse(const std::string &reason) {
  const std::lock_guard<std::mutex> lock(refusing());
  refusal() = reason;
  return kRefused;
}

template <class Body>
int call(const char *kernel, const char *text, const Shapes &given, const Body &body) {
  Signature signature(kernel, text, given);
  if (!signature.agrees()) return refuse(signature.why);
  try {
    return body(signature);
  } catch (const std::bad_alloc &) {
    return refuse(std::string(kernel) + ": there is not enough memory");
  } catch (const std::logic_error &error) {
    return refuse(std::string(kernel) + ": " + error.what());
  }
}

// The ranks and lengths of the results into `lengths`, and how many numbers that are; -1: refused.
inline i64 infer(const char *kernel, const char *text, const Shapes &given, i64 *lengths) {
  Signature signature(kernel, text, given);
  std::vector<i64> found;
  if (!signature.infer(found)) return refuse(signature.why), -1;
  std::copy(found.begin(), found.end(), lengths);
  return found.size();
}

// A struct, and its members as a text that Python reads: "type name;type name;". MEMBERS(_) is _(type, name) for each.
#define MS_OMNI_MEMBER(type, name) type name;
#define MS_OMNI_SIZE(type, name) +sizeof(type)
#define MS_OMNI_NAME(type, name) #type " " #name ";"
#define STRUCT(name, MEMBERS) struct name { MEMBERS(MS_OMNI_MEMBER) }
#define NAMES(type, name, MEMBERS)                                                                                       \
  static_assert(sizeof(type) == (MEMBERS(MS_OMNI_SIZE)), "members do not lie as Python writes them");                      \
  }                                                                                                                      \
  extern "C" const char *ms_omni_members_of_##name() { return MEMBERS(MS_OMNI_NAME); }                                   \
  namespace {

#define KERNEL(name, signature)                                                                                          \
  int name(const Arguments &a);                                                                                          \
  }                                                                                                                      \
  extern "C" int ms_omni_##name(int count, void **data, int *ranks, int64_t **shapes, const char **types, void *, void *) { \
    const Shapes given{count, ranks, shapes, types};                                                                     \
    return call(#name, signature, given, [&](const Signature &s) { return name(Arguments(data, given, s)); });           \
  }                                                                                                                      \
  extern "C" int64_t ms_omni_##name##_results(int count, const int *ranks, const int64_t *const *shapes, int64_t *to) {  \
    return infer(#name, signature, {count, ranks, shapes, nullptr}, to);                                                 \
  }                                                                                                                      \
  namespace {                                                                                                            \
  int name(const Arguments &a)

}  // namespace

extern "C" const char *ms_omni_refusal() {
  thread_local std::string reason;
  const std::lock_guard<std::mutex> lock(refusing());
  reason = refusal();
  return reason.c_str();
}

// ---- processor -----------------------------------------------------------------------------------------------------

// What this file was compiled for and the processor lacks, or null. build.py asks before anything else is run.
extern "C" const char *ms_omni_missing() {
#if defined(__x86_64__)
#ifdef __AVX512F__
  if (!__builtin_cpu_supports("avx512f")) return "AVX-512";
#endif
#ifdef __AVX2__
  if (!__builtin_cpu_supports("avx2")) return "AVX2";
#endif
#ifdef __FMA__
  if (!__builtin_cpu_supports("fma")) return "FMA";
#endif
#ifdef __SSE4_2__
  if (!__builtin_cpu_supports("sse4.2")) return "SSE4.2";
#endif
#elif defined(__aarch64__)
  const unsigned long has = getauxval(AT_HWCAP);
#ifdef __ARM_FEATURE_ATOMICS
  if (!(has & HWCAP_ATOMICS)) return "atomics of ARMv8.1";
#endif
#ifdef __ARM_FEATURE_FP16_VECTOR_ARITHMETIC
  if (!(has & HWCAP_ASIMDHP)) return "half precision";
#endif
#ifdef __ARM_FEATURE_DOTPROD
  if (!(has & HWCAP_ASIMDDP)) return "dot products";
#endif
#ifdef __ARM_FEATURE_COMPLEX
  if (!(has & HWCAP_FCMA)) return "ARMv8.3";
#endif
#ifdef __ARM_FEATURE_SVE
  if (!(has & HWCAP_SVE)) return "SVE";
#endif
#ifdef __ARM_FEATURE_SVE2
  if (!(getauxval(AT_HWCAP2) & HWCAP2_SVE2)) return "SVE2";
#endif
#endif
  return nullptr;
}

namespace {

// Whether there are matrix units (amx.h): the system is asked for their registers, once, and may refuse them.
inline bool has_tiles() {
#ifdef MS_OMNI_AMX
  constexpr long request_permission = 0x1023, tile_data = 18;  // of arch_prctl(2)
  static const bool allowed = !syscall(SYS_arch_prctl, request_permission, tile_data);
  return allowed;
#else
  return false;
#endif
}

inline bool has_vnni() {
#ifdef MS_OMNI_VNNI
  static const bool has = __builtin_cpu_supports("avx512vnni");
  return has;
#else
  return false;
#endif
}

}  // namespace

// The vectors that this file was compiled for, and how many floats are in one (see vectors.h).
extern "C" const char *ms_omni_vectors() {
  if (has_tiles()) return has_vnni() ? "AVX-512, VNNI and AMX, 16 floats" : "AVX-512 and AMX, 16 floats";
  if (has_vnni()) return "AVX-512 and VNNI, 16 floats";
#if defined(__AVX512F__)
  return "AVX-512, 16 floats";
#elif defined(__AVX2__)
  return "AVX2, 8 floats";
#elif defined(__AVX__)
  return "AVX, 8 floats";
#elif defined(__aarch64__)
  return "NEON, 4 floats";
#else
  return "SSE, 4 floats";
#endif
}

namespace {

// ---- threads -------------------------------------------------------------------------------------------------------

std::atomic<int> threads_to_use{1};

inline int available_threads() { return threads_to_use.load(std::memory_order_relaxed); }

}  // namespace

extern "C" void ms_omni_use_threads(int count) { threads_to_use.store(std::max(count, 1), std::memory_order_relaxed); }

namespace {

// Threads that call body(context), as many of them as the system gives; they have to end before this does.
//
// Where they and their creator are as many as the processors that this process may use, each begins on one of its own and may move from
// then on. Left to itself, Linux often puts a new thread of a virtual machine where its creator computes, though another processor is
// idle (one that is halted looks preempted), and there it waits for the end of a time slice: 3 ms, longer than most kernels take.
class Threads {
 public:
  void start(i64 count, void *(*body)(void *), void *context) {
    if (count < 1) return;
    threads_.reserve(count);  // what is thrown behind a thread that runs would leave it alone
#if defined(__linux__)
    cpu_set_t all;
    const bool placed = !sched_getaffinity(0, sizeof all, &all) && CPU_COUNT(&all) == count + 1;
    int processor = sched_getcpu();
#endif
    for (i64 i = 0; i < count; ++i) {
      pthread_t thread;
      bool begun = false;
#if defined(__linux__)
      if (placed) {
        do processor = (processor + 1) % CPU_SETSIZE;
        while (!CPU_ISSET(processor, &all));
        cpu_set_t first;
        CPU_ZERO(&first);
        CPU_SET(processor, &first);
        pthread_attr_t attributes;
        pthread_attr_init(&attributes);
        pthread_attr_setaffinity_np(&attributes, sizeof first, &first);
        begun = !pthread_create(&thread, &attributes, body, context);  // some sandboxes forbid it
        pthread_attr_destroy(&attributes);
        if (begun) pthread_setaffinity_np(thread, sizeof all, &all);
      }
#endif
      if (!begun && pthread_create(&thread, nullptr, body, context)) return;
      threads_.push_back(thread);
    }
  }

  ~Threads() {
    for (pthread_t thread : threads_) pthread_join(thread, nullptr);
  }

  i64 size() const { return threads_.size(); }

 private:
  std::vector<pthread_t> threads_;
};

// Runs task(i) for i in [0, tasks). nanoseconds: estimate for all of them; a thread must have 100 us to do.
template <class Task>
void for_each(i64 tasks, double nanoseconds, const Task &task) {
  const i64 workers = std::min<i64>({available_threads(), tasks, static_cast<i64>(nanoseconds / 1e5)});
  std::atomic<i64> next{0};
  auto work = [&] {
    for (i64 i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) task(i);
  };
  Threads threads;
  threads.start(workers - 1, [](void *context) -> void * { return (*static_cast<decltype(work) *>(context))(), nullptr; }, &work);
  work();
}

// The same over [0, n) in pieces: task(begin, end).
template <class Task>
void for_ranges(i64 n, double nanoseconds_each, const Task &task) {
  const i64 pieces = std::max<i64>(1, std::min<i64>(n, n * nanoseconds_each / 5e4));
  for_each(pieces, n * nanoseconds_each, [&](i64 i) { task(n * i / pieces, n * (i + 1) / pieces); });
}

}  // namespace
