// The kernels that a GPU starts: blocks (stripe, mode of a pattern of the chunk), or (stripe, pattern) at the detector.
#pragma once

// Blocks that a multiprocessor has registers for at least, 0: the compiler chooses. A lone one waits at its barriers
template <int N> constexpr int STRIPE_BLOCKS = N == 512 ? 2 : 0;

template <class L> struct StripeBlock {
  Thread<L> thread;
  Room room;
  __device__ StripeBlock(const StripeArguments &p) {
    extern __shared__ float4 shared[];
    float2 *exchange = (float2 *)shared, *twiddles = exchange + L::ROOM;
    Stripe<L>::begin(thread, threadIdx.x);
    for (int i = thread.index; i < L::E * L::T; i += L::THREADS) twiddles[i] = p.twiddles[i];
    barrier();
    room = Room{exchange, twiddles, nullptr};
  }
};

template <int N, bool ALONG_Y>
__global__ void __launch_bounds__(StripeLayout<N, ALONG_Y>::THREADS, STRIPE_BLOCKS<N>) stripe_forward(const __grid_constant__ StripeArguments p) {
  using L = StripeLayout<N, ALONG_Y>;
  StripeBlock<L> block(p);
  Stripe<L>::forward(&block.thread, block.room, p, blockIdx.x, blockIdx.y);
}

template <int N, bool ALONG_Y, Loss LOSS, class Count>
__global__ void __launch_bounds__(StripeLayout<N, ALONG_Y>::THREADS, STRIPE_BLOCKS<N>) stripe_detect(const __grid_constant__ StripeArguments p) {
  using L = StripeLayout<N, ALONG_Y>;
  StripeBlock<L> block(p);
  Stripe<L>::template detect<LOSS, Count>(&block.thread, block.room, p, blockIdx.x, blockIdx.y);
}

template <int N, bool ALONG_Y, bool SLOPES, bool FIXED>
__global__ void __launch_bounds__(StripeLayout<N, ALONG_Y>::THREADS, STRIPE_BLOCKS<N>) stripe_back(const __grid_constant__ StripeArguments p) {
  using L = StripeLayout<N, ALONG_Y>;
  StripeBlock<L> block(p);
  Stripe<L>::template back<SLOPES, FIXED>(&block.thread, block.room, p, blockIdx.x, blockIdx.y);
}
