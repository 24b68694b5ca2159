// What the loader asks of the library itself.
#include "cuda/launch.cuh"

#if FASTDIFF_EMULATED
extern "C" void fastdiff_cuda_is_emulated() {}
extern "C" const char* fastdiff_cuda_error_string(int) { return "emulated CUDA has no errors"; }
#else
extern "C" const char* fastdiff_cuda_error_string(int code) {
  return cudaGetErrorString(static_cast<cudaError_t>(code));
}
#endif
