// Waves in registers: T neighbouring threads (lanes) hold a line of N = E T points, E each, and transform it together.
//
// In space element i of lane l is point T i + l, in frequency l + T (i/T) + E (i%T). Neither order is natural, because
// nothing asks for that.
#pragma once

// Where an array (slice, y, x) lies: its size, and its first pixel in the object's numbering
struct Sheet { int height, width, top, left; };

// Beside its points a thread may keep a weight of each, and those of another wave
template <class L> struct Thread {
  int index, line, lane;
  float2 v[L::E], other[L::OTHERS];
  float weight[L::WEIGHTS];
};

// Shared memory of a block
struct Room { float2 *exchange; const float2 *twiddles, *factors; };

template <class L> constexpr int room_size(int n_factors) { return L::ROOM + L::E * L::T + n_factors * 2 * L::N; }

template <class L> struct Lines {
  static constexpr int N = L::N, E = L::E, T = L::T, GROUPS = E / T, THREADS = L::THREADS, STRIDE = L::STRIDE;
  using State = Thread<L>;

  // A line's threads are neighbours in a warp, or spread over the block
  static INLINE void line_barrier() {
    if constexpr (L::LINE_IN_WARP) warp_barrier();
    else barrier();
  }

  // Of places the part that a thread knows is added to the pointer, constants index it: NVRTC then adds them in the
  // load's own address, but computes an address of 64 bits for each sum of both, for which registers are missing

  // Entry k of lane l stands at k (T + 1) + l of its line: rows by k are written, columns by l read, or the reverse
  static INLINE float2 *row(const State &t, const Room &room) { return room.exchange + t.line * STRIDE + t.lane; }
  static INLINE float2 *column(const State &t, const Room &room) {
    return room.exchange + t.line * STRIDE + t.lane * (T + 1);
  }
  static INLINE int column_entry(int i) { return (i / T) * T * (T + 1) + i % T; }

  static INLINE void begin_forward(State &t, const Room &room) {
    transform<E, FORWARD>(t.v);
    float2 *to = row(t, room);
    const float2 *twiddles = room.twiddles + t.lane;
    UNROLL for (int k = 0; k < E; ++k) {
      to[k * (T + 1)] = k ? t.v[k] * twiddles[k * T] : t.v[k];
    }
  }
  static INLINE void end_forward(State &t, const Room &room) {
    const float2 *from = column(t, room);
    UNROLL for (int i = 0; i < E; ++i) t.v[i] = from[column_entry(i)];
    transform_groups<FORWARD>(t);
  }
  static INLINE void begin_backward(State &t, const Room &room) {
    transform_groups<BACKWARD>(t);
    float2 *to = column(t, room);
    UNROLL for (int i = 0; i < E; ++i) to[column_entry(i)] = t.v[i];
  }
  static INLINE void end_backward(State &t, const Room &room) {
    const float2 *from = row(t, room), *twiddles = room.twiddles + t.lane;
    UNROLL for (int k = 0; k < E; ++k) {
      t.v[k] = from[k * (T + 1)];
      if (k) t.v[k] = times_conjugate(t.v[k], twiddles[k * T]);
    }
    transform<E, BACKWARD>(t.v);
  }
  template <int D> static INLINE void transform_groups(State &t) {
    UNROLL for (int g = 0; g < GROUPS; ++g) {
      float2 part[T];
      UNROLL for (int l = 0; l < T; ++l) part[l] = t.v[g * T + l];
      transform<T, D>(part);
      UNROLL for (int l = 0; l < T; ++l) t.v[g * T + l] = part[l];
    }
  }

  // Space in, frequency out; the exchange stays within lines
  static INLINE void forward(State *threads, const Room &room) {
    FOR_EACH_THREAD(t) begin_forward(t, room);
    line_barrier();
    FOR_EACH_THREAD(t) end_forward(t, room);
    line_barrier();
  }
  static INLINE void backward(State *threads, const Room &room) {
    FOR_EACH_THREAD(t) begin_backward(t, room);
    line_barrier();
    FOR_EACH_THREAD(t) end_backward(t, room);
    line_barrier();
  }
  // Does something to the lines' spectra, and returns them to space times N
  template <class F> static INLINE void in_spectrum(State *threads, const Room &room, F &&change) {
    FOR_EACH_THREAD(t) begin_forward(t, room);
    line_barrier();
    FOR_EACH_THREAD(t) {
      end_forward(t, room);
      change(t);
      begin_backward(t, room);
    }
    line_barrier();
    FOR_EACH_THREAD(t) end_backward(t, room);
    line_barrier();
  }
  // Multiplies the spectrum in a thread by a factor (N,), zero frequency first, or by its conjugate
  static INLINE void turn(State &t, const float2 *factor, bool conjugate) {
    const float2 *from = factor + t.lane;
    UNROLL for (int i = 0; i < E; ++i) {
      float2 h = from[place<true>(i)];
      if (conjugate) h.y = -h.y;
      t.v[i] = t.v[i] * h;
    }
  }
  static INLINE void filter(State *threads, const Room &room, const float2 *factor, bool conjugate) {
    in_spectrum(threads, room, [&](State &t) { turn(t, factor, conjugate); });
  }

  // Places along a line, less the lane; multiples of T, so that a thread's addresses differ by constants
  template <bool FREQUENCIES> static INLINE int place(int i) {
    return FREQUENCIES ? T * (i / T) + E * (i % T) : T * i;
  }
};
