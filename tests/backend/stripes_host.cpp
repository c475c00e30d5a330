#include "emulated.h"
#include "lines.cuh"
#include "lanes.cuh"
#include "loss.cuh"
#include "sums.cuh"
#include "events.cuh"
#include "stripes.cuh"

enum { FORWARD_PASS, DETECT_PASS, BACK_PASS, BACK_PASS_WITH_SLOPES };

struct Told { int kernel, n_items, loss, counts, fixed; };

extern "C" void begin_order(unsigned seed) { chance.seed(seed); }

// Runs the work of every block, one after the other in random order, as the kernels in stripes_entry.cuh do
template <class L, class Work> void run_blocks(const StripeArguments &p, int n_items, Work &&work) {
  for (int block : shuffled(0, n_items * L::STRIPES)) {
    std::vector<Thread<L>> threads(L::THREADS);
    std::vector<float2> exchange(L::ROOM);
    poison(threads);
    poison(exchange);
    for (int i = 0; i < L::THREADS; ++i) Stripe<L>::begin(threads[i], i);
    const Room room = {exchange.data(), p.twiddles, nullptr};
    run_block(L::THREADS, [&] { work(threads.data(), room, block % L::STRIPES, block / L::STRIPES); });
  }
}

template <class L, Loss LOSS, class Count> void run_detector(const StripeArguments &p, int n_items) {
  run_blocks<L>(p, n_items, [&](Thread<L> *threads, const Room &room, int stripe, int item) {
    Stripe<L>::template detect<LOSS, Count>(threads, room, p, stripe, item);
  });
}
template <class L, Loss LOSS> void run_counts(const StripeArguments &p, const Told &told) {
  if (told.counts == 0) run_detector<L, LOSS, unsigned char>(p, told.n_items);
  else if (told.counts == 1) run_detector<L, LOSS, unsigned short>(p, told.n_items);
  else if (told.counts == 2) run_detector<L, LOSS, Events<unsigned short>>(p, told.n_items);
  else run_detector<L, LOSS, Events<unsigned int>>(p, told.n_items);
}

template <class L, bool SLOPES> void run_back(const StripeArguments &p, const Told &told) {
  run_blocks<L>(p, told.n_items, [&](Thread<L> *threads, const Room &room, int stripe, int item) {
    if (told.fixed) Stripe<L>::template back<SLOPES, true>(threads, room, p, stripe, item);
    else Stripe<L>::template back<SLOPES, false>(threads, room, p, stripe, item);
  });
}

template <class L> void run_kernel(const StripeArguments &p, const Told &told) {
  if (told.kernel == DETECT_PASS) told.loss == POISSON ? run_counts<L, POISSON>(p, told) : run_counts<L, AMPLITUDE>(p, told);
  else if (told.kernel == BACK_PASS) run_back<L, false>(p, told);
  else if (told.kernel == BACK_PASS_WITH_SLOPES) run_back<L, true>(p, told);
  else
    run_blocks<L>(p, told.n_items, [&](Thread<L> *threads, const Room &room, int stripe, int item) {
      Stripe<L>::forward(threads, room, p, stripe, item);
    });
}

template <int N> void run_direction(const StripeArguments &p, int along_y, const Told &told) {
  along_y ? run_kernel<StripeLayout<N, true>>(p, told) : run_kernel<StripeLayout<N, false>>(p, told);
}

extern "C" int run_pass(const StripeArguments *p, int n, int along_y, const Told *told) {
  if (n == 128) run_direction<128>(*p, along_y, *told);
#ifndef ONLY_128
  else if (n == 192) run_direction<192>(*p, along_y, *told);
  else if (n == 256) run_direction<256>(*p, along_y, *told);
  else if (n == 384) run_direction<384>(*p, along_y, *told);
  else if (n == 512) run_direction<512>(*p, along_y, *told);
#endif
  else return 1;
  return 0;
}

extern "C" int size_of_arguments() { return sizeof(StripeArguments); }

template <int N> int shared(int along_y) {
  return 8 * ((along_y ? StripeLayout<N, true>::ROOM : StripeLayout<N, false>::ROOM) + N);
}

extern "C" int shared_bytes(int n, int along_y) {
  if (n == 128) return shared<128>(along_y);
  if (n == 192) return shared<192>(along_y);
  if (n == 256) return shared<256>(along_y);
  return n == 384 ? shared<384>(along_y) : shared<512>(along_y);
}
