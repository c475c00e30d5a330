#include "emulated.h"
#include "lines.cuh"
#include "lanes.cuh"
#include "loss.cuh"
#include "fused.cuh"

// As the kernel in entry.cuh, with n_blocks blocks one after another
template <class L, Loss LOSS, class Count, bool MODES, bool SHIFTED, bool SLOPES>
void run(const Arguments &p, int n_blocks) {
  for (int block = 0; block < n_blocks; ++block) {
    std::vector<Thread<L>> threads(L::THREADS);
    std::vector<float2> exchange(L::ROOM);
    poison(threads);
    poison(exchange);
    for (int i = 0; i < L::THREADS; ++i) threads[i].index = i, threads[i].line = i / L::T, threads[i].lane = i % L::T;
    const Room room = {exchange.data(), p.twiddles, p.factors};
    run_block(L::THREADS, [&] {
      for (int pattern = block; pattern < p.n_patterns; pattern += n_blocks)
        Pattern<L, LOSS, Count, MODES, SHIFTED, SLOPES>::add_gradients(threads.data(), room, p, pattern, block);
    });
  }
}

// What the kernel's name says: whether there are several modes, shifted ones, slopes
template <class L, Loss LOSS, class Count> int run_variant(const Arguments &p, int n_blocks, int flags) {
  if (flags == 0) run<L, LOSS, Count, false, false, false>(p, n_blocks);
  else if (flags == 1) run<L, LOSS, Count, true, false, false>(p, n_blocks);
  else if (flags == 2) run<L, LOSS, Count, false, true, false>(p, n_blocks);
  else if (flags == 3) run<L, LOSS, Count, true, true, false>(p, n_blocks);
  else if (flags == 6) run<L, LOSS, Count, false, true, true>(p, n_blocks);
  else if (flags == 7) run<L, LOSS, Count, true, true, true>(p, n_blocks);
  else return 1;
  return 0;
}

template <int N> int run_counts(const Arguments &p, int n_blocks, int loss, int bytes, int flags) {
  using L = Layout<N>;
  if (loss == POISSON)
    return bytes == 1 ? run_variant<L, POISSON, unsigned char>(p, n_blocks, flags)
                      : run_variant<L, POISSON, unsigned short>(p, n_blocks, flags);
  return bytes == 1 ? run_variant<L, AMPLITUDE, unsigned char>(p, n_blocks, flags)
                    : run_variant<L, AMPLITUDE, unsigned short>(p, n_blocks, flags);
}

extern "C" int add_gradients(const Arguments *p, int n_blocks, int n, int loss, int bytes, int flags) {
  if (n == 64) return run_counts<64>(*p, n_blocks, loss, bytes, flags);
#ifdef SMALLEST
  return 1;
#endif
  if (n == 96) return run_counts<96>(*p, n_blocks, loss, bytes, flags);
  return n == 128 ? run_counts<128>(*p, n_blocks, loss, bytes, flags) : 1;
}

extern "C" int size_of_arguments() { return sizeof(Arguments); }

extern "C" int shared_bytes(int n, int n_factors) {
  if (n == 64) return 8 * room_size<Layout<64>>(n_factors);
  return 8 * (n == 96 ? room_size<Layout<96>>(n_factors) : room_size<Layout<128>>(n_factors));
}
