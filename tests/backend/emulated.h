// The names of device.cuh for a CPU: the threads of a block one after another, in a random order in each phase. What a
// barrier keeps apart on a GPU are phases here; that a phase needs one shows where a thread meets poison or old numbers.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#define INLINE inline
#define UNROLL
#define KEEP_ROLLED
#define FOR_EACH_THREAD(t) for (int at : visited(THREADS)) if (auto &t = threads[at]; true)

struct float2 { float x, y; };
static inline float2 make_float2(float x, float y) { return float2{x, y}; }

static std::mt19937 chance(1);
static inline std::vector<int> visited(int n) {
  std::vector<int> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), chance);
  return order;
}

static inline void barrier() {}
static inline void warp_barrier() {}
static inline float2 cached(const float2 *address) { return *address; }
static inline void add_shared(float *address, float value) { *address += value; }
static inline void add_shared(float2 *address, float2 value) { address->x += value.x; address->y += value.y; }
static inline void add_warp_sum(double *address, float value, int) { *address += value; }

// Not-a-number in every float
template <class T> void poison(std::vector<T> &room) { std::memset((void *)room.data(), 0xff, room.size() * sizeof(T)); }
