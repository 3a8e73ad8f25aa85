// SPDX-License-Identifier: MIT
// Zeros around images that were written into larger ones.
//
// Idea      What is concatenated has been written where it will be read. Of padding, only the zeros
//           are left to do: threads count the pixels of an H x W image that are outside its P x Q
//           part, so that a border of one column costs one column.
// Adds      To rung 1: it moves nothing that is already there.
// Threads   Block (part, chunk), as pixels.cuh says; a thread writes one vector.
// Shared    None.
// Moves     Writes the border.
// Source    None.
#include "overlap.cuh"
#include "ptx.cuh"
#include "vectors.cuh"
#include "pixels.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
concat_fprop_2_border(Element* __restrict__ y, int N, int H, int W, int C, int P, int Q, int top,
                      int left, int pitch)
{
    wait_for_others();
    let_others_begin();
    const Place place = my_place(C);
    const int number = place.part * ROWS + place.row, border = H * W - P * Q;
    if (place.c >= C || number >= N * border) return;
    const int n = number / border, i = number % border;
    // First the rows above and below, then what is left and right of the part.
    const int rows = (H - P) * W, sides = max(W - Q, 1);
    int h, w;
    if (i < rows) {
        h = i / W < top ? i / W : i / W + P;
        w = i % W;
    } else {
        h = top + (i - rows) / sides;
        w = (i - rows) % sides;
        if (w >= left) w += Q;
    }
    const float zeros[VECTOR] = {};
    store(y + offset((n * H + h) * W + w, pitch, place.c), pack(zeros));
}
