// Sums that blocks share, in one of two forms. Floats round in the order in which blocks happen to come, which differs
// from run to run. Integers add up to the same in any order: each number is rounded once, to units of 1/scale, and a sum
// is right as long as it fits 63 bits, however far it goes on the way. hpcrec/models/fixed.py chooses the scales.
#pragma once

template <bool FIXED> struct Sums { using Real = float; using Complex = float2; };
template <> struct Sums<true> { using Real = unsigned long long; using Complex = ulonglong2; };

// To a sum that no other block adds to
INLINE void add_own(float2 &sum, float2 value, float) { sum = sum + value; }
INLINE void add_own(ulonglong2 &sum, float2 value, float scale) {
  sum.x += whole(value.x * scale);
  sum.y += whole(value.y * scale);
}

INLINE void add_shared(float *address, float value, float) { add_shared(address, value); }
INLINE void add_shared(float2 *address, float2 value, float) { add_shared(address, value); }
INLINE void add_shared(unsigned long long *address, float value, float scale) {
  add_shared(address, whole(value * scale));
}
INLINE void add_shared(ulonglong2 *address, float2 value, float scale) {
  add_shared(&address->x, whole(value.x * scale));
  add_shared(&address->y, whole(value.y * scale));
}
