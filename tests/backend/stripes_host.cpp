#include "emulated.h"
#include "lines.cuh"
#include "lanes.cuh"
#include "loss.cuh"
#include "stripes.cuh"

enum { FORWARD_PASS, DETECT_PASS, BACK_PASS, BACK_PASS_WITH_SLOPES };

// Runs the work of every block, one after the other, as the kernels in stripes_entry.cuh do
template <class L, class Work> void run_blocks(const StripeArguments &p, int n_items, Work &&work) {
  for (int item = 0; item < n_items; ++item)
    for (int stripe : shuffled(0, L::STRIPES)) {
      std::vector<Thread<L>> threads(L::THREADS);
      std::vector<float2> exchange(L::ROOM);
      poison(threads);
      poison(exchange);
      for (int i = 0; i < L::THREADS; ++i) Stripe<L>::begin(threads[i], i);
      const Room room = {exchange.data(), p.twiddles, nullptr};
      run_block(L::THREADS, [&] { work(threads.data(), room, stripe, item); });
    }
}

template <class L, Loss LOSS, class Count> void run_detector(const StripeArguments &p, int n_items) {
  run_blocks<L>(p, n_items, [&](Thread<L> *threads, const Room &room, int stripe, int item) {
    Stripe<L>::template detect<LOSS, Count>(threads, room, p, stripe, item);
  });
}

template <class L> void run_kernel(const StripeArguments &p, int kernel, int n_items, int loss, int bytes) {
  if (kernel == DETECT_PASS && bytes == 1)
    loss == POISSON ? run_detector<L, POISSON, unsigned char>(p, n_items)
                    : run_detector<L, AMPLITUDE, unsigned char>(p, n_items);
  else if (kernel == DETECT_PASS)
    loss == POISSON ? run_detector<L, POISSON, unsigned short>(p, n_items)
                    : run_detector<L, AMPLITUDE, unsigned short>(p, n_items);
  else
    run_blocks<L>(p, n_items, [&](Thread<L> *threads, const Room &room, int stripe, int item) {
      if (kernel == FORWARD_PASS) Stripe<L>::forward(threads, room, p, stripe, item);
      else if (kernel == BACK_PASS) Stripe<L>::template back<false>(threads, room, p, stripe, item);
      else Stripe<L>::template back<true>(threads, room, p, stripe, item);
    });
}

template <int N> void run_direction(const StripeArguments &p, int kernel, int along_y, int n_items, int loss, int bytes) {
  along_y ? run_kernel<StripeLayout<N, true>>(p, kernel, n_items, loss, bytes)
          : run_kernel<StripeLayout<N, false>>(p, kernel, n_items, loss, bytes);
}

extern "C" int run_pass(const StripeArguments *p, int kernel, int n, int along_y, int n_items, int loss, int bytes) {
  if (n == 128) run_direction<128>(*p, kernel, along_y, n_items, loss, bytes);
  else if (n == 192) run_direction<192>(*p, kernel, along_y, n_items, loss, bytes);
  else if (n == 256) run_direction<256>(*p, kernel, along_y, n_items, loss, bytes);
  else if (n == 384) run_direction<384>(*p, kernel, along_y, n_items, loss, bytes);
  else if (n == 512) run_direction<512>(*p, kernel, along_y, n_items, loss, bytes);
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
