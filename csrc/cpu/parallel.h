// Work shared among OpenMP threads, and memory that a thread keeps from call to call.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>

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
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < count; ++i) f(i);
}

// Threads worth waking: below some tens of microseconds of work each, waking them costs more than it saves.
inline int useful_threads(int64_t elements, int64_t per_thread, int threads) {
  return static_cast<int>(std::clamp<int64_t>(elements / per_thread, 1, std::max(threads, 1)));
}

// Uninitialised memory that only grows. One per thread and purpose, declared thread_local: allocating on each call
// would return the pages to the system and fault them in again.
template <class T>
class Workspace {
 public:
  T* get(int64_t count) {
    if (count > size_) {
      memory_.reset(new T[count]);
      size_ = count;
    }
    return memory_.get();
  }

 private:
  std::unique_ptr<T[]> memory_;
  int64_t size_ = 0;
};

}  // namespace fastdiff
