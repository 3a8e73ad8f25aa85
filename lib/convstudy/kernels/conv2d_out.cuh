// SPDX-License-Identifier: MIT
// Where the result of a product lies, (rows x columns), and what becomes of it on its way there.
//
// VIEW      0: row after row. 1: rows are `pitch` numbers apart, since y is some channels of a
//           wider array. 2: a transposed convolution of 2 x 2 at stride 2 writes what is row (n, h,
//           w), column (r, s, k) to pixel (n, 2 h + r, 2 w + s), channel k, of images whose lines
//           are `line` and that are themselves `image` numbers apart; nothing lies twice.
// RELU      What is negative becomes 0, after the bias.
#ifndef VIEW
#define VIEW 0
#endif
#ifndef RELU
#define RELU 0
#endif

// Parameters and arguments of a kernel that knows views, behind all others.
#if VIEW == 2
#define VIEW_SIZES , int pitch, int line, int image
#define VIEW_OF(COLUMNS, HEIGHT, WIDTH) View{COLUMNS, pitch, line, image, HEIGHT, WIDTH}
#elif VIEW
#define VIEW_SIZES , int pitch
#define VIEW_OF(COLUMNS, HEIGHT, WIDTH) View{COLUMNS, pitch}
#else
#define VIEW_SIZES
#define VIEW_OF(COLUMNS, HEIGHT, WIDTH) View{COLUMNS}
#endif

#ifdef SUMMAND
// Another array of out's shape and type is added after the bias, before what is negative becomes 0.
#undef VIEW_OF
#define VIEW_OF(COLUMNS, HEIGHT, WIDTH) View{COLUMNS, residual}
static_assert(VIEW == 0, "what is added lies as out does");
#endif

struct View {
    int columns;
#ifdef SUMMAND
    const void* residual;
#endif
#if VIEW
    int pitch;
#endif
#if VIEW == 2
    int line, image, height, width;
#endif

    // Which bias a column has: that of its filter. Most columns are known without a division.
    __device__ __forceinline__ int filter(int column) const
    {
        return VIEW == 2 && column >= columns / 4 ? column % (columns / 4) : column;
    }
    // Where a row begins, and how far from there a column lies. Both take divisions: what writes
    // many numbers asks once for a row, and once for a column.
    __device__ __forceinline__ size_t row(long long row) const
    {
#if VIEW == 2
        const unsigned r = row, w = r % width, above = r / width;
        return (size_t)(above / height) * image + (size_t)(above % height) * 2 * line +
               w * 2 * pitch;
#elif VIEW
        return (size_t)row * pitch;
#else
        return (size_t)row * columns;
#endif
    }
    __device__ __forceinline__ size_t column(int column) const
    {
#if VIEW == 2
        const int filters = columns / 4, tap = column / filters;
        return (size_t)(tap / 2) * line + tap % 2 * pitch + column - tap * filters;
#else
        return column;
#endif
    }
    // Vectors of columns stay together: a quarter of the columns is whole ones.
    __device__ __forceinline__ size_t at(long long row, int column) const
    {
        return this->row(row) + this->column(column);
    }
};

// A NaN stays one.
__device__ __forceinline__ float activated(float x) { return RELU && x < 0.0f ? 0.0f : x; }
