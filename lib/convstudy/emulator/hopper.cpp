// SPDX-License-Identifier: MIT
// Hopper's copies of whole tiles (TMA), and its products of a warpgroup (wgmma), each done at once.
// A kernel that does not wait for them is found where that makes it read what is not there yet, or
// overwrite what is still to be read.
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "checker.h"
#include "numbers.h"
#include "phases.h"

#define HERE uint64_t(__builtin_return_address(0))

namespace emu {

namespace {

constexpr int64_t LINE = 128, CHUNK = 16;

// Chunks of 16 bytes lie exchanged: bits 4 to 6 of an address by bits 7 to 9.
uint64_t exchanged(uint64_t address) { return address ^ (address >> 7 & 7) << 4; }

// ---- copies -------------------------------------------------------------------------------------
// As tensor_map.py fills it in. All but the strides count elements, the innermost dimension first.
struct Map {
    uint64_t address;
    uint32_t sizes[4];
    uint64_t strides[3];  // in bytes, of all but the innermost
    uint32_t box[3];      // or channels and pixels
    int32_t lower[2], upper[2];
    uint32_t steps[2];
    uint32_t rank, element_bytes, is_im2col, rounds_tf32;
};

uint32_t to_tf32(uint32_t bits) {
    const bool is_finite = (bits & 0x7f800000u) != 0x7f800000u;
    return (is_finite ? bits + 0x1000u : bits) & 0xffffe000u;
}

[[noreturn]] void misuse(uint64_t pc, const char* format, unsigned a, unsigned b) {
    Fault fault = fault_here(MISUSE, 0, 0, WAIT, pc);
    snprintf(fault.type, sizeof fault.type, format, a, b);
    abandon(fault);
}

// One copy: lines of 128 bytes, one after the other.
class Copy {
  public:
    Copy(void* shared, const Map& map, uint32_t lines, uint64_t pc)
        : map_(map), to_(static_cast<char*>(shared)), size_(uint32_t(LINE * lines)) {
        const auto address = uint64_t(shared);
        if (map.box[0] * map.element_bytes != LINE)
            misuse(pc, "copies lines of %u bytes; they must be %u", map.box[0] * map.element_bytes,
                   LINE);
        if (!within_shared(worker->module, address, size_))
            abandon(fault_here(OUT_OF_BOUNDS, address, size_, WRITE, pc));
        if (address % 1024) abandon(fault_here(MISALIGNED, address, 1024, WRITE, pc));
        if (worker->checker) worker->checker->copy_lines(address, size_);
    }

    // The next line: 128 bytes from element x on of the line (y, z, u) of the array.
    void line(int64_t x, int64_t y, int64_t z, int64_t u) {
        alignas(CHUNK) char data[LINE] = {};
        const int64_t places[3] = {y, z, u}, size = map_.element_bytes;
        uint64_t from = map_.address;
        bool inside = true;
        for (int i = 0; i < 3; i++) {
            inside &= 0 <= places[i] && places[i] < int64_t(map_.sizes[i + 1]);
            from += uint64_t(places[i]) * map_.strides[i];
        }
        const int64_t first = std::max<int64_t>(x, 0);
        const int64_t end = std::min<int64_t>(x + map_.box[0], map_.sizes[0]);
        if (inside && first < end) {
            const uint64_t bytes = uint64_t(end - first) * size, start = from + first * size;
            memcpy(data + (first - x) * size, reinterpret_cast<const char*>(start), bytes);
            const uint64_t offset = start - map_.address;
            bytes_ += bytes;
            sectors_ += (offset + bytes - 1) / 32 - offset / 32 + 1;
        }
        if (map_.rounds_tf32)
            for (char* word = data; word < data + LINE; word += 4) {
                uint32_t bits;
                memcpy(&bits, word, 4);
                bits = to_tf32(bits);
                memcpy(word, &bits, 4);
            }
        for (int64_t at = 0; at < LINE; at += CHUNK)
            memcpy(reinterpret_cast<char*>(exchanged(uint64_t(to_ + at))), data + at, CHUNK);
        to_ += LINE;
    }

    void arrive(const void* barrier, uint64_t pc) {
        if (worker->checker) worker->checker->count_copied(bytes_, sectors_);
        worker->phase_barriers->at(barrier, pc).complete(size_);
    }

