// What is done between the transforms of cuFFT, one kernel a pass over the waves (pattern, mode, y, x): the way to take
// the same gradients that stands between array code and hpcrec's own kernels. And sums of overlapping patches alone.
// Blocks (256 of the pixels of all modes of a pattern, pattern); corners (pattern, 2); object and gradients (y, x).

__device__ float2 times(float2 a, float2 b) { return make_float2(a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x); }
__device__ float2 times_conjugate(float2 a, float2 b) {
  return make_float2(a.x * b.x + a.y * b.y, a.y * b.x - a.x * b.y);
}
__device__ void add(float2 *address, float2 value) {
#if __CUDA_ARCH__ >= 900
  asm volatile("red.global.relaxed.gpu.add.v2.f32 [%0], {%1, %2};" ::"l"(address), "f"(value.x), "f"(value.y));
#else
  atomicAdd(&address->x, value.x);
  atomicAdd(&address->y, value.y);
#endif
}

// Place of a pixel of a pattern's window in an object of `width` columns
__device__ long long place(const int *corners, int n, int width, int pixel) {
  const int y = pixel / n, x = pixel % n;
  return (long long)(corners[2 * blockIdx.y] + y) * width + corners[2 * blockIdx.y + 1] + x;
}

// waves = probe x object
extern "C" __global__ void enter(float2 *waves, const float2 *probe, const float2 *object, const int *corners, int n,
                                 int modes, int width) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x, all = modes * n * n;
  if (i >= all) return;
  waves[(long long)blockIdx.y * all + i] = times(probe[i], object[place(corners, n, width, i % (n * n))]);
}

// waves *= factor, or its conjugate, over n^2: both transforms are not normalised
extern "C" __global__ void filter(float2 *waves, const float2 *factor, int n, int modes, int conjugate) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x, all = modes * n * n;
  if (i >= all) return;
  const long long at = (long long)blockIdx.y * all + i;
  const float2 value = conjugate ? times_conjugate(waves[at], factor[i % (n * n)]) : times(waves[at], factor[i % (n * n)]);
  waves[at] = make_float2(value.x / (n * n), value.y / (n * n));
}

// saved = waves, waves *= object
extern "C" __global__ void transmit(float2 *waves, float2 *saved, const float2 *object, const int *corners, int n,
                                    int modes, int width) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x, all = modes * n * n;
  if (i >= all) return;
  const long long at = (long long)blockIdx.y * all + i;
  saved[at] = waves[at];
  waves[at] = times(waves[at], object[place(corners, n, width, i % (n * n))]);
}

// The amplitude loss: waves *= (1 - sqrt((counts + floor)/(I + floor)))/n^2 with I = sum |waves|^2/n^2 over the modes
extern "C" __global__ void weigh(float2 *waves, const unsigned char *counts, double *loss, int n, int modes, float floor) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x, pixels = n * n;
  float part = 0.0f;
  if (i < pixels) {
    float2 *wave = waves + (long long)blockIdx.y * modes * pixels + i;
    float modelled = 0.0f;
    for (int mode = 0; mode < modes; ++mode) {
      const float2 value = wave[(long long)mode * pixels];
      modelled += value.x * value.x + value.y * value.y;
    }
    const float root = sqrtf(modelled / pixels + floor), wanted = sqrtf(counts[(long long)blockIdx.y * pixels + i] + floor);
    part = (root - wanted) * (root - wanted);
    const float weight = (1.0f - wanted / root) / pixels;
    for (int mode = 0; mode < modes; ++mode) {
      float2 &value = wave[(long long)mode * pixels];
      value = make_float2(weight * value.x, weight * value.y);
    }
  }
  for (int other = 16; other; other >>= 1) part += __shfl_xor_sync(~0u, part, other);
  if (threadIdx.x % 32 == 0) atomicAdd(loss, (double)part);
}

// gradient += waves saved*, illumination += |saved|^2, waves *= object*; saved of one pattern is `step` from the next
extern "C" __global__ void leave(float2 *waves, const float2 *saved, long long step, const float2 *object,
                                 float2 *gradient, float *illumination, const int *corners, int n, int modes, int width) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x, all = modes * n * n;
  if (i >= all) return;
  const long long at = (long long)blockIdx.y * all + i, to = place(corners, n, width, i % (n * n));
  const float2 psi = saved[blockIdx.y * step + i], chi = waves[at];
  add(gradient + to, times_conjugate(chi, psi));
  atomicAdd(illumination + to, psi.x * psi.x + psi.y * psi.y);
  waves[at] = times_conjugate(chi, object[to]);
}

// gradient (copy, mode, y, x) += waves, several copies so that few meet
extern "C" __global__ void gather(const float2 *waves, float2 *gradient, int n, int modes, int copies) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x, all = modes * n * n;
  if (i >= all) return;
  add(gradient + (long long)(blockIdx.y % copies) * all + i, waves[(long long)blockIdx.y * all + i]);
}

// A block adds one patch of n x n ones
extern "C" __global__ void add_patches(float2 *sums, const int *corners, int n, int width) {
  const int2 corner = make_int2(corners[2 * blockIdx.x + 1], corners[2 * blockIdx.x]);
  for (int i = threadIdx.x; i < n * n; i += blockDim.x)
    add(sums + (long long)(corner.y + i / n) * width + corner.x + i % n, make_float2(1.0f, 1.0f));
}
