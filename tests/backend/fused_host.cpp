#include "emulated.h"
#include "lines.cuh"
#include "lanes.cuh"
#include "loss.cuh"
#include "fused.cuh"

// As the kernel in entry.cuh, with n_blocks blocks one after another
template <int N, Loss LOSS, class Count> void run(const Arguments &p, int n_blocks) {
  using L = Layout<N>;
  for (int block = 0; block < n_blocks; ++block) {
    std::vector<Thread<L>> threads(L::THREADS);
    std::vector<float2> exchange(L::ROOM);
    poison(threads);
    poison(exchange);
    for (int i = 0; i < L::THREADS; ++i) threads[i].index = i, threads[i].line = i / L::T, threads[i].lane = i % L::T;
    const Room room = {exchange.data(), p.twiddles, p.factors};
    run_block(L::THREADS, [&] {
      for (int pattern = block; pattern < p.n_patterns; pattern += n_blocks)
        Pattern<L, LOSS, Count>::add_gradients(threads.data(), room, p, pattern, block);
    });
  }
}

template <int N, class Count> void run_loss(const Arguments &p, int n_blocks, int loss) {
  loss == POISSON ? run<N, POISSON, Count>(p, n_blocks) : run<N, AMPLITUDE, Count>(p, n_blocks);
}

template <int N> void run_counts(const Arguments &p, int n_blocks, int loss, int bytes) {
  bytes == 1 ? run_loss<N, unsigned char>(p, n_blocks, loss) : run_loss<N, unsigned short>(p, n_blocks, loss);
}

extern "C" int add_gradients(const Arguments *p, int n_blocks, int n, int loss, int bytes) {
  if (n == 64) run_counts<64>(*p, n_blocks, loss, bytes);
  else if (n == 96) run_counts<96>(*p, n_blocks, loss, bytes);
  else if (n == 128) run_counts<128>(*p, n_blocks, loss, bytes);
  else return 1;
  return 0;
}

extern "C" int size_of_arguments() { return sizeof(Arguments); }

extern "C" int shared_bytes(int n, int n_factors) {
  if (n == 64) return 8 * room_size<Layout<64>>(n_factors);
  return 8 * (n == 96 ? room_size<Layout<96>>(n_factors) : room_size<Layout<128>>(n_factors));
}
