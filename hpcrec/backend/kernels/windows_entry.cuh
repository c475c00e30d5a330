// The kernels that a GPU starts: any number of blocks of threads.
#pragma once

template <class C> __global__ void window_times(const __grid_constant__ WindowArguments p) {
  for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < p.n_items; i += (long long)gridDim.x * blockDim.x)
    window_times_item<C>(p, i);
}

template <class C> __global__ void window_products(const __grid_constant__ WindowArguments p) {
  for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < p.n_items; i += (long long)gridDim.x * blockDim.x)
    window_products_item<C>(p, i);
}

template <Loss LOSS, class Count>
__global__ void __launch_bounds__(WEIGH_THREADS) window_weigh(const __grid_constant__ WeighArguments p) {
  WeighThread thread = {(int)threadIdx.x};
  weigh_pattern<LOSS, Count>(&thread, p, blockIdx.x, blockIdx.y);
}
