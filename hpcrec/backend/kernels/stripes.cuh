// Gradients of multislice patterns in stripes, for waves that no block of threads can hold: a block takes W neighbouring
// lines of one mode of one pattern. One pass after the other goes over a chunk of patterns, see
// hpcrec/backend/stripes.py, and reads and writes each wave once.
//
// In even slices lines run along x, in odd ones along y. A pass ends the gap in front of its slice (by the factor along
// its lines), meets the slice and begins the next gap; the other half of a gap is the next pass's. A probe's shift is a
// gap in front of the first slice. In memory waves are (y, x), in natural order of space or frequency.
#pragma once

template <int N_, bool ALONG_Y_> struct StripeLayout {
  static constexpr bool ALONG_Y = ALONG_Y_;
  static constexpr int N = N_, W = 16, E = N == 192 ? 24 : N == 384 ? 48 : N == 512 ? 32 : 16, T = N / E;
  static constexpr int THREADS = W * T, STRIPES = N / W, WARPS = THREADS / 32;
  // Numbers from one line to the next in shared memory. Lines along x: the threads of a line are neighbours; along y:
  // threads are neighbours as columns are, so that they read neighbouring numbers, and an odd stride parts their banks
  static constexpr int ENTRIES = E * (T + 1);
  static constexpr int STRIDE = ALONG_Y ? ENTRIES | 1 : T == 8 ? (ENTRIES + 15) / 16 * 16 + 8 : ENTRIES;
  static constexpr int ROOM = STRIDE * W, WEIGHTS = E, OTHERS = E;
  static constexpr bool LINE_IN_WARP = !ALONG_Y;
  static_assert((T == 8 || T == 16) && E % T == 0, "an exchange in a line is laid out for eight or sixteen lanes");
};

struct StripeArguments {
  const float2 *probe;       // (mode, y, x)
  const float2 *object;      // (slice, y, x)
  void *object_gradient;     // dL/dO* (slice, y, x), as sums.cuh keeps sums
  void *illumination;        // sum |psi|^2, as the object's gradient
  void *probe_gradient;      // dL/dP*: (copy, mode, y, x), several so that few blocks meet
  float2 *waves;             // room (chunk, mode, y, x)
  float2 *saved;             // room (slice, chunk, mode, stripe, E, thread) for the waves in front of slices
  const void *counts;        // (pattern, ky, kx), or the places of events
  const void *edges;         // of tiles of events (pattern, tiles + 1), or null
  const long long *starts;   // where events of a pattern begin (pattern,), or null
  const unsigned char *good; // (pattern or 1, ky, kx)
  const int *corners;        // (pattern, 2): first pixel y, x of a window
  const float2 *before;      // factor (N,) over N of the gap that is ended, along the lines; of the first pattern, or null
  const float2 *after;       // that of the gap that is begun
  const float2 *twiddles;    // (E, T): exp(-2 pi i k l/N)
  double *totals;            // (pattern, stripe, warp, 3): loss, error, counts
  double *slopes;            // (pattern, mode, stripe, warp, 2): sum q Im(G* X) along y and x over the probe's spectrum
  Sheet of_object, of_gradient;
  int n_slices, n_modes, n_copies, chunk, first, slice, good_step, before_step, after_step;
  float floor;               // epsilon of the loss
  float gradient_scale, illumination_scale, probe_scale;  // of sums in fixed point
};

