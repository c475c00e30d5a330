#include "emulated.h"
#include "lines.cuh"
#include "loss.cuh"
#include "windows.cuh"
#include "weigh.cuh"

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

template <Loss LOSS, class Count> void weigh_all(const WeighArguments &p, int n_patterns) {
  std::vector<WeighThread> threads(WEIGH_THREADS);
  for (int i = 0; i < WEIGH_THREADS; ++i) threads[i].index = i;
  for (int at : shuffled(0, p.n_blocks * n_patterns))
    run_block(WEIGH_THREADS, [&] { weigh_pattern<LOSS, Count>(threads.data(), p, at % p.n_blocks, at / p.n_blocks); });
}

template <class Count> void weigh_loss(const WeighArguments &p, int n_patterns, int poisson) {
  poisson ? weigh_all<POISSON, Count>(p, n_patterns) : weigh_all<AMPLITUDE, Count>(p, n_patterns);
}

// kind : 0 … 4, as windows.WEIGHED orders its types
extern "C" int run_weigh(const WeighArguments *p, int n_patterns, int poisson, int kind) {
  if (kind == 0) weigh_loss<unsigned char>(*p, n_patterns, poisson);
  else if (kind == 1) weigh_loss<unsigned short>(*p, n_patterns, poisson);
  else if (kind == 2) weigh_loss<unsigned int>(*p, n_patterns, poisson);
  else if (kind == 3) weigh_loss<int>(*p, n_patterns, poisson);
  else weigh_loss<float>(*p, n_patterns, poisson);
  return 0;
}

extern "C" int size_of_weigh() { return sizeof(WeighArguments); }
extern "C" int size_of_arguments() { return sizeof(WindowArguments); }
