// The windows of patterns in an object, for array code: cut out and multiplied, or added up. A thread takes one number
// of what is written at a time; sums run over the windows in their order, so that they are the same in each run.
#pragma once

struct WindowArguments {
  const void *object;     // (plane, height, width): what windows are cut from; planes lie object_step numbers apart
  const void *wave;       // (window, plane, part, ny, nx)
  const void *gradient;   // as the wave
  void *result;           // what is written
  void *light;            // sum |wave|^2, as the result of window_products
  const int *corners;     // (window, 2): first pixel y, x of a window in the object
  long long n_items, object_step;
  int n_planes, n_windows, n_parts, height, width, ny, nx, conjugate;
};

template <class C> INLINE C complex_of(decltype(C().x) x, decltype(C().x) y) {
  C c;
  c.x = x;
  c.y = y;
  return c;
}
template <class C> INLINE C complex_product(C a, C b, bool conjugate) {
  return conjugate ? complex_of<C>(a.x * b.x + a.y * b.y, a.y * b.x - a.x * b.y)
                   : complex_of<C>(a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x);
}

// Place in the object of a point (y, x) of a window
INLINE long long window_place(const WindowArguments &p, int window, int plane, int point) {
  const int y = p.corners[2 * window] + point / p.nx, x = p.corners[2 * window + 1] + point % p.nx;
  return plane * p.object_step + (long long)y * p.width + x;
}
// Whether a window holds the object's pixel `pixel`, and where
INLINE bool window_holds(const WindowArguments &p, int window, int pixel, int &point) {
  const int y = pixel / p.width - p.corners[2 * window], x = pixel % p.width - p.corners[2 * window + 1];
  point = y * p.nx + x;
  return y >= 0 && y < p.ny && x >= 0 && x < p.nx;
}

// result (window, plane, part, ny, nx) = wave times the object, or times its conjugate
template <class C> INLINE void window_times_item(const WindowArguments &p, long long i) {
  const int pixels = p.ny * p.nx, point = i % pixels;
  const long long plane = i / ((long long)pixels * p.n_parts);
  const C seen = ((const C *)p.object)[window_place(p, plane / p.n_planes, plane % p.n_planes, point)];
  ((C *)p.result)[i] = complex_product(((const C *)p.wave)[i], seen, p.conjugate);
}

// result (plane, height, width) += sum of gradient wave*, light (plane, height, width) += sum of |wave|^2
template <class C> INLINE void window_products_item(const WindowArguments &p, long long i) {
  using Real = decltype(C().x);
  const int pixels = p.ny * p.nx, points = p.height * p.width, pixel = i % points, plane = i / points;
  const C *waves = (const C *)p.wave, *gradients = (const C *)p.gradient;
  C total = ((C *)p.result)[plane * p.object_step + pixel];
  Real bright = ((Real *)p.light)[plane * p.object_step + pixel];
  for (int window = 0, point; window < p.n_windows; ++window) {
    if (!window_holds(p, window, pixel, point)) continue;
    C sum = complex_of<C>(0, 0);
    Real power = 0;
    for (int part = 0; part < p.n_parts; ++part) {
      const long long place = (((long long)window * p.n_planes + plane) * p.n_parts + part) * pixels + point;
      const C wave = waves[place], product = complex_product(gradients[place], wave, true);
      sum = complex_of<C>(sum.x + product.x, sum.y + product.y);
      power += wave.x * wave.x + wave.y * wave.y;
    }
    total = complex_of<C>(total.x + sum.x, total.y + sum.y);
    bright += power;
  }
  ((C *)p.result)[plane * p.object_step + pixel] = total;
  ((Real *)p.light)[plane * p.object_step + pixel] = bright;
}