template <class L> struct Stripe {
  static constexpr int N = L::N, E = L::E, T = L::T, W = L::W, THREADS = L::THREADS, PIXELS = N * N;
  using Along = Lines<L>;
  using State = Thread<L>;

  static INLINE void begin(State &t, int index) {
    t.index = index;
    t.line = L::ALONG_Y ? index % W : index / T;
    t.lane = L::ALONG_Y ? index / W : index % T;
  }

  // Place in (y, x), or (ky, kx), of point k of a thread's line
  static INLINE int place(const State &t, int stripe, int k) {
    const int line = stripe * W + t.line;
    return L::ALONG_Y ? k * N + line : line * N + k;
  }
  template <bool FREQUENCIES> static INLINE int point(const State &t, int i) {
    return t.lane + Along::template place<FREQUENCIES>(i);
  }
  template <bool FREQUENCIES> static INLINE void load(State &t, int stripe, const float2 *wave) {
    UNROLL for (int i = 0; i < E; ++i) t.v[i] = wave[place(t, stripe, point<FREQUENCIES>(t, i))];
  }
  template <bool FREQUENCIES> static INLINE void store(const State &t, int stripe, float2 *wave) {
    UNROLL for (int i = 0; i < E; ++i) wave[place(t, stripe, point<FREQUENCIES>(t, i))] = t.v[i];
  }

  // Waves in front of slices come back to the thread that saved them
  static INLINE float2 *saved(const State &t, const StripeArguments &p, int stripe, int item) {
    const long long which = (long long)p.slice * p.chunk * p.n_modes + item;
    return p.saved + which * PIXELS + (long long)stripe * (E * THREADS) + t.index;
  }

  // Place of a thread's first point in an array (slice, y, x), and from one element to the next
  static INLINE long long first(const State &t, const StripeArguments &p, const Sheet &sheet, int stripe, int pattern) {
    const int line = stripe * W + t.line;
    const int y = p.corners[2 * pattern] - sheet.top + (L::ALONG_Y ? t.lane : line);
    const int x = p.corners[2 * pattern + 1] - sheet.left + (L::ALONG_Y ? line : t.lane);
    return ((long long)p.slice * sheet.height + y) * sheet.width + x;
  }
  static INLINE int step(const Sheet &sheet) { return L::ALONG_Y ? T * sheet.width : T; }

  static INLINE void transmit(State &t, const StripeArguments &p, int stripe, int pattern) {
    const float2 *object = p.object + first(t, p, p.of_object, stripe, pattern);
    const int apart = step(p.of_object);
    UNROLL for (int i = 0; i < E; ++i) t.v[i] = t.v[i] * cached(object + i * apart);
  }
  // gradient += g psi*, illumination += |psi|^2, g <- g O*; psi: numbers `stride` apart
  template <bool FIXED>
  static INLINE void transmit_back(State &t, const StripeArguments &p, int stripe, int pattern, const float2 *wave,
                                   int stride) {
    const float2 *object = p.object + first(t, p, p.of_object, stripe, pattern);
    const long long place = first(t, p, p.of_gradient, stripe, pattern);
    auto *gradient = (typename Sums<FIXED>::Complex *)p.object_gradient + place;
    auto *illumination = (typename Sums<FIXED>::Real *)p.illumination + place;
    const int apart = step(p.of_object), gradient_apart = step(p.of_gradient);
    UNROLL for (int i = 0; i < E; ++i) {
      const float2 psi = wave[i * stride];
      add_shared(gradient + i * gradient_apart, times_conjugate(t.v[i], psi), p.gradient_scale);
      add_shared(illumination + i * gradient_apart, psi.x * psi.x + psi.y * psi.y, p.illumination_scale);
      t.v[i] = times_conjugate(t.v[i], cached(object + i * apart));
    }
  }

  // ---- the passes; item: mode of a pattern of the chunk

  // From the probe or the gap before a slice to the gap behind it or the detector. Slice -1: the probe begins its shift
  static INLINE void forward(State *threads, const Room &room, const StripeArguments &p, int stripe, int item) {
    const int pattern = p.first + item / p.n_modes;
    const float2 *probe = p.probe + (long long)(item % p.n_modes) * PIXELS;
    float2 *wave = p.waves + (long long)item * PIXELS;
    FOR_EACH_THREAD(t) load<false>(t, stripe, p.before ? wave : probe);
    if (p.before) Along::filter(threads, room, p.before + (long long)pattern * p.before_step, false);
    if (p.slice >= 0) FOR_EACH_THREAD(t) {
      if (p.before) {
        float2 *to = saved(t, p, stripe, item);
        UNROLL for (int i = 0; i < E; ++i) to[i * THREADS] = t.v[i];
      }
      transmit(t, p, stripe, pattern);
    }
    if (p.after) {
      Along::filter(threads, room, p.after + (long long)pattern * p.after_step, false);
      FOR_EACH_THREAD(t) store<false>(t, stripe, wave);
    } else {
      Along::forward(threads, room);
      FOR_EACH_THREAD(t) store<true>(t, stripe, wave);
    }
  }

  // psi <- w psi / N^2 with the transforms' norm, both ways, of all modes of a pattern of the chunk
  template <Loss LOSS, class Count>
  static INLINE void detect(State *threads, const Room &room, const StripeArguments &p, int stripe, int item) {
    float2 *waves = p.waves + (long long)item * p.n_modes * PIXELS;
    const bool alone = p.n_modes == 1;
    KEEP_ROLLED for (int mode = 0; mode < p.n_modes; ++mode) {
      float2 *wave = waves + (long long)mode * PIXELS;
      FOR_EACH_THREAD(t) load<false>(t, stripe, wave);
      Along::forward(threads, room);
      FOR_EACH_THREAD(t) {
        UNROLL for (int i = 0; i < E; ++i) {
          const float power = t.v[i].x * t.v[i].x + t.v[i].y * t.v[i].y;
          t.weight[i] = mode ? t.weight[i] + power : power;
        }
        if (!alone) store<true>(t, stripe, wave);
      }
    }
    Counted<Count>::gather(threads, room, p, stripe, item);
    FOR_EACH_THREAD(t) weigh_all<LOSS>(t, p, stripe, item, Counted<Count>(room, p, item));
    Counted<Count>::leave();
    KEEP_ROLLED for (int mode = 0; mode < p.n_modes; ++mode) {
      float2 *wave = waves + (long long)mode * PIXELS;
      FOR_EACH_THREAD(t) {
        if (!alone) load<true>(t, stripe, wave);
        UNROLL for (int i = 0; i < E; ++i) t.v[i] = t.weight[i] * t.v[i];
      }
      Along::backward(threads, room);
      FOR_EACH_THREAD(t) store<false>(t, stripe, wave);
    }
  }

  // What a pixel counts: dense counts lie in memory
  template <class Count> struct Counted {
    const Count *counts;
    INLINE Counted(const Room &, const StripeArguments &p, int item)
        : counts((const Count *)p.counts + (long long)(p.first + item) * PIXELS) {}
    static INLINE void gather(State *, const Room &, const StripeArguments &, int, int) {}
    static INLINE void leave() {}
    INLINE float at_pixel(const State &t, int stripe, int point) const { return counts[place(t, stripe, point)]; }
  };
  // Those of events are gathered in the memory of the exchange, which rests meanwhile
  template <class Edge> struct Counted<Events<Edge>> {
    using Found = StripeCounts<L>;
    static_assert(Found::SIZE <= 2 * L::ROOM, "the exchange has room for the counts of a stripe");
    const unsigned *counts;
    INLINE Counted(const Room &room, const StripeArguments &, int) : counts((const unsigned *)room.exchange) {}
    static INLINE void gather(State *threads, const Room &room, const StripeArguments &p, int stripe, int item) {
      const long long pattern = p.first + item;
      unsigned *counts = (unsigned *)room.exchange;
      const Edge *edges = (const Edge *)p.edges + pattern * (Found::TILES * Found::TILES + 1);
      const unsigned char *places = (const unsigned char *)p.counts + p.starts[pattern];
      barrier();
      FOR_EACH_THREAD(t) for (int i = t.index; i < Found::SIZE; i += THREADS) counts[i] = 0;
      barrier();
      FOR_EACH_THREAD(t) Found::add(counts, edges, places, stripe, t.index);
      barrier();
    }
    static INLINE void leave() { barrier(); }
    INLINE float at_pixel(const State &t, int, int point) const { return counts[Found::place(t.line, point)]; }
  };

  template <Loss LOSS, class Count>
  static INLINE void weigh_all(State &t, const StripeArguments &p, int stripe, int item, const Count &counts) {
    constexpr float unit = 1.0f / PIXELS;
    const long long pattern = p.first + item;
    const unsigned char *good = p.good + pattern * p.good_step;
    PatternSums sums = {0.0f, 0.0f, 0.0f};
    UNROLL for (int i = 0; i < E; ++i) {
      const int k = point<true>(t, i);
      const bool seen = good[place(t, stripe, k)];
      t.weight[i] = unit * weigh<LOSS>(t.weight[i] * unit, counts.at_pixel(t, stripe, k), seen, p.floor, sums);
    }
    double *totals = p.totals + ((pattern * L::STRIPES + stripe) * L::WARPS + t.index / 32) * 3;
    add_warp_sum(totals, sums.loss, t.index);
    add_warp_sum(totals + 1, sums.error, t.index);
    add_warp_sum(totals + 2, sums.counts, t.index);
  }

  // Adds sum q Im(G* X) along the lines, of spectra G in v and X in other; X is sqrt(N) too large, as G is
  static INLINE void add_slope(State &t, const StripeArguments &p, int stripe, int item, float scale) {
    float sum = 0.0f;
    UNROLL for (int i = 0; i < E; ++i) {
      const int k = point<true>(t, i);
      const float q = (float)(2 * k < N ? k : k - N) / N;
      sum += q * (t.v[i].x * t.other[i].y - t.v[i].y * t.other[i].x);
    }
    const long long which = ((long long)p.first * p.n_modes + item) * L::STRIPES + stripe;
    add_warp_sum(p.slopes + (which * L::WARPS + t.index / 32) * 2 + (L::ALONG_Y ? 0 : 1), sum * scale, t.index);
  }
  static INLINE void exchange_waves(State &t) {
    UNROLL for (int i = 0; i < E; ++i) {
      const float2 kept = t.v[i];
      t.v[i] = t.other[i];
      t.other[i] = kept;
    }
  }

  // From the detector or the gap behind a slice to the gap before it or the probe. Slice -1: the shift ends.
  // SLOPES: along which the loss falls with the shift; of passes that end the shift's half. FIXED: sums in fixed point
  template <bool SLOPES, bool FIXED>
  static INLINE void back(State *threads, const Room &room, const StripeArguments &p, int stripe, int item) {
    const int pattern = p.first + item / p.n_modes, mode = item % p.n_modes;
    const float2 *probe = p.probe + (long long)mode * PIXELS;
    const float2 *before = p.before + (long long)pattern * p.before_step;
    const float2 *after = p.after + (long long)pattern * p.after_step;
    float2 *wave = p.waves + (long long)item * PIXELS;
    if (SLOPES && p.slice < 0) {
      // X: the probe, shifted along the lines; the factor is over N
      FOR_EACH_THREAD(t) load<false>(t, stripe, probe);
      Along::forward(threads, room);
      FOR_EACH_THREAD(t) {
        Along::turn(t, after, false);
        exchange_waves(t);
        load<false>(t, stripe, wave);
      }
      Along::in_spectrum(threads, room, [&](State &t) {
        add_slope(t, p, stripe, item, 1.0f);
        Along::turn(t, after, true);
      });
    } else if (p.after) {
      FOR_EACH_THREAD(t) load<false>(t, stripe, wave);
      Along::filter(threads, room, after, true);
    } else {
      FOR_EACH_THREAD(t) load<true>(t, stripe, wave);
      Along::backward(threads, room);
    }
    if (p.slice >= 0) FOR_EACH_THREAD(t) {
      if (p.before) transmit_back<FIXED>(t, p, stripe, pattern, saved(t, p, stripe, item), THREADS);
      else transmit_back<FIXED>(t, p, stripe, pattern, probe + place(t, stripe, t.lane), L::ALONG_Y ? T * N : T);
    }
    if (SLOPES && p.slice >= 0) {
      // X: the wave in front of the first slice, the probe shifted along both axes
      FOR_EACH_THREAD(t) {
        exchange_waves(t);
        const float2 *from = saved(t, p, stripe, item);
        UNROLL for (int i = 0; i < E; ++i) t.v[i] = from[i * THREADS];
      }
      Along::forward(threads, room);
      FOR_EACH_THREAD(t) exchange_waves(t);
      Along::in_spectrum(threads, room, [&](State &t) {
        add_slope(t, p, stripe, item, 1.0f / N);
        Along::turn(t, before, true);
      });
    } else if (p.before) Along::filter(threads, room, before, true);
    if (p.before) {
      FOR_EACH_THREAD(t) store<false>(t, stripe, wave);
    } else {
      const int copy = (item / p.n_modes + stripe) % p.n_copies;
      auto *gradient = (typename Sums<FIXED>::Complex *)p.probe_gradient + ((long long)copy * p.n_modes + mode) * PIXELS;
      FOR_EACH_THREAD(t) {
        UNROLL for (int i = 0; i < E; ++i)
          add_shared(gradient + place(t, stripe, point<false>(t, i)), t.v[i], p.probe_scale);
      }
    }
  }
};
