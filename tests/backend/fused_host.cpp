#include "emulated.h"
#include "lines.cuh"
#include "lanes.cuh"
#include "loss.cuh"
#include "sums.cuh"
#include "events.cuh"
#include "fused.cuh"

extern "C" void begin_order(unsigned seed) { chance.seed(seed); }

// As the kernel in entry.cuh, with n_blocks blocks one after the other in random order
template <int N, Loss LOSS, class Count, bool MODES, bool SHIFTED, bool SLOPES, bool FIXED>
void run(const Arguments &p, int n_blocks) {
  using L = Layout<N>;
  for (int block : shuffled(0, n_blocks)) {
    std::vector<Thread<L>> threads(L::THREADS);
    std::vector<float2> exchange(L::ROOM);
    poison(threads);
    poison(exchange);
    for (int i = 0; i < L::THREADS; ++i) threads[i].index = i, threads[i].line = i / L::T, threads[i].lane = i % L::T;
    const Room room = {exchange.data(), p.twiddles, p.factors};
    run_block(L::THREADS, [&] {
      for (int pattern = block; pattern < p.n_patterns; pattern += n_blocks)
        Pattern<L, LOSS, Count, MODES, SHIFTED, SLOPES, FIXED>::add_gradients(threads.data(), room, p, pattern, block);
    });
  }
}

// VARIANTS: V(what stands between the brackets of a kernel's name) for each that is wanted
#define V(...) if (!std::strcmp(variant, #__VA_ARGS__)) return run<__VA_ARGS__>(*p, n_blocks), 0;
extern "C" int add_gradients(const char *variant, const Arguments *p, int n_blocks) {
  VARIANTS
  return 1;
}

extern "C" int size_of_arguments() { return sizeof(Arguments); }

extern "C" int shared_bytes(int n, int n_factors) {
  if (n == 64) return 8 * room_size<Layout<64>>(n_factors);
  return 8 * (n == 96 ? room_size<Layout<96>>(n_factors) : room_size<Layout<128>>(n_factors));
}
