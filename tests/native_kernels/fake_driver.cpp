// What cuda.h declares of tensor maps, without a GPU: every call is written down, and the map's first word counts calls.
#include <cuda.h>

#include <string>

namespace {

std::string said;
unsigned long long calls = 0;

template <typename T>
void list(const T* values, unsigned count) {
  for (unsigned i = 0; i < count; ++i) said += (i ? "," : " ") + std::to_string(values[i]);
}

template <typename... T>
void each(T... values) {
  ((said += " " + std::to_string(static_cast<long long>(values))), ...);
}

CUresult begin(const char* name, CUtensorMap* map, CUtensorMapDataType type, unsigned rank, void* address,
               const cuuint64_t* sizes, const cuuint64_t* strides) {
  if (reinterpret_cast<size_t>(map) % alignof(CUtensorMap)) return CUDA_ERROR_MISALIGNED_ADDRESS;
  if (!address) return CUDA_ERROR_INVALID_VALUE;
  *map = {{++calls}};
  said = name;
  each(type, rank, reinterpret_cast<size_t>(address));
  list(sizes, rank);
  list(strides, rank - 1);
  return CUDA_SUCCESS;
}

}  // namespace

extern "C" {

const char* fake_said() { return said.c_str(); }

CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* address,
                                const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* box,
                                const cuuint32_t* steps, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
  if (const CUresult error = begin("tiled", map, type, rank, address, sizes, strides)) return error;
  list(box, rank);
  list(steps, rank);
  each(interleave, swizzle, promotion, fill);
  return CUDA_SUCCESS;
}

CUresult cuTensorMapEncodeIm2col(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* address,
                                 const cuuint64_t* sizes, const cuuint64_t* strides, const int* lower, const int* upper,
                                 cuuint32_t channels, cuuint32_t pixels, const cuuint32_t* steps,
                                 CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                 CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
  if (const CUresult error = begin("im2col", map, type, rank, address, sizes, strides)) return error;
  list(lower, rank - 2);
  list(upper, rank - 2);
  each(channels, pixels);
  list(steps, rank);
  each(interleave, swizzle, promotion, fill);
  return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult error, const char** name) {
  if (error != CUDA_ERROR_INVALID_VALUE) return CUDA_ERROR_INVALID_VALUE;
  *name = "CUDA_ERROR_INVALID_VALUE";
  return CUDA_SUCCESS;
}
}
