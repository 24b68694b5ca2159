// A GPU's threads as fibers on one thread of the CPU, so that CUDA sources run where there is no GPU.
//
// Each thread of a block (of all blocks of a cluster) has a stack of its own and runs until it waits at a barrier;
// then the next one goes on. The order can be reversed or shuffled (FASTDIFF_EMULATION_ORDER=reverse, shuffle):
// a kernel that misses a barrier gives other results then. Threads that wait for ever are told of.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
// From fiber to fiber by longjmp: swapcontext asks the kernel for the signal mask each time, which is most of its time.
// Not where longjmp's target is checked.
#if defined(__SANITIZE_ADDRESS__) || (defined(_FORTIFY_SOURCE) && _FORTIFY_SOURCE > 0)
#define FASTDIFF_EMULATION_JUMPS 0
#else
#define FASTDIFF_EMULATION_JUMPS 1
#endif

namespace emulation {

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
  unsigned count() const { return x * y * z; }
  Dim3 at(unsigned rank) const { return {rank % x, rank / x % y, rank / x / y}; }
};

constexpr unsigned kWarp = 32;

struct Barrier {
  unsigned expected = 0, arrived = 0, generation = 0;
};

struct Warp {
  Barrier barrier;
  unsigned char slots[kWarp][64];  // what a lane shows the others
};

struct Block {
  Dim3 index;
  unsigned rank_in_cluster = 0;
  Barrier barrier;
  std::vector<Warp> warps;
  std::unique_ptr<char, void (*)(void*)> shared{nullptr, std::free};
};

// A copy to shared memory that a thread has asked for and not yet waited for; groups are counted from 0.
struct Copy {
  void* to;
  const void* from;
  size_t bytes;
  unsigned group;
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  Dim3 thread;
  unsigned rank = 0;  // of the thread in its block
  Block* block = nullptr;
  jmp_buf jump;
  bool started = false, finished = false;
  std::vector<Copy> copies;
  unsigned copy_groups = 0;
  void* fake_stack = nullptr;  // AddressSanitizer's
};

class Scheduler {
 public:
  static Scheduler& instance() {
    static thread_local Scheduler scheduler;
    return scheduler;
  }

  Fiber& self() { return *current_; }
  Dim3 grid, threads, cluster;

  // All blocks of the grid, cluster by cluster.
  void run(Dim3 grid_size, Dim3 block_size, Dim3 cluster_size, size_t shared_bytes,
           const std::function<void()>& body) {
    grid = grid_size, threads = block_size, cluster = cluster_size;
    body_ = &body;
    order_ = order_wanted();
    const Dim3 clusters{grid.x / cluster.x, grid.y / cluster.y, grid.z / cluster.z};
    for (unsigned i = 0; i < clusters.count(); ++i)
      run_cluster(clusters.at(ordered(i, clusters.count())), shared_bytes);
  }

  void wait(Barrier& barrier) {
    const unsigned generation = barrier.generation;
    ++barrier.arrived;
    release_if_full(barrier);
    while (barrier.generation == generation) yield();
  }

  Barrier& cluster_barrier() { return cluster_barrier_; }
  Block& block_of_cluster(unsigned rank) { return blocks_[rank]; }

 private:
  static constexpr size_t kStack = 128 * 1024;
  enum class Order { kForward, kReverse, kShuffle };

  Scheduler() = default;

  static Order order_wanted() {
    const char* wanted = std::getenv("FASTDIFF_EMULATION_ORDER");
    const std::string name = wanted ? wanted : "";
    return name == "reverse" ? Order::kReverse : name == "shuffle" ? Order::kShuffle : Order::kForward;
  }

  unsigned ordered(unsigned i, unsigned count) const {
    return order_ == Order::kForward ? i : count - 1 - i;
  }

  void run_cluster(Dim3 index, size_t shared_bytes) {
    const unsigned block_threads = threads.count();
    blocks_.clear();
    blocks_.resize(cluster.count());
    fibers_.resize(blocks_.size() * block_threads);
    cluster_barrier_ = {static_cast<unsigned>(fibers_.size()), 0, 0};
    for (unsigned b = 0; b < blocks_.size(); ++b) {
      Block& block = blocks_[b];
      const Dim3 in_cluster = cluster.at(b);
      block.index = {index.x * cluster.x + in_cluster.x, index.y * cluster.y + in_cluster.y,
                     index.z * cluster.z + in_cluster.z};
      block.rank_in_cluster = b;
      block.barrier.expected = block_threads;
      block.warps.resize((block_threads + kWarp - 1) / kWarp);
      // Filled with ones, that is with NaN: nothing may count on shared memory being zero.
      const size_t bytes = (shared_bytes + 1023) / 1024 * 1024 + 1024;
      block.shared.reset(static_cast<char*>(std::aligned_alloc(1024, bytes)));
      std::memset(block.shared.get(), 0xff, bytes);
      for (unsigned t = 0; t < block_threads; ++t) {
        ++block.warps[t / kWarp].barrier.expected;
        prepare(fibers_[b * block_threads + t], block, t);
      }
    }
    schedule();
  }

