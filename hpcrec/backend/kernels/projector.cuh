// Projections of a volume and their adjoint. Every sum has one thread and one order: no atomics, no run differs.
//
// A voxel (x, y, z) lands at u = a x + b y + c z + d and v likewise, in pixels, and spreads there with B-splines of
// degree 1 or 2. Places are whole numbers of 2^-32 pixels, so both directions find the same weights and distant pixels
// are as exact as near ones, without double precision. Volumes lie as (z, x, y) and pixels as (u, v): threads side by
// side take y or v side by side. Both have room: lines are padded, images have a border of BORDER pixels of zeros.
#pragma once

constexpr int BORDER = 2;
constexpr int ROW_THREADS = 256, QUADS = 2;  // of a thread, lanes apart
constexpr int TILE = 32, TILE_WARPS = 4, TILE_STRIDE = TILE + 1, TILE_ROOM = (TILE + 4) * TILE_STRIDE;

using Fixed = long long;
constexpr Fixed WHOLE = 1LL << 32, HALF = WHOLE / 2;
constexpr float FRACTION = 1.f / 4294967296.f;

// Rows of the affine map of voxel (x, y, z, 1), in 2^-32 pixels, bins and Å
struct Map { Fixed u[4], v[4], bin[4], depth[4]; };
// How the forward way walks: the axes (0 x, 1 y, 2 z) of columns, lines of columns and planes, and how far along them
// a pixel's voxels lie by what u and v (and the bin) differ, within a plane or, for planes, in the volume
struct Way { int axes[3]; float column[2], line[2], plane[3]; };

struct ProjectorArguments {
  const float *source;
  float *target;
  const int2 *ranges;
  const Map *maps;
  const Way *ways;
  int n_x, n_y, n_z, width;
  int n_maps, n_bins, n_u, n_v, side, lanes;
  float scale;
};

struct ProjectorThread { int index; };

INLINE float as_float(Fixed a) { return (float)a * FRACTION; }
// For less than 128
INLINE float near_float(Fixed a) { return (float)(int)(a >> 8) * (1.f / 16777216.f); }

template <int DEGREE> constexpr float REACH = DEGREE == 1 ? 1.f : 1.5f;

template <int DEGREE> INLINE float spline(float distance) {
  const float far = fabsf(distance);
  if (DEGREE == 1) return fmaxf(1.f - far, 0.f);
  const float outer = fmaxf(1.5f - far, 0.f), inner = fmaxf(.5f - far, 0.f);
  return .5f * outer * outer - 1.5f * inner * inner;
}

// The nearest pixel, how far beyond it a place is, within ±½, and the weights of the pixels before, at and behind it
template <int DEGREE> struct Footprint {
  int nearest;
  float low, middle, high;
  INLINE explicit Footprint(Fixed place) {
    const Fixed moved = place + HALF;
    nearest = (int)(moved >> 32);
    weigh((float)(unsigned)moved * FRACTION - .5f);
  }
  INLINE explicit Footprint(float beyond) : nearest(0) { weigh(beyond); }
  INLINE void weigh(float beyond) {
    if (DEGREE == 1) {
      low = fmaxf(-beyond, 0.f), middle = 1.f - fabsf(beyond), high = fmaxf(beyond, 0.f);
    } else {
      const float below = .5f - beyond, above = .5f + beyond;
      low = .5f * below * below, middle = .75f - beyond * beyond, high = .5f * above * above;
    }
  }
};

INLINE void add_scaled(float4 &sum, float by, const float4 &a) {
  sum.x += by * a.x, sum.y += by * a.y, sum.z += by * a.z, sum.w += by * a.w;
}

