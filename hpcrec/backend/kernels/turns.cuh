// Turns between planes (row, column) and lines (column, along) of numbers, a tile of 32 × 32 a block, with three taps
// along; and the solvers' step.
#pragma once

constexpr int TURN_THREADS = 256, TURN_ROWS = TURN_THREADS / TILE;

struct Taps { int left; float weights[3]; };

struct TurnArguments {
  const float *source;
  float *target;
  const int2 *ranges;
  const Taps *taps;
  int n_rows, n_columns, n_along, width, border, first, planes_of_taps;
};

struct StepArguments {
  const float *point, *before, *gradient;
  float *volume, *ahead;
  long long n;
  float step, threshold, momentum;
};

INLINE bool inside(const TurnArguments &p, int plane, int column, int along) {
  if (!p.ranges) return true;
  const int2 range = p.ranges[(Fixed)plane * p.n_columns + column];
  return along >= range.x && along < range.y;
}

// Tiles of columns first, then of what is along: blocks (tiles; planes)
struct Turn {
  const TurnArguments &p;
  const Taps &taps;
  int plane, column, along, row, lane;
  INLINE Turn(const TurnArguments &p, int block, int plane, int n_along, int thread)
      : p(p), taps(p.taps[plane / p.planes_of_taps]), plane(plane) {
    const int tiles = (n_along + TILE - 1) / TILE;
    column = block / tiles * TILE, along = block % tiles * TILE, row = thread / TILE, lane = thread % TILE;
  }
};

// Lines from planes: line[column + border][first + a] = Σ w_q plane[a + left + q][column], zero outside the ranges
INLINE void to_lines(ProjectorThread *threads, float *shared, const TurnArguments &p, int block, int plane) {
  FOR_EACH_THREAD(t) {
    const Turn turn(p, block, plane, p.n_along, t.index);
    const int column = turn.column + turn.lane;
    const float *source = p.source + (Fixed)plane * p.n_rows * p.n_columns + column;
    for (int row = turn.row; row < TILE; row += TURN_ROWS) {
      const int along = turn.along + row;
      float sum = 0.f;
      if (column < p.n_columns && along < p.n_along && inside(p, plane, column, along))
        for (int tap = 0; tap < 3; ++tap) {
          const int from = along + turn.taps.left + tap;
          if (from >= 0 && from < p.n_rows) sum += turn.taps.weights[tap] * source[(Fixed)from * p.n_columns];
        }
      shared[turn.lane * TILE_STRIDE + row] = sum;
    }
  }
  barrier();
  FOR_EACH_THREAD(t) {
    const Turn turn(p, block, plane, p.n_along, t.index);
    const int along = turn.along + turn.lane;
    for (int row = turn.row; row < TILE; row += TURN_ROWS) {
      const int column = turn.column + row;
      const Fixed line = (Fixed)plane * (p.n_columns + 2 * p.border) + column + p.border;
      if (column < p.n_columns && along < p.n_along)
        p.target[line * p.width + p.first + along] = shared[row * TILE_STRIDE + turn.lane];
    }
  }
}

// Planes from lines: plane[r][column] = Σ w_q line[column][r − left − q], zero outside the ranges
INLINE void from_lines(ProjectorThread *threads, float *shared, const TurnArguments &p, int block, int plane) {
  FOR_EACH_THREAD(t) {
    const Turn turn(p, block, plane, p.n_rows, t.index);
    const int along = turn.along + turn.lane;
    for (int row = turn.row; row < TILE; row += TURN_ROWS) {
      const int column = turn.column + row;
      const float *source = p.source + ((Fixed)plane * p.n_columns + column) * p.width;
      float sum = 0.f;
      if (column < p.n_columns && along < p.n_rows && inside(p, plane, column, along))
        for (int tap = 0; tap < 3; ++tap) {
          const int from = along - turn.taps.left - tap;
          if (from >= 0 && from < p.n_along) sum += turn.taps.weights[tap] * source[from];
        }
      shared[row * TILE_STRIDE + turn.lane] = sum;
    }
  }
  barrier();
  FOR_EACH_THREAD(t) {
    const Turn turn(p, block, plane, p.n_rows, t.index);
    const int column = turn.column + turn.lane;
    for (int row = turn.row; row < TILE; row += TURN_ROWS) {
      const int along = turn.along + row;
      if (column < p.n_columns && along < p.n_rows)
        p.target[((Fixed)plane * p.n_rows + along) * p.n_columns + column] = shared[turn.lane * TILE_STRIDE + row];
    }
  }
}

// The solvers' step: V = prox(y − s g), y⁺ = V + β (V − before)

template <bool POSITIVE> INLINE void proximal_step(ProjectorThread *threads, const StepArguments &p, int block) {
  FOR_EACH_THREAD(t) {
    const long long i = (long long)block * ROW_THREADS + t.index;
    if (i < p.n) {
      const float moved = p.point[i] - p.step * p.gradient[i], above = moved - p.threshold, below = moved + p.threshold;
      // Compared, not fmaxf: a value that is not a number must stay one
      float found = above < 0.f ? 0.f : above;
      if (!POSITIVE) found += below > 0.f ? 0.f : below;
      p.volume[i] = found;
      p.ahead[i] = found + p.momentum * (found - p.before[i]);
    }
  }
}