  void prepare(Fiber& fiber, Block& block, unsigned rank) {
    if (!fiber.stack) fiber.stack.reset(new char[kStack]);
    fiber.thread = threads.at(rank);
    fiber.rank = rank;
    fiber.block = &block;
    fiber.started = fiber.finished = false;
    fiber.copies.clear();
    fiber.copy_groups = 0;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, &Scheduler::enter, 0);
  }

  static void enter() {
    Scheduler& s = instance();
    s.arrived_on_fiber();
    (*s.body_)();
    s.finish();
  }

  void schedule() {
    for (unsigned live = static_cast<unsigned>(fibers_.size()); live;) {
      if (order_ == Order::kShuffle) state_ = state_ * 6364136223846793005u + 1442695040888963407u;
      const unsigned count = static_cast<unsigned>(fibers_.size()), first = (state_ >> 33) % count;
      progress_ = false;
      for (unsigned i = 0; i < count; ++i) {
        Fiber& fiber = fibers_[(ordered(i, count) + first) % count];
        if (fiber.finished) continue;
        resume(fiber);
        live -= fiber.finished;
      }
      if (live && !progress_) {
        std::fprintf(stderr, "emulated CUDA: %u threads wait at barriers that the others never reach\n", live);
        std::abort();
      }
    }
  }

  void release_if_full(Barrier& barrier) {
    if (barrier.arrived < barrier.expected || barrier.expected == 0) return;
    barrier.arrived = 0;
    ++barrier.generation;
    progress_ = true;
  }

  // A thread that has returned is no longer waited for.
  void finish() {
    Fiber& fiber = *current_;
    fiber.finished = progress_ = true;
    for (Barrier* b : {&fiber.block->barrier, &fiber.block->warps[fiber.rank / kWarp].barrier, &cluster_barrier_}) {
      --b->expected;
      release_if_full(*b);
    }
    yield();
  }

  void resume(Fiber& fiber) {
    current_ = &fiber;
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, fiber.stack.get(), kStack);
    swapcontext(&main_, &fiber.context);
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#elif FASTDIFF_EMULATION_JUMPS
    if (_setjmp(main_jump_)) return;
    if (fiber.started) _longjmp(fiber.jump, 1);
    fiber.started = true;
    setcontext(&fiber.context);
#else
    swapcontext(&main_, &fiber.context);
#endif
  }

  void yield() {
    Fiber& fiber = *current_;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(fiber.finished ? nullptr : &fiber.fake_stack, main_stack_, main_stack_size_);
    swapcontext(&fiber.context, &main_);
    arrived_on_fiber(fiber.fake_stack);
#elif FASTDIFF_EMULATION_JUMPS
    if (!_setjmp(fiber.jump)) _longjmp(main_jump_, 1);
#else
    swapcontext(&fiber.context, &main_);
#endif
  }

  void arrived_on_fiber([[maybe_unused]] void* fake = nullptr) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, &main_stack_, &main_stack_size_);
#endif
  }

  Order order_ = Order::kForward;
  uint64_t state_ = 0;  // of the shuffle
  std::vector<Block> blocks_;
  std::vector<Fiber> fibers_;
  Barrier cluster_barrier_;
  Fiber* current_ = nullptr;
  const std::function<void()>* body_ = nullptr;
  ucontext_t main_;
  jmp_buf main_jump_;
  bool progress_ = false;
  const void* main_stack_ = nullptr;
  size_t main_stack_size_ = 0;
};

inline Fiber& self() { return Scheduler::instance().self(); }
inline Warp& warp() { return self().block->warps[self().rank / kWarp]; }
inline void wait_for_warp() { Scheduler::instance().wait(warp().barrier); }

// Every lane shows `value` to its warp and runs `use(of_lane)`, in which of_lane(i) is the value of lane i.
template <class T, class Use>
auto show(T value, const Use& use) {
  static_assert(sizeof(T) <= sizeof(Warp::slots[0]));
  Warp& w = warp();
  std::memcpy(w.slots[self().rank % kWarp], &value, sizeof(T));
  wait_for_warp();
  const auto result = use([&](unsigned lane) {
    T shown;
    std::memcpy(&shown, w.slots[lane % kWarp], sizeof(T));
    return shown;
  });
  wait_for_warp();
  return result;
}

template <class T>
T exchange(T value, unsigned source) {
  return show(value, [&](const auto& of_lane) { return of_lane(source); });
}

}  // namespace emulation
