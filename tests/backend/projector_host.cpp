#include "emulated.h"
#include "projector.cuh"
#include "turns.cuh"

// Runs every block, in random order, as the kernels in projector_entry.cuh do
template <class Work> void run_blocks(int n_x, int n_y, int n_threads, int n_shared, Work &&work) {
  for (int block : shuffled(0, n_x * n_y)) {
    std::vector<ProjectorThread> threads(n_threads);
    std::vector<float> shared(n_shared);
    poison(shared);
    for (int i = 0; i < n_threads; ++i) threads[i].index = i;
    run_block(n_threads, [&] { work(threads.data(), shared.data(), block % n_x, block / n_x); });
  }
}

template <int DEGREE, bool MOMENT> void project_by_rows(const ProjectorArguments &p, int n_x, int n_y) {
  run_blocks(n_x, n_y, ROW_THREADS, 0, [&](ProjectorThread *threads, float *, int x, int y) {
    project_rows<DEGREE, MOMENT>(threads, p, x, y);
  });
}

template <int DEGREE, bool MOMENT, bool BINS> void project_at_any_pose(const ProjectorArguments &p, int n_x, int n_y) {
  run_blocks(n_x, n_y, 32 * TILE_WARPS, TILE_WARPS * TILE_ROOM, [&](ProjectorThread *threads, float *shared, int x, int y) {
    project_any<DEGREE, MOMENT, BINS>(threads, shared, p, x, y);
  });
}

template <int DEGREE> void back_project_by_rows(const ProjectorArguments &p, int n_x, int n_y) {
  run_blocks(n_x, n_y, ROW_THREADS, 0, [&](ProjectorThread *threads, float *, int x, int y) {
    back_project_rows<DEGREE>(threads, p, x, y);
  });
}

template <int DEGREE, bool BINS> void back_project_at_any_pose(const ProjectorArguments &p, int n_x, int n_y) {
  run_blocks(n_x, n_y, ROW_THREADS, 0, [&](ProjectorThread *threads, float *, int x, int y) {
    back_project_any<DEGREE, BINS>(threads, p, x, y);
  });
}

template <int DEGREE> void run_degree(const ProjectorArguments &p, int back, int rows, int moment, int bins, int x, int y) {
  if (back && rows) back_project_by_rows<DEGREE>(p, x, y);
  else if (back) bins ? back_project_at_any_pose<DEGREE, true>(p, x, y) : back_project_at_any_pose<DEGREE, false>(p, x, y);
  else if (rows) moment ? project_by_rows<DEGREE, true>(p, x, y) : project_by_rows<DEGREE, false>(p, x, y);
  else if (moment) bins ? project_at_any_pose<DEGREE, true, true>(p, x, y) : project_at_any_pose<DEGREE, true, false>(p, x, y);
  else bins ? project_at_any_pose<DEGREE, false, true>(p, x, y) : project_at_any_pose<DEGREE, false, false>(p, x, y);
}

extern "C" void run_projector(const ProjectorArguments *p, int degree, int back, int rows, int moment, int bins, int x, int y) {
  degree == 1 ? run_degree<1>(*p, back, rows, moment, bins, x, y) : run_degree<2>(*p, back, rows, moment, bins, x, y);
}

extern "C" void run_turn(const TurnArguments *p, int lines, int n_x, int n_y) {
  run_blocks(n_x, n_y, TURN_THREADS, TILE * TILE_STRIDE, [&](ProjectorThread *threads, float *shared, int x, int y) {
    lines ? to_lines(threads, shared, *p, x, y) : from_lines(threads, shared, *p, x, y);
  });
}

extern "C" void run_step(const StepArguments *p, int positive, int n_x) {
  run_blocks(n_x, 1, ROW_THREADS, 0, [&](ProjectorThread *threads, float *, int x, int) {
    positive ? proximal_step<true>(threads, *p, x) : proximal_step<false>(threads, *p, x);
  });
}

extern "C" int size_of(int which) {
  const int sizes[] = {sizeof(ProjectorArguments), sizeof(TurnArguments), sizeof(StepArguments), sizeof(Map), sizeof(Way), sizeof(Taps)};
  return sizes[which];
}
