// Threads that live for one call and share the work of its many small parts.
//
// A step of a decoder is hundreds of products that depend on one another, each a few microseconds long. Between two of
// them a thread waits in a loop, so that the next one starts at once; after the call no thread is left.

#pragma once

#include "aot.h"

namespace {

class ThreadPool {
 public:
  // nanoseconds: estimate of all that will be run; a thread must have 100 us to do.
  explicit ThreadPool(double nanoseconds) {
    const i64 size = std::min<i64>(available_threads(), static_cast<i64>(nanoseconds / 1e5));
    threads_.start(size - 1, [](void *pool) -> void * { return static_cast<ThreadPool *>(pool)->help(), nullptr; }, this);
  }

  ~ThreadPool() { ended_.store(true, std::memory_order_release); }

  ThreadPool(const ThreadPool &) = delete;
  ThreadPool &operator=(const ThreadPool &) = delete;

  i64 size() const { return threads_.size() + 1; }

  // Runs task(i) for i in [0, tasks) and returns when all are done. The caller works too and waits for nobody who has
  // not begun: a thread that the system has put aside delays nothing.
  template <class Task>
  void run(i64 tasks, const Task &task) {
    if (threads_.size() == 0 || tasks < 2) {
      for (i64 i = 0; i < tasks; ++i) task(i);
      return;
    }
    context_.store(&task, std::memory_order_relaxed);
    call_.store([](const void *context, i64 i) { (*static_cast<const Task *>(context))(i); }, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    round_ += 1;
    ticket_.store(round_ << 32 | static_cast<uint64_t>(tasks), std::memory_order_release);
    while (take()) {
    }
    for (int spins = 0; done_.load(std::memory_order_acquire) < tasks; ++spins) pause(spins);
  }

  // The same over [0, n) in pieces of 20 us at least: task(begin, end).
  template <class Task>
  void run_ranges(i64 n, double nanoseconds_each, const Task &task) {
    const i64 pieces = std::max<i64>(1, std::min<i64>({n, 4 * size(), static_cast<i64>(n * nanoseconds_each / 2e4)}));
    run(pieces, [&](i64 i) { task(n * i / pieces, n * (i + 1) / pieces); });
  }

 private:
  // One task of the current round, if there is one. What was read of the round is valid if the ticket has not changed:
  // a round's function is replaced only after its last task was taken, and no two rounds have equal tickets.
  bool take() {
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    while (static_cast<uint32_t>(ticket)) {
      const auto call = call_.load(std::memory_order_relaxed);
      const void *context = context_.load(std::memory_order_relaxed);
      if (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel, std::memory_order_acquire))
        continue;
      call(context, static_cast<uint32_t>(ticket) - 1);
      done_.fetch_add(1, std::memory_order_release);
      return true;
    }
    return false;
  }

  void help() {
    for (int spins = 0; !ended_.load(std::memory_order_acquire);) {
      if (take()) spins = 0;
      else pause(spins++);
    }
  }

  static void pause(int spins) {
    if (spins > 2000) std::this_thread::yield();  // somebody else may need this core
#if defined(__x86_64__)
    else __builtin_ia32_pause();
#elif defined(__aarch64__)
    else __asm__ volatile("isb");  // "yield" is nothing on most of them
#endif
  }

  alignas(64) std::atomic<uint64_t> ticket_{0};  // round << 32 | tasks left
  std::atomic<void (*)(const void *, i64)> call_{nullptr};
  std::atomic<const void *> context_{nullptr};
  uint64_t round_ = 0;
  alignas(64) std::atomic<i64> done_{0};
  alignas(64) std::atomic<bool> ended_{false};
  Threads threads_;  // the last member, so that they have ended before the others go
};

}  // namespace
