// Gradients of multislice patterns, whole: a block of threads takes one pattern at a time from the probe to the loss
// and back, and its wave never leaves the registers but to be saved in front of each slice.
//
// T neighbouring threads (lanes) hold a line of the wave, E points each. The factor of a gap is a product of one along
// y and one along x: transforms run along lines alone, and of one propagation to the next the lines turn, so that a
// single transposition through shared memory suffices. In slice s lines run along x for even s, along y for odd s.
//
// What meets the wave is laid out by hpcrec/backend/cuda.py in the orders of lanes.cuh.
#pragma once

template <int N_> struct Layout {
  static constexpr int N = N_, E = N == 96 ? 24 : 16, T = N / E, THREADS = N * T;
  // Numbers from one line to the next in shared memory: no two threads of a half warp meet in a bank
  static constexpr int STRIDE = T == 8 ? 9 * E + 8 : 5 * E + 4;
  static constexpr int ROOM = STRIDE * N;
  // Whether neighbouring lines, not neighbouring points, of a slice lie side by side in memory: neighbouring threads
  // then read neighbouring numbers, eight of them or more
  static constexpr bool LINES_ADJACENT = T < 8;
  static constexpr bool LINE_IN_WARP = true;
  static constexpr int WEIGHTS = 1, OTHERS = 1;  // not used
  static_assert(T == 4 || T == 8, "an exchange in a line is laid out for four or eight lanes");
};

struct Arguments {
  const float2 *probe;      // by threads: (E/2, thread, 2)
  const float2 *object;     // (slice, y, x), transposed as LINES_ADJACENT says
  float2 *object_gradient;  // dL/dO*, as the object
  float *illumination;      // sum |psi|^2, as the object's gradient
  float2 *probe_gradient;   // dL/dP*: (block, E/2, thread, 2), one a block so that none waits for another
  float2 *saved;            // room (block, slice - 1, E/2, thread, 2) for the waves in front of slices
  const void *counts;       // (pattern, thread, E) in order of frequency
  const unsigned *good;     // (pattern or 1, thread): bit i says whether element i counts
  const int *corners;       // (pattern, 2): first pixel y, x of a window
  const float2 *factors;    // (factor, 2, N): along y and along x, each over N, zero frequency first
  const int *factor_of_gap; // (slice - 1,)
  const float2 *twiddles;   // (E, T): exp(-2 pi i k l/N)
  double *totals;           // (block, warp, 3): loss, error, counts
  Sheet of_object, of_gradient;
  int n_slices, n_patterns, n_factors, good_step;
  float floor;              // epsilon of the loss
};

// ---- lines of a whole wave turn

template <class L> struct Square : Lines<L> {
  using Base = Lines<L>;
  using State = Thread<L>;
  static constexpr int N = L::N, E = L::E, T = L::T, STRIDE = L::STRIDE;

  // With eight lanes the columns of a line trade places within eight, or threads would meet in banks
  static INLINE int permutation(int line) { return T == 8 ? ((line & 2) << 1) | ((line & 4) >> 1) : 0; }

  // Lines become columns; IN and OUT say whether elements stand in order of frequency before and after
  template <bool IN, bool OUT> static INLINE void transpose(State *threads, const Room &room) {
    FOR_EACH_THREAD(t) {
      float2 *to = room.exchange + t.line * STRIDE + (t.lane ^ permutation(t.line));
      UNROLL for (int i = 0; i < E; ++i) to[Base::template place<IN>(i)] = t.v[i];
    }
    barrier();
    FOR_EACH_THREAD(t) {
      const float2 *from = room.exchange + t.lane * STRIDE + (t.line ^ permutation(t.lane));
      UNROLL for (int i = 0; i < E; ++i) t.v[i] = from[Base::template place<OUT>(i) * STRIDE];
    }
    barrier();
  }
  // The propagation to the next slice, or with the conjugate factors its adjoint; lines turn
  static INLINE void propagate(State *threads, const Room &room, const float2 *factors, bool conjugate, int along_y) {
    KEEP_ROLLED for (int half = 0; half < 2; ++half) {
      const int axis = along_y ^ half;
      Base::filter(threads, room, factors + (axis ? 0 : N), conjugate);
      if (half == 0) transpose<false, false>(threads, room);
    }
  }
};

// ---- one pattern

