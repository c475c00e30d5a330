// The kernel that a GPU starts, as many blocks as run at a time: each takes every gridDim-th pattern.
#pragma once

// Blocks of a multiprocessor that registers are shared among: what shared memory has room for
template <int N> constexpr int BLOCKS = N == 64 ? 4 : N == 96 ? 2 : 1;

template <int N, Loss LOSS, class Count, bool MODES, bool SHIFTED, bool SLOPES, bool FIXED>
__global__ void __launch_bounds__(Layout<N>::THREADS, BLOCKS<N>) add_gradients(const __grid_constant__ Arguments p) {
  using L = Layout<N>;
  extern __shared__ float4 shared[];
  float2 *exchange = (float2 *)shared, *twiddles = exchange + L::ROOM, *factors = twiddles + L::E * L::T;
  Thread<L> thread;
  thread.index = threadIdx.x;
  thread.line = thread.index / L::T;
  thread.lane = thread.index % L::T;
  for (int i = thread.index; i < L::E * L::T; i += L::THREADS) twiddles[i] = p.twiddles[i];
  for (int i = thread.index; i < p.n_factors * 2 * N; i += L::THREADS) factors[i] = p.factors[i];
  barrier();
  const Room room = {exchange, twiddles, factors};
  KEEP_ROLLED for (int pattern = blockIdx.x; pattern < p.n_patterns; pattern += gridDim.x)
    Pattern<L, LOSS, Count, MODES, SHIFTED, SLOPES, FIXED>::add_gradients(&thread, room, p, pattern, blockIdx.x);
}