INLINE Fixed magnitude(Fixed a) { return a < 0 ? -a : a; }
// The largest whole number not above a / b, for b > 0
INLINE Fixed floor_quotient(Fixed a, Fixed b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

// ---- Poses about y alone: u depends on x and z, v is y; weights serve whole lines of y

// What a thread sums of a line: quads lanes apart, of which those beyond the line repeat the first and are not kept
struct Quads {
  float4 sums[QUADS];
  int apart[QUADS];
  INLINE Quads(const ProjectorArguments &p, int quad) {
    UNROLL for (int i = 0; i < QUADS; ++i) {
      sums[i] = float4{0.f, 0.f, 0.f, 0.f};
      apart[i] = 4 * (quad + i * p.lanes) < p.width ? i * p.lanes : 0;
    }
  }
  INLINE void add(float by, const float4 *line) {
    UNROLL for (int i = 0; i < QUADS; ++i) add_scaled(sums[i], by, cached(line + apart[i]));
  }
  INLINE void store(float4 *line) const {
    UNROLL for (int i = 0; i < QUADS; ++i)
      if (i == 0 || apart[i] > 0) line[apart[i]] = sums[i];
  }
};

// The line of pixel u: the voxels of each line across the strip of the volume that reaches the pixel
template <int DEGREE, bool MOMENT>
INLINE void sum_pixel(const ProjectorArguments &p, const Map &map, int u, int quad, Quads &sum) {
  const bool along_x = magnitude(map.u[0]) >= magnitude(map.u[2]);
  const Fixed of_x = map.u[0], of_z = map.u[2], reach = (Fixed)(REACH<DEGREE> * 2) * HALF;
  Fixed step = along_x ? of_x : of_z, turn = along_x ? of_z : of_x, base = map.u[3] - (Fixed)u * WHOLE;
  const Fixed deeper = along_x ? map.depth[0] : map.depth[2], turned = along_x ? map.depth[2] : map.depth[0];
  // Splines are even: mirrored, each line is walked towards larger places
  if (step < 0) step = -step, turn = -turn, base = -base;
  const int n_inner = along_x ? p.n_x : p.n_z, n_outer = along_x ? p.n_z : p.n_x, quads = p.width / 4;
  const Fixed stride = along_x ? quads : (Fixed)p.n_x * quads, apart = along_x ? (Fixed)p.n_x * quads : quads;
  const float4 *line = (const float4 *)p.source + quad;
  int first = (int)floor_quotient(-reach - base, step) + 1;
  const float onward = as_float(step);
  for (int outer = 0; outer < n_outer; ++outer, base += turn, line += apart) {
    while (base + step * (first - 1) > -reach) --first;
    while (base + step * first <= -reach) ++first;
    float distance = near_float(base + step * first), depth = 0.f;
    if (MOMENT) depth = as_float(map.depth[3] + turned * outer + deeper * first);
    const float4 *from = line + stride * first;
    for (int inner = first; distance < REACH<DEGREE>; ++inner, distance += onward, from += stride) {
      if (inner < 0 || inner >= n_inner) continue;
      float weight = spline<DEGREE>(distance);
      if (MOMENT) weight *= depth + as_float(deeper) * (float)(inner - first);
      sum.add(weight, from);
    }
  }
}

// Blocks (projection first, then pixels; quads): writes lines (projection, u, width)
template <int DEGREE, bool MOMENT>
INLINE void project_rows(ProjectorThread *threads, const ProjectorArguments &p, int block, int stripe) {
  FOR_EACH_THREAD(t) {
    const int k = block % p.n_maps, u = block / p.n_maps * (ROW_THREADS / p.lanes) + t.index / p.lanes;
    const int quad = stripe * p.lanes * QUADS + t.index % p.lanes;
    if (u < p.n_u && 4 * quad < p.width) {
      Quads sum(p, quad);
      sum_pixel<DEGREE, MOMENT>(p, p.maps[k], u, quad, sum);
      sum.store((float4 *)p.target + ((Fixed)k * p.n_u + u) * (p.width / 4) + quad);
    }
  }
}

// Voxels of a line from the lines (projection, u with border, width)
template <int DEGREE> INLINE void sum_voxels(const ProjectorArguments &p, int x, int z, int quad, Quads &sum) {
  const int quads = p.width / 4;
  const float4 *image = (const float4 *)p.source + quad;
  for (int k = 0; k < p.n_maps; ++k, image += (Fixed)(p.n_u + 2 * BORDER) * quads) {
    const Map &map = p.maps[k];
    const Footprint<DEGREE> u(map.u[3] + map.u[0] * x + map.u[2] * z);
    if (u.nearest < -1 || u.nearest > p.n_u) continue;
    const float4 *line = image + (Fixed)(u.nearest - 1 + BORDER) * quads;
    sum.add(u.low, line);
    sum.add(u.middle, line + quads);
    sum.add(u.high, line + 2 * quads);
  }
}

// Blocks (columns of voxels; quads): writes lines (z, x, width)
template <int DEGREE>
INLINE void back_project_rows(ProjectorThread *threads, const ProjectorArguments &p, int block, int stripe) {
  FOR_EACH_THREAD(t) {
    const Fixed column = (Fixed)block * (ROW_THREADS / p.lanes) + t.index / p.lanes;
    const int quad = stripe * p.lanes * QUADS + t.index % p.lanes;
    if (column < (Fixed)p.n_x * p.n_z && 4 * quad < p.width) {
      Quads sum(p, quad);
      const int2 range = p.ranges ? p.ranges[column] : int2{0, p.n_y};
      if (4 * quad < range.y && 4 * (quad + (QUADS - 1) * p.lanes + 1) > range.x)
        sum_voxels<DEGREE>(p, (int)(column % p.n_x), (int)(column / p.n_x), quad, sum);
      sum.store((float4 *)p.target + column * (p.width / 4) + quad);
    }
  }
}

// ---- Any pose

// A warp's tile of one image: each lane sums the pixels of its own v, as many u as the tile is wide
struct Tile {
  const ProjectorArguments &p;
  const Map &map;
  const Way &way;
  int k, bin, u, v, v_of_lane;
  float *sums;  // of pixel u − 2 of the lane, TILE_STRIDE from u to u

  INLINE Tile(const ProjectorArguments &p, float *shared, int block, int stripe, int thread)
      : p(p), map(p.maps[block % p.n_maps]), way(p.ways[block % p.n_maps]), k(block % p.n_maps) {
    const int stripes = (p.n_v + TILE * TILE_WARPS - 1) / (TILE * TILE_WARPS), warp = thread / 32;
    bin = stripe / stripes;
    u = block / p.n_maps * TILE;
    v = (stripe % stripes * TILE_WARPS + warp) * TILE;
    v_of_lane = v + thread % 32;
    sums = shared + warp * TILE_ROOM + thread % 32;
  }
  INLINE Fixed pick(int axis, Fixed x, Fixed y, Fixed z) const { return axis == 0 ? x : axis == 1 ? y : z; }
  INLINE int length(int axis) const { return (int)pick(axis, p.n_x, p.n_y, p.n_z); }
  INLINE Fixed stride(int axis) const { return pick(axis, p.width, 1, (Fixed)p.n_x * p.width); }

  INLINE void add(int row, float low, float middle, float high) const {
    if (row < -1 || row > TILE) return;
    float *sum = sums + (row + 1) * TILE_STRIDE;
    sum[0] += low, sum[TILE_STRIDE] += middle, sum[2 * TILE_STRIDE] += high;
  }
};

// A place in the map, of voxels: u and v from the tile's first pixel and the lane's, bin from the tile's, depth
struct Place {
  Fixed u, v, bin, depth;
  INLINE void move(const Place &step, Fixed steps) {
    u += step.u * steps, v += step.v * steps, bin += step.bin * steps, depth += step.depth * steps;
  }
};
INLINE Place step_of(const Map &map, int axis) { return {map.u[axis], map.v[axis], map.bin[axis], map.depth[axis]}; }

// A column of voxels: its values, and the voxel ``first`` where the lane's pixel begins, which lands at ``place``
struct Column {
  const float *values;
  int n, first;
  Fixed stride;
  Place place, step;
  INLINE void begin(Fixed reach) {
    while (place.v - step.v > -reach) place.move(step, -1), --first;
    while (place.v <= -reach) place.move(step, 1), ++first;
  }
};

// What a bin takes of a voxel at ``place`` bins behind it; the first and the last take all beyond
INLINE float bin_weight(float place, bool is_first, bool is_last) {
  if ((is_first && place < 0.f) || (is_last && place > 0.f)) return 1.f;
  return fmaxf(1.f - fabsf(place), 0.f);
}

// Adds what the voxels of a column give the lane's pixels; those of one nearest row are summed before
template <int DEGREE, bool MOMENT, bool BINS> INLINE void add_column(const Tile &tile, const Column &column) {
  const Fixed moved = column.place.u + HALF;
  int row = (int)(moved >> 32);
  float beyond = (float)(unsigned)moved * FRACTION - .5f, distance = near_float(column.place.v);
  const float along_u = as_float(column.step.u), along_v = as_float(column.step.v);
  const float *from = column.values + column.stride * column.first;
  float low = 0.f, middle = 0.f, high = 0.f;
  for (int i = column.first; distance < REACH<DEGREE>;
       ++i, beyond += along_u, distance += along_v, from += column.stride) {
    if (fabsf(beyond) > .5f) {
      tile.add(row, low, middle, high);
      const float whole = rintf(beyond);
      row += (int)whole, beyond -= whole, low = middle = high = 0.f;
    }
    if (i < 0 || i >= column.n) continue;
    float value = cached(from) * spline<DEGREE>(distance);
    if (BINS) {
      const float place = as_float(column.place.bin + column.step.bin * (i - column.first));
      value *= bin_weight(place, tile.bin == 0, tile.bin == tile.p.n_bins - 1);
    }
    if (MOMENT) value *= as_float(column.place.depth + column.step.depth * (i - column.first));
    const Footprint<DEGREE> u(beyond);
    low += u.low * value, middle += u.middle * value, high += u.high * value;
  }
  tile.add(row, low, middle, high);
}

// First and last of n voxels along an axis within ``spread`` of ``middle``, rounding errors included
struct Run {
  int first, last;
  INLINE Run(float middle, float spread, int n) {
    const float room = spread + 1e-5f * fabsf(middle) + 1e-3f;
    first = (int)fmaxf(ceilf(middle - room), 0.f);
    last = (int)fminf(floorf(middle + room), (float)(n - 1));
  }
};

// Planes that can reach the tile: all, or those in the bin's reach
template <int DEGREE, bool BINS> INLINE Run planes_of(const Tile &tile) {
  const int n = tile.length(tile.way.axes[2]);
  if (!BINS) return Run(0.f, (float)n, n);
  const float *by = tile.way.plane, half = .5f * (TILE - 1) + REACH<DEGREE>;
  const float middle = by[0] * (tile.u + .5f * (TILE - 1) - as_float(tile.map.u[3])) +
                       by[1] * (tile.v + .5f * (TILE - 1) - as_float(tile.map.v[3])) +
                       by[2] * (tile.bin - as_float(tile.map.bin[3]));
  Run found(middle, half * (fabsf(by[0]) + fabsf(by[1])) + fabsf(by[2]), n);
  const bool is_first = tile.bin == 0, is_last = tile.bin == tile.p.n_bins - 1;
  if (by[2] > 0.f ? is_first : is_last) found.first = 0;
  if (by[2] > 0.f ? is_last : is_first) found.last = n - 1;
  return found;
}

template <int DEGREE, bool MOMENT, bool BINS> INLINE void add_plane(const Tile &tile, int plane) {
  const Way &way = tile.way;
  const Map &map = tile.map;
  const int along = way.axes[0], n_along = tile.length(along);
  const float half = .5f * (TILE - 1) + REACH<DEGREE>;
  Place place = {map.u[3] - (Fixed)tile.u * WHOLE, map.v[3] - (Fixed)tile.v * WHOLE,
                 map.bin[3] - (Fixed)tile.bin * WHOLE, map.depth[3]};
  place.move(step_of(map, way.axes[2]), plane);
  const float to_u = .5f * (TILE - 1) - as_float(place.u), to_v = .5f * (TILE - 1) - as_float(place.v);
  const Run rows(way.column[0] * to_u + way.column[1] * to_v, half * (fabsf(way.column[0]) + fabsf(way.column[1])),
                 n_along);
  if (rows.first > rows.last) return;
  const Run lines(way.line[0] * to_u + way.line[1] * to_v, half * (fabsf(way.line[0]) + fabsf(way.line[1])),
                  tile.length(way.axes[1]));
  Place across = step_of(map, way.axes[1]);
  place.v -= (Fixed)(tile.v_of_lane - tile.v) * WHOLE;
  place.move(across, lines.first);
  Column column = {tile.p.source + tile.stride(way.axes[2]) * plane + tile.stride(way.axes[1]) * lines.first,
                   n_along, 0, tile.stride(along), place, step_of(map, along)};
  // Splines are even: mirrored, each column is walked towards larger v
  if (column.step.v < 0) column.step.v = -column.step.v, column.place.v = -column.place.v, across.v = -across.v;
  const Fixed reach = (Fixed)(REACH<DEGREE> * 2) * HALF;
  column.first = (int)floor_quotient(-reach - column.place.v, column.step.v) + 1;
  column.place.move(column.step, column.first);
  for (int line = lines.first; line <= lines.last; ++line) {
    column.begin(reach);
    add_column<DEGREE, MOMENT, BINS>(tile, column);
    column.place.move(across, 1);
    column.values += tile.stride(way.axes[1]);
  }
}

// Blocks (projection first, then tiles along u; bin, then tiles along v): writes images (projection, bin, v, u)
template <int DEGREE, bool MOMENT, bool BINS>
INLINE void project_any(ProjectorThread *threads, float *shared, const ProjectorArguments &p, int block, int stripe) {
  FOR_EACH_THREAD(t) {
    const Tile tile(p, shared, block, stripe, t.index);
    for (int row = 0; row < TILE + 4; ++row) tile.sums[row * TILE_STRIDE] = 0.f;
    const Run planes = planes_of<DEGREE, BINS>(tile);
    for (int plane = planes.first; plane <= planes.last; ++plane) add_plane<DEGREE, MOMENT, BINS>(tile, plane);
  }
  warp_barrier();
  FOR_EACH_THREAD(t) {
    const Tile tile(p, shared, block, stripe, t.index);
    const int lane = t.index % 32, u = tile.u + lane;
    const float *sums = tile.sums - lane + (lane + 2) * TILE_STRIDE;
    for (int row = 0; row < TILE && tile.v + row < p.n_v; ++row)
      if (u < p.n_u)
        p.target[(((Fixed)tile.k * p.n_bins + tile.bin) * p.n_v + tile.v + row) * p.n_u + u] = p.scale * sums[row];
  }
}

// A voxel from the images (projection, bin, u, v), both with border
template <int DEGREE, bool BINS> INLINE float sum_of_voxel(const ProjectorArguments &p, int x, int y, int z) {
  const Fixed plane = (Fixed)(p.n_u + 2 * BORDER) * p.side;
  float sum = 0.f;
  for (int k = 0; k < p.n_maps; ++k) {
    const Map &map = p.maps[k];
    const Footprint<DEGREE> u(map.u[3] + map.u[0] * x + map.u[1] * y + map.u[2] * z);
    const Footprint<DEGREE> v(map.v[3] + map.v[0] * x + map.v[1] * y + map.v[2] * z);
    if (u.nearest < -1 || u.nearest > p.n_u || v.nearest < -1 || v.nearest > p.n_v) continue;
    Fixed first = (Fixed)k * p.n_bins * plane + (Fixed)(u.nearest - 1 + BORDER) * p.side + v.nearest - 1 + BORDER;
    float second_weight = 0.f;
    if (BINS) {
      const Fixed place = map.bin[3] + map.bin[0] * x + map.bin[1] * y + map.bin[2] * z;
      int bin = (int)(place >> 32);
      bin = bin < 0 ? 0 : bin > p.n_bins - 2 ? p.n_bins - 2 : bin;
      second_weight = fminf(fmaxf(as_float(place - (Fixed)bin * WHOLE), 0.f), 1.f);
      first += bin * plane;
    }
    for (int second = 0; second < (BINS ? 2 : 1); ++second) {
      const float *at_low = p.source + first + second * plane, *at_u = at_low + p.side, *at_high = at_u + p.side;
      const float low = v.low * cached(at_low) + v.middle * cached(at_low + 1) + v.high * cached(at_low + 2);
      const float middle = v.low * cached(at_u) + v.middle * cached(at_u + 1) + v.high * cached(at_u + 2);
      const float high = v.low * cached(at_high) + v.middle * cached(at_high + 1) + v.high * cached(at_high + 2);
      const float all = u.low * low + u.middle * middle + u.high * high;
      sum += BINS ? (second ? second_weight : 1.f - second_weight) * all : all;
    }
  }
  return sum;
}

// Blocks (columns of voxels; 32 voxels along y): writes lines (z, x, width)
template <int DEGREE, bool BINS>
INLINE void back_project_any(ProjectorThread *threads, const ProjectorArguments &p, int block, int stripe) {
  FOR_EACH_THREAD(t) {
    const Fixed column = (Fixed)block * (ROW_THREADS / 32) + t.index / 32;
    const int y = stripe * 32 + t.index % 32;
    if (column < (Fixed)p.n_x * p.n_z && y < p.width) {
      const int2 range = p.ranges ? p.ranges[column] : int2{0, p.n_y};
      const bool inside = y >= range.x && y < range.y;
      p.target[column * p.width + y] =
          inside ? sum_of_voxel<DEGREE, BINS>(p, (int)(column % p.n_x), y, (int)(column / p.n_x)) : 0.f;
    }
  }
}
