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
