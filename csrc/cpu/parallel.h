// Work shared among OpenMP threads, and memory that a thread keeps from call to call.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace fastdiff {

// f(i) for i = 0, ..., count - 1, in one contiguous range per thread: the same thread gets the same i each time, so
// that what a first pass has read is in the right core's cache for the second.
template <class F>
inline void parallel_for(int64_t count, int threads, F&& f) {
  threads = static_cast<int>(std::min<int64_t>(threads, count));
  if (threads <= 1) {
    for (int64_t i = 0; i < count; ++i) f(i);
    return;
  }
  // An exception (memory that ran out) must not leave a thread of OpenMP's: the first one is thrown here.
  std::exception_ptr error;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < count; ++i) {
    try {
      f(i);
    } catch (...) {
#pragma omp critical
      if (!error) error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

// Threads worth waking: below some tens of microseconds of work each, waking them costs more than it saves.
inline int useful_threads(int64_t elements, int64_t per_thread, int threads) {
  return static_cast<int>(std::clamp<int64_t>(elements / per_thread, 1, std::max(threads, 1)));
}

// Uninitialised memory that only grows, from the start of a cache line. One per thread and purpose, declared
// thread_local: allocating on each call would return the pages to the system and fault them in again. Megabytes ask
// for huge pages: a transform that writes dozens of streams far apart would wait for the page table at each.
template <class T>
class Workspace {
 public:
  T* get(int64_t count) {
    if (count > size_) {
      constexpr size_t kLine = 64, kHugePage = size_t{1} << 21;
      const size_t bytes = static_cast<size_t>(count) * sizeof(T);
      const size_t align = bytes >= kHugePage ? kHugePage : kLine;
      const size_t rounded = (bytes + align - 1) / align * align;
      memory_.reset();  // first: two at once may not fit
      size_ = 0;
      memory_.reset(static_cast<T*>(std::aligned_alloc(align, rounded)));
      if (!memory_) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
      if (align == kHugePage) madvise(memory_.get(), rounded, MADV_HUGEPAGE);  // a wish: refusal costs nothing
#endif
      size_ = count;
    }
    return memory_.get();
  }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T[], Free> memory_;
  int64_t size_ = 0;
};

}  // namespace fastdiff
