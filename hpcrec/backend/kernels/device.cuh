// What the kernels take from a GPU: the thread at work, barriers, reads through the cache, sums. The tests give the
// same names other meanings, under which a CPU runs the kernels' source.
#pragma once

#define INLINE __device__ __forceinline__
#define UNROLL _Pragma("unroll")
#define KEEP_ROLLED _Pragma("unroll 1")
// Runs the statement behind it for each thread of the block: here for this one, whose state is *threads
#define FOR_EACH_THREAD(t) if (auto &t = *threads; true)

INLINE void barrier() { __syncthreads(); }
INLINE void warp_barrier() { __syncwarp(); }
INLINE float cached(const float *address) { return __ldg(address); }
INLINE float2 cached(const float2 *address) { return __ldg(address); }
INLINE float4 cached(const float4 *address) { return __ldg(address); }

// Sums that other blocks add to at the same time
INLINE void add_shared(float *address, float value) { atomicAdd(address, value); }
INLINE void add_shared(float2 *address, float2 value) {
#if __CUDA_ARCH__ >= 900
  asm volatile("red.global.relaxed.gpu.add.v2.f32 [%0], {%1, %2};" ::"l"(address), "f"(value.x), "f"(value.y));
#else
  atomicAdd(&address->x, value.x);
  atomicAdd(&address->y, value.y);
#endif
}
INLINE void add_shared(unsigned long long *address, long long value) { atomicAdd(address, (unsigned long long)value); }
INLINE long long whole(float value) { return __float2ll_rn(value); }

// A count in the block's shared memory
INLINE void count_one(unsigned *address) { atomicAdd(address, 1u); }

// Adds the sum over the warp's lanes to a number that is the warp's own
INLINE void add_warp_sum(double *address, float value, int thread) {
  for (int other = 16; other; other >>= 1) value += __shfl_xor_sync(~0u, value, other);
  if (thread % 32 == 0) *address += value;
}
