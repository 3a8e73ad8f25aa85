// SPDX-License-Identifier: MIT
// The transpose of a matrix: columns become lines.
//
// Idea      A tile of 32 x 32 is read line by line and written line by line; what lies in between,
//           across lines, is a matter of shared memory.
// Threads   Thread (x, y) of a block of 32 x 8 moves four numbers of the block's tile.
// Shared    32 lines of 33 numbers (the one more keeps a column in different banks),
//           static: 4,224 with the defaults.
// Moves     Reads the matrix once and writes it once.
// Source    NVIDIA, "An Efficient Matrix Transpose in CUDA C/C++".
#include "overlap.cuh"
#include "ptx.cuh"

#ifndef BF16
#define BF16 0
#endif
#if BF16
using Element = bf16;
#else
using Element = float;
#endif

extern "C" __global__ void __launch_bounds__(256)
matrix_transpose_1_tile(const Element* __restrict__ from, Element* __restrict__ to, int lines,
                        int columns)
{
    __shared__ Element tile[32][33];
    wait_for_others();
    let_others_begin();
    const int x = threadIdx.x % 32, y = threadIdx.x / 32, across = (columns + 31) / 32;
    const int column = blockIdx.x % across * 32, line = blockIdx.x / across * 32;
    for (int i = y; i < 32; i += 8)
        if (line + i < lines && column + x < columns)
            tile[i][x] = from[(size_t)(line + i) * columns + column + x];
    __syncthreads();  // the tile is whole: it is read across the lines that were written
    for (int i = y; i < 32; i += 8)
        if (column + i < columns && line + x < lines)
            to[(size_t)(column + i) * lines + line + x] = tile[x][i];
}
