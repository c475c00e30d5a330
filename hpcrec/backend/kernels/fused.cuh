// Gradients of multislice patterns, whole: a block of threads takes one pattern at a time from the probe to the loss
// and back, and its wave never leaves the registers but to be saved in front of each slice.
//
// T neighbouring threads (lanes) hold a line of the wave, E points each. The factor of a gap is a product of one along
// y and one along x: transforms run along lines alone, and of one propagation to the next the lines turn, so that a
// single transposition through shared memory suffices. In slice s lines run along x for even s, along y for odd s.
// A shifted probe enters as its spectrum, whose lines run along ky: there a shift is a product of two ramps, and two
// transforms with one transposition bring it to the first slice.
//
// Several modes go to the detector one after the other, where all but the last wait in memory, and back in reverse.
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
  const float2 *probe;      // by threads: (mode, E/2, thread, 2), or its spectrum if it is shifted
  const float2 *object;     // (slice, y, x), transposed as LINES_ADJACENT says
  void *object_gradient;    // dL/dO*, as the object, as sums.cuh keeps sums
  void *illumination;       // sum |psi|^2, as the object's gradient
  void *probe_gradient;     // dL/d probe*: (block, mode, E/2, thread, 2), one a block so that none waits for another
  float2 *saved;            // room (block, mode, slot, E/2, thread, 2) for waves, see slots()
  float *weights;           // room (block, E, thread) for what modes have in common at the detector
  const void *counts;       // (pattern, thread, E) in order of frequency, or the places of events
  const void *edges;        // of tiles of events (pattern, tiles + 1), or null
  const long long *starts;  // where events of a pattern begin (pattern,), or null
  const unsigned *good;     // (pattern or 1, thread): bit i says whether element i counts
  const int *corners;       // (pattern, 2): first pixel y, x of a window
  const float2 *factors;    // (factor, 2, N): along y and along x, each over N, zero frequency first
  const int *factor_of_gap; // (slice - 1,)
  const float2 *twiddles;   // (E, T): exp(-2 pi i k l/N)
  const float2 *ramps;      // (pattern, 2, N): a shift's along y and along x, each over sqrt(N), zero frequency first
  double *totals;           // (pattern, warp, 3): loss, error, counts
  double *slopes;           // (pattern, warp, 2): sum q Im(G* X) along y and x over the modes' spectra
  Sheet of_object, of_gradient;
  int n_slices, n_modes, n_patterns, n_factors, good_step;
  float floor;              // epsilon of the loss
  float gradient_scale, illumination_scale, probe_scale;  // of sums in fixed point
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
  // Both transforms of a wave: lines turn, and in frequency stand in its order
  static INLINE void to_spectrum(State *threads, const Room &room) {
    Base::forward(threads, room);
    transpose<true, false>(threads, room);
    Base::forward(threads, room);
  }
  static INLINE void to_space(State *threads, const Room &room) {
    Base::backward(threads, room);
    transpose<false, true>(threads, room);
    Base::backward(threads, room);
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

// ---- what pixels count, by the elements of a thread

// Dense counts lie in memory, those of a thread side by side
template <class L, class Count> struct Counted {
  static constexpr int PER_WORD = 4 / sizeof(Count);
  const unsigned *words;
  INLINE Counted(const Thread<L> &t, const Room &, const Arguments &p, int pattern)
      : words((const unsigned *)((const Count *)p.counts + ((long long)pattern * L::THREADS + t.index) * L::E)) {}
  static INLINE void gather(Thread<L> *, const Room &, const Arguments &, int) {}
  static INLINE void leave() {}
  INLINE float of_element(int i) const {
    return (float)(Count)(words[i / PER_WORD] >> (i % PER_WORD * 8 * sizeof(Count)));
  }
};
// Those of events are gathered in the memory of the exchange, which rests meanwhile, by the far field's lines: along ky
// behind an odd number of slices
template <class L, class Edge> struct Counted<L, Events<Edge>> {
  // The lines that a warp reads at a time lie in banks of their own
  static constexpr int STRIDE = L::N + L::T, SIZE = L::N * STRIDE;
  static_assert(SIZE <= 2 * L::ROOM, "the exchange has room for the counts of a pattern");
  const unsigned *counts;
  INLINE Counted(const Thread<L> &t, const Room &room, const Arguments &, int)
      : counts((const unsigned *)room.exchange + t.line * STRIDE + t.lane) {}
  static INLINE void gather(Thread<L> *threads, const Room &room, const Arguments &p, int pattern) {
    unsigned *counts = (unsigned *)room.exchange;
    const Edge *edges = (const Edge *)p.edges + (long long)pattern * (PatternTiles<L>::TILES + 1);
    const unsigned char *places = (const unsigned char *)p.counts + p.starts[pattern];
    const bool along_y = p.n_slices % 2;
    barrier();
    FOR_EACH_THREAD(t) for (int i = t.index; i < SIZE; i += L::THREADS) counts[i] = 0;
    barrier();
    FOR_EACH_THREAD(t) PatternTiles<L>::add(counts, STRIDE, along_y, edges, places, t.index);
    barrier();
  }
  static INLINE void leave() { barrier(); }
  INLINE float of_element(int i) const { return counts[Lines<L>::template place<true>(i)]; }
};

// ---- one pattern

// MODES: several; SHIFTED: its own shift moves each pattern's probe; SLOPES: along which the loss falls with the shift;
// FIXED: sums in fixed point
template <class L, Loss LOSS, class Count, bool MODES, bool SHIFTED, bool SLOPES, bool FIXED> struct Pattern {
  static constexpr int N = L::N, E = L::E, T = L::T, THREADS = L::THREADS, PIXELS = N * N;
  using Along = Square<L>;
  using State = Thread<L>;
  using Real = typename Sums<FIXED>::Real;
  using Complex = typename Sums<FIXED>::Complex;
  struct alignas(16) Pair { float2 a, b; };
  struct alignas(16) PairOfSums { Complex a, b; };
  // What is done: which pattern, by which block, at which pixels
  struct Task { int pattern, block, corner[2]; };

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
  static INLINE void add(const State &t, Complex *sums, float scale) {
    PairOfSums *to = (PairOfSums *)sums + t.index;
    UNROLL for (int i = 0; i < E / 2; ++i) {
      PairOfSums pair = to[i * THREADS];
      add_own(pair.a, t.v[2 * i], scale);
      add_own(pair.b, t.v[2 * i + 1], scale);
      to[i * THREADS] = pair;
    }
  }

  static INLINE int modes(const Arguments &p) { return MODES ? p.n_modes : 1; }
  // A mode's room: for the waves in front of slices, but for the first's if it is the probe's, and for its far field
  static INLINE int slots(const Arguments &p) { return p.n_slices - !SHIFTED + MODES; }
  // The wave in front of a slice; behind the last one the far field
  static INLINE float2 *saved(const Arguments &p, int block, int mode, int slice) {
    return p.saved + (((long long)block * modes(p) + mode) * slots(p) + slice - !SHIFTED) * PIXELS;
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
    Complex *gradient = (Complex *)p.object_gradient + place;
    Real *illumination = (Real *)p.illumination + place;
    const int apart = step(p.of_object, slice), gradient_apart = step(p.of_gradient, slice);
    const Pair *waves = (const Pair *)wave + t.index;
    UNROLL for (int pair = 0; pair < E / 2; ++pair) {
      const Pair both = waves[pair * THREADS];
      UNROLL for (int i = 2 * pair; i < 2 * pair + 2; ++i) {
        const float2 psi = i % 2 ? both.b : both.a;
        add_shared(gradient + i * gradient_apart, times_conjugate(t.v[i], psi), p.gradient_scale);
        add_shared(illumination + i * gradient_apart, psi.x * psi.x + psi.y * psi.y, p.illumination_scale);
        t.v[i] = times_conjugate(t.v[i], cached(object + i * apart));
      }
    }
  }

  // ---- the probe's shift; its spectrum's lines run along ky, one for each kx

  static INLINE void shift(State &t, const Arguments &p, int pattern, bool conjugate) {
    const float2 *along_y = p.ramps + (long long)pattern * 2 * N;
    Along::turn(t, along_y, conjugate);
    float2 along_x = cached(along_y + N + t.line);
    if (conjugate) along_x.y = -along_x.y;
    UNROLL for (int i = 0; i < E; ++i) t.v[i] = t.v[i] * along_x;
  }
  // Frequency of element k of a line, in cycles over the window; of both signs for the upper half
  static INLINE int cycles(int k) { return 2 * k < N ? k : k - N; }
  // Adds sum q Im(G* X); the shift turns gradient and spectrum alike, so that both are taken without it.
  // Whole groups of lanes are below or above N/2: an element's frequency is its lane's and a constant
  static INLINE void add_slopes(const State &t, const Arguments &p, int pattern, const float2 *spectrum) {
    const Pair *from = (const Pair *)spectrum + t.index;
    float sum = 0.0f, moment = 0.0f;
    UNROLL for (int pair = 0; pair < E / 2; ++pair) {
      const Pair both = from[pair * THREADS];
      UNROLL for (int i = 2 * pair; i < 2 * pair + 2; ++i) {
        const float2 x = i % 2 ? both.b : both.a;
        const float part = t.v[i].x * x.y - t.v[i].y * x.x;
        sum += part;
        moment += cycles(Along::template place<true>(i)) * part;
      }
    }
    double *slopes = p.slopes + ((long long)pattern * (THREADS / 32) + t.index / 32) * 2;
    add_warp_sum(slopes, (t.lane * sum + moment) / N, t.index);
    add_warp_sum(slopes + 1, cycles(t.line) * sum / N, t.index);
  }

  // ---- the detector

  static INLINE float *weights(const State &t, const Arguments &p, int block) {
    return p.weights + (long long)block * PIXELS + t.index;
  }
  // Leaves the far field of a mode, not the last, in memory, and adds its intensity to that of those before it
  static INLINE void leave(State &t, const Arguments &p, int block, int mode) {
    save(t, saved(p, block, mode, p.n_slices));
    float *sum = weights(t, p, block);
    UNROLL for (int i = 0; i < E; ++i) {
      const float power = t.v[i].x * t.v[i].x + t.v[i].y * t.v[i].y;
      sum[i * THREADS] = mode ? sum[i * THREADS] + power : power;
    }
  }
  // The far field that was left there, weighed as the last mode's
  static INLINE void fetch(State &t, const Arguments &p, int block, int mode) {
    load(t, saved(p, block, mode, p.n_slices));
    const float *weight = weights(t, p, block);
    UNROLL for (int i = 0; i < E; ++i) t.v[i] = weight[i * THREADS] * t.v[i];
  }
  // psi <- w psi / N^2 with the transforms' norm, both ways; of the last mode, which leaves the weights to the others
  static INLINE void answer(State &t, const Room &room, const Arguments &p, int pattern, int block) {
    constexpr float unit = 1.0f / PIXELS;
    const Counted<L, Count> counts(t, room, p, pattern);
    const unsigned good = p.good[(long long)pattern * p.good_step + t.index];
    float *others = MODES ? weights(t, p, block) : nullptr;
    PatternSums sums = {0.0f, 0.0f, 0.0f};
    UNROLL for (int i = 0; i < E; ++i) {
      float power = t.v[i].x * t.v[i].x + t.v[i].y * t.v[i].y;
      if (MODES) power += others[i * THREADS];
      const float weight = unit * weigh<LOSS>(power * unit, counts.of_element(i), good >> i & 1, p.floor, sums);
      if (MODES) others[i * THREADS] = weight;
      t.v[i] = weight * t.v[i];
    }
    double *totals = p.totals + ((long long)pattern * (THREADS / 32) + t.index / 32) * 3;
    add_warp_sum(totals, sums.loss, t.index);
    add_warp_sum(totals + 1, sums.error, t.index);
    add_warp_sum(totals + 2, sums.counts, t.index);
  }

  // ---- the way there and back

  static INLINE const float2 *factors(const Room &room, const Arguments &p, int gap) {
    return room.factors + p.factor_of_gap[gap] * 2 * N;
  }
  // From the probe to the far field
  static INLINE void go(State *threads, const Room &room, const Arguments &p, const Task &task, int mode) {
    FOR_EACH_THREAD(t) {
      load(t, p.probe + (long long)mode * PIXELS);
      if (SHIFTED) shift(t, p, task.pattern, false);
    }
    if (SHIFTED) Along::to_space(threads, room);
    KEEP_ROLLED for (int slice = 0; slice < p.n_slices; ++slice) {
      if (slice) Along::propagate(threads, room, factors(room, p, slice - 1), false, (slice - 1) % 2);
      FOR_EACH_THREAD(t) {
        if (SHIFTED || slice) save(t, saved(p, task.block, mode, slice));
        transmit(t, p, slice, task.corner);
      }
    }
    Along::to_spectrum(threads, room);
  }
  // From the weighed far field to the probe
  static INLINE void go_back(State *threads, const Room &room, const Arguments &p, const Task &task, int mode) {
    const float2 *probe = p.probe + (long long)mode * PIXELS;
    Along::to_space(threads, room);
    KEEP_ROLLED for (int slice = p.n_slices - 1; slice >= 0; --slice) {
      FOR_EACH_THREAD(t) {
        transmit_back(t, p, slice, task.corner, SHIFTED || slice ? saved(p, task.block, mode, slice) : probe);
      }
      if (slice) Along::propagate(threads, room, factors(room, p, slice - 1), true, slice % 2);
    }
    if (SHIFTED) Along::to_spectrum(threads, room);
    FOR_EACH_THREAD(t) {
      if (SHIFTED) shift(t, p, task.pattern, true);
      if (SLOPES) add_slopes(t, p, task.pattern, probe);
      add(t, (Complex *)p.probe_gradient + ((long long)task.block * modes(p) + mode) * PIXELS, p.probe_scale);
    }
  }
  static INLINE void add_gradients(State *threads, const Room &room, const Arguments &p, int pattern, int block) {
    const Task task = {pattern, block, {p.corners[2 * pattern], p.corners[2 * pattern + 1]}};
    const int last = modes(p) - 1;
    KEEP_ROLLED for (int mode = 0; mode <= last; ++mode) {
      go(threads, room, p, task, mode);
      if (mode < last) FOR_EACH_THREAD(t) leave(t, p, block, mode);
    }
    Counted<L, Count>::gather(threads, room, p, pattern);
    FOR_EACH_THREAD(t) answer(t, room, p, pattern, block);
    Counted<L, Count>::leave();
    KEEP_ROLLED for (int mode = last; mode >= 0; --mode) {
      if (mode < last) FOR_EACH_THREAD(t) fetch(t, p, block, mode);
      go_back(threads, room, p, task, mode);
    }
  }
};
