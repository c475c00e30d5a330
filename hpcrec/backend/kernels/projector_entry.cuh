// The kernels of the tomography that a GPU starts; what their blocks are, projector.cuh and turns.cuh say.
#pragma once

template <int DEGREE, bool MOMENT>
__global__ void __launch_bounds__(ROW_THREADS) tomography_project_rows(const __grid_constant__ ProjectorArguments p) {
  ProjectorThread thread = {(int)threadIdx.x};
  project_rows<DEGREE, MOMENT>(&thread, p, blockIdx.x, blockIdx.y);
}

template <int DEGREE>
__global__ void __launch_bounds__(ROW_THREADS) tomography_back_project_rows(const __grid_constant__ ProjectorArguments p) {
  ProjectorThread thread = {(int)threadIdx.x};
  back_project_rows<DEGREE>(&thread, p, blockIdx.x, blockIdx.y);
}

// Blocks of a multiprocessor for which nothing need be spilled; a compiler that chooses spills a little for one more
template <int DEGREE, bool MOMENT, bool BINS>
__global__ void __launch_bounds__(32 * TILE_WARPS, MOMENT || BINS ? 5 : 8) tomography_project_any(const __grid_constant__ ProjectorArguments p) {
  extern __shared__ float4 shared[];
  ProjectorThread thread = {(int)threadIdx.x};
  project_any<DEGREE, MOMENT, BINS>(&thread, (float *)shared, p, blockIdx.x, blockIdx.y);
}

template <int DEGREE, bool BINS>
__global__ void __launch_bounds__(ROW_THREADS) tomography_back_project_any(const __grid_constant__ ProjectorArguments p) {
  ProjectorThread thread = {(int)threadIdx.x};
  back_project_any<DEGREE, BINS>(&thread, p, blockIdx.x, blockIdx.y);
}

template <bool TO_LINES>
__global__ void __launch_bounds__(TURN_THREADS) tomography_turn(const __grid_constant__ TurnArguments p) {
  extern __shared__ float4 shared[];
  ProjectorThread thread = {(int)threadIdx.x};
  if (TO_LINES) to_lines(&thread, (float *)shared, p, blockIdx.x, blockIdx.y);
  else from_lines(&thread, (float *)shared, p, blockIdx.x, blockIdx.y);
}

template <bool POSITIVE>
__global__ void __launch_bounds__(ROW_THREADS) tomography_step(const __grid_constant__ StepArguments p) {
  ProjectorThread thread = {(int)threadIdx.x};
  proximal_step<POSITIVE>(&thread, p, blockIdx.x);
}
