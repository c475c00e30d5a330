#include "emulated.h"
#include "windows.cuh"

struct double2 { double x, y; };

// Items in random order, as threads of many blocks take them
template <class F> void each_item(long long n, F work) {
  for (int i : shuffled(0, (int)n)) work(i);
}

extern "C" int run_windows(const WindowArguments *p, int products, int bytes) {
  if (products) each_item(p->n_items, [&](long long i) {
    bytes == 8 ? window_products_item<float2>(*p, i) : window_products_item<double2>(*p, i);
  });
  else each_item(p->n_items, [&](long long i) {
    bytes == 8 ? window_times_item<float2>(*p, i) : window_times_item<double2>(*p, i);
  });
  return 0;
}

extern "C" int size_of_arguments() { return sizeof(WindowArguments); }
