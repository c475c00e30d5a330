// The names of device.cuh for a CPU. A warp runs alone until it meets a barrier of the block, then another goes on, in
// random order: where a barrier misses, a warp reads what others have not yet written. The threads of a warp go through
// each phase between the warp's own barriers in random order.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <numeric>
#include <random>
#include <ucontext.h>
#include <vector>

#define INLINE inline
#define UNROLL
#define KEEP_ROLLED
#define FOR_EACH_THREAD(t) for (int at : shuffled(32 * running, 32)) if (auto &t = threads[at]; true)

struct float2 { float x, y; };
struct ulonglong2 { unsigned long long x, y; };
struct float4 { float x, y, z, w; };
struct int2 { int x, y; };
static inline float2 make_float2(float x, float y) { return float2{x, y}; }

static std::mt19937 chance(1);
static inline std::vector<int> shuffled(int first, int n) {
  std::vector<int> order(n);
  std::iota(order.begin(), order.end(), first);
  std::shuffle(order.begin(), order.end(), chance);
  return order;
}

struct Warp { ucontext_t context; std::vector<char> stack; bool done; };
static std::vector<Warp> warps;
static ucontext_t scheduler;
static int running;
static std::function<void()> program;

static void begin_warp() {
  program();
  warps[running].done = true;
}
static inline void barrier() { swapcontext(&warps[running].context, &scheduler); }
static inline void warp_barrier() {}

// Runs the work of a block of threads, as each of its warps sees it
static inline void run_block(int n_threads, std::function<void()> work) {
  const int n_warps = n_threads / 32;
  program = work;
  warps = std::vector<Warp>(n_warps);
  for (Warp &warp : warps) {
    warp.stack.resize(1 << 18);
    warp.done = false;
    getcontext(&warp.context);
    warp.context.uc_stack.ss_sp = warp.stack.data();
    warp.context.uc_stack.ss_size = warp.stack.size();
    warp.context.uc_link = &scheduler;
    makecontext(&warp.context, begin_warp, 0);
  }
  for (bool left = true; left;) {
    left = false;
    for (int next : shuffled(0, n_warps)) {
      if (warps[next].done) continue;
      running = next;
      swapcontext(&scheduler, &warps[next].context);
      left = true;
    }
  }
}

static inline float cached(const float *address) { return *address; }
static inline float2 cached(const float2 *address) { return *address; }
static inline float4 cached(const float4 *address) { return *address; }
static inline void add_shared(float *address, float value) { *address += value; }
static inline void add_shared(float2 *address, float2 value) { address->x += value.x; address->y += value.y; }
static inline void add_shared(unsigned long long *address, long long value) { *address += value; }
static inline long long whole(float value) { return std::llrintf(value); }
static inline void count_one(unsigned *address) { ++*address; }

// Once all lanes have come, in whatever order, their numbers are added as a GPU's lanes add them
struct Lanes { float value[32]; int n; };
static std::map<double *, Lanes> waiting;
static inline void add_warp_sum(double *address, float value, int thread) {
  Lanes &lanes = waiting[address];
  lanes.value[thread % 32] = value;
  if (++lanes.n < 32) return;
  for (int other = 16; other; other >>= 1)
    for (int lane = 0; lane < other; ++lane) lanes.value[lane] += lanes.value[lane + other];
  *address += lanes.value[0];
  waiting.erase(address);
}

// Not-a-number in every float
template <class T> void poison(std::vector<T> &room) { std::memset((void *)room.data(), 0xff, room.size() * sizeof(T)); }
