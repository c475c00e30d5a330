// Counts as lists of electrons: of each pattern the pixels that were hit, sorted by tiles of 16 by 16 pixels, rows of
// tiles one after the other; an event is a byte, the place y*16 + x in its tile. See hpcrec/models/events.py.
#pragma once

constexpr int TILE = 16;

// Takes the place of a type of dense counts; of what type the tiles' edges are
template <class Edge> struct Events {};

// The tiles of a whole pattern, whose counts lie in lines `stride` apart, along y or along x
template <class L> struct PatternTiles {
  static constexpr int ACROSS = L::N / TILE, TILES = ACROSS * ACROSS, SHARE = L::THREADS / TILES;
  static_assert(L::N % TILE == 0 && SHARE > 0, "each tile has threads of its own");

  // A few neighbouring threads add the events of a tile; edges: of the pattern's tiles, places: of its first event on
  template <class Edge>
  static INLINE void add(unsigned *counts, int stride, bool along_y, const Edge *edges, const unsigned char *places,
                         int thread) {
    const int tile = thread / SHARE, top = tile / ACROSS * TILE, left = tile % ACROSS * TILE;
    if (tile >= TILES) return;
    KEEP_ROLLED for (unsigned i = edges[tile] + thread % SHARE; i < edges[tile + 1]; i += SHARE) {
      const int y = top + places[i] / TILE, x = left + places[i] % TILE;
      count_one(counts + (along_y ? x * stride + y : y * stride + x));
    }
  }
};

// The tiles of a stripe, TILE lines of N points, and counts (line, point) of it in shared memory
template <class L> struct StripeCounts {
  static constexpr bool ALONG_Y = L::ALONG_Y;
  static constexpr int N = L::N, TILES = N / TILE, SHARE = L::THREADS / TILES;
  // Lines along x: from one line to the next; the lines that a warp reads at a time then lie in banks of their own
  static constexpr int STRIDE = N + L::T;
  static constexpr int SIZE = ALONG_Y ? N * TILE : TILE * STRIDE;
  static_assert(L::W == TILE && N % TILE == 0 && SHARE > 0, "a stripe is a row or a column of tiles");

  static INLINE int place(int line, int point) { return ALONG_Y ? point * TILE + line : line * STRIDE + point; }

  // A few neighbouring threads add the events of a tile; edges: of the pattern's tiles, places: of its first event on
  template <class Edge>
  static INLINE void add(unsigned *counts, const Edge *edges, const unsigned char *places, int stripe, int thread) {
    const int which = thread / SHARE, tile = ALONG_Y ? which * TILES + stripe : stripe * TILES + which;
    if (which >= TILES) return;
    KEEP_ROLLED for (unsigned i = edges[tile] + thread % SHARE; i < edges[tile + 1]; i += SHARE) {
      const int y = places[i] / TILE, x = places[i] % TILE;
      count_one(counts + (ALONG_Y ? place(x, which * TILE + y) : place(y, which * TILE + x)));
    }
  }
};
