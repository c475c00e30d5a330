// Complex numbers and Fourier transforms of a few points in registers.
#pragma once

constexpr double PI = 3.14159265358979323846;

// Taylor series, because the compiler knows no constant sine; |x| <= pi, where 14 terms reach double precision's end
constexpr double sine(double x) {
  double term = x, sum = x;
  for (int k = 1; k < 16; ++k) { term *= -x * x / ((2 * k) * (2 * k + 1)); sum += term; }
  return sum;
}
constexpr double cosine(double x) {
  double term = 1, sum = 1;
  for (int k = 1; k < 16; ++k) { term *= -x * x / ((2 * k - 1) * (2 * k)); sum += term; }
  return sum;
}

// exp(-2 pi i J/R)
template <int J, int R> struct Root {
  static constexpr double angle = 2 * PI * (2 * J > R ? J - R : J) / R;
  static constexpr float re = (float)cosine(angle), im = (float)-sine(angle);
};

INLINE float2 operator+(float2 a, float2 b) { return make_float2(a.x + b.x, a.y + b.y); }
INLINE float2 operator-(float2 a, float2 b) { return make_float2(a.x - b.x, a.y - b.y); }
INLINE float2 operator*(float2 a, float2 b) { return make_float2(a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x); }
INLINE float2 operator*(float f, float2 a) { return make_float2(f * a.x, f * a.y); }
INLINE float2 times_conjugate(float2 a, float2 b) {
  return make_float2(a.x * b.x + a.y * b.y, a.y * b.x - a.x * b.y);
}

enum Direction { FORWARD = 1, BACKWARD = -1 };

// a * exp(-+ i pi/2)
template <int D> INLINE float2 quarter(float2 a) {
  return D == FORWARD ? make_float2(a.y, -a.x) : make_float2(-a.y, a.x);
}

// a * exp(-+ 2 pi i J/R); multiples of an eighth of a turn need no product of complex numbers
template <int J, int R, int D> INLINE float2 turned(float2 a) {
  constexpr int j = J % R;
  constexpr float half = 0.70710678118654752f;
  if constexpr (j == 0) return a;
  else if constexpr (4 * j == R) return quarter<D>(a);
  else if constexpr (2 * j == R) return -1.0f * a;
  else if constexpr (4 * j == 3 * R) return quarter<-D>(a);
  else if constexpr (8 * j == R) return half * (a + quarter<D>(a));
  else if constexpr (8 * j == 3 * R) return half * (quarter<D>(a) - a);
  else return a * make_float2(Root<j, R>::re, D == FORWARD ? Root<j, R>::im : -Root<j, R>::im);
}

template <int I> struct Index { static constexpr int value = I; };

// f(Index<I>) ... f(Index<END - 1>): a loop whose index is known to the compiler
template <int I, int END, class F> INLINE void each(F &&f) {
  if constexpr (I < END) { f(Index<I>{}); each<I + 1, END>(f); }
}

template <int D> INLINE void transform_3(float2 (&v)[3]) {
  const float2 sum = v[1] + v[2], middle = v[0] - 0.5f * sum;
  const float2 side = quarter<D>(0.86602540378443865f * (v[1] - v[2]));
  v[0] = v[0] + sum;
  v[1] = middle + side;
  v[2] = middle - side;
}

template <int D> INLINE void transform_4(float2 (&v)[4]) {
  const float2 a = v[0] + v[2], b = v[0] - v[2], c = v[1] + v[3], d = quarter<D>(v[1] - v[3]);
  v[0] = a + c;
  v[1] = b + d;
  v[2] = a - c;
  v[3] = b - d;
}

// The transform of R points, not normalised, natural order in and out; R = A*B as Cooley and Tukey split it
template <int R, int D> INLINE void transform(float2 (&v)[R]) {
  if constexpr (R == 2) {
    const float2 a = v[0];
    v[0] = a + v[1];
    v[1] = a - v[1];
  }
  else if constexpr (R == 3) transform_3<D>(v);
  else if constexpr (R == 4) transform_4<D>(v);
  else {
    constexpr int A = R % 3 == 0 ? 3 : R == 8 ? 2 : 4, B = R / A;
    float2 between[R];
    each<0, B>([&](auto second) {
      constexpr int b = decltype(second)::value;
      float2 part[A];
      UNROLL for (int a = 0; a < A; ++a) part[a] = v[B * a + b];
      transform<A, D>(part);
      each<0, A>([&](auto first) {
        constexpr int a = decltype(first)::value;
        between[a * B + b] = turned<b * a, R, D>(part[a]);
      });
    });
    UNROLL for (int a = 0; a < A; ++a) {
      float2 part[B];
      UNROLL for (int b = 0; b < B; ++b) part[b] = between[a * B + b];
      transform<B, D>(part);
      UNROLL for (int b = 0; b < B; ++b) v[a + A * b] = part[b];
    }
  }
}
