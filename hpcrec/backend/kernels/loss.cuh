// From modelled and measured counts to the loss and its slope; the formulas of hpcrec/objectives/losses.py in forms in
// which bright, well fitted pixels cancel nothing.
#pragma once

enum Loss { AMPLITUDE, POISSON };

struct PatternSums { float loss, error, counts; };

// r ln r - r + 1 of r = 1 + u: near 1 the series u^2 (1/2 - u/6 + u^2/12 - ...), whose terms are u^k/(k (k - 1))
INLINE float excess(float r, float u) {
  if (u > 0.125f || u < -0.125f) return r * logf(r) - u;
  float sum = 0.0f;
  UNROLL for (int k = 9; k >= 2; --k) sum = 1.0f / (k * (k - 1)) - u * sum;
  return u * u * sum;
}

// Returns w = dL/dI of modelled counts I and measured ones M
template <Loss LOSS> INLINE float weigh(float modelled, float measured, bool good, float floor, PatternSums &sums) {
  if (!good) return 0.0f;
  const float off = modelled - measured, found = modelled + floor, wanted = measured + floor;
  sums.error += off * off / (modelled + measured + 2.0f * sqrtf(modelled * measured) + 1e-30f);
  sums.counts += measured;
  if (LOSS == POISSON) {
    const float u = -off / found;
    sums.loss += found * excess(wanted / found, u);
    return -u;
  }
  const float slope = off / (found + sqrtf(found * wanted));
  sums.loss += found * slope * slope;
  return slope;
}
