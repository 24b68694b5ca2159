// The mark of functions that the CPU's compiler and CUDA's both compile.
#pragma once

#if defined(__CUDACC__)
#define FASTDIFF_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FASTDIFF_HOST_DEVICE inline
#endif