template <class L, Loss LOSS, class Count> struct Pattern {
  static constexpr int N = L::N, E = L::E, T = L::T, THREADS = L::THREADS;
  static constexpr int PER_WORD = 4 / sizeof(Count);
  using Along = Square<L>;
  using State = Thread<L>;
  struct alignas(16) Pair { float2 a, b; };

  // By threads: 16 bytes a thread at a time, neighbouring threads side by side
  static INLINE void load(State &t, const float2 *wave) {
    const Pair *from = (const Pair *)wave + t.index;
    UNROLL for (int i = 0; i < E / 2; ++i) {
      const Pair pair = from[i * THREADS];
      t.v[2 * i] = pair.a;
      t.v[2 * i + 1] = pair.b;
    }
  }
  static INLINE void save(const State &t, float2 *wave) {
    Pair *to = (Pair *)wave + t.index;
    UNROLL for (int i = 0; i < E / 2; ++i) to[i * THREADS] = Pair{t.v[2 * i], t.v[2 * i + 1]};
  }
  static INLINE void add(const State &t, float2 *wave) {
    Pair *to = (Pair *)wave + t.index;
    UNROLL for (int i = 0; i < E / 2; ++i) {
      const Pair pair = to[i * THREADS];
      to[i * THREADS] = Pair{pair.a + t.v[2 * i], pair.b + t.v[2 * i + 1]};
    }
  }
  static INLINE float2 *saved(const Arguments &p, int block, int slice) {
    return p.saved + ((long long)block * (p.n_slices - 1) + slice - 1) * (N * N);
  }

  // Numbers from a line, or from an element of a thread, to the next in a slice
  static INLINE int pitch(const Sheet &sheet, int slice) {
    return (slice % 2 == 0) == L::LINES_ADJACENT ? sheet.height : sheet.width;
  }
  static INLINE int step(const Sheet &sheet, int slice) { return L::LINES_ADJACENT ? T * pitch(sheet, slice) : T; }
  // Place of a thread's first point in an array (slice, y, x)
  static INLINE long long first(const State &t, const Sheet &sheet, int slice, const int *corner) {
    const int y = corner[0] - sheet.top, x = corner[1] - sheet.left;
    const int line = (slice % 2 ? x : y) + t.line, point = (slice % 2 ? y : x) + t.lane;
    const int wide = pitch(sheet, slice);
    return (long long)slice * sheet.height * sheet.width
           + (L::LINES_ADJACENT ? (long long)point * wide + line : (long long)line * wide + point);
  }

  static INLINE void transmit(State &t, const Arguments &p, int slice, const int *corner) {
    const float2 *object = p.object + first(t, p.of_object, slice, corner);
    const int apart = step(p.of_object, slice);
    UNROLL for (int i = 0; i < E; ++i) t.v[i] = t.v[i] * cached(object + i * apart);
  }
  // gradient += g psi*, illumination += |psi|^2, g <- g O*
  static INLINE void transmit_back(State &t, const Arguments &p, int slice, const int *corner, const float2 *wave) {
    const float2 *object = p.object + first(t, p.of_object, slice, corner);
    const long long place = first(t, p.of_gradient, slice, corner);
    const int apart = step(p.of_object, slice), gradient_apart = step(p.of_gradient, slice);
    const Pair *waves = (const Pair *)wave + t.index;
    UNROLL for (int pair = 0; pair < E / 2; ++pair) {
      const Pair both = waves[pair * THREADS];
      UNROLL for (int i = 2 * pair; i < 2 * pair + 2; ++i) {
        const float2 psi = i % 2 ? both.b : both.a;
        add_shared(p.object_gradient + place + i * gradient_apart, times_conjugate(t.v[i], psi));
        add_shared(p.illumination + place + i * gradient_apart, psi.x * psi.x + psi.y * psi.y);
        t.v[i] = times_conjugate(t.v[i], cached(object + i * apart));
      }
    }
  }

  // psi <- w psi / N^2 with the transforms' norm, both ways
  static INLINE void answer(State &t, const Arguments &p, int pattern, int block) {
    constexpr float unit = 1.0f / (N * N);
    const unsigned *words = (const unsigned *)((const Count *)p.counts + ((long long)pattern * THREADS + t.index) * E);
    const unsigned good = p.good[(long long)pattern * p.good_step + t.index];
    PatternSums sums = {0.0f, 0.0f, 0.0f};
    UNROLL for (int i = 0; i < E; ++i) {
      const float measured = (float)(Count)(words[i / PER_WORD] >> (i % PER_WORD * 8 * sizeof(Count)));
      const float modelled = (t.v[i].x * t.v[i].x + t.v[i].y * t.v[i].y) * unit;
      t.v[i] = unit * weigh<LOSS>(modelled, measured, good >> i & 1, p.floor, sums) * t.v[i];
    }
    double *totals = p.totals + ((long long)block * (THREADS / 32) + t.index / 32) * 3;
    add_warp_sum(totals, sums.loss, t.index);
    add_warp_sum(totals + 1, sums.error, t.index);
    add_warp_sum(totals + 2, sums.counts, t.index);
  }
  static INLINE void detect(State *threads, const Room &room, const Arguments &p, int pattern, int block) {
    Along::forward(threads, room);
    Along::template transpose<true, false>(threads, room);
    Along::forward(threads, room);
    FOR_EACH_THREAD(t) answer(t, p, pattern, block);
    Along::backward(threads, room);
    Along::template transpose<false, true>(threads, room);
    Along::backward(threads, room);
  }

  static INLINE const float2 *factors(const Room &room, const Arguments &p, int gap) {
    return room.factors + p.factor_of_gap[gap] * 2 * N;
  }
  static INLINE void add_gradients(State *threads, const Room &room, const Arguments &p, int pattern, int block) {
    const int corner[2] = {p.corners[2 * pattern], p.corners[2 * pattern + 1]};
    FOR_EACH_THREAD(t) load(t, p.probe);
    KEEP_ROLLED for (int slice = 0; slice < p.n_slices; ++slice) {
      if (slice) Along::propagate(threads, room, factors(room, p, slice - 1), false, (slice - 1) % 2);
      FOR_EACH_THREAD(t) {
        if (slice) save(t, saved(p, block, slice));
        transmit(t, p, slice, corner);
      }
    }
    detect(threads, room, p, pattern, block);
    KEEP_ROLLED for (int slice = p.n_slices - 1; slice >= 0; --slice) {
      FOR_EACH_THREAD(t) transmit_back(t, p, slice, corner, slice ? saved(p, block, slice) : p.probe);
      if (slice) Along::propagate(threads, room, factors(room, p, slice - 1), true, slice % 2);
    }
    FOR_EACH_THREAD(t) add(t, p.probe_gradient + (long long)block * N * N);
  }
};