  private:
    const Map& map_;
    char* to_;
    uint32_t size_;
    uint64_t bytes_ = 0, sectors_ = 0;
};

const Map& read_map(const void* map, bool is_im2col, unsigned rank, uint64_t pc) {
    const Map& found = *static_cast<const Map*>(map);
    if (found.rank != rank) misuse(pc, "copies by a map of rank %u at %u coordinates", found.rank, rank);
    if (bool(found.is_im2col) != is_im2col)
        misuse(pc, is_im2col ? "walks over pixels by a map of boxes"
                             : "copies a box by a map of pixels", 0, 0);
    return found;
}

// ---- products -----------------------------------------------------------------------------------
uint64_t shared_begin() { return worker->module.shared.begin & ~1023ull; }

// What a descriptor says; hopper_cpu.h packs it.
struct Descriptor {
    uint64_t start, next_lines, next_columns;
    bool across;

    Descriptor() = default;
    Descriptor(uint64_t packed, bool across_)
        : start(shared_begin() + (packed & 0xffff) * CHUNK),
          next_lines((packed >> 36) * CHUNK),
          next_columns((packed >> 16 & 0xfffff) * CHUNK),
          across(across_) {}

    // Chunk i of line m along depth, or of columns m / 8 * 8 and on of line `i` across it.
    uint64_t along(int m, int i) const {
        return exchanged(start + m / 8 * next_lines + m % 8 * LINE + i * CHUNK);
    }
    uint64_t acrossing(int k, int m) const {
        return exchanged(start + m / 64 * next_columns + k / 8 * next_lines + k % 8 * LINE +
                         m % 64 / 8 * CHUNK);
    }
    // One of the `2 size` chunks that hold `size` lines or columns.
    uint64_t chunk(int i) const {
        return across ? acrossing(i % 16, i / 16 * 8) : along(i / 2, i % 2);
    }
};

struct Products {
    float* d;
    const unsigned* words;  // of a, or null where it is in shared memory
    Descriptor a, b;
    int columns, first_row, add;
};

constexpr int ROWS = 16, MOST_COLUMNS = 256;  // of a warp's part
typedef double Doubles __attribute__((vector_size(64), aligned(8)));
constexpr int WIDTH = sizeof(Doubles) / sizeof(double);

// Lays out `size` lines or columns from `first` on, by depth: element (k, m) is at k * pitch + m.
template <class Word>
void decode(double* to, int pitch, const Descriptor& from, int first, int size) {
    constexpr int EACH = 4 * Word::NUMBERS;  // numbers of a chunk
    for (int i = 2 * first; i < 2 * (first + size); i++) {
        uint32_t words[4];
        memcpy(words, reinterpret_cast<const void*>(from.chunk(i)), CHUNK);
        for (int j = 0; j < EACH; j++) {
            const int k = from.across ? i % 16 : i % 2 * EACH + j;
            const int m = from.across ? i / 16 * 8 + j : i / 2;
            to[k * pitch + m - first] = Word::number(words[j / Word::NUMBERS], j % Word::NUMBERS);
        }
    }
}

// The rows of one warp.
template <class Word>
void multiply(void* const* lanes) {
    constexpr int DEPTH = 8 * Word::NUMBERS;
    const auto of = [&](int lane) -> const Products& {
        return *static_cast<const Products*>(lanes[lane]);
    };
    for (int lane = 0; lane < int(WARP); lane++)
        if (!lanes[lane]) return;  // undefined where a lane has exited: nothing is written
    const Products& p = of(0);
    alignas(64) double a[DEPTH * ROWS], b[DEPTH * MOST_COLUMNS], d[ROWS * MOST_COLUMNS];
    if (p.words) {
        for (int lane = 0; lane < int(WARP); lane++)
            for (int i = 0; i < 4; i++)
                a[(lane % 4 + i / 2 * 4) * ROWS + lane / 4 + i % 2 * 8] =
                    Word::number(of(lane).words[i], 0);
    } else {
        decode<Word>(a, ROWS, p.a, p.first_row, ROWS);
    }
    decode<Word>(b, p.columns, p.b, 0, p.columns);

    const auto at = [&](int lane, int i) -> double& {
        return d[(lane / 4 + i / 2 % 2 * 8) * p.columns + i / 4 * 8 + lane % 4 * 2 + i % 2];
    };
    for (int lane = 0; lane < int(WARP); lane++)
        for (int i = 0; i < p.columns / 2; i++) at(lane, i) = p.add ? of(lane).d[i] : 0.0f;
    constexpr int ONCE = 4;
    for (int column = 0; column < p.columns; column += ONCE * WIDTH)
        for (int row = 0; row < ROWS; row++) {
            auto* sums = reinterpret_cast<Doubles*>(d + row * p.columns + column);
            Doubles sum[ONCE];
            for (int i = 0; i < ONCE; i++) sum[i] = sums[i];
            for (int k = 0; k < DEPTH; k++) {
                const auto* factors = reinterpret_cast<const Doubles*>(b + k * p.columns + column);
                for (int i = 0; i < ONCE; i++) sum[i] += a[k * ROWS + row] * factors[i];
            }
            for (int i = 0; i < ONCE; i++) sums[i] = sum[i];
        }
    for (int lane = 0; lane < int(WARP); lane++)
        for (int i = 0; i < p.columns / 2; i++) of(lane).d[i] = towards_zero(at(lane, i));
}

// The warps of a group read what they multiply by together: each lane a part of the chunks.
void read_operand(const Descriptor& operand, int lines, uint64_t pc) {
    const int threads = 4 * WARP, thread = worker->current->number % threads;
    for (int i = 0; i < 2 * lines; i++) {
        const uint64_t chunk = operand.chunk(i);
        if (!within_shared(worker->module, chunk, CHUNK))
            abandon(fault_here(OUT_OF_BOUNDS, chunk, CHUNK, READ, pc));
        if (worker->checker && i % threads == thread)
            worker->checker->access(chunk, CHUNK, READ, pc);
    }
}

template <class Word>
void multiply_all(Products p, int line, uint64_t pc) {
    // Every warp needs all of them, whoever reads them first: one lane of each sees to bounds.
    if (!p.words) read_operand(p.a, 64, pc);
    read_operand(p.b, p.columns, pc);
    p.first_row = int(worker->current->number / WARP % 4) * ROWS;
    warp_together(&p, multiply<Word>, line);
}

}  // namespace

// ---- what a kernel calls ------------------------------------------------------------------------
void copy_box(void* shared, const void* map, const void* barrier, int rank, int x, int y, int z,
              int u) {
    const uint64_t pc = HERE;
    const Map& m = read_map(map, false, unsigned(rank), pc);
    Copy copy(shared, m, m.box[1] * m.box[2], pc);
    for (int i = 0; i < int(m.box[2]); i++)
        for (int j = 0; j < int(m.box[1]); j++) copy.line(x, y + j, z + i, u);
    copy.arrive(barrier, pc);
}

void copy_im2col(void* shared, const void* map, const void* barrier, int c, int w, int h, int n,
                 int s, int r) {
    const uint64_t pc = HERE;
    const Map& m = read_map(map, true, 4, pc);
    Copy copy(shared, m, m.box[1], pc);
    for (unsigned i = 0; i < m.box[1]; i++) {
        copy.line(c, w + s, h + r, n);
        w += int(m.steps[0]);
        if (w < int(m.sizes[1]) + m.upper[0]) continue;
        w = m.lower[0];
        h += int(m.steps[1]);
        if (h < int(m.sizes[2]) + m.upper[1]) continue;
        h = m.lower[1];
        n++;
    }
    copy.arrive(barrier, pc);
}

unsigned shared_offset(const void* shared) {
    const auto address = uint64_t(shared);
    if (!within_shared(worker->module, address, CHUNK))
        abandon(fault_here(OUT_OF_BOUNDS, address, CHUNK, READ, HERE));
    if (address % CHUNK) abandon(fault_here(MISALIGNED, address, CHUNK, READ, HERE));
    return unsigned(address - shared_begin());
}

void warpgroup_tf32(float* d, int columns, const unsigned* words, uint64_t a, uint64_t b, int add,
                    int line) {
    multiply_all<TF32>({d, words, {a, false}, {b, false}, columns, 0, add}, line, HERE);
}
void warpgroup_bf16(float* d, int columns, uint64_t a, int across_a, uint64_t b, int across_b,
                    int add, int line) {
    multiply_all<BF16>({d, nullptr, {a, bool(across_a)}, {b, bool(across_b)}, columns, 0, add},
                       line, HERE);
}

}  // namespace emu
