// At the detector, for array code: from waves and counts to the loss and the weighted waves, in one pass over both.
#pragma once

struct WeighArguments {
  float2 *far;               // (pattern, part, ky, kx), unitary
  const void *counts;        // (pattern, ky, kx)
  const unsigned char *good; // (pattern or 1, ky, kx), or null
  double *totals;            // (pattern, block, warp, 3): loss, error, counts
  int n_pixels, n_parts, good_step, n_blocks;
  float floor;               // epsilon of the loss
};

constexpr int WEIGH_THREADS = 256;
struct WeighThread { int index; };

// psi <- w psi of every n_blocks-th stretch of a pattern
template <Loss LOSS, class Count>
INLINE void weigh_pattern(WeighThread *threads, const WeighArguments &p, int block, int pattern) {
  FOR_EACH_THREAD(t) {
    PatternSums sums = {0.0f, 0.0f, 0.0f};
    const Count *counts = (const Count *)p.counts + (long long)pattern * p.n_pixels;
    float2 *far = p.far + (long long)pattern * p.n_parts * p.n_pixels;
    for (int i = block * WEIGH_THREADS + t.index; i < p.n_pixels; i += p.n_blocks * WEIGH_THREADS) {
      float power = 0.0f;
      for (int part = 0; part < p.n_parts; ++part) {
        const float2 wave = far[(long long)part * p.n_pixels + i];
        power += wave.x * wave.x + wave.y * wave.y;
      }
      const bool good = !p.good || p.good[(long long)pattern * p.good_step + i];
      const float weight = weigh<LOSS>(power, (float)counts[i], good, p.floor, sums);
      for (int part = 0; part < p.n_parts; ++part) {
        float2 &wave = far[(long long)part * p.n_pixels + i];
        wave = make_float2(weight * wave.x, weight * wave.y);
      }
    }
    double *totals = p.totals + (((long long)pattern * p.n_blocks + block) * (WEIGH_THREADS / 32) + t.index / 32) * 3;
    add_warp_sum(totals, sums.loss, t.index);
    add_warp_sum(totals + 1, sums.error, t.index);
    add_warp_sum(totals + 2, sums.counts, t.index);
  }
}
